#include "engine/cuda/backward.cuh"

namespace ringattn::cuda {

template BackwardKernel backward_kernel<Float16, 256, Weights::rounded>(Side side);
template DeltaKernel delta_kernel<Float16, 256, Weights::rounded>();

}  // namespace ringattn::cuda
