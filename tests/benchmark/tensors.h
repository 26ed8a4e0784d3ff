// One rank's tensors of a measured problem: float32 or bfloat16, packed, and none that the pass does not need, so that their sum is
// forward_tensors or backward_tensors of ra_memory_requirements. Every page has been written before the first call.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "benchmark/report.h"
#include "ringattn/ringattn.h"

namespace ringattn::benchmark {

enum class Pass { forward, backward };

inline ra_attention_desc make_desc(std::int64_t tokens, std::int64_t num_heads, ra_mask mask) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = tokens;
  desc.num_heads_q = num_heads;
  desc.head_dim = 64;
  desc.mask = mask;
  desc.sharding = RA_SHARDING_ZIGZAG;
  return desc;
}

// Numbers in [-1, 1) without a pattern that matters. One in bfloat16, of 2 bytes, is the upper half of one in float32.
inline void fill_numbers(std::vector<std::byte>& values, std::size_t element) {
  std::uint32_t state = 1;
  for (std::size_t at = 0; at + element <= values.size(); at += element) {
    state = state * 1664525U + 1013904223U;  // Numerical Recipes, "An Even Quicker Generator"
    const float value = static_cast<float>(state >> 8) * 0x1p-23F - 1.0F;
    std::memcpy(values.data() + at, reinterpret_cast<const std::byte*>(&value) + sizeof value - element, element);
  }
}

class Tensors {
 public:
  // `desc` has equal head dimensions. A rank makes its own.
  Tensors(const ra_attention_desc& desc, std::int32_t world_size, std::int32_t rank, Pass pass) {
    const auto count_rows = [&](ra_side side, std::int64_t heads) {
      ra_error error;
      const std::int64_t tokens = ra_get_shard_length(&desc, world_size, rank, side, &error);
      if (tokens < 0) check(static_cast<ra_status>(error.status), error);
      return static_cast<std::size_t>(desc.batch * tokens * heads);
    };
    const std::int64_t heads_kv = desc.num_heads_kv == 0 ? desc.num_heads_q : desc.num_heads_kv;
    const std::size_t rows = count_rows(RA_SIDE_QUERY, desc.num_heads_q), dim = static_cast<std::size_t>(desc.head_dim);
    const std::size_t query_elements = rows * dim, key_elements = count_rows(RA_SIDE_KEY_VALUE, heads_kv) * dim;
    element_ = desc.dtype == RA_DTYPE_FLOAT32 ? 4 : 2;
    fill(q_, query_elements);
    for (Bytes* input : {&k_, &v_}) fill(*input, key_elements);
    fill(out_, query_elements);  // what the forward pass writes over it is of the same size
    lse_.assign(rows, 6.0F);
    if (pass == Pass::forward) return;
    fill(dout_, query_elements);
    dq_.assign(query_elements * element_, std::byte{});
    for (Bytes* gradient : {&dk_, &dv_}) gradient->assign(key_elements * element_, std::byte{});
  }

  using Bytes = std::vector<std::byte>;
  const Bytes& k() const { return k_; }
  const Bytes& v() const { return v_; }

  void forward(ra_context* context, const ra_attention_desc& desc) {
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q.data = q_.data();
    args.k.data = k_.data();
    args.v.data = v_.data();
    args.out.data = out_.data();
    args.lse = lse_.data();
    ra_error error;
    check(ra_forward(context, &desc, &args, &error), error);
  }

  void backward(ra_context* context, const ra_attention_desc& desc) {
    ra_backward_args args;
    ra_init_backward_args(&args, sizeof args);
    args.dout.data = dout_.data();
    args.q.data = q_.data();
    args.k.data = k_.data();
    args.v.data = v_.data();
    args.out.data = out_.data();
    args.lse = lse_.data();
    args.dq.data = dq_.data();
    args.dk.data = dk_.data();
    args.dv.data = dv_.data();
    ra_error error;
    check(ra_backward(context, &desc, &args, &error), error);
  }

 private:
  void fill(Bytes& values, std::size_t count) const {
    values.resize(count * element_);
    fill_numbers(values, element_);
  }

  std::size_t element_ = 0;  // bytes
  Bytes q_, k_, v_, out_, dout_, dq_, dk_, dv_;
  std::vector<float> lse_;
};

// test::Ranks reports a rank's failure to GoogleTest; here it ends the benchmark.
inline void require_no_failure() {
  if (testing::UnitTest::GetInstance()->Failed()) throw std::runtime_error("a rank failed, see above");
}

}  // namespace ringattn::benchmark
