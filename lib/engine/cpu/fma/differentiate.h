// The five products of the backward pass for a tile of query rows and a block of keys:
//
//   S = scale Q K^T    dP = dout V^T    S -> P, dP -> dS     strip by strip, in the first cache as they are made
//   dV += P^T dout    dK += dS^T Q    dQ += dS K       over all rows, and all keys, of the tile
//
// Where anything is not finite, a row is multiplied only by the keys that it sees, and a key by the rows that see it.
#pragma once

#include "engine/cpu/fma/attend.h"

namespace ringattn::cpu {
namespace {

// Rows first .. end - 1 see key j: neighbours, since the intervals of a tile's rows ascend.
inline Stretch rows_that_see(const Visible* visible, std::int64_t rows, std::int64_t j) {
  std::int64_t first = 0, end = rows;
  while (first < end && !(visible[first].lo <= j && j < visible[first].hi)) ++first;
  while (end > first && !(visible[end - 1].lo <= j && j < visible[end - 1].hi)) --end;
  return {first, end};
}

// Columns of `a` hold weights, 0 where hidden: product row j is key j.
void multiply_transposed(const Product& p, const Visible* visible, std::int64_t rows, bool finite) {
  if (finite || summands > 1) return multiply<Left::transposed>(p);
  for (std::int64_t j = 0; j < p.m; ++j) {
    const Stretch seeing = rows_that_see(visible, rows, j);
    Product key = p;
    key.m = 1;
    key.a += j * a_row<Left::transposed>;
    key.c += j * columns;
    multiply_seen<Left::transposed>(key, seeing.begin, seeing.end);
  }
}

void differentiate(const GradientTile& t) {
  const Stretch seen = seen_by(t.visible, t.rows);
  const std::int64_t count = seen.count(), wide = whole_vectors(count);
  const std::int64_t row_panel = t.rows * columns, key_panel = t.keys * columns;
  Scores scores(t.scores);
  Visible visible[gradient_rows];
  for (std::int64_t r = 0; r < t.rows; ++r) visible[r] = clipped(t.visible[r], seen);

  begin_products();
  for (std::int64_t first = 0; first < t.rows; first += strip_rows) {
    const std::int64_t rows = least(strip_rows, t.rows - first);
    float *const weights = scores.strip_weights(first), *const dscores = scores.strip_dscores(first);
    const auto multiply_strip = [&](const float* a, const float* b, std::int64_t dim, float scale, float* to) {
      Product product;
      product.m = rows;
      product.n = wide;
      product.k = product.a_part = product.b_part = part_cells(dim);
      product.a = a + first * columns;
      product.a_panel = row_panel;
      product.b = b + seen.begin * cells(dim);
      product.b_panel = cells(dim) * columns;
      product.c = to;
      product.c_panel = columns;
      product.scale = scale;
      multiply<Left::packed>(product);
    };
    multiply_strip(t.q, t.k_columns, t.dim, t.scale, weights);
    multiply_strip(t.dout, t.v_columns, t.dim_v, 1, dscores);
    differentiate_scores({rows, wide, weights, dscores, visible + first, t.softcap, t.lse + first, t.delta + first});
    scores.join(first, rows, wide);
  }

  const auto add_to_keys = [&](const float* a, const float* b, std::int64_t dim, float* to) {
    Product product;
    product.m = count;
    product.n = dim;
    product.k = product.b_part = part_cells(t.rows);
    product.a = a;
    product.a_part = score_part<Left::transposed>;
    product.b = b;
    product.b_panel = cells(t.rows) * columns;
    product.c = to + seen.begin * columns;
    product.c_panel = key_panel;
    product.accumulate = true;
    multiply_transposed(product, visible, t.rows, t.finite);
  };
  add_to_keys(scores.weights, t.dout_right, t.dim_v, t.dv);
  add_to_keys(scores.dscores, t.q_right, t.dim, t.dk);

  Product product;
  product.m = t.rows;
  product.n = t.dim;
  product.k = part_cells(count);
  product.a = scores.dscores_left;
  product.a_part = score_part<Left::weights>;
  product.b = t.k + part_cells(seen.begin) * columns;
  product.b_part = part_cells(t.keys);
  product.b_panel = cells(t.keys) * columns;
  product.c = t.dq;
  product.c_panel = row_panel;
  product.accumulate = true;
  multiply_weights(product, visible, t.finite);
  end_products();
}

}  // namespace
}  // namespace ringattn::cpu
