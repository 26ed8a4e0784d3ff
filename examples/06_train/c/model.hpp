// A small language model over bytes, on one rank's tokens: the sum of losses and the gradients of all weights.
//
//   x = embedding[byte]
//   each layer:  x += mha(norm(x));  x += (silu(h w_gate) * (h w_up)) w_down, with h = norm(x)
//   logits = norm(x) embedding^T
//
// norm is RMSNorm with a weight for each element. All but mha concerns each token by itself, so a rank computes it for its own tokens as
// if there were no others; mha is ra_mha_forward and ra_mha_backward.
#pragma once

#include <oneapi/dnnl/dnnl.h>
#include <ringattn/ringattn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "group.hpp"

constexpr int64_t kBytes = 256;

struct Shape {
  int64_t context = 16384, layers = 4, d_model = 128, heads = 2, d_ff = 384, window = 1024;

  int64_t head_dim() const { return d_model / heads; }
};

/** Where each weight is among all of them, which lie one behind the other: so are their gradients, and what Adam keeps. */
struct Weights {
  struct Layer {
    int64_t norm_1, w_q, w_k, w_v, w_o, norm_2, w_gate, w_up, w_down;
  };

  explicit Weights(const Shape& s) {
    const int64_t d = s.d_model;
    embedding = take(kBytes * d);
    for (int64_t n = 0; n < s.layers; ++n) {
      Layer layer{};
      layer.norm_1 = take(d), layer.norm_2 = take(d);
      for (int64_t* w : {&layer.w_q, &layer.w_k, &layer.w_v, &layer.w_o}) *w = take(d * d);
      for (int64_t* w : {&layer.w_gate, &layer.w_up, &layer.w_down}) *w = take(d * s.d_ff);
      layers.push_back(layer);
    }
    norm = take(d);
  }

  int64_t embedding, norm, count = 0;
  std::vector<Layer> layers;

 private:
  int64_t take(int64_t size) { return std::exchange(count, count + size); }
};

/** The same on every rank, as it is drawn from the seed alone. */
inline std::vector<float> make_weights(const Shape& s, uint64_t seed) {
  const Weights w(s);
  std::vector<float> values(static_cast<size_t>(w.count), 1.0F);  // of norms
  std::mt19937_64 random(seed);
  const auto draw = [&](int64_t begin, int64_t size, double deviation) {
    for (float& value : std::span(values).subspan(static_cast<size_t>(begin), static_cast<size_t>(size))) {
      double sum =
          -6;  // of twelve uniform numbers: nearly a normal distribution, and the same with every standard library
      for (int n = 0; n < 12; ++n) sum += static_cast<double>(random() >> 11) * 0x1p-53;
      value = static_cast<float>(deviation * sum);
    }
  };
  const double in = 1 / std::sqrt(static_cast<double>(s.d_model)),
               out = in / std::sqrt(2.0 * static_cast<double>(s.layers));
  draw(w.embedding, kBytes * s.d_model, in);
  for (const Weights::Layer& layer : w.layers) {
    for (const int64_t weight : {layer.w_q, layer.w_k, layer.w_v}) draw(weight, s.d_model * s.d_model, in);
    draw(layer.w_o, s.d_model * s.d_model, out);
    for (const int64_t weight : {layer.w_gate, layer.w_up}) draw(weight, s.d_model * s.d_ff, in);
    draw(layer.w_down, s.d_model * s.d_ff,
         out * std::sqrt(static_cast<double>(s.d_model) / static_cast<double>(s.d_ff)));
  }
  return values;
}

/** A matrix as oneDNN's dnnl_sgemm takes it: row by row, or transposed. */
struct Operand {
  const float* data;
  bool is_transposed = false;
};

/** to [m, n] = a [m, k] b [k, n], or to += that. */
inline void multiply(int64_t m, int64_t n, int64_t k, Operand a, Operand b, float* to, bool adds = false) {
  const dnnl_status_t status =
      dnnl_sgemm(a.is_transposed ? 'T' : 'N', b.is_transposed ? 'T' : 'N', m, n, k, 1, a.data, a.is_transposed ? m : k,
                 b.data, b.is_transposed ? k : n, adds ? 1 : 0, to, n);
  if (status != dnnl_success) throw std::runtime_error("dnnl_sgemm has failed");
}

