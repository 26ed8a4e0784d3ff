// The planner, by enumeration: whatever the problem, all ranks together compute each visible pair once, every message has
// one sender and one receiver in the same moment, and gradients come home complete.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::draw_problem;
using reference::ProblemLimits;
using reference::Random;

std::vector<Plan> plans_of(const Problem& problem, int world_size, Pass pass) {
  std::vector<Plan> plans;
  for (int rank = 0; rank < world_size; ++rank) plans.emplace_back(problem, world_size, rank, pass);
  return plans;
}

// By the closed form, for one head.
double count_visible_pairs_of(const Problem& problem, int world_size, int rank) {
  return count_visible_pairs(problem, WholeDocuments(std::make_shared<const Problem>(problem), world_size), rank);
}

Problem whole_sequence(std::int64_t seqlen, Sharding sharding) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.sharding = sharding;
  p.documents = {{0, seqlen, 0, seqlen}};
  return p;
}

// How often each (batch entry, query, key) is computed by all steps of all ranks.
std::vector<int> count_pairs(const Problem& p, const std::vector<Plan>& plans) {
  std::vector<int> count(static_cast<std::size_t>(p.batch * p.seqlen_q * p.seqlen_kv));
  for (const Plan& plan : plans)
    for (const Moment& moment : plan.moments()) {
      if (!moment.computes) continue;
      const StepItems step = plan.items(moment, false);
      EXPECT_FALSE(step.items.empty());
      for (const WorkItem& item : step.items)
        for (std::int64_t b = 0; b < p.batch; ++b)
          for (const Piece& queries : item.queries)
            for (const Piece& keys : item.keys)
              for (std::int64_t i = 0; i < queries.length; ++i) {
                const Interval seen = item.visible(queries, i, keys, p.kv_length(b));
                const Document& document = p.documents[static_cast<std::size_t>(queries.unit)];
                for (std::int64_t j = seen.lo; j < seen.hi; ++j)
                  ++count[static_cast<std::size_t>((b * p.seqlen_q + document.q_begin + queries.position(i)) *
                                                       p.seqlen_kv +
                                                   document.kv_begin + keys.position(j))];
              }
    }
  return count;
}

TEST(Plan, ComputesEveryVisiblePairExactlyOnce) {
  const std::uint64_t seed = test::seed();
  const int problems = test::sample(20'000);
  Random random(seed);
  for (int n = 0; n < problems; ++n) {
    const Problem p = draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 40)});
    const int world_size = static_cast<int>(draw(random, 1, 9));
    const Pass pass = draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward;
    const std::vector<int> count = count_pairs(p, plans_of(p, world_size, pass));
    double closed_form = 0;
    for (int rank = 0; rank < world_size; ++rank) closed_form += count_visible_pairs_of(p, world_size, rank);
    ASSERT_EQ(closed_form, static_cast<double>(std::accumulate(count.begin(), count.end(), 0)))
        << reference::describe(p);
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t i = 0; i < p.seqlen_q; ++i)
        for (std::int64_t j = 0; j < p.seqlen_kv; ++j)
          ASSERT_EQ(count[static_cast<std::size_t>((b * p.seqlen_q + i) * p.seqlen_kv + j)],
                    reference::sees(p, b, i, j) ? 1 : 0)
              << "problem " << n << " on " << world_size << " ranks: query " << i << ", key " << j << " of entry " << b
              << ": " << reference::describe(p);
  }
  std::cout << problems << " problems\n";
}

TEST(Plan, RankSetsAgreeWithEnumeration) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(20'000); ++n) {
    const int world_size = static_cast<int>(draw(random, 1, 200)),
              origin = static_cast<int>(draw(random, 0, world_size - 1));
    RankSet set(world_size, origin);
    std::vector<bool> members(static_cast<std::size_t>(world_size));  // by distance
    for (std::int64_t stretches = draw(random, 0, 3); stretches > 0; --stretches) {
      const std::int64_t first = draw(random, 0, world_size - 1), count = draw(random, 1, world_size + 2);
      set.add(first, count);
      for (std::int64_t rank = first; rank < first + count; ++rank)
        members[static_cast<std::size_t>((rank - origin + world_size) % world_size)] = true;
    }
    for (const bool member : {false, true})
      for (int from = 0; from <= world_size; ++from) {
        const auto next = std::find(members.begin() + from, members.end(), member) - members.begin();
        ASSERT_EQ(set.find(from, member), next) << "set " << n << " of " << world_size << " ranks, from " << from;
      }
  }
}

