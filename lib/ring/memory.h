// The workspace of a pass, for one part of the problem after the other: the same code measures it and lays it out.
#pragma once

#include "core/memory.h"
#include "engine/engine.h"
#include "plan/plan.h"
#include "ring/journey.h"

namespace ringattn {

inline Slots take_chunk_slots(Arena& arena, const Plan& plan) {
  return Slots::take(arena, plan.chunk_slots(), plan.chunk_bytes(plan.longest_chunk()));
}

inline std::byte* take_scratch(Arena& arena, const Plan& plan, const Problem& problem, const Engine& engine) {
  return arena.take<std::byte>(static_cast<std::int64_t>(
      engine.scratch_bytes(problem, plan.pass(), plan.longest_query_piece(), plan.has_one_step())));
}

// `problem`: of any part.
struct ForwardMemory {
  Slots chunks;
  // Running results between steps, where these are not the caller's: the output where that is not fp32, and of each row of
  // [batch, num_heads_q, query rows] max and sum.
  float* running = nullptr;
  float* max = nullptr;
  float* sum = nullptr;
  float* sinks = nullptr;  // [num_heads_q] of the whole problem, where it has any: log-sum-exp of each head's
  std::byte* scratch = nullptr;

  static ForwardMemory take(Arena& arena, const Plan& plan, const Problem& problem, const Engine& engine) {
    const Problem& p = problem;
    const std::int64_t rows = p.is_partial || plan.has_one_step() ? 0 : p.batch * plan.query_rows() * p.num_heads_q;
    ForwardMemory memory;
    memory.chunks = take_chunk_slots(arena, plan);
    memory.running = arena.take<float>(p.out_dtype == DType::float32 ? 0 : rows * p.head_dim_v);
    memory.max = arena.take<float>(rows);
    memory.sum = arena.take<float>(rows);
    if (p.num_sinks > 0) memory.sinks = arena.take<float>(plan.problem().num_heads_q);
    memory.scratch = take_scratch(arena, plan, problem, engine);
    return memory;
  }
};

struct BackwardMemory {
  Slots chunks;
  float* delta = nullptr;  // [batch, num_heads_q, query rows]; a layer is given one
  float* dq = nullptr;     // fp32 dq, where the caller's is not fp32
  Slots gradients;
  std::byte* scratch = nullptr;

  static BackwardMemory take(Arena& arena, const Plan& plan, const Problem& problem, const Engine& engine) {
    const Problem& p = problem;
    const std::int64_t rows = p.batch * plan.query_rows() * p.num_heads_q;
    BackwardMemory memory;
    memory.chunks = take_chunk_slots(arena, plan);
    memory.delta = arena.take<float>(p.is_partial ? 0 : rows);
    memory.dq = arena.take<float>(p.stored_grad() == DType::float32 ? 0 : rows * p.head_dim);
    memory.gradients = Slots::take(arena, plan.gradient_slots(), plan.gradient_bytes(plan.longest_chunk()));
    memory.scratch = take_scratch(arena, plan, problem, engine);
    return memory;
  }
};

}  // namespace ringattn
