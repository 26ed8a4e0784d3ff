#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<BFloat16, 128, Weights::rounded>(Side side);
template BackwardKernel backward_kernel<BFloat16, 128, Weights::exact>(Side side);

}  // namespace ringattn::cuda
