// The backward kernels: their parameters, and which there are. A source file for each type and width (portable_backward_*.cu), so that
// they compile at the same time.
#pragma once

#include <cstdint>

#include "engine/cuda/modifiers.h"
#include "engine/cuda/product.cuh"
#include "plan/problem.h"

namespace ringattn::cuda {

// By value, 4 KB at most.
template <bool modified>
struct BackwardParameters {
  WorkFor<modified> work;  // its tiles are of the side whose gradients are computed
  View q, k, v, dout;
  View dq, dk, dv;           // fp32, added to
  const float *lse, *delta;  // [batch, heads, query_rows]
  std::int64_t query_rows;
  std::int32_t first_block;  // of all blocks, in this launch
  std::int32_t num_heads_kv, group;
  std::int32_t head_dim, head_dim_v;
  std::int32_t dtype, dout_dtype;  // DType: kernels for float32 take any, the others their own
  float scale, softcap;
  bool q_aligned, k_aligned, v_aligned, dout_aligned;  // every row to 16 bytes
  ModifiersFor<modified> modifiers;
};
static_assert(sizeof(BackwardParameters<false>) <= 4096 && sizeof(BackwardParameters<true>) <= 4096);

struct DeltaParameters {
  View dout, out;
  float* delta;  // [batch, num_heads, rows]
  std::int64_t rows;
  std::int32_t first_block;                       // of all blocks, in this launch
  std::int32_t num_tiles, num_heads, head_dim_v;  // num_tiles: of rows
  std::int32_t dtype, out_dtype;                  // of dout and out, as above
  bool dout_aligned, out_aligned;
};

template <bool modified>
struct BackwardKernel {
  const char* name;
  void (*kernel)(BackwardParameters<modified>);
  int rows;  // of the side whose gradients are computed, that a block takes
  int threads;
  int shared_bytes;
  int blocks;  // for such rows of one head
};

struct DeltaKernel {
  void (*kernel)(DeltaParameters);
  int rows, threads, shared_bytes;  // of a block
};

// dq, or dk and dv. head_dim and head_dim_v up to `dim`.
template <class T, int dim, Weights weights, bool modified>
BackwardKernel<modified> backward_kernel(Side side);
template <class T, int dim, Weights weights>
DeltaKernel delta_kernel();

}  // namespace ringattn::cuda
