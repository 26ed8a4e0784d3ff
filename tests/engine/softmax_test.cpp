// Scores of a strip (fma/softmax.h): softmax weights, the gradients of products, and exp and tanh as they are seen from outside.
#include <iostream>
#include <sstream>

#include "engine/tile_test.h"

namespace ringattn::cpu {
namespace {

class Softmax : public PartTest {};
INSTANTIATE_TEST_SUITE_P(All, Softmax, ::testing::ValuesIn(engines_of_parts()), name_of);
class ScoreGradient : public PartTest {};
INSTANTIATE_TEST_SUITE_P(All, ScoreGradient, ::testing::ValuesIn(engines_of_parts()), name_of);

Visible draw_visible(Random& random, std::int64_t count) {
  const auto hi = static_cast<std::int32_t>(once_in(random, 4) ? count : draw(random, 0, count));
  return {static_cast<std::int32_t>(once_in(random, 2) ? 0 : draw(random, 0, hi)), hi};
}

// The first `count` columns of rows of scores, or from column `begin` on.
struct Stretch {
  std::int64_t begin, count;
  Visible clipped(Visible seen) const {
    const auto clip = [&](std::int32_t j) {
      return static_cast<std::int32_t>(std::clamp<std::int64_t>(j - begin, 0, count));
    };
    return {clip(seen.lo), clip(seen.hi)};
  }
};

// Rows of products; what a row does not see is gap.
struct DrawnRows {
  DrawnRows(Random& random, const Matrix& room, std::int64_t rows, std::int64_t count)
      : rows(rows), count(count), softcap(once_in(random, 2) ? 0.0F : uniform(random, 1, 30)), scores(room) {
    const float scale = uniform(random, 0.2, 20);
    for (std::int64_t i = 0; i < rows; ++i) {
      const Visible seen = draw_visible(random, count);
      const bool hopeless = once_in(random, 16);
      visible.push_back(seen);
      for (std::int64_t j = seen.lo; j < seen.hi; ++j)
        scores(i, j) = hopeless || once_in(random, 16) ? -infinity : scale * ordinary(random);
    }
  }
  Visible seen(std::int64_t i) const { return visible[static_cast<std::size_t>(i)]; }
  bool sees_any(std::int64_t i) const { return seen(i).lo < seen(i).hi; }
  bool sees(std::int64_t i, std::int64_t j) const { return seen(i).lo <= j && j < seen(i).hi; }
  double score_of(std::int64_t i, std::int64_t j) const { return score(scores(i, j), softcap); }
  std::string describe(std::int64_t i) const {
    std::ostringstream s;
    s << "row " << i << " of " << rows << " sees " << seen(i).lo << " .. " << seen(i).hi << " of " << count
      << ", softcap " << softcap;
    return std::move(s).str();
  }

  std::int64_t rows, count;
  float softcap;
  Matrix scores;
  std::vector<Visible> visible;
};

// Shapes for all tests below: what a strip may have and more.
struct Shape {
  std::int64_t rows, count;
};
Shape draw_shape(Random& random, std::int64_t least_rows, std::int64_t width, const Parts& parts) {
  return {draw(random, least_rows, 20), width * draw(random, 1, parts.score_stride / width)};
}

// ---------------------------------------------------------------- softmax

struct DrawnSoftmax : DrawnRows {
  DrawnSoftmax(Random& random, const Matrix& room, Shape shape)
      : DrawnRows(random, room, shape.rows, shape.count), factor(static_cast<std::size_t>(rows) + 1, gap) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const bool first = once_in(random, 2);
      max.push_back(first ? -infinity : uniform(random, -20, 20));
      sum.push_back(first ? 0.0F : uniform(random, 1, 100));
    }
  }
  // Rows first .. first + number - 1, and of them the columns of a stretch.
  void run(const Parts& parts, std::int64_t first, std::int64_t number, Stretch stretch) {
    std::vector<Visible> clipped;
    for (std::int64_t i = first; i < first + number; ++i) clipped.push_back(stretch.clipped(seen(i)));
    parts.softmax({number, stretch.count, scores.at(first, stretch.begin), clipped.data(), softcap, max.data() + first,
                   sum.data() + first, factor.data() + first});
  }
  void run(const Parts& parts) { run(parts, 0, rows, {0, count}); }

