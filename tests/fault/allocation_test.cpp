// Every allocation fails once, and nothing is left behind.
//
// On a thread that is armed with n, the n-th allocation from then on (allocation.h) fails; only the rank under test is armed, and only
// around the library call. Then: that rank gets OUT_OF_MEMORY, the others an
// error at once rather than by their time-outs, every byte is given back, and the next contexts work. n counts up until the
// call succeeds without reaching its n-th allocation.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "fault/failing_allocation.h"
#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kTimeoutMs = 20'000;

enum class Phase { create, forward, backward, again };
constexpr const char* kPhaseNames[] = {"create", "forward", "backward"};

ra_attention_desc problem() {
  ra_attention_desc desc = make_desc(20, 2, 8);
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG;
  return desc;
}

// How a rank's life ended. No GoogleTest inside the ranks: it allocates too.
struct Outcome {
  ra_status status = RA_STATUS_SUCCESS;
  bool allocation_failed = false;
  Clock::time_point ended;
  Error error;
};

// A whole life of a group: create, forward, backward, and forward once more, in which a failure of the last one is noticed by
// those who needed nothing more from the failed rank. A rank stops at its first error. Rank `victim` is armed with n during
// `phase`; n = 0 arms nobody.
std::vector<Outcome> live(std::int32_t world_size, std::int32_t victim, Phase phase, std::int64_t n) {
  const ra_unique_id id = make_unique_id();
  std::vector<Outcome> outcomes(static_cast<std::size_t>(world_size));
  std::vector<Context> contexts(static_cast<std::size_t>(world_size));
  std::vector<Shard> shards;
  for (std::int32_t rank = 0; rank < world_size; ++rank) shards.emplace_back(problem(), world_size, rank);

  run_threads(world_size, [&](std::int32_t rank) {
    const auto i = static_cast<std::size_t>(rank);
    Outcome& outcome = outcomes[i];
    const auto run = [&](Phase now, auto&& call) {
      if (outcome.status != RA_STATUS_SUCCESS) return;
      allocations_left = now == phase && rank == victim ? n : 0;
      has_failed = false;
      outcome.status = call();
      allocations_left = 0;
      outcome.allocation_failed = outcome.allocation_failed || has_failed;
      outcome.ended = Clock::now();
    };
    ra_context_config config = make_config(world_size, rank, &id);
    config.timeout_ms = kTimeoutMs;
    const auto forward = [&] { return shards[i].forward(contexts[i].get(), &outcome.error); };
    const auto backward = [&] { return shards[i].backward(contexts[i].get(), &outcome.error); };
    run(Phase::create, [&] {
      contexts[i].reset(ra_create_context(&config, &outcome.error));
      return static_cast<ra_status>(outcome.error.status);
    });
    run(Phase::forward, forward);
    run(Phase::backward, backward);
    run(Phase::again, forward);
  });
  return outcomes;
}

// Whether the n-th allocation of `victim` in `phase` was reached, and so failed.
bool fail_one_allocation(std::int32_t world_size, std::int32_t victim, Phase phase, std::int64_t n) {
  const std::vector<Outcome> outcomes = live(world_size, victim, phase, n);
  const Outcome& failed = outcomes[static_cast<std::size_t>(victim)];
  for (std::int32_t rank = 0; rank < world_size; ++rank) {
    const Outcome& outcome = outcomes[static_cast<std::size_t>(rank)];
    SCOPED_TRACE("allocation " + std::to_string(n) + " of rank " + std::to_string(victim) + ", seen by rank " +
                 std::to_string(rank));
    EXPECT_EQ(outcome.status, outcome.error.status);
    if (!failed.allocation_failed) {
      EXPECT_EQ(outcome.status, RA_STATUS_SUCCESS) << outcome.error;
    } else if (rank == victim) {
      EXPECT_EQ(outcome.status, RA_STATUS_OUT_OF_MEMORY) << outcome.error;
      if (phase != Phase::create) {
        EXPECT_EQ(outcome.error.rank, victim) << outcome.error;
      }
    } else {  // at the latest by its next call
      EXPECT_NE(outcome.status, RA_STATUS_SUCCESS);
      EXPECT_EQ(outcome.error.rank, victim) << outcome.error;
      EXPECT_LT(outcome.ended - failed.ended, kAtOnce) << outcome.error;
    }
  }
  return failed.allocation_failed;
}

