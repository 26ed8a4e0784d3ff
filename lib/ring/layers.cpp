// A pass over a problem in layers (plan/layer.h). Each layer is a call of its own, over packed copies of the rows and heads that it
// keeps, whose results are put together in fp32:
//
//   forward    out = 0, lse = -infinity
//              for each layer:  pack q;  (o, l) = forward;  (out, lse) = merge of both
//              round out
//   backward   delta = rowsum(dout * out);  dq = dk = dv = 0
//              for each layer:  pack q, dout, lse, delta;  add its gradients, by the weights of the whole
//              round dq, dk, dv
//
// With the lse and delta of the whole, a layer's gradients are its part of the exact ones. Where the weights by which layers are put
// together count as constants (DilationGradient::constant_weights), a row's delta is that of the layer's own output, which is made again.
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
      for (const Piece& piece : regions.share(Side::query, layer_.plan.rank(), unit)) {
        const Stretch stretch{piece.row, piece.length, piece.step};
        on_.engine.merge_rows(p_, {packed.out.from_row(row), packed.lse.from_row(row)},
                              {rows_of(heads_of_queries(shard.out, layer_.heads), stretch),
                               rows_of(heads_of_queries(shard.lse, layer_.heads), stretch)},
                              {piece.length, p_.num_heads_q, p_.head_dim_v}, layer_.regions->region(unit).zero_keys);
        row += piece.length;
      }
  }
  // Makes packed results what they are with the zero keys, and nothing else.
  void count_zero_keys(const RunningRows& packed) const {
    const Domain& regions = layer_.plan.domain();
    std::int64_t row = 0;
    for (const std::int64_t unit : regions.units()) {
      const std::int64_t own = row_count_of(regions, unit), zeros = layer_.regions->region(unit).zero_keys;
      const RunningRows rows{packed.out.from_row(row), packed.lse.from_row(row)};
      if (zeros > 0 && own > 0) on_.engine.merge_rows(p_, {}, rows, {own, p_.num_heads_q, p_.head_dim_v}, zeros);
      row += own;
    }
  }

 private:
  std::int64_t row_count_of(const Domain& regions, std::int64_t unit) const {
    return regions.first_row(Side::query, layer_.plan.rank(), unit + 1) -
           regions.first_row(Side::query, layer_.plan.rank(), unit);
  }

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

  static LayerBackward take(Arena& arena, const Plan& plan, const Engine& engine, DType out_dtype) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), heads = p.num_heads_q, all = p.batch * rows * heads;
    LayerBackward m;
    m.q = packed_tensor(arena.take<std::byte>(all * p.head_dim * size_of(p.dtype)), p.dtype, rows, heads, p.head_dim);
    m.dout = packed_tensor(arena.take<std::byte>(all * p.head_dim_v * size_of(out_dtype)), out_dtype, rows, heads,
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

  static SharedForward take(Arena& arena, const PassPlan& plan) {
    const Problem& p = plan.problem();
    const std::int64_t rows = plan.query_rows(), all = p.batch * rows * p.num_heads_q;
    SharedForward m;
    m.out = packed_tensor(arena.take<float>(p.out_dtype == DType::float32 ? 0 : all * p.head_dim_v), DType::float32,
                          rows, p.num_heads_q, p.head_dim_v);
    m.lse = row_tensor(arena.take<float>(all), rows, p.num_heads_q);
    return m;
  }
};

struct SharedBackward {
  float* delta;
  Tensor dq, dk, dv;

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
    return m;
  }
};

// The workspace of one layer's call, with that which makes its output again, if any does.
std::size_t layer_bytes(const PassPlan& plan, std::size_t number, const Engine& engine) {
  Arena arena;
  if (plan.pass() == Pass::forward) {
    LayerForward::take(arena, plan.layers()[number].plan, engine);
    return arena.size();
  }
  LayerBackward::take(arena, plan.layers()[number].plan, engine, plan.problem().out_dtype);
  if (!plan.outputs().empty()) LayerForward::take(arena, plan.outputs()[number].plan, engine);
  return arena.size();
}

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