using Floats = std::vector<float>;

class Model {
 public:
  Model(const Shape& shape, int32_t world_size, int32_t rank, ra_context* context)
      : s_(shape), w_(shape), context_(context) {
    ra_init_attention_desc(&desc_, sizeof desc_);
    desc_.seqlen_q = s_.context;
    desc_.num_heads_q = s_.heads;
    desc_.head_dim = s_.head_dim();
    desc_.mask = RA_MASK_CAUSAL;
    desc_.sharding = RA_SHARDING_ZIGZAG;
    positions_ = get_positions(desc_, world_size, rank, RA_SIDE_QUERY);
    n_ = static_cast<int64_t>(positions_.size());
    ra_init_mha_desc(&mha_, sizeof mha_);
    mha_.d_model = s_.d_model;
    mha_.rotary = RA_ROTARY_HALVES;
    ra_error error;
    ra_mha_requirements needs;
    ra_init_mha_requirements(&needs, sizeof needs);
    check(ra_get_mha_requirements(context_, &desc_, &mha_, &needs, &error), error);
    for (int64_t l = 0; l < s_.layers; ++l) layers_.push_back(Kept(needs.activations));
  }

  int64_t num_weights() const { return w_.count; }
  int64_t num_tokens() const { return n_; }

  /** The sum of -log(probability of the byte that follows), in nats, over this rank's tokens of text[0 .. context]. */
  double forward(const Floats& values, std::string_view text) {
    const size_t size = static_cast<size_t>(n_ * s_.d_model);
    x_.resize(size);
    for (int64_t i = 0; i < n_; ++i)
      std::copy_n(&values[at(w_.embedding + byte(text, i) * s_.d_model)], s_.d_model, &x_[at(i * s_.d_model)]);
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Weights::Layer& w = w_.layers[l];
      Kept& kept = layers_[l];
      kept.x_1 = x_;
      normalize(kept.x_1, &values[at(w.norm_1)], kept.h_1);
      attend(values, w, kept);
      for (size_t i = 0; i < size; ++i) x_[i] += scratch_[i];
      kept.x_2 = x_;
      normalize(kept.x_2, &values[at(w.norm_2)], kept.h_2);
      const auto wide = static_cast<size_t>(n_ * s_.d_ff);
      kept.gate.resize(wide), kept.up.resize(wide), middle_.resize(wide);
      multiply(n_, s_.d_ff, s_.d_model, {kept.h_2.data()}, {&values[at(w.w_gate)]}, kept.gate.data());
      multiply(n_, s_.d_ff, s_.d_model, {kept.h_2.data()}, {&values[at(w.w_up)]}, kept.up.data());
      for (size_t i = 0; i < wide; ++i) middle_[i] = silu(kept.gate[i]) * kept.up[i];
      multiply(n_, s_.d_model, s_.d_ff, {middle_.data()}, {&values[at(w.w_down)]}, x_.data(), true);
    }
    normalize(x_, &values[at(w_.norm)], h_);
    logits_.resize(static_cast<size_t>(n_ * kBytes));
    multiply(n_, kBytes, s_.d_model, {h_.data()}, {&values[at(w_.embedding)], true}, logits_.data());
    double loss = 0;
    for (int64_t i = 0; i < n_; ++i) {  // logits become probabilities
      const std::span row(&logits_[at(i * kBytes)], kBytes);
      const float most = std::ranges::max(row);
      double sum = 0;
      for (float& logit : row) sum += static_cast<double>(logit = std::exp(logit - most));
      for (float& logit : row) logit = static_cast<float>(static_cast<double>(logit) / sum);
      loss -= std::log(static_cast<double>(std::max(row[at(byte(text, i, 1))], 1e-30F)));
    }
    return loss;
  }

  /** Writes the gradients of what the last forward() has returned, times `scale`, with respect to its values: this rank's share. */
  void backward(const Floats& values, std::string_view text, float scale, Floats& gradients) {
    const int64_t d = s_.d_model;
    const size_t size = static_cast<size_t>(n_ * d);
    gradients.assign(gradients.size(), 0.0F);
    for (int64_t i = 0; i < n_; ++i) logits_[at(i * kBytes + byte(text, i, 1))] -= 1;
    for (float& logit : logits_) logit *= scale;
    dh_.resize(size), dx_.resize(size), scratch_.resize(size);
    multiply(n_, d, kBytes, {logits_.data()}, {&values[at(w_.embedding)]}, dh_.data());
    multiply(kBytes, d, n_, {logits_.data(), true}, {h_.data()}, &gradients[at(w_.embedding)], true);
    dx_.assign(size, 0.0F);
    differentiate_norm(x_, &values[at(w_.norm)], dh_, dx_, &gradients[at(w_.norm)]);
    for (size_t l = layers_.size(); l-- > 0;) {
      const Weights::Layer& w = w_.layers[l];
      Kept& kept = layers_[l];
      const auto wide = static_cast<size_t>(n_ * s_.d_ff);
      dmiddle_.resize(wide);
      multiply(n_, s_.d_ff, d, {dx_.data()}, {&values[at(w.w_down)], true}, dmiddle_.data());
      for (size_t i = 0; i < wide; ++i) middle_[i] = silu(kept.gate[i]) * kept.up[i];
      multiply(s_.d_ff, d, n_, {middle_.data(), true}, {dx_.data()}, &gradients[at(w.w_down)]);
      for (size_t i = 0; i < wide; ++i) {
        const float gate = kept.gate[i], sigmoid = 1 / (1 + std::exp(-gate)), given = dmiddle_[i];
        middle_[i] = given * kept.up[i] * sigmoid * (1 + gate * (1 - sigmoid));  // of the gate
        dmiddle_[i] = given * gate * sigmoid;                                    // of what goes up
      }
      multiply(d, s_.d_ff, n_, {kept.h_2.data(), true}, {middle_.data()}, &gradients[at(w.w_gate)]);
      multiply(d, s_.d_ff, n_, {kept.h_2.data(), true}, {dmiddle_.data()}, &gradients[at(w.w_up)]);
      multiply(n_, d, s_.d_ff, {middle_.data()}, {&values[at(w.w_gate)], true}, dh_.data());
      multiply(n_, d, s_.d_ff, {dmiddle_.data()}, {&values[at(w.w_up)], true}, dh_.data(), true);
      differentiate_norm(kept.x_2, &values[at(w.norm_2)], dh_, dx_, &gradients[at(w.norm_2)]);
      differentiate_attention(values, w, kept, gradients);
      differentiate_norm(kept.x_1, &values[at(w.norm_1)], dh_, dx_, &gradients[at(w.norm_1)]);
    }
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < d; ++j) gradients[at(w_.embedding + byte(text, i) * d + j)] += dx_[at(i * d + j)];
  }

 private:
  /** What a layer keeps for its backward pass. */
  struct Kept {
    explicit Kept(size_t bytes) : attention(bytes + 64), size(bytes) {}
    Floats x_1, h_1, x_2, h_2, gate, up;
    std::vector<std::byte> attention;  // ra_mha_forward's, from the first address on that is a multiple of 64
    size_t size;
    void* activations() {
      const auto address = reinterpret_cast<uintptr_t>(attention.data());
      return attention.data() + (64 - address % 64) % 64;
    }
  };

  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  int64_t byte(std::string_view text, int64_t i, int64_t ahead = 0) const {
    return static_cast<unsigned char>(text[at(positions_[at(i)] + ahead)]);
  }
  static float silu(float x) { return x / (1 + std::exp(-x)); }
  static float scale_of(const float* row, int64_t d) {
    double sum = 0;
    for (int64_t j = 0; j < d; ++j) sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
    return static_cast<float>(1 / std::sqrt(sum / static_cast<double>(d) + 1e-6));
  }
  void normalize(const Floats& x, const float* norm, Floats& to) const {
    to.resize(x.size());
    for (int64_t i = 0; i < n_; ++i) {
      const float* const row = &x[at(i * s_.d_model)];
      const float scale = scale_of(row, s_.d_model);
      for (int64_t j = 0; j < s_.d_model; ++j) to[at(i * s_.d_model + j)] = row[j] * scale * norm[j];
    }
  }
  /** Adds to dx and dnorm what comes of dh, the gradient of the normalised x. */
  void differentiate_norm(const Floats& x, const float* norm, const Floats& dh, Floats& dx, float* dnorm) const {
    const int64_t d = s_.d_model;
    for (int64_t i = 0; i < n_; ++i) {
      const float *const row = &x[at(i * d)], *const given = &dh[at(i * d)];
      const float scale = scale_of(row, d);
      float sum = 0;
      for (int64_t j = 0; j < d; ++j) {
        sum += given[j] * norm[j] * row[j];
        dnorm[j] += given[j] * row[j] * scale;
      }
      const float part = sum * scale * scale / static_cast<float>(d);
      for (int64_t j = 0; j < d; ++j) dx[at(i * d + j)] += scale * (given[j] * norm[j] - part * row[j]);
    }
  }

  /** All layers but the last see `window` bytes back, the last sees all. */
  ra_attention_desc describe(const Kept& kept) const {
    ra_attention_desc desc = desc_;
    if (&kept != &layers_.back() && s_.window > 0) desc.window_left = s_.window - 1;
    return desc;
  }
  static ra_tensor tensor(const float* data) { return {const_cast<float*>(data), 0, 0, 0, 0}; }
  void attend(const Floats& values, const Weights::Layer& w, Kept& kept) {
    const ra_attention_desc desc = describe(kept);
    scratch_.resize(x_.size());
    ra_mha_forward_args args;
    ra_init_mha_forward_args(&args, sizeof args);
    args.x = tensor(kept.h_1.data());
    args.w_q = tensor(&values[at(w.w_q)]), args.w_k = tensor(&values[at(w.w_k)]);
    args.w_v = tensor(&values[at(w.w_v)]), args.w_o = tensor(&values[at(w.w_o)]);
    args.out = tensor(scratch_.data());
    args.activations = kept.activations(), args.activations_size = kept.size;
    ra_error error;
    check(ra_mha_forward(context_, &desc, &mha_, &args, &error), error);
  }
  /** dh = that of h_1, given dx. */
  void differentiate_attention(const Floats& values, const Weights::Layer& w, Kept& kept, Floats& gradients) {
    const ra_attention_desc desc = describe(kept);
    ra_mha_backward_args args;
    ra_init_mha_backward_args(&args, sizeof args);
    args.dout = tensor(dx_.data());
    args.x = tensor(kept.h_1.data());
    args.w_q = tensor(&values[at(w.w_q)]), args.w_k = tensor(&values[at(w.w_k)]);
    args.w_v = tensor(&values[at(w.w_v)]), args.w_o = tensor(&values[at(w.w_o)]);
    args.dx = tensor(dh_.data());
    args.dw_q = tensor(&gradients[at(w.w_q)]), args.dw_k = tensor(&gradients[at(w.w_k)]);
    args.dw_v = tensor(&gradients[at(w.w_v)]), args.dw_o = tensor(&gradients[at(w.w_o)]);
    args.activations = kept.activations(), args.activations_size = kept.size;
    ra_error error;
    check(ra_mha_backward(context_, &desc, &mha_, &args, &error), error);
  }

  const Shape s_;
  const Weights w_;
  ra_context* const context_;
  ra_attention_desc desc_;
  ra_mha_desc mha_;
  std::vector<int64_t> positions_;  // of this rank's tokens
  int64_t n_ = 0;                   // how many
  std::vector<Kept> layers_;
  Floats x_, h_, logits_, scratch_, middle_, dh_, dx_, dmiddle_;
};