TEST(Plan, SeeingRanksAgreeWithEnumeration) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(100'000); ++n) {
    const std::int64_t q_begin = draw(random, 0, 30), q_length = draw(random, 1, 60), kv_begin = draw(random, 0, 30),
                       kv_length = draw(random, 1, 120);
    Problem p;
    p.documents = {{0, 0, 0, kv_begin}, {0, q_begin, kv_begin, 0}, {q_begin, q_length, kv_begin, kv_length}};
    p.seqlen_q = q_begin + q_length;
    p.seqlen_kv = kv_begin + kv_length;
    p.kv_lengths = {draw(random, 0, p.seqlen_kv)};
    p.sharding = static_cast<Sharding>(draw(random, 0, 2));
    p.stripe = draw(random, 1, 5);
    p.causal = draw(random, 0, 1) == 1;
    p.bottom_right = draw(random, 0, 1) == 1;
    p.window_left = draw(random, -1, 20);
    p.window_right = draw(random, -1, 20);
    const int world_size = static_cast<int>(draw(random, 1, 30)),
              owner = static_cast<int>(draw(random, 0, world_size - 1));
    const WholeDocuments domain(std::make_shared<const Problem>(p), world_size);
    const std::int64_t rows = domain.rows(Side::key_value, owner), begin = draw(random, 0, rows),
                       end = draw(random, begin, rows);
    RankSet seeing(world_size, owner);
    domain.add_seeing(owner, begin, end, p.longest_kv(), seeing);
    std::vector<std::int64_t> keys;  // positions in the whole sequence, of the document that has queries
    for (const Piece& piece : domain.deal(Side::key_value, owner, 2, begin, end))
      for (std::int64_t i = 0; i < piece.length; ++i) keys.push_back(kv_begin + piece.position(i));
    for (int rank = 0; rank < world_size; ++rank) {
      bool sees = false;
      for (const Piece& piece : domain.share(Side::query, rank, 2))
        for (std::int64_t i = 0; i < piece.length; ++i)
          sees = sees || std::any_of(keys.begin(), keys.end(), [&](std::int64_t key) {
                   return reference::sees(p, 0, q_begin + piece.position(i), key);
                 });
      ASSERT_EQ(seeing.has((rank - owner + world_size) % world_size), sees)
          << "problem " << n << ": rows " << begin << " .. " << end << " of rank " << owner << " on rank " << rank
          << " of " << world_size << ": " << reference::describe(p);
    }
  }
}

// What a layer keeps of a document (layer.h), and what there is to know of its owners.
TEST(Plan, OwnersOfProgressionsAgreeWithEnumeration) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(50'000); ++n) {
    const std::int64_t begin = draw(random, 0, 50), length = draw(random, 1, draw(random, 1, 200));
    Problem p;
    p.documents = {{0, begin, 0, 0}, {begin, length, 0, 0}};
    p.seqlen_q = begin + length;
    p.sharding = static_cast<Sharding>(draw(random, 0, 2));
    p.stripe = draw(random, 1, 6);
    const int world_size = static_cast<int>(draw(random, 1, 30)),
              origin = static_cast<int>(draw(random, 0, world_size - 1));
    SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << world_size
                                      << " ranks: " << reference::describe(p));
    const Shards shards(p, Side::query, world_size);
    std::vector<int> owners(static_cast<std::size_t>(length));
    for (int rank = 0; rank < world_size; ++rank)
      for (const Piece& piece : shards.share(rank, 1))
        for (std::int64_t i = 0; i < piece.length; ++i) owners[static_cast<std::size_t>(piece.position(i))] = rank;

    Progression tokens;
    tokens.start = draw(random, 0, length - 1);
    tokens.spacing = draw(random, 1, 12);
    tokens.count = draw(random, 0, (length - 1 - tokens.start) / tokens.spacing + 1);
    RankSet set(world_size, origin);
    shards.add_owners(1, tokens, set);
    std::set<int> expected;
    for (std::int64_t i = 0; i < tokens.count; ++i)
      expected.insert(owners[static_cast<std::size_t>(tokens.position(i))]);
    for (int rank = 0; rank < world_size; ++rank)
      ASSERT_EQ(set.has((rank - origin + world_size) % world_size), expected.count(rank) > 0)
          << "rank " << rank << " of " << tokens.count << " tokens from " << tokens.start << ", each "
          << tokens.spacing;

    const std::int64_t beside = shards.count_beside(1, tokens.start);
    ASSERT_GE(beside, 1);
    for (std::int64_t i = tokens.start; i < std::min(length, tokens.start + beside); ++i)
      ASSERT_EQ(owners[static_cast<std::size_t>(i)], owners[static_cast<std::size_t>(tokens.start)]);
    for (std::int64_t i = 0; shards.turn() > 0 && i + shards.turn() < length; ++i)
      ASSERT_EQ(owners[static_cast<std::size_t>(i)], owners[static_cast<std::size_t>(i + shards.turn())]);
  }
}

