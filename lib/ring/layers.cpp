// A pass over a problem in layers (plan/layer.h). Each layer is a call of its own for the rows and heads that it keeps: over packed
// copies, unless these are all.
//
//   forward    begin all rows, with sinks and zero keys
//              for each layer:  pack q and the running (O, max, sum);  forward, on from there;  put these back
//              end all rows
//   backward   delta = rowsum(dout * out);  dq = dk = dv = 0, fp32
//              for each layer:  pack q, dout, lse, delta;  add its gradients, by the weights of the whole
//              round dq, dk, dv
//
// With the lse and delta of the whole, a layer's gradients are its part of the exact ones. Where the weights by which branches are put
// together count as constants (DilationGradient::constant_weights), a row's delta is that of the branch's own output, which is made again.
//
// K and V of a layer are packed chunk by chunk, as those of any plan.
#include <algorithm>
#include <optional>

#include "ring/journey.h"
#include "ring/memory.h"

namespace ringattn {
namespace {

Tensor heads_of_queries(const Tensor& t, const HeadSet& heads) {
  return t.from(0, 0, heads.first_q).every(1, heads.step_q);
}
Tensor heads_of_keys(const Tensor& t, const HeadSet& heads) {
  return t.from(0, 0, heads.first_kv).every(1, heads.step_kv);
}

// A layer's rows of queries, between the shard, of which it keeps some, and where they are packed.
class KeptRows {
 public:
  KeptRows(const LayerPlan& layer, const Machinery& on) : layer_(layer), p_(layer.plan.problem()), on_(on) {
    if (!layer_.keeps_all) stretches_ = layer.plan.query_stretches();
  }

  // Those rows of the shard: where it is kept as it is itself, else packed into `room`.
  Tensor gather(const Tensor& shard, const Tensor& room, std::int64_t dim) const {
    if (layer_.keeps_all) return shard;
    for_each(shard, room, [&](const Tensor& in_shard, const Tensor& packed, std::int64_t rows) {
      on_.engine.copy(p_, in_shard, packed, {rows, p_.num_heads_q, dim});
    });
    return room;
  }
  RunningRows gather(const RunningRows& shard, const RunningRows& room) const {
    return {gather(shard.out, room.out, p_.head_dim_v), gather(shard.max, room.max, 1), gather(shard.sum, room.sum, 1)};
  }
  // What was gathered, where it came from.
  void put_back(const Tensor& room, const Tensor& shard, std::int64_t dim) const {
    if (layer_.keeps_all) return;
    for_each(shard, room, [&](const Tensor& in_shard, const Tensor& packed, std::int64_t rows) {
      on_.engine.copy(p_, packed, in_shard, {rows, p_.num_heads_q, dim});
    });
  }
  void put_back(const RunningRows& room, const RunningRows& shard) const {
    put_back(room.out, shard.out, p_.head_dim_v);
    put_back(room.max, shard.max, 1);
    put_back(room.sum, shard.sum, 1);
  }
  // Where to add up what is to be added to the shard.
  Tensor begin_sum(const Tensor& shard, const Tensor& room, std::int64_t dim) const {
    if (layer_.keeps_all) return shard;
    on_.engine.clear(p_, room, {layer_.plan.query_rows(), p_.num_heads_q, dim});
    return room;
  }
  void end_sum(const Tensor& room, const Tensor& shard, std::int64_t dim) const {
    if (layer_.keeps_all) return;
    for_each(shard, room, [&](const Tensor& in_shard, const Tensor& packed, std::int64_t rows) {
      on_.engine.round(p_, packed, in_shard, {rows, p_.num_heads_q, dim}, true);
    });
  }

 private:
  // f(in_shard, packed, rows), stretch by stretch.
  template <class F>
  void for_each(const Tensor& shard, const Tensor& packed, F&& f) const {
    const Phase phase(on_.trace, "kept rows");
    const Tensor own = heads_of_queries(shard, layer_.heads);
    std::int64_t row = 0;
    for (const Stretch& stretch : stretches_) {
      f(rows_of(own, stretch), packed.from_row(row), stretch.length);
      row += stretch.length;
    }
  }

  const LayerPlan& layer_;
  const Problem& p_;
  const Machinery& on_;
  std::vector<Stretch> stretches_;
};

// Where one layer's call has its rows, in the workspace behind what all share.
struct LayerForward {
  Tensor q;
  RunningRows running;
  void* rest;  // for the call itself

