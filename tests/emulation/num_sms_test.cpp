// How many blocks kernels have at a time.
#include "emulation/backend.h"
#include "emulation/kernel_launcher.h"
#include "emulation/program.h"

namespace ringattn::test {
namespace {

constexpr reference::ProblemLimits small{.batch = 2, .seqlen = 72, .num_heads_kv = 2, .group = 2, .head_dim = 40};

// Kernels that are to leave multiprocessors free do so, and results are the same to the last bit.
TEST(NumSms, LimitsEveryLaunchAndChangesNoResult) {
  constexpr int size = 2;
  constexpr std::int64_t seqlen = slowness == 1 ? 600 : 160;  // more blocks than multiprocessors
  reference::Random random(seed());
  Problem p = reference::draw_problem(random, small);
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.documents = {{0, seqlen, 0, seqlen}};
  p.kv_lengths.clear();
  p.num_heads_q = 4;
  p.num_heads_kv = 2;
  const reference::Oracle oracle(p, random);
  std::vector<Results> all;
  for (const int num_sms : {0, 3, 1, 7}) {
    if (slowness > 1 && all.size() == 2) break;
    const KernelLauncher launcher;
    emulation::reset({.devices = size});
    Results& results = all.emplace_back(results_for(oracle));
    {
      CudaRanks ranks(size, RA_TRANSPORT_LOCAL, size, [&](ra_context_config& config) { config.num_sms = num_sms; });
      run_both_passes(ranks, oracle, results);
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

}  // namespace
}  // namespace ringattn::test
