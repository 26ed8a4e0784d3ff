// The tiles of every engine that this machine has, one function at a time, against plain loops in double.
//
// A bound counts the roundings of a plain fp32 computation, each a relative error of `u`; what rounds less passes too.
// Memory has exactly the size that a function may touch, and what lies between, which it may neither read nor write, holds
// `gap`, a NaN: read, it spoils a result; written, it is missed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu/attention.h"
#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn::cpu {
namespace {

using reference::decode;
using reference::draw;
using reference::encode;
using reference::Random;

constexpr double u = 0x1p-24;
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint32_t gap_bits = 0x7fc5a5a5U;

std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }
bool is_gap(float x) { return bits(x) == gap_bits; }
float uniform(Random& random, double low, double high) {
  return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random));
}
float normal(Random& random) { return static_cast<float>(std::normal_distribution<double>()(random)); }
bool once_in(Random& random, std::int64_t n) { return draw(random, 1, n) == 1; }

// Rows `ld` apart, all gap.
struct Matrix {
  Matrix(std::int64_t rows, std::int64_t ld)
      : ld(ld), values(static_cast<std::size_t>(rows * ld), std::bit_cast<float>(gap_bits)) {}
  float* operator[](std::int64_t row) { return values.data() + row * ld; }
  const float* operator[](std::int64_t row) const { return values.data() + row * ld; }
  std::int64_t ld;
  std::vector<float> values;
};

// What lies behind the columns of each row, and the row behind the last, is still gap.
bool gaps_untouched(const Matrix& matrix, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t i = 0; i < rows; ++i)
    if (!std::all_of(matrix[i] + columns, matrix[i] + matrix.ld, is_gap)) return false;
  return std::all_of(matrix[rows], matrix[rows] + matrix.ld, is_gap);
}

class Tile : public ::testing::TestWithParam<const Tiles*> {
 protected:
  const Tiles& tiles = *GetParam();
  Random random{test::seed()};
};
INSTANTIATE_TEST_SUITE_P(All, Tile, ::testing::ValuesIn(cpu_tiles()),
                         [](const auto& engine) { return engine.param->name; });

// ---------------------------------------------------------------- products

// m x k times k x n, drawn; A is a transpose in half of the cases. What pads B is finite and of no consequence.
struct DrawnProduct {
  DrawnProduct(Random& random, std::int64_t m, std::int64_t n, std::int64_t k)
      : m(m),
        n(n),
        k(k),
        transposed(once_in(random, 2)),
        accumulate(once_in(random, 2)),
        a(transposed ? k : m, (transposed ? m : k) + draw(random, 0, 3)),
        b(k, padded(n) + draw(random, 0, 1) * padding),
        c(m + 1, padded(n) + draw(random, 0, 1) * padding) {
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t p = 0; p < k; ++p) a[transposed ? p : i][transposed ? i : p] = normal(random);
    for (std::int64_t p = 0; p < k; ++p)
      for (std::int64_t j = 0; j < padded(n); ++j) b[p][j] = normal(random);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < padded(n); ++j) c[i][j] = accumulate ? normal(random) : nan;
  }

  float at(std::int64_t i, std::int64_t p) const { return transposed ? a[p][i] : a[i][p]; }
  Product product() {
    return {m, n, k, a[0], transposed ? 1 : a.ld, transposed ? a.ld : 1, b[0], b.ld, c[0], c.ld, accumulate};
  }
  // Element (i, j) as a product of its own, given what C held.
  float alone(const Tiles& tiles, std::int64_t i, std::int64_t j, float before) const {
    Matrix row(1, k), column(k, padding), result(1, padding);
    for (std::int64_t p = 0; p < k; ++p) {
      row[0][p] = at(i, p);
      std::fill_n(column[p], padding, 0.0F);
      column[p][0] = b[p][j];
    }
    std::fill_n(result[0], padding, before);
    tiles.multiply({1, 1, k, row[0], k, 1, column[0], padding, result[0], padding, accumulate});
    return result[0][0];
  }

  std::int64_t m, n, k;
  bool transposed, accumulate;
  Matrix a, b, c;
};