  static LayerForward take(Arena& arena, const LayerPlan& layer, const Engine& engine) {
    const Problem& p = layer.plan.problem();
    const std::int64_t rows = layer.plan.query_rows(), heads = p.num_heads_q;
    const std::int64_t all = layer.keeps_all ? 0 : p.batch * rows * heads;
    LayerForward m;
    m.q = packed_tensor(arena.take<std::byte>(all * p.head_dim * size_of(p.dtype)), p.dtype, rows, heads, p.head_dim);
    m.running.out = packed_tensor(arena.take<float>(all * p.head_dim_v), DType::float32, rows, heads, p.head_dim_v);
    m.running.max = row_tensor(arena.take<float>(all), rows, heads);
    m.running.sum = row_tensor(arena.take<float>(all), rows, heads);
    m.rest = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes(layer.plan, engine)));
    return m;
  }
};

struct LayerBackward {
  Tensor q, dout, lse, delta, dq;
  void* rest;

  static LayerBackward take(Arena& arena, const LayerPlan& layer, const Engine& engine) {
    const Problem& p = layer.plan.problem();
    const std::int64_t rows = layer.plan.query_rows(), heads = p.num_heads_q;
    const std::int64_t all = layer.keeps_all ? 0 : p.batch * rows * heads;
    LayerBackward m;
    m.q = packed_tensor(arena.take<std::byte>(all * p.head_dim * size_of(p.dtype)), p.dtype, rows, heads, p.head_dim);
    m.dout = packed_tensor(arena.take<std::byte>(all * p.head_dim_v * size_of(p.out_dtype)), p.out_dtype, rows, heads,
                           p.head_dim_v);
    m.lse = row_tensor(arena.take<float>(all), rows, heads);
    m.delta = row_tensor(arena.take<float>(all), rows, heads);
    m.dq = packed_tensor(arena.take<float>(all * p.head_dim), DType::float32, rows, heads, p.head_dim);
    m.rest = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes(layer.plan, engine)));
    return m;
  }
};

// Of all rows of the shard, as a forward pass in layers needs it. `out`: the caller's, where that is fp32.
RunningRows take_running(Arena& arena, const Problem& p, std::int64_t rows, const Tensor* out) {
  const std::int64_t all = p.batch * rows * p.num_heads_q;
  RunningRows r;
  r.out = out != nullptr
              ? *out
              : packed_tensor(arena.take<float>(all * p.head_dim_v), DType::float32, rows, p.num_heads_q, p.head_dim_v);
  r.max = row_tensor(arena.take<float>(all), rows, p.num_heads_q);
  r.sum = row_tensor(arena.take<float>(all), rows, p.num_heads_q);
  return r;
}

// What all layers share. Tensors that are the caller's where these are fp32 take nothing.
struct SharedForward {
  RunningRows running;
  float* sinks;  // [num_heads_q], where the problem has any: log-sum-exp of each head's

  static SharedForward take(Arena& arena, const PassPlan& plan, const Tensor& out) {
    const Problem& p = plan.problem();
    SharedForward m;
    m.running = take_running(arena, p, plan.query_rows(), p.out_dtype == DType::float32 ? &out : nullptr);
    m.sinks = arena.take<float>(p.num_sinks > 0 ? p.num_heads_q : 0);
    return m;
  }
};

struct SharedBackward {
  float* delta;  // of the whole, or of one branch after the other
  Tensor dq, dk, dv;
  RunningRows branch;  // where branches have outputs of their own

  static SharedBackward take(Arena& arena, const PassPlan& plan) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), keys = plan.key_rows();
    const bool in_place = p.grad_dtype == DType::float32;
    const auto tensor = [&](std::int64_t of_rows, std::int64_t heads, std::int64_t dim) {
      return packed_tensor(arena.take<float>(in_place ? 0 : p.batch * of_rows * heads * dim), DType::float32, of_rows,
                           heads, dim);
    };
    SharedBackward m;
    m.delta = arena.take<float>(p.batch * rows * p.num_heads_q);
    m.dq = tensor(rows, p.num_heads_q, p.head_dim);
    m.dk = tensor(keys, p.num_heads_kv, p.head_dim);
    m.dv = tensor(keys, p.num_heads_kv, p.head_dim_v);
    if (!plan.outputs().empty()) m.branch = take_running(arena, p, rows, nullptr);
    return m;
  }
};

// Of all layers' calls together.
class Total {
 public:
  void add(const Plan& plan, const Statistics& s) {
    moments_ += std::ssize(plan.moments()) * plan.num_parts();
    all_.add(s);
  }
  std::int64_t moments() const { return moments_; }
  const Statistics& statistics() const { return all_; }

 private:
  std::int64_t moments_ = 0;
  Statistics all_;
};

