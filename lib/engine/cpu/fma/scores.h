// Scores of rows, as softmax.h leaves them, as left operands of a product: where a cell is a float, as they are.
#pragma once

#include "engine/cpu/fma/multiply.h"
#include "engine/cpu/fma/pack.h"
#if RA_SUMMANDS > 1
#include "engine/cpu/amx/split.h"
#endif

namespace ringattn::cpu {
namespace {

#if RA_TERMS == 1

inline void join_columns(const float*, std::int64_t, std::int64_t, float*) {}

#else

// Cells of two neighbours in a row. `count` is whole vectors. `to` may be `from` where a number has one part.
inline void join_columns(const float* from, std::int64_t rows, std::int64_t count, float* to) {
  for (std::int64_t r = 0; r < rows; ++r, from += score_stride, to += a_row<Left::weights>)
    for (std::int64_t j = 0; j < count; j += 2 * width) {
      Vector first[summands], second[summands];
      split(read(from + j), first);
      split(j + width < count ? read(from + j + width) : Vector{}, second);
      for (int part = 0; part < summands; ++part)
        write(to + part * score_part<Left::weights> + j / 2, round_columns(first[part], second[part]));
    }
}

// Cells of two neighbouring rows, as multiply takes what is transposed: in registers, row after row of them. On AMX 32 rows make
// 16 cells of a row for each column.
inline void join_rows(const float* from, std::int64_t first, std::int64_t rows, std::int64_t count, float* to) {
  const auto row_of = [&](std::int64_t r, std::int64_t j) {
    return r < rows ? read(from + r * score_stride + j) : Vector{};
  };
#if RA_AMX
  for (std::int64_t j = 0; j < count; j += width) {
    Vector block[summands][width];
    for (std::int64_t pair = 0; pair < width; ++pair) {
      Vector low[summands], high[summands];
      split(row_of(2 * pair, j), low);
      split(row_of(2 * pair + 1, j), high);
      for (int part = 0; part < summands; ++part) block[part][pair] = round_rows(low[part], high[part]);
    }
    for (int part = 0; part < summands; ++part) {
      float* const cells_of_part = to + part * score_part<Left::transposed> + first / 2;
      transpose(block[part]);
      for (std::int64_t column = 0; column < width; ++column)
        write(cells_of_part + (j + column) * a_row<Left::transposed>, block[part][column]);
    }
  }
#else
  for (std::int64_t r = 0; r < rows; r += 2)
    for (std::int64_t j = 0; j < count; j += width)
      write(to + (first + r) / 2 * score_stride + j, round_rows(row_of(r, j), row_of(r + 1, j)));
#endif
}

#endif

// Weights and gradients of the scores of a tile of rows, made strip by strip, as the operands of dV, dK and dQ.
class Scores {
 public:
  explicit Scores(float* room)
      : weights(room), dscores(weights + half), dscores_left(terms == 1 ? dscores : dscores + half) {}

  // Where those of the rows from `first` on are made.
  float* strip_weights(std::int64_t first) { return terms == 1 ? weights + first * score_stride : strip_; }
  float* strip_dscores(std::int64_t first) {
    return terms == 1 ? dscores + first * score_stride : strip_ + strip_rows * score_stride;
  }
  // Makes operands of a strip's.
  void join([[maybe_unused]] std::int64_t first, [[maybe_unused]] std::int64_t rows,
            [[maybe_unused]] std::int64_t count) {
#if RA_TERMS == 2
    join_rows(strip_weights(first), first, rows, count, weights);
    join_rows(strip_dscores(first), first, rows, count, dscores);
    join_columns(strip_dscores(first), rows, count, dscores_left + first * a_row<Left::weights>);
#endif
  }

  static constexpr std::int64_t half = cells(gradient_rows) * key_block;
  static constexpr std::int64_t floats = 2 * half + (terms == 1 ? 0 : gradient_rows * a_row<Left::weights>);

  float *const weights, *const dscores;  // left operands, transposed
  float* const dscores_left;             // by its rows

 private:
  static_assert(strip_rows % terms == 0 && gradient_rows % terms == 0);
  alignas(64) float strip_[terms == 1 ? 1 : 2 * strip_rows * score_stride];
};

// C += A B, or factor C + A B, for one row of A and the terms lo .. hi - 1 alone: the others may be infinite.
template <Left left>
void multiply_seen(Product p, std::int64_t lo, std::int64_t hi) {
  if (lo >= hi) return;
  const auto over = [&](std::int64_t begin, std::int64_t end, const float* b, std::int64_t b_panel) {
    Product part = p;
    part.k = end - begin;
    part.a += begin * a_step<left>;
    part.b = b;
    part.b_panel = b_panel;
    multiply_row<left>(part);
    p.factor = nullptr;
  };
  over(cells(lo), hi / terms, p.b + cells(lo) * columns, p.b_panel);
#if RA_TERMS == 2
  // Of a cell that has only one of the terms, that one.
  const auto over_half = [&](std::int64_t cell, std::uint32_t mask) {
    alignas(64) float b[most_head_dim];
    for (std::int64_t panel = 0; panel * columns < p.n; ++panel)
      for (std::int64_t n = 0; n < columns; n += width)
        write(b + panel * columns + n, from_bits(bits(read(p.b + panel * p.b_panel + cell * columns + n)) & mask));
    over(cell, cell + 1, b, columns);
  };
  if (lo % 2 != 0) over_half(lo / 2, 0xffff0000U);
  if (hi % 2 != 0) over_half(hi / 2, 0x0000ffffU);
#endif
}

}  // namespace
}  // namespace ringattn::cpu