// Who sees a chunk is worked out without looking at queries; what a step then finds to do is the same.
TEST(Plan, AStepIsComputedWhereAndOnlyWhereThereIsWork) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(4'000); ++n) {
    Problem p = draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 150)});
    const int world_size = static_cast<int>(draw(random, 1, 20));
    for (const Plan& plan : plans_of(p, world_size, draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward))
      for (const Moment& moment : plan.moments()) {
        const bool again = moment.holds == plan.rank() && !moment.begins_chunk;  // the own chunk, on its way upstream
        if (moment.holds == nobody || again) continue;
        ASSERT_EQ(moment.computes, !plan.items(moment, false).items.empty())
            << "problem " << n << ": chunk " << moment.chunk << " of rank " << moment.holds << " on rank "
            << plan.rank() << " of " << world_size << ": " << reference::describe(p);
      }
  }
}

// What a slot holds: whose chunk, in the part and chunk of the moment; and of gradients, whose shares are in the sum.
struct Slot {
  int owner = nobody;
  std::multiset<int> shares;
};

struct RankSlots {
  std::vector<Slot> chunks, gradients;
};

// Plays all plans side by side, moment by moment, with slots that say what they hold.
TEST(Plan, MessagesMeetAndGradientsComeHome) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(6'000); ++n) {
    const Problem p = draw_problem(random, {.batch = 1, .seqlen = draw(random, 1, 60)});
    const int world_size = static_cast<int>(draw(random, 1, 9));
    const Pass pass = draw(random, 0, 3) == 0 ? Pass::forward : Pass::backward;
    const std::vector<Plan> plans = plans_of(p, world_size, pass);
    SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << world_size
                                      << " ranks: " << reference::describe(p));

    std::vector<RankSlots> ranks;
    for (const Plan& plan : plans)
      ranks.push_back({std::vector<Slot>(static_cast<std::size_t>(plan.chunk_slots())),
                       std::vector<Slot>(static_cast<std::size_t>(plan.gradient_slots()))});
    const auto slot_of = [](RankSlots& of, Transfer::Kind kind, int slot) -> Slot& {
      return (kind == Transfer::gradients ? of.gradients : of.chunks).at(static_cast<std::size_t>(slot));
    };
    std::map<std::pair<int, std::int64_t>, std::multiset<int>> computed;  // (owner, chunk): by whom
    std::vector<std::int64_t> hops(plans.size());
    ASSERT_TRUE(std::all_of(plans.begin(), plans.end(),
                            [&](const Plan& plan) { return plan.moments().size() == plans[0].moments().size(); }));
    for (std::size_t t = 0; t < plans[0].moments().size(); ++t) {
      const auto at = [&](int rank) -> const Moment& { return plans[static_cast<std::size_t>(rank)].moments()[t]; };
      for (int rank = 0; rank < world_size; ++rank) {
        ASSERT_EQ(at(rank).chunk, at(0).chunk);
        if (at(rank).packs) ranks[static_cast<std::size_t>(rank)].chunks.at(0).owner = rank;
      }
      const std::vector<RankSlots> before = ranks;
      std::map<std::tuple<int, int, int>, Slot> sent;  // (sender, receiver, kind)
      std::size_t received = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        const auto r = static_cast<std::size_t>(rank);
        for (const Transfer& transfer : plans[r].transfers(at(rank))) {
          if (!transfer.sends) continue;
          ++hops[r];
          Slot what = slot_of(ranks[r], transfer.kind, transfer.slot);
          EXPECT_EQ(what.owner, transfer.owner) << "sent by rank " << rank;
          EXPECT_TRUE(sent.insert({{rank, transfer.peer, transfer.kind}, what}).second);
        }
      }
      for (int rank = 0; rank < world_size; ++rank) {
        const auto r = static_cast<std::size_t>(rank);
        const Moment& m = at(rank);
        std::set<std::pair<int, int>> used;  // kind, slot: what is received has a slot of its own
        for (const Transfer& transfer : plans[r].transfers(m))
          if (transfer.sends) used.insert({transfer.kind, transfer.slot});
        if (m.computes && plans[r].packs()) used.insert({Transfer::keys_and_values, m.slot});
        if (m.computes && pass == Pass::backward && !plans[r].adds_directly()) {
          EXPECT_TRUE(used.insert({Transfer::gradients, m.gradient_slot}).second)
              << "a share is not sent while it is made";
        }
        for (const Transfer& transfer : plans[r].transfers(m)) {
          if (transfer.sends) continue;
          ++received;
          const auto message = sent.find({transfer.peer, rank, transfer.kind});
          ASSERT_NE(message, sent.end()) << "rank " << rank << " waits for rank " << transfer.peer;
          EXPECT_EQ(message->second.owner, transfer.owner);
          EXPECT_TRUE(used.insert({transfer.kind, transfer.slot}).second);
          slot_of(ranks[r], transfer.kind, transfer.slot) = message->second;
        }
        if (m.computes) {
          const bool packs = plans[r].packs();
          EXPECT_EQ(packs ? before[r].chunks.at(static_cast<std::size_t>(m.slot)).owner : rank, m.holds);
          computed[{m.holds, m.chunk}].insert(rank);
        }
        if (!ranks[r].gradients.empty()) {
          if (m.computes || m.begins_chunk)
            ranks[r].gradients.at(static_cast<std::size_t>(m.gradient_slot)) = {
                m.holds, m.computes ? std::multiset<int>{rank} : std::multiset<int>{}};
          for (const Addition& a : plans[r].additions(m)) {
            const Slot& from = ranks[r].gradients.at(static_cast<std::size_t>(a.from));
            Slot& to = ranks[r].gradients.at(static_cast<std::size_t>(a.to));
            EXPECT_EQ(from.owner, a.owner);
            EXPECT_EQ(to.owner, a.owner);
            to.shares.insert(from.shares.begin(), from.shares.end());
          }
        }
        if (m.finishes_chunk && !ranks[r].gradients.empty()) {
          EXPECT_EQ(ranks[r].gradients[0].owner, rank);
        }
      }
      EXPECT_EQ(received, sent.size()) << "moment " << t;
      for (int rank = 0; rank < world_size && at(0).finishes_chunk; ++rank) {
        const auto r = static_cast<std::size_t>(rank);
        if (ranks[r].gradients.empty()) continue;
        const auto& by = computed[std::pair(rank, at(0).chunk)];
        EXPECT_EQ(ranks[r].gradients[0].shares, by) << "gradients of rank " << rank;
      }
      if (HasFailure()) return;
    }
    for (const Plan& plan : plans)
      EXPECT_EQ(plan.totals().hops, hops[static_cast<std::size_t>(plan.rank())] * plan.num_parts());
    if (HasFailure()) return;
  }
}

