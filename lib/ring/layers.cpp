// A pass over a problem in layers (plan/layer.h). Each layer is a call of its own, over packed copies of the rows and heads that it
// keeps, whose results are put together in fp32:
//
//   forward    out = 0, lse = log-sum-exp of the head's sinks, -infinity without any
//              for each layer:  pack q;  (o, l) = forward;  (out, lse) = merge of both
//              round out
//   backward   delta = rowsum(dout * out);  dq = dk = dv = 0
//              for each layer:  pack q, dout, lse, delta;  add its gradients, by the weights of the whole
//              round dq, dk, dv
//
// With the lse and delta of the whole, a layer's gradients are its part of the exact ones. Where the weights by which branches are put
// together count as constants (DilationGradient::constant_weights), a row's delta is that of the branch's own output, which is made again.
//
// K and V of a layer are packed chunk by chunk, as those of any plan.
#include <algorithm>

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
  KeptRows(const LayerPlan& layer, const Machinery& on)
      : layer_(layer), p_(layer.plan.problem()), on_(on), stretches_(layer.plan.query_stretches()) {}

  // f(in_shard, packed, rows), stretch by stretch.
  template <class F>
  void for_each(const Tensor& shard, const Tensor& packed, F&& f) const {
    const Tensor own = heads_of_queries(shard, layer_.heads);
    std::int64_t row = 0;
    for (const Stretch& stretch : stretches_) {
      f(rows_of(own, stretch), packed.from_row(row), stretch.length);
      row += stretch.length;
    }
  }
  void pack(const Tensor& shard, const Tensor& packed, std::int64_t dim) const {
    for_each(shard, packed, [&](const Tensor& from, const Tensor& to, std::int64_t rows) {
      on_.engine.copy(p_, from, to, {rows, p_.num_heads_q, dim});
    });
  }
  void add(const Tensor& packed, const Tensor& shard, std::int64_t dim) const {
    for_each(shard, packed, [&](const Tensor& to, const Tensor& from, std::int64_t rows) {
      on_.engine.round(p_, from, to, {rows, p_.num_heads_q, dim}, true);
    });
  }
  // Rows of one region may have another number of zero keys than those of the next.
  void merge(const RunningRows& packed, const RunningRows& shard) const {
    const Domain& regions = layer_.plan.domain();
    std::int64_t row = 0;
    for (const std::int64_t unit : regions.units())
      for (const SpacedPiece& piece : regions.share(Side::query, layer_.plan.rank(), unit)) {
        const Stretch stretch{piece.row, piece.length, piece.step};
        on_.engine.merge_rows(p_, {packed.out.from_row(row), packed.lse.from_row(row)},
                              {rows_of(heads_of_queries(shard.out, layer_.heads), stretch),
                               rows_of(heads_of_queries(shard.lse, layer_.heads), stretch)},
                              {piece.length, p_.num_heads_q, p_.head_dim_v}, layer_.regions->region(unit).zero_keys);
        row += piece.length;
      }
  }

 private:
  const LayerPlan& layer_;
  const Problem& p_;
  const Machinery& on_;
  const std::vector<Stretch> stretches_;
};

// One layer's call, in the workspace behind what all share.
struct LayerForward {
  Tensor q;
  RunningRows result;
  void* rest;  // for the call itself

  static LayerForward take(Arena& arena, const Plan& plan, const Engine& engine) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), all = p.batch * rows * p.num_heads_q;
    LayerForward m;
    m.q = packed_tensor(arena.take<std::byte>(all * p.head_dim * size_of(p.dtype)), p.dtype, rows, p.num_heads_q,
                        p.head_dim);
    m.result.out =
        packed_tensor(arena.take<float>(all * p.head_dim_v), DType::float32, rows, p.num_heads_q, p.head_dim_v);
    m.result.lse = row_tensor(arena.take<float>(all), rows, p.num_heads_q);
    m.rest = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes(plan, engine)));
    return m;
  }
};

struct LayerBackward {
  Tensor q, dout, lse, delta, dq;
  void* rest;

