// The oracle's modifiers: gradients by finite differences, and each modifier by what it amounts to without it.
#include "engine/reference/oracle.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/random.h"

namespace ringattn::reference {
namespace {

ProblemLimits small_with_modifiers() {
  return {.batch = 2, .seqlen = 20, .num_heads_kv = 2, .group = 2, .head_dim = 12, .modifiers = true};
}

TEST(Oracle, GradientsAreThoseOfFiniteDifferences) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(300); ++n) {
    const Problem p = draw_problem(random, small_with_modifiers());
    SCOPED_TRACE(describe(p));
    const Oracle oracle(p, random);
    ASSERT_LE(finite_difference_error(oracle, random, 2), 1e-5);
  }
}

TEST(Oracle, DrawsEveryModifierApartFromTheProblem) {
  int alibi = 0, bias = 0, sinks = 0, dropout = 0;
  const std::uint64_t seed = test::seed();
  constexpr int draws = 300;
  for (std::uint64_t n = 0; n < draws; ++n) {
    Random with(seed * 1000 + n), without = with;
    ProblemLimits limits = small_with_modifiers();
    Problem p = draw_problem(with, limits);
    alibi += !p.alibi_slopes.empty();
    bias += p.has_key_bias;
    sinks += p.num_sinks > 0;
    dropout += p.dropout.probability > 0;
    p.alibi_slopes.clear();
    p.has_key_bias = false;
    p.num_sinks = 0;
    p.dropout = {};
    limits.modifiers = false;
    ASSERT_EQ(p, draw_problem(without, limits));
    ASSERT_EQ(with(), without());
  }
  for (const int count : {alibi, bias, sinks, dropout}) EXPECT_GE(count, draws / 5);
}

// A problem without modifiers of one head, all of whose queries see all keys.
Problem one_head(std::int64_t seqlen_q, std::int64_t seqlen_kv) {
  Problem p;
  p.seqlen_q = seqlen_q;
  p.seqlen_kv = seqlen_kv;
  p.head_dim = p.head_dim_v = 8;
  p.softmax_scale = 0.3F;
  p.documents = {{0, seqlen_q, 0, seqlen_kv}};
  return p;
}

void expect_equal(const std::vector<double>& a, const std::vector<double>& b, const char* name) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_TRUE(a[i] == b[i] || std::abs(a[i] - b[i]) <= 1e-12) << name << "[" << i << "]: " << a[i] << ", " << b[i];
}

// Sinks are keys whose values and whose products with queries are 0, and whose bias is the logit.
TEST(Oracle, SinksAreKeysWithoutValues) {
  Random random(test::seed());
  constexpr std::int64_t keys = 9, num_sinks = 3;
  Problem p = one_head(7, keys);
  p.num_sinks = num_sinks;
  const Inputs inputs(p, random);
  Problem longer = one_head(7, keys + num_sinks);
  longer.has_key_bias = true;
  std::vector<double> k = inputs.k, v = inputs.v, key_bias(keys, 0.0);
  k.resize(static_cast<std::size_t>((keys + num_sinks) * p.head_dim));
  v.resize(k.size());
  key_bias.insert(key_bias.end(), inputs.sinks.begin(), inputs.sinks.end());

  const Modifiers<double> of_sinks{{}, inputs.sinks}, of_keys{key_bias, {}};
  const auto ours = forward(p, inputs.q, inputs.k, inputs.v, of_sinks);
  const auto theirs = forward(longer, inputs.q, k, v, of_keys);
  expect_equal(ours.out, theirs.out, "out");
  expect_equal(ours.lse, theirs.lse, "lse");
  const auto our_gradients = backward(p, inputs.q, inputs.k, inputs.v, ours, inputs.dout, of_sinks);
  auto their_gradients = backward(longer, inputs.q, k, v, theirs, inputs.dout, of_keys);
  their_gradients.dk.resize(our_gradients.dk.size());
  their_gradients.dv.resize(our_gradients.dv.size());
  expect_equal(our_gradients.dq, their_gradients.dq, "dq");
  expect_equal(our_gradients.dk, their_gradients.dk, "dk");
  expect_equal(our_gradients.dv, their_gradients.dv, "dv");
}

