// Threads: which one this is, barriers, and what lanes of a warp tell each other.
#pragma once

#include "engine/cuda/device/target.h"

namespace ringattn::cuda {

struct Index {
  int x, y, z;
};

constexpr int warp_size = 32;

// %tid.x, %ntid.x
__device__ __forceinline__ int thread_index() {
#ifdef __CUDACC__
  return static_cast<int>(threadIdx.x);
#else
  return emulation::thread_index();
#endif
}
__device__ __forceinline__ int block_size() {
#ifdef __CUDACC__
  return static_cast<int>(blockDim.x);
#else
  return emulation::block_size();
#endif
}
__device__ __forceinline__ int lane_index() { return thread_index() % warp_size; }
__device__ __forceinline__ int warp_index() { return thread_index() / warp_size; }

// %ctaid, %nctaid
__device__ __forceinline__ Index block_index() {
#ifdef __CUDACC__
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
#else
  const emulation::Index index = emulation::block_index();
  return {index.x, index.y, index.z};
#endif
}
__device__ __forceinline__ Index grid_size() {
#ifdef __CUDACC__
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
#else
  const emulation::Index size = emulation::grid_size();
  return {size.x, size.y, size.z};
#endif
}

// ---------------------------------------------------------------- barriers: what was stored before can be loaded after

// bar.sync 0: all threads of the block, at one source line.
__device__ __forceinline__ void barrier([[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile("bar.sync 0;" ::: "memory");
#else
  emulation::barrier(place);
#endif
}
// bar.sync id, threads: so many threads, which are whole warps; 1 <= id <= 15. Each warp at a source line of its own.
__device__ __forceinline__ void barrier(int id, int threads, [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulation::barrier(id, threads, place);
#endif
}
// bar.warp.sync 0xffffffff: the lanes of this warp.
__device__ __forceinline__ void warp_barrier([[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
#else
  emulation::warp_barrier(place);
#endif
}

// ---------------------------------------------------------------- between the lanes of a warp; T has 4 bytes

// shfl.sync.bfly.b32: the value of lane (own ^ mask), mask < 32.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask, [[maybe_unused]] Place place = Place::current()) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDACC__
  return __shfl_xor_sync(0xffffffffU, value, mask);
#else
  return emulation::shuffle("shuffle_xor", value, lane_index() ^ mask, place);
#endif
}
// shfl.sync.down.b32: the value of lane (own + delta), or the own value where there is no such lane.
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int delta, [[maybe_unused]] Place place = Place::current()) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDACC__
  return __shfl_down_sync(0xffffffffU, value, static_cast<unsigned>(delta));
#else
  const int from = lane_index() + delta;
  return emulation::shuffle("shuffle_down", value, from < warp_size ? from : lane_index(), place);
#endif
}
// shfl.sync.idx.b32: the value of that lane, 0 <= lane < 32.
template <class T>
__device__ __forceinline__ T broadcast(T value, int lane, [[maybe_unused]] Place place = Place::current()) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffU, value, lane);
#else
  return emulation::shuffle("broadcast", value, lane, place);
#endif
}
// vote.sync.any.pred: whether it holds in any lane.
__device__ __forceinline__ bool any_lane(bool holds, [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  return __any_sync(0xffffffffU, holds) != 0;
#else
  return emulation::any_lane(holds, place);
#endif
}

}  // namespace ringattn::cuda
