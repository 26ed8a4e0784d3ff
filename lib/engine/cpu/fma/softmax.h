// What happens to a strip of scores, row by row: weights of the softmax forward, and both factors of the gradients backward.
//
// Scores are scaled and rounded already, so the largest minus itself is 0 and its weight 1, however large: scaled here, the
// difference would be fused, and hold what rounding took away from the largest.
//
// A row sees the columns lo .. hi - 1. The others become -infinity before anything looks at them, so that whole
// vectors are processed and hidden weights come out as 0, whatever the products there were.
#pragma once

#include <cmath>

#include "engine/cpu/fma/modify.h"

namespace ringattn::cpu {
namespace {

inline void fill(float* row, std::int64_t begin, std::int64_t end, float value) {
  for (std::int64_t j = begin; j < end; ++j) row[j] = value;
}

// Hides all but columns lo .. hi - 1 of the first `count`.
inline void hide(float* s, Visible seen, std::int64_t count) {
  fill(s, 0, seen.lo, -infinity);
  fill(s, seen.hi, count, -infinity);
}

// Calls f(j, Group<n>()) for columns j, j + width, ... in groups of n vectors, so that their exponentials go side by side.
template <int n>
struct Group {};
template <class F>
inline void for_each_group(std::int64_t count, F&& f) {
  constexpr int together = width == 16 ? 6 : 4;
  std::int64_t j = 0;
  for (; count - j >= together * width; j += together * width) f(j, Group<together>());
  for (; count - j >= 4 * width; j += 4 * width) f(j, Group<4>());
  for (; j < count; j += width) f(j, Group<1>());
}

inline float largest_score(const float* s, std::int64_t count) {
  Vector even = all(-infinity), odd = even;  // two chains are shorter than one
  std::int64_t j = 0;
  for (; count - j >= 2 * width; j += 2 * width) {
    even = larger(read(s + j), even);
    odd = larger(read(s + j + width), odd);
  }
  if (j < count) even = larger(read(s + j), even);
  return largest_of(larger(odd, even));
}

// Rows whose maxima, weights and sums are found one after the other, so that no row waits for the reductions of another.
constexpr std::int64_t rows_together = 8;

void softmax_rows(const SoftmaxTile& t, std::int64_t first, std::int64_t rows) {
  const std::int64_t count = t.count;
  float* const scores = t.scores + first * score_stride;
  const Cap cap(t.softcap);
  float base[rows_together];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const s = scores + i * score_stride;
    const Visible seen = t.visible[first + i];
    const float before = t.max[first + i];
    base[i] = before == -infinity ? 0.0F : before;
    t.factor[first + i] = 1.0F;
    if (t.softcap != 0.0F)
      for (std::int64_t j = 0; j < count; j += width) write(s + j, cap(read(s + j)).score);
    if (t.modifiers != nullptr)
      if (const Added added(*t.modifiers, first + i); added.any()) added.to_row(s, count);
    hide(s, seen, count);
    if (seen.lo >= seen.hi) continue;
    const float here = largest_score(s, count);
    const float largest = here > before ? here : before;
    base[i] = largest == -infinity ? 0.0F : largest;  // only scores of -infinity so far: weights of 0
    t.max[first + i] = largest;
    // One number scales all earlier results of the row, so its error does not average out: it is rounded once. It is seldom
    // anything but 1 after the first blocks.
    if (before != base[i])
      t.factor[first + i] =
          before == -infinity
              ? 0.0F
              : static_cast<float>(std::exp(static_cast<double>(before) - static_cast<double>(base[i])));
  }
  Vector sum[rows_together];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const s = scores + i * score_stride;
    const float subtracted = base[i];
    Vector total = {};
    for_each_group(count, [&]<int n>(std::int64_t j, Group<n>) {
      Vector weights[n];
      for (int v = 0; v < n; ++v) weights[v] = read(s + j + v * width) - subtracted;
      exponentials(weights);
      for (int v = 0; v < n; ++v) {
        write(s + j + v * width, weights[v]);
        total += weights[v];
      }
    });
    sum[i] = total;
  }
  for (std::int64_t i = 0; i < rows; ++i) t.sum[first + i] = t.sum[first + i] * t.factor[first + i] + sum_of(sum[i]);
}

