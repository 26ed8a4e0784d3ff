// Shared memory, which is dynamic: LaunchConfig::shared_bytes of it, divided among views at offsets known when compiling.
#pragma once

#include "engine/cuda/device/target.h"

namespace ringattn::cuda {

#ifdef __CUDACC__
extern __shared__ __align__(128) unsigned char shared_memory[];
#endif

// Where a row of 16 bytes begins, for ldmatrix and cp_async.
#ifdef __CUDACC__
struct SharedAddress {
  std::uint32_t value;  // in the state space .shared
};
#else
using SharedAddress = emulation::SharedAddress;
#endif

// `Count` elements of T, `Offset` bytes behind the beginning of shared memory. Indices and counts are of T; elements have 2 bytes or
// a multiple. What is loaded or stored at once, or has its address taken, is aligned to its size.
template <class T, int Offset, int Count>
struct Shared {
  static_assert(sizeof(T) % 2 == 0 && Offset % alignof(T) == 0);
  static constexpr int count = Count;
  static constexpr int end = Offset + Count * static_cast<int>(sizeof(T));  // where the next view may begin

  // ld.shared, st.shared: one element.
  __device__ __forceinline__ static T load(int i, Place place = Place::current()) { return load_as<T>(i, place); }
  __device__ __forceinline__ static void store(int i, T value, Place place = Place::current()) {
    store_as(i, value, place);
  }
  // ld.shared.v4.b32, st.shared.v4.b32: the elements from i on, 16 bytes.
  __device__ __forceinline__ static Words<4> load16(int i, Place place = Place::current()) {
    return load_as<Words<4>>(i, place);
  }
  __device__ __forceinline__ static void store16(int i, const Words<4>& value, Place place = Place::current()) {
    store_as(i, value, place);
  }
  // The same of any size from that of T to 16 bytes: Words<2>, or Words<1> of two 16-bit numbers.
  template <class V>
  __device__ __forceinline__ static V load_as(int i, [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
    return *reinterpret_cast<const V*>(shared_memory + Offset + i * static_cast<int>(sizeof(T)));
#else
    V value;
    emulation::load_shared(address(i), &value, sizeof(V), place);
    return value;
#endif
  }
  template <class V>
  __device__ __forceinline__ static void store_as(int i, const V& value,
                                                  [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
    *reinterpret_cast<V*>(shared_memory + Offset + i * static_cast<int>(sizeof(T))) = value;
#else
    emulation::store_shared(address(i), &value, sizeof(V), place);
#endif
  }

  // cvta.to.shared, of element i.
  __device__ __forceinline__ static SharedAddress address(int i) {
#ifdef __CUDACC__
    return {static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_memory)) +
            static_cast<std::uint32_t>(Offset + i * static_cast<int>(sizeof(T)))};
#else
    return {Offset + std::int64_t{i} * static_cast<int>(sizeof(T)), Offset, end};
#endif
  }
};

}  // namespace ringattn::cuda