Origin origin_of(const HeadSet& heads) { return {0, heads.first_q, heads.step_q}; }

// To all rows of the shard. Those of one region may have another number than those of the next.
void add_zero_keys(const LayerPlan& layer, const Machinery& on, const RunningRows& running) {
  const Problem& p = layer.plan.problem();
  const Domain& regions = layer.plan.domain();
  for (const std::int64_t unit : regions.units(Side::query, layer.plan.rank())) {
    const std::int64_t count = layer.regions->region(unit).zero_keys;
    if (count == 0) continue;
    for (const SpacedPiece& piece : regions.share(Side::query, layer.plan.rank(), unit)) {
      const auto kept = [&](const Tensor& t) {
        return rows_of(heads_of_queries(t, layer.heads), {piece.row, piece.length, piece.step});
      };
      on.engine.add_zero_keys(p, {kept(running.out), kept(running.max), kept(running.sum)},
                              {piece.length, p.num_heads_q, p.head_dim_v}, count);
    }
  }
}

// Goes on with the running results of its rows.
void add_layer(const LayerPlan& layer, const Machinery& on, const Arena& rest, const ForwardCall& call,
               const RunningRows& running, Total& total) {
  Arena arena = rest;
  const LayerForward memory = LayerForward::take(arena, layer, on.engine);
  const KeptRows rows(layer, on);
  ForwardCall own;
  own.q = rows.gather(call.q, memory.q, layer.plan.problem().head_dim);
  own.k = heads_of_keys(call.k, layer.heads);
  own.v = heads_of_keys(call.v, layer.heads);
  own.key_bias = call.key_bias;
  own.running = rows.gather(running, memory.running);
  own.workspace = memory.rest;
  own.origin = origin_of(layer.heads);
  total.add(layer.plan, run_forward(layer.plan, on, own, total.moments()));
  rows.put_back(own.running, running);
}

// The running results of all rows, over the layers in `layers` of one branch, or of any.
void run_layers(const PassPlan& plan, const std::vector<LayerPlan>& layers, std::optional<std::int64_t> branch,
                const float* sinks, const Machinery& on, const Arena& rest, const ForwardCall& call,
                const RunningRows& running, Total& total) {
  const Problem& p = plan.problem();
  const auto for_each = [&](auto&& f) {
    for (const LayerPlan& layer : layers)
      if (!branch || layer.branch == *branch) f(layer);
  };
  on.engine.begin_rows(p, running, {plan.query_rows(), p.num_heads_q, p.head_dim_v}, sinks);
  if (p.dilation_padding == DilationPadding::zero_keys)
    for_each([&](const LayerPlan& layer) { add_zero_keys(layer, on, running); });
  for_each([&](const LayerPlan& layer) { add_layer(layer, on, rest, call, running, total); });
}

// Those of K and V, and of the queries, of a whole call.
struct Gradients {
  Tensor dq, dk, dv;
};

// Adds a layer's gradients, by the lse and delta of all rows of the shard.
void add_gradients(const LayerPlan& layer, const Machinery& on, const Arena& rest, const BackwardCall& call,
                   const Tensor& lse, const Tensor& delta, const Gradients& sums, Total& total) {
  const Problem& p = layer.plan.problem();
  Arena arena = rest;
  const LayerBackward memory = LayerBackward::take(arena, layer, on.engine);
  const KeptRows rows(layer, on);
  const HeadSet& heads = layer.heads;
  BackwardCall own;
  own.q = rows.gather(call.q, memory.q, p.head_dim);
  own.dout = rows.gather(call.dout, memory.dout, p.head_dim_v);
  own.lse = rows.gather(lse, memory.lse, 1).at<float>(0, 0, 0);
  own.delta = rows.gather(delta, memory.delta, 1).at<float>(0, 0, 0);
  own.k = heads_of_keys(call.k, heads);
  own.v = heads_of_keys(call.v, heads);
  own.key_bias = call.key_bias;
  own.dq = rows.begin_sum(sums.dq, memory.dq, p.head_dim);
  own.dk = heads_of_keys(sums.dk, heads);
  own.dv = heads_of_keys(sums.dv, heads);
  own.accumulate = true;
  own.origin = origin_of(heads);
  own.workspace = memory.rest;
  total.add(layer.plan, run_backward(layer.plan, on, own, total.moments()));
  rows.end_sum(own.dq, sums.dq, p.head_dim);
}

}  // namespace

