// What happens to a strip of scores, row by row: weights of the softmax forward, and both factors of the gradients backward.
//
// The largest score and the score that it is taken from are the same product, rounded alike, so their difference is 0 and its
// weight 1 however large they are; fused, the difference would be what rounding took away.
//
// A row sees the columns lo .. hi - 1. The others become scores of -infinity before anything looks at them, so that whole
// vectors are processed and hidden weights come out as 0, whatever the products there were.
#pragma once

#include <cmath>

#include "engine/cpu/fma/product.h"

namespace ringattn::cpu {
namespace {

inline void fill(float* row, std::int64_t begin, std::int64_t end, float value) {
  for (std::int64_t j = begin; j < end; ++j) row[j] = value;
}

// Hides all but columns lo .. hi - 1 of the first `count`. The value is a product that is scaled to -infinity.
inline void hide(float* s, Visible seen, std::int64_t count, float scale) {
  const float hidden = scale < 0.0F ? infinity : -infinity;
  fill(s, 0, seen.lo, hidden);
  fill(s, seen.hi, count, hidden);
}

// Of the products: the one with the largest score.
inline float largest_product(const float* s, std::int64_t count, float scale) {
  Vector most = all(-infinity);
  if (scale > 0.0F) {
    for (std::int64_t j = 0; j < count; j += width) most = larger(read(s + j), most);
    return largest_of(most);
  }
  for (std::int64_t j = 0; j < count; j += width) most = larger(-read(s + j), most);
  return -largest_of(most);
}

// Rows whose maxima, weights and sums are found one after the other, so that no row waits for the reductions of another.
constexpr std::int64_t rows_together = 8;

void softmax_rows(const SoftmaxTile& t, std::int64_t first, std::int64_t rows) {
  const float scale = t.softcap == 0.0F ? t.scale : 1.0F;
  const std::int64_t count = t.count;
  float* const scores = t.scores + first * score_stride;
  float base[rows_together];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const s = scores + i * score_stride;
    const Visible seen = t.visible[first + i];
    const float before = t.max[first + i];
    base[i] = before == -infinity ? 0.0F : before;
    t.factor[first + i] = 1.0F;
    if (t.softcap != 0.0F)
      for (std::int64_t j = 0; j < count; j += width) write(s + j, cap_score(read(s + j) * t.scale, t.softcap).score);
    hide(s, seen, count, scale);
    if (seen.lo >= seen.hi) continue;
    const float here = largest_product(s, count, scale) * scale;
    const float largest = here > before ? here : before;
    base[i] = largest == -infinity ? 0.0F : largest;  // only scores of -infinity so far: weights of 0
    t.max[first + i] = largest;
    // One number scales all earlier results of the row, so its error does not average out: it is rounded once. It is seldom
    // anything but 1 after the first blocks.
    if (before != base[i])
      t.factor[first + i] = static_cast<float>(std::exp(static_cast<double>(before) - static_cast<double>(base[i])));
  }
  Vector sum[rows_together];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const s = scores + i * score_stride;
    const float subtracted = base[i];
    Vector total = {};
    for (std::int64_t j = 0; j < count; j += width) {
      const Vector weight = exponential(rounded(read(s + j) * scale) - subtracted);
      write(s + j, weight);
      total += weight;
    }
    sum[i] = total;
  }
  for (std::int64_t i = 0; i < rows; ++i) t.sum[first + i] = t.sum[first + i] * t.factor[first + i] + sum_of(sum[i]);
}

void softmax(const SoftmaxTile& t) {
  for (std::int64_t first = 0; first < t.rows; first += rows_together)
    softmax_rows(t, first, t.rows - first < rows_together ? t.rows - first : rows_together);
}

// weights = exp(score - lse), and the gradient of the products: weights (dout.v - delta) d score / d product.
void differentiate_scores(const ScoreGradients& t) {
  const std::int64_t count = t.count;
  const float scale = t.scale;
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
    if (t.softcap == 0.0F) {
      for (std::int64_t j = 0; j < count; j += width) {
        const Vector product = read(s + j), dweight = read(ds + j);
        const Vector weight = exponential(rounded(product * scale) - lse);
        write(s + j, weight);
        write(ds + j, weight * (dweight - delta) * scale);
      }
    } else {
      for (std::int64_t j = 0; j < count; j += width) {
        const Vector product = read(s + j), dweight = read(ds + j);
        const Capped capped = cap_score(product * scale, t.softcap);
        const Vector weight = exponential(capped.score - lse);
        write(s + j, weight);
        write(ds + j, weight * (dweight - delta) * scale * (1.0F - capped.tangent * capped.tangent));
      }
    }
    // What is hidden may be anything up to here.
    for (float* const row : {s, ds}) {
      fill(row, 0, seen.lo, 0.0F);
      fill(row, seen.hi, count, 0.0F);
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
