// What lets a kernel be compiled twice: by nvcc for a GPU, and by a C++ compiler for the emulation of tests/emulation.
//
// A kernel reaches the GPU through the functions of this folder only. Each of them is one PTX instruction, named in its comment, or a
// call of the emulation, which does what the PTX ISA says of that instruction. What follows for a kernel:
//   * threads of a block are counted in one dimension, and are whole warps
//   * shared memory is dynamic, and seen through Shared (shared.h)
//   * what all lanes of a warp do together is one call on one source line, and all 32 lanes take part
//   * lanes are not in step by themselves: what one stores, another loads after a barrier
//   * nothing waits in a loop for what another thread does
#pragma once

#include <cstdint>

// For what is seldom called, and would cost the function that it is called from registers.
#ifdef __CUDACC__
#define RA_APART __noinline__
#else
#define RA_APART
#endif

#ifndef __CUDACC__

#include "emulation/execution/execution.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#endif

namespace ringattn::cuda {

// Where a kernel calls: every function that the emulation may have to blame takes it as its last argument, by default.
#ifdef __CUDACC__
struct Place {
  __host__ __device__ static constexpr Place current() { return {}; }
};
#else
using Place = emulation::Place;
#endif

// Registers, or elements of memory that are loaded and stored at once.
template <int count>
struct alignas(4 * count) Words {
  std::uint32_t word[count];

  __host__ __device__ __forceinline__ std::uint32_t& operator[](int i) { return word[i]; }
  __host__ __device__ __forceinline__ const std::uint32_t& operator[](int i) const { return word[i]; }
};

// 16-bit floating-point numbers as memory has them; convert.h makes them.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

}  // namespace ringattn::cuda