class EveryAllocation : public testing::TestWithParam<std::tuple<std::int32_t, std::int32_t, Phase>> {};

TEST_P(EveryAllocation, FailsOnceWithoutHarm) {
  const auto [world_size, victim, phase] = GetParam();
  for (int i = 0; i < 3; ++i) {  // what is made once and kept, by anybody
    live(world_size, victim, phase, 0);
    fail_one_allocation(world_size, victim, phase, 0);
  }
  const std::int64_t baseline = live_bytes;

  std::int64_t n = 1;
  while (fail_one_allocation(world_size, victim, phase, n)) {
    for (const Outcome& outcome : live(world_size, victim, phase, 0)) {
      EXPECT_EQ(outcome.status, RA_STATUS_SUCCESS)
          << "in the next group, after allocation " << n << ": " << outcome.error;
    }
    if (HasFailure()) return;  // GoogleTest keeps the messages, so bytes cannot be compared any more
    ASSERT_EQ(live_bytes - baseline, 0) << "bytes were not given back after allocation " << n;
    ASSERT_LT(n++, kMostAllocations) << "the call still allocates";
  }
  std::cout << n - 1 << " allocations in " << kPhaseNames[static_cast<int>(phase)] << '\n';
}

using Parameter = std::tuple<std::int32_t, std::int32_t, Phase>;

std::vector<Parameter> every_rank_in_every_phase() {
  std::vector<Parameter> result;
  for (const Phase phase : {Phase::create, Phase::forward, Phase::backward}) {
    for (const std::int32_t world_size : {1, 2, 3}) {
      for (std::int32_t victim = 0; victim < world_size; ++victim) result.emplace_back(world_size, victim, phase);
    }
  }
  return result;
}

std::string name_of(const testing::TestParamInfo<Parameter>& info) {
  const auto [world_size, victim, phase] = info.param;
  return std::string(kPhaseNames[static_cast<int>(phase)]) + "_rank_" + std::to_string(victim) + "_of_" +
         std::to_string(world_size);
}

INSTANTIATE_TEST_SUITE_P(, EveryAllocation, testing::ValuesIn(every_rank_in_every_phase()), name_of);

// What the caller writes to its memory after a failed call, nobody gets. Rank 1 has nothing to do but to copy what rank 0 sends,
// and is at it when an allocation of rank 0 fails.
TEST(FailedCall, ReturnsOnlyWhenNoOtherRankReadsItsMemory) {
  constexpr std::int64_t rows = 1 << 14, head_dim = 128, kv_lengths[] = {rows};  // only rank 0's keys are seen
  ra_attention_desc desc = make_desc(2, 1, head_dim);
  desc.seqlen_kv = 2 * rows;
  desc.kv_lengths = kv_lengths;
  desc.num_chunks = 1;
  const auto zeros = [](std::int64_t count) {
    Tensor tensor(RA_DTYPE_FLOAT32, 1, count, 1, 1);
    std::memset(tensor.bytes.get(), 0, tensor.size);
    return tensor;
  };
  const Tensor keys = zeros(rows * head_dim), query = zeros(head_dim);
  Tensor workspaces[2], outs[2] = {zeros(head_dim), zeros(head_dim)};

  std::int64_t n = 0;
  for (bool reached = true; reached;) {
    ASSERT_LT(n++, kMostAllocations) << "the call still allocates";
    for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
      Tensor &workspace = workspaces[rank], &out = outs[rank];
      ra_memory_requirements needs;
      ra_init_memory_requirements(&needs, sizeof needs);
      Error error;
      ASSERT_EQ(ra_get_memory_requirements(context, &desc, &needs, &error), RA_STATUS_SUCCESS) << error;
      workspace = zeros(static_cast<std::int64_t>(needs.forward_workspace / sizeof(float)));
      ra_forward_args args;
      ra_init_forward_args(&args, sizeof args);
      args.q = query.view();
      args.k = args.v = keys.view();
      args.out = out.view();
      args.workspace = workspace.bytes.get();
      args.workspace_size = workspace.size;
      if (rank == 0) {
        failing_takes = std::chrono::milliseconds(1);
        has_failed = false;
        allocations_left = n;
      }
      const ra_status status = ra_forward(context, &desc, &args, &error);
      if (rank == 0) {
        allocations_left = 0;
        for (std::size_t i = 0; i < workspace.size; i += 4096) workspace.bytes[i] = kPoison;  // ahead of any copy
        reached = has_failed;
        EXPECT_EQ(status, reached ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_SUCCESS) << error;
      }
    });
    ASSERT_EQ(std::memchr(workspaces[1].bytes.get(), std::to_integer<int>(kPoison), workspaces[1].size), nullptr)
        << "after allocation " << n << " rank 1 got what had been written when the call of rank 0 had returned";
  }
}

