// A rectangle says what the plan says, by enumeration of every query and key of every step of random problems.
#include "engine/cuda/rectangle.h"

#include <gtest/gtest.h>

#include <set>

#include "engine/reference/oracle.h"
#include "plan/plan.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Random;
using Pairs = std::set<std::pair<std::int64_t, std::int64_t>>;

Pairs seen(const Band& band, const Piece& queries, const Piece& keys) {
  const WorkItem item{.band = band, .queries = {&queries, 1}, .keys = {&keys, 1}};
  Pairs pairs;
  for (std::int64_t i = 0; i < queries.length; ++i) {
    const Interval visible = item.visible(queries, i, keys, Band::unbounded);
    for (std::int64_t j = visible.lo; j < visible.hi; ++j) pairs.insert({queries.row + i, keys.row + j});
  }
  return pairs;
}
Pairs seen(const Rectangle& r) {
  Pairs pairs;
  for (std::int64_t i = 0; i < r.rows; ++i)
    for (std::int64_t j = 0; j < r.keys; ++j)
      if (r.band.lower <= j - i && j - i <= r.band.upper) pairs.insert({r.first_row + i, r.first_key + j});
  return pairs;
}

void expect_exact(const Band& band, const Piece& queries, const Piece& keys) {
  std::optional<Rectangle> found;
  ASSERT_EQ(find_rectangle(band, queries, keys, found), "");
  const Pairs expected = seen(band, queries, keys);
  ASSERT_EQ(found.has_value(), !expected.empty());
  if (!found) return;
  const Rectangle& r = *found;
  ASSERT_EQ(seen(r), expected);
  std::set<std::int64_t> rows, used;
  for (const auto& [row, key] : expected) rows.insert(row), used.insert(key);
  ASSERT_EQ(static_cast<std::int64_t>(rows.size()), r.rows) << "a row sees nothing";
  ASSERT_EQ(*used.begin(), r.first_key);
  ASSERT_EQ(*used.rbegin(), r.first_key + r.keys - 1);
  // Limits are there where they hide something, and as cuDNN takes them.
  if (r.band.upper != Band::unbounded) {
    ASSERT_TRUE(0 <= r.band.upper && r.band.upper < r.keys - 1);
  }
  if (r.band.lower != -Band::unbounded) {
    ASSERT_TRUE(-(r.rows - 1) < r.band.lower && r.band.lower <= 0);
  }
}

TEST(Rectangle, SaysWhatThePlanSays) {
  Random random(test::seed());
  std::int64_t rectangles = 0, refused = 0;
  for (int n = 0; n < test::sample(5'000); ++n) {
    Problem p = reference::draw_problem(random, {.batch = 1, .seqlen = draw(random, 1, 40)});
    p.kv_lengths.clear();
    const int world_size = static_cast<int>(draw(random, 1, 5)),
              rank = static_cast<int>(draw(random, 0, world_size - 1));
    const Plan plan(p, world_size, rank, Pass::forward);
    SCOPED_TRACE(::testing::Message() << "problem " << n << ", rank " << rank << " of " << world_size << ": "
                                      << reference::describe(p));
    for (const Moment& moment : plan.moments()) {
      if (!moment.computes) continue;
      const StepItems step = plan.items(moment, false);
      for (const WorkItem& item : step.items)
        for (const Piece& queries : item.queries)
          for (const Piece& keys : item.keys) {
            std::optional<Rectangle> found;
            if (const std::string reason = find_rectangle(item.band, queries, keys, found); !reason.empty()) {
              ASSERT_EQ(p.sharding, Sharding::striped);
              ++refused;
              continue;
            }
            expect_exact(item.band, queries, keys);
            if (HasFailure()) return;
            ++rectangles;
          }
    }
  }
  EXPECT_GT(rectangles, 10 * refused);
  std::cout << rectangles << " rectangles, " << refused << " refused\n";
}

// Whatever runs a plan may make of its shards one day.
TEST(Rectangle, TakesAnyProgressions) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(20'000); ++n) {
    const std::int64_t stride = draw(random, 1, 4);
    const auto piece = [&] {
      const std::int64_t length = draw(random, 1, 9);
      return Piece{0, {draw(random, 0, 30), 1, stride, 100}, draw(random, 0, 5), length, draw(random, 0, 50)};
    };
    Band band;
    if (draw(random, 0, 2) > 0) band.lower = draw(random, -40, 20);
    if (draw(random, 0, 2) > 0) band.upper = draw(random, -20, 40);
    const Piece queries = piece(), keys = piece();
    SCOPED_TRACE(::testing::Message() << "case " << n);
    expect_exact(band, queries, keys);
    if (HasFailure()) return;
  }
}

TEST(Rectangle, RefusesWhatIsNotEvenlySpaced) {
  std::optional<Rectangle> found;
  const Piece stripes{0, {0, 4, 16, 100}, 2, 9, 0}, dense{0, {0, 100, 100, 100}, 0, 9, 0},
      sparse{0, {0, 1, 3, 100}, 0, 9, 0};
  EXPECT_EQ(find_rectangle({}, stripes, stripes, found), "stripes of 4 tokens are not evenly spaced");
  EXPECT_EQ(find_rectangle({}, dense, sparse, found), "queries stand 1 tokens apart and keys 3");
  EXPECT_FALSE(found);
}

}  // namespace
}  // namespace ringattn::cuda
