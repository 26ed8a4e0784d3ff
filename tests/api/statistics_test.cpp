// What a call did equals what the memory query said it would do: steps, messages and bytes, forward and backward.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

struct Mask {
  std::string name;
  std::function<void(ra_attention_desc& desc)> apply;
};

constexpr std::int64_t kSeqlen = 61;
constexpr std::int64_t kOffsets[] = {0, 3, 3, 20, 22, kSeqlen};
constexpr std::int64_t kLengths[] = {40, 0};

const std::vector<Mask> kMasks = {
    {"full", [](ra_attention_desc&) {}},
    {"causal", [](ra_attention_desc& d) { d.mask = RA_MASK_CAUSAL; }},
    {"window",
     [](ra_attention_desc& d) {
       d.mask = RA_MASK_CAUSAL;
       d.window_left = 4;
     }},
    {"documents",
     [](ra_attention_desc& d) {
       d.mask = RA_MASK_CAUSAL;
       d.num_documents = 5;
       d.document_offsets_q = kOffsets;
     }},
    {"padding", [](ra_attention_desc& d) { d.kv_lengths = kLengths; }},
    {"cross", [](ra_attention_desc& d) { d.seqlen_kv = 17; }},
    {"no keys", [](ra_attention_desc& d) { d.seqlen_kv = 0; }},
};

ra_call_statistics statistics_of(const ra_context* context) {
  ra_call_statistics statistics;
  ra_init_call_statistics(&statistics, sizeof statistics);
  Error error;
  EXPECT_EQ(ra_get_call_statistics(context, &statistics, &error), RA_STATUS_SUCCESS) << error;
  return statistics;
}

void expect_times(const ra_call_statistics& statistics) {
  EXPECT_GT(statistics.total_seconds, 0);
  EXPECT_GE(statistics.compute_seconds, 0);
  EXPECT_GE(statistics.wait_seconds, 0);
  EXPECT_LE(statistics.compute_seconds + statistics.wait_seconds, statistics.total_seconds);
}

TEST(Statistics, AreZeroBeforeTheFirstCall) {
  for_each_rank(1, [](std::int32_t, ra_context* context) {
    const ra_call_statistics statistics = statistics_of(context);
    EXPECT_EQ(statistics.struct_size, sizeof statistics);
    EXPECT_EQ(statistics.steps, 0);
    EXPECT_EQ(statistics.hops, 0);
    EXPECT_EQ(statistics.hop_bytes, 0);
    EXPECT_EQ(statistics.total_seconds, 0);
  });
}

struct Way {
  std::int64_t num_chunks;
  std::int32_t schedule;
  std::int64_t gather_bytes = 0;
};

TEST(Statistics, EqualTheMemoryRequirements) {
  for (const std::int32_t world_size : {1, 2, 3, 5}) {
    const Ranks ranks(world_size);
    for (const std::int32_t sharding : {RA_SHARDING_CONTIGUOUS, RA_SHARDING_ZIGZAG, RA_SHARDING_STRIPED}) {
      for (const Mask& mask : kMasks) {
        for (const auto& [num_chunks, schedule, gather_bytes] :
             {Way{0, RA_SCHEDULE_RING}, Way{1, RA_SCHEDULE_RING}, Way{3, RA_SCHEDULE_RING},
              Way{0, RA_SCHEDULE_ALL_GATHER}, Way{3, RA_SCHEDULE_ALL_GATHER}, Way{1, RA_SCHEDULE_ALL_GATHER, 1}}) {
          ra_attention_desc desc = make_desc(kSeqlen, 2, 8, 2);
          desc.sharding = sharding;
          desc.num_chunks = num_chunks;
          desc.schedule = schedule;
          desc.gather_bytes = gather_bytes;
          mask.apply(desc);
          ranks.run([&, num_chunks = num_chunks, schedule = schedule, gather_bytes = gather_bytes](
                        std::int32_t rank, ra_context* context) {
            SCOPED_TRACE(testing::Message()
                         << mask.name << ", sharding " << sharding << ", num_chunks " << num_chunks << ", schedule "
                         << schedule << ", gather_bytes " << gather_bytes << ", rank " << rank << " of " << world_size);
            ra_memory_requirements required;
            ra_init_memory_requirements(&required, sizeof required);
            Error error;
            ASSERT_EQ(ra_get_memory_requirements(context, &desc, &required, &error), RA_STATUS_SUCCESS) << error;
            const bool gathers = schedule == RA_SCHEDULE_ALL_GATHER && world_size > 1;
            for (const std::int32_t chosen : {required.forward_schedule, required.backward_schedule})
              EXPECT_EQ(chosen, gathers ? RA_SCHEDULE_ALL_GATHER : RA_SCHEDULE_RING);
            for (const std::int64_t parts : {required.forward_parts, required.backward_parts})
              EXPECT_EQ(parts, gathers && gather_bytes > 0 ? 2 * 2 : 1);  // heads and entries
            if (num_chunks != 0) {  // as asked, but no chunk without a token, and nothing is cut that does not travel
              const std::int64_t longest = (with_defaults(desc).seqlen_kv + world_size - 1) / world_size;
              const std::int64_t least = world_size == 1 ? 1 : std::min(num_chunks, longest);
              for (const std::int64_t chunks : {required.forward_chunks, required.backward_chunks}) {
                EXPECT_LE(chunks, num_chunks);
                EXPECT_GE(chunks, least);
              }
            }
            if (world_size == 1) {
              EXPECT_EQ(required.forward_hops, 0);
              EXPECT_EQ(required.backward_hops, 0);
            }

            const Shard shard(desc, world_size, rank);
            EXPECT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
            ra_call_statistics statistics = statistics_of(context);
            EXPECT_EQ(statistics.steps, required.forward_steps);
            EXPECT_EQ(statistics.hops, required.forward_hops);
            EXPECT_EQ(statistics.hop_bytes, required.forward_hop_bytes);
            expect_times(statistics);

            EXPECT_EQ(shard.backward(context, &error), RA_STATUS_SUCCESS) << error;
            statistics = statistics_of(context);
            EXPECT_EQ(statistics.steps, required.backward_steps);
            EXPECT_EQ(statistics.hops, required.backward_hops);
            EXPECT_EQ(statistics.hop_bytes, required.backward_hop_bytes);
            expect_times(statistics);
          });
        }
      }
    }
  }
}

