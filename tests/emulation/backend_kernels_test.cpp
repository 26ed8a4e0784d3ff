// RA_BACKEND_CUDA with its own kernels, both emulated or on GPUs, through the C API: rings of all sizes over both transports, forward and
// backward, against the oracle.
#include <functional>

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

void run(const Case& param, int problems, const std::function<reference::ProblemLimits(int)>& limits) {
  const auto [transport, world_size, devices] = param;
  Machine machine(devices);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, world_size);
  const std::uint64_t first = seed();
  reference::Random random(first);
  for (int n = 0; n < problems; ++n) {
    machine.reset(first + static_cast<std::uint64_t>(n));
    const reference::Oracle oracle(reference::draw_problem(random, limits(n)), random);
    Results results = results_for(oracle);
    {
      CudaRanks ranks(world_size, transport, machine.devices());
      run_both_passes(ranks, oracle, results);
    }
    expect_within(results, oracle);
    machine.expect_clean();
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << "seed " << first << ", problem " << n;
      return;
    }
  }
}

TEST_P(Kernels, AreRightInARing) {
  run(GetParam(), full() ? 100 : sample(6), [](int) { return small; });
}

// What changes scores and weights, mask slices and dilation; alone and together.
TEST_P(Kernels, AreRightWithModifiersAndLayers) {
  run(GetParam(), full() ? 100 : sample(8), [](int n) {
    reference::ProblemLimits limits = small;
    limits.modifiers = n % 4 != 0;
    limits.layers = n % 4 != 1;
    if (limits.layers) limits.seqlen = 48;
    return limits;
  });
}

}  // namespace
}  // namespace ringattn::test
