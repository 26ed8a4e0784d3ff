// Layers of mask slices and dilated branches, by enumeration: together they compute each pair as often as the definition has it, and
// what travels is what somebody needs.
#include "plan/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <map>
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
    const Progression region{draw(random, 0, 30), draw(random, 1, 8), draw(random, 0, 40)};
    Share kept;
    add_kept(piece, region, 7, kept);
    std::set<std::pair<std::int64_t, std::int64_t>> expected, got;  // (position, row)
    for (std::int64_t i = 0; i < piece.length; ++i) {
      const std::int64_t distance = piece.position(i) - region.start;
      if (distance >= 0 && distance % region.spacing == 0 && distance / region.spacing < region.count)
        expected.insert({distance / region.spacing, piece.row + i});
    }
    for (const SpacedPiece& part : kept) {
      EXPECT_EQ(part.unit, 7);
      for (std::int64_t i = 0; i < part.length; ++i) {
        const bool is_new = got.insert({part.position(i), part.row + i * part.step}).second;
        ASSERT_TRUE(is_new) << "sample " << n;
        ASSERT_EQ(part.count_below(part.position(i)), i) << "sample " << n;
        ASSERT_EQ(part.count_below(part.position(i) + 1), i + 1) << "sample " << n;
      }
    }
    ASSERT_EQ(got, expected) << "sample " << n << ": block " << block << ", stride " << piece.run.stride << ", base "
                             << region.start << ", spacing " << region.spacing;
  }
}

// Half of them have branches with segments so short that a rank has many.
Problem draw_layered(Random& random, std::int64_t batch, std::int64_t longest) {
  Problem p = reference::draw_problem(random, {.batch = batch, .seqlen = draw(random, 1, longest), .layers = true});
  if (draw(random, 0, 1) == 1)
    for (Branch& b : p.branches) b.segment_length = draw(random, 1, 6);
  return p;
}

using Tokens = std::vector<std::int64_t>;  // positions of the whole sequence

// A region, token by token.
struct ListedRegion {
  Tokens queries, keys;
  std::int64_t zero_keys = 0;
  Tokens& tokens(Side side) { return side == Side::query ? queries : keys; }
  const Tokens& tokens(Side side) const { return side == Side::query ? queries : keys; }
};

// By the definition, of one phase of a branch of a problem without slices: segment by segment what it keeps, in groups of the same
// owners, those of few owners first, each group in the first layer where it shares none.
std::vector<std::vector<ListedRegion>> list_layers(const Problem& p, const Branch& branch, std::int64_t phase,
                                                   int world_size) {
  const auto owners_of = [&](Side side) {
    std::vector<int> owners(static_cast<std::size_t>(p.seqlen(side)));
    for (int rank = 0; rank < world_size; ++rank) {
      const std::vector<Piece> pieces = shard_pieces(p, side, world_size, rank);
      for (std::int64_t row = 0; row < row_count(pieces); ++row)
        owners[static_cast<std::size_t>(row_position(p, side, pieces, row))] = rank;
    }
    return owners;
  };
  const std::array<std::vector<int>, 2> owner_of = {owners_of(Side::query), owners_of(Side::key_value)};
  std::map<std::pair<std::size_t, std::vector<int>>, std::vector<ListedRegion>> groups;
  for (const Document& d : p.documents) {
    if (d.q_length == 0 || d.kv_length == 0) continue;
    const std::int64_t segment = std::min(branch.segment_length, d.kv_length),
                       segments = (d.kv_length + segment - 1) / segment;
    for (std::int64_t n = 0; n < segments; ++n) {
      ListedRegion region;
      std::set<int> owners;
      const auto add_if_kept = [&](Side side, std::int64_t faced, std::int64_t token) {
        if ((faced - n * segment - phase) % branch.dilation != 0) return;
        region.tokens(side).push_back(token);
        owners.insert(owner_of[static_cast<std::size_t>(side)][static_cast<std::size_t>(token)]);
      };
      for (std::int64_t i = 0; i < d.q_length; ++i) {
        const std::int64_t faced = i + p.shift(d);
        if (std::clamp<std::int64_t>(faced, 0, d.kv_length - 1) / segment == n)
          add_if_kept(Side::query, faced, d.q_begin + i);
      }
      for (std::int64_t j = n * segment; j < std::min(d.kv_length, (n + 1) * segment); ++j)
        add_if_kept(Side::key_value, j, d.kv_begin + j);
      const std::int64_t slots = (segment + branch.dilation - 1) / branch.dilation;
      if (p.dilation_padding == DilationPadding::zero_keys) region.zero_keys = slots - std::ssize(region.keys);
      if (region.queries.empty() || (region.keys.empty() && region.zero_keys == 0)) continue;
      groups[{owners.size(), std::vector<int>(owners.begin(), owners.end())}].push_back(region);
    }
  }
  std::vector<std::vector<ListedRegion>> layers;
  std::vector<std::set<int>> taken;
  for (const auto& [owners, regions] : groups) {
    std::size_t layer = 0;
    const auto is_taken = [&](int rank) { return taken[layer].count(rank) > 0; };
    while (layer < layers.size() && std::any_of(owners.second.begin(), owners.second.end(), is_taken)) ++layer;
    if (layer == layers.size()) {
      layers.emplace_back();
      taken.emplace_back();
    }
    taken[layer].insert(owners.second.begin(), owners.second.end());
    layers[layer].insert(layers[layer].end(), regions.begin(), regions.end());
  }
  return layers;
}