// The whole call counts: also the time in which a rank waits for one that has yet to make it.
TEST(Statistics, CountTheWaitForALateRank) {
  constexpr std::chrono::milliseconds late{100};
  constexpr double least = 0.06;  // seconds: the late rank begins to sleep a little before the other is in its call
  for (const bool is_backward : {false, true}) {
    std::promise<void> begins;
    for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
      const Shard shard(make_desc(24), 2, rank);
      if (is_backward) {
        EXPECT_EQ(shard.forward(context, nullptr), RA_STATUS_SUCCESS);
      }
      if (rank == 0) {
        begins.set_value();
      } else {
        begins.get_future().wait();
        std::this_thread::sleep_for(late);
      }
      Error error;
      EXPECT_EQ(is_backward ? shard.backward(context, &error) : shard.forward(context, &error), RA_STATUS_SUCCESS)
          << error;
      if (rank == 0) {
        const ra_call_statistics statistics = statistics_of(context);
        expect_times(statistics);
        EXPECT_GE(statistics.wait_seconds, least);
      }
    });
  }
}

// A refused call is not a completed one.
TEST(Statistics, AreThoseOfTheLastCompletedCall) {
  for_each_rank(1, [](std::int32_t rank, ra_context* context) {
    EXPECT_EQ(Shard(make_desc(24), 1, rank).forward(context, nullptr), RA_STATUS_SUCCESS);
    const ra_call_statistics before = statistics_of(context);
    EXPECT_EQ(ra_forward(context, nullptr, nullptr, nullptr), RA_STATUS_INVALID_ARGUMENT);
    const ra_call_statistics after = statistics_of(context);
    EXPECT_EQ(after.steps, before.steps);
    EXPECT_EQ(after.total_seconds, before.total_seconds);
  });
}

// The pairs that are counted are those of the mask, summed over ranks.
TEST(Statistics, VisiblePairsAreThoseOfTheMask) {
  constexpr std::int64_t batch = 2, heads = 2;
  const double causal = kSeqlen * (kSeqlen + 1) / 2;
  const auto triangle = [](std::int64_t n) { return static_cast<double>(n * (n + 1) / 2); };
  const double pairs[] = {batch * heads * static_cast<double>(kSeqlen * kSeqlen),
                          batch * heads * causal,
                          batch * heads * (causal - triangle(kSeqlen - 5)),
                          batch * heads * (triangle(3) + triangle(17) + triangle(2) + triangle(39)),
                          heads * static_cast<double>(kSeqlen * 40),
                          batch * heads * static_cast<double>(kSeqlen * 17),
                          0};
  for (std::size_t i = 0; i < kMasks.size(); ++i) {
    for (const std::int32_t world_size : {1, 3, 4}) {
      double sum = 0;
      for (std::int32_t rank = 0; rank < world_size; ++rank) {
        ra_attention_desc desc = make_desc(kSeqlen, heads, 8, batch);
        kMasks[i].apply(desc);
        const ra_context_config config = make_config(world_size, rank);
        ra_memory_requirements required;
        ra_init_memory_requirements(&required, sizeof required);
        Error error;
        ASSERT_EQ(ra_estimate_memory(&config, &desc, &required, &error), RA_STATUS_SUCCESS) << error;
        sum += required.visible_pairs;
      }
      EXPECT_EQ(sum, pairs[i]) << kMasks[i].name << ", world_size " << world_size;
    }
  }
}

}  // namespace
}  // namespace ringattn::test
