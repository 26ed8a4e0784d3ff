// Modifiers of a block's queries and keys. What each needs of its own is in shared memory, so that pairs cost registers nothing that
// lasts: positions are made once for a row, and once for a key of each tile.
//
//   score += bias - slope |faced - key|        both are positions of the keys' whole sequence; exact where a tile's keys, and the rows
//                                              beside them, are less than 2^24 tokens apart
//   weight is dropped                          one bit of a pair, by Philox (engine/dropout.h): the same on every engine
#pragma once

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
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
// Key j of an item's, in a tile whose first is key `first`. Behind the last one keys go on side by side.
__device__ __forceinline__ ModifiedKey modified_key(const ModifierParameters& p, const PlacedItem& item, std::int64_t j,
                                                    std::int64_t first, std::int64_t b) {
  const std::int64_t behind = largest(0, j - (item.keys.count() - 1));
  const std::int64_t position = item.key(item.keys.position(j - behind)) + behind,
                     of_first = item.key(item.keys.position(first));
  return {position, static_cast<float>(position - of_first),
          p.key_bias == nullptr || behind > 0 ? 0.0F : p.key_bias[b * p.key_rows + item.keys.row + j]};
}

// What is added to the score of a row and a key. `ahead`: the key that the row faces, from the first of the tile on.
__device__ __forceinline__ float added_score(float slope, float ahead, float offset, float bias) {
  return multiply_add(-slope, ::fabsf(ahead - offset), bias);
}

// ---------------------------------------------------------------- dropout
//
// A block of Philox has the words of four keys that are neighbours. Where a tile's keys are, and begin with the first of four, lanes that
// hold some of the same four draw for each other, each every so manieth block, and exchange bits; else each draws for itself.

// Whether the `count` keys from element `at` on are such.
template <class Keys>
__device__ __forceinline__ bool are_in_fours(int at, int count) {
  const std::int64_t first = ModifiedKey::of(Keys::load(at)).position;
  return first % 4 == 0 && ModifiedKey::of(Keys::load(at + count - 1)).position - first == count - 1;
}

__device__ __forceinline__ std::uint32_t word_of(const PhiloxBlock& words, std::int64_t key) {
  const std::uint32_t low = key % 2 == 0 ? words[0] : words[1], high = key % 2 == 0 ? words[2] : words[3];
  return key % 4 < 2 ? low : high;
}
// Whether a query keeps the four keys of a block, in four bits.
__device__ __forceinline__ std::uint32_t kept_of_four(const ModifierParameters& p, const PhiloxKey& query,
                                                      std::int64_t group) {
  const PhiloxBlock words = dropout_words(query, p.offset, group);
  std::uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) kept |= (words[i] >= p.threshold ? 1U : 0U) << i;
  return kept;
}

// What a query, which is the same in the four lanes of a row, keeps of this lane's keys: bit 2n + i is that of key 8n + 2 (lane % 4) + i
// of the `8 blocks` keys from element `at` on.
template <class Keys, int blocks>
__device__ __forceinline__ std::uint32_t kept_of_row(const ModifierParameters& p, const PhiloxKey& query, int at,
                                                     bool in_fours) {
  static_assert(blocks % 2 == 0);
  const int lane = lane_index() % 4;
  std::uint32_t kept = 0;
  if (in_fours) {
    const std::int64_t first = ModifiedKey::of(Keys::load(at)).position / 4 + lane / 2;
    std::uint32_t own = 0;  // of every other block of eight
#pragma unroll 1
    for (int n = 0; n < blocks / 2; ++n) own |= kept_of_four(p, query, first + 2 * (2 * n + lane % 2)) << (4 * n);
    const std::uint32_t other = shuffle_xor(own, 1);
#pragma unroll
    for (int n = 0; n < blocks; ++n)
      kept |= ((n % 2 == lane % 2 ? own : other) >> (n / 2 * 4 + lane % 2 * 2) & 3U) << (2 * n);
    return kept;
  }
#pragma unroll 1
  for (int i = 0; i < 2 * blocks; ++i) {
    const std::int64_t key = ModifiedKey::of(Keys::load(at + i / 2 * 8 + 2 * lane + i % 2)).position;
    kept |= (word_of(dropout_words(query, p.offset, key / 4), key) >= p.threshold ? 1U : 0U) << i;
  }
  return kept;
}

// What this lane's queries keep of one key, element `key` of Keys, which is the same in the four lanes of a row: bit 2n + i is that of
// query 8n + 2 (lane % 4) + i of the `8 blocks` from element `at` of Queries on.
template <class Keys, class Queries, int blocks>
__device__ __forceinline__ std::uint32_t kept_of_column(const ModifierParameters& p, int key, int at, bool in_fours) {
  const std::int64_t position = ModifiedKey::of(Keys::load(key)).position;
  const int column = 2 * (lane_index() % 4);
  const auto query_of = [&](int i) {
    return ModifiedQuery::of(Queries::load(at + i / 2 * 8 + column + i % 2)).dropout;
  };
  std::uint32_t kept = 0;
  if (in_fours) {
    const int in_four = static_cast<int>(position % 4);  // of four lanes with the same queries
    std::uint32_t own = 0;                               // of every fourth query
#pragma unroll 1
    for (int n = 0; n < blocks / 2; ++n) own |= kept_of_four(p, query_of(4 * n + in_four), position / 4) << (4 * n);
#pragma unroll
    for (int other = 0; other < 4; ++other) {  // of the lane whose key's place differs by so much
      const std::uint32_t drawn = other == 0 ? own : shuffle_xor(own, 4 * other);
#pragma unroll
      for (int n = 0; n < blocks / 2; ++n) kept |= (drawn >> (4 * n + in_four) & 1U) << (4 * n + (in_four ^ other));
    }
    return kept;
  }
#pragma unroll 1
  for (int i = 0; i < 2 * blocks; ++i)
    kept |= (word_of(dropout_words(query_of(i), p.offset, position / 4), position) >= p.threshold ? 1U : 0U) << i;
  return kept;
}

}  // namespace ringattn::cuda
