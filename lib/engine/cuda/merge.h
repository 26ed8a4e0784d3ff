// Attention over some keys, computed by others, becomes part of a row's running result. Each function enqueues one kernel on the
// stream and returns a cudaError_t.
#pragma once

#include <cstdint>

#include "engine/engine.h"

struct CUstream_st;

namespace ringattn::cuda {

// Rows first_row .. first_row + rows - 1 of a step, of which the rows begin .. begin + count - 1, counted from the first, have seen some
// keys more: `out` [batch, count, num_heads_q, head_dim_v] and `lse` [batch, num_heads_q, count], fp32 and packed.
struct MergedRows {
  std::int64_t first_row = 0, rows = 0;
  std::int64_t begin = 0, count = 0;
  const float* out = nullptr;
  const float* lse = nullptr;
};

// The step's first, last, running state, out and lse mean what they mean to portable_forward. Does nothing if *unless is not 0 when it
// runs; `unless` is device memory.
int merge(const Problem& problem, const ForwardStep& step, const MergedRows& merged, const std::int32_t* unless,
          CUstream_st* stream);

// *flag = 1 if any element is NaN or infinite, else as it was. Elements have 16 bits, and rows 16-byte pieces (is_aligned).
int find_not_finite(std::int64_t batch, const Tensor& tensor, Extent extent, std::int32_t* flag, CUstream_st* stream);

}  // namespace ringattn::cuda
