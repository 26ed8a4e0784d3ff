// Modifiers of a block's queries and keys. What each needs of its own is in shared memory, so that pairs cost registers nothing that
// lasts: positions are made once for a row, and once for a key of each tile.
//
//   score += bias - slope |faced - key|        both are positions of the keys' whole sequence; exact where a tile's keys, and the rows
//                                              beside them, are less than 2^24 tokens apart
//   weight is dropped                          one bit of a pair, by Philox (engine/dropout.h): the same on every engine
#pragma once

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/item.h"
#include "engine/cuda/modifiers.h"
#include "engine/dropout.h"

namespace ringattn::cuda {

__device__ __forceinline__ Words<2> words_of(std::int64_t x) {
  return {{static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)}};
}
__device__ __forceinline__ std::int64_t number_of(std::uint32_t low, std::uint32_t high) {
  return static_cast<std::int64_t>(low | std::uint64_t{high} << 32);
}

// A row of queries: the key that it faces, and its key of Philox.
struct ModifiedQuery {
  std::int64_t faced;
  PhiloxKey dropout;

  __device__ __forceinline__ Words<4> words() const {
    const Words<2> two = words_of(faced);
    return {{two[0], two[1], dropout[0], dropout[1]}};
  }
  __device__ __forceinline__ static ModifiedQuery of(const Words<4>& words) {
    return {number_of(words[0], words[1]), {{words[2], words[3]}}};
  }
};
// A key: where it is, and from the first of its tile on; and what is added to its scores.
struct ModifiedKey {
  std::int64_t position;
  float offset, bias;

  __device__ __forceinline__ Words<4> words() const {
    const Words<2> two = words_of(position);
    return {{two[0], two[1], bits_of(offset), bits_of(bias)}};
  }
  __device__ __forceinline__ static ModifiedKey of(const Words<4>& words) {
    return {number_of(words[0], words[1]), float_of(words[2]), float_of(words[3])};
  }
};

// Row i of an item's queries, in head `head` and entry `b` of the step.
__device__ __forceinline__ ModifiedQuery modified_query(const ModifierParameters& p, const PlacedItem& item,
                                                        std::int64_t i, std::int64_t b, std::int64_t head) {
  if (i >= item.queries.count()) return {};
  const std::int64_t position = item.queries.position(i);
  ModifiedQuery query{item.faced(position), {}};
  if (p.kept != 0.0F)
    query.dropout = dropout_row_key(p.seed, item.query(position), p.entry + b, p.head + head * p.head_step);
  return query;
}
// Key j of an item's, in a tile whose first is key `first`.
__device__ __forceinline__ ModifiedKey modified_key(const ModifierParameters& p, const PlacedItem& item, std::int64_t j,
                                                    std::int64_t first, std::int64_t b) {
  if (j >= item.keys.count()) return {};
  const std::int64_t position = item.key(item.keys.position(j)), of_first = item.key(item.keys.position(first));
  return {position, static_cast<float>(position - of_first),
          p.key_bias == nullptr ? 0.0F : p.key_bias[b * p.key_rows + item.keys.row + j]};
}

// What is added to the score of a row and a key. `ahead`: the key that the row faces, from the first of the tile on.
__device__ __forceinline__ float added_score(float slope, float ahead, float offset, float bias) {
  return multiply_add(-slope, ::fabsf(ahead - offset), bias);
}

// ---------------------------------------------------------------- dropout

__device__ __forceinline__ std::uint32_t word_of(const PhiloxBlock& words, std::int64_t key) {
  const std::uint32_t low = key % 2 == 0 ? words[0] : words[1], high = key % 2 == 0 ? words[2] : words[3];
  return key % 4 < 2 ? low : high;
}
// Whether a query keeps two keys, in two bits; mostly both are of one block of Philox.
__device__ __forceinline__ std::uint32_t kept_of_two(const ModifierParameters& p, const PhiloxKey& query,
                                                     std::int64_t first, std::int64_t second) {
  PhiloxBlock words = dropout_words(query, p.offset, first / 4);
  const std::uint32_t of_first = word_of(words, first);
  if (first / 4 != second / 4) words = dropout_words(query, p.offset, second / 4);
  return (of_first >= p.threshold ? 1U : 0U) | (word_of(words, second) >= p.threshold ? 2U : 0U);
}

}  // namespace ringattn::cuda
