// Corners of the ring, one by one: fewer tokens than ranks, empty documents, rows without keys, values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::Oracle;
using reference::Random;

Problem simple(std::int64_t seqlen_q, std::int64_t seqlen_kv) {
  Problem p;
  p.seqlen_q = seqlen_q;
  p.seqlen_kv = seqlen_kv;
  p.num_heads_q = 4;
  p.num_heads_kv = 2;
  p.head_dim = p.head_dim_v = 24;
  p.softmax_scale = 0.2F;
  p.documents = {{0, seqlen_q, 0, seqlen_kv}};
  return p;
}

void check(const Problem& problem, int world_size) {
  Random random(7);
  int combination = 0;
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped})
    for (const bool causal : {false, true})
      for (const bool bottom_right : {false, true}) {
        if (!test::sampled(combination++, 3)) continue;
        Problem p = problem;
        p.sharding = sharding;
        p.stripe = 2;
        p.causal = causal;
        p.bottom_right = bottom_right;
        const Oracle oracle(p, random);
        test::expect_within(test::run_on(test::Ranks(world_size), oracle), oracle);
      }
}

TEST(Edge, ThirtyOneTokensOnEightRanks) { check(simple(31, 31), 8); }
TEST(Edge, ThreeTokensOnEightRanks) { check(simple(3, 3), 8); }
TEST(Edge, OneTokenOnOneRank) { check(simple(1, 1), 1); }
TEST(Edge, NoQueries) { check(simple(0, 20), 3); }
TEST(Edge, NoKeys) { check(simple(20, 0), 3); }
TEST(Edge, NothingAtAll) { check(simple(0, 0), 2); }

// A few queries: the keys of a step are shared out in splits.
TEST(Edge, FewQueriesManyKeys) {
  for (const std::int64_t queries : {1, 7}) {
    Problem p = simple(queries, 700);
    check(p, 1);
    p.softcap = 5;
    p.dtype = queries == 1 ? DType::float16 : DType::bfloat16;
    check(p, 3);
  }
}
TEST(Edge, FewQueriesManyKeysMasked) {
  Problem p = simple(5, 800);
  p.window_left = p.window_right = 350;
  check(p, 2);
  p.batch = 2;
  p.kv_lengths = {300, 799};
  check(p, 1);
  p = simple(17, 900);
  p.documents = {{0, 5, 0, 600}, {5, 0, 600, 30}, {5, 12, 630, 270}};
  check(p, 1);
}
// What is not finite in keys that a row does not see is in another split, or another block, or its own.
TEST(Edge, FewQueriesAndValuesThatAreNotFinite) {
  constexpr std::int64_t queries = 6, keys = 700;
  Problem p = simple(queries, keys);
  p.causal = true;
  for (const std::int64_t spoilt : {keys - 1, keys - 4})
    for (const bool of_v : {false, true}) {
      Random random(23);
      const Oracle clean(p, random);
      Oracle oracle = clean;
      auto& tensor = of_v ? oracle.v : oracle.k;
      tensor[static_cast<std::size_t>(spoilt * p.num_heads_kv * p.head_dim)] = std::numeric_limits<double>::infinity();
      const test::Results expected = test::run_on(test::Ranks(1), clean),
                          results = test::run_on(test::Ranks(1), oracle);
      for (std::int64_t i = 0; i < queries; ++i)
        for (std::int64_t n = 0; n < p.num_heads_q * p.head_dim_v; ++n) {
          const auto at = static_cast<std::size_t>(i * p.num_heads_q * p.head_dim_v + n);
          if (!reference::sees(p, 0, i, spoilt)) {
            ASSERT_EQ(results.out[at], expected.out[at]) << "row " << i;
          }
        }
      EXPECT_FALSE(std::isfinite(results.out[static_cast<std::size_t>((queries - 1) * p.num_heads_q * p.head_dim_v)]));
    }
}

TEST(Edge, EmptyDocuments) {
  Problem p = simple(40, 40);
  p.documents = {{0, 0, 0, 0}, {0, 13, 0, 13}, {13, 0, 13, 9}, {13, 20, 22, 0}, {33, 7, 22, 18}, {40, 0, 40, 0}};
  check(p, 1);
  check(p, 4);
}