// A chunk goes to those who see it, and to nobody else.
TEST(Plan, GatheringSendsNothingThatNobodyNeeds) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(2'000); ++n) {
    Problem p = draw_problem(random, {.batch = 1, .seqlen = draw(random, 1, 60)});
    p.schedule = Schedule::all_gather;
    const int world_size = static_cast<int>(draw(random, 2, 9));
    for (const Plan& plan : plans_of(p, world_size, Pass::forward)) {
      std::int64_t received = 0, foreign = 0;
      for (const Moment& m : plan.moments()) {
        for (const Transfer& transfer : plan.transfers(m)) received += !transfer.sends;
        foreign += m.computes && m.holds != plan.rank();
      }
      ASSERT_EQ(received, foreign) << "problem " << n << ", rank " << plan.rank() << " of " << world_size << ": "
                                   << reference::describe(p);
    }
  }
}

// All entries and heads once, alike in size, and no more than the bound unless it is one row and head.
TEST(Plan, PartsCoverTheProblemAndStayWithinTheBound) {
  Random random(test::seed());
  std::int64_t several = 0;
  for (int n = 0; n < test::sample(20'000); ++n) {
    Problem p = draw_problem(random, {.batch = 6, .seqlen = 200, .num_heads_kv = 12});
    p.has_key_bias = draw(random, 0, 1) == 1;
    const int world_size = static_cast<int>(draw(random, 1, 9));
    const Pass pass = draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward;
    const Plan plan(p, world_size, 0, pass);
    SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << world_size
                                      << " ranks: " << reference::describe(p));
    std::vector<int> covered(static_cast<std::size_t>(p.batch * p.num_heads_kv));
    for (std::int64_t part = 0; part < plan.num_parts(); ++part) {
      const Part begin = plan.part(part);
      for (std::int64_t b = 0; b < plan.part_entries(); ++b)
        for (std::int64_t h = 0; h < plan.part_heads_kv(); ++h)
          ++covered.at(static_cast<std::size_t>((begin.entry + b) * p.num_heads_kv + begin.head_kv + h));
    }
    ASSERT_TRUE(std::all_of(covered.begin(), covered.end(), [](int count) { return count == 1; }));
    ASSERT_TRUE(plan.part_entries() == 1 || plan.part_heads_kv() == p.num_heads_kv);
    if (plan.schedule() == Schedule::ring) {
      ASSERT_EQ(plan.num_parts(), 1);
      continue;
    }
    several += plan.num_parts() > 1;
    const std::int64_t bytes = plan.chunk_slots() * plan.chunk_bytes(plan.longest_chunk()) +
                               plan.gradient_slots() * plan.gradient_bytes(plan.longest_chunk());
    const std::int64_t bound = p.gather_bytes > 0 ? p.gather_bytes : usual_gather_bytes;
    if (plan.part_heads_kv() * plan.part_entries() > 1) {
      ASSERT_LE(bytes, bound);
    }
    if (bytes > bound && p.num_chunks == 0) {
      ASSERT_LE(plan.longest_chunk(), 1);
    }
  }
  EXPECT_GT(several, 0);
}

