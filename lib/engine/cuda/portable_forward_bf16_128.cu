#include "engine/cuda/forward.cuh"

namespace ringattn::cuda {

template ForwardKernel forward_kernel<BFloat16, 128, Weights::rounded>();
template ForwardKernel forward_kernel<BFloat16, 128, Weights::exact>();

}  // namespace ringattn::cuda
