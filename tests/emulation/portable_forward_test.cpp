// The portable engine's forward kernels: right for any problem, on any number of ranks, whatever order blocks run in.
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <set>

#include "emulation/kernels.h"

namespace ringattn::cuda {
namespace {

using reference::Of;
using reference::Oracle;

constexpr std::array<std::array<std::int64_t, 2>, 14> dims{{{64, 64},
                                                            {128, 128},
                                                            {40, 40},
                                                            {1, 1},
                                                            {8, 8},
                                                            {72, 72},
                                                            {96, 96},
                                                            {192, 128},
                                                            {256, 256},
                                                            {64, 128},
                                                            {33, 17},
                                                            {80, 48},
                                                            {5, 250},
                                                            {32, 32}}};

// Any mask, with lengths of a few tiles where head_dim is small.
Problem draw_forward(Random& random, bool modifiers = false) {
  const auto& dim = dims[static_cast<std::size_t>(draw(random, 0, static_cast<std::int64_t>(dims.size()) - 1))];
  const std::int64_t widest = std::max(dim[0], dim[1]);
  reference::ProblemLimits limits = widest <= 64    ? reference::ProblemLimits{2, draw(random, 1, 150), 2, 2, 1}
                                    : widest <= 128 ? reference::ProblemLimits{2, draw(random, 1, 120), 1, 2, 1}
                                                    : reference::ProblemLimits{1, draw(random, 1, 70), 1, 2, 1};
  limits.modifiers = modifiers;
  Problem p = reference::draw_problem(random, limits);
  p.head_dim = dim[0];
  p.head_dim_v = dim[1];
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  if (draw(random, 0, 9) == 0) p.softmax_scale *= draw(random, 0, 1) == 0 ? -1.0F : 0.0F;
  return p;
}

bool is_modified(const std::string& launch) { return launch.ends_with("_modified"); }

void expect_within_tolerance(bool modifiers, int cases) {
  Random random(test::seed());
  std::map<std::string, int> launches;
  double worst_out = 0, worst_lse = 0;
  for (int n = 0; n < cases; ++n) {
    const Problem p = draw_forward(random, modifiers);
    const Oracle oracle(p, random, Of::forward);
    const int world_size = static_cast<int>(draw(random, 1, 4));
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << world_size << " ranks, layout "
                                      << static_cast<int>(layout) << ": " << reference::describe(p));
    const ForwardResult result = run_forward(oracle, world_size, layout, random);
    worst_out = std::max(worst_out, compare("out", result.out, oracle.out));
    worst_lse = std::max(worst_lse, compare("lse", result.lse, oracle.lse));
    for (const auto& [name, count] : result.launches) {
      if (name.starts_with("forward")) {
        EXPECT_EQ(is_modified(name), choose_forward(p).modified) << name;
      }
      launches[name] += count;
    }
    if (::testing::Test::HasFailure()) return;
  }
  std::cout << cases << " cases; worst error of out " << worst_out << ", of lse " << worst_lse << " of the tolerance\n";
  for (const auto& [name, count] : launches) std::cout << name << ": " << count << " launches\n";
}

// Problems without modifiers take the kernels that know nothing of them.
TEST(PortableForward, IsWithinTheToleranceOfTheOracle) { expect_within_tolerance(false, test::sample(300)); }
TEST(PortableForward, IsWithinTheToleranceWithModifiers) { expect_within_tolerance(true, test::sample(200)); }

Problem simple(DType dtype, std::int64_t seqlen, std::int64_t dim) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.documents = {{0, seqlen, 0, seqlen}};
  p.num_heads_q = 2;
  p.head_dim = p.head_dim_v = dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(dim));
  return p;
}

