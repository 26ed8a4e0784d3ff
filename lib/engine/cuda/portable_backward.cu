#include <algorithm>
#include <span>

#include "engine/cuda/backward.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/portable_backward.h"
#include "engine/cuda/step.h"

namespace ringattn::cuda {
namespace {

template <class T, Weights weights>
BackwardKernel kernel_of(int dim, Side side) {
  switch (dim) {
    case 64:
      return backward_kernel<T, 64, weights>(side);
    case 128:
      return backward_kernel<T, 128, weights>(side);
    default:
      return backward_kernel<T, 256, weights>(side);
  }
}
BackwardKernel kernel_of(const BackwardVariant& variant, Side side) {
  switch (variant.dtype) {
    case DType::bfloat16:
      return variant.exact_weights ? kernel_of<BFloat16, Weights::exact>(variant.dim, side)
                                   : kernel_of<BFloat16, Weights::rounded>(variant.dim, side);
    case DType::float16:
      return kernel_of<Float16, Weights::rounded>(variant.dim, side);
    default:
      return kernel_of<float, Weights::exact>(variant.dim, side);
  }
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

// Rounded weights cost a result about as much as its own rounding does, so long as errors average out: not where results are kept in
// more digits, and not where there are but a few of them. The parts of exact ones may be too small for float16; and all operands of a
// product are of one type.
BackwardVariant choose_backward(const Problem& p) {
  constexpr std::int64_t few = 32;
  const std::int64_t widest = std::max(p.head_dim, p.head_dim_v);
  const int dim = widest <= 64 ? 64 : widest <= 128 ? 128 : 256;
  const bool many = std::min({p.seqlen_q, p.seqlen_kv, p.head_dim, p.head_dim_v}) >= few;
  const bool rounds = many && (p.grad_dtype == p.dtype || p.grad_dtype == DType::bfloat16);
  if (p.out_dtype == p.dtype && (rounds || p.dtype == DType::bfloat16)) return {p.dtype, dim, !rounds};
  return {DType::float32, dim, true};
}

int portable_backward(const Problem& problem, const BackwardStep& step, CUstream_st* stream) {
  const BackwardVariant variant = choose_backward(problem);
  BackwardParameters p = parameters_of(problem, step);
  int error = 0;
  for (const Side side : {Side::query, Side::key_value}) {
    const BackwardKernel kernel = kernel_of(variant, side);
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
