// Where an engine may round what it computes with: one rule for all of them, a function of the problem alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan/problem.h"

namespace ringattn {

// Whether there are so many terms and results that errors average out: where attention is dilated, in each segment.
inline bool has_many(const Problem& p) {
  constexpr std::int64_t few = 32;
  std::int64_t least = std::min({p.seqlen_q, p.seqlen_kv, p.head_dim, p.head_dim_v});
  for (const Branch& branch : p.branches) least = std::min(least, branch.segment_length / branch.dilation);
  return least >= few;
}

// Bits of the significand, with the leading one.
constexpr int significand_bits(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return 8;
    case DType::float16:
      return 11;
    default:
      return 24;
  }
}

// Whether weights of the softmax, and gradients of scores, may be rounded to dtype. That costs a result about as much as its own
// rounding does, so long as errors average out: not where results, or the gradients that the forward pass's results lead to, are kept
// in more digits, and not where there are but a few of them. Nor where each branch has a gradient of its own: that is by its own
// output, which is made again and never rounded.
inline bool may_round_weights(const Problem& p) {
  const int bits = significand_bits(p.dtype);
  return bits >= significand_bits(p.out_dtype) && bits >= significand_bits(p.grad_dtype) && has_many(p) &&
         (p.branches.empty() || p.dilation_gradient == DilationGradient::exact);
}

}  // namespace ringattn
