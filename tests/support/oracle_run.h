// Runs a problem of the oracle through the C API on P ranks and puts the shards together again.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/reference/oracle.h"
#include "plan/shard.h"
#include "support/ranks.h"

namespace ringattn::test {

// Keeps the arrays that a description points to.
struct Description {
  explicit Description(const Problem& p) {
    ra_init_attention_desc(&desc, sizeof desc);
    desc.batch = p.batch;
    desc.seqlen_q = p.seqlen_q;
    desc.seqlen_kv = p.seqlen_kv;
    desc.num_heads_q = p.num_heads_q;
    desc.num_heads_kv = p.num_heads_kv;
    desc.head_dim = p.head_dim;
    desc.head_dim_v = p.head_dim_v;
    desc.dtype = static_cast<std::int32_t>(p.dtype);
    desc.out_dtype = static_cast<std::int32_t>(p.out_dtype);
    desc.grad_dtype = static_cast<std::int32_t>(p.grad_dtype);
    desc.sharding = static_cast<std::int32_t>(p.sharding);
    desc.stripe = p.stripe;
    desc.mask = p.causal ? RA_MASK_CAUSAL : RA_MASK_FULL;
    desc.mask_alignment = p.bottom_right ? RA_MASK_ALIGNMENT_BOTTOM_RIGHT : RA_MASK_ALIGNMENT_TOP_LEFT;
    desc.window_left = p.window_left;
    desc.window_right = p.window_right;
    desc.softmax_scale = p.softmax_scale;
    desc.softcap = p.softcap;
    desc.num_chunks = p.num_chunks;
    desc.schedule = static_cast<std::int32_t>(p.schedule);
    desc.gather_bytes = p.gather_bytes;
    if (p.documents.size() > 1) {
      for (const Document& d : p.documents) {
        offsets_q.push_back(d.q_begin);
        offsets_kv.push_back(d.kv_begin);
      }
      offsets_q.push_back(p.seqlen_q);
      offsets_kv.push_back(p.seqlen_kv);
      desc.num_documents = static_cast<std::int64_t>(p.documents.size());
      desc.document_offsets_q = offsets_q.data();
      desc.document_offsets_kv = offsets_kv.data();
    }
    kv_lengths = p.kv_lengths;
    if (!kv_lengths.empty()) desc.kv_lengths = kv_lengths.data();
    slopes = p.alibi_slopes;
    if (!slopes.empty()) desc.alibi_slopes = slopes.data();
    desc.num_sinks = p.num_sinks;
    desc.has_key_bias = p.has_key_bias ? 1 : 0;
    desc.dropout_probability = p.dropout.probability;
    desc.dropout_seed = static_cast<std::int64_t>(p.dropout.seed);
    desc.dropout_offset = static_cast<std::int64_t>(p.dropout.offset);
    for (const MaskSlice& s : p.slices)
      slices.insert(slices.end(), {s.q_begin, s.q_end, s.kv_begin, s.kv_end, static_cast<std::int64_t>(s.kind)});
    if (!slices.empty()) desc.mask_slices = slices.data();
    desc.num_mask_slices = static_cast<std::int64_t>(p.slices.size());
    for (const Branch& branch : p.branches) {
      segment_lengths.push_back(branch.segment_length);
      dilations.push_back(branch.dilation);
    }
    if (!p.branches.empty()) {
      desc.num_branches = static_cast<std::int32_t>(p.branches.size());
      desc.segment_lengths = segment_lengths.data();
      desc.dilations = dilations.data();
    }
    desc.dilation_phase = static_cast<std::int32_t>(p.dilation_phase);
    desc.dilation_padding = static_cast<std::int32_t>(p.dilation_padding);
    desc.dilation_gradient = static_cast<std::int32_t>(p.dilation_gradient);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  ra_attention_desc desc;
  std::vector<std::int64_t> offsets_q, offsets_kv, kv_lengths, slices, segment_lengths, dilations;
  std::vector<float> slopes;
};

// Whole tensors as they came out of the ranks, in the oracle's layouts.
struct Results {
  std::vector<double> out, lse, dq, dk, dv;
  std::vector<std::vector<double>> dsinks = {};  // of each rank
};

namespace detail {

// A shard of `whole` ([batch, seqlen, heads, dim]) in its own dtype.
struct ShardBuffer {
  ShardBuffer(const Problem& p, Side side, std::int64_t heads, std::int64_t dim, DType dtype, int world_size, int rank)
      : problem(p),
        side(side),
        pieces(shard_pieces(p, side, world_size, rank)),
        row(heads * dim),
        dtype(dtype),
        bytes(static_cast<std::size_t>(p.batch * row_count(pieces) * row * size_of(dtype)), std::byte{0xA5}) {}

