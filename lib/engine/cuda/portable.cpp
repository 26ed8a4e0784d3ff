#include "engine/cuda/portable.h"

#include <algorithm>

#include "core/error.h"
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
  const auto not_yet = [](const char* field) { return text("the portable engine does not compute ", field, " yet"); };
  if (!problem.alibi_slopes.empty()) return not_yet("alibi_slopes");
  if (problem.has_key_bias) return not_yet("key_bias");
  if (problem.num_sinks > 0) return not_yet("sinks");
  if (problem.dropout.probability != 0) return not_yet("dropout");
  if (!problem.slices.empty()) return not_yet("mask_slices");
  if (!problem.branches.empty()) return not_yet("dilated attention (num_branches)");
  if (problem.batch >= most_entries) return refuse("batch", problem.batch, most_entries - 1);
  return "";
}

Variant choose_forward(const Problem& p) { return {p.dtype, width_of(p), !may_round_weights(p)}; }

// All operands of a product are of one type, and parts of exact weights must not be too small for it, as they may be for float16.
Variant choose_backward(const Problem& p) {
  const bool alike = p.dtype == p.out_dtype;
  const bool rounds = may_round_weights(p);
  if (alike && (rounds || p.dtype == DType::bfloat16)) return {p.dtype, width_of(p), !rounds};
  return {DType::float32, width_of(p), !has_many(p)};
}

}  // namespace ringattn::cuda