// The documented rule, at its edges.
TEST(Plan, AutoGathersShortSequencesAndNoOthers) {
  const auto gathers = [](Pass pass, std::int64_t rows, int world_size, std::int64_t num_chunks = 0,
                          std::int64_t gather_bytes = 0) {
    Problem p = whole_sequence(rows * world_size, Sharding::zigzag);
    p.num_heads_q = p.num_heads_kv = 8;
    p.head_dim = p.head_dim_v = 64;
    p.num_chunks = num_chunks;
    p.gather_bytes = gather_bytes;
    return choose_cutting(p, world_size, pass).schedule == Schedule::all_gather;
  };
  constexpr std::int64_t of_a_rank = gathered_rows * 8 * 128 * 4;  // K and V, or their gradients: 1 MiB
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    EXPECT_TRUE(gathers(pass, gathered_rows, 3));
    EXPECT_FALSE(gathers(pass, gathered_rows + 1, 3));
    EXPECT_FALSE(gathers(pass, gathered_rows, 2));
    EXPECT_FALSE(gathers(pass, gathered_rows, 3, 1));
    EXPECT_FALSE(gathers(pass, 1, 1));
    const std::int64_t enough = (pass == Pass::forward ? 3 : 3 + 5) * of_a_rank;
    EXPECT_TRUE(gathers(pass, gathered_rows, 3, 0, enough));
    EXPECT_FALSE(gathers(pass, gathered_rows, 3, 0, enough - 1));
    const int most_ranks = pass == Pass::forward ? 16 : 5;  // within automatic_gather_bytes
    EXPECT_TRUE(gathers(pass, gathered_rows, most_ranks));
    EXPECT_FALSE(gathers(pass, gathered_rows, most_ranks + 1, 0, 2 * automatic_gather_bytes));
  }
}