  static LayerBackward take(Arena& arena, const Plan& plan, const Engine& engine) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), heads = p.num_heads_q, all = p.batch * rows * heads;
    LayerBackward m;
    m.q = packed_tensor(arena.take<std::byte>(all * p.head_dim * size_of(p.dtype)), p.dtype, rows, heads, p.head_dim);
    m.dout = packed_tensor(arena.take<std::byte>(all * p.head_dim_v * size_of(p.out_dtype)), p.out_dtype, rows, heads,
                           p.head_dim_v);
    m.lse = row_tensor(arena.take<float>(all), rows, heads);
    m.delta = row_tensor(arena.take<float>(all), rows, heads);
    m.dq = packed_tensor(arena.take<float>(all * p.head_dim), DType::float32, rows, heads, p.head_dim);
    m.rest = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes(plan, engine)));
    return m;
  }
};

// What all layers share. Tensors that are the caller's where these are fp32 take nothing.
struct SharedForward {
  Tensor out;
  Tensor lse;
  float* sinks;  // [num_heads_q], where the problem has any: log-sum-exp of each head's

  static SharedForward take(Arena& arena, const PassPlan& plan) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), all = p.batch * rows * p.num_heads_q;
    SharedForward m;
    m.out = packed_tensor(arena.take<float>(p.out_dtype == DType::float32 ? 0 : all * p.head_dim_v), DType::float32,
                          rows, p.num_heads_q, p.head_dim_v);
    m.lse = row_tensor(arena.take<float>(all), rows, p.num_heads_q);
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
    const std::int64_t own = plan.outputs().empty() ? 0 : p.batch * rows * p.num_heads_q;
    m.branch.out =
        packed_tensor(arena.take<float>(own * p.head_dim_v), DType::float32, rows, p.num_heads_q, p.head_dim_v);
    m.branch.lse = row_tensor(arena.take<float>(own), rows, p.num_heads_q);
    return m;
  }
};

// Of all layers' calls together.
class Total {
 public:
  void add(const Plan& plan, const Statistics& s) {
    moments_ += std::ssize(plan.moments()) * plan.num_parts();
    all_.totals.steps += s.totals.steps;
    all_.totals.hops += s.totals.hops;
    all_.totals.hop_bytes += s.totals.hop_bytes;
    all_.compute_seconds += s.compute_seconds;
    all_.wait_seconds += s.wait_seconds;
  }
  std::int64_t moments() const { return moments_; }
  const Statistics& statistics() const { return all_; }

 private:
  std::int64_t moments_ = 0;
  Statistics all_;
};

Origin origin_of(const HeadSet& heads) { return {0, heads.first_q, heads.step_q}; }

// Adds a layer's results to those of other layers.
void add_layer(const LayerPlan& layer, const Machinery& on, const Arena& rest, const ForwardCall& call,
               const RunningRows& running, Total& total) {
  Arena arena = rest;
  const LayerForward memory = LayerForward::take(arena, layer.plan, on.engine);
  const KeptRows rows(layer, on);
  rows.pack(call.q, memory.q, layer.plan.problem().head_dim);
  ForwardCall own;
  own.q = memory.q;
  own.k = heads_of_keys(call.k, layer.heads);
  own.v = heads_of_keys(call.v, layer.heads);
  own.key_bias = call.key_bias;
  own.out = memory.result.out;
  own.lse = memory.result.lse.at<float>(0, 0, 0);
  own.workspace = memory.rest;
  own.origin = origin_of(layer.heads);
  total.add(layer.plan, run_forward(layer.plan, on, own, total.moments()));
  rows.merge(memory.result, running);
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
  const LayerBackward memory = LayerBackward::take(arena, layer.plan, on.engine);
  const KeptRows rows(layer, on);
  rows.pack(call.q, memory.q, p.head_dim);
  rows.pack(call.dout, memory.dout, p.head_dim_v);
  const HeadSet& heads = layer.heads;
  rows.pack(lse, memory.lse, 1);
  rows.pack(delta, memory.delta, 1);
  BackwardCall own;
  own.dout = memory.dout;
  own.q = memory.q;
  own.k = heads_of_keys(call.k, heads);
  own.v = heads_of_keys(call.v, heads);
  own.key_bias = call.key_bias;
  own.dq = memory.dq;
  own.dk = heads_of_keys(sums.dk, heads);
  own.dv = heads_of_keys(sums.dv, heads);
  own.lse = memory.lse.at<float>(0, 0, 0);
  own.delta = memory.delta.at<float>(0, 0, 0);
  own.accumulate = true;
  own.origin = origin_of(heads);
  own.workspace = memory.rest;
  on.engine.clear(p, memory.dq, {layer.plan.query_rows(), p.num_heads_q, p.head_dim});
  total.add(layer.plan, run_backward(layer.plan, on, own, total.moments()));
  rows.add(memory.dq, sums.dq, p.head_dim);
}

}  // namespace