std::set<std::int64_t> phases_of(const Problem& p, const Branch& branch) {
  std::set<std::int64_t> phases;
  const std::int64_t block = (p.num_heads_q + branch.dilation - 1) / branch.dilation;
  for (std::int64_t head = 0; head < p.num_heads_q; ++head)
    phases.insert(p.dilation_phase == DilationPhase::blocks_of_heads ? head / block : head % branch.dilation);
  return phases;
}

// The rows of a rank that hold tokens of regions, in the order of these: what first_row and units say is a look into this list.
void expect_rows(const LayerRegions& regions, Side side, int rank, Random& random) {
  Tokens unit_of_row;
  for (const std::int64_t unit : regions.units()) {
    ASSERT_EQ(regions.first_row(side, rank, unit), std::ssize(unit_of_row)) << "unit " << unit;
    std::int64_t own = 0;
    for (const Piece& piece : regions.share(side, rank, unit)) own += piece.length;
    ASSERT_LE(own, regions.longest_piece(side, rank));
    unit_of_row.insert(unit_of_row.end(), static_cast<std::size_t>(own), unit);
  }
  const std::int64_t rows = std::ssize(unit_of_row);
  ASSERT_EQ(regions.first_row(side, rank, std::ssize(regions.units())), rows);
  ASSERT_EQ(regions.rows(side, rank), rows);
  if (rows == 0) return;
  const std::int64_t first = draw(random, 0, rows - 1), last = draw(random, first, rows - 1);
  const Domain::Units units = regions.units(side, rank, first, last + 1);
  ASSERT_EQ(*units.begin(), unit_of_row[static_cast<std::size_t>(first)]);
  ASSERT_EQ(*units.end() - 1, unit_of_row[static_cast<std::size_t>(last)]);
}

// Whether a rank has a query that sees any of those rows of the owner.
bool sees_any(const Problem& p, const LayerRegions& regions, int owner, std::int64_t begin, std::int64_t end,
              int rank) {
  for (const std::int64_t unit : regions.units(Side::key_value, owner, begin, end))
    for (const Piece& keys : regions.deal(Side::key_value, owner, unit, begin, end))
      for (const Piece& queries : regions.share(Side::query, rank, unit))
        for (std::int64_t i = 0; i < queries.length; ++i)
          if (!regions.item(unit).visible(queries, i, keys, p.longest_kv()).empty()) return true;
  return false;
}

