// What the CPU engines do to whole buffers. They refuse nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "core/error.h"
#include "engine/cpu/attention.h"

namespace ringattn::cpu {
namespace {

// Calls f(b, row, head) for every row of every head, in parallel over stretches of rows.
template <class F>
void for_each_row(std::int64_t batch, Extent extent, Threads& threads, F&& f) {
  constexpr std::int64_t rows_at_once = 128;
  const std::int64_t stretches = (extent.rows + rows_at_once - 1) / rows_at_once;
  threads.for_each(batch * stretches, [&](std::int64_t index, int) {
    const std::int64_t b = index / stretches, first = index % stretches * rows_at_once;
    for (std::int64_t row = first; row < std::min(first + rows_at_once, extent.rows); ++row)
      for (std::int64_t head = 0; head < extent.heads; ++head) f(b, row, head);
  });
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
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    std::memcpy(to.bytes_at(b, row, head), from.bytes_at(b, row, head), bytes);
  });
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
    *rows.lse.at<float>(b, row, head) =
        static_cast<float>(sinks == nullptr ? -infinity : static_cast<double>(sinks[head]));
  });
}

// In fp64 but for the values: lse = log(exp(lse_to) + exp(lse_from) + zero_keys), and out by the same weights.
void CpuEngine::merge_rows(const Problem& problem, const RunningRows& from, const RunningRows& to, Extent extent,
                           std::int64_t zero_keys) {
  const double of_zeros = zero_keys == 0 ? -infinity : std::log(static_cast<double>(zero_keys));
  for_each_row(problem.batch, extent, threads_, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    const auto lse_from = static_cast<double>(*from.lse.at<float>(b, row, head));
    float& lse = *to.lse.at<float>(b, row, head);
    const auto lse_to = static_cast<double>(lse);
    // A NaN is none of the largest, and makes the sum one.
    const double largest = std::max({-static_cast<double>(infinity), lse_to, lse_from, of_zeros});
    if (largest == -infinity && lse_from == lse_to) return;
    const auto share = [&](double x) { return x == largest ? 1.0 : std::exp(x - largest); };
    const double a = share(lse_to), c = share(lse_from), sum = a + c + share(of_zeros);
    lse = static_cast<float>(largest + std::log(sum));
    const auto weight_to = static_cast<float>(a / sum), weight_from = static_cast<float>(c / sum);
    float* const out = to.out.at<float>(b, row, head);
    // What has a weight of 0 contributes nothing, whatever it is.
    for (std::int64_t d = 0; d < extent.dim; ++d) out[d] = weight_to == 0.0F ? 0.0F : weight_to * out[d];
    if (weight_from == 0.0F) return;
    const float* const other = from.out.at<float>(b, row, head);
    for (std::int64_t d = 0; d < extent.dim; ++d) out[d] += weight_from * other[d];
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
