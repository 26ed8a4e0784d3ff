// Gradients of K and V have slots, as the chunks do (plan.h): of each chunk that a rank holds it adds its share to the slot that the
// plan names, and what arrives from other ranks is added at the end of a moment. So a chunk's gradients are summed in the order that
// the plan has, whatever the timing, and slot 0 holds the whole sum of the own chunk when it is finished. Where nothing travels, the
// chunk is the whole shard and the caller's gradients are fp32, these are the slot.
#include "ring/journey.h"
#include "ring/memory.h"
#include "ring/part.h"

namespace ringattn {
namespace {

// One part: K, V and their gradients are the caller's.
class Backward {
 public:
  Backward(const Plan& plan, const Machinery& on, Journey& journey, const Problem& problem, const BackwardCall& call,
           Origin origin)
      : plan_(plan), on_(on), journey_(journey), p_(problem), call_(call), origin_(origin) {}

  // Where this rank adds its share for the chunk held.
  Pair begin_share(const Moment& m) const {
    const std::int64_t rows = plan_.chunk_rows(m.holds, m.chunk);
    const bool direct = plan_.adds_directly();
    const Pair pair = direct ? Pair{call_.dk, call_.dv} : journey_.gradients(m.gradient_slot, m.holds, m.chunk);
    if (direct && call_.accumulate) return pair;
    on_.engine.clear(p_, pair.k, {rows, p_.num_heads_kv, p_.head_dim});
    on_.engine.clear(p_, pair.v, {rows, p_.num_heads_kv, p_.head_dim_v});
    return pair;
  }

  // Rounds the finished chunk into the caller's gradients.
  void finish_chunk(const Moment& m) const {
    if (plan_.adds_directly()) return;
    const Phase phase(on_.trace, "round");
    for_each_stretch(
        plan_, m.chunk, {call_.dk, call_.dv}, journey_.gradients(0, plan_.rank(), m.chunk),
        [&](const Pair& in_shard, const Pair& in_chunk, std::int64_t rows) {
          on_.engine.round(p_, in_chunk.k, in_shard.k, {rows, p_.num_heads_kv, p_.head_dim}, call_.accumulate);
          on_.engine.round(p_, in_chunk.v, in_shard.v, {rows, p_.num_heads_kv, p_.head_dim_v}, call_.accumulate);
        });
  }

  void run(const BackwardMemory& memory) const {
    const Extent queries{plan_.query_rows(), p_.num_heads_q, p_.head_dim};
    const bool in_place = p_.stored_grad() == DType::float32;  // dq is summed in the caller's
    BackwardStep step;
    step.origin = origin_;
    step.q = call_.q;
    step.dout = call_.dout;
    step.query_rows = plan_.query_rows();
    step.lse = call_.lse;
    step.delta = call_.delta != nullptr ? call_.delta : memory.delta;
    step.dq =
        in_place ? call_.dq : packed_tensor(memory.dq, DType::float32, plan_.query_rows(), p_.num_heads_q, p_.head_dim);
    step.scratch = memory.scratch;
    Phase preparation(on_.trace, "prepare");
    if (call_.delta == nullptr) on_.engine.compute_delta(p_, call_.dout, call_.out, plan_.query_rows(), memory.delta);
    if (call_.dsinks != nullptr) {
      const bool is_begun = origin_.entry > 0;  // by the parts of other entries
      const Tensor dsinks = packed_tensor(call_.dsinks, DType::float32, 1, p_.num_heads_q, p_.num_sinks);
      if (!call_.accumulate && !is_begun) on_.engine.clear(Problem{}, dsinks, {1, p_.num_heads_q, p_.num_sinks});
      on_.engine.add_sink_gradients(p_, call_.sinks, call_.lse, memory.delta, plan_.query_rows(), call_.dsinks);
    }
    if (!in_place || !call_.accumulate) on_.engine.clear(p_, step.dq, queries);
    preparation.end();

    for (const Moment& m : plan_.moments()) {
      journey_.begin_transfers(m);
      if (m.computes || m.begins_chunk) {
        const Pair share = begin_share(m);
        const Chunk chunk = journey_.held(m);
        step.key_rows = plan_.chunk_rows(m.holds, m.chunk);
        step.k = chunk.k;
        step.v = chunk.v;
        step.key_bias = static_cast<const float*>(chunk.key_bias.data);
        step.dk = share.k;
        step.dv = share.v;
        journey_.compute(m, false, [&](std::span<const WorkItem> items) {
          step.items = items;
          on_.engine.backward(p_, step);
        });
      }
      journey_.end_transfers(m);
      if (m.finishes_chunk) finish_chunk(m);
    }
    if (in_place) return;
    const Phase phase(on_.trace, "round");
    on_.engine.round(p_, step.dq, call_.dq, queries, call_.accumulate);
  }

 private:
  const Plan& plan_;
  const Machinery& on_;
  Journey& journey_;
  const Problem& p_;
  const BackwardCall call_;
  const Origin origin_;
};

}  // namespace

Statistics run_backward(const Plan& plan, const Machinery& on, const BackwardCall& call, std::int64_t moments_before) {
  Arena arena(call.workspace);
  PartProblem problems(plan);
  const BackwardMemory memory = BackwardMemory::take(arena, plan, problems.of(plan.part(0)), on.engine);
  Journey journey(plan, on, moments_before, memory.chunks, memory.gradients);
  for (std::int64_t n = 0; n < plan.num_parts(); ++n) {
    const Part part = plan.part(n);
    const Problem& p = problems.of(part);
    const PartTensors tensors(plan, part);
    BackwardCall own = call;
    for (Tensor BackwardCall::*const t : {&BackwardCall::dout, &BackwardCall::q, &BackwardCall::out, &BackwardCall::dq})
      own.*t = tensors.of_queries(call.*t);
    for (Tensor BackwardCall::*const t : {&BackwardCall::k, &BackwardCall::v, &BackwardCall::dk, &BackwardCall::dv})
      own.*t = tensors.of_keys(call.*t);
    own.lse = tensors.of_rows(call.lse);
    own.delta = tensors.of_rows(call.delta);
    own.sinks = tensors.of_heads(call.sinks, p.num_sinks);
    own.dsinks = tensors.of_heads(call.dsinks, p.num_sinks);
    journey.begin_part(n, p, {own.k, own.v, tensors.of_key_bias(call.key_bias)});
    Backward(plan, on, journey, p, own, tensors.origin(call.origin)).run(memory);
  }
  journey.end_transfers();  // an abort during the last roundings
  return journey.statistics();
}

}  // namespace ringattn
