#include "engine/cuda/portable.h"

#include <algorithm>

#include "core/error.h"
#include "engine/cuda/modifiers.h"
#include "engine/precision.h"

namespace ringattn::cuda {
namespace {

int width_of(const Problem& p) {
  const std::int64_t widest = std::max(p.head_dim, p.head_dim_v);
  return widest <= 64 ? 64 : widest <= 128 ? 128 : 256;
}

}  // namespace

std::string portable_refusal(const Problem& problem) {
  const auto refuse = [](const char* field, std::int64_t value, std::int64_t most) {
    return text(field, " is ", value, "; the portable engine takes at most ", most);
  };
  constexpr std::int64_t most_heads = std::int64_t{1} << 16, most_entries = std::int64_t{1} << 31;
  if (problem.head_dim > most_head_dim) return refuse("head_dim", problem.head_dim, most_head_dim);
  if (problem.head_dim_v > most_head_dim) return refuse("head_dim_v", problem.head_dim_v, most_head_dim);
  if (problem.num_heads_q > most_heads) return refuse("num_heads_q", problem.num_heads_q, most_heads);
  if (problem.batch >= most_entries) return refuse("batch", problem.batch, most_entries - 1);
  return "";
}

Variant choose_forward(const Problem& p) {
  return {p.dtype, width_of(p), !may_round_weights(p), has_modifiers(p) || p.num_sinks > 0};
}

// All operands of a product are of one type, and parts of exact weights must not be too small for it, as they may be for float16.
Variant choose_backward(const Problem& p) {
  const bool alike = p.dtype == p.out_dtype;
  const bool rounds = may_round_weights(p);
  if (alike && (rounds || p.dtype == DType::bfloat16)) return {p.dtype, width_of(p), !rounds, has_modifiers(p)};
  return {DType::float32, width_of(p), !has_many(p), has_modifiers(p)};
}

}  // namespace ringattn::cuda
