// The portable engine's kernels, for sm_80 and newer: which problems they take, which of them takes a problem, and how a step is run.
// Host code; the first two are pure.
#pragma once

#include <string>

#include "engine/engine.h"

struct CUstream_st;  // cudaStream_t points to it

namespace ringattn::cuda {

// Empty, or why the kernels cannot run the problem.
std::string portable_refusal(const Problem& problem);

struct ForwardVariant {
  DType dtype;
  int dim;             // 64, 128 or 256: the least that has room for head_dim and head_dim_v
  bool exact_weights;  // else they are rounded to dtype
  friend bool operator==(const ForwardVariant&, const ForwardVariant&) = default;
};
ForwardVariant choose_forward(const Problem& problem);

// Enqueues the step's kernels, or those before the first that cannot be: a cudaError_t. `max` of the running state is in the kernels'
// own units. Tensors are aligned to their elements; what is aligned to 16 bytes travels faster.
int portable_forward(const Problem& problem, const ForwardStep& step, CUstream_st* stream);

}  // namespace ringattn::cuda
