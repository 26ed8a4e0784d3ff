// ra_all_reduce: every rank has the same bits, which are near the sum in fp64.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

float number_of_rank(std::int32_t rank, std::int64_t i) { return static_cast<float>(hashed_uniform(1, 'r', rank, i)); }

ra_reduce_args make_args(std::vector<float>& data) {
  ra_reduce_args args;
  ra_init_reduce_args(&args, sizeof args);
  args.data = data.data();
  args.data_size = data.size() * sizeof(float);
  args.count = static_cast<std::int64_t>(data.size());
  return args;
}

TEST(AllReduce, GivesEveryRankTheSameSum) {
  for (const std::int32_t world_size : {1, 2, 3, 4, 7, 8}) {
    const Ranks ranks(world_size);
    for (const std::int64_t count : {0, 1, 2, 3, 5, 8, 64, 1000, 300'001}) {
      std::vector<std::vector<float>> data(static_cast<std::size_t>(world_size));
      std::atomic<std::int64_t> sent{0};
      ranks.run([&](std::int32_t rank, ra_context* context) {
        std::vector<float>& own = data[static_cast<std::size_t>(rank)];
        for (std::int64_t i = 0; i < count; ++i) own.push_back(number_of_rank(rank, i));
        const ra_reduce_args args = make_args(own);
        Error error;
        EXPECT_EQ(ra_all_reduce(context, &args, &error), RA_STATUS_SUCCESS) << error;
        ra_call_statistics statistics;
        ra_init_call_statistics(&statistics, sizeof statistics);
        ra_get_call_statistics(context, &statistics, nullptr);
        sent += statistics.hop_bytes;
      });
      EXPECT_EQ(sent, 2 * (world_size - 1) * count * 4);
      for (const std::vector<float>& own : data) {
        ASSERT_EQ(own.size(), static_cast<std::size_t>(count));
        ASSERT_TRUE(count == 0 || std::memcmp(own.data(), data[0].data(), own.size() * sizeof(float)) == 0)
            << world_size << " ranks, " << count << " numbers";
      }
      for (std::int64_t i = 0; i < count; ++i) {
        double sum = 0, size = 0;
        for (std::int32_t rank = 0; rank < world_size; ++rank) {
          sum += static_cast<double>(number_of_rank(rank, i));
          size += std::abs(static_cast<double>(number_of_rank(rank, i)));
        }
        ASSERT_NEAR(data[0][static_cast<std::size_t>(i)], sum, world_size * 0x1p-24 * size) << "number " << i;
      }
    }
  }
}

// Number i is summed along the ring from the rank on whose part it is.
TEST(AllReduce, SumsInTheOrderThatItSays) {
  constexpr std::int32_t world_size = 3;
  constexpr std::int64_t count = 7, part = 3;
  for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
    std::vector<float> own;
    for (std::int64_t i = 0; i < count; ++i) own.push_back(number_of_rank(rank, i));
    const ra_reduce_args args = make_args(own);
    EXPECT_EQ(ra_all_reduce(context, &args, nullptr), RA_STATUS_SUCCESS);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto first = static_cast<std::int32_t>(i / part);
      float sum = number_of_rank(first, i);
      for (std::int32_t n = 1; n < world_size; ++n) sum += number_of_rank((first + n) % world_size, i);
      EXPECT_EQ(own[static_cast<std::size_t>(i)], sum) << "number " << i;
    }
  });
}

TEST(AllReduce, RefusesRanksThatDisagree) {
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    std::vector<float> own(static_cast<std::size_t>(4 + rank));
    const ra_reduce_args args = make_args(own);
    Error error;
    EXPECT_EQ(ra_all_reduce(context, &args, &error), RA_STATUS_MISMATCH) << error;
    EXPECT_NE(error.text().find("count is 4 on rank 0 but 5 on rank 1"), std::string::npos) << error;
  });
}

}  // namespace
}  // namespace ringattn::test
