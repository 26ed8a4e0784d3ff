// How kernels are started. Host code.
#pragma once

#include <cstddef>
#include <span>

#include "engine/cuda/access.h"
#include "engine/cuda/device/target.h"
#include "engine/cuda/device/threads.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

struct CUstream_st;  // cudaStream_t points to it

namespace ringattn::cuda {

struct LaunchConfig {
  const char* name = "";  // of the kernel, for messages; lives on
  Index grid = {1, 1, 1};
  int threads = warp_size;  // of a block, whole warps
  std::size_t shared_bytes = 0;
  CUstream_st* stream = nullptr;
};

// cudaLaunchKernelEx: enqueues the kernel; a cudaError_t. `accesses` are the ranges of device memory that it reads and writes. A GPU
// is not told of them; the emulation checks them against all other work in flight.
template <class... Parameters, class... Arguments>
int launch(const LaunchConfig& config, [[maybe_unused]] std::span<const Access> accesses, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
#ifdef __CUDACC__
  constexpr std::size_t without_asking = 48 * 1024;
  if (config.shared_bytes > without_asking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(config.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(config.grid.x), static_cast<unsigned>(config.grid.y),
                        static_cast<unsigned>(config.grid.z));
  launch.blockDim = dim3(static_cast<unsigned>(config.threads));
  launch.dynamicSmemBytes = config.shared_bytes;
  launch.stream = config.stream;
  return cudaLaunchKernelEx(&launch, kernel, arguments...);
#else
  return emulation::launch({config.name,
                            {config.grid.x, config.grid.y, config.grid.z},
                            config.threads,
                            config.shared_bytes,
                            config.stream,
                            {accesses.begin(), accesses.end()},
                            [kernel, arguments...] { kernel(arguments...); }});
#endif
}

}  // namespace ringattn::cuda