// Whether a region is listed or the repetition of one that is, it is where the definition has it, and its rows are counted.
TEST(Layer, RegionsAreThoseOfTheDefinition) {
  Random random(test::seed());
  std::int64_t listed = 0, all = 0;
  for (int n = 0; n < test::sample(4'000); ++n) {
    Problem p = draw_layered(random, 1, 200);
    p.slices.clear();
    if (p.branches.empty()) p.branches = {{draw(random, 1, 6), draw(random, 1, 3)}};
    const int world_size = static_cast<int>(draw(random, 1, 7));
    SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << world_size
                                      << " ranks: " << reference::describe(p));
    const std::vector<Layer> layers = find_layers(std::make_shared<const Problem>(p), world_size);
    auto layer = layers.begin();
    for (std::size_t b = 0; b < p.branches.size(); ++b)
      for (const std::int64_t phase : phases_of(p, p.branches[b]))
        for (const std::vector<ListedRegion>& expected : list_layers(p, p.branches[b], phase, world_size)) {
          ASSERT_NE(layer, layers.end());
          EXPECT_EQ(layer->branch, static_cast<std::int64_t>(b));
          const LayerRegions& regions = *layer->regions;
          ASSERT_EQ(std::ssize(regions.units()), std::ssize(expected));
          for (const std::int64_t unit : regions.units()) {
            const ListedRegion& e = expected[static_cast<std::size_t>(unit)];
            const Region region = regions.region(unit);
            const Document& document = p.documents[static_cast<std::size_t>(region.document)];
            for (const Side side : {Side::query, Side::key_value}) {
              Tokens tokens;
              for (std::int64_t i = 0; i < region.kept(side).count; ++i)
                tokens.push_back(document.begin(side) + region.kept(side).position(i));
              ASSERT_EQ(tokens, e.tokens(side)) << "unit " << unit;
            }
            ASSERT_EQ(region.zero_keys, e.zero_keys);
          }
          for (int rank = 0; rank < world_size; ++rank)
            for (const Side side : {Side::query, Side::key_value}) {
              expect_rows(regions, side, rank, random);
              if (HasFailure()) return;
            }
          const int owner = static_cast<int>(draw(random, 0, world_size - 1));
          const std::int64_t rows = regions.rows(Side::key_value, owner), begin = draw(random, 0, rows),
                             end = draw(random, begin, rows);
          RankSet seeing(world_size, owner);
          regions.add_seeing(owner, begin, end, p.longest_kv(), seeing);
          for (int rank = 0; rank < world_size; ++rank)
            ASSERT_EQ(seeing.has((rank - owner + world_size) % world_size),
                      sees_any(p, regions, owner, begin, end, rank))
                << "rows " << begin << " .. " << end << " of rank " << owner << " on rank " << rank;
          listed += regions.regions_listed();
          all += std::ssize(regions.units());
          while (layer != layers.end() && layer->regions.get() == &regions) ++layer;  // all heads of the phase
        }
    ASSERT_EQ(layer, layers.end());
  }
  EXPECT_LT(4 * listed, 3 * all) << "hardly anything was repeated";
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
    const Problem p = draw_layered(random, 2, 30);
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

// Else its rows are packed.
TEST(Layer, IsComputedInPlaceWhereItKeepsAllRowsInAllHeads) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 40;
  p.num_heads_q = p.num_heads_kv = 2;
  p.documents = {{0, 40, 0, 40}};
  const auto expect = [&](bool keeps_all, int world_size, int rank) {
    const PassPlan plan(p, world_size, rank, Pass::forward);
    ASSERT_FALSE(plan.layers().empty());
    for (const LayerPlan& layer : plan.layers()) EXPECT_EQ(layer.keeps_all, keeps_all);
  };
  p.slices = {{0, 40, 0, 30, SliceKind::causal}, {0, 40, 30, 40, SliceKind::inverse_causal}};
  expect(true, 1, 0);
  expect(true, 4, 3);
  p.slices = {{0, 39, 0, 40, SliceKind::full}};
  expect(false, 1, 0);
  expect(false, 4, 3);
  expect(true, 4, 0);
  p.slices.clear();
  p.branches = {{20, 1}};
  expect(true, 1, 0);
  p.branches = {{20, 2}};  // each head keeps half
  expect(false, 1, 0);
  p.dilation_phase = DilationPhase::interleaved_heads;
  expect(false, 1, 0);
}

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
  const auto problem = std::make_shared<const Problem>(p);
  EXPECT_EQ(find_layers(problem, 1).size(), 2U);
  EXPECT_LE(find_layers(problem, 4).size(), 2U + 4 + 3);  // one for each set of ranks that have documents, or share one
}

// What a plan lists and looks at goes by ranks and chunks: LongNet's first branch has 32,768 segments here, 128 for each
// rank.
TEST(Layer, PlanningCostsWhatRanksHave) {
  constexpr int world_size = 256;
  struct Rule {
    Sharding sharding;
    std::int64_t stripe;
    std::int64_t listed;  // of one layer
  };
  for (const Rule rule : {Rule{Sharding::contiguous, 1, world_size}, Rule{Sharding::zigzag, 1, 2 * world_size},
                          Rule{Sharding::striped, 1, 1}, Rule{Sharding::striped, 64, 64 * world_size / 2048}}) {
    SCOPED_TRACE(::testing::Message() << "sharding " << static_cast<int>(rule.sharding) << ", stripe " << rule.stripe);
    Problem p = longnet(std::int64_t{1} << 26, 2048, 5);
    p.branches.back().segment_length = p.seqlen_q;
    p.causal = true;
    p.sharding = rule.sharding;
    p.stripe = rule.stripe;
    const PassPlan plan(p, world_size, 85, Pass::forward);
    for (const LayerPlan& layer : plan.layers()) {
      EXPECT_LE(layer.regions->regions_listed(), rule.listed);
      // Of each chunk a region that it begins within, and a turn of the pattern behind that.
      EXPECT_LE(layer.plan.units_visited(), 3 * world_size * layer.plan.num_chunks());
    }
  }
}

TEST(Layer, NobodyReceivesWhatItDoesNotSee) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(2'000); ++n) {
    Problem p = draw_layered(random, 1, 40);
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
