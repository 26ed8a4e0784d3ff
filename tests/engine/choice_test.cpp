// Which tiles an engine takes for a problem, and what it relies on where it takes several.
#include <gtest/gtest.h>

#include "engine/cpu/attention.h"

namespace ringattn::cpu {
namespace {

Problem problem_of(DType dtype, std::int64_t seqlen, std::int64_t head_dim) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.head_dim = p.head_dim_v = head_dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  return p;
}

TEST(Choice, TilesOfTheirOwnWhereRoundedWeightsAreAllowed) {
  for (const EngineTiles& engine : cpu_engines()) {
    const auto choose = [&](const Problem& p) { return &engine.choose(p); };
    const auto expected = [&](const Tiles* wanted) { return wanted != nullptr ? wanted : engine.any; };
    EXPECT_EQ(choose(problem_of(DType::bfloat16, 32, 32)), expected(engine.bfloat16)) << engine.name;
    EXPECT_EQ(choose(problem_of(DType::float32, 32, 32)), expected(engine.split)) << engine.name;
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16})
      for (const auto& [seqlen, head_dim] : {std::pair{31, 32}, {32, 31}})
        EXPECT_EQ(choose(problem_of(dtype, seqlen, head_dim)), engine.any) << engine.name;
    EXPECT_EQ(choose(problem_of(DType::float16, 64, 64)), engine.any) << engine.name;
    // Results in more digits than bfloat16 would show that weights were rounded, and so would gradients that come of them.
    for (const auto kept : {&Problem::out_dtype, &Problem::grad_dtype}) {
      Problem p = problem_of(DType::bfloat16, 64, 64);
      p.*kept = DType::float32;
      EXPECT_EQ(choose(p), expected(engine.split)) << engine.name;
    }
  }
}

// Blocks that `split` does not take are computed by `any`, in the memory and with the results of `split`.
TEST(Choice, TilesThatStepInHaveTheSamePanelsAndBlocks) {
  for (const EngineTiles& engine : cpu_engines()) {
    if (engine.split == nullptr) continue;
    EXPECT_EQ(engine.any->columns, engine.split->columns);
    EXPECT_EQ(engine.any->key_block, engine.split->key_block);
    EXPECT_EQ(engine.any->gradient_rows, engine.split->gradient_rows);
    EXPECT_LE(engine.any->score_floats, engine.split->score_floats);
    for (const std::int64_t n : {32, 40, 64, 256}) EXPECT_LE(engine.any->cells(n), engine.split->cells(n));
  }
}

}  // namespace
}  // namespace ringattn::cpu