TEST(Edge, RowsWithoutKeys) {
  Problem p = simple(40, 12);
  p.causal = true;
  p.bottom_right = true;  // the first 28 queries come before the first key
  Random random(3);
  const Oracle oracle(p, random);
  for (const int world_size : {1, 3, 8}) {
    const test::Results results = test::run_on(test::Ranks(world_size), oracle);
    test::expect_within(results, oracle);
    for (std::size_t head = 0; head < 4; ++head)
      for (std::size_t i = 0; i < 28; ++i)
        EXPECT_EQ(results.lse[head * 40 + i], -std::numeric_limits<double>::infinity());
    for (std::size_t n = 0; n < 28 * 4 * 24; ++n) {
      EXPECT_EQ(results.out[n], 0.0);
      EXPECT_EQ(results.dq[n], 0.0);
    }
  }
}

// dS is exactly 0 where P is 1: dout.v and delta are summed alike.
TEST(Edge, OneKeyEach) {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const std::int64_t head_dim : {40, 128}) {
      Problem p = simple(50, 50);
      p.dtype = p.out_dtype = p.grad_dtype = dtype;
      p.head_dim = p.head_dim_v = head_dim;
      p.window_left = p.window_right = 0;
      Random random(17);
      const Oracle oracle(p, random);
      const test::Results results = test::run_on(test::Ranks(2), oracle);
      test::expect_within(results, oracle);
      for (const double x : results.dq) ASSERT_EQ(x, 0);
      for (const double x : results.dk) ASSERT_EQ(x, 0);
    }
}

TEST(Edge, PaddingOfEveryLength) {
  Problem p = simple(18, 18);
  p.batch = 4;
  p.kv_lengths = {0, 1, 17, 18};
  check(p, 1);
  check(p, 4);
}

