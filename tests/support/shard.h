// One rank's tensors of a problem.
//
// Every element is a hash of (seed, tensor, batch entry, position in the whole sequence, head, dimension), so the same
// problem has the same values for every world size and sharding, and a result can be compared across them. Outputs start as
// a poison pattern, and so do the gaps between the rows of a layout that is not packed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"

namespace ringattn::test {

constexpr std::byte kPoison{0xA5};

inline std::size_t size_of(std::int32_t dtype) { return dtype == RA_DTYPE_FLOAT32 ? 4 : 2; }

inline float load_element(const std::byte* p, std::int32_t dtype) {
  if (dtype == RA_DTYPE_FLOAT32) {
    float x = 0;
    std::memcpy(&x, p, 4);
    return x;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  if (dtype == RA_DTYPE_BFLOAT16) return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const float magnitude = exponent == 31  ? (fraction == 0 ? std::numeric_limits<float>::infinity() : NAN)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Round to nearest even. `x` is finite and inside the range of `dtype`.
inline void store_element(std::byte* p, std::int32_t dtype, float x) {
  if (dtype == RA_DTYPE_FLOAT32) {
    std::memcpy(p, &x, 4);
    return;
  }
  const auto bits = std::bit_cast<std::uint32_t>(x);
  std::uint16_t half = 0;
  if (dtype == RA_DTYPE_BFLOAT16) {
    half = static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  } else if (x != 0) {
    const int exponent = std::max(std::ilogb(x), -14);
    const int units = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), 10 - exponent)));  // 0 .. 2048
    // A carry out of the fraction runs into the exponent, which is right; a denormal has exponent -14 and no implicit bit.
    half = static_cast<std::uint16_t>(units + ((exponent + 14) << 10) + (std::signbit(x) ? 0x8000 : 0));
  } else {
    half = std::signbit(x) ? 0x8000 : 0;
  }
  std::memcpy(p, &half, 2);
}

// A number in [-1, 1) that depends on all arguments.
template <class... Keys>
double hashed_uniform(std::uint64_t seed, Keys... keys) {
  std::uint64_t x = seed;
  const auto mix = [&x](std::uint64_t key) {  // SplitMix64
    x += 0x9E3779B97F4A7C15U + key;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    x ^= x >> 31;
  };
  (mix(static_cast<std::uint64_t>(keys)), ...);
  return static_cast<double>(x >> 11) * 0x1p-52 - 1.0;
}

enum class Layout {
  packed,     // [batch, seq, head, dim], strides given as 0
  padded,     // the same order with gaps after every head, token and batch entry
  head_major  // [batch, head, seq, dim]
};