TEST(Oracle, OnlyTheSinksOfARowWithoutKeysAreItsLse) {
  Random random(test::seed());
  Problem p = one_head(5, 0);
  p.num_sinks = 2;
  const Inputs inputs(p, random);
  const auto result = forward(p, inputs.q, inputs.k, inputs.v, {{}, {1.5, -0.5}});
  for (const double lse : result.lse) EXPECT_NEAR(lse, std::log(std::exp(1.5) + std::exp(-0.5)), 1e-12);
  for (const double out : result.out) EXPECT_EQ(out, 0);
}

TEST(Oracle, ABiasOfMinusInfinityHidesAKey) {
  Random random(test::seed());
  Problem p = one_head(6, 10);
  const Inputs inputs(p, random);
  Modifiers<double> m{std::vector<double>(10, 0.0), {}};
  std::fill(m.key_bias.begin() + 4, m.key_bias.end(), -std::numeric_limits<double>::infinity());
  p.has_key_bias = true;
  const auto biased = forward(p, inputs.q, inputs.k, inputs.v, m);
  p.has_key_bias = false;
  p.kv_lengths = {4};
  const auto hidden = forward(p, inputs.q, inputs.k, inputs.v);
  expect_equal(biased.out, hidden.out, "out");
  expect_equal(biased.lse, hidden.lse, "lse");
}

// The only query of a document at its end, bottom right, or at its beginning.
TEST(Oracle, AlibiCountsFromTheKeyThatAQueryFaces) {
  Random random(test::seed());
  constexpr std::int64_t first = 3, length = 8, behind = 4, keys = first + length + behind;
  for (const bool bottom_right : {false, true}) {
    Problem p = one_head(3, keys);
    p.documents = {{0, 1, 0, first}, {1, 1, first, length}, {2, 1, first + length, behind}};
    p.bottom_right = bottom_right;
    const Inputs inputs(p, random);
    Modifiers<double> m{std::vector<double>(keys, 0.0), {}};
    for (const Document& d : p.documents)
      for (std::int64_t j = 0; j < d.kv_length; ++j)
        m.key_bias[static_cast<std::size_t>(d.kv_begin + j)] =
            -0.25 * static_cast<double>(bottom_right ? d.kv_length - 1 - j : j);
    Problem biased = p;
    biased.has_key_bias = true;
    p.alibi_slopes = {0.25F};
    const auto ours = forward(p, inputs.q, inputs.k, inputs.v),
               theirs = forward(biased, inputs.q, inputs.k, inputs.v, m);
    expect_equal(ours.out, theirs.out, "out");
    expect_equal(ours.lse, theirs.lse, "lse");
  }
}

// Dropout leaves lse alone, and out is on average what it is without.
TEST(Oracle, DropoutKeepsTheMean) {
  Random random(test::seed());
  Problem p = one_head(4, 12);
  const Inputs inputs(p, random);
  const auto without = forward(p, inputs.q, inputs.k, inputs.v);
  std::vector<double> mean(without.out.size());
  constexpr int seeds = 4000;
  for (int seed = 0; seed < seeds; ++seed) {
    p.dropout = {0.3F, static_cast<std::uint64_t>(seed), 0};
    const auto with = forward(p, inputs.q, inputs.k, inputs.v);
    ASSERT_EQ(with.lse, without.lse);
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += with.out[i] / seeds;
  }
  for (std::size_t i = 0; i < mean.size(); ++i) EXPECT_NEAR(mean[i], without.out[i], 0.05) << "out[" << i << "]";
}

}  // namespace
}  // namespace ringattn::reference