TEST_P(Tile, MultipliesAnyShape) {
  for (int repeat = 0; repeat < test::sample(1'000); ++repeat) {
    DrawnProduct x(random, draw(random, 1, 70), draw(random, 1, 140), once_in(random, 20) ? 0 : draw(random, 1, 200));
    SCOPED_TRACE(::testing::Message() << x.m << " x " << x.k << " times " << x.k << " x " << x.n << ", transposed "
                                      << x.transposed << ", accumulate " << x.accumulate);
    const Matrix before = x.c;
    tiles.multiply(x.product());
    for (std::int64_t i = 0; i < x.m; ++i) {
      for (std::int64_t j = 0; j < x.n; ++j) {
        double exact = x.accumulate ? static_cast<double>(before[i][j]) : 0, magnitude = std::abs(exact);
        for (std::int64_t p = 0; p < x.k; ++p) {
          const double term = static_cast<double>(x.at(i, p)) * static_cast<double>(x.b[p][j]);
          exact += term;
          magnitude += std::abs(term);
        }
        ASSERT_LE(std::abs(static_cast<double>(x.c[i][j]) - exact), static_cast<double>(x.k + 1) * u * magnitude)
            << "C[" << i << "][" << j << "]";
      }
    }
    ASSERT_TRUE(gaps_untouched(x.c, x.m, padded(x.n)));
    for (int n = 0; n < 8; ++n) {
      const std::int64_t i = draw(random, 0, x.m - 1), j = draw(random, 0, x.n - 1);
      ASSERT_EQ(bits(x.c[i][j]), bits(x.alone(tiles, i, j, before[i][j]))) << "C[" << i << "][" << j << "] alone";
    }
  }
}

// One product, or several that accumulate, of multiples of `padding` terms each but for the last.
TEST_P(Tile, MultipliesInPartsAsInOne) {
  for (int repeat = 0; repeat < test::sample(1'000); ++repeat) {
    DrawnProduct whole(random, draw(random, 1, 70), draw(random, 1, 140), draw(random, padding + 1, 300));
    DrawnProduct parts = whole;
    tiles.multiply(whole.product());
    for (std::int64_t begin = 0, end = 0; begin < parts.k; begin = end) {
      end = std::min(parts.k, begin + padding * draw(random, 1, 4));
      Product part = parts.product();
      part.k = end - begin;
      part.a += begin * part.a_col;
      part.b += begin * part.ldb;
      part.accumulate = parts.accumulate || begin > 0;
      tiles.multiply(part);
    }
    for (std::int64_t i = 0; i < whole.m; ++i)
      ASSERT_TRUE(std::equal(whole.c[i], whole.c[i] + whole.n, parts.c[i]))
          << "row " << i << " of " << whole.m << " x " << whole.k << " times " << whole.k << " x " << whole.n
          << ", transposed " << whole.transposed << ", accumulate " << whole.accumulate;
  }
}

TEST_P(Tile, DotsRowsAsMultiplySums) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const std::int64_t rows = draw(random, 1, 40), dim = draw(random, 1, 256),
                       ld = padded(dim) + draw(random, 0, 1) * padding;
    Matrix a(rows, ld), b(rows, ld);
    for (Matrix* matrix : {&a, &b})
      for (std::int64_t r = 0; r < rows; ++r) {
        std::fill_n((*matrix)[r], padded(dim), 0.0F);
        std::generate_n((*matrix)[r], dim, [&] { return normal(random); });
      }
    std::vector<float> out(static_cast<std::size_t>(rows), nan);
    tiles.dot_rows(a[0], b[0], ld, rows, dim, out.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      Matrix column(dim, padding), product(1, padding);
      double exact = 0, magnitude = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        std::fill_n(column[d], padding, b[r][d]);
        const double term = static_cast<double>(a[r][d]) * static_cast<double>(b[r][d]);
        exact += term;
        magnitude += std::abs(term);
      }
      tiles.multiply({1, 1, dim, a[r], dim, 1, column[0], padding, product[0], padding, false});
      const float ours = out[static_cast<std::size_t>(r)];
      ASSERT_LE(std::abs(static_cast<double>(ours) - exact), static_cast<double>(dim) * u * magnitude)
          << "row " << r << " of " << rows << ", dim " << dim;
      ASSERT_EQ(bits(ours), bits(product[0][0])) << "row " << r << " of " << rows << ", dim " << dim;
    }
  }
}

// ---------------------------------------------------------------- softmax and its gradient

double score(double product, double scale, double softcap) {
  return softcap == 0 ? product * scale : softcap * std::tanh(product * scale / softcap);
}

// How far exp(x - base) may be from `exact`, x being a score: up to 8 roundings make x, one the difference, and exp has 2 ulp.
// What would be smaller than a normal number may be 0.
constexpr double tiny = 0x1p-125;
double weight_error(double exact, double x, double base) {
  return exact == 0 ? tiny : exact * u * (8 * std::abs(x) + std::abs(x - base) + 4) + tiny;
}

