// What the tests of the tiles share: the engines that this machine has, matrices with gaps, and how far off a result may be.
//
// A bound counts the roundings of a plain fp32 computation, each a relative error of `u`; what rounds less passes too.
// Memory has exactly the size that a function may touch, and what lies between, which it may neither read nor write, holds
// `gap`, a NaN: read, it spoils a result; written, it is missed. Behind what is written there is more of it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/cpu/attention.h"
#include "engine/cpu/fma/parts.h"
#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn::cpu {

using reference::decode;
using reference::draw;
using reference::encode;
using reference::Random;

inline constexpr double u = 0x1p-24;
inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float nan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float gap = std::bit_cast<float>(0x7fc5a5a5U);

inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }
inline bool is_gap(float x) { return bits(x) == bits(gap); }
// The distributions of the standard library would take most of the tests' time.
inline float uniform(Random& random, double low, double high) {
  return static_cast<float>(low + (high - low) * static_cast<double>(random() >> 11) * 0x1p-53);
}
inline float ordinary(Random& random) { return uniform(random, -2, 2); }
inline bool once_in(Random& random, std::int64_t n) { return draw(random, 1, n) == 1; }
inline std::int64_t rounded_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------- matrices

// Element (i, j) stands at j / columns * panel + i * row + j % columns. All are gap until they are set.
struct Matrix {
  std::int64_t row, panel;
  std::vector<float> values;

  Matrix(std::int64_t columns, std::int64_t row, std::int64_t panel, std::int64_t floats)
      : row(row),
        panel(panel),
        values(static_cast<std::size_t>(floats), gap),
        shift_(std::countr_zero(static_cast<std::uint64_t>(columns))) {
    EXPECT_EQ(columns, std::int64_t{1} << shift_) << "columns of a panel, a divisor of " << padding;
  }

  float* at(std::int64_t i, std::int64_t j) { return values.data() + index(i, j); }
  const float* at(std::int64_t i, std::int64_t j) const { return values.data() + index(i, j); }
  float& operator()(std::int64_t i, std::int64_t j) { return *at(i, j); }
  float operator()(std::int64_t i, std::int64_t j) const { return *at(i, j); }

  template <class F>
  void fill(std::int64_t rows, std::int64_t dim, F&& value) {
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < dim; ++j) (*this)(i, j) = value();
  }

 private:
  std::int64_t index(std::int64_t i, std::int64_t j) const {
    return (j >> shift_) * panel + i * row + (j & ((std::int64_t{1} << shift_) - 1));
  }

  int shift_;  // since a division takes long
};

// Rows, `stride` apart, of which the last may have more room behind it: no panels.
inline Matrix in_rows(std::int64_t rows, std::int64_t stride, std::int64_t behind = 0) {
  return {std::int64_t{1} << 32, stride, 0, rows * stride + behind};
}

// Panels of `columns` columns, `between` floats apart, and `behind` the last of them more gap.
inline Matrix in_panels(std::int64_t columns, std::int64_t rows, std::int64_t dim, std::int64_t between = 0,
                        std::int64_t behind = 0) {
  const std::int64_t panels = rounded_up(dim, columns) / columns, panel = rows * columns + between;
  return {columns, columns, panel, std::max<std::int64_t>(1, panels * panel - between + behind)};
}

// What is packed, [rows, dim]: panels one behind the other, filled up with zeros.
inline Matrix packed(std::int64_t columns, const Matrix& from, std::int64_t rows, std::int64_t dim,
                     std::int64_t behind = 0) {
  Matrix to = in_panels(columns, rows, dim, 0, behind);
  to.fill(rows, rounded_up(dim, columns), [] { return 0.0F; });
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < dim; ++j) to(i, j) = from(i, j);
  return to;
}

// The terms of a cell, which are one float, or two in bfloat16 (tiles.h).
inline float term_of(float cell, std::int64_t terms, std::int64_t term) {
  return terms == 1 ? cell : std::bit_cast<float>(term == 0 ? bits(cell) << 16 : bits(cell) & 0xffff0000U);
}
// A number as a sum of parts in bfloat16.
inline float part_of(float x, std::int64_t parts, std::int64_t part) {
  if (parts == 1) return x;
  for (;; --part) {
    const auto nearest = static_cast<float>(reference::rounded(x, DType::bfloat16));
    if (part == 0) return nearest;
    x -= nearest;
  }
}
inline float cell_of(float first, float second, std::int64_t terms) {
  return terms == 1 ? first : std::bit_cast<float>(bits(first) >> 16 | (bits(second) & 0xffff0000U));
}

