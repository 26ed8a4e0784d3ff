// Gradients of K and V follow their chunk one moment behind it (plan.h):
//
//   at time t a rank adds its share for the chunk it holds        into foreign[t % 2], at time 0 into home
//   meanwhile the shares of the ranks before it arrive            into arriving, and are added at the end of the moment
//   and the sum of the moment before travels on                   from foreign[(t - 1) % 2], at time 1 from home
//   from the last rank of a tour the sum returns to its owner     into home, where the tour upstream takes it up again
//
// So a chunk's gradients are summed in the order of its journey, and home holds the whole sum when the chunk is finished. Where
// nothing travels, the chunk is the whole shard and the caller's gradients are fp32, they are home.
#include "ring/journey.h"
#include "ring/memory.h"

namespace ringattn {
namespace {

class Gradients {
 public:
  Gradients(const Plan& plan, const Machinery& on, Journey& journey, const BackwardMemory& memory,
            const BackwardCall& call)
      : plan_(plan), on_(on), journey_(journey), memory_(memory), call_(call) {}

  void begin_transfers(const Moment& m) {
    if (m.gradient_send_to != nobody) {
      const auto kind = m.gradient_send_to == m.gradient_send_owner ? Journey::gradients_home : Journey::gradients;
      journey_.send(m.gradient_send_to, m, kind, bytes(sum_of(m.time - 1), m.gradient_send_owner, m));
    }
    if (m.gradient_receive_from != nobody)
      journey_.receive(m.gradient_receive_from, m, Journey::gradients,
                       bytes(m.computes ? memory_.arriving : sum_of(m.time), m.holds, m));
    if (m.gradient_home_from != nobody)
      journey_.receive(m.gradient_home_from, m, Journey::gradients_home, bytes(memory_.home, plan_.rank(), m));
  }

  // Where this rank adds its share for the chunk held.
  Pair begin_share(const Moment& m) {
    const Problem& p = plan_.problem();
    const std::int64_t rows = plan_.chunk_rows(m.holds, m.chunk);
    const bool direct = adds_directly(plan_);
    const Pair pair = direct ? Pair{call_.dk, call_.dv} : packed_pair(p, sum_of(m.time), DType::float32, rows);
    if (direct && call_.accumulate) return pair;
    on_.engine.clear(p, pair.k, {rows, p.num_heads_kv, p.head_dim});
    on_.engine.clear(p, pair.v, {rows, p.num_heads_kv, p.head_dim_v});
    return pair;
  }

  void end_transfers(const Moment& m) {
    if (m.gradient_receive_from == nobody || !m.computes) return;
    on_.engine.add(reinterpret_cast<const float*>(memory_.arriving), reinterpret_cast<float*>(sum_of(m.time)),
                   plan_.gradient_bytes(plan_.chunk_rows(m.holds, m.chunk)) / size_of(DType::float32));
  }

  // Rounds the finished chunk into the caller's gradients.
  void finish_chunk(const Moment& m) {
    if (adds_directly(plan_)) return;
    const Problem& p = plan_.problem();
    const Pair home = packed_pair(p, memory_.home, DType::float32, plan_.chunk_rows(plan_.rank(), m.chunk));
    for_each_stretch(
        plan_, m.chunk, {call_.dk, call_.dv}, home, [&](const Pair& in_shard, const Pair& in_chunk, std::int64_t rows) {
          on_.engine.round(p, in_chunk.k, in_shard.k, {rows, p.num_heads_kv, p.head_dim}, call_.accumulate);
          on_.engine.round(p, in_chunk.v, in_shard.v, {rows, p.num_heads_kv, p.head_dim_v}, call_.accumulate);
        });
  }

 private:
  std::byte* sum_of(int time) const { return time == 0 ? memory_.home : memory_.foreign[time % 2]; }
  std::span<std::byte> bytes(std::byte* data, int owner, const Moment& m) const {
    return {data, static_cast<std::size_t>(plan_.gradient_bytes(plan_.chunk_rows(owner, m.chunk)))};
  }

  const Plan& plan_;
  const Machinery& on_;
  Journey& journey_;
  const BackwardMemory& memory_;
  const BackwardCall& call_;
};

}  // namespace

Statistics run_backward(const Plan& plan, const Machinery& on, const BackwardCall& call) {
  const Problem& p = plan.problem();
  Arena arena(call.workspace);
  Journey journey(plan, on, {call.k, call.v}, arena);
  const BackwardMemory memory = BackwardMemory::take(arena, plan, on.engine);
  Gradients gradients(plan, on, journey, memory, call);
  const Extent queries{plan.query_rows(), p.num_heads_q, p.head_dim};
  const bool direct = p.grad_dtype == DType::float32;

  BackwardStep step;
  step.q = call.q;
  step.dout = call.dout;
  step.query_rows = plan.query_rows();
  step.lse = call.lse;
  step.delta = memory.delta;
  step.dq = direct ? call.dq : packed_tensor(memory.dq, DType::float32, plan.query_rows(), p.num_heads_q, p.head_dim);
  step.scratch = memory.scratch;
  on.engine.compute_delta(p, call.dout, call.out, plan.query_rows(), memory.delta);
  if (!direct || !call.accumulate) on.engine.clear(p, step.dq, queries);

  for (const Moment& m : plan.moments()) {
    journey.begin_transfers(m);
    gradients.begin_transfers(m);
    const bool begins_chunk = m.time == 0 && m.direction > 0;
    if (m.computes || begins_chunk) {
      const Pair share = gradients.begin_share(m);
      const StepItems work = m.computes ? plan.items(m, false) : StepItems{};
      const Pair chunk = journey.held(m);
      step.items = work.items;
      step.key_rows = plan.chunk_rows(m.holds, m.chunk);
      step.k = chunk.k;
      step.v = chunk.v;
      step.dk = share.k;
      step.dv = share.v;
      journey.compute(m, [&] { on.engine.backward(p, step); });
    }
    journey.end_transfers();
    gradients.end_transfers(m);
    if (m.finishes_chunk) gradients.finish_chunk(m);
  }
  if (!direct) on.engine.round(p, step.dq, call.dq, queries, call.accumulate);
  journey.end_transfers();  // an abort during the last roundings
  return journey.statistics();
}

}  // namespace ringattn