Visible draw_visible(Random& random, std::int64_t columns) {
  const auto hi = static_cast<std::int32_t>(once_in(random, 4) ? columns : draw(random, 0, columns));
  return {static_cast<std::int32_t>(once_in(random, 2) ? 0 : draw(random, 0, hi)), hi};
}

// Rows of scores; what a row does not see is gap.
struct DrawnRows {
  DrawnRows(Random& random, std::int64_t rows, std::int64_t columns)
      : rows(rows),
        columns(columns),
        scale(uniform(random, 0.02, 2)),
        softcap(once_in(random, 2) ? 0.0F : uniform(random, 1, 30)),
        scores(rows + 1, columns + draw(random, 0, 1) * padding) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const Visible seen = draw_visible(random, columns);
      const bool hopeless = once_in(random, 16);
      visible.push_back(seen);
      for (std::int64_t j = seen.lo; j < seen.hi; ++j)
        scores[i][j] = hopeless || once_in(random, 16) ? -infinity : 10 * normal(random);
    }
  }
  bool sees(std::int64_t i, std::int64_t j) const {
    return visible[static_cast<std::size_t>(i)].lo <= j && j < visible[static_cast<std::size_t>(i)].hi;
  }
  double score_of(std::int64_t i, std::int64_t j) const { return score(scores[i][j], scale, softcap); }
  std::string describe(std::int64_t i) const {
    const Visible seen = visible[static_cast<std::size_t>(i)];
    std::ostringstream s;
    s << "row " << i << " of " << rows << " sees " << seen.lo << " .. " << seen.hi << " of " << columns << ", scale "
      << scale << ", softcap " << softcap;
    return std::move(s).str();
  }

  std::int64_t rows, columns;
  float scale, softcap;
  Matrix scores;
  std::vector<Visible> visible;
};

struct DrawnSoftmax : DrawnRows {
  DrawnSoftmax(Random& random, std::int64_t rows, std::int64_t columns)
      : DrawnRows(random, rows, columns), factor(static_cast<std::size_t>(rows), nan) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const bool first = once_in(random, 2);
      max.push_back(first ? -infinity : uniform(random, -20, 20));
      sum.push_back(first ? 0.0F : uniform(random, 1, 100));
    }
  }
  SoftmaxTile tile(std::int64_t i, std::int64_t count) {
    return {count, columns, scores[i],      scores.ld,      visible.data() + i,
            scale, softcap, max.data() + i, sum.data() + i, factor.data() + i};
  }
  std::vector<float> max, sum, factor;
};

TEST_P(Tile, SoftmaxOfAnyRows) {
  for (int repeat = 0; repeat < test::sample(4'000); ++repeat) {
    DrawnSoftmax x(random, draw(random, 1, 40), padding * draw(random, 1, 4));
    const DrawnSoftmax before = x;
    tiles.softmax(x.tile(0, x.rows));
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const auto row = static_cast<std::size_t>(i);
      const double max_before = before.max[row];
      double largest = max_before;
      for (std::int64_t j = 0; j < x.columns; ++j)
        if (x.sees(i, j)) largest = std::max(largest, before.score_of(i, j));
      const double base = x.max[row];
      if (largest == -INFINITY) {
        ASSERT_EQ(base, -INFINITY);
        ASSERT_EQ(x.sum[row], 0.0F);
        ASSERT_TRUE(std::isfinite(x.factor[row]));
        ASSERT_TRUE(std::all_of(x.scores[i], x.scores[i] + x.columns, [](float weight) { return weight == 0; }));
        continue;
      }
      ASSERT_LE(std::abs(base - largest), 8 * u * std::abs(largest));

      const double shrink = std::exp(max_before - base);
      ASSERT_LE(std::abs(x.factor[row] - shrink), weight_error(shrink, 0, max_before - base));
      double sum = before.sum[row] * shrink, error = before.sum[row] * weight_error(shrink, 0, max_before - base);
      for (std::int64_t j = 0; j < x.columns; ++j) {
        if (!x.sees(i, j)) {
          ASSERT_EQ(x.scores[i][j], 0.0F) << "hidden column " << j;
          continue;
        }
        const double weight = std::exp(before.score_of(i, j) - base),
                     bound = weight_error(weight, before.score_of(i, j), base);
        ASSERT_LE(std::abs(x.scores[i][j] - weight), bound) << "column " << j;
        sum += weight;
        error += bound;
      }
      ASSERT_LE(std::abs(x.sum[row] - sum), error + static_cast<double>(x.columns + 2) * u * sum);
    }
    ASSERT_TRUE(gaps_untouched(x.scores, x.rows, x.columns));
  }
}