void drop_weights(const SoftmaxTile& t) {
  Kept kept(*t.modifiers);
  for (std::int64_t i = 0; i < t.rows; ++i) {
    const Visible seen = t.visible[i];
    if (seen.lo >= seen.hi) continue;
    const std::int64_t begin = first_vector(seen), end = behind_vectors(seen);
    multiply_row(t.scores + i * score_stride + begin, kept.of_row(i, begin, end), end - begin);
  }
}

void softmax(const SoftmaxTile& t) {
  for (std::int64_t first = 0; first < t.rows; first += rows_together)
    softmax_rows(t, first, t.rows - first < rows_together ? t.rows - first : rows_together);
  if (t.modifiers != nullptr && t.modifiers->groups != nullptr) drop_weights(t);
}

// weights = exp(score - lse), and the gradient of what came before the softcap: weights (dout.v - delta) d score. Where weights are
// dropped, what is kept of them multiplies dout.v, and last the weights.
template <bool modified>
void differentiate_rows(const ScoreGradients& t, [[maybe_unused]] Kept* kept) {
  const std::int64_t count = t.count;
  const Cap cap(t.softcap);
  for (std::int64_t i = 0; i < t.rows; ++i) {
    float* const s = t.scores + i * score_stride;
    float* const ds = t.dscores + i * score_stride;
    const Visible seen = t.visible[i];
    const float lse = t.lse[i], delta = t.delta[i];
    if (seen.lo >= seen.hi || lse == -infinity) {
      fill(s, 0, count, 0.0F);
      fill(ds, 0, count, 0.0F);
      continue;
    }
    const std::int64_t begin = first_vector(seen), end = behind_vectors(seen);
    const float* factors = nullptr;
    if constexpr (modified) {
      if (kept != nullptr) {
        factors = kept->of_row(i, begin, end);
        multiply_row(ds + begin, factors, end - begin);
      }
      if (const Added added(*t.modifiers, i); t.softcap == 0.0F && added.any()) added.to_row(s, count);
    }
    if (t.softcap == 0.0F) {
      for_each_group(count, [&]<int n>(std::int64_t j, Group<n>) {
        Vector weights[n];
        for (int v = 0; v < n; ++v) weights[v] = read(s + j + v * width) - lse;
        exponentials(weights);
        for (int v = 0; v < n; ++v) {
          write(s + j + v * width, weights[v]);
          write(ds + j + v * width, weights[v] * (read(ds + j + v * width) - delta));
        }
      });
    } else {
      for (std::int64_t j = 0; j < count; j += width) {
        const Vector product = read(s + j), dweight = read(ds + j);
        const Cap::Capped capped = cap(product);
        Vector score = capped.score;
        if constexpr (modified) score = Added(*t.modifiers, i).to(score, j);
        const Vector weight = exponential(score - lse);
        write(s + j, weight);
        write(ds + j, weight * (dweight - delta) * (1.0F - capped.tangent * capped.tangent));
      }
    }
    if (factors != nullptr) multiply_row(s + begin, factors, end - begin);
    // What is hidden may be anything up to here.
    for (float* const row : {s, ds}) {
      fill(row, 0, seen.lo, 0.0F);
      fill(row, seen.hi, count, 0.0F);
    }
  }
}

void differentiate_scores(const ScoreGradients& t) {
  if (t.modifiers == nullptr) return differentiate_rows<false>(t, nullptr);
  if (t.modifiers->groups == nullptr) return differentiate_rows<true>(t, nullptr);
  Kept kept(*t.modifiers);
  differentiate_rows<true>(t, &kept);
}

}  // namespace
}  // namespace ringattn::cpu
