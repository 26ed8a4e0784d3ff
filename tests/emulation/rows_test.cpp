// Results of layers put together, and sinks: what fp64 makes of the same numbers, in any layout, and nothing beside them touched.
#include "engine/cuda/rows.h"

#include <algorithm>
#include <vector>

#include "emulation/strided.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Rows {
  Strided out, lse;
  Rows(Random& random, const Shape& shape)
      : out(random, shape, DType::float32),
        lse(random, {shape.batch, {shape.extent.rows, shape.extent.heads, 1}}, DType::float32) {}
  RunningRows tensors() const { return {out.tensor, lse.tensor}; }
};

// What only rounding to fp32 tells apart.
void expect_near(double ours, double exact, double scale) {
  if (ours == exact || (std::isnan(ours) && std::isnan(exact))) return;
  EXPECT_LE(std::abs(ours - exact), scale * 0x1p-20) << ours << ", should be " << exact;
}

TEST(Rows, BeginWithoutKeys) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(60); ++n) {
    const test::device::Launches launches(random, true);
    const Shape shape = draw_shape(random);
    Rows rows(random, shape), expected = rows;
    const test::device::Array<float> of_heads(static_cast<std::size_t>(shape.extent.heads + 1));
    float* const sinks = draw(random, 0, 1) == 0 ? nullptr : of_heads.data();
    for (std::int64_t head = 0; sinks != nullptr && head < shape.extent.heads; ++head)
      sinks[head] = static_cast<float>(draw(random, -9, 9));
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      for (std::int64_t d = 0; d < shape.extent.dim; ++d) expected.out.set(b, row, head, d, 0);
      expected.lse.set(b, row, head, 0, sinks == nullptr ? -infinity : static_cast<double>(sinks[head]));
    });
    ASSERT_EQ(begin_rows(shape.batch, rows.tensors(), shape.extent, sinks, nullptr, launches.num_sms()), 0);
    test::device::finish();
    if (shape.extent.dim > 0) expect_same(rows.out, expected.out);
    expect_same(rows.lse, expected.lse);
    if (HasFailure()) return;
  }
}

// Weights of any size, of nothing, and of what is not a number.
TEST(Rows, MergeByTheirWeights) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(120); ++n) {
    const test::device::Launches launches(random, true);
    Shape shape = draw_shape(random);
    shape.extent.dim = std::min<std::int64_t>(shape.extent.dim, 100);
    Rows to(random, shape), from(random, shape);
    const std::int64_t zero_keys = draw(random, 0, 2) == 0 ? draw(random, 1, 50) : 0;
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      for (Rows* const rows : {&to, &from}) {
        const std::int64_t kind = draw(random, 0, 9);
        rows->lse.set(b, row, head, 0,
                      kind == 0   ? -infinity
                      : kind == 1 ? std::numeric_limits<double>::quiet_NaN()
                                  : static_cast<double>(draw(random, -1000, 1000)) / (kind < 5 ? 9 : 99));
        for (std::int64_t d = 0; d < shape.extent.dim && draw(random, 0, 9) > 0; ++d)
          rows->out.set(b, row, head, d, static_cast<double>(draw(random, -1000, 1000)) / 999);
      }
    });
    Rows merged = to;
    ASSERT_EQ(
        merge_rows(shape.batch, from.tensors(), merged.tensors(), shape.extent, zero_keys, nullptr, launches.num_sms()),
        0);
    test::device::finish();
    Rows rest = merged;  // but for what is merged, as it was
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      const double a = to.lse.get(b, row, head, 0), c = from.lse.get(b, row, head, 0),
                   zeros = std::log(static_cast<double>(zero_keys));
      const double lse = std::log(std::exp(a) + std::exp(c) + static_cast<double>(zero_keys));
      expect_near(merged.lse.get(b, row, head, 0), std::isnan(a) || std::isnan(c) ? NAN : std::max({lse, a, c, zeros}),
                  std::max(1.0, std::abs(lse)));
      rest.lse.set(b, row, head, 0, a);
      for (std::int64_t d = 0; d < shape.extent.dim; ++d) {
        const double x = to.out.get(b, row, head, d), y = from.out.get(b, row, head, d);
        if (lse == -infinity) {
          EXPECT_TRUE(merged.out.get(b, row, head, d) == x || std::isnan(x));
        } else {
          const double largest = std::max({a, c, zeros});
          const double sum = std::exp(a - largest) + std::exp(c - largest) + std::exp(zeros - largest);
          const auto part = [&](double weight, double value) {  // what is too small for fp32 is nothing
            const double w = std::exp(weight - largest);
            return w < 0x1p-126 ? 0 : w / sum * value;
          };
          const double exact = part(a, x) + part(c, y);
          // An exponent's rounding error is as large as the exponent.
          const auto error = [&](double weight, double value) {
            return weight == -infinity ? 0 : std::abs(part(weight, value)) * (2 + largest - weight);
          };
          const double scale = error(a, x) + error(c, y);
          if (std::isfinite(exact) && scale < 0x1p120) {
            expect_near(merged.out.get(b, row, head, d), exact, scale + 0x1p-100);
          } else if (std::isnan(exact)) {
            EXPECT_TRUE(std::isnan(merged.out.get(b, row, head, d)));
          }
        }
        rest.out.set(b, row, head, d, x);
      }
    });
    expect_same(rest.out, to.out);
    expect_same(rest.lse, to.lse);
    if (HasFailure()) {
      ADD_FAILURE() << "case " << n << ": " << describe(shape, to.out.tensor);
      return;
    }
  }
}