  std::vector<float> max, sum, factor;
};

TEST_P(Softmax, OfAnyRows) {
  for (int repeat = 0; repeat < test::sample(3'000); ++repeat) {
    const Shape shape = draw_shape(random, 1, width, parts);
    DrawnSoftmax x(random, rows_of_scores(shape.rows, shape.count, width), shape);
    const DrawnSoftmax before = x;
    x.run(parts);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const auto row = static_cast<std::size_t>(i);
      for (std::int64_t j = 0; j < x.count; ++j)
        ASSERT_TRUE(x.sees(i, j) || x.scores(i, j) == 0.0F) << "hidden column " << j;
      if (!x.sees_any(i)) {
        ASSERT_EQ(x.factor[row], 1.0F);
        ASSERT_EQ(x.max[row], before.max[row]);
        ASSERT_EQ(x.sum[row], before.sum[row]);
        continue;
      }
      const double max_before = before.max[row];
      double largest = max_before;
      for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j) largest = std::max(largest, before.score_of(i, j));
      const double base = x.max[row];
      if (largest == -INFINITY) {
        ASSERT_EQ(base, -INFINITY);
        ASSERT_EQ(x.sum[row], 0.0F);
        ASSERT_TRUE(std::isfinite(x.factor[row]));
        for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j) ASSERT_EQ(x.scores(i, j), 0.0F) << "column " << j;
        continue;
      }
      ASSERT_LE(std::abs(base - largest), 8 * u * std::abs(largest));

      const double shrink = std::exp(max_before - base), shrink_error = weight_error(shrink, 0, max_before - base);
      ASSERT_LE(std::abs(x.factor[row] - shrink), shrink_error);
      double sum = before.sum[row] * shrink, error = before.sum[row] * shrink_error;
      for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j) {
        const double weight = std::exp(before.score_of(i, j) - base),
                     bound = weight_error(weight, before.score_of(i, j), base);
        ASSERT_LE(std::abs(x.scores(i, j) - weight), bound) << "column " << j;
        sum += weight;
        error += bound;
      }
      ASSERT_LE(std::abs(x.sum[row] - sum), error + static_cast<double>(x.count + 2) * u * sum);
    }
    ASSERT_TRUE(unchanged_but(before.scores, x.scores, x.rows, x.count));
    ASSERT_TRUE(is_gap(x.factor.back()));
  }
}