// The columns of a row, met in several calls, give what they give in one.
TEST_P(Tile, SoftmaxInPartsIsSoftmaxOfTheWhole) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    DrawnSoftmax whole(random, draw(random, 1, 40), padding * draw(random, 2, 4));
    const DrawnSoftmax before = whole;
    DrawnSoftmax parts = whole;
    tiles.softmax(whole.tile(0, whole.rows));
    for (std::int64_t begin = 0, end = 0; begin < parts.columns; begin = end) {
      end = begin + padding * draw(random, 1, (parts.columns - begin) / padding);
      std::vector<Visible> clipped;
      for (const Visible& seen : parts.visible)
        clipped.push_back({static_cast<std::int32_t>(std::clamp<std::int64_t>(seen.lo, begin, end) - begin),
                           static_cast<std::int32_t>(std::clamp<std::int64_t>(seen.hi, begin, end) - begin)});
      SoftmaxTile tile = parts.tile(0, parts.rows);
      tile.columns = end - begin;
      tile.scores += begin;
      tile.visible = clipped.data();
      tiles.softmax(tile);
      for (std::int64_t i = 0; i < parts.rows; ++i)
        for (std::int64_t j = 0; j < begin; ++j) parts.scores[i][j] *= parts.factor[static_cast<std::size_t>(i)];
    }
    for (std::int64_t i = 0; i < whole.rows; ++i) {
      SCOPED_TRACE(whole.describe(i));
      const auto row = static_cast<std::size_t>(i);
      const double base = whole.max[row], sum = whole.sum[row];
      ASSERT_EQ(parts.max[row], whole.max[row]);
      // Each of up to four calls rounds a weight and its factor anew.
      double error = 5 * before.sum[row] * weight_error(std::exp(before.max[row] - base), 0, before.max[row] - base);
      for (std::int64_t j = 0; j < whole.columns; ++j) {
        const double weight = whole.scores[i][j];
        const double bound = whole.sees(i, j) ? 5 * weight_error(weight, before.score_of(i, j), base) : 0;
        ASSERT_LE(std::abs(parts.scores[i][j] - weight), bound) << "column " << j;
        error += bound;
      }
      if (sum > 0) {
        ASSERT_LE(std::abs(parts.sum[row] - sum), error + 2 * static_cast<double>(whole.columns) * u * sum);
      }
    }
  }
}

// Whole tiles and single rows give the same bits, so that results do not depend on how rows are shared out; and a row with
// NaN or infinity in it spoils itself alone.
TEST_P(Tile, SoftmaxOfARowDoesNotDependOnOtherRows) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    DrawnSoftmax x(random, draw(random, 2, 40), padding * draw(random, 1, 4));
    DrawnSoftmax single = x;
    const std::int64_t spoilt = draw(random, 0, x.rows - 1);
    const Visible seen = x.visible[static_cast<std::size_t>(spoilt)];
    const bool spoils = seen.lo < seen.hi;
    if (spoils) {
      const bool is_nan = x.softcap != 0 || once_in(random, 2);  // softcap makes infinity finite
      x.scores[spoilt][draw(random, seen.lo, seen.hi - 1)] = is_nan ? nan : infinity;
    }
    tiles.softmax(x.tile(0, x.rows));
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const auto row = static_cast<std::size_t>(i);
      if (spoils && i == spoilt) {
        EXPECT_TRUE(std::isnan(x.sum[row])) << x.sum[row];
        for (std::int64_t j = 0; j < x.columns; ++j) {
          ASSERT_TRUE(x.sees(i, j) || x.scores[i][j] == 0) << "hidden column " << j;
        }
        continue;
      }
      tiles.softmax(single.tile(i, 1));
      ASSERT_TRUE(std::equal(x.scores[i], x.scores[i] + x.columns, single.scores[i]));
      ASSERT_EQ(x.max[row], single.max[row]);
      ASSERT_EQ(x.sum[row], single.sum[row]);
      ASSERT_EQ(x.factor[row], single.factor[row]);
    }
  }
}

