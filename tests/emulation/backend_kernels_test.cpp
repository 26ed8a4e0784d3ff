// RA_BACKEND_CUDA with its own kernels, both emulated, through the C API: rings of all sizes over both transports, forward and backward,
// against the oracle.
#include <iostream>

#include "emulation/backend.h"
#include "emulation/kernel_launcher.h"

namespace ringattn::test {
namespace {

struct Case {
  std::int32_t transport;
  std::int32_t world_size;
  int devices;
};
class Kernels : public ::testing::TestWithParam<Case> {};
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.transport == RA_TRANSPORT_NCCL ? "nccl_" : "local_") +
         std::to_string(info.param.world_size) + "_on_" + std::to_string(info.param.devices);
}
INSTANTIATE_TEST_SUITE_P(All, Kernels,
                         ::testing::Values(Case{RA_TRANSPORT_LOCAL, 1, 1}, Case{RA_TRANSPORT_LOCAL, 2, 1},
                                           Case{RA_TRANSPORT_LOCAL, 3, 3}, Case{RA_TRANSPORT_LOCAL, 4, 2},
                                           Case{RA_TRANSPORT_LOCAL, 8, 8}, Case{RA_TRANSPORT_NCCL, 1, 1},
                                           Case{RA_TRANSPORT_NCCL, 2, 2}, Case{RA_TRANSPORT_NCCL, 3, 3},
                                           Case{RA_TRANSPORT_NCCL, 4, 4}, Case{RA_TRANSPORT_NCCL, 8, 8}),
                         name_of);

constexpr reference::ProblemLimits small{.batch = 2, .seqlen = 72, .num_heads_kv = 2, .group = 2, .head_dim = 40};

TEST_P(Kernels, AreRightInARing) {
  const auto [transport, world_size, devices] = GetParam();
  const KernelLauncher launcher;
  const std::uint64_t first = seed();
  reference::Random random(first);
  for (int n = 0; n < (full() ? 100 : sample(6)); ++n) {
    emulation::reset({.devices = devices, .seed = first + static_cast<std::uint64_t>(n)});
    const reference::Oracle oracle(reference::draw_problem(random, small), random);
    Results results = results_for(oracle);
    {
      CudaRanks ranks(world_size, transport, devices);
      ranks->run([&](std::int32_t rank, ra_context* context) {
        const int device = rank % ranks.devices();
        Streams streams(device);
        DeviceShards shards(oracle, ranks->world_size(), rank, device);
        shards.upload(streams.first);
        Error error;
        EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(shards.backward(context, streams.second, &error), RA_STATUS_SUCCESS) << error;
        shards.download(results, streams.second);
      });
    }
    expect_within(results, oracle);
    expect_no_violations();
    EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
    EXPECT_EQ(launcher.faults(), std::vector<std::string>{});
    if (HasFailure()) {
      ADD_FAILURE() << "seed " << first << ", problem " << n;
      return;
    }
  }
}

// Kernels that are to leave multiprocessors free do so, and results are the same to the last bit.
TEST(NumSms, LimitsEveryLaunchAndChangesNoResult) {
  constexpr int size = 2;
  reference::Random random(seed());
  Problem p = reference::draw_problem(random, small);
  p.seqlen_q = p.seqlen_kv = 600;
  p.documents = {{0, 600, 0, 600}};
  p.kv_lengths.clear();
  p.num_heads_q = 4;
  p.num_heads_kv = 2;
  const reference::Oracle oracle(p, random);
  std::vector<Results> all;
  for (const int num_sms : {0, 1, 3, 7}) {
    const KernelLauncher launcher;
    emulation::reset({.devices = size});
    Results& results = all.emplace_back(results_for(oracle));
    {
      CudaRanks ranks(size, RA_TRANSPORT_LOCAL, size, [&](ra_context_config& config) { config.num_sms = num_sms; });
      ranks->run([&](std::int32_t rank, ra_context* context) {
        Streams streams(rank);
        DeviceShards shards(oracle, size, rank, rank);
        shards.upload(streams.first);
        Error error;
        EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(shards.backward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
        shards.download(results, streams.first);
      });
    }
    expect_within(results, oracle);
    EXPECT_EQ(launcher.faults(), std::vector<std::string>{});
    if (num_sms == 0) {
      EXPECT_GT(launcher.largest_grid(), 7);
    } else {
      EXPECT_EQ(launcher.largest_grid(), num_sms);
    }
    for (const auto member : {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv}) {
      EXPECT_TRUE(results.*member == all[0].*member) << num_sms << " multiprocessors";
    }
  }
}

TEST(OldDevice, IsRefused) {
  emulation::reset({.devices = 1, .compute_capability = 75});
  ra_context_config config = make_config(1, 0);
  config.engine = nullptr;
  config.backend = RA_BACKEND_CUDA;
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED) << error;
  EXPECT_NE(error.text().find("device 0 has compute capability 7.5"), std::string::npos) << error;
}

}  // namespace
}  // namespace ringattn::test
