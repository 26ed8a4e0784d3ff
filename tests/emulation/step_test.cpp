// Work as kernels take it says what the plan says: by enumeration of every row and key of every step of random problems.
#include "engine/cuda/step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "engine/reference/oracle.h"
#include "plan/pass_plan.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Random;

// Stored rows of the keys that each stored row of queries sees, in one batch entry, as the plan has it.
using Seen = std::map<std::int64_t, std::set<std::int64_t>>;
Seen seen_by_plan(const std::vector<WorkItem>& items, std::int64_t kv_length) {
  Seen seen;
  for (const WorkItem& item : items)
    for (const Piece& queries : item.queries)
      for (std::int64_t i = 0; i < queries.length; ++i) {
        std::set<std::int64_t>& keys_seen = seen[queries.row + i];
        for (const Piece& keys : item.keys) {
          const Interval visible = item.visible(queries, i, keys, kv_length);
          for (std::int64_t j = visible.lo; j < visible.hi; ++j) keys_seen.insert(keys.row + j);
        }
      }
  return seen;
}

template <class F>
void for_each_tile(const Work& work, Side side, std::int64_t size, F&& f) {
  for (std::int32_t tile = 0; tile < work.num_tiles; ++tile) {
    const Item& item = work.item_of(tile);
    const std::int64_t first = (tile - item.first_tile) * size;
    const std::int64_t left = (side == Side::query ? item.queries : item.keys).count() - first;
    ASSERT_GT(left, 0);
    f(item, first, std::min(size, left));
  }
}

// Against the other side of a tile, cut in tiles from its first member on: what is left out is not seen, what is full is seen by all.
template <class Sees>
void expect_walk(const Walk& walk, std::int64_t count, std::int64_t others, std::int64_t size, Sees&& sees) {
  const Range tiles = walk.tiles(size);
  const std::int64_t origin = 7;
  const Walk::Tiles counted = walk.in_tiles(size, origin);
  for (std::int64_t begin = 0; begin < others; begin += size) {
    const std::int64_t end = std::min(begin + size, others);
    std::int64_t seen = 0;
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t j = begin; j < end; ++j) {
        const bool sees_it = sees(i, j);
        seen += sees_it;
        if (sees_it) {
          ASSERT_TRUE(walk.some.begin <= j && j < walk.some.end);
        }
      }
    const bool walked = tiles.begin * size <= begin && begin < tiles.end * size;
    if (!walked) {
      ASSERT_EQ(seen, 0);
    }
    const auto tile = static_cast<std::int32_t>(begin / size - origin);
    if (!tiles.empty()) {
      ASSERT_EQ(counted.has(tile), walked);
      ASSERT_EQ(counted.is_full(tile), walk.is_full(begin, begin + size));
    }
    if (walk.is_full(begin, begin + size)) {
      ASSERT_TRUE(walked);
      ASSERT_EQ(seen, count * size);
    }
    if (begin + size <= others && seen == count * size) {
      ASSERT_TRUE(walk.is_full(begin, begin + size));
    }
  }
}

