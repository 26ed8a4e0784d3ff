// The portable engine's backward kernels: steps of random problems on one rank or several, one after the other, against the oracle.
#include <array>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>

#include "core/memory.h"
#include "emulation/kernels.h"

namespace ringattn::cuda {
namespace {

using reference::Inputs;
using reference::Oracle;

void run_kernels(const Problem& p, const BackwardStep& step, int num_sms) {
  ASSERT_EQ(portable_backward(p, step, nullptr, num_sms), 0);
}

// As the forward pass leaves it.
reference::Result<double> forward_of(const Inputs& inputs) {
  reference::Result<double> result =
      reference::forward(inputs.problem, inputs.q, inputs.k, inputs.v, {inputs.key_bias, inputs.sinks});
  for (double& x : result.out) x = reference::rounded(x, inputs.problem.out_dtype);
  return result;
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// For each width of the kernels, as large as takes reasonable time; `rounded`: a problem whose weights may be rounded.
Problem draw_problem_of(Random& random, int width, bool rounded, bool modifiers = false) {
  reference::ProblemLimits limits = width == 64    ? reference::ProblemLimits{.head_dim = 64}
                                    : width == 128 ? reference::ProblemLimits{1, 80, 1, 2, 128}
                                                   : reference::ProblemLimits{1, 48, 1, 2, 256};
  limits.modifiers = modifiers;
  for (;;) {
    Problem p = reference::draw_problem(random, limits);
    if (rounded) {
      if (p.dtype == DType::float32) p.dtype = DType::bfloat16;
      p.out_dtype = p.grad_dtype = p.dtype;
    }
    const Variant variant = choose_backward(p);
    if (variant.dim == width && variant.exact_weights != rounded) return p;
  }
}

void sweep(int count, const std::vector<int>& widths, bool rounded, bool modifiers = false) {
  Random random(test::seed());
  std::map<int, int> dtypes;
  double worst[3] = {};
  for (int n = 0; n < test::sample(count); ++n) {
    const Problem p = draw_problem_of(random, widths[static_cast<std::size_t>(n) % widths.size()], rounded, modifiers);
    const Oracle oracle(p, random);
    const int world_size = static_cast<int>(draw(random, 1, 3));
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << world_size << " ranks, layout "
                                      << static_cast<int>(layout) << ": " << reference::describe(p));
    const reference::Result<double> forward = forward_of(oracle);
    const BackwardResult result = run_backward(oracle, forward, world_size, layout, random, run_kernels);
    worst[0] = std::max(worst[0], compare("dq", result.dq, oracle.dq));
    worst[1] = std::max(worst[1], compare("dk", result.dk, oracle.dk));
    worst[2] = std::max(worst[2], compare("dv", result.dv, oracle.dv));
    if (n % 8 == 0) {  // in another order
      const BackwardResult again = run_backward(oracle, forward, world_size, layout, random, run_kernels);
      EXPECT_TRUE(same(result.dq, again.dq) && same(result.dk, again.dk) && same(result.dv, again.dv));
    }
    for (const auto& [name, launches] : result.launches)
      if (name.starts_with("backward")) {
        EXPECT_EQ(name.ends_with("_modified"), choose_backward(p).modified) << name;
      }
    if (::testing::Test::HasFailure()) return;
    ++dtypes[static_cast<int>(choose_backward(p).dtype)];
  }
  for (const auto& [dtype, cases] : dtypes) std::cout << cases << " cases of dtype " << dtype << "\n";
  std::cout << "worst errors of dq, dk, dv: " << worst[0] << " " << worst[1] << " " << worst[2]
            << " of the tolerance\n";
}

TEST(PortableBackward, RoundedWeightsHoldTheToleranceRule) {
  sweep(70, {64, 64, 64, 64, 64, 128, 64, 64, 64, 256}, true);
}
TEST(PortableBackward, ExactWeightsHoldTheToleranceRule) {
  sweep(120, {64, 64, 64, 64, 64, 128, 64, 64, 64, 256}, false);
}

TEST(PortableBackward, ModifiersHoldTheToleranceRule) {
  sweep(40, {64, 64, 64, 64, 128, 64, 64, 256}, true, true);
  sweep(80, {64, 64, 64, 64, 128, 64, 64, 256}, false, true);
}

// A row that sees one key has its value for output, and gradients of nothing but that value.
TEST(PortableBackward, OneKeyEachLeavesNothing) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (const std::int64_t head_dim : {35, 64, 128}) {
      Problem p;
      p.seqlen_q = p.seqlen_kv = head_dim == 64 ? 300 : 50;
      p.documents = {{0, p.seqlen_q, 0, p.seqlen_q}};
      p.head_dim = p.head_dim_v = head_dim;
      p.dtype = p.out_dtype = p.grad_dtype = dtype;
      p.window_left = p.window_right = 0;
      Random random(17);
      const Oracle oracle(p, random);
      const BackwardResult result = run_backward(oracle, forward_of(oracle), 2, Layout::packed, random, run_kernels);
      for (const double x : result.dq) ASSERT_EQ(x, 0) << reference::describe(p);
      for (const double x : result.dk) ASSERT_EQ(x, 0) << reference::describe(p);
    }
}

TEST(PortableBackward, ChoosesTheLeastThatHasRoomAndPrecision) {
  const auto chosen = [](DType dtype, DType out_dtype, DType grad_dtype, std::int64_t seqlen, std::int64_t dim,
                         std::int64_t dim_v) {
    Problem p;
    p.seqlen_q = p.seqlen_kv = seqlen;
    p.head_dim = dim;
    p.head_dim_v = dim_v;
    p.dtype = dtype;
    p.out_dtype = out_dtype;
    p.grad_dtype = grad_dtype;
    return choose_backward(p);
  };
  constexpr DType f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  EXPECT_EQ(chosen(bf16, bf16, bf16, 4096, 128, 128), (Variant{bf16, 128, false, false}));
  EXPECT_EQ(chosen(bf16, bf16, bf16, 4096, 64, 129), (Variant{bf16, 256, false, false}));
  EXPECT_EQ(chosen(bf16, bf16, f32, 4096, 64, 64), (Variant{bf16, 64, true, false}));
  EXPECT_EQ(chosen(bf16, bf16, bf16, 31, 64, 64), (Variant{bf16, 64, true, false}));
  EXPECT_EQ(chosen(bf16, f32, bf16, 4096, 64, 64), (Variant{f32, 64, false, false}));
  EXPECT_EQ(chosen(f16, f16, bf16, 4096, 64, 64), (Variant{f16, 64, false, false}));
  EXPECT_EQ(chosen(f16, f16, f32, 4096, 64, 64), (Variant{f32, 64, false, false}));
  EXPECT_EQ(chosen(f16, f16, f16, 4096, 64, 8), (Variant{f32, 64, true, false}));
  EXPECT_EQ(chosen(f32, f32, f32, 4096, 192, 128), (Variant{f32, 256, false, false}));
}

Problem causal_window(DType dtype, std::int64_t head_dim) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 150;  // several tiles
  p.documents = {{0, 150, 0, 150}};
  p.head_dim = p.head_dim_v = head_dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  p.causal = true;
  p.window_left = 60;
  p.sharding = Sharding::zigzag;
  return p;
}

