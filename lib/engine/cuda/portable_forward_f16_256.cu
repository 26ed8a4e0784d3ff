#include "engine/cuda/forward.cuh"

namespace ringattn::cuda {

template ForwardKernel forward_kernel<Float16, 256, Weights::rounded>();
template ForwardKernel forward_kernel<Float16, 256, Weights::exact>();

}  // namespace ringattn::cuda
