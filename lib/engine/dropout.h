// Which weights of the softmax dropout keeps, said once: by Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3") on a weight's place in the whole problem, so that the mask depends neither on ranks nor on how the work is cut, and the
// backward pass makes it again.
//
//   row key = the first two words of philox({I low 32, I bits 32..47 | H bits 0..15 << 16, B low 32, B bits 32..47 | H bits 16..19 << 16},
//             seed)                                             I: the query's position, B: batch entry, H: query head
//   word    = word J % 4 of philox({J / 4, offset}, row key)    J: the key's position, one block for four neighbours
//   kept    iff word >= probability * 2^32
//
// All are those of whole sequences: documents do not count anew. Numbers of 64 bits are two words, the low one first.
#pragma once

#include <compare>
#include <cstdint>

#include "core/host_device.h"

namespace ringattn {

template <int count>
struct PhiloxWords {
  std::uint32_t word[count];

  RA_HOST_DEVICE constexpr std::uint32_t& operator[](int i) { return word[i]; }
  RA_HOST_DEVICE constexpr std::uint32_t operator[](int i) const { return word[i]; }
  friend constexpr auto operator<=>(const PhiloxWords&, const PhiloxWords&) = default;
};
using PhiloxBlock = PhiloxWords<4>;
using PhiloxKey = PhiloxWords<2>;

constexpr std::uint32_t philox_multiplier[2] = {0xd2511f53U, 0xcd9e8d57U};
constexpr std::uint32_t philox_step[2] = {0x9e3779b9U, 0xbb67ae85U};  // of the key, from round to round
constexpr int philox_rounds = 10;

RA_HOST_DEVICE constexpr std::uint32_t low_word(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
RA_HOST_DEVICE constexpr std::uint32_t high_word(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

RA_HOST_DEVICE constexpr PhiloxBlock philox(PhiloxBlock c, PhiloxKey key) {
  // As numbers of their own, since a GPU has no arrays of constants.
  constexpr std::uint64_t multiplier_0 = philox_multiplier[0], multiplier_1 = philox_multiplier[1];
  constexpr std::uint32_t step_0 = philox_step[0], step_1 = philox_step[1];
  for (int round = 0; round < philox_rounds; ++round) {
    const std::uint64_t a = multiplier_0 * c[0], b = multiplier_1 * c[2];
    c = {{high_word(b) ^ c[1] ^ key[0], low_word(b), high_word(a) ^ c[3] ^ key[1], low_word(a)}};
    key = {{key[0] + step_0, key[1] + step_1}};
  }
  return c;
}

RA_HOST_DEVICE constexpr PhiloxKey dropout_row_key(std::uint64_t seed, std::int64_t query, std::int64_t entry,
                                                   std::int64_t head) {
  const auto i = static_cast<std::uint64_t>(query), b = static_cast<std::uint64_t>(entry),
             h = static_cast<std::uint64_t>(head);
  const PhiloxBlock block = philox({low_word(i), (high_word(i) & 0xffffU) | low_word(h & 0xffffU) << 16, low_word(b),
                                    (high_word(b) & 0xffffU) | low_word(h >> 16 & 0xfU) << 16},
                                   {low_word(seed), high_word(seed)});
  return {block[0], block[1]};
}

// The words of keys 4 * group .. 4 * group + 3.
RA_HOST_DEVICE constexpr PhiloxBlock dropout_words(PhiloxKey row_key, std::uint64_t offset, std::int64_t group) {
  const auto g = static_cast<std::uint64_t>(group);
  return philox({low_word(g), high_word(g), low_word(offset), high_word(offset)}, row_key);
}

// Words below it are dropped: probability * 2^32 to nearest, ties up, and at most the largest word, which so is always kept.
constexpr std::uint32_t dropout_threshold(float probability) {
  const double words = static_cast<double>(probability) * 0x1p32 + 0.5;
  return words < 0x1p32 ? static_cast<std::uint32_t>(words) : 0xffffffffU;
}

RA_HOST_DEVICE constexpr bool dropout_keeps(PhiloxKey row_key, std::uint64_t offset, std::int64_t key,
                                            std::uint32_t threshold) {
  return dropout_words(row_key, offset, key / 4)[static_cast<int>(key % 4)] >= threshold;
}

}  // namespace ringattn
