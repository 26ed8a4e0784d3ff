// Rows of queries and a block of keys, a strip of two register tiles' rows, or one of AMX, at a time:
//
//   S = scale Q K^T      a strip's scores stay in the first cache
//   S -> P, max, sum     softmax.h
//   O = factor O + P V
//
// 0 * infinity is not 0: where V is not finite each row is multiplied by itself, over the keys that it sees.
#pragma once

#include "engine/cpu/fma/pack.h"
#include "engine/cpu/fma/scores.h"
#include "engine/cpu/fma/softmax.h"

namespace ringattn::cpu {
namespace {

// The keys that some of the rows see, from a multiple of `granule` on, so that sums over them do not depend on who shares a tile.
struct Stretch {
  std::int64_t begin, end;
  std::int64_t count() const { return end - begin; }
};
inline Stretch seen_by(const Visible* visible, std::int64_t rows) {
  std::int64_t begin = key_block, end = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    if (visible[r].lo >= visible[r].hi) continue;
    begin = least(begin, visible[r].lo);
    end = end > visible[r].hi ? end : visible[r].hi;
  }
  return {begin < end ? whole_granules_before(begin) : end, end};
}
inline Visible clipped(Visible seen, Stretch s) {
  if (seen.lo >= seen.hi) return {0, 0};
  return {seen.lo - static_cast<std::int32_t>(s.begin), seen.hi - static_cast<std::int32_t>(s.begin)};
}
constexpr std::int64_t whole_vectors(std::int64_t n) { return (n + width - 1) / width * width; }

// Scores of the keys from `begin` on, `count` of them, whole vectors: those in the rest of a panel, and then those in whole ones.
void multiply_keys(Product p, const float* keys, std::int64_t begin, std::int64_t count) {
  const std::int64_t skipped = begin % columns;
  p.b = keys + begin / columns * p.b_panel + skipped;
  if (skipped > 0) {
    p.n = least(columns - skipped, count);
    multiply<Left::packed>(p);
    p.b += p.b_panel - skipped;
    p.c += p.n;
    count -= p.n;
  }
  p.n = count;
  multiply<Left::packed>(p);
}

// Rows of `a` hold weights, 0 where hidden.
void multiply_weights(const Product& p, const Visible* visible, bool finite) {
  if (finite || summands > 1) return multiply<Left::weights>(p);
  for (std::int64_t i = 0; i < p.m; ++i) {
    Product row = p;
    row.m = 1;
    row.a += i * score_stride;
    row.c += i * columns;
    if (p.factor != nullptr) row.factor += i;
    multiply_seen<Left::weights>(row, visible[i].lo, visible[i].hi);
  }
}

void attend_strip(const AttendTile& t, std::int64_t first, std::int64_t rows) {
  const Stretch seen = seen_by(t.visible + first, rows);
  if (seen.count() <= 0) return;
  alignas(64) float scores[strip_rows * score_stride];
  alignas(64) float joined[summands == 1 ? 1 : strip_rows * a_row<Left::weights>];
  float* const weights = summands == 1 ? scores : joined;
  float factor[strip_rows];
  Visible visible[strip_rows];
  for (std::int64_t r = 0; r < rows; ++r) visible[r] = clipped(t.visible[first + r], seen);
  Product product;
  product.m = rows;
  product.k = product.a_part = product.b_part = part_cells(t.dim);
  product.a = t.q + first * columns;
  product.a_panel = t.rows * columns;
  product.b_panel = cells(t.dim) * columns;
  product.c = scores;
  product.c_panel = columns;
  product.scale = t.scale;
  const std::int64_t count = whole_vectors(seen.count());
  multiply_keys(product, t.k, seen.begin, count);

  Modifiers own;
  if (t.modifiers != nullptr) own = modifiers_from(*t.modifiers, first, seen.begin);
  softmax({rows, count, scores, visible, t.softcap, t.max + first, t.sum + first, factor,
           t.modifiers != nullptr ? &own : nullptr});
  join_columns(scores, rows, count, weights);

  product.n = t.dim_v;
  product.k = part_cells(seen.count());
  product.a = weights;
  product.a_part = score_part<Left::weights>;
  product.b = t.v + part_cells(seen.begin) * columns;
  product.b_part = part_cells(t.keys);
  product.b_panel = cells(t.keys) * columns;
  product.c = t.out + first * columns;
  product.c_panel = t.rows * columns;
  product.accumulate = true;
  product.factor = factor;
  multiply_weights(product, visible, t.finite);
}

void attend(const AttendTile& t) {
  begin_products();
  for (std::int64_t first = 0; first < t.rows; first += strip_rows)
    attend_strip(t, first, least(strip_rows, t.rows - first));
  end_products();
}

}  // namespace
}  // namespace ringattn::cpu