// A value that is not finite reaches the rows that depend on it: the others are what they are without it, to the bit.
TEST(PortableForward, ValuesThatAreNotFiniteReachOnlyWhatSeesThem) {
  Random random(test::seed());
  constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (int n = 0; n < test::sample(60); ++n) {
    const auto& dim = dims[static_cast<std::size_t>(n) % dims.size()];
    Problem p = simple(static_cast<DType>(n % 3 + 1), draw(random, 40, 150), dim[0]);
    p.head_dim_v = dim[1];
    p.num_heads_q = 1;
    p.causal = draw(random, 0, 1) == 0;
    p.window_left = draw(random, 0, 60);
    p.sharding = Sharding::zigzag;
    const int world_size = static_cast<int>(draw(random, 1, 3));
    const reference::Inputs clean(p, random);
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    Random first(1), second(1);  // the same draws
    const ForwardResult expected = run_forward(clean, world_size, layout, first);
    const char input = "qkv"[draw(random, 0, 2)];
    const double value = std::array{nan, infinity, -infinity}[static_cast<std::size_t>(draw(random, 0, 2))];
    const std::int64_t token = draw(random, 0, p.seqlen_q - 1), width = input == 'v' ? p.head_dim_v : p.head_dim,
                       column = draw(random, 0, width - 1);
    reference::Inputs spoilt = clean;
    (input == 'q'   ? spoilt.q
     : input == 'k' ? spoilt.k
                    : spoilt.v)[static_cast<std::size_t>(token * width + column)] = value;
    const ForwardResult result = run_forward(spoilt, world_size, layout, second);
    SCOPED_TRACE(::testing::Message() << "case " << n << ", " << value << " in " << input << " of token " << token
                                      << ", " << world_size << " ranks, " << reference::describe(p));
    for (std::int64_t i = 0; i < p.seqlen_q; ++i) {
      const bool reached = input == 'q' ? i == token : reference::sees(p, 0, i, token);
      const auto row = static_cast<std::size_t>(i);
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
        const auto at = static_cast<std::size_t>(i * p.head_dim_v + d);
        if (!reached || (input == 'v' && d != column)) {
          ASSERT_EQ(result.out[at], expected.out[at]) << "row " << i << ", column " << d;
        } else if (input == 'v') {  // no weight is 0 here
          ASSERT_EQ(std::isnan(result.out[at]), std::isnan(value)) << "row " << i;
          ASSERT_FALSE(std::isfinite(result.out[at])) << "row " << i;
        } else if (std::isnan(value)) {
          ASSERT_TRUE(std::isnan(result.out[at])) << "row " << i;
        }
      }
      if (!reached || input == 'v') {
        ASSERT_EQ(result.lse[row], expected.lse[row]) << "row " << i;
      }
    }
  }
}

// Keys that nobody sees, behind the padding and outside all windows, may be anything.
TEST(PortableForward, WhatNobodySeesMayBeAnything) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(40); ++n) {
    Problem p = draw_forward(random);
    if (p.kv_lengths.empty())
      for (std::int64_t b = 0; b < p.batch; ++b) p.kv_lengths.push_back(draw(random, 0, p.seqlen_kv));
    reference::Inputs inputs(p, random);
    Random first(2), second(2);
    const ForwardResult expected = run_forward(inputs, 2, Layout::packed, first);
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t j = 0; j < p.seqlen_kv; ++j) {
        bool seen = false;
        for (std::int64_t i = 0; i < p.seqlen_q; ++i) seen = seen || reference::sees(p, b, i, j);
        if (seen) continue;
        for (const auto& [tensor, dim] : {std::pair{&inputs.k, p.head_dim}, {&inputs.v, p.head_dim_v}})
          std::fill_n(tensor->begin() + (b * p.seqlen_kv + j) * p.num_heads_kv * dim, p.num_heads_kv * dim, NAN);
      }
    const ForwardResult result = run_forward(inputs, 2, Layout::packed, second);
    ASSERT_EQ(result.out, expected.out) << reference::describe(p);
    ASSERT_EQ(result.lse, expected.lse) << reference::describe(p);
  }
}

TEST(PortableForward, RowsThatSeeNothingAreZero) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (const int world_size : {1, 3}) {
      Problem p = simple(dtype, 90, 64);
      p.seqlen_kv = 20;
      p.documents = {{0, 90, 0, 20}};
      p.causal = true;  // the first 70 rows come before the first key
      Random random(test::seed());
      const ForwardResult result = run_forward(reference::Inputs(p, random), world_size, Layout::packed, random);
      for (std::size_t i = 0; i < 90; ++i)
        for (std::size_t h = 0; h < 2; ++h) {
          ASSERT_EQ(result.lse[h * 90 + i] == -std::numeric_limits<double>::infinity(), i < 70);
          for (std::size_t d = 0; d < 64; ++d) ASSERT_EQ(result.out[(i * 2 + h) * 64 + d] == 0, i < 70);
        }
    }
}

