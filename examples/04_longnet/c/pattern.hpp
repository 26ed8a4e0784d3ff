// What a byte may look back at, and what the head makes of it, computed from the definition in fp64.
//
// Each byte is guessed from those before it: query i, made of the bytes up to i, guesses byte i + 1 and sees keys j <= i.
//
//   exact     all of them
//   window    the last 4,096
//   longnet   Ding et al. 2023, "LongNet: Scaling Transformers to 1,000,000,000 Tokens": branches n = 0, 1, 2, ... until a segment is
//             the whole text. Branch n cuts the text into segments of 2,048 * 2^n and keeps of each every 2^n-th position; which, depends
//             on the head. A kept i sees the kept j <= i of its segment. Branches are put together by the sums of their weights, so a key
//             counts as often as there are branches in which it is seen.
//
// A branch costs half as much as the one before it and reaches twice as far, so that all together cost 2,048 keys per byte and
// head, however long the text is: with two heads as much as the window.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "induction_head.hpp"

inline constexpr int64_t kShortestSegment = 2048;
// They have the same query, key and value, and differ in the positions that they keep.
inline constexpr int64_t kLongNetHeads = 2;
inline constexpr int64_t kWindow = kShortestSegment * kLongNetHeads;

enum class PatternKind { exact, window, longnet };

struct Pattern {
  PatternKind kind = PatternKind::exact;
  std::vector<int64_t> segment_lengths, dilations;  // of the branches

  int64_t heads() const { return kind == PatternKind::longnet ? kLongNetHeads : 1; }
  const char* name() const { return std::array{"exact", "window", "longnet"}[static_cast<size_t>(kind)]; }
};

inline Pattern make_pattern(PatternKind kind, int64_t length) {
  Pattern pattern{kind, {}, {}};
  if (kind != PatternKind::longnet) return pattern;
  for (int64_t dilation = 1; dilation == 1 || kShortestSegment * dilation < 2 * length; dilation *= 2) {
    pattern.segment_lengths.push_back(kShortestSegment * dilation);
    pattern.dilations.push_back(dilation);
  }
  return pattern;
}

/** A float as it is after being stored in bfloat16: to nearest, ties to even. */
inline uint16_t to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}
inline double from_bfloat16(uint16_t x) { return double{std::bit_cast<float>(uint32_t{x} << 16U)}; }

/** Keys that query `i` of a head sees: how often, by position, ascending. */
inline std::vector<std::pair<int64_t, int>> list_keys(const Pattern& pattern, int64_t head, int64_t i) {
  std::vector<int64_t> keys;
  const auto add = [&](int64_t begin, int64_t step) {
    for (int64_t j = begin; j <= i; j += step) keys.push_back(j);
  };
  if (pattern.kind == PatternKind::exact) add(0, 1);
  if (pattern.kind == PatternKind::window) add(std::max<int64_t>(0, i - kWindow + 1), 1);
  for (size_t n = 0; n < pattern.dilations.size(); ++n) {
    const int64_t dilation = pattern.dilations[n], in_segment = i % pattern.segment_lengths[n];
    const int64_t heads_of_a_phase = (pattern.heads() + dilation - 1) / dilation, phase = head / heads_of_a_phase;
    if (in_segment % dilation == phase) add(i - in_segment + phase, dilation);
  }
  std::ranges::sort(keys);
  std::vector<std::pair<int64_t, int>> counted;
  for (const int64_t j : keys) {
    if (counted.empty() || counted.back().first != j) counted.emplace_back(j, 0);
    ++counted.back().second;
  }
  return counted;
}

/** What the heads together hold byte i + 1 for, from features that have been stored in bfloat16. */
inline Distribution attend_fp64(const Pattern& pattern, const std::string& text, int64_t i) {
  const Feature query = make_feature(text, i + 1);
  Distribution out{};
  double sum = 0.0;
  for (int64_t head = 0; head < pattern.heads(); ++head) {
    for (const auto& [j, times] : list_keys(pattern, head, i)) {
      const Feature key = make_feature(text, j);
      double dot = 0.0;
      for (size_t d = 0; d < key.size(); ++d)
        dot += from_bfloat16(to_bfloat16(query[d])) * from_bfloat16(to_bfloat16(key[d]));
      // About unit vectors: no score exceeds the scale by much, so subtracting it instead of the maximum is safe in fp64.
      const double weight = times * std::exp(static_cast<double>(kSoftmaxScale) * (dot - 1.0));
      out[static_cast<size_t>(text[static_cast<size_t>(j)])] += weight;
      sum += weight;
    }
  }
  for (double& p : out) p /= sum;
  return out;
}
