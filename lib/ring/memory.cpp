#include "ring/memory.h"

#include "ring/part.h"

namespace ringattn {

std::size_t workspace_bytes(const Plan& plan, const Engine& engine) {
  Arena arena;
  PartProblem problem(plan);
  if (plan.pass() == Pass::forward)
    ForwardMemory::take(arena, plan, problem.of(plan.part(0)), engine);
  else
    BackwardMemory::take(arena, plan, problem.of(plan.part(0)), engine);
  return arena.size();
}

}  // namespace ringattn