struct DrawnGradient : DrawnRows {
  DrawnGradient(Random& random, std::int64_t rows, std::int64_t columns)
      : DrawnRows(random, rows, columns), dscores(rows + 1, scores.ld) {
    for (std::int64_t i = 0; i < rows; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < columns; ++j)
        if (sees(i, j)) {
          sum += std::exp(score_of(i, j));
          dscores[i][j] = 3 * normal(random);
        }
      lse.push_back(static_cast<float>(std::log(sum)));
      delta.push_back(normal(random));
    }
  }
  GradientTile tile(std::int64_t i, std::int64_t count) {
    return {count, columns, scores[i],      dscores[i],      scores.ld, visible.data() + i,
            scale, softcap, lse.data() + i, delta.data() + i};
  }
  Matrix dscores;
  std::vector<float> lse, delta;
};

TEST_P(Tile, GradientOfAnyRows) {
  for (int repeat = 0; repeat < test::sample(4'000); ++repeat) {
    DrawnGradient x(random, draw(random, 1, 70), padding * draw(random, 1, 4));
    const DrawnGradient before = x;
    tiles.gradient(x.tile(0, x.rows));
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const double lse = x.lse[static_cast<std::size_t>(i)], delta = x.delta[static_cast<std::size_t>(i)];
      for (std::int64_t j = 0; j < x.columns; ++j) {
        if (!x.sees(i, j) || lse == -INFINITY) {
          ASSERT_EQ(x.scores[i][j], 0.0F) << "hidden column " << j;
          ASSERT_EQ(x.dscores[i][j], 0.0F) << "hidden column " << j;
          continue;
        }
        const double s = before.score_of(i, j), weight = std::exp(s - lse), error = weight_error(weight, s, lse);
        ASSERT_LE(std::abs(x.scores[i][j] - weight), error) << "column " << j;
        // d score / d product is scale, or scale (1 - tanh^2), whose two terms may cancel.
        const double through = (before.dscores[i][j] - delta) * x.scale, tangent = x.softcap == 0 ? 0 : s / x.softcap;
        const double exact = weight * through * (1 - tangent * tangent), cancelled = x.softcap == 0 ? 0 : 16;
        ASSERT_LE(std::abs(x.dscores[i][j] - exact), std::abs(through) * (error + weight * u * (4 + cancelled)))
            << "column " << j;
      }
    }
    ASSERT_TRUE(gaps_untouched(x.scores, x.rows, x.columns));
    ASSERT_TRUE(gaps_untouched(x.dscores, x.rows, x.columns));
  }
}

TEST_P(Tile, GradientOfARowDoesNotDependOnOtherRows) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    DrawnGradient x(random, draw(random, 2, 70), padding * draw(random, 1, 4));
    DrawnGradient single = x;
    const std::int64_t spoilt = draw(random, 0, x.rows - 1);
    x.lse[static_cast<std::size_t>(spoilt)] = nan;
    tiles.gradient(x.tile(0, x.rows));
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      if (i == spoilt) {
        for (std::int64_t j = 0; j < x.columns; ++j) {
          ASSERT_EQ(std::isnan(x.scores[i][j]), x.sees(i, j)) << "column " << j;
          ASSERT_EQ(std::isnan(x.dscores[i][j]), x.sees(i, j)) << "column " << j;
        }
        continue;
      }
      tiles.gradient(single.tile(i, 1));
      ASSERT_TRUE(std::equal(x.scores[i], x.scores[i] + x.columns, single.scores[i]));
      ASSERT_TRUE(std::equal(x.dscores[i], x.dscores[i] + x.columns, single.dscores[i]));
    }
  }
}

// ---------------------------------------------------------------- exp and tanh, as they are seen from outside

// The largest error of a function so far, in units in the last place of the exact value.
struct WorstUlp {
  void add(double x, double ours, double exact) {
    const double error = std::abs(ours - exact) / std::ldexp(1.0, std::ilogb(exact) - 23);
    if (error <= ulp) return;  // NaN goes on
    ulp = error;
    at = x;
  }
  double ulp = 0, at = 0;
};

// Evenly, or evenly over the exponents, between low < 0 and high.
float draw_argument(Random& random, double low, double high) {
  if (once_in(random, 2)) return uniform(random, low, high);
  const double limit = high > 0 && once_in(random, 2) ? high : low;
  return static_cast<float>(limit * std::exp2(uniform(random, -30, 0)));
}

