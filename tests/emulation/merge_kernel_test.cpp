// Partial results, merged in any number of steps, are those of all keys at once; and what is not finite is found.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <limits>

#include "emulation/kernels.h"
#include "engine/cuda/merge.h"

namespace ringattn::cuda {
namespace {

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

// Every row has some partial results, each of its own weight, in steps of a pass; in each step a stretch of rows has one.
TEST(Merge, IsTheWeightedMean) {
  Random random(test::seed());
  double worst_out = 0, worst_lse = 0;
  const int cases = test::sample(300);
  for (int n = 0; n < cases; ++n) {
    Problem p;
    p.batch = draw(random, 1, 2);
    p.num_heads_q = draw(random, 1, 3);
    p.head_dim_v = draw(random, 1, 70);
    p.out_dtype = static_cast<DType>(draw(random, 1, 3));
    const std::int64_t rows = draw(random, 1, 20), piece = draw(random, 0, rows - 1), steps = draw(random, 1, 4);
    const std::int64_t before = draw(random, 0, piece), lanes = p.batch * p.num_heads_q;
    Memory memory;
    const test::device::Launches launches(random);
    ForwardStep step;
    step.query_rows = before + rows;
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    step.running = memory.tensor(DType::float32, p.batch, step.query_rows, p.num_heads_q, p.head_dim_v, layout);
    step.out = memory.tensor(p.out_dtype, p.batch, step.query_rows, p.num_heads_q, p.head_dim_v, layout);
    step.max = memory.values(lanes * step.query_rows);
    step.sum = memory.values(lanes * step.query_rows);
    step.lse = memory.values(lanes * step.query_rows);
    auto* const flag = reinterpret_cast<std::int32_t*>(memory.allocate(4));
    *flag = 0;

    const std::int64_t most = lanes * rows;
    std::vector<double> sums(static_cast<std::size_t>(most * p.head_dim_v)), weights(static_cast<std::size_t>(most)),
        top(static_cast<std::size_t>(most), minus_infinity);
    struct Partial {
      std::int64_t begin, count;
      float *out, *lse;
    };
    std::vector<Partial> partials;
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t begin = draw(random, 0, rows - 1), count = draw(random, 1, rows - begin);
      partials.push_back({begin, count, memory.values(lanes * count * p.head_dim_v), memory.values(lanes * count)});
      for (std::int64_t i = 0; i < lanes * count; ++i)
        partials.back().lse[i] = draw(random, 0, 9) == 0 ? static_cast<float>(minus_infinity)
                                                         : static_cast<float>(draw(random, -1000, 1000)) /
                                                               (draw(random, 0, 1) ? 7.0F : 777.0F);
      for (std::int64_t i = 0; i < lanes * count * p.head_dim_v; ++i)
        partials.back().out[i] = static_cast<float>(draw(random, -1000, 1000)) / 333.0F;
    }
    const auto for_each = [&](auto&& f) {
      for (const Partial& part : partials)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          for (std::int64_t i = 0; i < part.count; ++i)
            f(part, static_cast<std::size_t>(lane * rows + part.begin + i), lane, i);
    };
    for_each([&](const Partial& part, std::size_t at, std::int64_t lane, std::int64_t i) {
      top[at] = std::max(top[at], static_cast<double>(part.lse[lane * part.count + i]));
    });
    for_each([&](const Partial& part, std::size_t at, std::int64_t lane, std::int64_t i) {
      if (top[at] == minus_infinity) return;
      const double weight = std::exp(static_cast<double>(part.lse[lane * part.count + i]) - top[at]);
      weights[at] += weight;
      const std::int64_t b = lane / p.num_heads_q, head = lane % p.num_heads_q;
      for (std::int64_t d = 0; d < p.head_dim_v; ++d)
        sums[at * static_cast<std::size_t>(p.head_dim_v) + static_cast<std::size_t>(d)] +=
            weight * static_cast<double>(part.out[((b * part.count + i) * p.num_heads_q + head) * p.head_dim_v + d]);
    });

    for (std::int64_t s = 0; s < steps; ++s) {
      const Partial& part = partials[static_cast<std::size_t>(s)];
      step.first = s == 0;
      step.last = s == steps - 1;
      const MergedRows merged{before, rows, part.begin, part.count, part.out, part.lse};
      *flag = 1;
      ASSERT_EQ(merge(p, step, merged, flag, nullptr), 0);
      test::device::finish();  // does nothing
      *flag = 0;
      ASSERT_EQ(merge(p, step, merged, flag, nullptr), 0);
      test::device::finish();
    }
    SCOPED_TRACE(::testing::Message() << "case " << n);
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto at = static_cast<std::size_t>(lane * rows + i);
        const double lse = weights[at] == 0 ? minus_infinity : top[at] + std::log(weights[at]);
        const double our_lse = static_cast<double>(step.lse[lane * step.query_rows + before + i]);
        if (lse != our_lse) {
          const double error = std::abs(lse - our_lse) / std::max(std::abs(lse), 1.0) * 0x1p23;
          worst_lse = std::max(worst_lse, error);
          ASSERT_LE(error, 4) << lse << ", ours " << our_lse;
        }
        for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
          const double exact =
              weights[at] == 0
                  ? 0
                  : sums[at * static_cast<std::size_t>(p.head_dim_v) + static_cast<std::size_t>(d)] / weights[at];
          const double ours = reference::decode(
              step.out.bytes_at(lane / p.num_heads_q, before + i, lane % p.num_heads_q) + d * size_of(p.out_dtype),
              p.out_dtype);
          const double unit = p.out_dtype == DType::float32 ? 0x1p-20 : p.out_dtype == DType::float16 ? 0x1p-9 : 0x1p-6;
          worst_out = std::max(worst_out, std::abs(ours - exact) / (4 * unit));
          ASSERT_LE(std::abs(ours - exact), 4 * unit) << exact << ", ours " << ours;
        }
      }
  }
  std::cout << cases << " cases; worst error of out " << worst_out << " of what is allowed, of lse " << worst_lse
            << " units of the last place\n";
}

