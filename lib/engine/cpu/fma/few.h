// Rows so few that reading keys and values takes about as long as all that is done with them. These are taken where they lie, and
// come but once from memory: what is next is asked for while there is work, in the order in which it lies and a little at a time.
// Numbers of two bytes come straight into the first cache. Floats come into the second one: they take so many lines that waiting
// for them the first one could do nothing else.
//
//   for a few keys at a time:  S = scale Q K^T       squares of K are transposed in registers; scores are summed as in product.h:
//                                                    backward, which makes them again, finds the same bits
//   S -> P, max, sum                                 softmax.h
//   for a few keys at a time:  O = factor O + P V
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
constexpr std::int64_t few_keys = 64;
constexpr std::int64_t keys_at_once = 16;  // they stay in the first cache even where a power of two lies between them
constexpr int square_rows = width == 16 ? 8 : 4;  // beside a square in the registers
static_assert(few_keys <= key_block && few_keys % keys_at_once == 0 && keys_at_once % width == 0);
static_assert(columns % (2 * width) == 0 && (span == INT64_MAX || span % (2 * width) == 0));

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
};

// Rows that come next.
template <DType dtype>
class Next {
 public:
  Next(RowsInPlace<dtype> rows, std::int64_t first, std::int64_t end) : rows_(rows), first_(first), end_(end) {}

  // Asks for as many of them as are due before part `part` of so many.
  void ask(std::int64_t part, std::int64_t parts) {
    constexpr std::int64_t line = 64;
    const std::int64_t bytes = rows_.dim * size_of(dtype);
    const std::int64_t count = end_ - first_;
    for (; asked_ < count && asked_ * parts < (part + 1) * count; ++asked_) {
      const std::byte* const row = rows_.at(first_ + asked_, 0);
      for (std::int64_t i = 0; i < bytes; i += line) __builtin_prefetch(row + i, 0, dtype == DType::float32 ? 2 : 3);
    }
  }

 private:
  RowsInPlace<dtype> rows_;
  std::int64_t first_, end_, asked_ = 0;
};

// Dimensions in the bytes of a vector. So many of `width` keys are a square: as pairs, where an element has two bytes.
template <DType dtype>
constexpr int square_dim = width * 4 / static_cast<int>(size_of(dtype));

// What a square of K^T adds to the sums of Rows rows; `q` is that of the first dimension.
template <DType dtype, int Rows>
[[gnu::always_inline]] inline void add_products(const Vector (&square)[width], const float* q, bool begins,
                                                float* sums) {
  Vector sum[Rows];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) sum[r] = begins ? Vector{} : read(sums + r * width);
#pragma GCC unroll 32
  for (int d = 0; d < square_dim<dtype>; ++d) {
    Vector key = square[d * width / square_dim<dtype>];
    if constexpr (dtype != DType::float32) key = Row<dtype>::widen(d % 2 == 0 ? bits(key) & 0xffffU : bits(key) >> 16);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) sum[r] += key * all(q[r * columns + d]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) write(sums + r * width, sum[r]);
}

// To the sums of all rows, of keys from `first` and dimensions from d on.
template <DType dtype, bool whole>
[[gnu::noinline]] void add_square(const FewTile& t, std::int64_t first, std::int64_t d, float* sums) {
  const std::int64_t stride = t.k_stride * size_of(dtype);
  const std::byte* key = static_cast<const std::byte*>(t.k) + first * stride + d * size_of(dtype);
  Vector square[width];
  if (whole) {
    read_transposed(key, stride, square);
  } else {
    const std::int64_t bytes = least(square_dim<dtype>, t.dim - d) * size_of(dtype);
    for (int i = 0; i < width; ++i, key += stride) {
      square[i] = Vector{};
      if (first + i < t.keys) __builtin_memcpy(&square[i], key, static_cast<std::size_t>(bytes));
    }
    transpose(square);
  }
  const float* const q = t.q + d / columns * t.rows * columns + d % columns;
  for_each_tile<square_rows>(t.rows, [&](auto rows, std::int64_t row) {
    add_products<dtype, rows()>(square, q + row * columns, d % span == 0, sums + row * width);
  });
}

// Scores of keys first .. first + width - 1, of which those behind the last key are anything.
template <DType dtype>
void score_keys(const FewTile& t, std::int64_t first, Next<dtype> next, float* scores) {
  const std::int64_t parts = (t.dim + square_dim<dtype> - 1) / square_dim<dtype>;
  alignas(64) float sums[few_rows * width];
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t d = part * square_dim<dtype>, end = d + square_dim<dtype>;
    next.ask(part, parts);
    if (first + width <= t.keys && end <= t.dim)
      add_square<dtype, true>(t, first, d, sums);
    else
      add_square<dtype, false>(t, first, d, sums);
    if (end < t.dim && end % span != 0) continue;
    for (std::int64_t r = 0; r < t.rows; ++r) {
      float* const score = scores + r * score_stride;
      const Vector sum = read(sums + r * width) * t.scale;
      write(score, d < span ? sum : read(score) + sum);
    }
  }
}