// Weights relative to a running maximum of 0 are exp of the scores, and so are those of an lse of 0.
TEST_P(Tile, ExponentialsAreWithinTwoUlp) {
  constexpr std::int64_t columns = 128;
  constexpr Visible all{0, columns};
  constexpr float zero = 0;
  WorstUlp softmax, gradient;
  for (int repeat = 0; repeat < test::sample(10'000); ++repeat) {
    Matrix x(1, columns), weights(1, columns), dscores(1, columns);
    std::generate_n(x[0], columns, [&] { return draw_argument(random, -86.9, 0); });
    weights = x;
    float max = 0, sum = 0, factor = 0;
    tiles.softmax({1, columns, weights[0], columns, &all, 1, 0, &max, &sum, &factor});
    for (std::int64_t j = 0; j < columns; ++j) softmax.add(x[0][j], weights[0][j], std::exp(double{x[0][j]}));

    std::generate_n(x[0], columns, [&] { return draw_argument(random, -86.9, 88.7); });
    weights = x;
    tiles.gradient({1, columns, weights[0], dscores[0], columns, &all, 1, 0, &zero, &zero});
    for (std::int64_t j = 0; j < columns; ++j) gradient.add(x[0][j], weights[0][j], std::exp(double{x[0][j]}));
  }
  std::cout << "exp in softmax: " << softmax.ulp << " ulp at " << softmax.at << "; in gradient: " << gradient.ulp
            << " ulp at " << gradient.at << '\n';
  EXPECT_LE(softmax.ulp, 2);
  EXPECT_LE(gradient.ulp, 2);
}

TEST_P(Tile, ExponentialsOfTheExtremes) {
  struct Case {
    float x, least, most;
  };
  constexpr float normal_min = std::numeric_limits<float>::min();
  std::vector<Case> cases{{0.0F, 1, 1},
                          {-0.0F, 1, 1},
                          {-infinity, 0, 0},
                          {-1e30F, 0, 0},
                          {infinity, infinity, infinity},
                          {1e30F, infinity, infinity},
                          {88.8F, infinity, infinity}};
  for (float x = -110; x < -87; x += 0.01F) cases.push_back({x, 0, 2 * normal_min});
  constexpr float zero = 0;
  constexpr Visible all{0, padding};
  for (const auto& [x, least, most] : cases) {
    Matrix scores(1, padding), dscores(1, padding);
    std::fill_n(scores[0], padding, x);
    tiles.gradient({1, padding, scores[0], dscores[0], padding, &all, 1, 0, &zero, &zero});
    for (std::int64_t j = 0; j < padding; ++j) {
      EXPECT_LE(least, scores[0][j]) << "exp(" << x << ")";
      EXPECT_GE(most, scores[0][j]) << "exp(" << x << ")";
    }
  }
}

// A row that sees one key has its score as its maximum: tanh, where scale and softcap are 1.
TEST_P(Tile, TangentsAreWithinTwoUlp) {
  constexpr std::int64_t rows = 32;
  WorstUlp worst;
  for (int repeat = 0; repeat < test::sample(40'000); ++repeat) {
    Matrix scores(rows, padding);
    std::vector<Visible> visible;
    std::vector<float> x, max(rows, -infinity), sum(rows, 0.0F), factor(rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto j = static_cast<std::int32_t>(draw(random, 0, padding - 1));
      visible.push_back({j, j + 1});
      x.push_back(draw_argument(random, -12, 12));
      scores[i][j] = x.back();
    }
    tiles.softmax({rows, padding, scores[0], padding, visible.data(), 1, 1, max.data(), sum.data(), factor.data()});
    for (std::size_t i = 0; i < rows; ++i) worst.add(x[i], max[i], std::tanh(double{x[i]}));
  }
  std::cout << "tanh: " << worst.ulp << " ulp at " << worst.at << '\n';
  EXPECT_LE(worst.ulp, 2);
}

// ---------------------------------------------------------------- conversions

constexpr std::uint32_t patterns = 1U << 16;
constexpr DType half_types[] = {DType::bfloat16, DType::float16};

float widened(std::uint32_t pattern, DType dtype) {
  const auto half = static_cast<std::uint16_t>(pattern);
  return static_cast<float>(decode(&half, dtype));
}
bool same_value(float a, float b) { return std::isnan(a) ? std::isnan(b) : bits(a) == bits(b); }

TEST_P(Tile, LoadsEveryHalf) {
  constexpr std::int64_t rows = 256, dim = patterns / rows;
  std::vector<std::uint16_t> halves(patterns);
  std::iota(halves.begin(), halves.end(), std::uint16_t{0});
  for (const DType dtype : half_types) {
    Matrix to(rows, dim);
    EXPECT_FALSE(tiles.load(dtype, halves.data(), dim, rows, dim, to[0], dim));
    for (const std::uint16_t half : halves) {
      const float expected = widened(half, dtype), together = to.values[half];
      float alone[padding];
      const bool finite = tiles.load(dtype, &half, 1, 1, 1, alone, padding);
      ASSERT_TRUE(same_value(together, expected) && same_value(alone[0], expected))
          << "dtype " << static_cast<int>(dtype) << ", pattern " << half << " is " << together << ", alone " << alone[0]
          << ", should be " << expected;
      ASSERT_EQ(finite, std::isfinite(expected)) << "dtype " << static_cast<int>(dtype) << ", pattern " << half;
    }
  }
}

// Any rows of any dtype, `stride` apart, with garbage between them: values, padding, and whether all are finite.
TEST_P(Tile, LoadsAnyRows) {
  for (int repeat = 0; repeat < test::sample(4'000); ++repeat) {
    const auto dtype = static_cast<DType>(draw(random, 1, 3));
    const std::int64_t rows = draw(random, 1, 12), dim = draw(random, 1, 256), stride = dim + draw(random, 0, 40),
                       ld = padded(dim) + draw(random, 0, 1) * padding;
    SCOPED_TRACE(::testing::Message() << "dtype " << static_cast<int>(dtype) << ", " << rows << " x " << dim
                                      << ", stride " << stride);
    std::vector<std::byte> from(static_cast<std::size_t>(((rows - 1) * stride + dim) * size_of(dtype)),
                                std::byte{0xff});  // NaN
    const auto at = [&](std::int64_t r, std::int64_t d) { return from.data() + (r * stride + d) * size_of(dtype); };
    const auto draw_finite = [&](std::byte* element) {
      do {
        const std::uint64_t pattern = random();
        std::memcpy(element, &pattern, static_cast<std::size_t>(size_of(dtype)));
      } while (!std::isfinite(decode(element, dtype)));
    };
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t d = 0; d < dim; ++d) draw_finite(at(r, d));
    const bool spoilt = once_in(random, 2);
    if (spoilt) {
      constexpr std::array poisons{nan, infinity, -infinity};
      encode(poisons[static_cast<std::size_t>(draw(random, 0, 2))], dtype,
             at(draw(random, 0, rows - 1), draw(random, 0, dim - 1)));
    }
    Matrix to(rows + 1, ld);
    ASSERT_EQ(tiles.load(dtype, from.data(), stride, rows, dim, to[0], ld), !spoilt);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < dim; ++d)
        ASSERT_TRUE(same_value(to[r][d], static_cast<float>(decode(at(r, d), dtype))))
            << "row " << r << ", element " << d;
      ASSERT_TRUE(std::all_of(to[r] + dim, to[r] + ld, [](float x) { return bits(x) == 0; })) << "padding of row " << r;
    }
    ASSERT_TRUE(std::all_of(to[rows], to[rows] + ld, is_gap)) << "the row behind the last";
  }
}

