#include "ring/memory.h"

#include "ring/journey.h"

namespace ringattn {

std::size_t workspace_bytes(const Plan& plan, const Engine& engine) {
  Arena arena;
  Journey::take_buffers(arena, plan);
  if (plan.pass() == Pass::forward)
    ForwardMemory::take(arena, plan, engine);
  else
    BackwardMemory::take(arena, plan, engine);
  return arena.size();
}

}  // namespace ringattn
