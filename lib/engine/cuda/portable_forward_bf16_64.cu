#include "engine/cuda/forward.cuh"

namespace ringattn::cuda {

template ForwardKernel forward_kernel<BFloat16, 64, Weights::rounded>();
template ForwardKernel forward_kernel<BFloat16, 64, Weights::exact>();

}  // namespace ringattn::cuda