void expect_same(const Problem& p, const std::vector<WorkItem>& items, std::int64_t tile, std::int64_t other_tile,
                 std::int64_t blocks) {
  std::vector<Seen> of_queries(static_cast<std::size_t>(p.batch)), of_keys(of_queries);
  for (const Side side : {Side::query, Side::key_value}) {
    auto& all_seen = side == Side::query ? of_queries : of_keys;
    std::vector<std::set<std::int64_t>> taken;  // rows, by the entries of one turn
    const auto check = [&](const Work& work) {
      ASSERT_LE(work.num_items, Work::most_items);
      if (work.num_items > 1 || work.num_entries > 1) {
        ASSERT_LE(work.num_tiles * work.num_entries * blocks, most_blocks);
      }
      const Range rows = rows_of(work, side);
      for (int n = 0; n < work.num_entries; ++n) {
        const std::int64_t b = work.first_entry + n, kv_length = work.kv_length(n);
        if (items[0].spacing == 1) {
          ASSERT_EQ(kv_length, p.kv_length(b));
        }
        Seen& seen = all_seen[static_cast<std::size_t>(b)];
        for_each_tile(work, side, tile, [&](const Item& item, std::int64_t first, std::int64_t count) {
          const auto sees = [&](std::int64_t i, std::int64_t j) {
            const Range keys = item.keys_of(i, kv_length), queries = item.rows_of(j, kv_length);
            const bool by_row = keys.begin <= j && j < keys.end, by_key = queries.begin <= i && i < queries.end;
            EXPECT_EQ(by_row, by_key);
            return by_row;
          };
          for (std::int64_t i = first; i < first + count; ++i) {
            const Members& own = side == Side::query ? item.queries : item.keys;
            ASSERT_TRUE(rows.begin <= own.row + i && own.row + i < rows.end);
            ASSERT_TRUE(taken[static_cast<std::size_t>(b)].insert(own.row + i).second);
            if (side == Side::query) seen.try_emplace(own.row + i);
          }
          if (side == Side::query) {
            for (std::int64_t i = first; i < first + count; ++i)
              for (std::int64_t j = 0; j < item.keys.count(); ++j)
                if (sees(i, j)) seen[item.queries.row + i].insert(item.keys.row + j);
            expect_walk(walk_keys(item, first, count, kv_length), count, item.keys.count(), other_tile,
                        [&](std::int64_t i, std::int64_t j) { return sees(first + i, j); });
          } else {
            for (std::int64_t j = first; j < first + count; ++j)
              for (std::int64_t i = 0; i < item.queries.count(); ++i)
                if (sees(i, j)) seen[item.queries.row + i].insert(item.keys.row + j);
            expect_walk(walk_rows(item, first, count, kv_length), count, item.queries.count(), other_tile,
                        [&](std::int64_t j, std::int64_t i) { return sees(i, first + j); });
          }
        });
      }
    };
    for_each_turn(items, side, [&](std::span<const WorkItem> of_turn) {
      taken.assign(static_cast<std::size_t>(p.batch), {});
      for_each_work<Work>(p, of_turn, side, tile, blocks, check);
    });
  }
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const Seen expected = seen_by_plan(items, p.kv_length(b));
    ASSERT_EQ(of_queries[static_cast<std::size_t>(b)], expected);
    for (const auto& [row, keys] : expected) ASSERT_EQ(of_keys[static_cast<std::size_t>(b)][row], keys);
  }
}

TEST(Step, SaysWhatThePlanSays) {
  Random random(test::seed());
  std::int64_t steps = 0, items = 0;
  for (int n = 0; n < test::sample(10'000); ++n) {
    const Problem p = reference::draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 40)});
    const int world_size = static_cast<int>(draw(random, 1, 5)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    const Plan plan(p, world_size, rank, Pass::forward);
    SCOPED_TRACE(::testing::Message() << "problem " << n << ", rank " << rank << " of " << world_size << ": "
                                      << reference::describe(p));
    for (const Moment& moment : plan.moments()) {
      if (!moment.computes) continue;
      const StepItems step = plan.items(moment, draw(random, 0, 1) == 0);
      expect_same(p, step.items, draw(random, 1, 9), draw(random, 1, 9), 1);
      if (HasFailure()) return;
      ++steps;
      items += static_cast<std::int64_t>(step.items.size());
    }
  }
  std::cout << steps << " steps, " << items << " items\n";
}

