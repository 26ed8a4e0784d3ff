#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<float, 128, Weights::rounded>(Side side);
template DeltaKernel delta_kernel<float, 128, Weights::rounded>();
template BackwardKernel backward_kernel<float, 128, Weights::exact>(Side side);
template DeltaKernel delta_kernel<float, 128, Weights::exact>();

}  // namespace ringattn::cuda