// The columns of a row, met in several calls, give what they give in one.
TEST_P(Softmax, InPartsAsOfTheWhole) {
  for (int repeat = 0; repeat < test::sample(3'000); ++repeat) {
    const Shape shape = draw_shape(random, 1, width, parts);
    DrawnSoftmax whole(random, rows_of_scores(shape.rows, shape.count), shape);
    const DrawnSoftmax before = whole;
    DrawnSoftmax piecemeal = whole;
    whole.run(parts);
    int calls = 0;
    for (std::int64_t begin = 0, end = 0; begin < piecemeal.count; begin = end, ++calls) {
      const std::int64_t vectors = (piecemeal.count - begin) / width;
      end = begin + width * (calls == 3 ? vectors : draw(random, 1, vectors));
      piecemeal.run(parts, 0, piecemeal.rows, {begin, end - begin});
      for (std::int64_t i = 0; i < piecemeal.rows; ++i)
        for (std::int64_t j = 0; j < begin; ++j)
          piecemeal.scores(i, j) *= piecemeal.factor[static_cast<std::size_t>(i)];
    }
    for (std::int64_t i = 0; i < whole.rows; ++i) {
      SCOPED_TRACE(whole.describe(i));
      const auto row = static_cast<std::size_t>(i);
      const double base = whole.max[row], sum = whole.sum[row];
      ASSERT_EQ(piecemeal.max[row], whole.max[row]);
      // Each of up to four calls rounds a weight and its factor anew.
      double error = 5 * before.sum[row] * weight_error(std::exp(before.max[row] - base), 0, before.max[row] - base);
      for (std::int64_t j = 0; j < whole.count; ++j) {
        const double weight = whole.scores(i, j);
        const double bound = whole.sees(i, j) ? 5 * weight_error(weight, before.score_of(i, j), base) : 0;
        ASSERT_LE(std::abs(piecemeal.scores(i, j) - weight), bound) << "column " << j;
        error += bound;
      }
      if (sum > 0) {
        ASSERT_LE(std::abs(piecemeal.sum[row] - sum), error + 2 * static_cast<double>(whole.count) * u * sum);
      }
    }
  }
}

// Whole tiles and single rows give the same bits, and so do hidden columns that another row of the tile may see, so that
// results do not depend on how rows are shared out; and a row with NaN or infinity in it spoils itself alone.
TEST_P(Softmax, OfARowDoesNotDependOnOtherRows) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const Shape shape = draw_shape(random, 2, width, parts);
    DrawnSoftmax x(random, rows_of_scores(shape.rows, shape.count), shape);
    DrawnSoftmax single = x;
    const std::int64_t spoilt = draw(random, 0, x.rows - 1);
    const bool spoils = x.sees_any(spoilt);
    if (spoils) {
      const bool is_nan = x.softcap != 0 || once_in(random, 2);  // softcap makes infinity finite
      x.scores(spoilt, draw(random, x.seen(spoilt).lo, x.seen(spoilt).hi - 1)) = is_nan ? nan : infinity;
    }
    x.run(parts);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const auto row = static_cast<std::size_t>(i);
      if (spoils && i == spoilt) {
        ASSERT_TRUE(std::isnan(x.sum[row])) << x.sum[row];
        for (std::int64_t j = 0; j < x.count; ++j)
          ASSERT_TRUE(x.sees(i, j) || x.scores(i, j) == 0.0F) << "hidden column " << j;
        continue;
      }
      Stretch needed{0, x.count};
      if (x.sees_any(i)) {
        needed.begin = x.seen(i).lo / padding * padding;
        needed.count = whole_vectors(x.seen(i).hi - needed.begin);
      }
      single.run(parts, i, 1, needed);
      for (std::int64_t j = needed.begin; j < needed.begin + needed.count; ++j)
        ASSERT_EQ(bits(x.scores(i, j)), bits(single.scores(i, j))) << "column " << j;
      ASSERT_EQ(bits(x.max[row]), bits(single.max[row]));
      ASSERT_EQ(bits(x.sum[row]), bits(single.sum[row]));
      ASSERT_EQ(bits(x.factor[row]), bits(single.factor[row]));
    }
  }
}

// ---------------------------------------------------------------- gradients

struct DrawnGradient : DrawnRows {
  DrawnGradient(Random& random, const Matrix& room, Shape shape)
      : DrawnRows(random, room, shape.rows, shape.count), dscores(room) {
    for (std::int64_t i = 0; i < rows; ++i) {
      double sum = 0;
      for (std::int64_t j = seen(i).lo; j < seen(i).hi; ++j) {
        sum += std::exp(score_of(i, j));
        dscores(i, j) = 3 * ordinary(random);
      }
      lse.push_back(static_cast<float>(std::log(sum)));
      delta.push_back(ordinary(random));
    }
  }
  void run(const Parts& parts, std::int64_t first, std::int64_t number) {
    parts.differentiate_scores({number, count, scores.at(first, 0), dscores.at(first, 0), visible.data() + first,
                                softcap, lse.data() + first, delta.data() + first});
  }
  Matrix dscores;
  std::vector<float> lse, delta;
};

TEST_P(ScoreGradient, OfAnyRows) {
  for (int repeat = 0; repeat < test::sample(3'000); ++repeat) {
    const Shape shape = draw_shape(random, 1, width, parts);
    DrawnGradient x(random, rows_of_scores(shape.rows, shape.count, width), shape);
    const DrawnGradient before = x;
    x.run(parts, 0, x.rows);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      const double lse = x.lse[static_cast<std::size_t>(i)], delta = x.delta[static_cast<std::size_t>(i)];
      for (std::int64_t j = 0; j < x.count; ++j) {
        if (!x.sees(i, j) || lse == -INFINITY) {
          ASSERT_EQ(x.scores(i, j), 0.0F) << "hidden column " << j;
          ASSERT_EQ(x.dscores(i, j), 0.0F) << "hidden column " << j;
          continue;
        }
        const double s = before.score_of(i, j), weight = std::exp(s - lse), error = weight_error(weight, s, lse);
        ASSERT_LE(std::abs(x.scores(i, j) - weight), error) << "column " << j;
        // d score / d product is 1, or 1 - tanh^2, whose two terms may cancel.
        const double through = before.dscores(i, j) - delta, tangent = x.softcap == 0 ? 0 : s / x.softcap;
        const double exact = weight * through * (1 - tangent * tangent), cancelled = x.softcap == 0 ? 0 : 16;
        ASSERT_LE(std::abs(x.dscores(i, j) - exact), std::abs(through) * (error + weight * u * (4 + cancelled)))
            << "column " << j;
      }
    }
    ASSERT_TRUE(unchanged_but(before.scores, x.scores, x.rows, x.count));
    ASSERT_TRUE(unchanged_but(before.dscores, x.dscores, x.rows, x.count));
  }
}

