// Rows have (O, max, sum), in any layout. A warp takes the elements of a row of one head:
//
//   begin_rows           nothing, or a sink
//   add_zero_keys        to max and sum, as long as O is 0; a lane takes a row
//   finish_rows          O / sum, rounded, and lse
//
// Sinks:
//
//   combine_sinks        a warp takes a head
//   add_sink_gradients   a block takes a head: the sum over its rows of exp(lse of the sinks - lse) delta, each thread's part of it
//                        compensated (Kahan 1965), is shared out among the sinks
//
// Nobody touches what another does, and sums have an order of their own, so results do not depend on the grid.
#include <algorithm>

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
#include "engine/cuda/item.h"
#include "engine/cuda/modifiers.h"
#include "engine/cuda/rows.h"
#include "engine/cuda/running.cuh"
#include "engine/cuda/step.h"

namespace ringattn::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int lines_of_warp = 4;  // more only where the grid would be too large

__device__ __forceinline__ float exponential(float x) { return exp2_approx(x * log2_of_e); }

// ---------------------------------------------------------------- rows

struct Lines {
  std::int64_t rows, count;  // count: rows of all heads and entries
  std::int32_t num_heads, dim;
};
struct Line {
  std::int64_t b, row, head;
};
__device__ __forceinline__ Line line_of(const Lines& lines, std::int64_t index) {
  const std::int64_t row = index / lines.num_heads;
  return {row / lines.rows, row % lines.rows, index % lines.num_heads};
}
// Calls f(b, row, head) for each line of this warp.
template <class F>
__device__ __forceinline__ void for_each_line(const Lines& lines, F&& f) {
  const std::int64_t step = static_cast<std::int64_t>(grid_size().x) * warps;
  for (std::int64_t line = static_cast<std::int64_t>(block_index().x) * warps + warp_index(); line < lines.count;
       line += step) {
    const Line at = line_of(lines, line);
    f(at.b, at.row, at.head);
  }
}

struct Begin {
  Lines lines;
  View out, max, sum;
  const float* sinks;
};
__global__ void __launch_bounds__(threads) begin_kernel(const __grid_constant__ Begin p) {
  for_each_line(p.lines, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    float* const out = p.out.at<float>(b, row, head);
    for (int i = lane_index(); i < p.lines.dim; i += warp_size) out[i] = 0.0F;
    if (lane_index() != 0) return;
    const RowState state = begin_with(p.sinks == nullptr ? minus_infinity : p.sinks[head]);
    *p.max.at<float>(b, row, head) = state.max;
    *p.sum.at<float>(b, row, head) = state.sum;
  });
}

struct ZeroKeys {
  Lines lines;
  View max, sum;
  float count;
};
__global__ void __launch_bounds__(threads) zero_keys_kernel(const __grid_constant__ ZeroKeys p) {
  const std::int64_t step = static_cast<std::int64_t>(grid_size().x) * threads;
  for (std::int64_t line = static_cast<std::int64_t>(block_index().x) * threads + thread_index(); line < p.lines.count;
       line += step) {
    const Line at = line_of(p.lines, line);
    float &max = *p.max.at<float>(at.b, at.row, at.head), &sum = *p.sum.at<float>(at.b, at.row, at.head);
    const float largest = larger(max, 0.0F);
    sum = multiply_add(sum, exp2_approx(max - largest), p.count * exp2_approx(-largest));
    max = largest;
  }
}

struct Finish {
  Lines lines;
  View running, max, sum, out, lse;  // lse.data may be null
  float kept;                        // ModifierParameters::kept
};
template <class T>
__global__ void __launch_bounds__(threads) finish_kernel(const __grid_constant__ Finish p) {
  for_each_line(p.lines, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    const float max = *p.max.at<const float>(b, row, head), sum = *p.sum.at<const float>(b, row, head);
    const float divisor = p.kept == 0.0F ? sum : sum / p.kept;
    const float* const from = p.running.at<const float>(b, row, head);
    T* const to = p.out.at<T>(b, row, head);
    for (int i = lane_index(); i < p.lines.dim; i += warp_size)
      store_number(to + i, sum == 0.0F ? 0.0F : from[i] / divisor);
    if (lane_index() == 0 && p.lse.data != nullptr) *p.lse.at<float>(b, row, head) = log_of(max, sum);
  });
}

// ---------------------------------------------------------------- sinks

