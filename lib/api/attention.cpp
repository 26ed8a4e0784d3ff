#include "api/barrier.h"
#include "api/context.h"
#include "api/structs.h"
#include "api/validate.h"
#include "core/memory.h"

using namespace ringattn;
using namespace ringattn::api;

namespace {

// The shard of one rank, and the shapes of everything in it.
struct Shapes {
  Shapes(const Problem &p, const Rank &r)
      : rows_q(Shards(p, Side::query, r.world_size).rows(r.rank)),
        rows_kv(Shards(p, Side::key_value, r.world_size).rows(r.rank)),
        q{p.batch, rows_q, p.num_heads_q, p.head_dim},
        k{p.batch, rows_kv, p.num_heads_kv, p.head_dim},
        v{p.batch, rows_kv, p.num_heads_kv, p.head_dim_v},
        out{p.batch, rows_q, p.num_heads_q, p.head_dim_v},
        lse_bytes(p.batch * rows_q * p.num_heads_q * size_of(DType::float32)),
        key_bias_bytes(p.has_key_bias ? p.batch * rows_kv * size_of(DType::float32) : 0),
        sinks_bytes(p.num_heads_q * p.num_sinks * size_of(DType::float32)) {}
  std::int64_t rows_q, rows_kv;
  Shape q, k, v, out;
  std::int64_t lse_bytes, key_bias_bytes, sinks_bytes;
};

// What a description asks for with `field`: NULL where it does not.
void check_asked(const char *name, const void *data, const char *field, std::int64_t value) {
  require(value != 0 || data == nullptr, name, " is set while ", field, " is 0; must be NULL");
}

// The arrays that both passes read.
template <class Args>
void check_modifiers(Ranges &ranges, const Args &a, const Problem &p, const Shapes &shapes) {
  check_asked("key_bias", a.key_bias, "has_key_bias", p.has_key_bias);
  check_asked("sinks", a.sinks, "num_sinks", p.num_sinks);
  ranges.input("key_bias", a.key_bias, {"key_bias_size", a.key_bias_size}, shapes.key_bias_bytes, alignof(float),
               false);
  ranges.input("sinks", a.sinks, {"sinks_size", a.sinks_size}, shapes.sinks_bytes, alignof(float), false);
}

void check_workspace(Ranges &ranges, const char *pass, void *workspace, std::size_t size, std::size_t needed) {
  if (workspace == nullptr) {
    require(size == 0, "workspace is NULL while workspace_size is ", size, "; must be 0 then");
    return;
  }
  require(size >= needed, "workspace_size is ", size, "; ", pass, " needs ", needed, " bytes");
  ranges.output("workspace", workspace, {}, static_cast<std::int64_t>(needed),
                static_cast<std::int64_t>(memory_alignment), false);
}

void attend(ra_context &c, const ra_attention_desc *desc, const ra_forward_args *args) {
  const Phase whole_call(c.trace.get(), "forward");
  Phase planning(c.trace.get(), "plan");
  const ra_attention_desc d = read(desc, "desc");
  const ra_forward_args a = read(args, "args");
  const Problem p = to_problem(d);
  require_supported(d, p, c.engine);
  const Shapes shapes(p, c.rank);
  Ranges ranges;
  ForwardCall call;
  call.q = ranges.input("q", a.q, p.dtype, shapes.q);
  call.k = ranges.input("k", a.k, p.dtype, shapes.k);
  call.v = ranges.input("v", a.v, p.dtype, shapes.v);
  call.out = ranges.output("out", a.out, p.out_dtype, shapes.out);
  ranges.output("lse", a.lse, {"lse_size", a.lse_size}, shapes.lse_bytes, alignof(float), true);
  call.lse = a.lse;
  check_modifiers(ranges, a, p, shapes);
  call.key_bias = key_bias_tensor(a.key_bias, shapes.rows_kv);
  call.sinks = a.sinks;
  call.workspace = a.workspace;
  if (a.workspace != nullptr || a.workspace_size != 0)
    check_workspace(ranges, "forward", a.workspace, a.workspace_size,
                    workspace_bytes(c.plan(p, Pass::forward), c.engine));
  ranges.require_disjoint();
  c.backend->check(ranges, a.stream);
  if (call.workspace == nullptr) call.workspace = c.workspace(p, Pass::forward, a.stream);
  planning.end();
  c.together(Operation::forward, p, {}, a.stream, whole_call, [&] { return c.forward(p, call); });
}

void differentiate(ra_context &c, const ra_attention_desc *desc, const ra_backward_args *args) {
  const Phase whole_call(c.trace.get(), "backward");
  Phase planning(c.trace.get(), "plan");
  const ra_attention_desc d = read(desc, "desc");
  const ra_backward_args a = read(args, "args");
  const Problem p = to_problem(d);
  require_supported(d, p, c.engine);
  require_range("accumulate", a.accumulate, 0, 1);
  require(a.reserved == 0, "reserved is ", a.reserved, "; must be 0");
  const Shapes shapes(p, c.rank);
  Ranges ranges;
  BackwardCall call;
  call.dout = ranges.input("dout", a.dout, p.out_dtype, shapes.out);
  call.q = ranges.input("q", a.q, p.dtype, shapes.q);
  call.k = ranges.input("k", a.k, p.dtype, shapes.k);
  call.v = ranges.input("v", a.v, p.dtype, shapes.v);
  call.out = ranges.input("out", a.out, p.out_dtype, shapes.out);
  ranges.input("lse", a.lse, {"lse_size", a.lse_size}, shapes.lse_bytes, alignof(float), false);
  call.lse = a.lse;
  call.dq = ranges.output("dq", a.dq, p.grad_dtype, shapes.q);
  call.dk = ranges.output("dk", a.dk, p.grad_dtype, shapes.k);
  call.dv = ranges.output("dv", a.dv, p.grad_dtype, shapes.v);
  check_modifiers(ranges, a, p, shapes);
  call.key_bias = key_bias_tensor(a.key_bias, shapes.rows_kv);
  call.sinks = a.sinks;
  check_asked("dsinks", a.dsinks, "num_sinks", p.num_sinks);
  ranges.output("dsinks", a.dsinks, {"dsinks_size", a.dsinks_size}, shapes.sinks_bytes, alignof(float), true);
  call.dsinks = a.dsinks;
  call.accumulate = a.accumulate != 0;
  call.workspace = a.workspace;
  if (a.workspace != nullptr || a.workspace_size != 0)
    check_workspace(ranges, "backward", a.workspace, a.workspace_size,
                    workspace_bytes(c.plan(p, Pass::backward), c.engine));
  ranges.require_disjoint();
  c.backend->check(ranges, a.stream);
  if (call.workspace == nullptr) call.workspace = c.workspace(p, Pass::backward, a.stream);
  planning.end();
  c.together(Operation::backward, p, {}, a.stream, whole_call, [&] { return c.backward(p, call); });
}

}  // namespace

