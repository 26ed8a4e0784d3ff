// Weights of a layer as the README of this folder names and numbers them.
#pragma once

#include <array>
#include <cstdint>

#include "cases.h"

namespace ringattn::conformance {

// Numbers of a layer's tensors: the weights have those between x and dout. What the gradient of a weight holds before the call has the
// weight's number plus number_of_gradients.
constexpr std::uint64_t number_of_x = 0, number_of_dout = 11, number_of_gradients = 16;

struct LayerWeight {
  std::uint64_t number;
  const char *name, *gradient;
  ra_tensor ra_mha_forward_args::*read_forward;
  ra_tensor ra_mha_backward_args::*read_backward;
  ra_tensor ra_mha_backward_args::*written;
  std::int64_t elements;  // 0: the layer has none
};

// In the order of ra_mha_forward_args.
inline std::array<LayerWeight, 10> weights_of(const ra_mha_desc &mha, std::int64_t heads_q, std::int64_t heads_kv,
                                              std::int64_t dim, std::int64_t dim_v) {
  using F = ra_mha_forward_args;
  using B = ra_mha_backward_args;
  const std::int64_t q = heads_q * dim, k = heads_kv * dim, v = heads_kv * dim_v, n = mha.d_model;
  return {{{1, "w_q", "dw_q", &F::w_q, &B::w_q, &B::dw_q, n * q},
           {2, "w_k", "dw_k", &F::w_k, &B::w_k, &B::dw_k, n * k},
           {3, "w_v", "dw_v", &F::w_v, &B::w_v, &B::dw_v, n * v},
           {4, "w_o", "dw_o", &F::w_o, &B::w_o, &B::dw_o, heads_q * dim_v * n},
           {5, "b_q", "db_q", &F::b_q, &B::b_q, &B::db_q, mha.has_qkv_bias * q},
           {6, "b_k", "db_k", &F::b_k, &B::b_k, &B::db_k, mha.has_qkv_bias * k},
           {7, "b_v", "db_v", &F::b_v, &B::b_v, &B::db_v, mha.has_qkv_bias * v},
           {8, "b_o", "db_o", &F::b_o, &B::b_o, &B::db_o, mha.has_out_bias * n},
           {9, "norm_q", "dnorm_q", &F::norm_q, &B::norm_q, &B::dnorm_q, mha.normalize_heads * dim},
           {10, "norm_k", "dnorm_k", &F::norm_k, &B::norm_k, &B::dnorm_k, mha.normalize_heads * dim}}};
}

}  // namespace ringattn::conformance