std::size_t workspace_bytes(const PassPlan& plan, const Engine& engine) {
  if (!plan.has_layers()) return workspace_bytes(plan.whole(), engine);
  Arena shared;
  if (plan.pass() == Pass::forward)
    SharedForward::take(shared, plan, {});
  else
    SharedBackward::take(shared, plan);
  std::size_t most = 0;
  const auto count = [&](const LayerPlan& layer, const auto& take) {
    Arena arena;
    take(arena, layer);
    most = std::max(most, arena.size());
  };
  const auto take_forward = [&](Arena& arena, const LayerPlan& layer) { LayerForward::take(arena, layer, engine); };
  const auto take_backward = [&](Arena& arena, const LayerPlan& layer) { LayerBackward::take(arena, layer, engine); };
  for (const LayerPlan& layer : plan.layers())
    plan.pass() == Pass::forward ? count(layer, take_forward) : count(layer, take_backward);
  for (const LayerPlan& layer : plan.outputs()) count(layer, take_forward);
  return shared.size() + most;
}

Statistics run_forward(const PassPlan& plan, const Machinery& on, const ForwardCall& call) {
  if (!plan.has_layers()) return run_forward(plan.whole(), on, call);
  if (call.make_q) call.make_q();
  const Problem& p = plan.problem();
  Arena arena(call.workspace);
  const SharedForward memory = SharedForward::take(arena, plan, call.out);
  if (p.num_sinks > 0) on.engine.combine_sinks(p, call.sinks, memory.sinks);
  Total total;
  run_layers(plan, plan.layers(), std::nullopt, memory.sinks, on, arena, call, memory.running, total);
  const Phase phase(on.trace, "round");
  on.engine.finish_rows(p, memory.running, {plan.query_rows(), p.num_heads_q, p.head_dim_v}, call.out, call.lse);
  return total.statistics();
}

Statistics run_backward(const PassPlan& plan, const Machinery& on, const BackwardCall& call) {
  if (!plan.has_layers()) return run_backward(plan.whole(), on, call);
  const Problem& p = plan.problem();
  const std::int64_t rows = plan.query_rows(), keys = plan.key_rows();
  Arena arena(call.workspace);
  const SharedBackward memory = SharedBackward::take(arena, plan);

  const bool in_place = p.grad_dtype == DType::float32;
  struct Gradient {
    Tensor sum, to;
    Extent extent;
  };
  const Gradient dq{in_place ? call.dq : memory.dq, call.dq, {rows, p.num_heads_q, p.head_dim}},
      dk{in_place ? call.dk : memory.dk, call.dk, {keys, p.num_heads_kv, p.head_dim}},
      dv{in_place ? call.dv : memory.dv, call.dv, {keys, p.num_heads_kv, p.head_dim_v}};
  Phase preparation(on.trace, "prepare");
  for (const Gradient& g : {dq, dk, dv})
    if (!in_place || !call.accumulate) on.engine.clear(p, g.sum, g.extent);

  const bool branches_apart = !plan.outputs().empty();
  Total total;
  on.engine.compute_delta(p, call.dout, call.out, rows, memory.delta);
  if (call.dsinks != nullptr) {
    if (!call.accumulate)
      on.engine.clear(Problem{}, packed_tensor(call.dsinks, DType::float32, 1, p.num_heads_q, p.num_sinks),
                      {1, p.num_heads_q, p.num_sinks});
    on.engine.add_sink_gradients(p, call.sinks, call.lse, memory.delta, rows, call.dsinks);
  }
  preparation.end();
  for (std::size_t n = 0; n < plan.layers().size(); ++n) {
    const LayerPlan& layer = plan.layers()[n];
    if (branches_apart && (n == 0 || layer.branch != plan.layers()[n - 1].branch)) {
      ForwardCall again;
      again.q = call.q;
      again.k = call.k;
      again.v = call.v;
      again.key_bias = call.key_bias;
      run_layers(plan, plan.outputs(), layer.branch, nullptr, on, arena, again, memory.branch, total);
      on.engine.finish_rows(p, memory.branch, {rows, p.num_heads_q, p.head_dim_v}, memory.branch.out, nullptr);
      on.engine.compute_delta(p, call.dout, memory.branch.out, rows, memory.delta);
    }
    add_gradients(layer, on, arena, call, row_tensor(call.lse, rows, p.num_heads_q),
                  row_tensor(memory.delta, rows, p.num_heads_q), {dq.sum, dk.sum, dv.sum}, total);
  }
  const Phase phase(on.trace, "round");
  if (!in_place)
    for (const Gradient& g : {dq, dk, dv}) on.engine.round(p, g.sum, g.to, g.extent, call.accumulate);
  return total.statistics();
}

}  // namespace ringattn
