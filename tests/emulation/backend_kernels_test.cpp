// RA_BACKEND_CUDA with its own kernels, both emulated or on GPUs, through the C API: rings of all sizes over both transports, forward and
// backward, against the oracle.
#include <iostream>

#include "emulation/backend.h"
#include "support/machine.h"

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
  Machine machine(devices);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, world_size);
  const std::uint64_t first = seed();
  reference::Random random(first);
  for (int n = 0; n < (full() ? 100 : sample(6)); ++n) {
    machine.reset(first + static_cast<std::uint64_t>(n));
    const reference::Oracle oracle(reference::draw_problem(random, small), random);
    Results results = results_for(oracle);
    {
      CudaRanks ranks(world_size, transport, machine.devices());
      run_both_passes(ranks, oracle, results);
    }
    expect_within(results, oracle);
    machine.expect_clean();
    if (HasFailure()) {
      ADD_FAILURE() << "seed " << first << ", problem " << n;
      return;
    }
  }
}

}  // namespace
}  // namespace ringattn::test
