// The dropout mask: its generator by known answers, its words by their definition, and that they look drawn.
#include "engine/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

// Random123's known answers, of zeros, of ones and of the digits of pi.
TEST(Dropout, PhiloxGivesItsKnownAnswers) {
  static_assert(philox({0, 0, 0, 0}, {0, 0}) == PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t ones = 0xffffffff;
  static_assert(philox({ones, ones, ones, ones}, {ones, ones}) ==
                PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  static_assert(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
                PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// The counters and keys, word by word, of numbers that fill all their bits.
TEST(Dropout, PlacesAreCountersAndKeys) {
  constexpr PhiloxBlock row = philox({0x89abcdef, 0x54324567, 0xfedcba98, 0x00017654}, {0x11112222, 0x33334444});
  constexpr PhiloxKey key = dropout_row_key(0x3333444411112222, 0x456789abcdef, 0x7654fedcba98, 0x15432);
  static_assert(key[0] == row[0] && key[1] == row[1]);
  constexpr PhiloxBlock words = philox({0xdeadbeef, 0x1234, 0x55556666, 0x77778888}, key);
  static_assert(dropout_words(key, 0x7777888855556666, 0x1234deadbeef) == words);
  for (std::uint32_t n = 0; n < 4; ++n)
    EXPECT_EQ(dropout_keeps(key, 0x7777888855556666, 4 * std::int64_t{0x1234deadbeef} + n, 0x80000000),
              words[n] >= 0x80000000);
}

TEST(Dropout, ThresholdsAreTheNearest) {
  static_assert(dropout_threshold(0) == 0);
  static_assert(dropout_threshold(0.5F) == 0x80000000);
  static_assert(dropout_threshold(0.1F) == 429496736);  // of the float, 0.1 + 1.5e-9
  static_assert(dropout_threshold(0x1.fffffep-1F) == 0xffffff00);
  static_assert(dropout_threshold(0x1p-32F) == 1);
  static_assert(dropout_threshold(0x1p-33F) == 1);
  static_assert(dropout_threshold(0x1p-34F) == 0);
  static_assert(dropout_threshold(1.0F) == 0xffffffff);
}

// Five standard deviations of a count.
double most_off(double n, double p) { return 5 * std::sqrt(n * p * (1 - p)); }

// Of all keys, of neighbours together, and of the same key in neighbouring rows, heads, entries and offsets together.
TEST(Dropout, KeepsItsShareOfAnyKeysIndependently) {
  Random random(test::seed());
  for (const float p : {0.02F, 0.1F, 0.5F, 0.9F}) {
    const std::uint64_t seed = random(), offset = random();
    const std::int64_t i = draw(random, 0, most_tokens - 2), b = draw(random, 0, most_tokens - 2),
                       h = draw(random, 0, most_heads - 2), first = draw(random, 0, most_tokens - (1 << 20));
    const std::uint32_t threshold = dropout_threshold(p);
    struct Row {
      PhiloxKey key;
      std::uint64_t offset;
    };
    const Row rows[] = {{dropout_row_key(seed, i, b, h), offset},     {dropout_row_key(seed, i + 1, b, h), offset},
                        {dropout_row_key(seed, i, b + 1, h), offset}, {dropout_row_key(seed, i, b, h + 1), offset},
                        {dropout_row_key(seed + 1, i, b, h), offset}, {dropout_row_key(seed, i, b, h), offset + 1}};
    const auto keeps = [&](const Row& row, std::int64_t n) {
      return dropout_keeps(row.key, row.offset, first + n, threshold);
    };
    constexpr int keys = 20'000;
    double kept = 0, kept_with_next = 0, kept_with[std::size(rows)] = {};
    for (int n = 0; n < keys; ++n) {
      if (!keeps(rows[0], n)) continue;
      ++kept;
      kept_with_next += keeps(rows[0], n + 1);
      for (std::size_t other = 1; other < std::size(rows); ++other) kept_with[other] += keeps(rows[other], n);
    }
    const double q = 1 - static_cast<double>(p);
    EXPECT_LE(std::abs(kept - keys * q), most_off(keys, q)) << "probability " << p;
    EXPECT_LE(std::abs(kept_with_next - keys * q * q), most_off(keys, q * q)) << "probability " << p;
    for (std::size_t other = 1; other < std::size(rows); ++other)
      EXPECT_LE(std::abs(kept_with[other] - keys * q * q), most_off(keys, q * q))
          << "probability " << p << ", and row " << other;
  }
}

// Chi-squared of 256 bins by the words' high and by their low bytes: its mean is 255, its deviation the root of 510.
TEST(Dropout, WordsAreUniform) {
  Random random(test::seed());
  const PhiloxKey key = dropout_row_key(random(), 5, 3, 1);
  constexpr int groups = 1 << 16;
  std::array<std::array<double, 256>, 2> bins{};
  for (int g = 0; g < groups; ++g)
    for (const std::uint32_t word : dropout_words(key, 7, g).word) {
      ++bins[0][word >> 24];
      ++bins[1][word & 0xff];
    }
  for (const auto& counts : bins) {
    constexpr double expected = 4.0 * groups / 256;
    double chi = 0;
    for (const double count : counts) chi += (count - expected) * (count - expected) / expected;
    EXPECT_LE(std::abs(chi - 255), 5 * std::sqrt(510.0));
  }
}

// Queries, heads, entries and seeds whose bits lie in any of the counter's words.
TEST(Dropout, EveryRowHasItsOwnKey) {
  std::set<PhiloxKey> keys;
  std::size_t rows = 0;
  const auto add = [&](std::uint64_t seed, std::int64_t i, std::int64_t b, std::int64_t h) {
    keys.insert(dropout_row_key(seed, i, b, h));
    ++rows;
  };
  add(0, 0, 0, 0);
  for (int bit = 0; bit < 64; ++bit) add(std::uint64_t{1} << bit, 0, 0, 0);
  for (int bit = 0; bit < 48; ++bit) {
    add(0, std::int64_t{1} << bit, 0, 0);
    add(0, 0, std::int64_t{1} << bit, 0);
  }
  for (int bit = 0; bit < 20; ++bit) add(0, 0, 0, std::int64_t{1} << bit);
  EXPECT_EQ(keys.size(), rows);
}

}  // namespace
}  // namespace ringattn