// A value that is not finite in one row of one input reaches the results that depend on it, and no others.
TEST(PortableBackward, WhatIsNotFiniteReachesOnlyWhatSeesIt) {
  enum Input { q, k, v, dout };
  int combination = 0;
  for (const double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (const Input input : {q, k, v, dout})
      for (const auto& [world_size, dtype, head_dim] : {std::tuple{1, DType::float32, 24},
                                                        {3, DType::float32, 75},
                                                        {1, DType::bfloat16, 40},
                                                        {3, DType::bfloat16, 75},
                                                        {1, DType::bfloat16, 24},
                                                        {1, DType::float16, 64}}) {
        if (!test::sampled(combination++, 5)) continue;
        const Problem p = causal_window(dtype, head_dim);
        Random random(11);
        const Oracle oracle(p, random);
        Inputs inputs = oracle;
        constexpr std::int64_t token = 71;  // the second of a pair
        std::vector<double>* const tensors[] = {&inputs.q, &inputs.k, &inputs.v, &inputs.dout};
        (*tensors[input])[static_cast<std::size_t>(token * p.head_dim + 5)] = poison;
        const BackwardResult results =
            run_backward(inputs, forward_of(inputs), world_size, Layout::padded, random, run_kernels);

        const auto sees = [&](std::int64_t i, std::int64_t j) { return reference::sees(p, 0, i, j); };
        const auto query_touched = [&](std::int64_t i) {
          return input == q || input == dout ? i == token : sees(i, token);
        };
        const auto key_touched = [&](std::int64_t j) {
          for (std::int64_t i = 0; i < p.seqlen_q; ++i)
            if (sees(i, j) && query_touched(i)) return true;
          return false;
        };
        const auto expect_clean = [&](const char* name, const std::vector<double>& ours,
                                      const reference::Expected& expected, const auto& touched, std::int64_t width) {
          for (std::int64_t i = 0; i < p.seqlen_q; ++i)
            for (std::int64_t d = 0; d < width; ++d) {
              const auto n = static_cast<std::size_t>(i * width + d);
              if (touched(i)) continue;
              ASSERT_LE(std::abs(ours[n] - expected.exact[n]), expected.tolerance)
                  << name << " row " << i << ", input " << input << ", " << reference::describe(p);
            }
        };
        expect_clean("dq", results.dq, oracle.dq, query_touched, p.head_dim);
        expect_clean("dk", results.dk, oracle.dk, key_touched, p.head_dim);
        expect_clean("dv", results.dv, oracle.dv, key_touched, p.head_dim_v);
        EXPECT_FALSE(std::isfinite(results.dq[static_cast<std::size_t>(token * p.head_dim)]))
            << "input " << input << " has " << poison << ", lse " << forward_of(inputs).lse[token];
        if (HasFailure()) return;
      }
}

// Numbers of all kinds, anywhere: what comes out is finite, infinite or not a number as it is from an engine of the CPU.
TEST(PortableBackward, WhatIsNotFiniteIsAsOnTheCpu) {
  const std::unique_ptr<Engine> cpu = make_cpu_engine("portable", 1);
  Random random(test::seed());
  std::int64_t not_finite = 0, all = 0;
  for (int n = 0; n < test::sample(60); ++n) {
    Problem p = draw_problem_of(random, 64, n % 2 == 0);
    p.num_chunks = 1;
    Inputs inputs(p, random);
    SCOPED_TRACE(::testing::Message() << "case " << n << ": " << reference::describe(p));
    const double specials[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
    for (std::vector<double>* const tensor : {&inputs.q, &inputs.k, &inputs.v, &inputs.dout})
      for (std::int64_t i = draw(random, 0, 2); i > 0 && !tensor->empty(); --i)
        (*tensor)[random() % tensor->size()] = specials[draw(random, 0, 2)];
    const reference::Result<double> forward = forward_of(inputs);
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    const BackwardResult ours = run_backward(inputs, forward, 1, layout, random, run_kernels);
    const BackwardResult theirs =
        run_backward(inputs, forward, 1, layout, random, [&](const Problem& problem, const BackwardStep& step, int) {
          BackwardStep with_scratch = step;
          ringattn::Block scratch;
          with_scratch.scratch = scratch.reserve(cpu->scratch_bytes(problem, Pass::backward, problem.seqlen_q, false));
          cpu->backward(problem, with_scratch);
        });
    const auto expect_same_kind = [&](const char* name, const std::vector<double>& a, const std::vector<double>& b) {
      for (std::size_t i = 0; i < a.size(); ++i) {
        ++all;
        not_finite += !std::isfinite(b[i]);
        ASSERT_EQ(std::isfinite(a[i]), std::isfinite(b[i]))
            << name << "[" << i << "] is " << a[i] << ", on the CPU " << b[i];
      }
    };
    expect_same_kind("dq", ours.dq, theirs.dq);
    expect_same_kind("dk", ours.dk, theirs.dk);
    expect_same_kind("dv", ours.dv, theirs.dv);
    if (HasFailure()) return;
  }
  std::cout << not_finite << " of " << all << " not finite\n";
  EXPECT_GT(not_finite, all / 100);
  EXPECT_LT(not_finite, all / 2);
}

}  // namespace
}  // namespace ringattn::cuda
