#include <algorithm>

#include "ring/journey.h"
#include "ring/memory.h"
#include "ring/part.h"

namespace ringattn {

Statistics run_forward(const Plan& plan, const Machinery& on, const ForwardCall& call, std::int64_t moments_before) {
  Arena arena(call.workspace);
  PartProblem problems(plan);
  const ForwardMemory memory = ForwardMemory::take(arena, plan, problems.of(plan.part(0)), on.engine);
  Journey journey(plan, on, moments_before, memory.chunks, {});

  if (memory.sinks != nullptr) on.engine.combine_sinks(plan.problem(), call.sinks, memory.sinks);

  // The first moment begins every row, and the last step ends every row, whether they see something there or not; but rows of a layer
  // have begun already, and go on.
  const std::vector<Moment>& moments = plan.moments();
  const Moment* const first = moments.data();
  const Moment* const last =
      &*std::find_if(moments.rbegin(), moments.rend(), [&](const Moment& m) { return m.computes || &m == first; });
  for (std::int64_t n = 0; n < plan.num_parts(); ++n) {
    const Part part = plan.part(n);
    const Problem& p = problems.of(part);
    const PartTensors tensors(plan, part);
    journey.begin_part(n, p, {tensors.of_keys(call.k), tensors.of_keys(call.v), tensors.of_key_bias(call.key_bias)});

    ForwardStep step;
    step.origin = tensors.origin(call.origin);
    step.q = tensors.of_queries(call.q);
    step.query_rows = plan.query_rows();
    step.out = tensors.of_queries(call.out);
    if (p.is_partial) {
      step.running = tensors.of_queries(call.running.out);
      step.max = tensors.of_rows(call.running.max.at<float>(0, 0, 0));
      step.sum = tensors.of_rows(call.running.sum.at<float>(0, 0, 0));
    } else {
      step.running = p.out_dtype == DType::float32 ? step.out
                                                   : packed_tensor(memory.running, DType::float32, plan.query_rows(),
                                                                   p.num_heads_q, p.head_dim_v);
      step.max = memory.max;
      step.sum = memory.sum;
    }
    step.lse = tensors.of_rows(call.lse);
    step.sinks = tensors.of_heads(memory.sinks, 1);
    step.scratch = memory.scratch;
    for (const Moment& m : moments) {
      if (m.packs && call.make_chunk) journey.compute([&] { call.make_chunk(m.chunk); });
      journey.begin_transfers(m);
      if (n == 0 && &m == first && call.make_q) journey.compute(call.make_q);
      step.first = &m == first && !p.is_partial;
      step.last = &m == last && !p.is_partial;
      if (m.computes || step.first) {
        const Chunk chunk = journey.held(m);
        step.key_rows = plan.chunk_rows(m.holds, m.chunk);
        step.k = chunk.k;
        step.v = chunk.v;
        step.key_bias = static_cast<const float*>(chunk.key_bias.data);
        journey.compute(m, step.first || step.last, [&](std::span<const WorkItem> items) {
          step.items = items;
          on.engine.forward(p, step);
        });
      }
      journey.end_transfers(m);
    }
  }
  return journey.statistics();
}

}  // namespace ringattn
