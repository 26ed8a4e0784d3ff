// Products of small matrices: a register tile of RA_ROWS x RA_VECTORS vectors of C, summed over k.
//
// The right operand and C are in panels (tiles.h). The left operand is
//
//   packed       in panels as well, so that a stretch of k has the address row * columns + k, whatever the matrix
//   weights      rows of scores, score_stride apart
//   transposed   the same read down its columns; on AMX, rows of what join_rows makes of them (scores.h)
//
// and so every address in the innermost loop is a base and a constant. Every element of C is summed over k, which counts cells, in
// ascending order.
// Where the processor rounds each product (no FMA) it is summed in spans of 16 terms, each by itself, and then span by span.
#pragma once

#include "engine/cpu/fma/shape.h"

namespace ringattn::cpu {
namespace {

// Cells of k in one turn of the loop. With pairs GCC 12 would load the left operands of several turns at once, for which there are
// not enough registers.
constexpr int cells_of_a_turn = terms == 1 ? 4 : 1;

// c += a b over `count` cells.
template <int Rows, int Vectors, std::int64_t a_row, std::int64_t a_column>
[[gnu::always_inline]] inline void add_terms(Vector (&c)[Rows][Vectors], const float* a, const float* b,
                                             std::int64_t count) {
#pragma GCC unroll cells_of_a_turn
  for (std::int64_t k = 0; k < count; ++k, a += a_column, b += columns) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) right[n] = read(b + n * width);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vector left = all(a[r * a_row]);
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) add_product(c[r][n], left, right[n]);
    }
  }
}

template <Left left, int Rows, int Vectors>
[[gnu::always_inline]] inline void add_products(Vector (&c)[Rows][Vectors], const float* a, std::int64_t a_panel,
                                                const float* b, std::int64_t begin, std::int64_t end) {
  if constexpr (left == Left::packed) {
    for (std::int64_t k = begin; k < end;) {
      const std::int64_t panel = k / columns, next = (panel + 1) * columns < end ? (panel + 1) * columns : end;
      add_terms<Rows, Vectors, columns, 1>(c, a + panel * a_panel + k % columns, b + k * columns, next - k);
      k = next;
    }
  } else {
    add_terms<Rows, Vectors, a_row<left>, a_step<left>>(c, a + begin * a_step<left>, b + begin * columns, end - begin);
  }
}

// A product of Rows rows and Vectors vectors. `a`, `b`, `c` and `factor` are those of its first row and column.
template <Left left, int Rows, int Vectors>
[[gnu::noinline]] void multiply_tile(const Product& p, const float* a, const float* b, float* c, const float* factor) {
  const std::int64_t k = p.k, a_panel = p.a_panel;
  const bool accumulate = p.accumulate;
  const float scale = p.scale;
  for (std::int64_t begin = 0;;) {
    const std::int64_t end = span < k - begin ? begin + span : k;
    Vector sum[Rows][Vectors] = {};
    add_products<left>(sum, a, a_panel, b, begin, end);
    const auto add = [&](auto result) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < Vectors; ++n) {
          float* const at = c + r * c_row<left> + n * width;
          write(at, result(at, r, left == Left::packed ? sum[r][n] * scale : sum[r][n]));
        }
    };
    if (begin > 0 || (accumulate && factor == nullptr))
      add([](const float* at, int, Vector v) { return read(at) + v; });
    else if (accumulate)
      add([&](const float* at, int r, Vector v) { return read(at) * factor[r] + v; });
    else
      add([](const float*, int, Vector v) { return v; });
    if (fused || end == k) return;
    begin = end;
  }
}

// Calls f(count, first) for as many tiles of `most` rows as there are, then for what is left by halves; count() is constant.
template <int rows>
struct Count {
  constexpr int operator()() const { return rows; }
};
template <int rows, class F>
inline void for_each_rest(std::int64_t first, std::int64_t end, F&& f) {
  if (end - first >= rows) {
    f(Count<rows>(), first);
    first += rows;
  }
  if constexpr (rows > 1) for_each_rest<rows / 2>(first, end, f);
}
constexpr int largest_power_below(int n) {
  int power = 1;
  while (power * 2 < n) power *= 2;
  return power;
}
template <int most, class F>
inline void for_each_tile(std::int64_t rows, F&& f) {
  std::int64_t first = 0;
  for (; rows - first >= most; first += most) f(Count<most>(), first);
  if (first < rows) for_each_rest<largest_power_below(most)>(first, rows, f);
}

template <Left left, int most_rows, int vectors>
void multiply_panel(const Product& p, std::int64_t panel) {
  const float* const b = p.b + panel * p.b_panel;
  float* const c = p.c + panel * p.c_panel;
  for_each_tile<most_rows>(p.m, [&](auto rows, std::int64_t first) {
    multiply_tile<left, rows(), vectors>(p, p.a + first * a_row<left>, b, c + first * c_row<left>,
                                         p.factor == nullptr ? nullptr : p.factor + first);
  });
}

// A panel at a time, so that it stays in the first cache. Of the last one only the vectors that are needed, and where they are few
// twice the rows: fewer sums would wait for one another.
template <Left left, int most_rows, int vectors = tile_vectors>
void multiply_panels(const Product& p, std::int64_t panel) {
  const std::int64_t rest = p.n - panel * columns;
  if constexpr (vectors > 1)
    if (rest <= (vectors - 1) * width) return multiply_panels<left, most_rows, vectors - 1>(p, panel);
  constexpr bool few = most_rows > 1 && 2 * vectors <= tile_vectors;
  multiply_panel<left, few ? 2 * most_rows : most_rows, vectors>(p, panel);
}

template <Left left, int most_rows>
void multiply_in_registers(const Product& p) {
  for (std::int64_t panel = 0; panel * columns < p.n; ++panel) multiply_panels<left, most_rows>(p, panel);
}

}  // namespace
}  // namespace ringattn::cpu
