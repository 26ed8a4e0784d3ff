// Launches: of delta; of a step, first those of dq, then those of dk and dv.
#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

#include "engine/cuda/backward.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/modifiers.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/step.h"
#include "engine/cuda/variant.h"

namespace ringattn::cuda {
namespace {

// choose_backward gives none of these.
template <class T, Weights weights>
constexpr bool is_left_out = std::is_same_v<T, Float16>&& weights == Weights::exact;

template <bool modified>
BackwardParameters<modified> parameters_of(const Problem& problem, const BackwardStep& step) {
  BackwardParameters<modified> p{.work = {},
                                 .q = view_of(step.q),
                                 .k = view_of(step.k),
                                 .v = view_of(step.v),
                                 .dout = view_of(step.dout),
                                 .dq = view_of(step.dq),
                                 .dk = view_of(step.dk),
                                 .dv = view_of(step.dv),
                                 .lse = step.lse,
                                 .delta = step.delta,
                                 .query_rows = step.query_rows,
                                 .first_block = 0,
                                 .num_heads_kv = static_cast<std::int32_t>(problem.num_heads_kv),
                                 .group = static_cast<std::int32_t>(problem.group()),
                                 .head_dim = static_cast<std::int32_t>(problem.head_dim),
                                 .head_dim_v = static_cast<std::int32_t>(problem.head_dim_v),
                                 .dtype = static_cast<std::int32_t>(problem.dtype),
                                 .dout_dtype = static_cast<std::int32_t>(step.dout.dtype),
                                 .scale = problem.softmax_scale,
                                 .softcap = problem.softcap,
                                 .q_aligned = is_aligned(step.q),
                                 .k_aligned = is_aligned(step.k),
                                 .v_aligned = is_aligned(step.v),
                                 .dout_aligned = is_aligned(step.dout),
                                 .modifiers = {}};
  if constexpr (modified) p.modifiers = modifiers_of(problem, step.origin, step.key_bias, step.key_rows, step.scratch);
  return p;
}

template <bool modified>
int run(const Problem& problem, const BackwardStep& step, Side side, CUstream_st* stream, int num_sms) {
  const auto kernel =
      with_variant<modified>(choose_backward(problem), [&]<class T, int dim, Weights weights, bool with>() {
        if constexpr (is_left_out<T, weights>)
          return BackwardKernel<with>{};
        else
          return backward_kernel<T, dim, weights, with>(side);
      });
  BackwardParameters<modified> p = parameters_of<modified>(problem, step);
  const bool of_queries = side == Side::query;
  const std::int64_t heads = of_queries ? problem.num_heads_q : problem.num_heads_kv;
  const std::int64_t blocks = heads * kernel.blocks;  // of a tile
  int error = 0;
  std::vector<Access> accesses;
  for_each_work<WorkFor<modified>>(problem, step.items, side, kernel.rows, blocks, [&](const WorkFor<modified>& work) {
    const Range queries = rows_of(work, Side::query), keys = rows_of(work, Side::key_value);
    if (error != 0 || queries.empty() || keys.empty()) return;
    const auto query_rows = [&](const Tensor& t, std::int64_t dim, bool writes) {
      return access_of(t, work, queries, problem.num_heads_q, dim, writes);
    };
    const auto key_rows = [&](const Tensor& t, std::int64_t dim, bool writes) {
      return access_of(t, work, keys, problem.num_heads_kv, dim, writes);
    };
    const auto state = [&](const float* values) {
      return access_of(values, work, queries, problem.num_heads_q, step.query_rows, false);
    };
    accesses = {query_rows(step.q, problem.head_dim, false),
                query_rows(step.dout, problem.head_dim_v, false),
                key_rows(step.k, problem.head_dim, false),
                key_rows(step.v, problem.head_dim_v, false),
                state(step.lse),
                state(step.delta)};
    for (const bool writes : {false, true})
      if (of_queries) {
        accesses.push_back(query_rows(step.dq, problem.head_dim, writes));
      } else {
        accesses.push_back(key_rows(step.dk, problem.head_dim, writes));
        accesses.push_back(key_rows(step.dv, problem.head_dim_v, writes));
      }
    if constexpr (modified) {
      if (p.modifiers.slopes != nullptr) accesses.push_back({p.modifiers.slopes, modifier_bytes(problem), false});
      if (p.modifiers.key_bias != nullptr)
        accesses.push_back(access_of(p.modifiers.key_bias, work, keys, 1, step.key_rows, false));
    }
    p.work = work;
    error = launch_in_turns({.name = kernel.name,
                             .threads = kernel.threads,
                             .shared_bytes = static_cast<std::size_t>(kernel.shared_bytes),
                             .stream = stream},
                            accesses, kernel.kernel, p, blocks * work.num_entries * work.num_tiles, num_sms);
  });
  return error;
}

}  // namespace

int portable_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows, float* delta,
                   CUstream_st* stream, int num_sms) {
  if (problem.batch * rows == 0) return 0;
  Variant variant = choose_backward(problem);
  if (dout.dtype != out.dtype) variant.dtype = DType::float32;  // that of what branches have made again
  const DeltaKernel kernel = with_variant<false>(variant, [&]<class T, int dim, Weights weights, bool>() {
    if constexpr (is_left_out<T, weights>)
      return DeltaKernel{};
    else
      return delta_kernel<T, dim, weights>();
  });
  const std::int64_t tiles = (rows + kernel.rows - 1) / kernel.rows, blocks = tiles * problem.num_heads_q;
  const std::int64_t most_entries = std::max<std::int64_t>(most_blocks / blocks, 1);
  int error = 0;
  for (std::int64_t first = 0; first < problem.batch && error == 0; first += most_entries) {
    const std::int64_t entries = std::min(most_entries, problem.batch - first);
    const auto from_entry = [&](Tensor tensor) {
      tensor.data = tensor.bytes_at(first, 0, 0);
      return tensor;
    };
    const Tensor entry_dout = from_entry(dout), entry_out = from_entry(out);
    const DeltaParameters p{.dout = view_of(entry_dout),
                            .out = view_of(entry_out),
                            .delta = delta + first * problem.num_heads_q * rows,
                            .rows = rows,
                            .first_block = 0,
                            .num_tiles = static_cast<std::int32_t>(tiles),
                            .num_heads = static_cast<std::int32_t>(problem.num_heads_q),
                            .head_dim_v = static_cast<std::int32_t>(problem.head_dim_v),
                            .dtype = static_cast<std::int32_t>(dout.dtype),
                            .out_dtype = static_cast<std::int32_t>(out.dtype),
                            .dout_aligned = is_aligned(entry_dout),
                            .out_aligned = is_aligned(entry_out)};
    const Extent extent{rows, problem.num_heads_q, problem.head_dim_v};
    const Access accesses[] = {
        access_of(entry_dout, entries, extent, false),
        access_of(entry_out, entries, extent, false),
        {p.delta, static_cast<std::size_t>(entries * problem.num_heads_q * rows) * sizeof(float), true}};
    error = launch_in_turns({.name = "delta",
                             .threads = kernel.threads,
                             .shared_bytes = static_cast<std::size_t>(kernel.shared_bytes),
                             .stream = stream},
                            accesses, kernel.kernel, p, entries * blocks, num_sms);
  }
  return error;
}

int portable_backward(const Problem& problem, const BackwardStep& step, CUstream_st* stream, int num_sms) {
  const bool modified = choose_backward(problem).modified;
  int error = modified && !step.items.empty() ? store_slopes(problem, step.origin, step.scratch, stream) : 0;
  for (const Side side : {Side::query, Side::key_value})
    for_each_turn(step.items, side, [&](std::span<const WorkItem> items) {
      if (error != 0) return;
      BackwardStep own = step;
      own.items = items;
      error =
          modified ? run<true>(problem, own, side, stream, num_sms) : run<false>(problem, own, side, stream, num_sms);
    });
  return error;
}

}  // namespace ringattn::cuda
