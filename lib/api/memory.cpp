#include <cmath>
#include <limits>

#include "api/barrier.h"
#include "api/context.h"
#include "api/group.h"
#include "api/structs.h"
#include "api/validate.h"
#include "plan/duration.h"

using namespace ringattn;
using namespace ringattn::api;

namespace {

void require_positive(const char *name, double value) {
  require(value > 0 && std::isfinite(value), name, " is ", value, "; must be > 0 and finite");
}

}  // namespace

namespace ringattn::api {

ra_memory_requirements describe_memory(const Problem &p, const Rank &rank, const Engine &engine,
                                       std::size_t context_bytes) {
  const PassPlan forward(p, rank.world_size, rank.rank, Pass::forward),
      backward(p, rank.world_size, rank.rank, Pass::backward);
  const std::int64_t rows_q = p.batch * forward.query_rows() * p.num_heads_q;
  const std::int64_t rows_kv = p.batch * forward.key_rows() * p.num_heads_kv;
  const std::int64_t dims = p.head_dim + p.head_dim_v;
  const std::int64_t inputs = (rows_q * p.head_dim + rows_kv * dims) * size_of(p.dtype);
  const std::int64_t out = rows_q * p.head_dim_v * size_of(p.out_dtype);
  const std::int64_t lse = rows_q * size_of(DType::float32);
  const std::int64_t key_bias = p.has_key_bias ? p.batch * forward.key_rows() * size_of(DType::float32) : 0;
  const std::int64_t sinks = p.num_heads_q * p.num_sinks * size_of(DType::float32);
  const std::int64_t gradients = (rows_q * p.head_dim + rows_kv * dims) * size_of(p.grad_dtype);

  ra_memory_requirements r = defaults<ra_memory_requirements>();
  r.forward_tensors = static_cast<std::size_t>(inputs + out + lse + key_bias + sinks);
  r.backward_tensors = static_cast<std::size_t>(inputs + 2 * out + lse + gradients + key_bias + 2 * sinks);
  r.forward_workspace = workspace_bytes(forward, engine);
  r.backward_workspace = workspace_bytes(backward, engine);
  r.lse = static_cast<std::size_t>(lse);
  r.context = context_bytes;
  r.forward_chunks = forward.num_chunks();
  r.backward_chunks = backward.num_chunks();
  r.forward_steps = forward.totals().steps;
  r.backward_steps = backward.totals().steps;
  r.forward_hops = forward.totals().hops;
  r.backward_hops = backward.totals().hops;
  r.forward_hop_bytes = forward.totals().hop_bytes;
  r.backward_hop_bytes = backward.totals().hop_bytes;
  r.forward_schedule = static_cast<std::int32_t>(forward.schedule());
  r.backward_schedule = static_cast<std::int32_t>(backward.schedule());
  r.forward_parts = forward.num_parts();
  r.backward_parts = backward.num_parts();
  r.visible_pairs = forward.visible_pairs();
  r.forward_flops = r.visible_pairs * flops_per_pair(p, Pass::forward);
  r.backward_flops = r.visible_pairs * flops_per_pair(p, Pass::backward);
  return r;
}

}  // namespace ringattn::api

extern "C" {

void ra_init_memory_requirements(ra_memory_requirements *requirements, size_t struct_size) {
  init(requirements, struct_size);
}

ra_status ra_get_memory_requirements(const ra_context *context, const ra_attention_desc *desc,
                                     ra_memory_requirements *requirements, ra_error *error) {
  return guard(error, [&] {
    const ra_context &c = checked(context);
    const ra_attention_desc d = read(desc, "desc");
    const Problem p = to_problem(d);
    require_supported(d, p, c.engine);
    write(requirements, "requirements", describe_memory(p, c.rank, c.engine, sizeof c));
  });
}

ra_status ra_estimate_memory(const ra_context_config *config, const ra_attention_desc *desc,
                             ra_memory_requirements *requirements, ra_error *error) {
  return guard(error, [&] {
    const ra_context_config c = read(config, "config");
    const Rank rank = to_rank(c);
    const std::unique_ptr<Backend> backend = make_backend(c, rank);
    const Engine &engine = backend->engine();
    const ra_attention_desc d = read(desc, "desc");
    const Problem p = to_problem(d);
    require_supported(d, p, engine);
    write(requirements, "requirements", describe_memory(p, rank, engine, sizeof(ra_context)));
  });
}

void ra_init_machine_rates(ra_machine_rates *rates, size_t struct_size) { init(rates, struct_size); }
void ra_init_time_estimate(ra_time_estimate *estimate, size_t struct_size) { init(estimate, struct_size); }

ra_status ra_estimate_time(const ra_context_config *config, const ra_attention_desc *desc,
                           const ra_machine_rates *rates, ra_time_estimate *estimate, ra_error *error) {
  return guard(error, [&] {
    const ra_context_config c = read(config, "config");
    require_place(c);
    const ra_attention_desc d = read(desc, "desc");
    const Problem p = to_problem(d);
    require_schedule(d);
    const ra_machine_rates m = read(rates, "rates");
    require_positive("forward_flops", m.forward_flops);
    require_positive("backward_flops", m.backward_flops);
    const bool is_limited = m.link_bytes != 0;
    if (is_limited) require_positive("link_bytes", m.link_bytes);
    require(m.link_seconds >= 0 && std::isfinite(m.link_seconds), "link_seconds is ", m.link_seconds,
            "; must be >= 0 and finite");
    Rates each{m.forward_flops, is_limited ? m.link_bytes : std::numeric_limits<double>::infinity(), m.link_seconds};
    const Duration forward = estimate_duration(p, c.world_size, c.rank, Pass::forward, each);
    each.flops = m.backward_flops;
    const Duration backward = estimate_duration(p, c.world_size, c.rank, Pass::backward, each);
    ra_time_estimate e = defaults<ra_time_estimate>();
    e.forward_seconds = forward.seconds;
    e.forward_compute_seconds = forward.compute_seconds;
    e.backward_seconds = backward.seconds;
    e.backward_compute_seconds = backward.compute_seconds;
    write(estimate, "estimate", e);
  });
}

}  // extern "C"
