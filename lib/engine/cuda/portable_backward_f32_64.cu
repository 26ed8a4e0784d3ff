#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<float, 64, Weights::exact>(Side side);

}  // namespace ringattn::cuda
