// A rank's passes on kernels, emulated or on a GPU (support/device.h): tensors as a GPU has them, the plan's steps one after the other,
// chunks as they would arrive.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/cuda/modifiers.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/rows.h"
#include "engine/reference/oracle.h"
#include "plan/plan.h"
#include "plan/shard.h"
#include "support/device.h"
#include "support/random.h"

namespace ringattn::cuda {

using reference::draw;
using reference::Random;

enum class Layout { packed, padded, aligned, head_major };  // padded: by odd gaps, so that hardly a row is aligned

// Memory of tensors; gaps between rows are NaN.
class Memory {
 public:
  std::byte* allocate(std::int64_t bytes) {
    blocks_.emplace_back(static_cast<std::size_t>(bytes));
    return blocks_.back().data();
  }
  float* values(std::int64_t count) { return reinterpret_cast<float*>(allocate(count * 4)); }
  Tensor tensor(DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t dim,
                Layout layout) {
    Tensor t = packed_tensor(nullptr, dtype, rows, heads, dim);
    if (layout == Layout::head_major) {
      t.seq_stride = dim;
      t.head_stride = rows * dim;
    } else if (layout != Layout::packed) {
      const std::int64_t of = layout == Layout::aligned ? 16 / size_of(dtype) : 1,
                         gap = layout == Layout::aligned ? 0 : 3;
      t.head_stride = (dim + of - 1) / of * of + gap;
      t.seq_stride = heads * t.head_stride + 2 * gap;
      t.batch_stride = rows * t.seq_stride + gap;
    }
    t.data = allocate(batch * t.batch_stride * size_of(dtype));
    return t;
  }

 private:
  std::vector<test::device::Memory> blocks_;
};

// What a tensor of one side has in its rows, which are those of `pieces`, to or from a whole one, packed [batch, seqlen, heads, dim].
template <class F>
void for_each_element(const Problem& p, Side side, const std::vector<Piece>& pieces, const Tensor& tensor,
                      std::int64_t heads, std::int64_t dim, F&& f) {
  for (std::int64_t b = 0; b < p.batch; ++b)
    for (std::int64_t row = 0; row < row_count(pieces); ++row) {
      const std::int64_t position = row_position(p, side, pieces, row);
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < dim; ++d)
          f(static_cast<std::size_t>(((b * p.seqlen(side) + position) * heads + h) * dim + d),
            tensor.bytes_at(b, row, h) + d * size_of(tensor.dtype));
    }
}
inline void fill(const Problem& p, Side side, const std::vector<Piece>& pieces, const std::vector<double>& whole,
                 const Tensor& tensor, std::int64_t heads, std::int64_t dim) {
  for_each_element(p, side, pieces, tensor, heads, dim,
                   [&](std::size_t n, std::byte* at) { reference::encode(whole[n], tensor.dtype, at); });
}

// The keys of a chunk, in the rows that they have when it is packed.
inline std::vector<Piece> packed_keys(const Plan& plan, int owner, std::int64_t chunk) {
  const std::vector<SpacedPiece> keys = plan.chunk_keys(owner, chunk);
  std::vector<Piece> pieces(keys.begin(), keys.end());
  std::int64_t row = 0;
  for (Piece& piece : pieces) {
    piece.row = row;
    row += piece.length;
  }
  return pieces;
}

// What steps of a problem with modifiers take besides, as Engine's scratch and the ring's combined sinks.
class StepModifiers {
 public:
  StepModifiers(const reference::Inputs& inputs, Memory& memory) : inputs_(inputs), memory_(memory) {
    const Problem& p = inputs.problem;
    scratch_ = memory.allocate(static_cast<std::int64_t>(modifier_bytes(p)) + 4);
    if (p.num_sinks == 0) return;
    float* const sinks = memory.values(p.num_heads_q * p.num_sinks);
    std::copy(inputs.sinks.begin(), inputs.sinks.end(), sinks);
    sinks_ = memory.values(p.num_heads_q);
    EXPECT_EQ(combine_sinks(p, sinks, sinks_, nullptr), 0);
    test::device::finish();
  }
  void* scratch() const { return scratch_; }
  const float* sinks() const { return sinks_; }
  // Of a chunk.
  const float* key_bias(const std::vector<Piece>& keys) const {
    const Problem& p = inputs_.problem;
    if (!p.has_key_bias) return nullptr;
    const Tensor bias = memory_.tensor(DType::float32, p.batch, row_count(keys), 1, 1, Layout::packed);
    fill(p, Side::key_value, keys, inputs_.key_bias, bias, 1, 1);
    return bias.at<float>(0, 0, 0);
  }

 private:
  const reference::Inputs& inputs_;
  Memory& memory_;
  void* scratch_ = nullptr;
  float* sinks_ = nullptr;
};

struct ForwardResult {
  std::vector<double> out, lse;
  std::map<std::string, int> launches;
};

