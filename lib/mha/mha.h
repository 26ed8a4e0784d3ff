// Multi-head attention (MHA) as a layer of a model has it, on one rank: projections of its tokens, attention over those of all ranks, another projection; and
// the gradients of all that.
//
//   forward    k, v = heads of x, chunk by chunk;  q = heads of x, while the first chunk travels;  attend;  out = attended w_o
//   backward   make again what was not kept;  gradients of out's projection, of attention, of the heads, of q, k and v's projections
//
// What lies between is Projected and Attended. The forward pass makes both; the checkpoint says which of them lie in `activations` and
// are there when the backward pass begins. What is not there that makes again, by the same functions, in its workspace: nothing else
// depends on the checkpoint.
#pragma once

#include <array>
#include <cstddef>

#include "core/memory.h"
#include "engine/projector.h"
#include "ring/ring.h"

namespace ringattn {

// Values equal those of ra_rotary and ra_checkpoint; lib/api asserts it.
enum class Rotary : std::int32_t { none = 0, halves = 1, interleaved = 2 };
enum class Checkpoint : std::int32_t { attention = 0, all = 1, input = 2 };

struct Mha {
  Problem attention;  // of dtype alone: all that lies between is stored in it
  std::int64_t d_model = 1;
  DType out_dtype = DType::float32;  // of out and dout
  DType dx_dtype = DType::float32;
  Rotation rotation;
  bool has_qkv_bias = false, has_out_bias = false, normalizes_heads = false;
  float norm_epsilon = 0;
  Checkpoint checkpoint = Checkpoint::attention;

  bool keeps_projected() const { return checkpoint == Checkpoint::all; }
  bool keeps_attended() const { return checkpoint != Checkpoint::input; }

  std::int64_t q_columns() const { return attention.num_heads_q * attention.head_dim; }
  std::int64_t k_columns() const { return attention.num_heads_kv * attention.head_dim; }
  std::int64_t v_columns() const { return attention.num_heads_kv * attention.head_dim_v; }
  std::int64_t attended_columns() const { return attention.num_heads_q * attention.head_dim_v; }
};

// Of a mha, or their gradients, in fp32, of which any may be missing. Biases and norms are one row; no data where there are none.
struct Weights {
  Matrix w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k;
};

// A weight's place, and how large it is; no columns where the layer has none such.
struct WeightSize {
  const char* name;  // as in ra_mha_forward_args
  Matrix Weights::*matrix;
  std::int64_t rows, columns;
};
std::array<WeightSize, 10> weight_sizes(const Mha& mha);

// `n` rows of the rank's shard, batch by batch. Tokens are [batch, n, 1, d_model].
struct MhaForwardCall {
  Tensor x;
  Weights weights;
  Tensor out;
  void* activations = nullptr;  // null: nothing is kept
  void* workspace = nullptr;
};

struct MhaBackwardCall {
  Tensor dout, x;
  Weights weights;
  Tensor dx;  // no data: not wanted
  Weights gradients;
  bool accumulate = false, reduce = false;
  void* activations = nullptr;  // read
  void* workspace = nullptr;
};

// What a layer's passes run on: plans of its attention on this rank, and what multiplies.
struct MhaMachinery {
  Machinery attention;
  Projector& projector;
  int rank, world_size;
  const PassPlan &forward, &backward;
};

struct MhaBytes {
  std::size_t activations, forward_workspace, backward_workspace;
};
MhaBytes mha_bytes(const Mha& mha, const MhaMachinery& on);

// Multiplications and additions of the projections of one pass, on a rank with so many tokens.
double projection_flops(const Mha& mha, Pass pass, std::int64_t tokens);

// Collective over the ranks, whose layers are equal. Throw Error, as Transport does.
Statistics run_mha_forward(const Mha& mha, const MhaMachinery& on, const MhaForwardCall& call);
Statistics run_mha_backward(const Mha& mha, const MhaMachinery& on, const MhaBackwardCall& call);

}  // namespace ringattn