Problem draw_sinks(Random& random) {
  Problem p;
  p.batch = draw(random, 1, 3);
  p.num_heads_q = draw(random, 1, 20);
  p.num_sinks = draw(random, 0, 3) == 0 ? draw(random, 1, most_sinks) : draw(random, 1, 5);
  return p;
}
float draw_sink(Random& random, bool none) {
  return none || draw(random, 0, 5) == 0 ? static_cast<float>(-infinity)
                                         : static_cast<float>(draw(random, -4000, 4000)) / 333;
}

TEST(Rows, SinksOfAHeadAreOne) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(40); ++n) {
    const test::device::Launches launches(random, true);
    const Problem p = draw_sinks(random);
    const test::device::Array<float> own(static_cast<std::size_t>(p.num_heads_q * p.num_sinks)),
        of_heads(static_cast<std::size_t>(p.num_heads_q));
    float *const sinks = own.data(), *const combined = of_heads.data();
    for (std::int64_t head = 0; head < p.num_heads_q; ++head) {
      const bool none = draw(random, 0, 5) == 0;
      for (std::int64_t i = 0; i < p.num_sinks; ++i) sinks[head * p.num_sinks + i] = draw_sink(random, none);
    }
    ASSERT_EQ(combine_sinks(p, sinks, combined, nullptr, launches.num_sms()), 0);
    test::device::finish();
    for (std::int64_t head = 0; head < p.num_heads_q; ++head) {
      double sum = 0;
      for (std::int64_t i = 0; i < p.num_sinks; ++i)
        sum += std::exp(static_cast<double>(sinks[head * p.num_sinks + i]));
      expect_near(static_cast<double>(combined[head]), std::log(sum), std::max(1.0, std::abs(std::log(sum))));
    }
    if (HasFailure()) return;
  }
}

TEST(Rows, GradientsOfSinksAreSumsOverRows) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(40); ++n) {
    const Problem p = draw_sinks(random);
    const std::int64_t rows = draw(random, 0, 3) == 0 ? draw(random, 0, 3000) : draw(random, 0, 40);
    const std::int64_t states = p.batch * p.num_heads_q * rows, of_sinks = p.num_heads_q * p.num_sinks;
    const auto floats = [](std::int64_t count) { return test::device::Array<float>(static_cast<std::size_t>(count)); };
    const test::device::Array<float> sinks_of_heads = floats(of_sinks), lse_of_rows = floats(states + 1),
                                     delta_of_rows = floats(states + 1), gradients = floats(of_sinks);
    float *const sinks = sinks_of_heads.data(), *const lse = lse_of_rows.data(), *const delta = delta_of_rows.data(),
                 *const dsinks = gradients.data();
    for (std::int64_t head = 0; head < p.num_heads_q; ++head) {
      const bool none = draw(random, 0, 5) == 0;
      for (std::int64_t i = 0; i < p.num_sinks; ++i) sinks[head * p.num_sinks + i] = draw_sink(random, none);
    }
    for (std::int64_t i = 0; i < states; ++i) {
      const float* const own = sinks + i / rows % p.num_heads_q * p.num_sinks;
      const float least = *std::max_element(own, own + p.num_sinks);
      lse[i] =
          least == static_cast<float>(-infinity) ? least : least + 5 + static_cast<float>(draw(random, 0, 2000)) / 333;
      delta[i] = static_cast<float>(draw(random, -1000, 1000)) / 333;
    }
    std::vector<float> before, last;
    for (std::int64_t i = 0; i < of_sinks; ++i) before.push_back(static_cast<float>(draw(random, -9, 9)));
    for (int turn = 0; turn < 2; ++turn) {  // twice, of which the second has the same bits
      const test::device::Launches launches(random, true);
      std::copy(before.begin(), before.end(), dsinks);
      ASSERT_EQ(add_sink_gradients(p, sinks, lse, delta, rows, dsinks, nullptr, launches.num_sms()), 0);
      test::device::finish();
      const std::vector<float> result(dsinks, dsinks + of_sinks);
      if (turn == 1) {
        ASSERT_EQ(result, last);
      }
      last = result;
    }
    for (std::int64_t i = 0; i < of_sinks; ++i) {
      double sum = 0, size = 1 + std::abs(static_cast<double>(before[static_cast<std::size_t>(i)]));
      for (std::int64_t b = 0; b < p.batch; ++b)
        for (std::int64_t row = 0; row < rows; ++row) {
          const std::int64_t at = (b * p.num_heads_q + i / p.num_sinks) * rows + row;
          if (sinks[i] == static_cast<float>(-infinity)) continue;
          const double term =
              std::exp(static_cast<double>(sinks[i]) - static_cast<double>(lse[at])) * static_cast<double>(delta[at]);
          sum += term;
          size += std::abs(term) * 20;
        }
      expect_near(static_cast<double>(dsinks[i]), static_cast<double>(before[static_cast<std::size_t>(i)]) - sum, size);
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace ringattn::cuda
