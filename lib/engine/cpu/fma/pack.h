// Between rows of tensors and panels (tiles.h).
#pragma once

#include <cstddef>
#include <utility>

#include "engine/cpu/fma/shape.h"

namespace ringattn::cpu {
namespace {

// Swaps the off-diagonal blocks of `step` x `step` elements: rows i and i + step exchange what the other should hold.
template <int step, int... lane>
inline void exchange(Vector& a, Vector& b) {
  constexpr Lanes low = {((lane & step) == 0 ? lane : lane - step + width)...};
  constexpr Lanes high = {((lane & step) == 0 ? lane + step : lane + width)...};
  const Vector x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
  a = x;
  b = y;
}
template <int step, int... lane>
inline void transpose_from(Vector (&rows)[width], std::integer_sequence<int, lane...> lanes) {
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i)
    if ((i & step) == 0) exchange<step, lane...>(rows[i], rows[i + step]);
  if constexpr (step > 1) transpose_from<step / 2>(rows, lanes);
}
inline void transpose(Vector (&rows)[width]) {
  transpose_from<width / 2>(rows, std::make_integer_sequence<int, width>());
}

// The transposed square of `width` rows of as many floats or pairs, `stride` bytes apart.
inline void read_transposed(const std::byte* first, std::int64_t stride, Vector (&square)[width]) {
#if defined(__AVX512F__)
  // Quarters of rows i, i + 4, i + 8 and i + 12 side by side need no shuffles to be read, and half as many after that.
  constexpr Lanes low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
  constexpr Lanes high = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
  constexpr Lanes low_pairs = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  constexpr Lanes high_pairs = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    Vector rows[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto four = [&](int row) {
        return _mm_loadu_ps(reinterpret_cast<const float*>(first + row * stride + 16 * quarter));
      };
      __m512 four_rows = _mm512_zextps128_ps512(four(i));
      four_rows = _mm512_mask_broadcast_f32x4(four_rows, 0x00f0, four(i + 4));
      four_rows = _mm512_mask_broadcast_f32x4(four_rows, 0x0f00, four(i + 8));
      rows[i] = reinterpret_cast<Vector>(_mm512_mask_broadcast_f32x4(four_rows, 0xf000, four(i + 12)));
    }
    const Vector low_01 = __builtin_shuffle(rows[0], rows[1], low), low_23 = __builtin_shuffle(rows[2], rows[3], low),
                 high_01 = __builtin_shuffle(rows[0], rows[1], high),
                 high_23 = __builtin_shuffle(rows[2], rows[3], high);
    square[4 * quarter] = __builtin_shuffle(low_01, low_23, low_pairs);
    square[4 * quarter + 1] = __builtin_shuffle(low_01, low_23, high_pairs);
    square[4 * quarter + 2] = __builtin_shuffle(high_01, high_23, low_pairs);
    square[4 * quarter + 3] = __builtin_shuffle(high_01, high_23, high_pairs);
  }
#else
  for (int i = 0; i < width; ++i) __builtin_memcpy(&square[i], first + i * stride, sizeof square[i]);
  transpose(square);
#endif
}

// The transposed square of rows first .. and cells d .. of a matrix, with zeros behind its end.
template <class RowOf>
inline void read_square(RowOf row_of, const void* data, std::int64_t stride, std::int64_t rows, std::int64_t dim,
                        std::int64_t first, std::int64_t d, Vector (&square)[width]) {
  const auto row = [&](std::int64_t r) { return static_cast<const std::byte*>(data) + (first + r) * stride; };
  if (RowOf::is_raw && rows - first >= width && dim - d * terms >= width * terms)
    return read_transposed(row(0) + d * 4, stride, square);
  for (std::int64_t r = 0; r < width; ++r)
    square[r] = first + r < rows ? row_of.read(row(r), d * terms, dim - d * terms) : Vector{};
  transpose(square);
}

// The check is 0 exactly if all values were finite: 0 * x is 0, or NaN for infinity and NaN.
inline bool is_zero(Vector check) { return sum_of(check) == 0.0F; }

const void* row_at(const PackedRows& p, std::int64_t r) {
  return static_cast<const std::byte*>(p.from) + r * p.stride * size_of(p.dtype);
}

// Row after row, whose vectors are those that read_vector(r, at) gives for columns at, at + width, ... of `dim`. zero_of(vector) is 0
// if it is finite.
template <class Zero, class Read>
bool pack_vectors(const PackedRows& p, std::int64_t rows, std::int64_t dim, Zero&& zero_of, Read&& read_vector) {
  Vector check = {};
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t d = 0; d < dim; d += columns)
      for (int n = 0; n < tile_vectors; ++n) {
        const std::int64_t at = d + n * width;
        const Vector v = at < dim ? read_vector(r, at) : Vector{};
        check += zero_of(v);
        write(p.to + d / columns * p.panel + r * columns + n * width, v);
      }
  return is_zero(check);
}

bool pack_rows(const PackedRows& p) {
  return with_dtype(p.dtype, [&](auto row_of) {
    return pack_vectors(
        p, p.rows, p.dim, [](Vector v) { return v * 0.0F; },
        [&](std::int64_t r, std::int64_t at) { return row_of.read(row_at(p, r), at, p.dim - at); });
  });
}