// (out, lse) of one layer's rows, packed.
RunningRows run_layer(const LayerPlan& layer, const Machinery& on, const LayerForward& memory, const Tensor& q,
                      const Tensor& k, const Tensor& v, Total& total) {
  ForwardCall own;
  own.q = q;
  own.k = heads_of_keys(k, layer.heads);
  own.v = heads_of_keys(v, layer.heads);
  own.out = memory.result.out;
  own.lse = memory.result.lse.at<float>(0, 0, 0);
  own.workspace = memory.rest;
  own.origin = origin_of(layer.heads);
  total.add(layer.plan, run_forward(layer.plan, on, own, total.moments()));
  return memory.result;
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
  for (std::size_t n = 0; n < plan.layers().size(); ++n) most = std::max(most, layer_bytes(plan, n, engine));
  return shared.size() + most;
}

Statistics run_forward(const PassPlan& plan, const Machinery& on, const ForwardCall& call) {
  if (!plan.has_layers()) return run_forward(plan.whole(), on, call);
  const Problem& p = plan.problem();
  const Extent whole{plan.query_rows(), p.num_heads_q, p.head_dim_v};
  Arena shared(call.workspace);
  const SharedForward memory = SharedForward::take(shared, plan);
  const bool in_place = p.out_dtype == DType::float32;
  const RunningRows running{in_place ? call.out : memory.out,
                            call.lse == nullptr ? memory.lse : row_tensor(call.lse, whole.rows, whole.heads)};
  on.engine.begin_rows(p, running, whole, nullptr);
  Total total;
  for (const LayerPlan& layer : plan.layers()) {
    Arena arena = shared;
    const LayerForward own = LayerForward::take(arena, layer.plan, on.engine);
    const KeptRows rows(layer, on);
    rows.pack(call.q, own.q, p.head_dim);
    rows.merge(run_layer(layer, on, own, own.q, call.k, call.v, total), running);
  }
  if (!in_place) on.engine.round(p, running.out, call.out, whole, false);
  return total.statistics();
}

Statistics run_backward(const PassPlan& plan, const Machinery& on, const BackwardCall& call) {
  if (!plan.has_layers()) return run_backward(plan.whole(), on, call);
  const Problem& p = plan.problem();
  const std::int64_t rows = plan.query_rows(), keys = plan.key_rows();
  Arena shared(call.workspace);
  const SharedBackward memory = SharedBackward::take(shared, plan);
  on.engine.compute_delta(p, call.dout, call.out, rows, memory.delta);

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

  Total total;
  for (std::size_t n = 0; n < plan.layers().size(); ++n) {
    const LayerPlan& layer = plan.layers()[n];
    const Problem& lp = layer.plan.problem();
    Arena arena = shared;
    const LayerBackward own = LayerBackward::take(arena, layer.plan, on.engine, p.out_dtype);
    const KeptRows kept(layer, on);
    kept.pack(call.q, own.q, p.head_dim);
    kept.pack(call.dout, own.dout, p.head_dim_v);
    kept.pack(row_tensor(call.lse, rows, p.num_heads_q), own.lse, 1);
    float* const delta = own.delta.at<float>(0, 0, 0);
    if (plan.outputs().empty()) {
      kept.pack(row_tensor(memory.delta, rows, p.num_heads_q), own.delta, 1);
    } else {
      const LayerForward again = LayerForward::take(arena, plan.outputs()[n].plan, on.engine);
      const RunningRows result = run_layer(plan.outputs()[n], on, again, own.q, call.k, call.v, total);
      kept.count_zero_keys(result);
      on.engine.compute_delta(lp, own.dout, result.out, layer.plan.query_rows(), delta);
    }
    BackwardCall part;
    part.dout = own.dout;
    part.q = own.q;
    part.k = heads_of_keys(call.k, layer.heads);
    part.v = heads_of_keys(call.v, layer.heads);
    part.dq = own.dq;
    part.dk = heads_of_keys(dk.sum, layer.heads);
    part.dv = heads_of_keys(dv.sum, layer.heads);
    part.lse = own.lse.at<float>(0, 0, 0);
    part.delta = delta;
    part.accumulate = true;
    part.origin = origin_of(layer.heads);
    part.workspace = own.rest;
    on.engine.clear(lp, own.dq, {layer.plan.query_rows(), lp.num_heads_q, lp.head_dim});
    total.add(layer.plan, run_backward(layer.plan, on, part, total.moments()));
    kept.add(own.dq, dq.sum, p.head_dim);
  }
  if (!in_place)
    for (const Gradient& g : {dq, dk, dv}) on.engine.round(p, g.sum, g.to, g.extent, call.accumulate);
  return total.statistics();
}

}  // namespace ringattn