  template <class F>
  void for_each(F&& f) {
    std::byte* element = bytes.data();
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t i = 0; i < row_count(pieces); ++i) {
        const std::int64_t token = row_position(problem, side, pieces, i);
        for (std::int64_t n = 0; n < row; ++n, element += size_of(dtype))
          f(static_cast<std::size_t>((b * problem.seqlen(side) + token) * row + n), element);
      }
  }
  void split(const std::vector<double>& whole) {
    for_each([&](std::size_t at, std::byte* element) { reference::encode(whole[at], dtype, element); });
  }
  void join(std::vector<double>& whole) {
    for_each([&](std::size_t at, std::byte* element) { whole[at] = reference::decode(element, dtype); });
  }
  ra_tensor tensor() { return {bytes.data(), 0, 0, 0, bytes.size()}; }

  const Problem& problem;
  Side side;
  std::vector<Piece> pieces;
  std::int64_t row;
  DType dtype;
  std::vector<std::byte> bytes;
};

// One rank's shard of every tensor of a problem; those of the results hold a pattern until they are written.
struct Shards {
  Shards(const reference::Inputs& inputs, int world_size, int rank)
      : problem(inputs.problem), world_size(world_size), rank(rank) {
    q.split(inputs.q);
    k.split(inputs.k);
    v.split(inputs.v);
    dout.split(inputs.dout);
    if (problem.has_key_bias) key_bias.split(inputs.key_bias);
    sinks.assign(inputs.sinks.begin(), inputs.sinks.end());
    dsinks.resize(sinks.size(), NAN);
  }
  ShardBuffer shard(Side side, std::int64_t heads, std::int64_t dim, DType dtype) const {
    return {problem, side, heads, dim, dtype, world_size, rank};
  }