// A value that is not finite in one row of one input reaches the results that depend on it, and no others.
TEST(Edge, ValuesThatAreNotFiniteReachOnlyWhatSeesThem) {
  constexpr std::int64_t seqlen = 150;  // several tiles of rows
  enum Input { q, k, v, dout };
  int combination = 0;
  for (const double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (const Input input : {q, k, v, dout})
      for (const auto& [world_size, dtype, head_dim] : {std::tuple{1, DType::float32, 24},
                                                        {3, DType::float32, 40},
                                                        {1, DType::float32, 75},
                                                        {1, DType::bfloat16, 40},
                                                        {3, DType::bfloat16, 75}}) {
        if (!test::sampled(combination++, 3)) continue;
        Problem p = simple(seqlen, seqlen);
        p.dtype = p.out_dtype = p.grad_dtype = dtype;
        p.head_dim = p.head_dim_v = head_dim;
        p.num_heads_q = p.num_heads_kv = 1;
        p.causal = true;
        p.window_left = 60;
        p.sharding = Sharding::zigzag;
        Random random(11);
        Oracle oracle(p, random);
        constexpr std::int64_t token = 71;  // the second of a pair
        std::vector<double>* const tensors[] = {&oracle.q, &oracle.k, &oracle.v, &oracle.dout};
        (*tensors[input])[static_cast<std::size_t>(token * p.head_dim + 5)] = poison;
        const test::Results results = test::run_on(test::Ranks(world_size), oracle);

        // A row of out and dq depends on its own q and dout and on the keys it sees; a row of dk and dv on the queries
        // that see it and, through their out and lse, on all that those see.
        const auto sees = [&](std::int64_t i, std::int64_t j) { return reference::sees(p, 0, i, j); };
        const auto query_touched = [&](std::int64_t i) {
          return input == q || input == dout ? i == token : sees(i, token);
        };
        const auto key_touched = [&](std::int64_t j) {
          for (std::int64_t i = 0; i < seqlen; ++i)
            if (sees(i, j) && query_touched(i)) return true;
          return false;
        };
        const auto expect_clean = [&](const char* name, const std::vector<double>& ours,
                                      const reference::Expected& expected, const auto& touched, std::int64_t width) {
          for (std::int64_t i = 0; i < seqlen; ++i)
            for (std::int64_t d = 0; d < width; ++d) {
              const auto n = static_cast<std::size_t>(i * width + d);
              if (!touched(i)) {
                ASSERT_LE(std::abs(ours[n] - expected.exact[n]), expected.tolerance)
                    << name << " row " << i << ", input " << input;
              }
            }
        };
        const auto out_touched = [&](std::int64_t i) { return input != dout && query_touched(i); };
        expect_clean("out", results.out, oracle.out, out_touched, p.head_dim_v);
        expect_clean("lse", results.lse, oracle.lse, out_touched, 1);
        expect_clean("dq", results.dq, oracle.dq, query_touched, p.head_dim);
        expect_clean("dk", results.dk, oracle.dk, key_touched, p.head_dim);
        expect_clean("dv", results.dv, oracle.dv, key_touched, p.head_dim_v);
        if (input == v) {
          EXPECT_FALSE(std::isfinite(results.out[static_cast<std::size_t>(token * p.head_dim_v + 5)]));
        }
        if (HasFailure()) return;
      }
}

// One key, repeated 2^32 times: the last queries see a window far beyond position 2^31.
TEST(Edge, PositionsBeyondTwoToTheThirtyOne) {
  constexpr std::int64_t keys = std::int64_t{1} << 32, queries = 5, window = 99;
  const test::Ranks ranks(1);
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = queries;
  desc.seqlen_kv = keys;
  desc.head_dim = 2;
  desc.mask = RA_MASK_CAUSAL;
  desc.window_left = window;
  desc.softmax_scale = 1.0F;
  float q[2 * queries], k[2] = {0.5F, 0.25F}, v[2] = {3.0F, -7.0F}, out[2 * queries] = {}, lse[queries] = {};
  for (float& x : q) x = 1.0F;
  ra_forward_args args;
  ra_init_forward_args(&args, sizeof args);
  args.q = {q, 0, 0, 0, sizeof q};
  args.k = {k, 2, RA_STRIDE_REPEAT, 2, sizeof k};
  args.v = {v, 2, RA_STRIDE_REPEAT, 2, sizeof v};
  args.out = {out, 0, 0, 0, sizeof out};
  args.lse = lse;
  test::Error error;
  ASSERT_EQ(ra_forward(ranks[0], &desc, &args, &error), RA_STATUS_SUCCESS) << error;
  for (std::int64_t i = 0; i < queries; ++i) {
    EXPECT_FLOAT_EQ(lse[i], 0.75F + std::log(static_cast<float>(window + 1)));
    EXPECT_FLOAT_EQ(out[2 * i], 3.0F);
    EXPECT_FLOAT_EQ(out[2 * i + 1], -7.0F);
  }
}

// A gradient of the oracle that is not a number is as wrong as can be, whichever entries are looked at.
TEST(Edge, FiniteDifferencesSeeNaN) {
  Random random(13);
  Oracle oracle(simple(6, 6), random);
  ASSERT_LE(reference::finite_difference_error(oracle, random, 1), 1e-5);
  oracle.dk.exact.back() = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(reference::finite_difference_error(oracle, random, 1) <= 1e-5);
}

// A backward pass whose errors of scores do not cancel those of lse, as lse has none, is as good as one where they do.
TEST(Edge, GradientsBehindAnExactForwardPassHoldTheToleranceRule) {
  Random random(11);
  for (int n = 0; n < test::sample(40); ++n) {
    Problem p = simple(9, 9);
    p.head_dim = p.head_dim_v = 204;
    p.causal = true;
    const Oracle oracle(p, random);
    const auto single = [](const std::vector<double>& values) {
      return std::vector<float>(values.begin(), values.end());
    };
    const std::vector<float> q = single(oracle.q), k = single(oracle.k), v = single(oracle.v);
    const reference::Result<double> exact = reference::forward(p, oracle.q, oracle.k, oracle.v);
    const auto gradients = reference::backward(p, q, k, v, {single(exact.out), single(exact.lse)}, single(oracle.dout));
    const auto error_of = [](const std::vector<float>& found, const reference::Expected& expected) {
      double worst = 0;
      for (std::size_t i = 0; i < found.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(found[i]) - expected.exact[i]) / expected.tolerance);
      return worst;
    };
    EXPECT_LE(error_of(gradients.dq, oracle.dq), 1);
    EXPECT_LE(error_of(gradients.dk, oracle.dk), 1);
    EXPECT_LE(error_of(gradients.dv, oracle.dv), 1);
  }
}

TEST(Edge, SelfTestPasses) {
  for (const int world_size : {1, 2, 4}) {
    const test::Ranks ranks(world_size);
    ranks.run([](std::int32_t, ra_context* context) {
      test::Error error;
      EXPECT_EQ(ra_run_self_test(context, test::sample(100), 5, &error), RA_STATUS_SUCCESS) << error;
    });
  }
}

}  // namespace
}  // namespace ringattn
