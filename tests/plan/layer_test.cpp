// Layers of mask slices and dilated branches, by enumeration: together they compute each pair as often as the definition has it, and
// what travels is what somebody needs.
#include "plan/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <set>
#include <vector>

#include "engine/reference/oracle.h"
#include "plan/pass_plan.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

TEST(Layer, KeptPositionsAreThoseOfTheIntersection) {
  Random random(test::seed());
  const int samples = test::sample(100'000);
  for (int n = 0; n < samples; ++n) {
    Piece piece;
    const std::int64_t block = draw(random, 1, 9);
    piece.run = {.start = draw(random, -5, 20),
                 .block = block,
                 .stride = block * draw(random, 1, 5),
                 .length = draw(random, 1, 60)};
    piece.first = draw(random, 0, piece.run.length - 1);
    piece.length = draw(random, 1, piece.run.length - piece.first);
    piece.row = draw(random, 0, 100);
    const std::int64_t base = draw(random, 0, 30), spacing = draw(random, 1, 8), length = draw(random, 0, 40);
    Share kept;
    add_kept(piece, base, spacing, length, 7, kept);
    std::set<std::pair<std::int64_t, std::int64_t>> expected, got;  // (position, row)
    for (std::int64_t i = 0; i < piece.length; ++i) {
      const std::int64_t distance = piece.position(i) - base;
      if (distance >= 0 && distance % spacing == 0 && distance / spacing < length)
        expected.insert({distance / spacing, piece.row + i});
    }
    for (const Piece& part : kept) {
      EXPECT_EQ(part.document, 7);
      for (std::int64_t i = 0; i < part.length; ++i) {
        const bool is_new = got.insert({part.position(i), part.row + i * part.step}).second;
        ASSERT_TRUE(is_new) << "sample " << n;
        ASSERT_EQ(part.count_below(part.position(i)), i) << "sample " << n;
        ASSERT_EQ(part.count_below(part.position(i) + 1), i + 1) << "sample " << n;
      }
    }
    ASSERT_EQ(got, expected) << "sample " << n << ": block " << block << ", stride " << piece.run.stride << ", base "
                             << base << ", spacing " << spacing;
  }
}

// Adds how often each (entry, head, query, key) is computed by one rank's layer.
void count_pairs(const Problem& p, const LayerPlan& layer, std::vector<int>& count) {
  const Plan& plan = layer.plan;
  for (const Moment& moment : plan.moments()) {
    if (!moment.computes) continue;
    for (const StepItems step = plan.items(moment, false); const WorkItem& item : step.items)
      for (std::int64_t b = 0; b < p.batch; ++b)
        for (const Piece& queries : item.queries)
          for (const Piece& keys : item.keys)
            for (std::int64_t i = 0; i < queries.length; ++i) {
              const Interval seen = item.visible(queries, i, keys, p.kv_length(b));
              const std::int64_t query = item.q_begin + queries.position(i) * item.spacing;
              for (std::int64_t j = seen.lo; j < seen.hi; ++j) {
                const std::int64_t key = item.kv_begin + keys.position(j) * item.spacing;
                for (std::int64_t h = 0; h < layer.heads.count_q(); ++h) {
                  const std::int64_t head = layer.heads.first_q + h * layer.heads.step_q;
                  EXPECT_EQ(head / p.group(), layer.heads.first_kv + h / layer.heads.group * layer.heads.step_kv);
                  ++count[static_cast<std::size_t>(((b * p.num_heads_q + head) * p.seqlen_q + query) * p.seqlen_kv +
                                                   key)];
                }
              }
            }
  }
}

TEST(Layer, ComputesEveryPairAsOftenAsItIsSeen) {
  Random random(test::seed());
  const int problems = test::sample(4'000);
  for (int n = 0; n < problems; ++n) {
    const Problem p = reference::draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 30), .layers = true});
    const int world_size = static_cast<int>(draw(random, 1, 6));
    const Pass pass = draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward;
    std::vector<int> count(static_cast<std::size_t>(p.batch * p.num_heads_q * p.seqlen_q * p.seqlen_kv));
    double closed_form = 0, all = 0;
    for (int rank = 0; rank < world_size; ++rank) {
      const PassPlan plan(p, world_size, rank, pass);
      for (const LayerPlan& layer : plan.layers()) count_pairs(p, layer, count);
      closed_form += plan.visible_pairs();
    }
    std::size_t index = 0;
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t h = 0; h < p.num_heads_q; ++h)
        for (std::int64_t i = 0; i < p.seqlen_q; ++i)
          for (std::int64_t j = 0; j < p.seqlen_kv; ++j, ++index) {
            ASSERT_EQ(count[index], reference::times_seen(p, b, h, i, j))
                << "problem " << n << " on " << world_size << " ranks: head " << h << ", query " << i << ", key " << j
                << " of entry " << b << ": " << reference::describe(p);
            all += count[index];
          }
    ASSERT_EQ(closed_form, all) << "problem " << n << ": " << reference::describe(p);
  }
  std::cout << problems << " problems\n";
}

}  // namespace
}  // namespace ringattn
