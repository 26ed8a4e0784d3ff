// One kernel for every architecture that kernels are compiled for. Tensor cores read shared memory themselves on sm_90a only: there
// the instruction must be taken, and elsewhere, PTX included, be left out.
#include <cstdint>

namespace ringattn::cuda {

__global__ void fence(std::uint32_t* words) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  words[threadIdx.x] += 1;
}

}  // namespace ringattn::cuda