TEST(Plan, AnyVisibleAgreesWithEnumeration) {
  Random random(test::seed());
  const auto draw_piece = [&] {
    const std::int64_t block = draw(random, 1, 6), length = draw(random, 1, 40), first = draw(random, 0, length - 1);
    Piece piece;
    piece.run = {.start = draw(random, 0, 30), .block = block, .stride = block + draw(random, 0, 12), .length = length};
    piece.first = first;
    piece.length = draw(random, 1, length - first);
    return piece;
  };
  for (int n = 0; n < test::sample(200'000); ++n) {
    const Piece queries = draw_piece(), keys = draw_piece();
    const std::int64_t lower = draw(random, -40, 40);
    const Band band{.lower = lower, .upper = lower + draw(random, 0, 8)};
    const std::int64_t limit = draw(random, 0, 120);
    bool any = false;
    for (std::int64_t i = 0; i < queries.length; ++i)
      for (std::int64_t j = 0; j < keys.length; ++j) {
        const std::int64_t distance = keys.position(j) - queries.position(i);
        any = any || (band.lower <= distance && distance <= band.upper && keys.position(j) < limit);
      }
    ASSERT_EQ(any_visible(band, queries, keys, limit), any) << "pair " << n;
  }
}

TEST(Plan, ShardsCoverEveryTokenOnceInAscendingOrder) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(5'000); ++n) {
    const Problem p = draw_problem(random, {.seqlen = 200});
    const int world_size = static_cast<int>(draw(random, 1, 17));
    for (const Side side : {Side::query, Side::key_value}) {
      std::vector<int> owners(static_cast<std::size_t>(p.seqlen(side)));
      std::int64_t shortest = p.seqlen(side), longest = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        const auto pieces = shard_pieces(p, side, world_size, rank);
        std::int64_t previous = -1;
        for (std::int64_t row = 0; row < row_count(pieces); ++row) {
          const std::int64_t position = row_position(p, side, pieces, row);
          ASSERT_LT(previous, position);
          previous = position;
          ++owners[static_cast<std::size_t>(position)];
        }
        shortest = std::min(shortest, row_count(pieces));
        longest = std::max(longest, row_count(pieces));
        for (const Piece& piece : pieces)
          ASSERT_LE(piece.length, Shards(p, side, world_size).longest_piece(rank)) << reference::describe(p);
      }
      ASSERT_TRUE(std::all_of(owners.begin(), owners.end(), [](int owner) { return owner == 1; }))
          << reference::describe(p);
      ASSERT_LE(longest - shortest, p.sharding == Sharding::striped ? p.stripe : 1) << reference::describe(p);
    }
  }
}

// A context keeps a plan for as long as its problem is that of the call.
TEST(Plan, IsOfTheProblemThatItWasMadeFor) {
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped})
    for (const int world_size : {1, 3}) {
      const Problem p = whole_sequence(50, sharding);
      EXPECT_EQ(Plan(p, world_size, 0, Pass::forward).problem(), p);
      EXPECT_EQ(shard_pieces(p, Side::query, 1, 0).size(), 1U);
    }
}

// However the sequence is cut into documents, its shards differ by one token, or by one stripe.
TEST(Plan, ManyShortDocumentsAreSharedEvenly) {
  constexpr std::int64_t documents = 1000;
  struct Rule {
    Sharding sharding;
    std::int64_t stripe;
  };
  for (const std::int64_t length : {1, 3, 16, 20, 33, 100})
    for (const int world_size : {2, 16, 64})
      for (const Rule rule : {Rule{Sharding::contiguous, 1}, Rule{Sharding::zigzag, 1}, Rule{Sharding::striped, 1},
                              Rule{Sharding::striped, 16}}) {
        SCOPED_TRACE(::testing::Message() << length << " tokens, " << world_size << " ranks, sharding "
                                          << static_cast<int>(rule.sharding) << ", stripe " << rule.stripe);
        Problem p = whole_sequence(documents * length, rule.sharding);
        p.stripe = rule.stripe;
        p.causal = true;
        p.documents.clear();
        for (std::int64_t d = 0; d < documents; ++d) p.documents.push_back({d * length, length, d * length, length});
        std::int64_t shortest = p.seqlen_q, longest = 0;
        double most = 0, sum = 0;
        for (int rank = 0; rank < world_size; ++rank) {
          const std::int64_t rows = row_count(shard_pieces(p, Side::query, world_size, rank));
          shortest = std::min(shortest, rows);
          longest = std::max(longest, rows);
          const double pairs = count_visible_pairs_of(p, world_size, rank);
          most = std::max(most, pairs);
          sum += pairs;
        }
        EXPECT_LE(longest - shortest, rule.stripe);
        if (rule.sharding == Sharding::zigzag) {
          EXPECT_LE(most / (sum / world_size), 1.03) << "causal work";
        }
      }
}

TEST(Plan, ZigzagAndStripedShareCausalWorkEqually) {
  constexpr int world_size = 8;
  for (const std::int64_t stripe : {0, 1, 16, 64}) {
    constexpr std::int64_t seqlen = 65536;
    Problem p = whole_sequence(seqlen, stripe == 0 ? Sharding::zigzag : Sharding::striped);
    p.stripe = std::max<std::int64_t>(stripe, 1);
    p.causal = true;
    double sum = 0, most = 0;
    for (int rank = 0; rank < world_size; ++rank) {
      const double pairs = count_visible_pairs_of(p, world_size, rank);
      sum += pairs;
      most = std::max(most, pairs);
    }
    EXPECT_DOUBLE_EQ(sum, seqlen * (seqlen + 1.0) / 2);
    EXPECT_LE(most / (sum / world_size), 1.02) << (stripe == 0 ? "zigzag" : "striped") << ", stripe " << stripe;
    std::cout << (stripe == 0 ? "zigzag" : "striped") << " stripe " << p.stripe
              << ": max / mean = " << most / (sum / world_size) << '\n';
  }
}