// The forward pass of all ranks, one after the other; steps as in ring/forward.cpp.
inline ForwardResult run_forward(const reference::Inputs& inputs, int world_size, Layout layout, Random& random,
                                 bool limited = true) {
  const Problem& p = inputs.problem;
  ForwardResult result;
  result.out.resize(static_cast<std::size_t>(p.batch * p.seqlen_q * p.num_heads_q * p.head_dim_v), NAN);
  result.lse.resize(static_cast<std::size_t>(p.batch * p.num_heads_q * p.seqlen_q), NAN);
  for (int rank = 0; rank < world_size; ++rank) {
    const Plan plan(p, world_size, rank, Pass::forward);
    const std::int64_t rows = plan.query_rows(), states = p.batch * p.num_heads_q * rows;
    const std::vector<Piece> queries = shard_pieces(p, Side::query, world_size, rank);
    Memory memory;
    const test::device::Launches launches(random, limited);
    ForwardStep step;
    step.q = memory.tensor(p.dtype, p.batch, rows, p.num_heads_q, p.head_dim, layout);
    fill(p, Side::query, queries, inputs.q, step.q, p.num_heads_q, p.head_dim);
    step.out = memory.tensor(p.out_dtype, p.batch, rows, p.num_heads_q, p.head_dim_v, layout);
    step.query_rows = rows;
    step.running = p.out_dtype == DType::float32
                       ? step.out
                       : memory.tensor(DType::float32, p.batch, rows, p.num_heads_q, p.head_dim_v, Layout::packed);
    step.max = memory.values(states);
    step.sum = memory.values(states);
    step.lse = draw(random, 0, 1) == 0 ? step.max : memory.values(states);
    const StepModifiers modifiers(inputs, memory);
    step.scratch = modifiers.scratch();
    step.sinks = modifiers.sinks();
    const std::vector<Moment>& moments = plan.moments();
    const Moment* const first = moments.data();
    const Moment* const last =
        &*std::find_if(moments.rbegin(), moments.rend(), [&](const Moment& m) { return m.computes || &m == first; });
    for (const Moment& m : moments) {
      step.first = &m == first;
      step.last = &m == last;
      if (!m.computes && !step.first) continue;
      const std::vector<Piece> keys = packed_keys(plan, m.holds, m.chunk);
      const Layout of_keys = plan.packs() ? Layout::packed : layout;
      step.k = memory.tensor(p.dtype, p.batch, row_count(keys), p.num_heads_kv, p.head_dim, of_keys);
      step.v = memory.tensor(p.dtype, p.batch, row_count(keys), p.num_heads_kv, p.head_dim_v, of_keys);
      fill(p, Side::key_value, keys, inputs.k, step.k, p.num_heads_kv, p.head_dim);
      fill(p, Side::key_value, keys, inputs.v, step.v, p.num_heads_kv, p.head_dim_v);
      step.key_bias = modifiers.key_bias(keys);
      step.key_rows = row_count(keys);
      const StepItems work = plan.items(m, step.first || step.last);
      step.items = work.items;
      EXPECT_EQ(portable_forward(p, step, nullptr, launches.num_sms()), 0);
    }
    test::device::finish();
    for_each_element(p, Side::query, queries, step.out, p.num_heads_q, p.head_dim_v,
                     [&](std::size_t n, const std::byte* at) { result.out[n] = reference::decode(at, p.out_dtype); });
    for (std::int64_t lane = 0; lane < p.batch * p.num_heads_q; ++lane)
      for (std::int64_t row = 0; row < rows; ++row)
        result.lse[static_cast<std::size_t>(lane * p.seqlen_q + row_position(p, Side::query, queries, row))] =
            static_cast<double>(step.lse[lane * rows + row]);
    for (const auto& [name, count] : launches.counts()) result.launches[name] += count;
  }
  return result;
}

using RunBackward = std::function<void(const Problem& problem, const BackwardStep& step, int num_sms)>;

struct BackwardResult {
  std::vector<double> dq, dk, dv;
  std::map<std::string, int> launches;
};

