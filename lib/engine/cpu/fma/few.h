// Rows so few that reading keys and values takes about as long as all that is done with them. These are taken where they lie, and
// come but once from memory: of a block of a few keys, the values are asked for while its scores are made, and the next block's
// keys while the values are multiplied; in the order in which they lie and a little at a time, into the second cache: waiting
// for so many lines the first one could do nothing else.
//
//   S = scale Q K^T             squares of K are transposed as they are read; scores are summed as in product.h: backward, which
//                               makes them again, finds the same bits
//   S -> P, max, sum            softmax.h
//   O = factor O + P V          register tiles of few_tile_rows x few_vectors, over all keys of the block
//
// 0 * infinity is not 0: where rows do not all see the same keys, and some V is not finite, each row is multiplied by itself, over
// those that it sees.
#pragma once

#include "engine/cpu/fma/pack.h"
#include "engine/cpu/fma/product.h"
#include "engine/cpu/fma/softmax.h"

namespace ringattn::cpu {
namespace {

constexpr std::int64_t few_rows = 32;
constexpr std::int64_t few_keys = fused ? 64 : least(span, 64);
constexpr int few_tile_rows = width / 2 < 4 ? 4 : width / 2;
constexpr int few_vectors = 2;
constexpr int square_rows = width == 16 ? 8 : 4;  // beside squares in the registers
static_assert(few_keys <= key_block && few_keys % width == 0);
static_assert(columns % (few_vectors * width) == 0 && (span == INT64_MAX || span % (2 * width) == 0));

// Rows of K or V, `stride` elements apart.
template <DType dtype>
struct RowsInPlace {
  const std::byte* first;
  std::int64_t stride, dim;

  RowsInPlace(const void* first, std::int64_t stride, std::int64_t dim)
      : first(static_cast<const std::byte*>(first)), stride(stride), dim(dim) {}
  const std::byte* at(std::int64_t row, std::int64_t d) const { return first + (row * stride + d) * size_of(dtype); }
  Vector read(std::int64_t row, std::int64_t d) const { return Row<dtype>::read(at(row, 0), d, dim - d); }
  Vector read_whole(std::int64_t row, std::int64_t d) const { return Row<dtype>::read(at(row, d), 0, width); }
  // Asks for a vector.
  void ask(std::int64_t row, std::int64_t d) const { __builtin_prefetch(at(row, d), 0, 2); }
};

// Dimensions in the bytes of a vector. So many of `width` keys are a square: as pairs, where an element has two bytes.
template <DType dtype>
constexpr int square_dim = width * 4 / static_cast<int>(size_of(dtype));

// Squares of K^T that lie side by side: each number of Q is read once for all of them.
template <int Squares>
using KeySquares = Vector[Squares][width];
constexpr int most_squares = 2;

// What squares of K^T add to the sums of Rows rows; `q` is that of the first dimension.
template <DType dtype, int Squares, int Rows>
[[gnu::always_inline]] inline void add_products(const KeySquares<Squares>& squares, const float* q, bool begins,
                                                float* sums) {
  Vector sum[Rows][Squares];
  const auto each = [](auto f) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < Squares; ++n) f(r, n);
  };
  each([&](int r, int n) { sum[r][n] = begins ? Vector{} : read(sums + (r * Squares + n) * width); });
  constexpr int parts = square_dim<dtype> / width;  // dimensions in a cell of the square
#pragma GCC unroll 1
  for (int cell = 0; cell < width; ++cell)
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part) {
      Vector key[Squares];
#pragma GCC unroll 2
      for (int n = 0; n < Squares; ++n) {
        key[n] = squares[n][cell];
        if constexpr (parts == 2) key[n] = Row<dtype>::widen(part == 0 ? bits(key[n]) & 0xffffU : bits(key[n]) >> 16);
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const Vector left = all(q[r * columns + cell * parts + part]);
#pragma GCC unroll 2
        for (int n = 0; n < Squares; ++n) sum[r][n] += key[n] * left;
      }
    }
  each([&](int r, int n) { write(sums + (r * Squares + n) * width, sum[r][n]); });
}

// The square of keys from `first` and dimensions from d on; the same of what comes next is asked for.
template <DType dtype>
void read_key_square(const FewTile& t, std::int64_t first, std::int64_t d, RowsInPlace<dtype> next,
                     Vector (&square)[width]) {
  for (int i = 0; i < width; ++i) next.ask(first + i, d);
  const std::int64_t stride = t.k_stride * size_of(dtype);
  const std::byte* key = static_cast<const std::byte*>(t.k) + first * stride + d * size_of(dtype);
  if (first + width <= t.keys && d + square_dim<dtype> <= t.dim) return read_transposed(key, stride, square);
  const std::int64_t bytes = least(square_dim<dtype>, t.dim - d) * size_of(dtype);
  for (int i = 0; i < width; ++i, key += stride) {
    square[i] = Vector{};
    if (first + i < t.keys) __builtin_memcpy(&square[i], key, static_cast<std::size_t>(bytes));
  }
  transpose(square);
}

