#include "engine/cuda/forward.cuh"

namespace ringattn::cuda {

template ForwardKernel<false> forward_kernel<Float16, 64, Weights::rounded, false>();
template ForwardKernel<true> forward_kernel<Float16, 64, Weights::rounded, true>();
template ForwardKernel<false> forward_kernel<Float16, 64, Weights::exact, false>();
template ForwardKernel<true> forward_kernel<Float16, 64, Weights::exact, true>();

}  // namespace ringattn::cuda
