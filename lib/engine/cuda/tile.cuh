// Tiles of a tensor on their way to shared memory, by all threads of a block.
#pragma once

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/copy.h"
#include "engine/cuda/item.h"
#include "engine/cuda/product.cuh"

namespace ringattn::cuda {

// Rows that lie `stride` elements apart, of which a tile takes rows begin .. end - 1 of `dim` elements each, and zeros elsewhere.
template <class T>
struct Rows {
  const T* first;  // row 0 of the tile, whether it is taken or not
  std::int64_t stride;
  int begin, end;
  int dim;
  bool aligned;  // every row, to 16 bytes
};

__device__ __forceinline__ std::uint32_t element_bits(const float* x) { return bits_of(*x); }
template <class T>
__device__ __forceinline__ std::uint32_t element_bits(const T* x) {
  return x->bits;
}

// Calls f(row, column) for each piece of a tile that this thread copies: always the same ones.
template <class Tile, int threads, class F>
__device__ __forceinline__ void for_each_own_piece(F&& f) {
  static_assert(Tile::rows * Tile::pieces % threads == 0);
#pragma unroll 4
  for (int i = thread_index(); i < Tile::rows * Tile::pieces; i += threads)
    f(i / Tile::pieces, i % Tile::pieces * Tile::piece);
}

// Begins to copy: the tile is there after cp_async_wait and a barrier.
template <class Tile, int threads>
__device__ __forceinline__ void copy_rows(const Rows<typename Tile::Element>& from) {
  using T = typename Tile::Element;
  constexpr int size = static_cast<int>(sizeof(T));
  if (from.aligned) {
    for_each_own_piece<Tile, threads>([&](int row, int column) {
      const int left = from.begin <= row && row < from.end ? from.dim - column : 0;
      const int elements = left < 0 ? 0 : left > Tile::piece ? Tile::piece : left;
      cp_async(Tile::Memory::address(Tile::at(row, column)),
               elements > 0 ? from.first + row * from.stride + column : from.first, elements * size);
    });
    return;
  }
  for_each_own_piece<Tile, threads>([&](int row, int column) {
    Words<4> words{};
    if (from.begin <= row && row < from.end)
#pragma unroll
      for (int i = 0; i < Tile::piece; ++i)
        if (column + i < from.dim)
          words[i * size / 4] |= element_bits(from.first + row * from.stride + column + i) << (i * size % 4 * 8);
    Tile::Memory::store16(Tile::at(row, column), words);
  });
}

// Whether a word, of one or two elements, has one that is infinite or not a number.
template <class T>
__device__ __forceinline__ bool is_spoilt(std::uint32_t word) {
  constexpr std::uint32_t exponent = sizeof(T) == 4 || std::is_same_v<T, BFloat16> ? 0x7f80 : 0x7c00;
  if constexpr (sizeof(T) == 4)
    return (word >> 16 & exponent) == exponent;
  else
    return (word & exponent) == exponent || (word >> 16 & exponent) == exponent;
}

// Whether anything that this thread has copied is not finite.
template <class Tile, int threads>
__device__ __forceinline__ bool own_is_spoilt() {
  bool spoilt = false;
  for_each_own_piece<Tile, threads>([&](int row, int column) {
    const Words<4> words = Tile::Memory::load16(Tile::at(row, column));
#pragma unroll
    for (int i = 0; i < 4; ++i) spoilt |= is_spoilt<typename Tile::Element>(words[i]);
  });
  return spoilt;
}

// Puts 0 for what this thread has copied and is not finite.
template <class Tile, int threads>
__device__ __forceinline__ void clear_own_spoilt() {
  for_each_own_piece<Tile, threads>([&](int row, int column) {
    for (int i = 0; i < Tile::piece; ++i) {
      const int at = Tile::at(row, column + i);
      if (!is_finite(number_of(Tile::Memory::load(at)))) Tile::Memory::store(at, typename Tile::Element{});
    }
  });
}

}  // namespace ringattn::cuda
