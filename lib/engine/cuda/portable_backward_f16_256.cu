#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<Float16, 256, Weights::rounded>(Side side);

}  // namespace ringattn::cuda
