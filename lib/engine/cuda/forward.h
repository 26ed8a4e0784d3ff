// The forward kernels: their parameters, and which there are. One source file each (portable_forward_*.cu), so that they compile at
// the same time.
#pragma once

#include <cstdint>

#include "engine/cuda/item.h"
#include "engine/cuda/modifiers.h"
#include "engine/cuda/product.cuh"

namespace ringattn::cuda {

enum class Score : std::int32_t { scaled, capped, multiplied };

// What modified kernels take besides.
struct Beginning {
  const float* sinks;  // [heads of the step], where there are any and rows begin: a key of that score without a value
  float cap;           // of scores
};

// Of both launches of a graph and ordinary ones: by value, 4 KB at most.
template <bool modified>
struct ForwardParameters {
  WorkFor<modified> work;
  View q, k, v;
  View running;      // fp32, between steps
  float *max, *sum;  // [batch, heads, query_rows]; max in units of log 2, a number that weights are relative to
  View out;
  float* lse;
  std::int64_t query_rows;
  std::int32_t first_block;  // of all blocks, in this launch
  std::int32_t num_heads_kv, group;
  std::int32_t head_dim, head_dim_v;
  std::int32_t out_type;  // DType
  // A score times log2(e) is  outer x  of a product x of q and k,  outer tanh(inner x),  or  outer (inner x)  where the scale is not
  // above 0, so that the largest x always has the largest score; with modifiers  outer (cap tanh(inner x) + added),  or without tanh.
  Score score;
  float inner, outer;
  bool q_aligned, k_aligned, v_aligned;  // every row to 16 bytes
  bool pairs, out_pairs;                 // every even element of running, of out, to two elements
  bool first, last;                      // ForwardStep
  const std::int32_t* only_if;           // device memory, or null: does nothing if it is 0
  ModifiersFor<modified> modifiers;
  std::conditional_t<modified, Beginning, NoModifiers> beginning;
};
static_assert(sizeof(ForwardParameters<false>) <= 4096 && sizeof(ForwardParameters<true>) <= 4096);

template <bool modified>
struct ForwardKernel {
  const char* name;
  void (*kernel)(ForwardParameters<modified>);
  int rows;  // of queries, that a block takes
  int threads;
  int shared_bytes;
};

// head_dim and head_dim_v up to `dim`.
template <class T, int dim, Weights weights, bool modified>
ForwardKernel<modified> forward_kernel();

}  // namespace ringattn::cuda
