// Running results begun and ended, and sinks: what fp64 makes of the same numbers, in any layout, and nothing beside them touched.
#include "engine/cuda/rows.h"

#include <algorithm>
#include <numbers>
#include <vector>

#include "emulation/strided.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Rows {
  Strided out, max, sum;
  Rows(Random& random, const Shape& shape)
      : out(random, shape, DType::float32),
        max(random, of_numbers(shape), DType::float32),
        sum(random, of_numbers(shape), DType::float32) {}
  static Shape of_numbers(const Shape& shape) { return {shape.batch, shape.extent.of_numbers()}; }
  RunningRows tensors() const { return {out.tensor, max.tensor, sum.tensor}; }

  // log(2^max sum)
  double lse(std::int64_t b, std::int64_t row, std::int64_t head) const {
    return max.get(b, row, head, 0) * std::numbers::ln2 + std::log(sum.get(b, row, head, 0));
  }
  void set(std::int64_t b, std::int64_t row, std::int64_t head, double new_max, double new_sum) {
    max.set(b, row, head, 0, new_max);
    sum.set(b, row, head, 0, new_sum);
  }
};

// What only rounding to fp32 tells apart.
void expect_near(double ours, double exact, double scale) {
  if (ours == exact || (std::isnan(ours) && std::isnan(exact))) return;
  EXPECT_LE(std::abs(ours - exact), scale * 0x1p-20) << ours << ", should be " << exact;
}

// With nothing or a sink, and zero keys then.
TEST(Rows, BeginWithoutValues) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(90); ++n) {
    const test::device::Launches launches(random, true);
    const Shape shape = draw_shape(random);
    Rows rows(random, shape), expected = rows;
    const test::device::Array<float> of_heads(static_cast<std::size_t>(shape.extent.heads + 1));
    float* const sinks = draw(random, 0, 1) == 0 ? nullptr : of_heads.data();
    const std::int64_t zero_keys = draw(random, 0, 1) == 0 ? draw(random, 1, 50) : 0;
    for (std::int64_t head = 0; sinks != nullptr && head < shape.extent.heads; ++head)
      sinks[head] =
          draw(random, 0, 4) == 0 ? static_cast<float>(-infinity) : static_cast<float>(draw(random, -1000, 1000)) / 9;
    ASSERT_EQ(begin_rows(shape.batch, rows.tensors(), shape.extent, sinks, nullptr, launches.num_sms()), 0);
    ASSERT_EQ(add_zero_keys(shape.batch, rows.tensors(), shape.extent, zero_keys, nullptr, launches.num_sms()), 0);
    test::device::finish();
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      for (std::int64_t d = 0; d < shape.extent.dim; ++d) expected.out.set(b, row, head, d, 0);
      const double sink = sinks == nullptr ? -infinity : static_cast<double>(sinks[head]),
                   zeros = std::log(static_cast<double>(zero_keys)), largest = std::max(sink, zeros);
      if (largest == -infinity) {
        expected.set(b, row, head, -infinity, 0);
        return;
      }
      const double lse = largest + std::log(std::exp(sink - largest) + std::exp(zeros - largest));
      expect_near(rows.lse(b, row, head), lse, std::max(1.0, std::abs(lse)));
      expected.set(b, row, head, rows.max.get(b, row, head, 0), rows.sum.get(b, row, head, 0));
    });
    if (shape.extent.dim > 0) expect_same(rows.out, expected.out);
    expect_same(rows.max, expected.max);
    expect_same(rows.sum, expected.sum);
    if (HasFailure()) {
      ADD_FAILURE() << "case " << n << ": " << describe(shape, rows.out.tensor);
      return;
    }
  }
}

// In any dtype, in place too, of weights of any size, of none, and of what is not a number.
TEST(Rows, EndDividedAndRounded) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(120); ++n) {
    const test::device::Launches launches(random, true);
    Shape shape = draw_shape(random);
    shape.extent.dim = std::min<std::int64_t>(shape.extent.dim, 100);
    Problem p;
    p.batch = shape.batch;
    if (draw(random, 0, 2) == 0) p.dropout = reference::draw_dropout(random);
    Rows rows(random, shape);
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      const std::int64_t kind = draw(random, 0, 9);
      if (kind == 0)
        rows.set(b, row, head, -infinity, 0);
      else
        rows.set(b, row, head, static_cast<double>(draw(random, -9000, 9000)) / 64,
                 kind == 1
                     ? std::numeric_limits<double>::quiet_NaN()
                     : std::ldexp(static_cast<double>(draw(random, 1, 4000)), static_cast<int>(draw(random, -30, 30))));
      for (std::int64_t d = 0; d < shape.extent.dim; ++d)
        rows.out.set(b, row, head, d,
                     kind == 0 && draw(random, 0, 1) == 0 ? std::numeric_limits<double>::quiet_NaN()
                                                          : static_cast<double>(draw(random, -1000, 1000)) / 999);
    });
    const DType dtype = static_cast<DType>(draw(random, 1, 3));
    Strided apart(random, shape, dtype);
    const bool in_place = dtype == DType::float32 && draw(random, 0, 1) == 0;
    const Rows before = rows;
    const Strided& out = in_place ? rows.out : apart;
    Strided untouched = out;
    const std::int64_t states = shape.batch * shape.extent.heads * shape.extent.rows;
    const test::device::Array<float> lse_of_rows(static_cast<std::size_t>(states + 1));
    float* const lse = draw(random, 0, 3) == 0 ? nullptr : lse_of_rows.data();
    ASSERT_EQ(finish_rows(p, rows.tensors(), shape.extent, out.tensor, lse, nullptr, launches.num_sms()), 0);
    test::device::finish();
    Strided rest = out;  // but for the results, as it was
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      const double sum = before.sum.get(b, row, head, 0), exact_lse = before.lse(b, row, head);
      if (lse != nullptr)
        expect_near(static_cast<double>(lse[(b * shape.extent.heads + head) * shape.extent.rows + row]), exact_lse,
                    std::max(1.0, std::abs(exact_lse)));
      for (std::int64_t d = 0; d < shape.extent.dim; ++d) {
        const double exact =
            (sum == 0 ? 0 : before.out.get(b, row, head, d) / sum) / (1 - static_cast<double>(p.dropout.probability));
        const double ours = out.get(b, row, head, d), rounded = reference::rounded(exact, dtype);
        if (std::isfinite(rounded))
          EXPECT_LE(std::abs(ours - rounded), std::abs(rounded) * (dtype == DType::float32   ? 0x1p-21
                                                                   : dtype == DType::float16 ? 0x1p-10
                                                                                             : 0x1p-7) +
                                                  (dtype == DType::float16 ? 0x1p-24 : 0x1p-126));
        else
          EXPECT_EQ(std::isnan(ours), std::isnan(rounded)) << ours << ", should be " << rounded;
        rest.set(b, row, head, d, untouched.get(b, row, head, d));
      }
    });
    expect_same(rest, untouched);
    if (HasFailure()) {
      ADD_FAILURE() << "case " << n << ": " << describe(shape, rows.out.tensor);
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