// O = factor O + P V of Rows rows and Vectors vectors from column d on. Of the last vector there may be less than all.
template <DType dtype, int Rows, int Vectors, bool whole>
[[gnu::noinline]] void add_values(const FewTile& t, const float* weights, const float* factor, std::int64_t row,
                                  std::int64_t d, Visible keys) {
  const RowsInPlace<dtype> v(t.v, t.v_stride, t.dim_v);
  Vector sum[Rows][Vectors] = {};
  for (std::int64_t j = keys.lo; j < keys.hi; ++j) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n)
      right[n] = whole || n + 1 < Vectors ? v.read_whole(j, d + n * width) : v.read(j, d + n * width);
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
template <DType dtype, int Rows, int Vectors = tile_vectors>
void add_panel(const FewTile& t, const float* weights, const float* factor, std::int64_t row, std::int64_t d,
               Visible keys) {
  if constexpr (Vectors > 1)
    if (t.dim_v - d <= (Vectors - 1) * width)
      return add_panel<dtype, Rows, Vectors - 1>(t, weights, factor, row, d, keys);
  if (Vectors == tile_vectors && t.dim_v - d >= columns)
    add_values<dtype, Rows, Vectors, true>(t, weights, factor, row, d, keys);
  else
    add_values<dtype, Rows, Vectors, false>(t, weights, factor, row, d, keys);
}

inline Visible overlap(Visible seen, std::int64_t first, std::int64_t end) {
  return {static_cast<std::int32_t>(seen.lo > first ? seen.lo : first), static_cast<std::int32_t>(least(seen.hi, end))};
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
bool are_finite(const RowsInPlace<dtype>& rows, std::int64_t first, std::int64_t end) {
  Vector check = {};
  for (std::int64_t j = first; j < end; ++j)
    for (std::int64_t d = 0; d < rows.dim; d += width) check += rows.read(j, d) * 0.0F;
  return is_zero(check);
}

// Over keys first .. end - 1, keys_at_once or fewer. A row's results so far are multiplied by its factor where its keys begin.
template <DType dtype>
void multiply_values(const FewTile& t, std::int64_t first, std::int64_t end, Next<dtype> next, const float* scores,
                     const float* factor) {
  const RowsInPlace<dtype> v(t.v, t.v_stride, t.dim_v);
  const bool together = see_alike(t.visible, t.rows) || are_finite(v, first, end);
  Visible seen[few_rows];
  float shrink[few_rows];
  for (std::int64_t r = 0; r < t.rows; ++r) {
    seen[r] = overlap(t.visible[r], first, end);
    shrink[r] = seen[r].lo == t.visible[r].lo && seen[r].lo < seen[r].hi ? factor[r] : 1.0F;
  }
  const std::int64_t parts = (t.rows + tile_rows - 1) / tile_rows * ((t.dim_v + columns - 1) / columns);
  std::int64_t part = 0;
  for (std::int64_t d = 0; d < t.dim_v; d += columns)
    for_each_tile<tile_rows>(t.rows, [&](auto rows, std::int64_t first_row) {
      next.ask(part++, parts);
      const auto add = [&]<int n>(Count<n>, std::int64_t row) {
        Visible keys = seen[row];
        for (std::int64_t r = row + 1; r < row + n; ++r) keys = hull(keys, seen[r]);
        if (keys.lo < keys.hi) add_panel<dtype, n>(t, scores + row * score_stride, shrink + row, row, d, keys);
      };
      if (together) return add(rows, first_row);
      for (int r = 0; r < rows(); ++r) add(Count<1>(), first_row + r);
    });
}

void attend_few(const FewTile& t) {
  alignas(64) float scores[few_rows * score_stride];
  float factor[few_rows];
  with_dtype(t.dtype, [&]<DType dtype>(Row<dtype>) {
    const RowsInPlace<dtype> k(t.k, t.k_stride, t.dim), v(t.v, t.v_stride, t.dim_v);
    const RowsInPlace<dtype> next_k(t.next_k, t.k_stride, t.dim);
    // The next `count` rows of one of them, or else those that follow it.
    const auto next = [&](const RowsInPlace<dtype>& rows, std::int64_t first, const RowsInPlace<dtype>& then,
                          std::int64_t then_rows, std::int64_t count) {
      return first < t.keys ? Next<dtype>(rows, first, least(first + count, t.keys))
                            : Next<dtype>(then, 0, least(count, then_rows));
    };
    for (std::int64_t first = 0; first < t.keys; first += width)
      score_keys<dtype>(t, first, next(k, first + width, v, t.keys, width), scores + first);
    softmax({t.rows, (t.keys + width - 1) / width * width, scores, t.visible, t.softcap, t.max, t.sum, factor});
    for (std::int64_t first = 0; first < t.keys; first += keys_at_once)
      multiply_values<dtype>(t, first, least(first + keys_at_once, t.keys),
                             next(v, first + keys_at_once, next_k, t.next_keys, keys_at_once), scores, factor);
  });
}

}  // namespace
}  // namespace ringattn::cpu