// Those of layers have a spacing, and some have many pieces on a side.
TEST(Step, SaysWhatThePlanOfLayersSays) {
  Random random(test::seed());
  int turns = 0, spaced = 0;
  for (int n = 0; n < test::sample(3'000); ++n) {
    const Problem p = reference::draw_problem(random, {.batch = 2, .seqlen = draw(random, 1, 90), .layers = true});
    const int world_size = static_cast<int>(draw(random, 1, 5)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    const PassPlan plan(p, world_size, rank, Pass::forward);
    SCOPED_TRACE(::testing::Message() << "problem " << n << ", rank " << rank << " of " << world_size << ": "
                                      << reference::describe(p));
    for (const LayerPlan& layer : plan.layers())
      for (const Moment& moment : layer.plan.moments()) {
        if (!moment.computes) continue;
        const StepItems step = layer.plan.items(moment, draw(random, 0, 1) == 0);
        expect_same(p, step.items, draw(random, 1, 9), draw(random, 1, 9), 1);
        if (HasFailure()) return;
        int of_step = 0;
        for_each_turn(step.items, Side::query, [&](auto) { ++of_step; });
        turns = std::max(turns, of_step);
        spaced += step.items[0].spacing > 1;
      }
  }
  std::cout << spaced << " steps with spacing, up to " << turns << " turns\n";
  EXPECT_GT(spaced, 0);
  EXPECT_GT(turns, 1);
}

// More documents and entries than one launch takes, all of them once.
TEST(Step, TakesAnyNumberOfDocumentsAndEntries) {
  Random random(test::seed());
  for (const std::int64_t documents : {1, Work::most_items, Work::most_items + 1, 5 * Work::most_items})
    for (const std::int64_t batch : {1, Work::most_entries + 1}) {
      Problem p;
      p.batch = batch;
      for (std::int64_t d = 0; d < documents; ++d) {
        const Document document{p.seqlen_q, draw(random, 0, 5), p.seqlen_kv, draw(random, 0, 5)};
        p.documents.push_back(document);
        p.seqlen_q += document.q_length;
        p.seqlen_kv += document.kv_length;
      }
      for (std::int64_t b = 0; b < batch && batch > 1; ++b) p.kv_lengths.push_back(draw(random, 0, p.seqlen_kv));
      const Plan plan(p, 1, 0, Pass::forward);
      for (const std::int64_t blocks : {std::int64_t{1}, most_blocks / 30, most_blocks / 4, most_blocks})
        expect_same(p, plan.items(plan.moments()[0], true).items, 3, 2, blocks);
    }
}

// Positions, rows and what they differ by need all of their 64 bits.
TEST(Step, IsRightFarOut) {
  constexpr std::int64_t far = std::int64_t{1} << 40;
  for (const Sharding sharding : {Sharding::contiguous, Sharding::zigzag, Sharding::striped}) {
    Problem p;
    p.seqlen_q = p.seqlen_kv = 8 * far;
    p.documents = {{0, 8 * far, 0, 8 * far}};
    p.sharding = sharding;
    p.stripe = 16;
    p.causal = true;
    p.window_left = 99;
    p.num_chunks = 1;
    const Plan plan(p, 4, 3, Pass::forward);
    const StepItems step = plan.items(plan.moments()[0], false);
    ASSERT_EQ(step.items.size(), 1U);
    const WorkItem& from = step.items[0];
    const Item item = make_item(from);
    std::int64_t before = 0;
    for (const Piece& queries : from.queries) {
      for (const std::int64_t i : {std::int64_t{0}, queries.length / 3, queries.length - 1}) {
        std::int64_t lo = 0, hi = 0;
        for (const Piece& keys : from.keys) {
          lo += keys.count_below(queries.position(i) - 99);
          hi += keys.count_below(queries.position(i) + 1);
        }
        const Range seen = item.keys_of(before + i, p.seqlen_kv);
        EXPECT_EQ(seen.begin, lo);
        EXPECT_EQ(seen.end, hi);
        EXPECT_LT(lo, hi);
      }
      before += queries.length;
    }
  }
}

// What is declared of a tensor begins with the first element that is touched and ends with the last.
TEST(Step, DeclaresWhatIsTouched) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(2'000); ++n) {
    const std::int64_t batch = draw(random, 1, 3), rows = draw(random, 1, 6), heads = draw(random, 1, 4),
                       dim = draw(random, 1, 5);
    Tensor tensor{nullptr, static_cast<DType>(draw(random, 1, 3)), 0, 0, 0};
    tensor.head_stride = dim + draw(random, 0, 3);
    tensor.seq_stride = heads * tensor.head_stride + draw(random, 0, 3);
    tensor.batch_stride = rows * tensor.seq_stride + draw(random, 0, 3);
    if (draw(random, 0, 1) == 0) {
      tensor.seq_stride = dim + draw(random, 0, 3);
      tensor.head_stride = rows * tensor.seq_stride;
    }
    std::vector<std::byte> memory(static_cast<std::size_t>(batch * (tensor.batch_stride + rows * heads * 3) * 4));
    tensor.data = memory.data();
    Work work{};
    work.first_entry = static_cast<std::int32_t>(draw(random, 0, batch - 1));
    work.num_entries = static_cast<std::int32_t>(draw(random, 1, batch - work.first_entry));
    const std::int64_t begin = draw(random, 0, rows - 1), end = draw(random, begin + 1, rows);
    const std::byte *first = nullptr, *last = nullptr;
    for (std::int64_t b = work.first_entry; b < work.first_entry + work.num_entries; ++b)
      for (std::int64_t row = begin; row < end; ++row)
        for (std::int64_t head = 0; head < heads; ++head) {
          const std::byte* const at = tensor.bytes_at(b, row, head);
          if (first == nullptr || at < first) first = at;
          last = std::max(last, at + dim * size_of(tensor.dtype));
        }
    const Access access = access_of(tensor, work, {begin, end}, heads, dim, true);
    ASSERT_EQ(access.data, first);
    ASSERT_EQ(access.bytes, static_cast<std::size_t>(last - first));
    ASSERT_TRUE(access.writes);
  }
}

}  // namespace
}  // namespace ringattn::cuda