// Scores of the keys of so many squares from `first` on, of which those behind the last key are anything.
template <DType dtype, int Squares>
void score_keys(const FewTile& t, std::int64_t first, RowsInPlace<dtype> next, float* scores) {
  alignas(64) float sums[few_rows * Squares * width];
  for (std::int64_t d = 0, end; d < t.dim; d = end) {
    end = d + square_dim<dtype>;
    KeySquares<Squares> squares;
    for (int n = 0; n < Squares; ++n) read_key_square(t, first + n * width, d, next, squares[n]);
    const float* const q = t.q + d / columns * t.rows * columns + d % columns;
    for_each_tile<square_rows>(t.rows, [&](auto rows, std::int64_t row) {
      add_products<dtype, Squares, rows()>(squares, q + row * columns, d % span == 0, sums + row * Squares * width);
    });
    if (end < t.dim && end % span != 0) continue;
    for (std::int64_t r = 0; r < t.rows; ++r)
      for (int n = 0; n < Squares; ++n) {
        float* const score = scores + r * score_stride + n * width;
        const Vector sum = read(sums + (r * Squares + n) * width) * t.scale;
        write(score, d < span ? sum : read(score) + sum);
      }
  }
}

// O = factor O + P V of Rows rows and Vectors vectors from column d on. Of the last vector there may be less than all.
template <DType dtype, int Rows, int Vectors, bool whole>
[[gnu::noinline]] void add_values(const FewTile& t, const float* weights, const float* factor, std::int64_t row,
                                  std::int64_t d, Visible keys, RowsInPlace<dtype> next) {
  const RowsInPlace<dtype> v(t.v, t.v_stride, t.dim_v);
  Vector sum[Rows][Vectors] = {};
  for (std::int64_t j = keys.lo; j < keys.hi; ++j) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      right[n] = whole || n + 1 < Vectors ? v.read_whole(j, d + n * width) : v.read(j, d + n * width);
      next.ask(j, d + n * width);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vector left = all(weights[r * score_stride + j]);
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) sum[r][n] += left * right[n];
    }
  }
  float* const out = t.out + d / columns * t.rows * columns + row * columns + d % columns;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      float* const at = out + r * columns + n * width;
      write(at, read(at) * factor[r] + sum[r][n]);
    }
}
template <DType dtype, int Rows, int Vectors = few_vectors>
void add_panel(const FewTile& t, const float* weights, const float* factor, std::int64_t row, std::int64_t d,
               Visible keys, RowsInPlace<dtype> next) {
  if constexpr (Vectors > 1)
    if (t.dim_v - d <= (Vectors - 1) * width)
      return add_panel<dtype, Rows, Vectors - 1>(t, weights, factor, row, d, keys, next);
  if (Vectors == few_vectors && t.dim_v - d >= Vectors * width)
    add_values<dtype, Rows, Vectors, true>(t, weights, factor, row, d, keys, next);
  else
    add_values<dtype, Rows, Vectors, false>(t, weights, factor, row, d, keys, next);
}

// The keys that one of two sees, and what lies between.
inline Visible hull(Visible a, Visible b) {
  if (a.lo >= a.hi) return b;
  if (b.lo >= b.hi) return a;
  return {a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}
inline bool see_alike(const Visible* visible, std::int64_t rows) {
  for (std::int64_t r = 1; r < rows; ++r)
    if (visible[r].lo != visible[0].lo || visible[r].hi != visible[0].hi) return false;
  return true;
}
template <DType dtype>
bool are_finite(const RowsInPlace<dtype>& rows, std::int64_t count) {
  Vector check = {};
  for (std::int64_t j = 0; j < count; ++j)
    for (std::int64_t d = 0; d < rows.dim; d += width) check += rows.read(j, d) * 0.0F;
  return is_zero(check);
}

template <DType dtype>
void multiply_values(const FewTile& t, const float* weights, const float* factor) {
  const RowsInPlace<dtype> v(t.v, t.v_stride, t.dim_v), next_k(t.next_k, t.k_stride, t.dim);
  const bool together = see_alike(t.visible, t.rows) || are_finite(v, t.keys);
  for (std::int64_t d = 0; d < t.dim_v; d += few_vectors * width)
    for_each_tile<few_tile_rows>(t.rows, [&](auto rows, std::int64_t first_row) {
      const auto next = first_row == 0 && t.next_keys > 0 ? next_k : v;
      const auto add = [&]<int n>(Count<n>, std::int64_t row) {
        Visible keys = t.visible[row];
        for (std::int64_t r = row + 1; r < row + n; ++r) keys = hull(keys, t.visible[r]);
        if (keys.lo < keys.hi) add_panel<dtype, n>(t, weights + row * score_stride, factor + row, row, d, keys, next);
      };
      if (together) return add(rows, first_row);
      for (int r = 0; r < rows(); ++r) add(Count<1>(), first_row + r);
    });
}

void attend_few(const FewTile& t) {
  alignas(64) float scores[few_rows * score_stride];
  float factor[few_rows];
  with_dtype(t.dtype, [&]<DType dtype>(Row<dtype>) {
    const RowsInPlace<dtype> v(t.v, t.v_stride, t.dim_v);
    for (std::int64_t first = 0; first < t.keys; first += most_squares * width)
      t.keys - first > width ? score_keys<dtype, most_squares>(t, first, v, scores + first)
                             : score_keys<dtype, 1>(t, first, v, scores + first);
    softmax({t.rows, (t.keys + width - 1) / width * width, scores, t.visible, t.softcap, t.max, t.sum, factor,
             t.modifiers});
    multiply_values<dtype>(t, scores, factor);
  });
}

}  // namespace
}  // namespace ringattn::cpu
