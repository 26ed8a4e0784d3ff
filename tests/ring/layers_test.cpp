// Mask slices and dilated attention, with every other kind of mask and with what changes scores and weights, against fp64.
#include <gtest/gtest.h>

#include <array>
#include <iostream>

#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

constexpr std::array world_sizes{1, 2, 3, 4, 8};

void sweep(int problems, const reference::ProblemLimits& limits) {
  const std::uint64_t seed = test::seed();
  int done = 0;
  for (std::size_t w = 0; w < world_sizes.size(); ++w) {
    const test::Ranks ranks(world_sizes[w]);
    for (int n = 0; n < problems; ++n, ++done) {
      Random random(seed * 1'000'003 + w * 10'007 + static_cast<std::uint64_t>(n));
      reference::ProblemLimits own = limits;
      own.seqlen = draw(random, 1, limits.seqlen);
      const reference::Oracle oracle(reference::draw_problem(random, own), random);
      SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << ranks.world_size() << " ranks");
      test::expect_within(test::run_on(ranks, oracle), oracle);
      if (::testing::Test::HasFailure()) return;
    }
  }
  std::cout << done << " problems\n";
}

TEST(Layers, AlikeWithPlainScores) { sweep(test::sample(200), {.seqlen = 60, .head_dim = 24, .layers = true}); }

TEST(Layers, AlikeWithModifiers) {
  sweep(test::sample(200), {.seqlen = 60, .head_dim = 24, .modifiers = true, .layers = true});
}

// Engines take keys in blocks of a few hundred.
TEST(Layers, OverSeveralBlocksOfKeys) {
  sweep(test::full() ? 8 : 1,
        {.batch = 1, .seqlen = 900, .num_heads_kv = 1, .group = 3, .head_dim = 24, .modifiers = true, .layers = true});
}

}  // namespace
}  // namespace ringattn