extern "C" {

void ra_init_forward_args(ra_forward_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_backward_args(ra_backward_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_merge_args(ra_merge_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_call_statistics(ra_call_statistics *statistics, size_t struct_size) { init(statistics, struct_size); }

ra_status ra_forward(ra_context *context, const ra_attention_desc *desc, const ra_forward_args *args, ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    c.exclusively([&] { attend(c, desc, args); });
  });
}

ra_status ra_backward(ra_context *context, const ra_attention_desc *desc, const ra_backward_args *args,
                      ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    c.exclusively([&] { differentiate(c, desc, args); });
  });
}

ra_status ra_get_call_statistics(const ra_context *context, ra_call_statistics *statistics, ra_error *error) {
  return guard(error, [&] {
    const ra_context &c = checked(context);
    CallStatistics kept;
    {
      const std::lock_guard lock(c.statistics_mutex);
      kept = c.statistics;
    }
    ra_call_statistics s = defaults<ra_call_statistics>();
    s.steps = kept.totals.steps;
    s.hops = kept.totals.hops;
    s.hop_bytes = kept.totals.hop_bytes;
    s.total_seconds = kept.total_seconds;
    s.compute_seconds = kept.compute_seconds;
    s.wait_seconds = kept.wait_seconds;
    s.projection_seconds = kept.projection_seconds;
    s.schedule = static_cast<std::int32_t>(kept.schedule);
    write(statistics, "statistics", s);
  });
}

ra_status ra_merge_attention(const ra_merge_args *args, ra_error *error) {
  return guard(error, [&] {
    const ra_merge_args a = read(args, "args");
    require_range("batch", a.batch, 1, most_tokens);
    require_range("seqlen", a.seqlen, 0, most_tokens);
    require_range("num_heads", a.num_heads, 1, most_heads);
    require_range("head_dim_v", a.head_dim_v, 1, most_copied_dim);
    require(a.reserved == 0, "reserved is ", a.reserved, "; must be 0");
    const DType dtype = to_dtype("dtype", a.dtype);
    const Shape shape{a.batch, a.seqlen, a.num_heads, a.head_dim_v};
    Ranges ranges;
    const Tensor out_a = ranges.input("out_a", a.out_a, dtype, shape);
    const Tensor out_b = ranges.input("out_b", a.out_b, dtype, shape);
    const Tensor out = ranges.output("out", a.out, dtype, shape);
    const std::int64_t lse_bytes = a.batch * a.seqlen * a.num_heads * size_of(DType::float32);
    ranges.input("lse_a", a.lse_a, {"lse_size", a.lse_size}, lse_bytes, alignof(float), false);
    ranges.input("lse_b", a.lse_b, {"lse_size", a.lse_size}, lse_bytes, alignof(float), false);
    ranges.output("lse", a.lse, {"lse_size", a.lse_size}, lse_bytes, alignof(float), false);
    ranges.require_disjoint(true);

    merge_attention({a.seqlen, a.num_heads, a.head_dim_v}, a.batch, {out_a, a.lse_a}, {out_b, a.lse_b}, out, a.lse);
  });
}

}  // extern "C"
