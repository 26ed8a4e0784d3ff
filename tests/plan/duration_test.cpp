// Times worked out from plans: what is counted in steps adds up to the problem, bounds hold for every problem, and where the answer is
// known in closed form it is that.
#include "plan/duration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::draw_problem;
using reference::Random;

constexpr double no_limit = std::numeric_limits<double>::infinity();

Problem causal(std::int64_t seqlen, Sharding sharding) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.sharding = sharding;
  p.documents = {{0, seqlen, 0, seqlen}};
  p.causal = true;
  return p;
}

double step_pairs(const Problem& p, int world_size, int rank) {
  const Plan plan(p, world_size, rank, Pass::forward);
  double pairs = 0;
  for (const Moment& m : plan.moments()) pairs += count_step_pairs(plan, m);
  return pairs;
}

TEST(Duration, StepsHaveThePairsOfTheirRank) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(5'000); ++n) {
    const Problem p = draw_problem(random, {.batch = 3, .seqlen = draw(random, 1, 200)});
    const int world_size = static_cast<int>(draw(random, 1, 9)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    ASSERT_EQ(step_pairs(p, world_size, rank), PassPlan(p, world_size, rank, Pass::forward).visible_pairs())
        << reference::describe(p) << " on rank " << rank << " of " << world_size;
  }
}

// Where not all rows are looked at.
TEST(Duration, StepsHaveNearlyThePairsOfLongShards) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(300); ++n) {
    Problem p = causal(draw(random, 100'000, 1'000'000), static_cast<Sharding>(draw(random, 0, 2)));
    p.stripe = draw(random, 1, 100);
    if (draw(random, 0, 1) == 1) p.window_left = draw(random, 1'000, 50'000);
    const int world_size = static_cast<int>(draw(random, 1, 9)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    const double pairs = PassPlan(p, world_size, rank, Pass::forward).visible_pairs();
    ASSERT_NEAR(step_pairs(p, world_size, rank), pairs, 0.01 * pairs)
        << reference::describe(p) << " on rank " << rank << " of " << world_size;
  }
}

// No call is shorter than what its rank computes, nor than its bytes on the link; none is longer than if all ranks did everything one
// after the other; and no faster machine makes it longer.
TEST(Duration, IsWithinItsBounds) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(2'000); ++n) {
    const Problem p = draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 60)});
    const int world_size = static_cast<int>(draw(random, 1, 6)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    const Pass pass = draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward;
    const Rates rates{std::exp2(static_cast<double>(draw(random, 10, 30))),
                      std::exp2(static_cast<double>(draw(random, 5, 25))), draw(random, 0, 1) == 0 ? 0 : 1e-4};
    const Duration d = estimate_duration(p, world_size, rank, pass, rates);
    const PassPlan own(p, world_size, rank, pass);
    const double computed = own.visible_pairs() * flops_per_pair(p, pass) / rates.flops;
    double all = world_size > 1 ? 2 * rates.link_seconds : 0;
    for (int r = 0; r < world_size; ++r) {
      const PassPlan plan(p, world_size, r, pass);
      all += plan.visible_pairs() * flops_per_pair(p, pass) / rates.flops +
             static_cast<double>(plan.totals().hops) * rates.link_seconds +
             2 * static_cast<double>(plan.totals().hop_bytes) / rates.link_bytes;
    }
    const double slack = 1e-9 * all;
    SCOPED_TRACE(testing::Message() << reference::describe(p) << " on rank " << rank << " of " << world_size);
    ASSERT_NEAR(d.compute_seconds, computed, slack);
    ASSERT_GE(d.seconds + slack, d.compute_seconds);
    ASSERT_GE(d.seconds + slack, static_cast<double>(own.totals().hop_bytes) / rates.link_bytes);
    ASSERT_LE(d.seconds, all + slack);
    for (double Rates::*const faster : {&Rates::flops, &Rates::link_bytes}) {
      Rates better = rates;
      better.*faster *= 2;
      ASSERT_LE(estimate_duration(p, world_size, rank, pass, better).seconds, d.seconds + slack);
    }
  }
}

// Every rank sees everything, and hands P - 1 chunks on: until a chunk travels for longer than a rank computes with it, transfers hide.
TEST(Duration, HasItsKneeWhereAChunkTravelsForAsLongAsItIsComputedWith) {
  for (const int world_size : {2, 4, 8}) {
    Problem p = causal(4096, Sharding::contiguous);
    p.causal = false;
    p.num_chunks = 1;
    p.schedule = Schedule::ring;
    const double flops = 1e9;
    const Plan plan(p, world_size, 0, Pass::forward);
    const auto bytes = static_cast<double>(plan.chunk_bytes(plan.longest_chunk()));
    const double shard = 4096.0 / world_size, step = shard * shard * flops_per_pair(p, Pass::forward) / flops;
    const double knee = bytes / step;
    const auto seconds = [&](double link_bytes) {
      return estimate_duration(p, world_size, 0, Pass::forward, {flops, link_bytes, 0}).seconds;
    };
    const double computed = world_size * step;
    EXPECT_NEAR(seconds(no_limit), computed, 1e-9 * computed);
    EXPECT_NEAR(seconds(1.01 * knee), computed, 1e-9 * computed);
    EXPECT_GT(seconds(0.9 * knee), 1.01 * computed);
    // Far below it: the transfers, one after the other, and the step behind the last.
    EXPECT_NEAR(seconds(0.01 * knee), (world_size - 1) * bytes / (0.01 * knee) + step, 1e-2 * seconds(0.01 * knee));
  }
}

}  // namespace
}  // namespace ringattn
