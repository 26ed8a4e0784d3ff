#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<BFloat16, 64, Weights::rounded>(Side side);
template BackwardKernel backward_kernel<BFloat16, 64, Weights::exact>(Side side);

}  // namespace ringattn::cuda
