// What the CPU engines do to whole buffers. They refuse nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "core/error.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/row_state.h"

namespace ringattn::cpu {
namespace {

// Calls f(b, row, head) for every row of every head, in parallel over stretches of rows.
template <class F>
void for_each_row(std::int64_t batch, Extent extent, Threads& threads, F&& f, OnCancel on_cancel = OnCancel::stop) {
  constexpr std::int64_t rows_at_once = 128;
  const std::int64_t stretches = (extent.rows + rows_at_once - 1) / rows_at_once;
  const auto stretch = [&](std::int64_t index, int) {
    const std::int64_t b = index / stretches, first = index % stretches * rows_at_once;
    for (std::int64_t row = first; row < std::min(first + rows_at_once, extent.rows); ++row)
      for (std::int64_t head = 0; head < extent.heads; ++head) f(b, row, head);
  };
  threads.for_each(batch * stretches, stretch, on_cancel);
}

constexpr double infinity = std::numeric_limits<double>::infinity();

double log_sum_exp(std::span<const float> values) {
  const double largest =
      values.empty() ? -infinity : static_cast<double>(*std::max_element(values.begin(), values.end()));
  if (largest == -infinity) return largest;
  double sum = 0;
  for (const float x : values) sum += std::exp(static_cast<double>(x) - largest);
  return largest + std::log(sum);
}

}  // namespace

std::string CpuEngine::refusal(const Problem&) const { return {}; }

void CpuEngine::compute_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows,
                              float* delta) {
  constexpr std::int64_t rows_at_once = 64;
  const Tiles& tiles = tiles_.choose(problem);
  const std::int64_t stretches = (rows + rows_at_once - 1) / rows_at_once;
  threads_.for_each(problem.batch * problem.num_heads_q * stretches, [&](std::int64_t index, int) {
    const std::int64_t first = index % stretches * rows_at_once, count = std::min(rows_at_once, rows - first);
    const std::int64_t head = index / stretches % problem.num_heads_q, entry = index / stretches / problem.num_heads_q;
    tiles.dot_rows({{dout.dtype, dout.bytes_at(entry, first, head), dout.seq_stride},
                    {out.dtype, out.bytes_at(entry, first, head), out.seq_stride},
                    count,
                    problem.head_dim_v,
                    delta + (entry * problem.num_heads_q + head) * rows + first});
  });
}

void CpuEngine::combine_sinks(const Problem& problem, const float* sinks, float* combined) {
  for (std::int64_t head = 0; head < problem.num_heads_q; ++head)
    combined[head] =
        static_cast<float>(log_sum_exp({sinks + head * problem.num_sinks, std::size_t(problem.num_sinks)}));
}

// A head's weights are those of its sinks together, at most 1 each, in parts.
void CpuEngine::add_sink_gradients(const Problem& problem, const float* sinks, const float* lse, const float* delta,
                                   std::int64_t rows, float* dsinks) {
  threads_.for_each(problem.num_heads_q, [&](std::int64_t head, int) {
    const std::span own(sinks + head * problem.num_sinks, static_cast<std::size_t>(problem.num_sinks));
    const double together = log_sum_exp(own);
    if (together == -infinity) return;
    double sum = 0;
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const std::int64_t first = (b * problem.num_heads_q + head) * rows;
      for (std::int64_t row = first; row < first + rows; ++row)
        sum += std::exp(together - static_cast<double>(lse[row])) * static_cast<double>(delta[row]);
    }
    for (std::size_t n = 0; n < own.size(); ++n) {
      float& to = dsinks[head * problem.num_sinks + static_cast<std::int64_t>(n)];
      to = static_cast<float>(static_cast<double>(to) - std::exp(static_cast<double>(own[n]) - together) * sum);
    }
  });
}

void CpuEngine::copy(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent) {
  const auto bytes = static_cast<std::size_t>(extent.dim * size_of(from.dtype));
  const auto copy_row = [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    std::memcpy(to.bytes_at(b, row, head), from.bytes_at(b, row, head), bytes);
  };
  for_each_row(problem.batch, extent, threads_, copy_row, OnCancel::go_on);  // a cache keeps it when its group is gone
}

void CpuEngine::round(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent, bool accumulate) {
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    tiles_.any->store(to.dtype, from.at<float>(b, row, head), extent.dim, to.bytes_at(b, row, head), accumulate);
  });
}

void CpuEngine::clear(const Problem& problem, const Tensor& to, Extent extent) {
  const auto bytes = static_cast<std::size_t>(extent.dim * size_of(to.dtype));
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    std::memset(to.bytes_at(b, row, head), 0, bytes);
  });
}

void CpuEngine::begin_rows(const Problem& problem, const RunningRows& rows, Extent extent, const float* sinks) {
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    std::memset(rows.out.bytes_at(b, row, head), 0, static_cast<std::size_t>(extent.dim) * sizeof(float));
    const RowState state = RowState::begin(sinks == nullptr ? -std::numeric_limits<float>::infinity() : sinks[head]);
    *rows.max.at<float>(b, row, head) = state.max;
    *rows.sum.at<float>(b, row, head) = state.sum;
  });
}

void CpuEngine::add_zero_keys(const Problem& problem, const RunningRows& rows, Extent extent, std::int64_t count) {
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    float &max = *rows.max.at<float>(b, row, head), &sum = *rows.sum.at<float>(b, row, head);
    const double before = static_cast<double>(max), largest = std::max(before, 0.0);
    sum = static_cast<float>(static_cast<double>(sum) * std::exp(before - largest) +
                             static_cast<double>(count) * std::exp(-largest));
    max = static_cast<float>(largest);
  });
}

void CpuEngine::finish_rows(const Problem& problem, const RunningRows& rows, Extent extent, const Tensor& out,
                            float* lse) {
  const Tensor lse_rows = row_tensor(lse, extent.rows, extent.heads);
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    const RowState state{*rows.max.at<float>(b, row, head), *rows.sum.at<float>(b, row, head)};
    float* const values = rows.out.at<float>(b, row, head);
    for (std::int64_t d = 0; d < extent.dim; ++d) values[d] = state.sum == 0.0F ? 0.0F : values[d] / state.sum;
    std::byte* const to = out.bytes_at(b, row, head);
    if (to != reinterpret_cast<std::byte*>(values)) tiles_.any->store(out.dtype, values, extent.dim, to, false);
    if (lse != nullptr) *lse_rows.at<float>(b, row, head) = state.lse();
  });
}

void CpuEngine::add(const float* from, float* to, std::int64_t count) {
  constexpr std::int64_t at_once = 16384;
  threads_.for_each((count + at_once - 1) / at_once, [&](std::int64_t index, int) {
    const std::int64_t first = index * at_once;
    tiles_.any->store(DType::float32, from + first, std::min(at_once, count - first), to + first, true);
  });
}

}  // namespace ringattn::cpu