// Stores all values, in rows of every length.
std::vector<std::uint16_t> store_all(const Tiles& tiles, Random& random, DType dtype,
                                     const std::vector<float>& values) {
  std::vector<std::uint16_t> stored(values.size());
  std::size_t done = 0;
  while (done < values.size()) {
    const std::size_t dim = std::min(values.size() - done, static_cast<std::size_t>(draw(random, 1, 70)));
    std::vector<std::uint16_t> row(dim, 0xa5a5);
    tiles.store(dtype, values.data() + done, static_cast<std::int64_t>(dim), row.data(), false);
    std::copy(row.begin(), row.end(), stored.begin() + static_cast<std::ptrdiff_t>(done));
    done += dim;
  }
  return stored;
}

// Every half, what lies half way to the next one, and the floats on both sides of that.
TEST_P(Tile, StoresToTheNearestHalf) {
  for (const DType dtype : half_types) {
    const std::uint32_t infinite = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
    std::vector<float> values;
    std::vector<std::uint32_t> expected;
    for (const std::uint32_t sign : {0x0000U, 0x8000U}) {
      const float direction = sign == 0 ? infinity : -infinity;
      for (std::uint32_t pattern = sign; pattern < (infinite | sign); ++pattern) {
        const bool largest = pattern + 1 == (infinite | sign);
        const float value = widened(pattern, dtype);
        const float spacing = largest ? value - widened(pattern - 1, dtype) : widened(pattern + 1, dtype) - value;
        const float middle = value + spacing / 2;
        for (const auto& [x, nearest] : {std::pair{value, pattern},
                                         {std::nextafter(middle, -direction), pattern},
                                         {middle, pattern + pattern % 2},
                                         {std::nextafter(middle, direction), pattern + 1}}) {
          values.push_back(x);
          expected.push_back(nearest);
        }
      }
      values.insert(values.end(), {direction, std::copysign(std::numeric_limits<float>::max(), direction)});
      expected.insert(expected.end(), {infinite | sign, infinite | sign});
    }
    const std::vector<std::uint16_t> stored = store_all(tiles, random, dtype, values);
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(stored[i], expected[i]) << "dtype " << static_cast<int>(dtype) << ": " << values[i] << " is stored as "
                                        << widened(stored[i], dtype) << ", not " << widened(expected[i], dtype);

    std::vector<float> nans;
    for (std::uint32_t significand = 1; significand < 1U << 23; significand += significand < 1U << 16 ? 1 : 127)
      for (const std::uint32_t sign : {0U, 0x80000000U})
        nans.push_back(std::bit_cast<float>(0x7f800000U | sign | significand));
    for (const std::uint16_t half : store_all(tiles, random, dtype, nans))
      ASSERT_TRUE(std::isnan(widened(half, dtype))) << half;
  }
}