TEST(Merge, FindsWhatIsNotFinite) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(300); ++n) {
    const DType dtype = draw(random, 0, 1) == 0 ? DType::bfloat16 : DType::float16;
    const Extent extent{draw(random, 1, 50), draw(random, 1, 3), 8 * draw(random, 1, 9)};
    const std::int64_t batch = draw(random, 1, 3);
    Memory memory;
    const test::device::Launches launches(random);
    const Tensor tensor = memory.tensor(dtype, batch, extent.rows, extent.heads, extent.dim,
                                        draw(random, 0, 1) == 0 ? Layout::packed : Layout::head_major);
    const std::int64_t count = batch * extent.rows * extent.heads * extent.dim;
    auto* const bits = static_cast<std::uint16_t*>(tensor.data);
    const std::uint16_t largest = dtype == DType::bfloat16 ? 0x7f7f : 0x7bff;  // that is finite
    for (std::int64_t i = 0; i < count; ++i)
      bits[i] = static_cast<std::uint16_t>(draw(random, 0, largest) | draw(random, 0, 1) << 15);
    auto* const flag = reinterpret_cast<std::int32_t*>(memory.allocate(4));
    *flag = 0;
    ASSERT_EQ(find_not_finite(batch, tensor, extent, flag, nullptr), 0);
    test::device::finish();
    ASSERT_EQ(*flag, 0);
    bits[draw(random, 0, count - 1)] =
        static_cast<std::uint16_t>((largest + draw(random, 1, 100)) | draw(random, 0, 1) << 15);
    ASSERT_EQ(find_not_finite(batch, tensor, extent, flag, nullptr), 0);
    test::device::finish();
    ASSERT_EQ(*flag, 1);
    ASSERT_EQ(find_not_finite(batch, tensor, extent, flag, nullptr), 0);
    test::device::finish();
    ASSERT_EQ(*flag, 1);
  }
}

}  // namespace
}  // namespace ringattn::cuda
