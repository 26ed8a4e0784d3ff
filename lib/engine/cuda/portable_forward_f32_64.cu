#include "engine/cuda/forward.cuh"

namespace ringattn::cuda {

template ForwardKernel forward_kernel<float, 64, Weights::rounded>();
template ForwardKernel forward_kernel<float, 64, Weights::exact>();

}  // namespace ringattn::cuda
