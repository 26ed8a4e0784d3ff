// Problems of many tiles, too many for an emulated GPU, on one rank and in a ring, through the C API against the oracle.
#include "emulation/backend.h"
#include "support/machine.h"

namespace ringattn::test {
namespace {

struct Case {
  DType dtype;
  std::int64_t head_dim, head_dim_v;
};
class Large : public ::testing::TestWithParam<Case> {};
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const char* const names[] = {"", "float32", "bfloat16", "float16"};
  return std::string(names[static_cast<int>(info.param.dtype)]) + "_" + std::to_string(info.param.head_dim) + "_" +
         std::to_string(info.param.head_dim_v);
}
std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    for (const auto& [dim, dim_v] :
         {std::pair<std::int64_t, std::int64_t>{64, 64}, {128, 128}, {256, 256}, {72, 72}, {192, 128}})
      cases.push_back({dtype, dim, dim_v});
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Large, Large, ::testing::ValuesIn(all_cases()), name_of);

TEST_P(Large, IsWithinTheToleranceOfTheOracle) {
  const Case c = GetParam();
  reference::Random random(seed());
  for (const bool masked : {false, true}) {
    Problem p;
    p.seqlen_q = reference::draw(random, 200, 400);
    p.seqlen_kv = reference::draw(random, 200, 400);
    p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};
    p.num_heads_kv = 1;
    p.num_heads_q = 2;
    p.head_dim = c.head_dim;
    p.head_dim_v = c.head_dim_v;
    p.dtype = p.out_dtype = p.grad_dtype = c.dtype;
    p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    p.causal = masked;
    if (masked) p.window_left = reference::draw(random, 50, 400);
    p.sharding = Sharding::zigzag;
    const reference::Oracle oracle(p, random);
    for (const int world_size : {1, 4}) {
      Machine machine(1);
      Results results = results_for(oracle);
      {
        CudaRanks ranks(world_size, RA_TRANSPORT_LOCAL, machine.devices());
        run_both_passes(ranks, oracle, results);
      }
      expect_within(results, oracle);
      machine.expect_clean();
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace ringattn::test