// Of all lanes' together, in every lane.
__device__ __forceinline__ float largest_of_warp(float x) {
  for (int mask = 1; mask < warp_size; mask *= 2) x = larger(x, shuffle_xor(x, mask));
  return x;
}
__device__ __forceinline__ float sum_of_warp(float x) {
  for (int mask = 1; mask < warp_size; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
// By a warp.
__device__ __forceinline__ float log_sum_exp(const float* values, int count) {
  float largest = minus_infinity, sum = 0.0F;
  for (int n = lane_index(); n < count; n += warp_size) largest = larger(largest, values[n]);
  largest = largest_of_warp(largest);
  if (largest == minus_infinity) return largest;
  for (int n = lane_index(); n < count; n += warp_size) sum += exponential(values[n] - largest);
  return largest + natural_logarithm(sum_of_warp(sum));
}

struct Combine {
  const float* sinks;
  float* combined;
  std::int32_t num_heads, num_sinks;
};
__global__ void __launch_bounds__(threads) combine_kernel(const __grid_constant__ Combine p) {
  for (int head = block_index().x * warps + warp_index(); head < p.num_heads; head += grid_size().x * warps) {
    const float all = log_sum_exp(p.sinks + std::int64_t{head} * p.num_sinks, p.num_sinks);
    if (lane_index() == 0) p.combined[head] = all;
  }
}

struct SinkGradients {
  const float *sinks, *lse, *delta;
  float* dsinks;
  std::int64_t batch, rows;
  std::int32_t num_heads, num_sinks;
};
using WarpSums = Shared<float, 0, warps>;

__global__ void __launch_bounds__(threads) sink_gradients_kernel(const __grid_constant__ SinkGradients p) {
  for (int head = block_index().x; head < p.num_heads; head += grid_size().x) {
    const float* const sinks = p.sinks + std::int64_t{head} * p.num_sinks;
    const float together = log_sum_exp(sinks, p.num_sinks);
    float sum = 0.0F, lost = 0.0F;
    if (together != minus_infinity)
      for (std::int64_t b = 0; b < p.batch; ++b) {
        const std::int64_t first = (b * p.num_heads + head) * p.rows;
        for (std::int64_t row = first + thread_index(); row < first + p.rows; row += threads) {
          const float term = multiply_add(exponential(together - p.lse[row]), p.delta[row], -lost), next = sum + term;
          lost = (next - sum) - term;
          sum = next;
        }
      }
    const float of_warp = sum_of_warp(sum);
    barrier();  // the head before is done with
    if (lane_index() == 0) WarpSums::store(warp_index(), of_warp);
    barrier();
    float of_block = 0.0F;
    for (int n = 0; n < warps; ++n) of_block += WarpSums::load(n);
    if (together == minus_infinity) continue;
    float* const dsinks = p.dsinks + std::int64_t{head} * p.num_sinks;
    for (int n = thread_index(); n < p.num_sinks; n += threads)
      dsinks[n] = multiply_add(-exponential(sinks[n] - together), of_block, dsinks[n]);
  }
}

// ---------------------------------------------------------------- on the host

constexpr std::int64_t most_grid = (1LL << 31) - 1;

Lines lines_of(std::int64_t batch, Extent extent) {
  return {extent.rows, batch * extent.rows * extent.heads, static_cast<std::int32_t>(extent.heads),
          static_cast<std::int32_t>(extent.dim)};
}

template <class P>
int enqueue(const char* name, void (*kernel)(P), const P& parameters, std::int64_t blocks,
            std::span<const Access> accesses, CUstream_st* stream, int num_sms, int shared_bytes = 0) {
  const int grid = limit_blocks(std::min(blocks, most_grid), num_sms, kernel, threads, shared_bytes);
  return launch({.name = name,
                 .grid = {grid, 1, 1},
                 .threads = threads,
                 .shared_bytes = static_cast<std::size_t>(shared_bytes),
                 .stream = stream},
                accesses, kernel, parameters);
}
std::int64_t blocks_for(const Lines& lines) {
  constexpr std::int64_t of_block = warps * lines_of_warp;
  return (lines.count + of_block - 1) / of_block;
}

std::size_t bytes_of(std::int64_t numbers) { return static_cast<std::size_t>(numbers) * sizeof(float); }

}  // namespace

int begin_rows(std::int64_t batch, const RunningRows& rows, Extent extent, const float* sinks, CUstream_st* stream,
               int num_sms) {
  const Begin p{lines_of(batch, extent), view_of(rows.out), view_of(rows.max), view_of(rows.sum), sinks};
  if (p.lines.count == 0) return 0;
  const Access accesses[] = {access_of(rows.out, batch, extent, true),
                             access_of(rows.max, batch, extent.of_numbers(), true),
                             access_of(rows.sum, batch, extent.of_numbers(), true),
                             {sinks, bytes_of(extent.heads), false}};
  return enqueue("begin_rows", begin_kernel, p, blocks_for(p.lines),
                 std::span(accesses).first(sinks == nullptr ? 3 : 4), stream, num_sms);
}

int add_zero_keys(std::int64_t batch, const RunningRows& rows, Extent extent, std::int64_t count, CUstream_st* stream,
                  int num_sms) {
  const ZeroKeys p{lines_of(batch, extent), view_of(rows.max), view_of(rows.sum), static_cast<float>(count)};
  if (p.lines.count == 0 || count == 0) return 0;
  const Extent numbers = extent.of_numbers();
  const Access accesses[] = {access_of(rows.max, batch, numbers, false), access_of(rows.max, batch, numbers, true),
                             access_of(rows.sum, batch, numbers, false), access_of(rows.sum, batch, numbers, true)};
  return enqueue("add_zero_keys", zero_keys_kernel, p, (p.lines.count + threads - 1) / threads, accesses, stream,
                 num_sms);
}

int finish_rows(const Problem& problem, const RunningRows& rows, Extent extent, const Tensor& out, float* lse,
                CUstream_st* stream, int num_sms) {
  const std::int64_t batch = problem.batch;
  const Tensor lse_rows = row_tensor(lse, extent.rows, extent.heads);
  const Finish p{lines_of(batch, extent), view_of(rows.out),   view_of(rows.max), view_of(rows.sum), view_of(out),
                 view_of(lse_rows),       kept_factor(problem)};
  if (p.lines.count == 0) return 0;
  const Extent numbers = extent.of_numbers();
  const Access accesses[] = {access_of(rows.out, batch, extent, false), access_of(rows.max, batch, numbers, false),
                             access_of(rows.sum, batch, numbers, false), access_of(out, batch, extent, true),
                             access_of(lse_rows, batch, numbers, true)};
  const auto with = [&](void (*kernel)(Finish)) {
    return enqueue("finish_rows", kernel, p, blocks_for(p.lines), std::span(accesses).first(lse == nullptr ? 4 : 5),
                   stream, num_sms);
  };
  switch (out.dtype) {
    case DType::bfloat16:
      return with(finish_kernel<BFloat16>);
    case DType::float16:
      return with(finish_kernel<Float16>);
    default:
      return with(finish_kernel<float>);
  }
}

int combine_sinks(const Problem& problem, const float* sinks, float* combined, CUstream_st* stream, int num_sms) {
  const std::int64_t heads = problem.num_heads_q;
  const Combine p{sinks, combined, static_cast<std::int32_t>(heads), static_cast<std::int32_t>(problem.num_sinks)};
  const Access accesses[] = {{sinks, bytes_of(heads * problem.num_sinks), false}, {combined, bytes_of(heads), true}};
  return enqueue("combine_sinks", combine_kernel, p, (heads + warps - 1) / warps, accesses, stream, num_sms);
}

int add_sink_gradients(const Problem& problem, const float* sinks, const float* lse, const float* delta,
                       std::int64_t rows, float* dsinks, CUstream_st* stream, int num_sms) {
  const std::int64_t heads = problem.num_heads_q, states = problem.batch * heads * rows;
  if (states == 0) return 0;
  const SinkGradients p{sinks,
                        lse,
                        delta,
                        dsinks,
                        problem.batch,
                        rows,
                        static_cast<std::int32_t>(heads),
                        static_cast<std::int32_t>(problem.num_sinks)};
  const std::size_t of_sinks = bytes_of(heads * problem.num_sinks);
  const Access accesses[] = {{sinks, of_sinks, false},
                             {lse, bytes_of(states), false},
                             {delta, bytes_of(states), false},
                             {dsinks, of_sinks, false},
                             {dsinks, of_sinks, true}};
  return enqueue("add_sink_gradients", sink_gradients_kernel, p, heads, accesses, stream, num_sms, WarpSums::end);
}

}  // namespace ringattn::cuda
