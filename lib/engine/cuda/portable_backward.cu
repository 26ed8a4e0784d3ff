// Launches: of delta; of a step, first those of dq, then those of dk and dv.
#include <span>

#include "engine/cuda/backward.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/step.h"

namespace ringattn::cuda {
namespace {

// f.operator()<T, dim, weights>() for the variant's.
template <class T, Weights weights, class F>
auto with_dim(int dim, F&& f) {
  switch (dim) {
    case 64:
      return f.template operator()<T, 64, weights>();
    case 128:
      return f.template operator()<T, 128, weights>();
    default:
      return f.template operator()<T, 256, weights>();
  }
}
template <class F>
auto with_variant(const BackwardVariant& variant, F&& f) {
  constexpr Weights exact = Weights::exact, rounded = Weights::rounded;
  if (variant.dtype == DType::bfloat16)
    return variant.exact_weights ? with_dim<BFloat16, exact>(variant.dim, f)
                                 : with_dim<BFloat16, rounded>(variant.dim, f);
  if (variant.dtype == DType::float16) return with_dim<Float16, rounded>(variant.dim, f);
  return variant.exact_weights ? with_dim<float, exact>(variant.dim, f) : with_dim<float, rounded>(variant.dim, f);
}

BackwardParameters parameters_of(const Problem& problem, const BackwardStep& step) {
  return {.work = {},
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
          .dout_aligned = is_aligned(step.dout)};
}

}  // namespace

int portable_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows, float* delta,
                   CUstream_st* stream) {
  if (problem.batch * rows == 0) return 0;
  const DeltaKernel kernel = with_variant(
      choose_backward(problem), [&]<class T, int dim, Weights weights>() { return delta_kernel<T, dim, weights>(); });
  const std::int64_t tiles = (rows + kernel.rows - 1) / kernel.rows;
  const DeltaParameters p{.dout = view_of(dout),
                          .out = view_of(out),
                          .delta = delta,
                          .rows = rows,
                          .num_tiles = static_cast<std::int32_t>(tiles),
                          .num_heads = static_cast<std::int32_t>(problem.num_heads_q),
                          .head_dim_v = static_cast<std::int32_t>(problem.head_dim_v),
                          .dtype = static_cast<std::int32_t>(dout.dtype),
                          .dout_aligned = is_aligned(dout),
                          .out_aligned = is_aligned(out)};
  const auto whole = [&](const Tensor& t) {
    const std::int64_t last = t.offset(problem.batch - 1, rows - 1, problem.num_heads_q - 1);
    return Access{t.data, static_cast<std::size_t>((last + problem.head_dim_v) * size_of(t.dtype)), false};
  };
  const std::int64_t lines = problem.batch * problem.num_heads_q;
  const Access accesses[] = {
      whole(dout), whole(out), {delta, static_cast<std::size_t>(lines * rows) * sizeof(float), true}};
  return launch({.name = "delta",
                 .grid = {static_cast<int>(lines * tiles), 1, 1},
                 .threads = kernel.threads,
                 .shared_bytes = static_cast<std::size_t>(kernel.shared_bytes),
                 .stream = stream},
                accesses, kernel.kernel, p);
}

int portable_backward(const Problem& problem, const BackwardStep& step, CUstream_st* stream) {
  const BackwardVariant variant = choose_backward(problem);
  BackwardParameters p = parameters_of(problem, step);
  int error = 0;
  for (const Side side : {Side::query, Side::key_value}) {
    const BackwardKernel kernel = with_variant(
        variant, [&]<class T, int dim, Weights weights>() { return backward_kernel<T, dim, weights>(side); });
    const bool of_queries = side == Side::query;
    for_each_work(problem, step.items, side, kernel.rows, [&](const Work& work) {
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
      const Access accesses[] = {
          query_rows(step.q, problem.head_dim, false),
          query_rows(step.dout, problem.head_dim_v, false),
          key_rows(step.k, problem.head_dim, false),
          key_rows(step.v, problem.head_dim_v, false),
          state(step.lse),
          state(step.delta),
          of_queries ? query_rows(step.dq, problem.head_dim, false) : key_rows(step.dk, problem.head_dim, false),
          of_queries ? query_rows(step.dq, problem.head_dim, true) : key_rows(step.dk, problem.head_dim, true),
          key_rows(step.dv, problem.head_dim_v, false),
          key_rows(step.dv, problem.head_dim_v, true)};
      p.work = work;
      const std::int64_t heads = of_queries ? problem.num_heads_q : problem.num_heads_kv;
      const std::int64_t blocks = heads * work.num_entries * work.num_tiles * kernel.blocks;
      error = launch({.name = kernel.name,
                      .grid = {static_cast<int>(blocks), 1, 1},
                      .threads = kernel.threads,
                      .shared_bytes = static_cast<std::size_t>(kernel.shared_bytes),
                      .stream = stream},
                     std::span(accesses).first(of_queries ? 8 : 10), kernel.kernel, p);
    });
  }
  return error;
}

}  // namespace ringattn::cuda
