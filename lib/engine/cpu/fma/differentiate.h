// The five products of the backward pass for a tile of query rows and a block of keys:
//
//   S = scale Q K^T    dP = dout V^T    S -> P, dP -> dS     strip by strip, in the first cache as they are made
//   dV += P^T dout    dK += dS^T Q    dQ += dS K       over the rows, or the keys, of the tile that see each other
//
// Where anything is not finite, a row is multiplied only by the keys that it sees, and a key by the rows that see it.
#pragma once

#include "engine/cpu/fma/attend.h"

namespace ringattn::cpu {
namespace {

// Rows first .. end - 1 see some of the keys begin .. end - 1: neighbours, since the intervals of a tile's rows ascend.
inline Stretch rows_that_see(const Visible* visible, std::int64_t rows, std::int64_t begin, std::int64_t end) {
  const auto sees = [&](std::int64_t r) { return visible[r].lo < end && begin < visible[r].hi; };
  Stretch seeing{0, rows};
  while (seeing.begin < seeing.end && !sees(seeing.begin)) ++seeing.begin;
  while (seeing.end > seeing.begin && !sees(seeing.end - 1)) --seeing.end;
  return seeing;
}

// Columns of `a` hold weights, 0 where hidden: product row j is key j.
void multiply_transposed(const Product& p, const Visible* visible, std::int64_t rows, bool finite) {
  if (finite || summands > 1) return multiply<Left::transposed>(p);
  for (std::int64_t j = 0; j < p.m; ++j) {
    const Stretch seeing = rows_that_see(visible, rows, j, j + 1);
    Product key = p;
    key.m = 1;
    key.a += j * a_row<Left::transposed>;
    key.c += j * columns;
    multiply_seen<Left::transposed>(key, seeing.begin, seeing.end);
  }
}

// Calls f(first, end, over) for parts of 0 .. count, multiples of `part`, where over = over_of(first, end) is what they are summed
// over; neighbours for which that is the same go together.
template <class Over, class F>
void for_each_part(std::int64_t count, std::int64_t part, Over&& over_of, F&& f) {
  for (std::int64_t first = 0, end = 0; first < count; first = end) {
    end = least(first + part, count);
    const Stretch over = over_of(first, end);
    while (end < count) {
      const Stretch next = over_of(end, least(end + part, count));
      if (next.begin != over.begin || next.end != over.end) break;
      end = least(end + part, count);
    }
    if (over.count() > 0) f(first, end, over);
  }
}

constexpr std::int64_t keys_of_a_part = on_amx ? padding : 8 * tile_rows;

void differentiate(const GradientTile& t) {
  const Stretch seen = seen_by(t.visible, t.rows);
  const std::int64_t count = seen.count(), wide = whole_vectors(count);
  const std::int64_t row_panel = t.rows * columns, key_panel = t.keys * columns;
  Scores scores(t.scores);
  Visible visible[gradient_rows];
  for (std::int64_t r = 0; r < t.rows; ++r) visible[r] = clipped(t.visible[r], seen);
  // What rows first .. end - 1 see, and who sees keys first .. end - 1, both counted from the first that is seen.
  const auto keys_of = [&](std::int64_t first, std::int64_t end) { return seen_by(visible + first, end - first); };
  const auto rows_of = [&](std::int64_t first, std::int64_t end) {
    const Stretch seeing = rows_that_see(visible, t.rows, first, end);
    return Stretch{whole_granules_before(seeing.begin), seeing.end};
  };

  begin_products();
  for (std::int64_t first = 0; first < t.rows; first += strip_rows) {
    const std::int64_t rows = least(strip_rows, t.rows - first);
    const Stretch own = keys_of(first, first + rows);
    const std::int64_t own_wide = whole_vectors(own.count());
    float *const weights = scores.strip_weights(first), *const dscores = scores.strip_dscores(first);
    const auto multiply_strip = [&](const float* a, const float* b, std::int64_t dim, float scale, float* to) {
      for (std::int64_t r = 0; r < rows; ++r) {
        fill(to + r * score_stride, 0, own.begin, 0.0F);
        fill(to + r * score_stride, own.begin + own_wide, wide, 0.0F);
      }
      if (own_wide == 0) return;
      Product product;
      product.m = rows;
      product.k = product.a_part = product.b_part = part_cells(dim);
      product.a = a + first * columns;
      product.a_panel = row_panel;
      product.b_panel = cells(dim) * columns;
      product.c = to + own.begin;
      product.c_panel = columns;
      product.scale = scale;
      multiply_keys(product, b, seen.begin + own.begin, own_wide);
    };
    multiply_strip(t.q, t.k_columns, t.dim, t.scale, weights);
    multiply_strip(t.dout, t.v_columns, t.dim_v, 1, dscores);
    Visible within[strip_rows];
    for (std::int64_t r = 0; r < rows; ++r) within[r] = clipped(visible[first + r], own);
    Modifiers modifiers;
    if (t.modifiers != nullptr) modifiers = modifiers_from(*t.modifiers, first, seen.begin + own.begin);
    differentiate_scores({rows, own_wide, weights + own.begin, dscores + own.begin, within, t.softcap, t.lse + first,
                          t.delta + first, t.modifiers != nullptr ? &modifiers : nullptr});
    scores.join(first, rows, wide);
  }

  const auto add_to_keys = [&](const float* a, const float* b, std::int64_t dim, float* to) {
    const auto add = [&](std::int64_t first, std::int64_t end, Stretch over) {
      Product product;
      product.m = end - first;
      product.n = dim;
      product.k = part_cells(over.count());
      product.b_part = part_cells(t.rows);
      product.a = a + first * a_row<Left::transposed> + over.begin / terms * a_step<Left::transposed>;
      product.a_part = score_part<Left::transposed>;
      product.b = b + part_cells(over.begin) * columns;
      product.b_panel = cells(t.rows) * columns;
      product.c = to + (seen.begin + first) * columns;
      product.c_panel = key_panel;
      product.accumulate = true;
      multiply_transposed(product, visible, t.rows, t.finite);
    };
    if (t.finite)
      for_each_part(count, keys_of_a_part, rows_of, add);
    else
      add(0, count, {0, t.rows});
  };
  add_to_keys(scores.weights, t.dout_right, t.dim_v, t.dv);
  add_to_keys(scores.dscores, t.q_right, t.dim, t.dk);

  const auto add_to_rows = [&](std::int64_t first, std::int64_t end, Stretch over) {
    Product product;
    product.m = end - first;
    product.n = t.dim;
    product.k = part_cells(over.count());
    product.a = scores.dscores_left + first * a_row<Left::weights> + over.begin / terms * a_step<Left::weights>;
    product.a_part = score_part<Left::weights>;
    product.b = t.k + part_cells(seen.begin + over.begin) * columns;
    product.b_part = part_cells(t.keys);
    product.b_panel = cells(t.keys) * columns;
    product.c = t.dq + first * columns;
    product.c_panel = row_panel;
    product.accumulate = true;
    multiply_weights(product, visible + first, t.finite);
  };
  if (t.finite)
    for_each_part(t.rows, strip_rows, keys_of, add_to_rows);
  else
    add_to_rows(0, t.rows, {0, count});
  end_products();
}

}  // namespace
}  // namespace ringattn::cpu