// Blocks in any order, on one host thread or two: the same bits.
TEST(PortableForward, IsRepeatableToTheBit) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(20); ++n) {
    const Problem p = draw_forward(random);
    const reference::Inputs inputs(p, random);
    const int world_size = static_cast<int>(draw(random, 1, 3));
    const ForwardResult once = run_forward(inputs, world_size, Layout::packed, random),
                        again = run_forward(inputs, world_size, Layout::head_major, random);
    ASSERT_EQ(once.out, again.out) << reference::describe(p);
    ASSERT_EQ(once.lse, again.lse) << reference::describe(p);
  }
}

// Many short documents, of a padded batch, are few launches.
TEST(PortableForward, ShortDocumentsShareLaunches) {
  Problem p = simple(DType::bfloat16, 0, 64);
  p.batch = 3;
  p.documents.clear();
  for (std::int64_t d = 0; d < 100; ++d) p.documents.push_back({3 * d, 3, 3 * d, 3});
  p.seqlen_q = p.seqlen_kv = 300;
  p.kv_lengths = {300, 150, 0};
  p.causal = true;
  Random random(test::seed());
  const Oracle oracle(p, random, Of::forward);
  const ForwardResult result = run_forward(oracle, 1, Layout::packed, random, false);
  compare("out", result.out, oracle.out);
  compare("lse", result.lse, oracle.lse);
  if (test::device::is_emulated()) {
    EXPECT_EQ(result.launches.at("forward_bf16"), 6);
  }
}

TEST(Portable, ChoosesTheLeastThatHasRoomAndPrecision) {
  const auto chosen = [](DType dtype, DType out_dtype, std::int64_t seqlen, std::int64_t dim, std::int64_t dim_v) {
    Problem p = simple(dtype, seqlen, dim);
    p.head_dim_v = dim_v;
    p.out_dtype = out_dtype;
    return choose_forward(p);
  };
  constexpr DType f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  EXPECT_EQ(chosen(bf16, bf16, 4096, 128, 128), (Variant{bf16, 128, false, false}));
  EXPECT_EQ(chosen(bf16, bf16, 4096, 65, 40), (Variant{bf16, 128, false, false}));
  EXPECT_EQ(chosen(bf16, bf16, 4096, 64, 129), (Variant{bf16, 256, false, false}));
  EXPECT_EQ(chosen(f16, bf16, 4096, 64, 64), (Variant{f16, 64, false, false}));
  EXPECT_EQ(chosen(bf16, f16, 4096, 64, 64), (Variant{bf16, 64, true, false}));
  EXPECT_EQ(chosen(f16, f32, 4096, 64, 64), (Variant{f16, 64, true, false}));
  EXPECT_EQ(chosen(f32, f32, 4096, 192, 128), (Variant{f32, 256, false, false}));
  EXPECT_EQ(chosen(f32, bf16, 31, 64, 64), (Variant{f32, 64, true, false}));
  EXPECT_EQ(chosen(bf16, bf16, 4096, 8, 64), (Variant{bf16, 64, true, false}));
  Problem p = simple(bf16, 4096, 64);
  p.grad_dtype = f32;  // which would show that the forward pass has rounded weights
  EXPECT_EQ(choose_forward(p), (Variant{bf16, 64, true, false}));
}

TEST(Portable, RefusesWithTheNumbers) {
  Problem p = simple(DType::float32, 10, 64);
  EXPECT_EQ(portable_refusal(p), "");
  p.head_dim = p.head_dim_v = 256;
  EXPECT_EQ(portable_refusal(p), "");
  p.head_dim_v = 257;
  EXPECT_EQ(portable_refusal(p), "head_dim_v is 257; the portable engine takes at most 256");
  p.head_dim = 320;
  EXPECT_EQ(portable_refusal(p), "head_dim is 320; the portable engine takes at most 256");
}

}  // namespace
}  // namespace ringattn::cuda