TEST_P(Tile, StoresAndAddsRowsOfAnyLength) {
  for (int repeat = 0; repeat < test::sample(4'000); ++repeat) {
    const auto dtype = static_cast<DType>(draw(random, 1, 3));
    const bool accumulate = once_in(random, 2);
    const std::int64_t dim = draw(random, 1, 256);
    std::vector<std::byte> to(static_cast<std::size_t>(dim * size_of(dtype)));
    const auto at = [&](std::int64_t d) { return to.data() + d * size_of(dtype); };
    std::vector<float> from, sum;
    for (std::int64_t d = 0; d < dim; ++d) {
      encode(normal(random), dtype, at(d));
      from.push_back(once_in(random, 50) ? infinity : normal(random) * std::exp2(uniform(random, -12, 4)));
      sum.push_back(accumulate ? static_cast<float>(decode(at(d), dtype)) + from.back() : from.back());
    }
    tiles.store(dtype, from.data(), dim, to.data(), accumulate);
    for (std::int64_t d = 0; d < dim; ++d)
      ASSERT_EQ(decode(at(d), dtype), reference::rounded(sum[static_cast<std::size_t>(d)], dtype))
          << "dtype " << static_cast<int>(dtype) << ", element " << d << " of " << dim << ", accumulate " << accumulate;
  }
}

// ---------------------------------------------------------------- the rest

TEST_P(Tile, TransposesAnyShape) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const std::int64_t rows = draw(random, 1, 128), dim = draw(random, 1, 256), ld = rows + draw(random, 0, 40);
    Matrix from(rows, dim + draw(random, 0, 5)), to(dim + 1, ld);
    for (std::int64_t r = 0; r < rows; ++r) std::generate_n(from[r], dim, [&] { return normal(random); });
    tiles.transpose(from[0], from.ld, rows, dim, to[0], ld);
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t r = 0; r < rows; ++r)
        ASSERT_EQ(to[d][r], from[r][d]) << rows << " x " << dim << ", row " << r << ", column " << d;
      ASSERT_TRUE(std::all_of(to[d] + rows, to[d] + ld, [](float x) { return bits(x) == 0; }))
          << "padding of column " << d;
    }
    ASSERT_TRUE(std::all_of(to[dim], to[dim] + ld, is_gap)) << "the row behind the last";
  }
}

TEST_P(Tile, ScalesEachRowByItsFactor) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const std::int64_t count = draw(random, 1, 40), dim = draw(random, 1, 256);
    Matrix rows(count + 1, padded(dim) + draw(random, 0, 1) * padding);
    std::vector<float> factor;
    for (std::int64_t r = 0; r < count; ++r) {
      std::fill_n(rows[r], padded(dim), 0.0F);
      std::generate_n(rows[r], dim, [&] { return normal(random); });
      factor.push_back(once_in(random, 3) ? 1.0F : once_in(random, 6) ? 0.0F : uniform(random, 0, 1));
    }
    const Matrix before = rows;
    tiles.scale(rows[0], rows.ld, count, dim, factor.data());
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t d = 0; d < padded(dim); ++d)
        ASSERT_EQ(rows[r][d], before[r][d] * factor[static_cast<std::size_t>(r)])
            << "row " << r << ", element " << d << " of " << dim;
    ASSERT_TRUE(gaps_untouched(rows, count, padded(dim)));
  }
}

}  // namespace
}  // namespace ringattn::cpu