// Memory of a tensor [batch, seq, heads, dim], aligned to 64 bytes and poisoned.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::int32_t dtype, std::int64_t batch, std::int64_t seq, std::int64_t heads, std::int64_t dim,
         Layout layout = Layout::packed)
      : dtype(dtype), batch(batch), seq(seq), heads(heads), dim(dim), layout(layout) {
    const std::int64_t gap = layout == Layout::padded ? 3 : 0;
    if (layout == Layout::head_major) {
      seq_stride = dim;
      head_stride = seq * dim;
      batch_stride = heads * head_stride;
    } else {
      head_stride = dim + gap;
      seq_stride = heads * head_stride + gap;
      batch_stride = seq * seq_stride + gap;
    }
    size = static_cast<std::size_t>(batch * batch_stride) * size_of(dtype);
    bytes.reset(static_cast<std::byte*>(::operator new (std::max<std::size_t>(size, 1), std::align_val_t{64})));
    poison();
  }

  void poison() { std::fill_n(bytes.get(), size, kPoison); }
  bool untouched() const {
    return std::all_of(bytes.get(), bytes.get() + size, [](std::byte b) { return b == kPoison; });
  }

  std::byte* at(std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t d) const {
    return bytes.get() +
           static_cast<std::size_t>(b * batch_stride + s * seq_stride + h * head_stride + d) * size_of(dtype);
  }
  float get(std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t d) const {
    return load_element(at(b, s, h, d), dtype);
  }
  void set(std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t d, float x) {
    store_element(at(b, s, h, d), dtype, x);
  }

  template <class Visit>
  void for_each_element(Visit visit) const {
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t s = 0; s < seq; ++s)
        for (std::int64_t h = 0; h < heads; ++h)
          for (std::int64_t d = 0; d < dim; ++d) visit(b, s, h, d);
  }

  // The elements alone, packed as [batch, seq, head, dim].
  std::vector<std::byte> packed() const {
    std::vector<std::byte> result;
    result.reserve(static_cast<std::size_t>(batch * seq * heads * dim) * size_of(dtype));
    for_each_element([&](auto b, auto s, auto h, auto d) {
      result.insert(result.end(), at(b, s, h, d), at(b, s, h, d) + size_of(dtype));
    });
    return result;
  }

  // Whether every byte that belongs to no element is still poison.
  bool gaps_untouched() const {
    std::vector<bool> element(size);
    for_each_element([&](auto b, auto s, auto h, auto d) {
      const auto first = static_cast<std::size_t>(at(b, s, h, d) - bytes.get());
      std::fill_n(element.begin() + static_cast<std::ptrdiff_t>(first), size_of(dtype), true);
    });
    for (std::size_t i = 0; i < size; ++i) {
      if (!element[i] && bytes[i] != kPoison) return false;
    }
    return true;
  }

  ra_tensor view() const {
    if (layout == Layout::packed) return {bytes.get(), 0, 0, 0, size};
    return {bytes.get(), batch_stride, seq_stride, head_stride, size};
  }

  std::int32_t dtype = RA_DTYPE_FLOAT32;
  std::int64_t batch = 0, seq = 0, heads = 0, dim = 0;
  Layout layout = Layout::packed;
  std::int64_t batch_stride = 0, seq_stride = 0, head_stride = 0;
  std::size_t size = 0;

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }
  };

 public:
  std::unique_ptr<std::byte[], Free> bytes;
};

inline bool same_bits(const Tensor& a, const Tensor& b) { return a.packed() == b.packed(); }

// A small problem to start from.
inline ra_attention_desc make_desc(std::int64_t seqlen, std::int64_t num_heads = 2, std::int64_t head_dim = 8,
                                   std::int64_t batch = 1) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.batch = batch;
  desc.seqlen_q = seqlen;
  desc.num_heads_q = num_heads;
  desc.head_dim = head_dim;
  return desc;
}

// `desc` with its defaults written out, as documented at each field.
inline ra_attention_desc with_defaults(ra_attention_desc desc) {
  if (desc.seqlen_kv == -1) desc.seqlen_kv = desc.seqlen_q;
  if (desc.num_heads_kv == 0) desc.num_heads_kv = desc.num_heads_q;
  if (desc.head_dim_v == 0) desc.head_dim_v = desc.head_dim;
  if (desc.out_dtype == RA_DTYPE_SAME) desc.out_dtype = desc.dtype;
  if (desc.grad_dtype == RA_DTYPE_SAME) desc.grad_dtype = desc.dtype;
  return desc;
}