// Equal work over the whole pass is not enough: ranks wait for each other at every moment.
TEST(Plan, ZigzagSharesCausalWorkEquallyAtEveryMoment) {
  for (const int world_size : {2, 3, 8})
    for (const std::int64_t num_chunks : {1, 2, 5, 32})
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        Problem p = whole_sequence(16384, Sharding::zigzag);
        p.causal = true;
        p.num_chunks = num_chunks;
        const std::vector<Plan> plans = plans_of(p, world_size, pass);
        double slowest = 0, sum = 0;
        for (std::size_t t = 0; t < plans[0].moments().size(); ++t) {
          double most = 0;
          for (const Plan& plan : plans) {
            const Moment& moment = plan.moments()[t];
            if (!moment.computes) continue;
            const StepItems step = plan.items(moment, false);
            double pairs = 0;
            for (const WorkItem& item : step.items)
              for (const Piece& queries : item.queries)
                for (const Piece& keys : item.keys)
                  for (std::int64_t i = 0; i < queries.length; ++i) {
                    const Interval seen = item.visible(queries, i, keys, p.seqlen_kv);
                    pairs += static_cast<double>(seen.hi - seen.lo);
                  }
            sum += pairs;
            most = std::max(most, pairs);
          }
          slowest += most;
        }
        EXPECT_DOUBLE_EQ(sum, 16384 * 16385.0 / 2);
        EXPECT_LE(slowest / (sum / world_size), 1.02) << world_size << " ranks, " << num_chunks << " chunks";
      }
}

// Pieces as they are stored when nothing lies between them.
std::vector<Piece> packed(const std::vector<SpacedPiece>& keys) {
  std::vector<Piece> pieces(keys.begin(), keys.end());
  std::int64_t row = 0;
  for (Piece& piece : pieces) {
    piece.row = row;
    row += piece.length;
  }
  return pieces;
}

TEST(Plan, ChunksHoldEveryRowOfAShardOnceInThreeStretchesAtMost) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(5'000); ++n) {
    const Problem p = draw_problem(random, {.batch = 1, .seqlen = 200});
    const int world_size = static_cast<int>(draw(random, 1, 9));
    const Plan plan(p, world_size, 0, draw(random, 0, 1) == 0 ? Pass::forward : Pass::backward);
    SCOPED_TRACE(::testing::Message() << "problem " << n << " on " << world_size
                                      << " ranks: " << reference::describe(p));
    for (int owner = 0; owner < world_size; ++owner) {
      std::vector<int> holders(static_cast<std::size_t>(plan.key_rows(owner)));
      for (std::int64_t chunk = 0; chunk < plan.num_chunks(); ++chunk) {
        const std::vector<Stretch> stretches = plan.chunk_stretches(owner, chunk);
        EXPECT_LE(stretches.size(), 3U);
        std::int64_t rows = 0, end = -1;
        for (const Stretch& stretch : stretches) {
          EXPECT_GT(stretch.row, end) << "stretches ascend and do not touch";
          end = stretch.row + stretch.length;
          rows += stretch.length;
          for (std::int64_t row = stretch.row; row < end; ++row) ++holders[static_cast<std::size_t>(row)];
        }
        EXPECT_EQ(rows, plan.chunk_rows(owner, chunk));
        EXPECT_EQ(rows, row_count(packed(plan.chunk_keys(owner, chunk))));
        EXPECT_LE(rows, plan.longest_chunk());
      }
      EXPECT_TRUE(std::all_of(holders.begin(), holders.end(), [](int count) { return count == 1; }));
    }
    if (HasFailure()) return;
  }
}

TEST(Plan, CausalContiguousDoesHalfTheStepsAndHops) {
  constexpr int world_size = 8;
  Problem p = whole_sequence(1024, Sharding::contiguous);
  p.causal = true;
  p.num_chunks = 1;
  std::int64_t steps = 0, hops = 0;
  for (const Plan& plan : plans_of(p, world_size, Pass::forward)) {
    steps += plan.totals().steps;
    hops += plan.totals().hops;
  }
  EXPECT_EQ(steps, world_size * (world_size + 1) / 2);
  EXPECT_EQ(hops, world_size * (world_size - 1) / 2);
}

