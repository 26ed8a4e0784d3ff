// How kernels are started. Host code.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Lets a kernel have so much shared memory; a cudaError_t.
template <class... Parameters>
int allow_shared_bytes([[maybe_unused]] void (*kernel)(Parameters...), [[maybe_unused]] std::size_t bytes) {
#ifdef __CUDACC__
  constexpr std::size_t without_asking = 48 * 1024;
  if (bytes > without_asking)
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
#endif
  return 0;
}

// The least of `blocks` and of how many blocks so many multiprocessors have room for; 0 multiprocessors: `blocks`.
template <class... Parameters>
int limit_blocks(std::int64_t blocks, int multiprocessors, [[maybe_unused]] void (*kernel)(Parameters...),
                 [[maybe_unused]] int threads, [[maybe_unused]] std::size_t shared_bytes) {
  if (multiprocessors == 0) return static_cast<int>(blocks);
  int resident = 1;  // on one of them
#ifdef __CUDACC__
  if (allow_shared_bytes(kernel, shared_bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes) != cudaSuccess)
    cudaGetLastError();  // the launch will say so
  if (resident < 1) resident = 1;
#endif
  const std::int64_t most = std::int64_t{multiprocessors} * resident;
  return static_cast<int>(blocks < most ? blocks : most);
}

// cudaLaunchKernelEx: enqueues the kernel; a cudaError_t. `accesses` are the ranges of device memory that it reads and writes. A GPU
// is not told of them; the emulation checks them against all other work in flight.
template <class... Parameters, class... Arguments>
int launch(const LaunchConfig& config, [[maybe_unused]] std::span<const Access> accesses, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
#ifdef __CUDACC__
  if (const int error = allow_shared_bytes(kernel, config.shared_bytes); error != cudaSuccess) return error;
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

// The same in several launches, one after the other, if the kernel may take no more room than so many multiprocessors have: a stream
// has but one of them under way. Each block is told where it is by the parameters' first_block. The config's grid is not looked at.
template <class Parameters>
int launch_in_turns(LaunchConfig config, std::span<const Access> accesses, void (*kernel)(Parameters),
                    Parameters parameters, std::int64_t blocks, int multiprocessors) {
  const int together = limit_blocks(blocks, multiprocessors, kernel, config.threads, config.shared_bytes);
  int error = 0;
  for (std::int64_t first = 0; first < blocks && error == 0; first += together) {
    const std::int64_t left = blocks - first;
    config.grid = {static_cast<int>(left < together ? left : together), 1, 1};
    parameters.first_block = static_cast<std::int32_t>(first);
    error = launch(config, accesses, kernel, parameters);
  }
  return error;
}

}  // namespace ringattn::cuda