TEST_P(ScoreGradient, OfARowDoesNotDependOnOtherRows) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const Shape shape = draw_shape(random, 2, width, parts);
    DrawnGradient x(random, rows_of_scores(shape.rows, shape.count), shape);
    DrawnGradient single = x;
    const std::int64_t spoilt = draw(random, 0, x.rows - 1);
    x.lse[static_cast<std::size_t>(spoilt)] = nan;
    x.run(parts, 0, x.rows);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      if (i != spoilt) single.run(parts, i, 1);
      for (std::int64_t j = 0; j < x.count; ++j) {
        if (i != spoilt) {
          ASSERT_EQ(bits(x.scores(i, j)), bits(single.scores(i, j))) << "column " << j;
          ASSERT_EQ(bits(x.dscores(i, j)), bits(single.dscores(i, j))) << "column " << j;
        } else {
          ASSERT_EQ(std::isnan(x.scores(i, j)), x.sees(i, j)) << "column " << j;
          ASSERT_EQ(std::isnan(x.dscores(i, j)), x.sees(i, j)) << "column " << j;
        }
      }
    }
  }
}

// ---------------------------------------------------------------- scores of any size

// The only key of a row, whose score is so large that one rounding of it is beyond the range of exp.
struct LargeScore {
  LargeScore(Random& random, std::int64_t width)
      : seen{static_cast<std::int32_t>(draw(random, 0, width - 1)), 0},
        score(ordinary(random) * std::exp2(uniform(random, 0, 100))) {
    seen.hi = seen.lo + 1;
  }
  Visible seen;
  float score;
};

TEST_P(Softmax, OfScoresOfAnySize) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const LargeScore x(random, width);
    Matrix scores = rows_of_scores(1, width);
    float max = -infinity, sum = 0, factor = gap;
    scores(0, x.seen.lo) = x.score;
    parts.softmax({1, width, scores.at(0, 0), &x.seen, 0, &max, &sum, &factor});
    ASSERT_TRUE(sum > 0 && std::isfinite(sum)) << "sum " << sum << " of score " << x.score;
  }
}

