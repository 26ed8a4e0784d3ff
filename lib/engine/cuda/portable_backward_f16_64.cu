#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel<false> backward_kernel<Float16, 64, Weights::rounded, false>(Side side);
template BackwardKernel<true> backward_kernel<Float16, 64, Weights::rounded, true>(Side side);
template DeltaKernel delta_kernel<Float16, 64, Weights::rounded>();

}  // namespace ringattn::cuda
