// Global memory, 16 bytes at a time, to and from registers and to shared memory.
#pragma once

#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/target.h"

namespace ringattn::cuda {

// ld.global.v4.b32. `from` is aligned to 16 bytes, as is `to` below.
__device__ __forceinline__ Words<4> load_global16(const void* from, [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  return *static_cast<const Words<4>*>(from);
#else
  Words<4> value;
  emulation::load_global(from, &value, sizeof value, place);
  return value;
#endif
}
// st.global.v4.b32
__device__ __forceinline__ void store_global16(void* to, const Words<4>& value,
                                               [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  *static_cast<Words<4>*>(to) = value;
#else
  emulation::store_global(to, &value, sizeof value, place);
#endif
}

// cp.async.cg.shared.global [to], [from], 16, bytes: 16 bytes of shared memory become the first `bytes` <= 16 at `from`, and zeros.
// They are there for this thread once it has waited, and for others after a barrier behind that. `from` is aligned to 16 bytes;
// with no bytes nothing is read.
__device__ __forceinline__ void cp_async(SharedAddress to, const void* from, int bytes = 16,
                                         [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.value), "l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
#else
  emulation::cp_async(to, from, bytes, place);
#endif
}
// cp.async.commit_group: this thread's copies since the last one are a group.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::cp_async_commit();
#endif
}
// cp.async.wait_group n: until all groups of this thread but the latest `n` are there.
template <int n>
__device__ __forceinline__ void cp_async_wait([[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#else
  emulation::cp_async_wait(n, place);
#endif
}

}  // namespace ringattn::cuda
