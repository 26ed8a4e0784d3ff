// One rank's tensors of a layer of multi-head attention: tokens have values by their positions, as in shard.h, and weights are the same
// on every rank. What is written starts as a poison pattern.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {

inline ra_mha_desc make_mha(std::int64_t d_model) {
  ra_mha_desc mha;
  ra_init_mha_desc(&mha, sizeof mha);
  mha.d_model = d_model;
  return mha;
}

class MhaShard {
 public:
  static constexpr std::size_t num_weights = 10;

  MhaShard(const ra_attention_desc& description, const ra_mha_desc& layer, std::int32_t world_size_, std::int32_t rank_,
           Layout layout = Layout::packed, std::uint64_t seed = 1)
      : desc(with_defaults(description)), mha(layer), world_size(world_size_), rank(rank_) {
    const ra_attention_desc& d = desc;
    const std::int64_t n = ra_get_shard_length(&d, world_size, rank, RA_SIDE_QUERY, nullptr);
    EXPECT_GE(n, 0);
    x = Tensor(d.dtype, d.batch, n, 1, mha.d_model, layout);
    out = Tensor(d.out_dtype, d.batch, n, 1, mha.d_model, layout);
    dout = Tensor(d.out_dtype, d.batch, n, 1, mha.d_model, layout);
    dx = Tensor(d.grad_dtype, d.batch, n, 1, mha.d_model, layout);
    positions.resize(static_cast<std::size_t>(n));
    ra_get_shard_positions(&d, world_size, rank, RA_SIDE_QUERY, 0, n, positions.data(), nullptr);
    fill_tokens(x, seed, 'x');
    fill_tokens(dout, seed, 'o');
    const std::int64_t q = d.num_heads_q * d.head_dim, k = d.num_heads_kv * d.head_dim,
                       v = d.num_heads_kv * d.head_dim_v, attended = d.num_heads_q * d.head_dim_v,
                       d_model = mha.d_model;
    const std::array<std::array<std::int64_t, 2>, num_weights> sizes{{{d_model, q},
                                                                      {d_model, k},
                                                                      {d_model, v},
                                                                      {attended, d_model},
                                                                      {mha.has_qkv_bias, q},
                                                                      {mha.has_qkv_bias, k},
                                                                      {mha.has_qkv_bias, v},
                                                                      {mha.has_out_bias, d_model},
                                                                      {mha.normalize_heads, d.head_dim},
                                                                      {mha.normalize_heads, d.head_dim}}};
    for (std::size_t i = 0; i < num_weights; ++i) {
      const auto [rows, columns] = sizes[i];
      const Layout laid_out = rows > 0 ? layout : Layout::packed;
      weights[i] = Tensor(d.dtype, 1, rows, 1, columns, laid_out);
      gradients[i] = Tensor(RA_DTYPE_FLOAT32, 1, rows, 1, columns, laid_out);
      const double scale = 1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(rows, 1)));
      weights[i].for_each_element([&](auto b, auto row, auto h, auto column) {
        weights[i].set(b, row, h, column, static_cast<float>(scale * hashed_uniform(seed, 'w', i, row, column)));
      });
    }
  }

  // As `context` needs them; false, with a failure, where it says no.
  bool make_room(const ra_context* context) {
    Error error;
    ra_init_mha_requirements(&needed, sizeof needed);
    const ra_status status = ra_get_mha_requirements(context, &desc, &mha, &needed, &error);
    EXPECT_EQ(status, RA_STATUS_SUCCESS) << error;
    make_room(needed);
    return status == RA_STATUS_SUCCESS;
  }
  void make_room(const ra_mha_requirements& requirements) {
    needed = requirements;
    activations = Tensor(RA_DTYPE_FLOAT32, 1, 1, 1, static_cast<std::int64_t>((needed.activations + 3) / 4));
  }

  ra_mha_forward_args forward_args() const {
    ra_mha_forward_args a;
    ra_init_mha_forward_args(&a, sizeof a);
    a.x = x.view();
    set_weights(a);
    a.out = out.view();
    if (needed.activations > 0) a.activations = activations.bytes.get();
    a.activations_size = needed.activations;
    return a;
  }
  ra_mha_backward_args backward_args() const {
    ra_mha_backward_args a;
    ra_init_mha_backward_args(&a, sizeof a);
    a.dout = dout.view();
    a.x = x.view();
    set_weights(a);
    a.dx = dx.view();
    const std::array to{&a.dw_q, &a.dw_k, &a.dw_v, &a.dw_o, &a.db_q, &a.db_k, &a.db_v, &a.db_o, &a.dnorm_q, &a.dnorm_k};
    for (std::size_t i = 0; i < num_weights; ++i)
      if (gradients[i].size > 0) *to[i] = gradients[i].view();
    if (needed.activations > 0) a.activations = activations.bytes.get();
    a.activations_size = needed.activations;
    return a;
  }
  ra_status forward(ra_context* context, ra_error* error) const {
    const ra_mha_forward_args a = forward_args();
    return ra_mha_forward(context, &desc, &mha, &a, error);
  }
  ra_status backward(ra_context* context, ra_error* error, bool reduce = false, bool accumulate = false) const {
    ra_mha_backward_args a = backward_args();
    a.reduce = reduce ? 1 : 0;
    a.accumulate = accumulate ? 1 : 0;
    return ra_mha_backward(context, &desc, &mha, &a, error);
  }

  ra_attention_desc desc;
  ra_mha_desc mha;
  std::int32_t world_size, rank;
  std::vector<std::int64_t> positions;
  Tensor x, dout, out, dx;
  std::array<Tensor, num_weights> weights,
      gradients;  // in the order of ra_mha_forward_args; empty where the layer has none
  ra_mha_requirements needed{};
  Tensor activations;

 private:
  template <class Args>
  void set_weights(Args& a) const {
    const std::array to{&a.w_q, &a.w_k, &a.w_v, &a.w_o, &a.b_q, &a.b_k, &a.b_v, &a.b_o, &a.norm_q, &a.norm_k};
    for (std::size_t i = 0; i < num_weights; ++i)
      if (weights[i].size > 0) *to[i] = weights[i].view();
  }
  void fill_tokens(Tensor& tensor, std::uint64_t seed, char name) const {
    tensor.for_each_element([&](auto b, auto s, auto h, auto d) {
      tensor.set(b, s, h, d,
                 static_cast<float>(hashed_uniform(seed, name, b, positions[static_cast<std::size_t>(s)], d)));
    });
  }
};

}  // namespace ringattn::test
