// A step's launches: a grid of one block for each tile of query rows, head and entry of the batch, of as many items as fit into the
// parameters of a kernel. Items that are behind each other write different rows, so their order does not matter.
#include <cmath>
#include <numbers>
#include <vector>

#include "engine/cuda/device/launch.h"
#include "engine/cuda/forward.h"
#include "engine/cuda/modifiers.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/step.h"
#include "engine/cuda/variant.h"

namespace ringattn::cuda {
namespace {

// Whether two neighbours, the first of them even, can be taken at once, and rows have no odd end.
bool in_pairs(const Tensor& tensor, std::int64_t dim) {
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data));
  return address % (2 * size_of(tensor.dtype)) == 0 &&
         (tensor.batch_stride | tensor.seq_stride | tensor.head_stride | dim) % 2 == 0;
}

template <bool modified>
ForwardParameters<modified> parameters_of(const Problem& problem, const ForwardStep& step) {
  ForwardParameters<modified> p{};
  p.q = view_of(step.q);
  p.k = view_of(step.k);
  p.v = view_of(step.v);
  p.running = view_of(step.running);
  p.max = step.max;
  p.sum = step.sum;
  p.out = view_of(step.out);
  p.lse = step.lse;
  p.query_rows = step.query_rows;
  p.num_heads_kv = static_cast<std::int32_t>(problem.num_heads_kv);
  p.group = static_cast<std::int32_t>(problem.group());
  p.head_dim = static_cast<std::int32_t>(problem.head_dim);
  p.head_dim_v = static_cast<std::int32_t>(problem.head_dim_v);
  p.out_type = static_cast<std::int32_t>(step.out.dtype);
  const double scale = static_cast<double>(problem.softmax_scale), cap = static_cast<double>(problem.softcap);
  if (cap != 0) {
    p.score = Score::capped;
    p.inner = static_cast<float>(scale / cap);
    p.outer = static_cast<float>(cap * std::numbers::log2e);
  } else if (scale > 0 && !modified) {
    p.score = Score::scaled;
    p.inner = 1;
    p.outer = static_cast<float>(scale * std::numbers::log2e);
  } else {
    p.score = Score::multiplied;
    p.inner = problem.softmax_scale;
    p.outer = static_cast<float>(std::numbers::log2e);
  }
  if constexpr (modified) {
    p.outer = static_cast<float>(std::numbers::log2e);
    p.modifiers = modifiers_of(problem, step.origin, step.key_bias, step.key_rows, step.scratch);
    p.beginning = {problem.num_sinks > 0 ? step.sinks : nullptr, problem.softcap};
  }
  p.q_aligned = is_aligned(step.q);
  p.k_aligned = is_aligned(step.k);
  p.v_aligned = is_aligned(step.v);
  p.pairs = in_pairs(step.running, problem.head_dim_v);
  p.out_pairs = in_pairs(step.out, problem.head_dim_v);
  p.first = step.first;
  p.last = step.last;
  return p;
}

template <bool modified>
int run(const Problem& problem, const ForwardStep& step, CUstream_st* stream, int num_sms,
        const std::int32_t* only_if) {
  const auto kernel = with_variant<modified>(
      choose_forward(problem),
      [&]<class T, int dim, Weights weights, bool with>() { return forward_kernel<T, dim, weights, with>(); });
  ForwardParameters<modified> p = parameters_of<modified>(problem, step);
  p.only_if = only_if;
  int error = 0;
  std::vector<Access> accesses;
  for_each_work<WorkFor<modified>>(
      problem, step.items, Side::query, kernel.rows, problem.num_heads_q, [&](const WorkFor<modified>& work) {
        if (error != 0) return;
        p.work = work;
        const Range queries = rows_of(work, Side::query), keys = rows_of(work, Side::key_value);
        accesses.clear();
        if (only_if != nullptr) accesses.push_back({only_if, sizeof *only_if, false});
        const auto add = [&](const Tensor& tensor, Range rows, std::int64_t heads, std::int64_t dim, bool writes) {
          if (!rows.empty()) accesses.push_back(access_of(tensor, work, rows, heads, dim, writes));
        };
        const auto add_values = [&](const float* values, bool writes) {
          if (values != nullptr)
            accesses.push_back(access_of(values, work, queries, problem.num_heads_q, step.query_rows, writes));
        };
        if (!keys.empty()) add(step.q, queries, problem.num_heads_q, problem.head_dim, false);
        add(step.k, keys, problem.num_heads_kv, problem.head_dim, false);
        add(step.v, keys, problem.num_heads_kv, problem.head_dim_v, false);
        const auto add_running = [&](bool writes) {
          add(step.running, queries, problem.num_heads_q, problem.head_dim_v, writes);
          add_values(step.max, writes);
          add_values(step.sum, writes);
        };
        if (!step.first) add_running(false);
        if (!step.last) add_running(true);
        if (step.last) {
          add(step.out, queries, problem.num_heads_q, problem.head_dim_v, true);
          add_values(step.lse, true);
        }
        if constexpr (modified) {
          const auto add_numbers = [&](const float* numbers, std::int64_t count) {
            if (numbers != nullptr)
              accesses.push_back({numbers, static_cast<std::size_t>(count) * sizeof(float), false});
          };
          add_numbers(p.modifiers.slopes, problem.num_heads_q);
          if (step.first) add_numbers(p.beginning.sinks, problem.num_heads_q);
          if (p.modifiers.key_bias != nullptr && !keys.empty())
            accesses.push_back(access_of(p.modifiers.key_bias, work, keys, 1, step.key_rows, false));
        }
        const LaunchConfig config{.name = kernel.name,
                                  .threads = kernel.threads,
                                  .shared_bytes = static_cast<std::size_t>(kernel.shared_bytes),
                                  .stream = stream};
        error = launch_in_turns(config, accesses, kernel.kernel, p,
                                work.num_tiles * problem.num_heads_q * work.num_entries, num_sms);
      });
  return error;
}

}  // namespace

int portable_forward(const Problem& problem, const ForwardStep& step, CUstream_st* stream, int num_sms,
                     const std::int32_t* only_if) {
  const bool modified = choose_forward(problem).modified;
  int error = modified ? store_slopes(problem, step.origin, step.scratch, stream) : 0;
  // Only layers have several turns. Their rows have begun before, and end behind all steps, so that each turn goes on from the last.
  for_each_turn(step.items, Side::query, [&](std::span<const WorkItem> items) {
    if (error != 0) return;
    ForwardStep own = step;
    own.items = items;
    error = modified ? run<true>(problem, own, stream, num_sms, only_if)
                     : run<false>(problem, own, stream, num_sms, only_if);
  });
  return error;
}

}  // namespace ringattn::cuda
