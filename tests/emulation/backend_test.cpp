// RA_BACKEND_CUDA through the C API, on emulated devices: rings of all sizes in every order that streams and events leave open, and
// each of the library's own waits is needed.
#include "emulation/backend.h"

#include <barrier>
#include <deque>
#include <iostream>
#include <map>

#include "emulation/program.h"

namespace ringattn::test {
namespace {

struct Case {
  std::int32_t transport;
  std::int32_t world_size;
  int devices;
  Schedule schedule = Schedule::automatic;
};
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.transport == RA_TRANSPORT_NCCL ? "nccl_" : "local_") +
         std::to_string(info.param.world_size) + "_on_" + std::to_string(info.param.devices) +
         (info.param.schedule == Schedule::all_gather ? "_gathered" : "");
}
class Backend : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, Backend,
                         ::testing::Values(Case{RA_TRANSPORT_LOCAL, 1, 1}, Case{RA_TRANSPORT_LOCAL, 2, 1},
                                           Case{RA_TRANSPORT_LOCAL, 2, 2}, Case{RA_TRANSPORT_LOCAL, 3, 2},
                                           Case{RA_TRANSPORT_LOCAL, 4, 4}, Case{RA_TRANSPORT_LOCAL, 8, 8},
                                           Case{RA_TRANSPORT_NCCL, 1, 1}, Case{RA_TRANSPORT_NCCL, 2, 2},
                                           Case{RA_TRANSPORT_NCCL, 3, 3}, Case{RA_TRANSPORT_NCCL, 4, 4},
                                           Case{RA_TRANSPORT_NCCL, 8, 8}),
                         name_of);

class BackendWaits : public Backend {};
INSTANTIATE_TEST_SUITE_P(
    All, BackendWaits,
    ::testing::Values(Case{RA_TRANSPORT_LOCAL, 2, 2, Schedule::ring}, Case{RA_TRANSPORT_LOCAL, 3, 3, Schedule::ring},
                      Case{RA_TRANSPORT_LOCAL, 4, 4, Schedule::ring}, Case{RA_TRANSPORT_NCCL, 2, 2, Schedule::ring},
                      Case{RA_TRANSPORT_NCCL, 3, 3, Schedule::ring}, Case{RA_TRANSPORT_NCCL, 4, 4, Schedule::ring},
                      Case{RA_TRANSPORT_LOCAL, 3, 3, Schedule::all_gather},
                      Case{RA_TRANSPORT_NCCL, 3, 3, Schedule::all_gather}),
    name_of);

constexpr reference::ProblemLimits small{.batch = 2, .seqlen = 40, .num_heads_kv = 2, .group = 2, .head_dim = 12};

std::deque<reference::Oracle> draw_oracles(int count, std::uint64_t seed) {
  reference::Random random(seed);
  std::deque<reference::Oracle> oracles;
  for (int i = 0; i < count; ++i) {
    reference::ProblemLimits limits = small;
    limits.modifiers = i % 3 == 1;
    limits.layers = i % 12 == 5;
    oracles.emplace_back(reference::draw_problem(random, limits), random);
  }
  return oracles;
}

// Two forward and two backward passes, each begun in another stream while the one before may be under way. No rank waits for its
// device before all have submitted all: that would put what others submit later after it, which they did not ask for.
void run_twice(CudaRanks& ranks, const reference::Oracle& oracle, Results& results) {
  std::barrier submitted(ranks->world_size());
  ranks->run([&](std::int32_t rank, ra_context* context) {
    const int device = rank % ranks.devices();
    Streams streams(device);
    DeviceShards shards(oracle, ranks->world_size(), rank, device);
    shards.upload(streams.first);
    for (int pass = 0; pass < 2; ++pass) {
      Error error;
      EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(shards.backward(context, streams.second, &error), RA_STATUS_SUCCESS) << error;
    }
    submitted.arrive_and_wait();
    shards.download(results, streams.second);
  });
}