// What is packed of [rows, dim] as an operand of a product: along which dimension the terms of a cell are neighbours, and whether
// the other one is that of the columns.
enum class Operand { left, right, columns };
inline Matrix packed(const Tiles& tiles, Operand operand, const Matrix& from, std::int64_t rows, std::int64_t dim) {
  const bool down = operand == Operand::right;
  const std::int64_t n = tiles.terms, height = down ? tiles.cells(rows) : rows, wide = down ? dim : tiles.cells(dim);
  const std::int64_t one_part = (down ? height : wide) / tiles.summands;
  Matrix cells = in_rows(height, wide);
  const auto value = [&](std::int64_t i, std::int64_t j, std::int64_t part) {
    return i < rows && j < dim ? part_of(from(i, j), tiles.summands, part) : 0.0F;
  };
  for (std::int64_t i = 0; i < height; ++i)
    for (std::int64_t j = 0; j < wide; ++j) {
      const std::int64_t part = (down ? i : j) / one_part, k = (down ? i : j) % one_part * n;
      cells(i, j) = down ? cell_of(value(k, j, part), value(k + 1, j, part), n)
                         : cell_of(value(i, k, part), value(i, k + 1, part), n);
    }
  if (operand != Operand::columns) return packed(tiles.columns, cells, height, wide);
  Matrix transposed = in_rows(wide, height);
  for (std::int64_t i = 0; i < height; ++i)
    for (std::int64_t j = 0; j < wide; ++j) transposed(j, i) = cells(i, j);
  return packed(tiles.columns, transposed, wide, height);
}

// Whether elements [rows, dim] are all that differs, to the bit.
inline bool unchanged_but(const Matrix& before, const Matrix& after, std::int64_t rows, std::int64_t dim) {
  Matrix restored = after;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < dim; ++j) restored(i, j) = before(i, j);
  return std::memcmp(restored.values.data(), before.values.data(), before.values.size() * sizeof(float)) == 0;
}

// For loops in double: [rows, dim].
inline std::vector<double> in_double(const Matrix& m, std::int64_t rows, std::int64_t dim) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < dim; ++j) values.push_back(m(i, j));
  return values;
}

// ---------------------------------------------------------------- what is exact, and how far from it a result may be

// A sum of products, and of their magnitudes.
struct Sum {
  double exact = 0, magnitude = 0;
  void add(double a, double b) {
    exact += a * b;
    magnitude += std::abs(a * b);
  }
};
inline Sum dot(const double* a, const double* b, std::int64_t count) {
  Sum sum;
  for (std::int64_t i = 0; i < count; ++i) sum.add(a[i], b[i]);
  return sum;
}

inline double score(double product, double softcap) {
  return softcap == 0 ? product : softcap * std::tanh(product / softcap);
}

// How far exp(x - base) may be from `exact`, x being a score that is `error` off: one rounding makes the difference, and exp
// has 2 ulp. What would be smaller than a normal number may be 0.
inline constexpr double tiny = 0x1p-125;
inline double weight_error(double exact, double x, double base, double error) {
  return exact == 0 ? tiny : exact * std::expm1(error + u * std::abs(x - base) + 4 * u) + tiny;
}
// A score, made of an exact product: 8 roundings, most of them those of tanh.
inline double weight_error(double exact, double x, double base) {
  return weight_error(exact, x, base, 8 * u * std::abs(x));
}

// ---------------------------------------------------------------- engines

inline std::string name_of(const ::testing::TestParamInfo<const Tiles*>& engine) { return engine.param->name; }

class TileTest : public ::testing::TestWithParam<const Tiles*> {
 protected:
  const Tiles& tiles = *GetParam();
  const std::int64_t columns = tiles.columns;
  Random random{test::seed()};
};

// Engines that are made of products of floats.
inline std::vector<const Tiles*> engines_of_parts() {
  std::vector<const Tiles*> engines = cpu_tiles();
  std::erase_if(engines, [](const Tiles* tiles) { return tiles->parts == nullptr; });
  return engines;
}

class PartTest : public TileTest {
 protected:
  const Parts& parts = *tiles.parts;
  const std::int64_t width = vector_width();  // floats of a vector
  std::int64_t whole_vectors(std::int64_t n) const { return rounded_up(n, width); }

  // Rows of scores. Behind the columns of the last one there is only gap that may not be written.
  Matrix rows_of_scores(std::int64_t rows, std::int64_t count, std::int64_t behind = 0) const {
    return {columns, parts.score_stride, columns, (rows - 1) * parts.score_stride + count + behind};
  }

 private:
  // The table does not say it: what a product of one column writes.
  std::int64_t vector_width() const {
    Matrix a = in_panels(columns, 1, 1), b = a, c = a;
    parts.multiply(Left::packed, {.m = 1, .n = 1, .a = a.at(0, 0), .b = b.at(0, 0), .c = c.at(0, 0)});
    return std::count(c.values.begin(), c.values.end(), 0.0F);
  }
};

}  // namespace ringattn::cpu
