// The head itself: what its queries, keys and values are, and its output computed directly in fp64. Nothing here uses
// the library.
//
// An induction head looks for earlier places that were preceded by the same bytes as this one, and copies what came
// next there. It needs no training: with a token per byte,
//
//   key s    says what came before byte s: a unit vector along the sum over i = 1 .. 12 of 0.85^i sign(i, byte s - i),
//            where sign(i, b) is a fixed random vector of +-1 for each pair of a distance and a byte
//   value s  is byte s, one-hot
//   query t  is the same vector as key t
//
// Random vectors of 128 signs are almost orthogonal, so the dot product of query t and key s is about the weighted
// share of preceding bytes in which t and s agree. The softmax sharpens that, and the output is a distribution over
// the next byte.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

inline constexpr int64_t kDim = 128;       // of queries and keys
inline constexpr int64_t kAlphabet = 128;  // of values and of the output: one dimension per ASCII character
inline constexpr float kSoftmaxScale = 32.0F;

inline constexpr int kReach = 12;       // preceding bytes that a query or key describes
inline constexpr float kDecay = 0.85F;  // weight of one more byte of distance

using Feature = std::array<float, kDim>;
using Distribution = std::array<double, kAlphabet>;

/** [i][b]: the random vector of byte b at distance i + 1, times its weight. */
inline std::vector<std::array<Feature, kAlphabet>> make_weighted_signs() {
  std::vector<std::array<Feature, kAlphabet>> signs(kReach);
  std::mt19937 random(1);  // the C++ standard fixes what it yields, so every machine has the same head
  float weight = 1.0F;
  for (auto& distance : signs) {
    weight *= kDecay;
    for (Feature& vector : distance) {
      for (float& x : vector) x = (random() & 1U) != 0 ? weight : -weight;
    }
  }
  return signs;
}

/** Query and key of byte `t` of the text: the bytes before it, as a unit vector. Zero at the start of the text. */
inline Feature make_feature(const std::string& text, int64_t t) {
  static const auto signs = make_weighted_signs();
  Feature sum{};
  for (int64_t i = 0; i < kReach && i < t; ++i) {
    const auto byte = static_cast<size_t>(text[static_cast<size_t>(t - 1 - i)]);
    for (size_t d = 0; d < sum.size(); ++d) sum[d] += signs[static_cast<size_t>(i)][byte][d];
  }
  float square = 0.0F;
  for (const float x : sum) square += x * x;
  if (square > 0.0F) {
    for (float& x : sum) x /= std::sqrt(square);
  }
  return sum;
}

/**
 * The head's output for bytes `targets`, each of which sees the `context` bytes before it, in fp64 and from the
 * definition: no blocks, no running maximum, no ranks.
 */
inline std::vector<Distribution> attend_fp64(const std::string& text, std::span<const int64_t> targets,
                                             int64_t context) {
  std::vector<Feature> queries;
  for (const int64_t t : targets) queries.push_back(make_feature(text, t));
  std::vector<Distribution> out(targets.size(), Distribution{});
  std::vector<double> sum(targets.size(), 0.0);

  const auto [first, last] = std::ranges::minmax(targets);
  for (int64_t s = std::max<int64_t>(0, first - context); s < last; ++s) {
    const Feature key = make_feature(text, s);
    const auto byte = static_cast<size_t>(text[static_cast<size_t>(s)]);
    for (size_t row = 0; row < targets.size(); ++row) {
      if (s >= targets[row] || s < targets[row] - context) continue;
      double dot = 0.0;
      for (size_t d = 0; d < key.size(); ++d) dot += static_cast<double>(queries[row][d]) * static_cast<double>(key[d]);
      // Unit vectors: no score exceeds the scale, so subtracting it instead of the row's maximum is safe in fp64.
      const double weight = std::exp(static_cast<double>(kSoftmaxScale) * (dot - 1.0));
      out[row][byte] += weight;
      sum[row] += weight;
    }
  }
  for (size_t row = 0; row < out.size(); ++row) {
    for (double& p : out[row]) p /= sum[row];
  }
  return out;
}
