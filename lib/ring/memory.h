// The workspace of a pass, behind the two travelling buffers of the journey: the same code measures it and lays it out.
#pragma once

#include "core/memory.h"
#include "engine/engine.h"
#include "plan/plan.h"

namespace ringattn {

struct ForwardMemory {
  float* running = nullptr;  // fp32 output between steps, where the caller's output is not fp32
  float* max = nullptr;      // [batch, num_heads_q, query rows]
  float* sum = nullptr;
  std::byte* scratch = nullptr;

  static ForwardMemory take(Arena& arena, const Plan& plan, const Engine& engine) {
    const Problem& p = plan.problem();
    const bool only_step = plan.moments().size() == 1;
    const std::int64_t rows = only_step ? 0 : p.batch * plan.query_rows() * p.num_heads_q;
    ForwardMemory memory;
    memory.running = arena.take<float>(p.out_dtype == DType::float32 ? 0 : rows * p.head_dim_v);
    memory.max = arena.take<float>(rows);
    memory.sum = arena.take<float>(rows);
    memory.scratch = arena.take<std::byte>(
        static_cast<std::int64_t>(engine.scratch_bytes(p, Pass::forward, plan.longest_query_piece(), only_step)));
    return memory;
  }
};

// Whether the shares of dK and dV are added to the caller's tensors straight away.
inline bool adds_directly(const Plan& plan) { return !plan.packs() && plan.problem().grad_dtype == DType::float32; }

struct BackwardMemory {
  float* delta = nullptr;         // [batch, num_heads_q, query rows]
  float* dq = nullptr;            // fp32 dq, where the caller's is not fp32
  std::byte* home = nullptr;      // of the own chunk, from its first step until they are complete; not if adds_directly
  std::byte* foreign[2] = {};     // of the chunk held, and of the one held before while they travel on
  std::byte* arriving = nullptr;  // what other ranks have added to the chunk held
  std::byte* scratch = nullptr;

  static BackwardMemory take(Arena& arena, const Plan& plan, const Engine& engine) {
    const Problem& p = plan.problem();
    const std::int64_t rows = p.batch * plan.query_rows() * p.num_heads_q;
    const std::int64_t chunk = plan.gradient_bytes(plan.longest_chunk());
    BackwardMemory memory;
    memory.delta = arena.take<float>(rows);
    memory.dq = arena.take<float>(p.grad_dtype == DType::float32 ? 0 : rows * p.head_dim);
    memory.home = arena.take<std::byte>(adds_directly(plan) ? 0 : chunk);
    for (std::byte*& buffer : memory.foreign) buffer = arena.take<std::byte>(plan.travels() ? chunk : 0);
    memory.arriving = arena.take<std::byte>(plan.travels() ? chunk : 0);
    memory.scratch = arena.take<std::byte>(static_cast<std::int64_t>(
        engine.scratch_bytes(p, Pass::backward, plan.longest_query_piece(), plan.moments().size() == 1)));
    return memory;
  }
};

}  // namespace ringattn
