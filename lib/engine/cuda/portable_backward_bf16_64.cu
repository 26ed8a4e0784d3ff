#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel<false> backward_kernel<BFloat16, 64, Weights::rounded, false>(Side side);
template BackwardKernel<true> backward_kernel<BFloat16, 64, Weights::rounded, true>(Side side);
template DeltaKernel delta_kernel<BFloat16, 64, Weights::rounded>();
template BackwardKernel<false> backward_kernel<BFloat16, 64, Weights::exact, false>(Side side);
template BackwardKernel<true> backward_kernel<BFloat16, 64, Weights::exact, true>(Side side);
template DeltaKernel delta_kernel<BFloat16, 64, Weights::exact>();

}  // namespace ringattn::cuda