TEST_P(Backend, IsRightInEveryOrder) {
  const auto& [transport, world_size, devices, any_schedule] = GetParam();
  const std::uint64_t first = seed();
  const int seeds = full() ? 1000 : sample(transport == RA_TRANSPORT_LOCAL ? 120 : 24);  // NCCL's connections take time
  const std::deque<reference::Oracle> oracles = draw_oracles(std::min(seeds, 25), first);
  for (int n = 0; n < seeds; ++n) {
    emulation::reset({.devices = devices, .seed = first + static_cast<std::uint64_t>(n), .peer_access = n % 4 != 0});
    const reference::Oracle& oracle = oracles[static_cast<std::size_t>(n) % oracles.size()];
    Results results = results_for(oracle);
    {
      CudaRanks ranks(world_size, transport, devices);
      for (int call = 0; call < 2; ++call) run_twice(ranks, oracle, results);
    }
    expect_within(results, oracle);
    expect_no_violations();
    EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
    if (HasFailure()) {
      ADD_FAILURE() << "seed " << first + static_cast<std::uint64_t>(n);
      return;
    }
  }
}

TEST_P(Backend, PassesTheSelfTest) {
  const auto& [transport, world_size, devices, any_schedule] = GetParam();
  emulation::reset({.devices = devices, .seed = seed()});
  {
    CudaRanks ranks(world_size, transport, devices);
    ranks->run([&](std::int32_t rank, ra_context* context) {
      Error error;
      EXPECT_EQ(ra_run_self_test(context, 3, 1, &error), RA_STATUS_SUCCESS) << error;
      ra_context_info info;
      ra_init_context_info(&info, sizeof info);
      EXPECT_EQ(ra_get_context_info(context, &info, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(info.backend, RA_BACKEND_CUDA);
      EXPECT_EQ(info.transport, GetParam().transport);
      EXPECT_EQ(info.device, rank % devices);
    });
  }
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

// Leaves out each wait of the library in turn. Either the checker notices as the work is submitted, whatever comes out of the order that
// is drawn; or other waits imply this one in these passes, and then results are right in every order. All waits of a stream for another
// are of a kind, of which one at least is noticed. Chunks come to all ranks, and gradients too, which are rounded.
TEST_P(BackendWaits, AreAllNeeded) {
#ifdef RINGATTN_THREAD_SANITIZER
  GTEST_SKIP() << "what is left out makes the races that ThreadSanitizer looks for";
#endif
  const auto [transport, world_size, devices, schedule] = GetParam();
  const std::uint64_t first = seed();
  const reference::Oracle oracle = travelling_oracle(world_size, first, schedule);
  Results results = results_for(oracle);
  const auto run = [&](const std::string& left_out, std::uint64_t order) {
    emulation::reset({.devices = devices, .seed = order});
    CudaRanks ranks(world_size, transport, devices);
    emulation::leave_out_wait(left_out);
    run_twice(ranks, oracle, results);
    return emulation::waits();
  };
  const std::vector<std::string> waits = run("", first);
  expect_no_violations();
  EXPECT_GE(waits.size(), static_cast<std::size_t>(10 * world_size));
  struct Kind {
    int noticed = 0, implied = 0;
  };
  std::map<std::string, Kind> kinds;
  const bool all = slowness == 1 || full();  // or the first of each kind
  for (const std::string& wait : waits) {
    Kind& kind = kinds[wait.substr(0, wait.rfind(','))];
    if (!all && kind.noticed + kind.implied > 0) continue;
    EXPECT_EQ(run(wait, first), waits);
    const std::vector<emulation::Violation> found = emulation::violations();
    if (!found.empty()) {
      std::cout << "without " << wait << ": " << found[0] << '\n';
      ++kind.noticed;
      continue;
    }
    std::cout << "without " << wait << ": nothing, others imply it\n";
    ++kind.implied;
    for (std::uint64_t order = 0; order < (all ? 6 : 2); ++order) {
      SCOPED_TRACE(::testing::Message() << "without " << wait << ", in order " << order);
      run(wait, first + order);
      expect_no_violations();
      expect_within(results, oracle);
    }
  }
  for (const auto& [streams, kind] : kinds) {
    std::cout << "of the waits of " << streams << " " << kind.noticed << " noticed, " << kind.implied
              << " implied by others\n";
    if (all) {
      EXPECT_GE(kind.noticed, 1) << "no wait of " << streams << " is needed";
    }
  }
}

}  // namespace
}  // namespace ringattn::test
