// What changes scores and weights, alone and in every combination, on problems of every other kind against fp64.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "plan/plan.h"
#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

constexpr std::array world_sizes{1, 2, 3, 4, 8};
enum Modifier { alibi = 1, key_bias = 2, sinks = 4, dropout = 8, softcap = 16, combinations = 32 };

void modify(Problem& p, int which, Random& random) {
  if ((which & alibi) != 0)
    for (std::int64_t h = 0; h < p.num_heads_q; ++h)
      p.alibi_slopes.push_back(std::ldexp(draw(random, 0, 7) == 0 ? -1.0F : 1.0F, -static_cast<int>(h % 8) - 1));
  p.has_key_bias = (which & key_bias) != 0;
  p.num_sinks = (which & sinks) != 0 ? draw(random, 1, 3) : 0;
  if ((which & dropout) != 0)
    p.dropout = {static_cast<float>(draw(random, 1, 9)) / 10, static_cast<std::uint64_t>(random()),
                 static_cast<std::uint64_t>(random())};
  p.softcap = (which & softcap) != 0 ? static_cast<float>(draw(random, 2, 30)) : 0;
}

// Every combination on every number of ranks, `rounds` times; or one in `every`, others on other numbers of ranks.
void sweep(int rounds, const reference::ProblemLimits& limits, int every = 1) {
  const std::uint64_t seed = test::seed();
  for (std::size_t w = 0; w < world_sizes.size(); ++w) {
    const test::Ranks ranks(world_sizes[w]);
    for (int n = 0; n < rounds * combinations; ++n) {
      const int turn = n + static_cast<int>(w);
      if (turn % every != 0 || !test::sampled(turn / every, 5)) continue;
      Random random(seed * 1'000'003 + w * 10'007 + static_cast<std::uint64_t>(n));
      Problem problem = reference::draw_problem(random, limits);
      modify(problem, n % combinations, random);
      const reference::Oracle oracle(problem, random);
      SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << ranks.world_size() << " ranks");
      test::expect_within(test::run_on(ranks, oracle), oracle);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(Modifiers, InEveryCombination) { sweep(test::full() ? 20 : 1, {}); }

// Engines take keys in blocks of a few hundred.
TEST(Modifiers, OverSeveralBlocksOfKeys) {
  sweep(1, {.batch = 1, .seqlen = 900, .num_heads_kv = 1, .group = 2, .head_dim = 24}, test::full() ? 1 : 4);
}

// Parts of a call begin at other entries and heads than the first.
TEST(Modifiers, InParts) {
  const std::uint64_t seed = test::seed();
  const test::Ranks ranks(3);
  for (int n = 0; n < test::sample(64); ++n) {
    Random random(seed * 7'919 + static_cast<std::uint64_t>(n));
    Problem problem = reference::draw_problem(random, {});
    problem.batch = 4;
    if (!problem.kv_lengths.empty()) problem.kv_lengths.resize(4, problem.seqlen_kv);
    problem.num_heads_kv = 2;
    problem.num_heads_q = 4;
    problem.schedule = Schedule::all_gather;
    problem.gather_bytes = n % 2 == 0 ? 1 : std::int64_t{1} << draw(random, 8, 16);
    modify(problem, n % combinations, random);
    const reference::Oracle oracle(problem, random);
    SCOPED_TRACE(::testing::Message() << "problem " << n);
    test::expect_within(test::run_on(ranks, oracle), oracle);
    if (::testing::Test::HasFailure()) return;
  }
}

// It costs 4 bytes a key, and a chunk of 2-byte numbers that ends between is filled up; without one nothing changes.
TEST(Modifiers, AKeyBiasTravelsWithItsChunk) {
  Problem p;
  p.batch = 2;
  p.seqlen_q = p.seqlen_kv = 30;
  p.head_dim = 3;
  p.head_dim_v = 2;
  p.documents = {{0, 30, 0, 30}};
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      p.dtype = dtype;
      p.schedule = Schedule::ring;
      p.has_key_bias = false;
      const Plan without(p, 2, 0, pass);
      p.has_key_bias = true;
      const Plan with(p, 2, 0, pass);
      EXPECT_EQ(with.totals().hops, without.totals().hops);
      EXPECT_EQ(with.totals().hop_bytes - without.totals().hop_bytes, 2 * 15 * 4);
      EXPECT_EQ(with.key_bias_offset(15), without.chunk_bytes(15));
    }
  p.batch = 1;
  const Plan odd(p, 2, 0, Pass::forward);  // bfloat16
  EXPECT_EQ(odd.key_bias_offset(15), 15 * 5 * 2 + 2);
  EXPECT_EQ(odd.chunk_bytes(15), odd.key_bias_offset(15) + 15 * 4);
}

}  // namespace
}  // namespace ringattn