// The backward pass of all ranks, one after the other, each of which adds to the gradients of the chunks that it sees. `forward`: the
// global result, `run`: what a step is run by.
inline BackwardResult run_backward(const reference::Inputs& inputs, const reference::Result<double>& forward,
                                   int world_size, Layout layout, Random& random, const RunBackward& run) {
  const Problem& p = inputs.problem;
  BackwardResult result{std::vector<double>(inputs.q.size()),
                        std::vector<double>(inputs.k.size()),
                        std::vector<double>(inputs.v.size()),
                        {}};
  Memory memory;
  const test::device::Launches launches(random, true);
  const auto gradients = [&](Side side, const std::vector<Piece>& pieces, std::int64_t heads, std::int64_t dim,
                             Layout of) {
    const Tensor tensor = memory.tensor(DType::float32, p.batch, row_count(pieces), heads, dim, of);
    for_each_element(p, side, pieces, tensor, heads, dim,
                     [](std::size_t, std::byte* at) { std::memset(at, 0, sizeof(float)); });
    return tensor;
  };
  const auto round = [&](Side side, const std::vector<Piece>& pieces, const Tensor& tensor, std::int64_t heads,
                         std::int64_t dim, std::vector<double>& whole) {
    for_each_element(p, side, pieces, tensor, heads, dim, [&](std::size_t n, const std::byte* at) {
      whole[n] = reference::rounded(reference::decode(at, DType::float32), p.grad_dtype);
    });
  };
  struct Chunk {
    std::vector<Piece> keys;
    Tensor dk, dv;
  };
  std::map<std::pair<int, std::int64_t>, Chunk> chunks;

  for (int rank = 0; rank < world_size; ++rank) {
    const Plan plan(p, world_size, rank, Pass::backward);
    const std::int64_t rows = plan.query_rows(), states = p.batch * p.num_heads_q * rows;
    const std::vector<Piece> queries = shard_pieces(p, Side::query, world_size, rank);
    const Layout of_keys = plan.packs() ? Layout::packed : layout;
    const auto filled = [&](Side side, const std::vector<Piece>& pieces, const std::vector<double>& whole, DType dtype,
                            std::int64_t heads, std::int64_t dim, Layout of) {
      const Tensor tensor = memory.tensor(dtype, p.batch, row_count(pieces), heads, dim, of);
      fill(p, side, pieces, whole, tensor, heads, dim);
      return tensor;
    };
    BackwardStep step;
    step.q = filled(Side::query, queries, inputs.q, p.dtype, p.num_heads_q, p.head_dim, layout);
    step.dout = filled(Side::query, queries, inputs.dout, p.out_dtype, p.num_heads_q, p.head_dim_v, layout);
    const Tensor out = filled(Side::query, queries, forward.out, p.out_dtype, p.num_heads_q, p.head_dim_v, layout);
    step.dq = gradients(Side::query, queries, p.num_heads_q, p.head_dim, layout);
    step.query_rows = rows;
    float *const lse = memory.values(states), *const delta = memory.values(states);
    for (std::int64_t lane = 0; lane < p.batch * p.num_heads_q; ++lane)
      for (std::int64_t row = 0; row < rows; ++row)
        lse[lane * rows + row] = static_cast<float>(
            forward.lse[static_cast<std::size_t>(lane * p.seqlen_q + row_position(p, Side::query, queries, row))]);
    EXPECT_EQ(portable_delta(p, step.dout, out, rows, delta, nullptr, launches.num_sms()), 0);
    test::device::finish();
    step.lse = lse;
    step.delta = delta;
    const StepModifiers modifiers(inputs, memory);
    step.scratch = modifiers.scratch();
    for (const Moment& m : plan.moments()) {
      if (!m.computes) continue;
      Chunk& chunk = chunks[{m.holds, m.chunk}];
      if (chunk.dk.data == nullptr) {
        chunk.keys = packed_keys(plan, m.holds, m.chunk);
        chunk.dk = gradients(Side::key_value, chunk.keys, p.num_heads_kv, p.head_dim, of_keys);
        chunk.dv = gradients(Side::key_value, chunk.keys, p.num_heads_kv, p.head_dim_v, of_keys);
      }
      step.k = filled(Side::key_value, chunk.keys, inputs.k, p.dtype, p.num_heads_kv, p.head_dim, of_keys);
      step.v = filled(Side::key_value, chunk.keys, inputs.v, p.dtype, p.num_heads_kv, p.head_dim_v, of_keys);
      step.dk = chunk.dk;
      step.dv = chunk.dv;
      step.key_rows = row_count(chunk.keys);
      step.key_bias = modifiers.key_bias(chunk.keys);
      const StepItems work = plan.items(m, false);
      step.items = work.items;
      run(p, step, launches.num_sms());
    }
    test::device::finish();
    round(Side::query, queries, step.dq, p.num_heads_q, p.head_dim, result.dq);
  }
  for (const auto& [of, chunk] : chunks) {
    round(Side::key_value, chunk.keys, chunk.dk, p.num_heads_kv, p.head_dim, result.dk);
    round(Side::key_value, chunk.keys, chunk.dv, p.num_heads_kv, p.head_dim_v, result.dv);
  }
  result.launches = launches.counts();
  return result;
}

// The worst error, as a share of the tolerance.
inline double compare(const char* name, const std::vector<double>& ours, const reference::Expected& expected) {
  double worst = 0;
  for (std::size_t n = 0; n < ours.size(); ++n) {
    if (ours[n] == expected.exact[n]) continue;
    const double error = std::abs(ours[n] - expected.exact[n]) / expected.tolerance;
    if (!(error <= 1)) {
      ADD_FAILURE() << name << "[" << n << "] is " << ours[n] << ", should be " << expected.exact[n] << " within "
                    << expected.tolerance;
      return error;
    }
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace ringattn::cuda
