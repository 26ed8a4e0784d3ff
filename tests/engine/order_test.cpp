// In which order the tiles of a head may be computed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "support/engine.h"
#include "support/random.h"
#include "support/tile_order.h"

namespace ringattn::test {
namespace {

constexpr std::int64_t tile = 768;  // of all engines a multiple of the keys that they attend at a time

TEST(TileOrder, CurvesVisitEveryTileOnce) {
  for (const TileOrder order : tile_orders)
    for (const std::int64_t count : {1, 2, 5, 8}) {
      std::set<std::pair<std::int64_t, std::int64_t>> visited;
      for (const TilePair& t : list_tiles(order, count)) visited.insert({t.query, t.key});
      EXPECT_EQ(std::ssize(visited), count * count);
      EXPECT_EQ(std::ssize(list_tiles(order, count)), count * count);
    }
}

TEST(TileOrder, NeighboursOnHilbertsCurveShareATile) {
  const std::vector<TilePair> tiles = list_tiles(TileOrder::hilbert, 16);
  for (std::size_t n = 1; n < tiles.size(); ++n)
    ASSERT_EQ(std::abs(tiles[n].query - tiles[n - 1].query) + std::abs(tiles[n].key - tiles[n - 1].key), 1) << n;
}

bool are_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Where a row meets its keys in ascending order.
TEST(TileOrder, OfAscendingKeysChangesNoBitOfTheForwardPass) {
  const std::unique_ptr<Engine> engine = make_cpu_engine(test::engine(), 1);
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const bool causal : {false, true}) {
      TiledHead head(*engine, 3 * tile, tile, 16, dtype, causal);
      const std::vector<float> out = head.out(), lse = head.lse();
      for (const TileOrder order : {TileOrder::rows, TileOrder::columns, TileOrder::z}) {
        head.run_tiles(Pass::forward, order);
        EXPECT_TRUE(are_same_bits(head.out(), out) && are_same_bits(head.lse(), lse))
            << "order " << int(order) << ", dtype " << int(dtype) << ", causal " << causal;
      }
    }
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(double{a[i]} - double{b[i]}));
    size = std::max(size, std::abs(double{a[i]}));
  }
  return difference / size;
}

TEST(TileOrder, OfAnyKindChangesRoundingOnly) {
  const std::unique_ptr<Engine> engine = make_cpu_engine(test::engine(), 1);
  TiledHead head(*engine, 3 * tile - 100, tile, 16, DType::float32, true);
  head.run_whole(Pass::backward);
  const std::vector<float> out = head.out(), lse = head.lse(), dq = head.dq(), dk = head.dk(), dv = head.dv();
  for (const TileOrder order : tile_orders) {
    head.run_tiles(Pass::forward, order);
    head.run_tiles(Pass::backward, order);
    EXPECT_LT(largest_difference(out, head.out()), 2e-6);
    EXPECT_LT(largest_difference(lse, head.lse()), 2e-6);
    EXPECT_LT(largest_difference(dq, head.dq()), 5e-6);
    EXPECT_LT(largest_difference(dk, head.dk()), 5e-6);
    EXPECT_LT(largest_difference(dv, head.dv()), 5e-6);
  }
}

}  // namespace
}  // namespace ringattn::test
