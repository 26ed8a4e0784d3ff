// The portable engine's kernels, for sm_80 and newer: which problems they take, which of them takes a problem, and how a step is run.
// Host code; the first three are pure.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"

struct CUstream_st;  // cudaStream_t points to it

namespace ringattn::cuda {

// Empty, or why the kernels cannot run the problem.
std::string portable_refusal(const Problem& problem);

struct Variant {
  DType dtype;         // of operands in shared memory
  int dim;             // 64, 128 or 256: the least that has room for head_dim and head_dim_v
  bool exact_weights;  // and gradients of scores; else they are rounded to dtype
  bool modified;       // the kernels with what changes scores, weights, or how rows begin; else those without
  friend bool operator==(const Variant&, const Variant&) = default;
};
Variant choose_forward(const Problem& problem);
Variant choose_backward(const Problem& problem);

// Enqueues the step's kernels, or those before the first that cannot be: a cudaError_t. `max` of the running state is in the kernels'
// own units. Tensors are aligned to their elements; what is aligned to 16 bytes travels faster. `num_sms`: each kernel takes no more
// room than so many multiprocessors have; 0: than all. No result depends on it. `only_if` is device memory, or null: nothing happens
// if it is 0 when the kernels run.
int portable_forward(const Problem& problem, const ForwardStep& step, CUstream_st* stream, int num_sms = 0,
                     const std::int32_t* only_if = nullptr);

// delta[b, h, i] = dot(dout, out) of each of `rows` rows, summed as the backward kernels sum where `out` is of the dtype of `dout`.
int portable_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows, float* delta,
                   CUstream_st* stream, int num_sms = 0);
// As portable_forward, for a backward step. Both need a scratch of modifier_bytes (modifiers.h). Results are bitwise repeatable.
int portable_backward(const Problem& problem, const BackwardStep& step, CUstream_st* stream, int num_sms = 0);

}  // namespace ringattn::cuda