// The same for the functions that need no group: the only effect of a failed allocation is the status.
TEST(LocalFunctions, ReportAFailedAllocation) {
  const ra_attention_desc desc = problem();
  const ra_context_config config = make_config(2, 1);
  ra_memory_requirements requirements;
  ra_init_memory_requirements(&requirements, sizeof requirements);
  ra_unique_id id;
  Error error;
  const auto every_allocation = [&](const char* name, auto&& call) {
    call();
    const std::int64_t baseline = live_bytes;
    fail_each_allocation(name, error, call, [] {});
    if (HasFailure()) return;
    EXPECT_EQ(live_bytes - baseline, 0) << name;
  };
  every_allocation("ra_estimate_memory", [&] { return ra_estimate_memory(&config, &desc, &requirements, &error); });
  every_allocation("ra_create_unique_id",
                   [&] { return ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error); });
  every_allocation("ra_get_shard_length", [&] {
    ra_get_shard_length(&desc, 2, 1, RA_SIDE_QUERY, &error);
    return error.status;
  });
  every_allocation("ra_get_shard_position", [&] {
    ra_get_shard_position(&desc, 2, 1, RA_SIDE_QUERY, 3, &error);
    return error.status;
  });
  std::int64_t positions[4];
  every_allocation("ra_get_shard_positions",
                   [&] { return ra_get_shard_positions(&desc, 2, 1, RA_SIDE_QUERY, 3, 4, positions, &error); });
}

// ---------------------------------------------------------------- nothing is left behind

std::int64_t resident_bytes() {
  std::int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void use_and_destroy(std::int32_t world_size, std::int32_t num_threads = 1) {
  for_each_rank(
      world_size,
      [&](std::int32_t rank, ra_context* context) {
        Error error;
        EXPECT_EQ(Shard(problem(), world_size, rank).forward(context, &error), RA_STATUS_SUCCESS) << error;
      },
      [&](ra_context_config& config) { config.num_threads = num_threads; });
}

TEST(ManyContexts, LeaveNothingBehind) {
  constexpr int count = kSanitized ? 1000 : 10'000;
  const auto world_size = [](int i) { return i % 10 == 9 ? 2 : 1; };
  for (int i = 0; i < count / 20; ++i) use_and_destroy(world_size(i));
  const std::int64_t bytes = live_bytes, resident = resident_bytes(), thread_count = threads(),
                     descriptor_count = descriptors();
  for (int i = 0; i < count; ++i) use_and_destroy(world_size(i));
  EXPECT_EQ(live_bytes - bytes, 0);
  EXPECT_EQ(threads(), thread_count);
  EXPECT_EQ(descriptors(), descriptor_count);
  const std::int64_t growth = resident_bytes() - resident;
  std::cout << count << " contexts, resident memory grew by " << growth << " bytes\n";
  if (!kSanitized) {  // a sanitizer keeps freed memory in quarantine
    EXPECT_LE(growth, 1 << 20);
  }
}

// A context's threads end with it.
TEST(ManyContexts, LeaveNoThreadBehind) {
  use_and_destroy(1);
  const std::int64_t before = threads();
  for (int i = 0; i < 20; ++i) use_and_destroy(1 + i % 2, 4);
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(5);
  while (threads() > before && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_LE(threads(), before);
}

}  // namespace
}  // namespace ringattn::test