#if RA_SUMMANDS == 1

bool pack_left(const PackedRows& p) {
  return with_cells(p.dtype, [&](auto row_of) {
    return pack_vectors(p, p.rows, cells(p.dim), zero_if_finite, [&](std::int64_t r, std::int64_t at) {
      return row_of.read(row_at(p, r), at * terms, p.dim - at * terms);
    });
  });
}

bool pack_right(const PackedRows& p) {
#if RA_TERMS == 1
  return pack_left(p);
#else
  return pack_vectors(p, cells(p.rows), p.dim, zero_if_finite, [&](std::int64_t pair, std::int64_t at) {
    const auto read_row = [&](std::int64_t r) {
      return r < p.rows ? Row<DType::bfloat16>::read(row_at(p, r), at, p.dim - at) : Vector{};
    };
    return paired(read_row(2 * pair), read_row(2 * pair + 1));
  });
#endif
}

bool pack_columns(const PackedRows& p) {
  return with_cells(p.dtype, [&](auto row_of) {
    Vector check = {};
    const std::int64_t dim = cells(p.dim);
    for (std::int64_t first = 0; first < p.rows; first += width) {
      float* const panel = p.to + first / columns * p.panel + first % columns;
      for (std::int64_t d = 0; d < dim; d += width) {
        Vector block[width];
        read_square(row_of, p.from, p.stride * size_of(p.dtype), p.rows, p.dim, first, d, block);
        for (const Vector& v : block) check += zero_if_finite(v);
        for (std::int64_t c = 0; c < least(width, dim - d); ++c) write(panel + (d + c) * columns, block[c]);
      }
    }
    // Vectors of the last panel that no row reached.
    for (std::int64_t r = (p.rows + width - 1) / width * width; r % columns != 0; r += width)
      for (std::int64_t d = 0; d < dim; ++d) write(p.to + r / columns * p.panel + d * columns + r % columns, Vector{});
    return is_zero(check);
  });
}

#endif

void unpack_rows(const UnpackedRows& u) {
  for (std::int64_t r = 0; r < u.rows; ++r)
    for (std::int64_t d = 0; d < u.dim; d += width) {
      const float* const from = u.from + d / columns * u.panel + r * columns + d % columns;
      float* const row = u.to + r * u.stride;
      using Float = Row<DType::float32>;
      Vector v = read(from) * u.scale;
      if (u.accumulate) v += Float::read(row, d, u.dim - d);
      Float::write(row, d, u.dim - d, v);
    }
}

void finish(const FinishedRows& f) {
  with_dtype(f.dtype, [&](auto row_of) {
    for (std::int64_t r = 0; r < f.rows; ++r) {
      void* const row = static_cast<std::byte*>(f.out) + r * f.stride * size_of(f.dtype);
      for (std::int64_t d = 0; d < f.dim; d += width) {
        const Vector running = read(f.running + d / columns * f.panel + r * columns + d % columns);
        row_of.write(row, d, f.dim - d, f.sum[r] == 0.0F ? Vector{} : running / f.sum[r]);
      }
    }
  });
}

// ---- whole buffers

void load(DType dtype, const void* from, std::int64_t count, float* to) {
  with_dtype(dtype, [&](auto row) {
    for (std::int64_t d = 0; d < count; d += width)
      Row<DType::float32>::write(to, d, count - d, row.read(from, d, count - d));
  });
}

void store(DType dtype, const float* from, std::int64_t dim, void* to, bool accumulate) {
  with_dtype(dtype, [&](auto row) {
    for (std::int64_t d = 0; d < dim; d += width) {
      Vector v = Row<DType::float32>::read(from, d, dim - d);
      if (accumulate) v = row.read(to, d, dim - d) + v;
      row.write(to, d, dim - d, v);
    }
  });
}

#if RA_SUMMANDS == 1

// `width` rows at a time, in the order in which multiply sums: where P is 1, dout.v and delta are equal and dS is 0.
void dot_rows(const DotRows& t) {
  with_cells(t.a.dtype, [&](auto a) {
    with_cells(t.b.dtype, [&](auto b) {
      const auto columns_of = [&](auto row_of, const DotRows::Rows& rows, std::int64_t first, std::int64_t d,
                                  Vector(&block)[width]) {
        read_square(row_of, rows.data, rows.stride * size_of(rows.dtype), t.rows, t.dim, first, d, block);
      };
      for (std::int64_t first = 0; first < t.rows; first += width) {
        Vector total = {}, sum = {};
        for (std::int64_t d = 0; d < cells(t.dim); d += width) {
          Vector left[width], right[width];
          columns_of(a, t.a, first, d, left);
          columns_of(b, t.b, first, d, right);
          const std::int64_t count = least(width, cells(t.dim) - d);
#if RA_AMX
          sum += sum_of_products(left, right, count);
#else
          for (std::int64_t c = 0; c < count; ++c) {
            if ((d + c) % span == 0 && d + c > 0) {
              total += sum;
              sum = Vector{};
            }
            add_product(sum, left[c], right[c]);
          }
#endif
        }
        Row<DType::float32>::write(t.out, first, t.rows - first, total + sum);
      }
    });
  });
}

#endif

}  // namespace
}  // namespace ringattn::cpu
