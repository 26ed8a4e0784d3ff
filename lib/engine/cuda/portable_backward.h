// The portable engine's backward kernels, for sm_80 and newer: which of them takes a problem, and how a step is run. Host code; the
// first is pure.
#pragma once

#include "engine/engine.h"

struct CUstream_st;  // cudaStream_t points to it

namespace ringattn::cuda {

struct BackwardVariant {
  DType dtype;         // that operands have in shared memory
  int dim;             // 64, 128 or 256: the least that has room for head_dim and head_dim_v
  bool exact_weights;  // else weights, and gradients of scores, are rounded to dtype
  friend bool operator==(const BackwardVariant&, const BackwardVariant&) = default;
};
BackwardVariant choose_backward(const Problem& problem);

// Enqueues the step's kernels, or those before the first that cannot be: a cudaError_t. They need no scratch, and their results are
// bitwise repeatable. Tensors are aligned to their elements; what is aligned to 16 bytes travels faster.
int portable_backward(const Problem& problem, const BackwardStep& step, CUstream_st* stream);

}  // namespace ringattn::cuda