std::vector<std::int64_t> positions(const Problem& p, Side side, const std::vector<Piece>& pieces) {
  std::vector<std::int64_t> result;
  for (std::int64_t row = 0; row < row_count(pieces); ++row) result.push_back(row_position(p, side, pieces, row));
  return result;
}

// A window visits the chunks that it overlaps and no others; with contiguous shards no chunk travels beyond them.
TEST(Plan, WindowsVisitNoMoreChunksThanTheyOverlap) {
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped})
    for (const std::int64_t window : {0, 1, 63, 64, 65, 200})
      for (const bool causal : {true, false}) {
        constexpr int world_size = 8;
        Problem p = whole_sequence(1024, sharding);
        p.causal = causal;
        p.window_left = window;
        p.window_right = causal ? -1 : window;
        p.num_chunks = 4;
        std::int64_t hops = 0, needed = 0;
        for (const Plan& plan : plans_of(p, world_size, Pass::forward)) {
          std::int64_t overlapped = 0;
          const auto queries = positions(p, Side::query, shard_pieces(p, Side::query, world_size, plan.rank()));
          for (int owner = 0; owner < world_size; ++owner)
            for (std::int64_t chunk = 0; chunk < plan.num_chunks(); ++chunk) {
              const auto keys = positions(p, Side::key_value, packed(plan.chunk_keys(owner, chunk)));
              const bool overlaps = std::any_of(queries.begin(), queries.end(), [&](std::int64_t i) {
                return std::any_of(keys.begin(), keys.end(),
                                   [&](std::int64_t j) { return reference::sees(p, 0, i, j); });
              });
              overlapped += overlaps;
              needed += overlaps && owner != plan.rank();
            }
          EXPECT_EQ(plan.totals().steps, overlapped) << "rank " << plan.rank() << ", window " << window;
          hops += plan.totals().hops;
        }
        if (sharding == Sharding::contiguous) {
          EXPECT_EQ(hops, needed) << "window " << window << ", causal " << causal;
        }
      }
}

// Planning looks at a document once for each rank, whatever is visible, and a plan keeps nothing for it but the document itself.
TEST(Plan, CostsALookAtEveryDocumentOfEveryRank) {
  constexpr int world_size = 16;
  constexpr std::int64_t documents = 3000, length = 20;
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped})
    for (const std::int64_t window : {-1, 0, 16})
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        Problem p = whole_sequence(documents * length, sharding);
        p.causal = true;
        p.window_left = window;
        p.documents.clear();
        for (std::int64_t d = 0; d < documents; ++d) p.documents.push_back({d * length, length, d * length, length});
        const Plan plan(p, world_size, 5, pass);
        EXPECT_LE(plan.units_visited(), world_size * (documents + plan.num_chunks()));
        EXPECT_LE(std::ssize(plan.moments()), 2 * (world_size + 1) * plan.num_chunks());
        std::int64_t listed = 0;  // work items of all steps: a document is one of a few chunks of each rank
        for (const Moment& moment : plan.moments())
          if (moment.computes) listed += std::ssize(plan.items(moment, false).items);
        EXPECT_LE(listed, world_size * (documents + plan.num_chunks()));
      }

  Problem p = whole_sequence(std::int64_t{1} << 30, Sharding::zigzag);  // one document that all see
  p.causal = true;
  p.num_chunks = 32;
  EXPECT_EQ(Plan(p, world_size, 5, Pass::forward).units_visited(), world_size * p.num_chunks);
}

TEST(Plan, PositionsBeyondTwoToTheThirtyOne) {
  constexpr std::int64_t far = std::int64_t{1} << 40;
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped}) {
    Problem p = whole_sequence(far + 12345, sharding);
    p.stripe = 7;
    p.causal = true;
    const auto pieces = shard_pieces(p, Side::query, 4, 3);
    const std::int64_t last = row_position(p, Side::query, pieces, row_count(pieces) - 1);
    EXPECT_GT(last, far / 2);
    EXPECT_EQ(pieces.back().count_below(pieces.back().position(pieces.back().length - 1)), pieces.back().length - 1);
  }
}

// It costs 4 bytes a key, and a chunk of 2-byte numbers that ends between is filled up; without one nothing changes.
TEST(Plan, AKeyBiasTravelsWithItsChunk) {
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
