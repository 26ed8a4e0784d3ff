#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<BFloat16, 256, Weights::rounded>(Side side);
template DeltaKernel delta_kernel<BFloat16, 256, Weights::rounded>();
template BackwardKernel backward_kernel<BFloat16, 256, Weights::exact>(Side side);
template DeltaKernel delta_kernel<BFloat16, 256, Weights::exact>();

}  // namespace ringattn::cuda