std::size_t workspace_bytes(const PassPlan& plan, const Engine& engine) {
  if (!plan.has_layers()) return workspace_bytes(plan.whole(), engine);
  Arena shared;
  if (plan.pass() == Pass::forward)
    SharedForward::take(shared, plan);
  else
    SharedBackward::take(shared, plan);
  std::size_t most = 0;
  const auto count = [&](const LayerPlan& layer, const auto& take) {
    Arena arena;
    take(arena, layer.plan);
    most = std::max(most, arena.size());
  };
  const auto take_forward = [&](Arena& arena, const Plan& layer) { LayerForward::take(arena, layer, engine); };
  const auto take_backward = [&](Arena& arena, const Plan& layer) { LayerBackward::take(arena, layer, engine); };
  for (const LayerPlan& layer : plan.layers())
    plan.pass() == Pass::forward ? count(layer, take_forward) : count(layer, take_backward);
  for (const LayerPlan& layer : plan.outputs()) count(layer, take_forward);
  return shared.size() + most;
}

Statistics run_forward(const PassPlan& plan, const Machinery& on, const ForwardCall& call) {
  if (!plan.has_layers()) return run_forward(plan.whole(), on, call);
  const Problem& p = plan.problem();
  const Extent whole{plan.query_rows(), p.num_heads_q, p.head_dim_v};
  Arena arena(call.workspace);
  const SharedForward memory = SharedForward::take(arena, plan);
  const bool in_place = p.out_dtype == DType::float32;
  const RunningRows running{in_place ? call.out : memory.out,
                            call.lse == nullptr ? memory.lse : row_tensor(call.lse, whole.rows, whole.heads)};
  if (p.num_sinks > 0) on.engine.combine_sinks(p, call.sinks, memory.sinks);
  on.engine.begin_rows(p, running, whole, memory.sinks);
  Total total;
  for (const LayerPlan& layer : plan.layers()) add_layer(layer, on, arena, call, running, total);
  if (!in_place) on.engine.round(p, running.out, call.out, whole, false);
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
  for (std::size_t n = 0; n < plan.layers().size(); ++n) {
    const LayerPlan& layer = plan.layers()[n];
    if (branches_apart && (n == 0 || layer.branch != plan.layers()[n - 1].branch)) {
      on.engine.begin_rows(p, memory.branch, {rows, p.num_heads_q, p.head_dim_v}, nullptr);
      ForwardCall again;
      again.q = call.q;
      again.k = call.k;
      again.v = call.v;
      again.key_bias = call.key_bias;
      for (const LayerPlan& output : plan.outputs())
        if (output.branch == layer.branch) add_layer(output, on, arena, again, memory.branch, total);
      on.engine.compute_delta(p, call.dout, memory.branch.out, rows, memory.delta);
    }
    add_gradients(layer, on, arena, call, row_tensor(call.lse, rows, p.num_heads_q),
                  row_tensor(memory.delta, rows, p.num_heads_q), {dq.sum, dk.sum, dv.sum}, total);
  }
  if (!in_place)
    for (const Gradient& g : {dq, dk, dv}) on.engine.round(p, g.sum, g.to, g.extent, call.accumulate);
  return total.statistics();
}

}  // namespace ringattn
