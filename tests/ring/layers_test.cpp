// Mask slices and dilated attention through the ring, against the oracle.
#include <gtest/gtest.h>

#include <iostream>
#include <mutex>

#include "engine/reference/oracle.h"
#include "support/oracle_run.h"
#include "support/passes.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Oracle;
using reference::Random;

test::Results run(const Oracle& oracle, int world_size) {
  const Problem& p = oracle.problem;
  test::Results results = test::empty_results(oracle);
  std::mutex mutex;
  const auto as_it_is = [](Transport& transport, int) -> Transport& { return transport; };
  test::run_passes(oracle, world_size, 1, as_it_is,
                   [&](int, test::detail::Shards& shards, const std::vector<float>& lse) {
                     const std::lock_guard lock(mutex);
                     test::join_results(p, shards, lse, results);
                   });
  return results;
}

TEST(Layers, AgreeWithTheOracle) {
  Random random(test::seed());
  const int problems = test::sample(600);
  for (int n = 0; n < problems; ++n) {
    const Problem p = reference::draw_problem(random, {.seqlen = draw(random, 1, 60), .head_dim = 24, .layers = true});
    const int world_size = static_cast<int>(draw(random, 1, 5));
    const Oracle oracle(p, random);
    SCOPED_TRACE("problem " + std::to_string(n) + " on " + std::to_string(world_size) + " ranks");
    test::expect_within(run(oracle, world_size), oracle);
    if (HasFailure()) return;
  }
  std::cout << problems << " problems\n";
}

}  // namespace
}  // namespace ringattn
