// Slopes are copied by parameters of a kernel, as many as these have room for at a time.
#include <algorithm>

#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/threads.h"
#include "engine/cuda/modifiers.h"
#include "engine/dropout.h"

namespace ringattn::cuda {
namespace {

constexpr int threads = 256;

struct Numbers {
  static constexpr int most = 960;
  float* to;
  std::int32_t count;
  float number[most];
};
static_assert(sizeof(Numbers) <= 4096);

__global__ void __launch_bounds__(threads) store_kernel(const __grid_constant__ Numbers p) {
  for (int i = thread_index(); i < p.count; i += threads) p.to[i] = p.number[i];
}

}  // namespace

float kept_factor(const Problem& problem) {
  const double probability = static_cast<double>(problem.dropout.probability);
  return probability == 0 ? 0.0F : static_cast<float>(1 / (1 - probability));
}

int store_slopes(const Problem& problem, const Origin& origin, void* scratch, CUstream_st* stream) {
  if (problem.alibi_slopes.empty()) return 0;
  int error = 0;
  for (std::int64_t first = 0; first < problem.num_heads_q && error == 0; first += Numbers::most) {
    const std::int64_t count = std::min<std::int64_t>(problem.num_heads_q - first, Numbers::most);
    Numbers p{static_cast<float*>(scratch) + first, static_cast<std::int32_t>(count), {}};
    for (std::int64_t i = 0; i < count; ++i)
      p.number[i] = problem.alibi_slopes[static_cast<std::size_t>(origin.head + (first + i) * origin.head_step)];
    const Access accesses[] = {{p.to, static_cast<std::size_t>(count) * sizeof(float), true}};
    error = launch({.name = "store_slopes", .grid = {1, 1, 1}, .threads = threads, .shared_bytes = 0, .stream = stream},
                   accesses, store_kernel, p);
  }
  return error;
}

ModifierParameters modifiers_of(const Problem& problem, const Origin& origin, const float* key_bias,
                                std::int64_t key_rows, const void* scratch) {
  return {.slopes = problem.alibi_slopes.empty() ? nullptr : static_cast<const float*>(scratch),
          .key_bias = problem.has_key_bias ? key_bias : nullptr,
          .key_rows = key_rows,
          .entry = origin.entry,
          .head = origin.head,
          .head_step = origin.head_step,
          .seed = problem.dropout.seed,
          .offset = problem.dropout.offset,
          .threshold = dropout_threshold(problem.dropout.probability),
          .kept = kept_factor(problem)};
}

}  // namespace ringattn::cuda