class Shard {
 public:
  Shard(const ra_attention_desc& description, std::int32_t world_size, std::int32_t rank,
        Layout layout = Layout::packed, std::uint64_t seed = 1)
      : desc(with_defaults(description)), world_size(world_size), rank(rank) {
    const std::int64_t n_q = length(RA_SIDE_QUERY);
    const std::int64_t n_kv = length(RA_SIDE_KEY_VALUE);
    const ra_attention_desc& p = desc;
    q = Tensor(p.dtype, p.batch, n_q, p.num_heads_q, p.head_dim, layout);
    k = Tensor(p.dtype, p.batch, n_kv, p.num_heads_kv, p.head_dim, layout);
    v = Tensor(p.dtype, p.batch, n_kv, p.num_heads_kv, p.head_dim_v, layout);
    out = Tensor(p.out_dtype, p.batch, n_q, p.num_heads_q, p.head_dim_v, layout);
    dout = Tensor(p.out_dtype, p.batch, n_q, p.num_heads_q, p.head_dim_v, layout);
    lse = Tensor(RA_DTYPE_FLOAT32, p.batch, n_q, p.num_heads_q, 1, Layout::head_major);  // [batch, head, n_q]
    dq = Tensor(p.grad_dtype, p.batch, n_q, p.num_heads_q, p.head_dim, layout);
    dk = Tensor(p.grad_dtype, p.batch, n_kv, p.num_heads_kv, p.head_dim, layout);
    dv = Tensor(p.grad_dtype, p.batch, n_kv, p.num_heads_kv, p.head_dim_v, layout);
    key_bias = Tensor(RA_DTYPE_FLOAT32, p.has_key_bias != 0 ? p.batch : 0, n_kv, 1, 1);
    sinks = Tensor(RA_DTYPE_FLOAT32, 1, 1, p.num_heads_q, p.num_sinks);
    dsinks = Tensor(RA_DTYPE_FLOAT32, 1, 1, p.num_heads_q, p.num_sinks);
    fill(q, seed, 'q', RA_SIDE_QUERY);
    fill(k, seed, 'k', RA_SIDE_KEY_VALUE);
    fill(v, seed, 'v', RA_SIDE_KEY_VALUE);
    fill(dout, seed, 'o', RA_SIDE_QUERY);
    fill(key_bias, seed, 'b', RA_SIDE_KEY_VALUE);
    sinks.for_each_element([&](auto b, auto s, auto h, auto n) {
      sinks.set(b, s, h, n, static_cast<float>(hashed_uniform(seed, 's', h, n)));
    });
  }

  std::int64_t length(std::int32_t side) const {
    Error error;
    const std::int64_t n = ra_get_shard_length(&desc, world_size, rank, side, &error);
    EXPECT_GE(n, 0) << error;
    return std::max<std::int64_t>(n, 0);
  }

  float* lse_data() const { return reinterpret_cast<float*>(lse.bytes.get()); }

  ra_forward_args forward_args() const {
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q = q.view();
    args.k = k.view();
    args.v = v.view();
    args.out = out.view();
    args.lse = lse_data();
    set_modifiers(args);
    return args;
  }

  ra_backward_args backward_args() const {
    ra_backward_args args;
    ra_init_backward_args(&args, sizeof args);
    args.dout = dout.view();
    args.q = q.view();
    args.k = k.view();
    args.v = v.view();
    args.out = out.view();
    args.lse = lse_data();
    args.dq = dq.view();
    args.dk = dk.view();
    args.dv = dv.view();
    set_modifiers(args);
    if (dsinks.size > 0) args.dsinks = floats(dsinks);
    return args;
  }

  ra_status forward(ra_context* context, ra_error* error) const {
    const ra_forward_args args = forward_args();
    return ra_forward(context, &desc, &args, error);
  }
  ra_status backward(ra_context* context, ra_error* error) const {
    const ra_backward_args args = backward_args();
    return ra_backward(context, &desc, &args, error);
  }

  ra_attention_desc desc;
  std::int32_t world_size;
  std::int32_t rank;
  Tensor q, k, v, out, lse, dout, dq, dk, dv;
  Tensor key_bias, sinks, dsinks;  // without elements where the description has none

 private:
  static float* floats(const Tensor& tensor) { return reinterpret_cast<float*>(tensor.bytes.get()); }

  template <class Args>
  void set_modifiers(Args& args) const {
    if (key_bias.size > 0) args.key_bias = floats(key_bias);
    if (sinks.size > 0) args.sinks = floats(sinks);
  }

  void fill(Tensor& tensor, std::uint64_t seed, char name, std::int32_t side) const {
    std::vector<std::int64_t> position(static_cast<std::size_t>(tensor.seq));
    ra_get_shard_positions(&desc, world_size, rank, side, 0, tensor.seq, position.data(), nullptr);
    tensor.for_each_element([&](auto b, auto s, auto h, auto d) {
      const std::int64_t p = position[static_cast<std::size_t>(s)];
      tensor.set(b, s, h, d, static_cast<float>(hashed_uniform(seed, name, b, p, h, d)));
    });
  }
};

}  // namespace ringattn::test
