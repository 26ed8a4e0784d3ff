// The oracle: attention by its definition, written for reading.
//
// Plain loops over every (query, key) pair of the whole sequence and the mask as ra_attention_desc words it; no runs, no
// intervals, no tiles, so that it shares no idea with the code it checks. Real = double is the truth that errors are
// measured against; Real = float is the "plain computation in the same dtype" of the tolerance rule.
//
//   q    [batch, seqlen_q,  num_heads_q,  head_dim]     k  [batch, seqlen_kv, num_heads_kv, head_dim]
//   out  [batch, seqlen_q,  num_heads_q,  head_dim_v]   v  [batch, seqlen_kv, num_heads_kv, head_dim_v]
//   lse  [batch, num_heads_q, seqlen_q]                 gradients have the shape of what they belong to
//
//   key_bias [batch, seqlen_kv]     sinks [num_heads_q, num_sinks]
//
// All tensors are packed. Cost: O(batch heads seqlen_q seqlen_kv (head_dim + head_dim_v)).
#pragma once

#include <cstdint>
#include <vector>

#include "plan/problem.h"

namespace ringattn::reference {

template <class Real>
struct Result {
  std::vector<Real> out, lse;
};

template <class Real>
struct Gradients {
  std::vector<Real> dq, dk, dv, dsinks;
};

// Tensors of which a problem may have none.
template <class Real>
struct Modifiers {
  std::vector<Real> key_bias, sinks;
};

// Whether query i may see key j of batch entry b, by the definition of ra_attention_desc but for dilation.
bool sees(const Problem& problem, std::int64_t b, std::int64_t i, std::int64_t j);
// How often it does in query head h: 0 or 1, or where attention is dilated as often as there are branches that keep both.
int times_seen(const Problem& problem, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j);

// A number as it is after being stored in `dtype`: to nearest, ties to even.
double rounded(double x, DType dtype);

// How a result is summed. Nothing here changes what is computed but for rounding, and `magnitudes` in the way it says.
struct Summation {
  std::int64_t first = 0;  // keys and query rows are taken from this index on, wrapping around
  // All but lse sum the magnitudes of their terms, and of what is added to scores: what rounding errors are relative to.
  bool magnitudes = false;
  DType operands = DType::float32;  // what weights and their gradients are rounded to before they are multiplied
};

template <class Real>
Result<Real> forward(const Problem& problem, const std::vector<Real>& q, const std::vector<Real>& k,
                     const std::vector<Real>& v, const Modifiers<Real>& modifiers = {},
                     const Summation& summation = {});

// `forward` is the result for the same q, k, v; its out and lse may have been rounded.
template <class Real>
Gradients<Real> backward(const Problem& problem, const std::vector<Real>& q, const std::vector<Real>& k,
                         const std::vector<Real>& v, const Result<Real>& forward, const std::vector<Real>& dout,
                         const Modifiers<Real>& modifiers = {}, const Summation& summation = {});

}  // namespace ringattn::reference
