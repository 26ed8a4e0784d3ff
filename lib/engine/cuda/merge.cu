// Partial results of other makes: a warp takes the elements of a row of one head, and then those of the row that is as far ahead as the
// grid takes at once.
//
//   (O, max, sum) of the row       from the steps before, or nothing
//   (O', lse') of the same row     weighs 2^m s  (begin_with)
//   (O, max, sum) of both          relative to the larger of max and m
//   for the next step, or O / sum, rounded, and lse
//
// Nobody touches what another warp does, so results do not depend on the grid.
#include <algorithm>
#include <span>
#include <vector>

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/copy.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/item.h"
#include "engine/cuda/merge.h"
#include "engine/cuda/running.cuh"
#include "engine/cuda/step.h"

namespace ringattn::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int lines_of_warp = 4;  // more only where the grid would be too large

struct Merge {
  View running, out;
  float *max, *sum, *lse;
  const float *part, *part_lse;
  const std::int32_t* unless;
  std::int64_t query_rows, first_row, rows, begin, count;
  std::int64_t lines;  // rows of all heads and entries
  std::int32_t num_heads, dim;
  bool first, last;
};

template <class T>
__device__ __forceinline__ void merge_line(const Merge& p, std::int64_t line) {
  const std::int64_t head = line % p.num_heads, row = line / p.num_heads % p.rows, b = line / p.num_heads / p.rows;
  const std::int64_t stored = p.first_row + row, state = (b * p.num_heads + head) * p.query_rows + stored;
  const std::int64_t of_part = row - p.begin;
  const bool has_part = 0 <= of_part && of_part < p.count;
  if (!has_part && !p.first && !p.last) return;

  float max = p.first ? minus_infinity : p.max[state], sum = p.first ? 0.0F : p.sum[state];
  float own_factor = 1.0F, part_factor = 0.0F;
  if (has_part) {
    const float lse = p.part_lse[(b * p.num_heads + head) * p.count + of_part];
    const RowState here = begin_with(lse);
    const float both = here.max > max ? here.max : max, subtracted = both == minus_infinity ? 0.0F : both;
    own_factor = exp2_approx(max - subtracted);
    part_factor = exp2_approx(here.max - subtracted) * here.sum;
    max = both;
    sum = multiply_add(sum, own_factor, part_factor);
  }
  const float divisor = p.last ? (sum == 0.0F ? 1.0F : sum) : 1.0F;
  float* const running = p.running.at<float>(b, stored, head);
  T* const out = p.out.at<T>(b, stored, head);
  const float* const part = has_part ? p.part + ((b * p.count + of_part) * p.num_heads + head) * p.dim : nullptr;
  for (int i = lane_index(); i < p.dim; i += warp_size) {
    float x = p.first ? 0.0F : running[i] * own_factor;
    if (part_factor != 0.0F) x = multiply_add(part[i], part_factor, x);
    if (p.last)
      store_number(out + i, x / divisor);
    else
      running[i] = x;
  }
  warp_barrier();  // all lanes know max and sum as they were
  if (lane_index() != 0) return;
  if (p.last) {
    if (p.lse != nullptr) p.lse[state] = log_of(max, sum);
  } else {
    p.max[state] = max;
    p.sum[state] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(threads) merge_kernel(const __grid_constant__ Merge p) {
  if (*p.unless != 0) return;
  const std::int64_t step = static_cast<std::int64_t>(grid_size().x) * warps;
  for (std::int64_t line = static_cast<std::int64_t>(block_index().x) * warps + warp_index(); line < p.lines;
       line += step)
    merge_line<T>(p, line);
}

struct Search {
  View in;
  std::int64_t rows, lines;
  std::int32_t num_heads, pieces;  // of 16 bytes, of a line
  std::int32_t* flag;
};
// Numbers whose exponent has all its bits. Who finds one stores the same as everybody who does.
template <class T>
__global__ void __launch_bounds__(threads) search_kernel(const __grid_constant__ Search p) {
  const std::int64_t count = p.lines * p.pieces, step = static_cast<std::int64_t>(grid_size().x) * threads;
  bool found = false;
  for (std::int64_t i = static_cast<std::int64_t>(block_index().x) * threads + thread_index(); i < count; i += step) {
    const std::int64_t line = i / p.pieces;
    const std::int64_t head = line % p.num_heads, row = line / p.num_heads % p.rows, b = line / p.num_heads / p.rows;
    const Words<4> words = load_global16(p.in.at<T>(b, row, head) + i % p.pieces * 8);
    for (int n = 0; n < 4; ++n) found |= !is_finite(unpack_low<T>(words[n])) || !is_finite(unpack_high<T>(words[n]));
  }
  if (found) *p.flag = 1;
}

int blocks_for(std::int64_t lines, int of_block) {
  return static_cast<int>(std::min((lines + of_block - 1) / of_block, most_blocks));
}

}  // namespace

int merge(const Problem& problem, const ForwardStep& step, const MergedRows& m, const std::int32_t* unless,
          CUstream_st* stream) {
  const Merge p{.running = view_of(step.running),
                .out = view_of(step.out),
                .max = step.max,
                .sum = step.sum,
                .lse = step.lse,
                .part = m.out,
                .part_lse = m.lse,
                .unless = unless,
                .query_rows = step.query_rows,
                .first_row = m.first_row,
                .rows = m.rows,
                .begin = m.begin,
                .count = m.count,
                .lines = problem.batch * m.rows * problem.num_heads_q,
                .num_heads = static_cast<std::int32_t>(problem.num_heads_q),
                .dim = static_cast<std::int32_t>(problem.head_dim_v),
                .first = step.first,
                .last = step.last};
  if (p.lines == 0) return 0;
  const Extent rows{m.rows, problem.num_heads_q, problem.head_dim_v};
  const std::size_t parts = static_cast<std::size_t>(problem.batch * m.count * problem.num_heads_q) * sizeof(float);
  std::vector<Access> accesses{{unless, sizeof *unless, false}};
  if (m.count > 0) {
    accesses.push_back({m.out, parts * static_cast<std::size_t>(problem.head_dim_v), false});
    accesses.push_back({m.lse, parts, false});
  }
  const auto add_values = [&](const float* values, bool writes) {
    const std::int64_t last = (problem.batch * problem.num_heads_q - 1) * step.query_rows + m.rows;
    accesses.push_back({values + m.first_row, static_cast<std::size_t>(last) * sizeof(float), writes});
  };
  const auto add_running = [&](bool writes) {
    accesses.push_back(access_of(step.running.from_row(m.first_row), problem.batch, rows, writes));
    add_values(step.max, writes);
    add_values(step.sum, writes);
  };
  if (!step.first) add_running(false);
  if (!step.last) add_running(true);
  if (step.last) accesses.push_back(access_of(step.out.from_row(m.first_row), problem.batch, rows, true));
  if (step.last && step.lse != nullptr) add_values(step.lse, true);
  const LaunchConfig config{.name = "merge",
                            .grid = {blocks_for(p.lines, warps * lines_of_warp), 1, 1},
                            .threads = threads,
                            .shared_bytes = 0,
                            .stream = stream};
  switch (step.out.dtype) {
    case DType::bfloat16:
      return launch(config, accesses, merge_kernel<BFloat16>, p);
    case DType::float16:
      return launch(config, accesses, merge_kernel<Float16>, p);
    default:
      return launch(config, accesses, merge_kernel<float>, p);
  }
}

int find_not_finite(std::int64_t batch, const Tensor& tensor, Extent extent, std::int32_t* flag, CUstream_st* stream) {
  const Search p{.in = view_of(tensor),
                 .rows = extent.rows,
                 .lines = batch * extent.rows * extent.heads,
                 .num_heads = static_cast<std::int32_t>(extent.heads),
                 .pieces = static_cast<std::int32_t>(extent.dim / 8),
                 .flag = flag};
  if (p.lines == 0) return 0;
  const Access accesses[] = {access_of(tensor, batch, extent, false), {flag, sizeof *flag, true}};
  const LaunchConfig config{.name = "find_not_finite",
                            .grid = {blocks_for(p.lines * p.pieces, threads * lines_of_warp), 1, 1},
                            .threads = threads,
                            .shared_bytes = 0,
                            .stream = stream};
  return tensor.dtype == DType::bfloat16 ? launch(config, accesses, search_kernel<BFloat16>, p)
                                         : launch(config, accesses, search_kernel<Float16>, p);
}

}  // namespace ringattn::cuda
