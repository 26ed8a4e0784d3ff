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
    for (const SpacedPiece& part : kept) {
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

// Segments of s tokens and dilations of 1, those of 2 s and 2, and so on (Ding et al. 2023).
Problem longnet(std::int64_t seqlen, std::int64_t segment, int branches) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.num_heads_q = p.num_heads_kv = 8;
  p.head_dim = p.head_dim_v = 16;
  p.schedule = Schedule::ring;
  p.documents = {{0, seqlen, 0, seqlen}};
  for (int i = 0; i < branches; ++i) p.branches.push_back({segment << i, std::int64_t{1} << i});
  return p;
}

struct Cost {
  double pairs = 0;
  std::int64_t bytes = 0;
};
Cost cost_of(const Problem& p, int world_size) {
  Cost cost;
  for (int rank = 0; rank < world_size; ++rank) {
    const PassPlan plan(p, world_size, rank, Pass::forward);
    cost.pairs += plan.visible_pairs();
    cost.bytes += plan.totals().hop_bytes;
  }
  return cost;
}

// A branch of segments g and dilation r has seqlen / g segments, in each of which a head sees (g / r)^2 pairs. Where g is several ranks'
// rows, each of these sends what it keeps to the others of them; where it is one rank's rows or less, nobody sends anything.
TEST(Layer, CostIsTheClosedForm) {
  for (const int world_size : {1, 2, 4, 8})
    for (const std::int64_t seqlen : {512, 1024, 4096})
      for (const Sharding sharding : {Sharding::contiguous, Sharding::striped}) {
        Problem p = longnet(seqlen, 64, 4);
        p.sharding = sharding;
        p.stripe = 8;
        Cost expected;
        for (const Branch& b : p.branches) {
          const std::int64_t own = seqlen / world_size, kept = b.segment_length / b.dilation;
          expected.pairs += static_cast<double>(seqlen / b.segment_length * kept * kept * p.num_heads_q);
          const std::int64_t together =
              sharding == Sharding::striped ? world_size : std::max<std::int64_t>(1, b.segment_length / own);
          expected.bytes += world_size * (together - 1) * (own / b.dilation) * p.num_heads_kv *
                            (p.head_dim + p.head_dim_v) * size_of(p.dtype);
        }
        const Cost cost = cost_of(p, world_size);
        EXPECT_EQ(cost.pairs, expected.pairs) << seqlen << " tokens on " << world_size << " ranks";
        EXPECT_EQ(cost.bytes, expected.bytes) << seqlen << " tokens on " << world_size << " ranks";
      }
}

TEST(Layer, CostGrowsAsTheSequence) {
  const auto pairs_of_a_token = [](int doublings) {
    const std::int64_t seqlen = std::int64_t{2048} << doublings;
    return cost_of(longnet(seqlen, 2048, doublings + 1), 4).pairs / static_cast<double>(seqlen);
  };
  for (int doublings = 0; doublings < 9; ++doublings) EXPECT_LT(pairs_of_a_token(doublings), 2 * 2048 * 8);
}

// With all_gather a rank is sent what it sees and nothing else.
// As many layers as without documents, however many there are: else their prefix would travel once for each.
TEST(Layer, PrefixOfManyDocumentsIsOneRectangle) {
  constexpr std::int64_t documents = 1000, prefix = 50, length = 7;
  Problem p;
  p.seqlen_q = p.seqlen_kv = prefix + documents * length;
  p.documents = {{0, p.seqlen_q, 0, p.seqlen_q}};
  p.slices = {{0, prefix, 0, prefix, SliceKind::causal}};
  for (std::int64_t d = 0; d < documents; ++d) {
    const std::int64_t begin = prefix + d * length, end = begin + length;
    p.slices.push_back({begin, end, 0, prefix, SliceKind::full});
    p.slices.push_back({begin, end, begin, end, SliceKind::causal});
  }
  EXPECT_EQ(find_layers(p, 1).size(), 2U);
  EXPECT_LE(find_layers(p, 4).size(), 2U + 4 + 3);  // one for each set of ranks that have documents, or share one
}

TEST(Layer, NobodyReceivesWhatItDoesNotSee) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(2'000); ++n) {
    Problem p = reference::draw_problem(random, {.batch = 1, .seqlen = draw(random, 1, 40), .layers = true});
    p.schedule = Schedule::all_gather;
    const int world_size = static_cast<int>(draw(random, 2, 6)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    for (const PassPlan plan(p, world_size, rank, Pass::forward); const LayerPlan& layer : plan.layers())
      for (const Moment& moment : layer.plan.moments())
        for (const Transfer& transfer : layer.plan.transfers(moment)) {
          if (transfer.sends) continue;
          Moment held = moment;
          held.holds = transfer.owner;
          bool sees = false;
          for (const StepItems step = layer.plan.items(held, false); const WorkItem& item : step.items)
            for (const Piece& queries : item.queries)
              for (const Piece& keys : item.keys)
                for (std::int64_t i = 0; i < queries.length; ++i)
                  sees = sees || !item.visible(queries, i, keys, p.kv_length(0)).empty();
          ASSERT_TRUE(sees) << "problem " << n << ": " << reference::describe(p);
        }
  }
}

}  // namespace
}  // namespace ringattn