  const Problem& problem;
  int world_size, rank;
  ShardBuffer q = shard(Side::query, problem.num_heads_q, problem.head_dim, problem.dtype),
              k = shard(Side::key_value, problem.num_heads_kv, problem.head_dim, problem.dtype),
              v = shard(Side::key_value, problem.num_heads_kv, problem.head_dim_v, problem.dtype),
              out = shard(Side::query, problem.num_heads_q, problem.head_dim_v, problem.out_dtype),
              dout = shard(Side::query, problem.num_heads_q, problem.head_dim_v, problem.out_dtype),
              dq = shard(Side::query, problem.num_heads_q, problem.head_dim, problem.grad_dtype),
              dk = shard(Side::key_value, problem.num_heads_kv, problem.head_dim, problem.grad_dtype),
              dv = shard(Side::key_value, problem.num_heads_kv, problem.head_dim_v, problem.grad_dtype),
              key_bias = shard(Side::key_value, problem.has_key_bias ? 1 : 0, 1, DType::float32);
  std::vector<float> sinks, dsinks;  // whole on every rank
};

// Arrays that both passes read.
template <class Args>
void set_modifiers(Args& args, const Shards& shards) {
  if (shards.problem.has_key_bias) args.key_bias = reinterpret_cast<const float*>(shards.key_bias.bytes.data());
  args.key_bias_size = shards.key_bias.bytes.size();
  if (shards.problem.num_sinks > 0) args.sinks = shards.sinks.data();
  args.sinks_size = shards.sinks.size() * sizeof(float);
}

}  // namespace detail

// Collective: every rank of a group calls it; each writes its part of `results`, whose vectors have their full size.
inline void run_problem(ra_context* context, int world_size, int rank, const reference::Oracle& oracle,
                        Results& results) {
  const Problem& p = oracle.problem;
  const Description description(p);
  detail::Shards shards(oracle, world_size, rank);
  const std::int64_t rows = row_count(shards.q.pieces);
  std::vector<float> lse(static_cast<std::size_t>(p.batch * p.num_heads_q * rows));

  ra_forward_args forward;
  ra_init_forward_args(&forward, sizeof forward);
  forward.q = shards.q.tensor();
  forward.k = shards.k.tensor();
  forward.v = shards.v.tensor();
  forward.out = shards.out.tensor();
  forward.lse = lse.data();
  detail::set_modifiers(forward, shards);
  Error error;
  ASSERT_EQ(ra_forward(context, &description.desc, &forward, &error), RA_STATUS_SUCCESS) << error;

  ra_backward_args backward;
  ra_init_backward_args(&backward, sizeof backward);
  backward.dout = shards.dout.tensor();
  backward.q = shards.q.tensor();
  backward.k = shards.k.tensor();
  backward.v = shards.v.tensor();
  backward.out = shards.out.tensor();
  backward.lse = lse.data();
  backward.dq = shards.dq.tensor();
  backward.dk = shards.dk.tensor();
  backward.dv = shards.dv.tensor();
  detail::set_modifiers(backward, shards);
  if (p.num_sinks > 0) backward.dsinks = shards.dsinks.data();
  backward.dsinks_size = shards.dsinks.size() * sizeof(float);
  ASSERT_EQ(ra_backward(context, &description.desc, &backward, &error), RA_STATUS_SUCCESS) << error;

  shards.out.join(results.out);
  shards.dq.join(results.dq);
  shards.dk.join(results.dk);
  shards.dv.join(results.dv);
  results.dsinks[static_cast<std::size_t>(rank)].assign(shards.dsinks.begin(), shards.dsinks.end());
  std::size_t n = 0;
  for (std::int64_t head = 0; head < p.batch * p.num_heads_q; ++head)
    for (std::int64_t i = 0; i < rows; ++i, ++n)
      results.lse[static_cast<std::size_t>(head * p.seqlen_q + row_position(p, Side::query, shards.q.pieces, i))] =
          static_cast<double>(lse[n]);
}

inline Results run_on(const Ranks& ranks, const reference::Oracle& oracle) {
  Results results;
  results.out.resize(oracle.out.exact.size());
  results.lse.resize(oracle.lse.exact.size());
  results.dq.resize(oracle.dq.exact.size());
  results.dk.resize(oracle.dk.exact.size());
  results.dv.resize(oracle.dv.exact.size());
  results.dsinks.resize(static_cast<std::size_t>(ranks.world_size()));
  ranks.run(
      [&](std::int32_t rank, ra_context* context) { run_problem(context, ranks.world_size(), rank, oracle, results); });
  return results;
}

// The tolerance rule, for one tensor.
inline void expect_within(const char* name, const std::vector<double>& ours, const reference::Expected& expected) {
  double worst = 0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    double error = ours[i] == expected.exact[i] ? 0 : std::abs(ours[i] - expected.exact[i]);
    if (std::isnan(error)) error = INFINITY;
    if (error > worst) {
      worst = error;
      where = i;
    }
  }
  EXPECT_LE(worst, expected.tolerance) << name << "[" << where << "] is " << (ours.empty() ? 0 : ours[where])
                                       << ", exactly " << (ours.empty() ? 0 : expected.exact[where]);
}

inline void expect_within(const Results& ours, const reference::Oracle& oracle) {
  SCOPED_TRACE(reference::describe(oracle.problem));
  expect_within("out", ours.out, oracle.out);
  expect_within("lse", ours.lse, oracle.lse);
  expect_within("dq", ours.dq, oracle.dq);
  expect_within("dk", ours.dk, oracle.dk);
  expect_within("dv", ours.dv, oracle.dv);
  std::vector<double> dsinks(oracle.dsinks.exact.size());  // each rank has that of its own queries
  for (const std::vector<double>& share : ours.dsinks)
    for (std::size_t i = 0; i < dsinks.size(); ++i) dsinks[i] += share[i];
  expect_within("dsinks", dsinks, oracle.dsinks);
}

}  // namespace ringattn::test