TEST_P(ScoreGradient, OfScoresOfAnySize) {
  for (int repeat = 0; repeat < test::sample(2'000); ++repeat) {
    const LargeScore x(random, width);
    Matrix scores = rows_of_scores(1, width), dscores = scores;
    const float lse = x.score, delta = 0;  // as softmax leaves it: the maximum, and log 1
    scores(0, x.seen.lo) = x.score;
    dscores(0, x.seen.lo) = 1;
    parts.differentiate_scores({1, width, scores.at(0, 0), dscores.at(0, 0), &x.seen, 0, &lse, &delta});
    const float weight = scores(0, x.seen.lo);
    ASSERT_TRUE(weight > 0 && std::isfinite(weight)) << "weight " << weight << " of score " << x.score;
  }
}

// ---------------------------------------------------------------- exp and tanh

class Elementary : public PartTest {
 protected:
  const std::int64_t count = parts.score_stride;
  const Visible all{0, static_cast<std::int32_t>(count)};

  // Weights relative to a running maximum of 0, or to an lse of 0, are exp of the scores.
  std::vector<float> exponentials_of_softmax(std::vector<float> x) const {
    float max = 0, sum = 0, factor = 0;
    parts.softmax({1, count, x.data(), &all, 0, &max, &sum, &factor});
    return x;
  }
  std::vector<float> exponentials_of_gradient(std::vector<float> x) const {
    const float zero = 0;
    std::vector<float> dscores(x.size(), gap);
    parts.differentiate_scores({1, count, x.data(), dscores.data(), &all, 0, &zero, &zero});
    return x;
  }
  template <class F>
  std::vector<float> row_of(F&& value) const {
    std::vector<float> row(static_cast<std::size_t>(count));
    std::generate(row.begin(), row.end(), value);
    return row;
  }
};
INSTANTIATE_TEST_SUITE_P(All, Elementary, ::testing::ValuesIn(engines_of_parts()), name_of);

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

TEST_P(Elementary, ExponentialsAreWithinTwoUlp) {
  WorstUlp softmax, gradient;
  for (int repeat = 0; repeat < test::sample(8'000); ++repeat) {
    std::vector<float> x = row_of([&] { return draw_argument(random, -87.3, 0); });
    std::vector<float> weights = exponentials_of_softmax(x);
    for (std::size_t j = 0; j < x.size(); ++j) softmax.add(x[j], weights[j], std::exp(double{x[j]}));

    x = row_of([&] { return draw_argument(random, -87.3, 88.72); });
    weights = exponentials_of_gradient(x);
    for (std::size_t j = 0; j < x.size(); ++j) gradient.add(x[j], weights[j], std::exp(double{x[j]}));
  }
  std::cout << "exp in softmax: " << softmax.ulp << " ulp at " << softmax.at << "; in gradient: " << gradient.ulp
            << " ulp at " << gradient.at << '\n';
  EXPECT_LE(softmax.ulp, 2);
  EXPECT_LE(gradient.ulp, 2);
}

TEST_P(Elementary, ExponentialsOfTheExtremes) {
  struct Case {
    float x, least, most;
  };
  constexpr float normal_min = std::numeric_limits<float>::min();
  std::vector<Case> cases{{0.0F, 1, 1}, {-0.0F, 1, 1}, {-infinity, 0, 0}, {infinity, infinity, infinity}};
  for (float x = -110; x < -87; x += 0.01F) cases.push_back({x, 0, 2 * normal_min});
  for (float x = 88.8F; x < 1e38F; x *= 1.01F) cases.push_back({x, infinity, infinity});
  for (float x = -110; x > -1e38F; x *= 1.01F) cases.push_back({x, 0, 0});
  for (const auto& [x, least, most] : cases) {
    std::vector<float> weights = exponentials_of_gradient(row_of([x = x] { return x; }));
    if (x <= 0) {
      const std::vector<float> others = exponentials_of_softmax(row_of([x = x] { return x; }));
      weights.insert(weights.end(), others.begin(), others.end());
    }
    const auto [smallest, largest] = std::minmax_element(weights.begin(), weights.end());
    EXPECT_LE(least, *smallest) << "exp(" << x << ")";
    EXPECT_GE(most, *largest) << "exp(" << x << ")";
    EXPECT_TRUE(std::none_of(weights.begin(), weights.end(), [](float weight) { return std::isnan(weight); }));
  }
}

// A row that sees one key has its score as its maximum: tanh, where softcap is 1.
TEST_P(Elementary, TangentsAreWithinSixUlp) {
  constexpr std::int64_t rows = 16;
  WorstUlp worst;
  for (int repeat = 0; repeat < test::sample(60'000); ++repeat) {
    Matrix scores = rows_of_scores(rows, width);
    std::vector<Visible> visible;
    std::vector<float> x, max(rows, -infinity), sum(rows, 0.0F), factor(rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto j = static_cast<std::int32_t>(draw(random, 0, width - 1));
      visible.push_back({j, j + 1});
      x.push_back(draw_argument(random, -12, 12));
      scores(i, j) = x.back();
    }
    parts.softmax({rows, width, scores.at(0, 0), visible.data(), 1, max.data(), sum.data(), factor.data()});
    for (std::size_t i = 0; i < rows; ++i) worst.add(x[i], max[i], std::tanh(double{x[i]}));
  }
  std::cout << "tanh: " << worst.ulp << " ulp at " << worst.at << '\n';
  EXPECT_LE(worst.ulp, 6);
}

}  // namespace
}  // namespace ringattn::cpu
