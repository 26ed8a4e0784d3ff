#include <algorithm>

#include "ring/journey.h"
#include "ring/memory.h"

namespace ringattn {

Statistics run_forward(const Plan& plan, const Machinery& on, const ForwardCall& call) {
  const Problem& p = plan.problem();
  Arena arena(call.workspace);
  Journey journey(plan, on, {call.k, call.v}, arena);
  const ForwardMemory memory = ForwardMemory::take(arena, plan, on.engine);

  ForwardStep step;
  step.q = call.q;
  step.query_rows = plan.query_rows();
  step.running = p.out_dtype == DType::float32
                     ? call.out
                     : packed_tensor(memory.running, DType::float32, plan.query_rows(), p.num_heads_q, p.head_dim_v);
  step.max = memory.max;
  step.sum = memory.sum;
  step.out = call.out;
  step.lse = call.lse;
  step.scratch = memory.scratch;

  // The first moment begins every row, and the last step ends every row, whether they see something there or not.
  const std::vector<Moment>& moments = plan.moments();
  const Moment* const first = moments.data();
  const Moment* const last =
      &*std::find_if(moments.rbegin(), moments.rend(), [&](const Moment& m) { return m.computes || &m == first; });
  for (const Moment& m : moments) {
    journey.begin_transfers(m);
    step.first = &m == first;
    step.last = &m == last;
    if (m.computes || step.first) {
      const StepItems work = plan.items(m, step.first || step.last);
      const Pair chunk = journey.held(m);
      step.items = work.items;
      step.k = chunk.k;
      step.v = chunk.v;
      journey.compute(m, [&] { on.engine.forward(p, step); });
    }
    journey.end_transfers();
  }
  return journey.statistics();
}

}  // namespace ringattn
