// Floats as sums of three parts in bfloat16 (tiles.h): packing, and dot products in the order in which multiply sums.
//
// A part is what the parts before it have left over, rounded, and the third one takes all that is left. Parts of what is not
// finite would be infinity minus infinity, as would products of parts of huge numbers, and those of tiny numbers would be flushed
// to zero: such numbers are reported.
#pragma once

#include "engine/cpu/fma/pack.h"

namespace ringattn::cpu {
namespace {

// 0, or of a size between 2^-100 and 2^59.
inline Vector zero_if_ordinary(Vector x) {
  const Bits magnitude = bits(x) & 0x7fffffffU;
  const Vector one = all(1.0F);
  return magnitude == 0U ? Vector{} : magnitude - 0x0d800000U < 0x5d000000U - 0x0d800000U ? Vector{} : one;
}

// The parts of `width` numbers of a row of `dim`, which begin with number `at`. Returns zero_if_ordinary.
template <class RowOf>
inline Vector read_parts(RowOf row_of, const void* row, std::int64_t at, std::int64_t dim, Vector (&part)[summands]) {
  const Vector x = row != nullptr && at < dim ? row_of.read(row, at, dim - at) : Vector{};
  split(x, part);
  return zero_if_ordinary(x);
}
inline const void* row_or_null(const PackedRows& p, std::int64_t r) { return r < p.rows ? row_at(p, r) : nullptr; }

bool pack_left(const PackedRows& p) {
  return with_dtype(p.dtype, [&](auto row_of) {
    Vector check = {};
    const std::int64_t one_part = part_cells(p.dim);
    for (std::int64_t r = 0; r < p.rows; ++r) {
      const auto write_at = [&](std::int64_t k, Vector v) {
        write(p.to + k / columns * p.panel + r * columns + k % columns, v);
      };
      for (std::int64_t d = 0; d < one_part; d += width) {
        Vector first[summands], second[summands];
        check += read_parts(row_of, row_at(p, r), 2 * d, p.dim, first);
        check += read_parts(row_of, row_at(p, r), 2 * d + width, p.dim, second);
        for (int part = 0; part < summands; ++part)
          write_at(part * one_part + d, round_columns(first[part], second[part]));
      }
      for (std::int64_t k = summands * one_part; k % columns != 0; k += width) write_at(k, Vector{});
    }
    return is_zero(check);
  });
}

bool pack_right(const PackedRows& p) {
  return with_dtype(p.dtype, [&](auto row_of) {
    Vector check = {};
    const std::int64_t one_part = part_cells(p.rows);
    for (std::int64_t pair = 0; pair < one_part; ++pair)
      for (std::int64_t d = 0; d < (p.dim + columns - 1) / columns * columns; d += width) {
        Vector first[summands], second[summands];
        check += read_parts(row_of, row_or_null(p, 2 * pair), d, p.dim, first);
        check += read_parts(row_of, row_or_null(p, 2 * pair + 1), d, p.dim, second);
        for (int part = 0; part < summands; ++part)
          write(p.to + d / columns * p.panel + (part * one_part + pair) * columns + d % columns,
                round_rows(first[part], second[part]));
      }
    return is_zero(check);
  });
}

bool pack_columns(const PackedRows& p) {
  return with_dtype(p.dtype, [&](auto row_of) {
    Vector check = {};
    const std::int64_t one_part = part_cells(p.dim);
    for (std::int64_t r = 0; r < (p.rows + columns - 1) / columns * columns; r += width)
      for (std::int64_t d = 0; d < one_part; d += width) {
        Vector block[summands][width];
        for (std::int64_t n = 0; n < width; ++n) {
          Vector first[summands], second[summands];
          check += read_parts(row_of, row_or_null(p, r + n), 2 * d, p.dim, first);
          check += read_parts(row_of, row_or_null(p, r + n), 2 * d + width, p.dim, second);
          for (int part = 0; part < summands; ++part) block[part][n] = round_columns(first[part], second[part]);
        }
        for (int part = 0; part < summands; ++part) {
          transpose(block[part]);
          for (std::int64_t c = 0; c < width; ++c)
            write(p.to + r / columns * p.panel + (part * one_part + d + c) * columns + r % columns, block[part][c]);
        }
      }
    return is_zero(check);
  });
}

void dot_rows(const DotRows& t) {
  with_dtype(t.a.dtype, [&](auto a) {
    with_dtype(t.b.dtype, [&](auto b) {
      const auto columns_of = [&](auto row_of, const DotRows::Rows& rows, std::int64_t r, std::int64_t d, int part,
                                  Vector(&block)[width]) {
        for (std::int64_t n = 0; n < width; ++n) {
          const void* const row =
              r + n < t.rows ? static_cast<const std::byte*>(rows.data) + (r + n) * rows.stride * size_of(rows.dtype)
                             : nullptr;
          Vector first[summands], second[summands];
          read_parts(row_of, row, 2 * d, t.dim, first);
          read_parts(row_of, row, 2 * d + width, t.dim, second);
          block[n] = round_columns(first[part], second[part]);
        }
        transpose(block);
      };
      for (std::int64_t r = 0; r < t.rows; r += width) {
        Vector sum = {};
        for (const PartPair pair : kept)
          for (std::int64_t d = 0; d < part_cells(t.dim); d += width) {
            Vector left[width], right[width];
            columns_of(a, t.a, r, d, pair.a, left);
            columns_of(b, t.b, r, d, pair.b, right);
            sum += sum_of_products(left, right, width);
          }
        Row<DType::float32>::write(t.out, r, t.rows - r, sum);
      }
    });
  });
}

}  // namespace
}  // namespace ringattn::cpu
