// Products of small matrices (fma/product.h), against plain loops in double.
#include "engine/tile_test.h"

namespace ringattn::cpu {
namespace {

class Products : public PartTest {};
INSTANTIATE_TEST_SUITE_P(All, Products, ::testing::ValuesIn(engines_of_parts()), name_of);

const char* name(Left left) {
  return left == Left::packed ? "packed" : left == Left::weights ? "weights" : "transposed";
}

// Where the left operand of m x k stands.
struct LeftOperand {
  LeftOperand(Left left, const Parts& parts, std::int64_t columns, std::int64_t m, std::int64_t k, std::int64_t between)
      : left(left),
        matrix(left == Left::packed ? in_panels(columns, m, k, between)
                                    : Matrix(columns, parts.score_stride, columns, floats(parts, m, k))) {}
  float& operator()(std::int64_t i, std::int64_t p) { return left == Left::transposed ? matrix(p, i) : matrix(i, p); }

  Left left;
  Matrix matrix;

 private:
  std::int64_t floats(const Parts& parts, std::int64_t m, std::int64_t k) const {
    const auto [rows, row] = left == Left::transposed ? std::pair{k, m} : std::pair{m, k};
    return std::max<std::int64_t>(1, (rows - 1) * parts.score_stride + row);
  }
};

// C [m, n] = A B or factor C + A B, drawn. Where no value is drawn, in whole vectors of B too, there is gap.
struct DrawnProduct {
  DrawnProduct(const Tiles& tiles, Random& random, Left left, std::int64_t m, std::int64_t n, std::int64_t k,
               bool scores)
      : m(m),
        n(n),
        k(k),
        scale(scores && once_in(random, 2) ? uniform(random, -1, 1) : 1.0F),
        accumulate(!scores && once_in(random, 2)),
        a(left, *tiles.parts, tiles.columns, m, k, gap_between(random, tiles)),
        b(in_panels(tiles.columns, k, n, gap_between(random, tiles))),
        c(scores ? Matrix(tiles.columns, tiles.parts->score_stride, tiles.columns, m * tiles.parts->score_stride)
                 : in_panels(tiles.columns, m, n, gap_between(random, tiles), tiles.columns)) {
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t p = 0; p < k; ++p) a(i, p) = ordinary(random);
    b.fill(k, n, [&] { return ordinary(random); });
    if (!accumulate) return;
    c.fill(m, n, [&] { return ordinary(random); });
    if (once_in(random, 2))
      for (std::int64_t i = 0; i < m; ++i)
        factor.push_back(once_in(random, 3) ? 1.0F : once_in(random, 6) ? 0.0F : uniform(random, 0, 1));
  }
  static std::int64_t gap_between(Random& random, const Tiles& tiles) { return tiles.columns * draw(random, 0, 2); }

  Product product() {
    return {.m = m,
            .n = n,
            .k = k,
            .a = a.matrix.at(0, 0),
            .a_panel = a.matrix.panel,
            .b = b.at(0, 0),
            .b_panel = b.panel,
            .c = c.at(0, 0),
            .c_panel = c.panel,
            .scale = scale,
            .accumulate = accumulate,
            .factor = factor.empty() ? nullptr : factor.data()};
  }
  float factor_of(std::int64_t i) const { return factor.empty() ? 1.0F : factor[static_cast<std::size_t>(i)]; }

  // Element (i, j) as a product of its own, given what C held. B is packed, A lies in any way.
  float alone(const Tiles& tiles, Random& random, std::int64_t i, std::int64_t j, float before) {
    const auto left = scale == 1 ? static_cast<Left>(draw(random, 0, 2)) : Left::packed;
    LeftOperand row(left, *tiles.parts, tiles.columns, 1, k, 0);
    Matrix column = in_panels(tiles.columns, k, 1), result = in_panels(tiles.columns, 1, 1);
    for (std::int64_t p = 0; p < k; ++p) {
      row(0, p) = a(i, p);
      column(p, 0) = b(p, j);
    }
    result(0, 0) = before;
    Product one = product();
    one.m = one.n = 1;
    one.a = row.matrix.at(0, 0);
    one.a_panel = row.matrix.panel;
    one.b = column.at(0, 0);
    one.b_panel = column.panel;
    one.c = result.at(0, 0);
    one.c_panel = tiles.columns;
    if (!factor.empty()) one.factor += i;
    tiles.parts->multiply(left, one);
    return result(0, 0);
  }

  std::int64_t m, n, k;
  float scale;
  bool accumulate;
  LeftOperand a;
  Matrix b, c;
  std::vector<float> factor;  // empty: none
};

TEST_P(Products, OfAnyShape) {
  for (int repeat = 0; repeat < test::sample(600); ++repeat) {
    const auto left = static_cast<Left>(draw(random, 0, 2));
    const bool scores = left == Left::packed;  // what C is
    const std::int64_t m = once_in(random, 10) ? draw(random, 1, parts.score_stride) : draw(random, 1, 40);
    const std::int64_t n = once_in(random, 10) ? draw(random, 1, scores ? parts.score_stride : most_head_dim)
                                               : draw(random, 1, std::min<std::int64_t>(140, parts.score_stride));
    const std::int64_t k = once_in(random, 20) ? 0 : draw(random, 1, left == Left::weights ? parts.score_stride : 256);
    DrawnProduct x(tiles, random, left, m, n, k, scores);
    SCOPED_TRACE(::testing::Message() << m << " x " << k << " (" << name(left) << ") times " << k << " x " << n
                                      << ", accumulate " << x.accumulate << ", factors " << !x.factor.empty() << ", C "
                                      << (scores ? "scores" : "panels"));
    const Matrix before = x.c;
    parts.multiply(left, x.product());

    std::vector<double> a, b;  // [m, k], [n, k]
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t p = 0; p < k; ++p) a.push_back(x.a(i, p));
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t p = 0; p < k; ++p) b.push_back(x.b(p, j));
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        Sum sum = dot(a.data() + i * k, b.data() + j * k, k);
        if (x.accumulate) sum.add(before(i, j), x.factor_of(i));
        const double scale = x.scale;
        ASSERT_LE(std::abs(x.c(i, j) - scale * sum.exact),
                  static_cast<double>(k + 2) * u * std::abs(scale) * sum.magnitude)
            << "C[" << i << "][" << j << "]";
      }
    }
    ASSERT_TRUE(unchanged_but(before, x.c, m, whole_vectors(n)));
    for (int sample = 0; sample < 8; ++sample) {
      const std::int64_t i = draw(random, 0, m - 1), j = draw(random, 0, n - 1);
      ASSERT_EQ(bits(x.c(i, j)), bits(x.alone(tiles, random, i, j, before(i, j))))
          << "C[" << i << "][" << j << "] alone";
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
