// The model, forwards and backwards, on one rank's tokens:
//
//   x = sqrt(d_model) embedding[byte]
//   each layer:  x += mha(norm(x)),  x += mlp(norm(x)),  mlp(h) = (silu(h w_gate) * (h w_up)) w_down
//   logits = norm(x) embedding^T,  of which byte comes next
//
// norm is RMSNorm (Zhang and Sennrich 2019), the MLP is gated (Shazeer 2020). All but mha concerns each token by itself, so a rank computes
// it for its own tokens as if there were no others; mha is ra_mha_forward and ra_mha_backward. All matrices lie row by row, one row for
// each token or for each input of a weight. What a layer keeps for its backward pass is O(tokens of the rank * d_model).
#pragma once

#include <oneapi/dnnl/dnnl.h>

#include <cmath>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "ranks.hpp"

constexpr int64_t kBytes = 256;

struct Shape {
  int64_t context = 16384, batch = 1;  // tokens of a sequence, sequences at once
  int64_t layers = 4, d_model = 128, heads = 2, d_ff = 384;
  int64_t window = 256;  // tokens that all layers but the last look back; 0: all

  int64_t tokens() const { return batch * context; }
};

/** The weights, or a gradient of them: one behind the other in `all`, and each where it begins. */
struct Weights {
  struct Layer {
    float *norm_1, *w_q, *w_k, *w_v, *w_o, *norm_2, *w_gate, *w_up, *w_down;
  };
  struct Part {
    std::string name;
    std::span<float> values;
    double deviation;  // of random values to begin with; 0: they are 1
  };

  explicit Weights(const Shape& s)
      : all(static_cast<size_t>((kBytes + 1) * s.d_model + s.layers * s.d_model * (2 + 4 * s.d_model + 3 * s.d_ff))) {
    const int64_t d = s.d_model;
    const double share = 0.5 / static_cast<double>(s.layers);  // of the variance of x: so many branches are added to it
    float* next = all.data();
    const auto take = [&](const std::string& name, int64_t inputs, int64_t outputs, double variance = 1) {
      const std::span<float> values(next, static_cast<size_t>(inputs * outputs));
      parts.push_back({name, values, inputs == 1 ? 0 : std::sqrt(variance / static_cast<double>(inputs))});
      return std::exchange(next, next + values.size());
    };
    embedding = take("embedding", d, kBytes);  // [kBytes, d_model]: an output of logits is a row
    for (int64_t l = 0; l < s.layers; ++l) {
      const std::string layer = fmt::format("layer {} ", l);
      layers.push_back({.norm_1 = take(layer + "norm_1", 1, d),
                        .w_q = take(layer + "w_q", d, d),
                        .w_k = take(layer + "w_k", d, d),
                        .w_v = take(layer + "w_v", d, d),
                        .w_o = take(layer + "w_o", d, d, share),
                        .norm_2 = take(layer + "norm_2", 1, d),
                        .w_gate = take(layer + "w_gate", d, s.d_ff),
                        .w_up = take(layer + "w_up", d, s.d_ff),
                        .w_down = take(layer + "w_down", s.d_ff, d, share)});
    }
    norm = take("norm", 1, d);
  }
  Weights(const Weights&) = delete;

  /** The same on every rank, as they come of the seed alone. */
  void draw(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (const Part& part : parts) {
      const double most = std::sqrt(3.0) * part.deviation, one = part.deviation == 0 ? 1 : 0;
      for (float& value : part.values)
        value = static_cast<float>(one + most * (static_cast<double>(random() >> 11) * 0x1p-52 - 1));
    }
  }

  std::vector<float> all;
  std::vector<Part> parts;
  float *embedding, *norm;
  std::vector<Layer> layers;
};

using Floats = std::vector<float>;

/** to [m, n] = a [m, k] b [k, n], or to += that. Where `layout` has a T instead of an N, a or b is the transposed of what is in memory. */
inline void multiply(const char* layout, int64_t m, int64_t n, int64_t k, const Floats& a, const float* b, float* to,
                     bool adds = false) {
  if (m * n * k == 0) return;  // a rank without tokens: it has no rows, and gradients are 0 before anything is added
  const int64_t row_of_a = layout[0] == 'T' ? m : k, row_of_b = layout[1] == 'T' ? k : n;
  require(dnnl_sgemm(layout[0], layout[1], m, n, k, 1, a.data(), row_of_a, b, row_of_b, adds ? 1 : 0, to, n) ==
              dnnl_success,
          "dnnl_sgemm has failed");
}

inline float norm_scale(const float* row, int64_t d) {
  float squares = 0;
  for (int64_t j = 0; j < d; ++j) squares += row[j] * row[j];
  return 1 / std::sqrt(squares / static_cast<float>(d) + 1e-6F);
}

/** RMSNorm of tokens of d elements. */
inline void normalize(const Floats& x, const float* weight, int64_t d, Floats& to) {
  for (int64_t row = 0; row < std::ssize(x); row += d) {
    const float scale = norm_scale(&x[row], d);
    for (int64_t j = 0; j < d; ++j) to[row + j] = x[row + j] * scale * weight[j];
  }
}

/** Given dto, adds to dx and dweight. */
inline void differentiate_norm(const Floats& x, const float* weight, int64_t d, const Floats& dto, Floats& dx,
                               float* dweight) {
  for (int64_t row = 0; row < std::ssize(x); row += d) {
    const float* const in = &x[row];
    const float* const given = &dto[row];
    const float scale = norm_scale(in, d);
    float sum = 0;
    for (int64_t j = 0; j < d; ++j) {
      sum += given[j] * weight[j] * in[j];
      dweight[j] += given[j] * in[j] * scale;
    }
    const float along = sum * scale * scale / static_cast<float>(d);
    for (int64_t j = 0; j < d; ++j) dx[row + j] += scale * (given[j] * weight[j] - along * in[j]);
  }
}

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

class Model {
 public:
  Model(const Shape& shape, int32_t world_size, int32_t rank, ra_context* context) : s_(shape), context_(context) {
    ra_attention_desc attention;
    ra_init_attention_desc(&attention, sizeof attention);
    attention.batch = s_.batch;
    attention.seqlen_q = s_.context;
    attention.num_heads_q = s_.heads;
    attention.head_dim = s_.d_model / s_.heads;
    attention.mask = RA_MASK_CAUSAL;
    attention.sharding = RA_SHARDING_ZIGZAG;  // equal work for all ranks under this mask
    ra_init_mha_desc(&mha_, sizeof mha_);
    mha_.d_model = s_.d_model;
    mha_.rotary = RA_ROTARY_HALVES;
    positions_ = get_positions(attention, world_size, rank, RA_SIDE_QUERY);
    n_ = s_.batch * static_cast<int64_t>(positions_.size());
    for (int64_t l = 0; l < s_.layers; ++l) {
      Layer& layer = layers_.emplace_back();
      layer.attention = attention;
      if (s_.window > 0 && l + 1 < s_.layers) layer.attention.window_left = s_.window - 1;
      ra_error error;
      ra_mha_requirements needs;
      ra_init_mha_requirements(&needs, sizeof needs);
      check(ra_get_mha_requirements(context_, &layer.attention, &mha_, &needs, &error), error);
      layer.activations.resize((needs.activations + sizeof(Line) - 1) / sizeof(Line));
      for (Floats* narrow : {&layer.x_1, &layer.h_1, &layer.x_2, &layer.h_2}) narrow->resize(count(s_.d_model));
      for (Floats* wide : {&layer.gate, &layer.up, &layer.product}) wide->resize(count(s_.d_ff));
    }
    for (Floats* narrow : {&x_, &h_, &branch_, &dx_, &dh_}) narrow->resize(count(s_.d_model));
    for (Floats* wide : {&dgate_, &dup_}) wide->resize(count(s_.d_ff));
    logits_.resize(count(kBytes));
  }

  /** The sum of -log(probability of the byte that follows), in nats, over this rank's tokens of `batch` sequences of context + 1 bytes. */
  double forward(const Weights& w, std::span<const std::string_view> sequences) {
    read(sequences);
    const int64_t d = s_.d_model;
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < d; ++j) x_[i * d + j] = embedding_scale() * w.embedding[in_[i] * d + j];
    for (int64_t l = 0; l < s_.layers; ++l) {
      const Weights::Layer& weights = w.layers[l];
      Layer& layer = layers_[l];
      layer.x_1 = x_;
      normalize(x_, weights.norm_1, d, layer.h_1);
      attend(weights, layer);
      for (size_t i = 0; i < x_.size(); ++i) x_[i] += branch_[i];
      layer.x_2 = x_;
      normalize(x_, weights.norm_2, d, layer.h_2);
      multiply("NN", n_, s_.d_ff, d, layer.h_2, weights.w_gate, layer.gate.data());
      multiply("NN", n_, s_.d_ff, d, layer.h_2, weights.w_up, layer.up.data());
      for (size_t i = 0; i < layer.gate.size(); ++i)
        layer.product[i] = layer.gate[i] * sigmoid(layer.gate[i]) * layer.up[i];
      multiply("NN", n_, d, s_.d_ff, layer.product, weights.w_down, x_.data(), true);
    }
    normalize(x_, w.norm, d, h_);
    multiply("NT", n_, kBytes, d, h_, w.embedding, logits_.data());
    double loss = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const std::span row(&logits_[i * kBytes], kBytes);
      const float largest = *std::max_element(row.begin(), row.end()), truth = row[out_[i]];
      double sum = 0;
      for (float& logit : row) sum += logit = std::exp(logit - largest);
      for (float& logit : row) logit /= static_cast<float>(sum);  // now a probability
      loss += std::log(sum) - (truth - largest);
    }
    return loss;
  }

  /** Writes the gradient of what the last forward(w, ...) has returned, times `scale`, with respect to w: this rank's share. */
  void backward(const Weights& w, float scale, Weights& dw) {
    const int64_t d = s_.d_model, ff = s_.d_ff;
    std::fill(dw.all.begin(), dw.all.end(), 0.0F);
    for (int64_t i = 0; i < n_; ++i) logits_[i * kBytes + out_[i]] -= 1;
    for (float& logit : logits_) logit *= scale;
    std::fill(dx_.begin(), dx_.end(), 0.0F);
    multiply("NN", n_, d, kBytes, logits_, w.embedding, dh_.data());
    multiply("TN", kBytes, d, n_, logits_, h_.data(), dw.embedding);
    differentiate_norm(x_, w.norm, d, dh_, dx_, dw.norm);
    for (int64_t l = s_.layers; l-- > 0;) {
      const Weights::Layer &weights = w.layers[l], &dweights = dw.layers[l];
      const Layer& layer = layers_[l];
      multiply("TN", ff, d, n_, layer.product, dx_.data(), dweights.w_down);
      multiply("NT", n_, ff, d, dx_, weights.w_down, dup_.data());
      for (size_t i = 0; i < dup_.size(); ++i) {
        const float gate = layer.gate[i], s = sigmoid(gate), dproduct = dup_[i];
        dgate_[i] = dproduct * layer.up[i] * s * (1 + gate * (1 - s));
        dup_[i] = dproduct * gate * s;
      }
      multiply("TN", d, ff, n_, layer.h_2, dgate_.data(), dweights.w_gate);
      multiply("TN", d, ff, n_, layer.h_2, dup_.data(), dweights.w_up);
      multiply("NT", n_, d, ff, dgate_, weights.w_gate, dh_.data());
      multiply("NT", n_, d, ff, dup_, weights.w_up, dh_.data(), true);
      differentiate_norm(layer.x_2, weights.norm_2, d, dh_, dx_, dweights.norm_2);
      differentiate_attention(weights, layer, dweights);
      differentiate_norm(layer.x_1, weights.norm_1, d, dh_, dx_, dweights.norm_1);
    }
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < d; ++j) dw.embedding[in_[i] * d + j] += embedding_scale() * dx_[i * d + j];
  }

 private:
  using Line = std::aligned_storage_t<64, 64>;  // where ra_mha_forward keeps something
  /** Its attention, and what is kept for its backward pass. */
  struct Layer {
    ra_attention_desc attention;
    std::vector<Line> activations;
    Floats x_1, h_1, x_2, h_2, gate, up, product;
  };

  size_t count(int64_t width) const { return static_cast<size_t>(n_ * width); }
  float embedding_scale() const { return std::sqrt(static_cast<float>(s_.d_model)); }

  void read(std::span<const std::string_view> sequences) {
    in_.clear(), out_.clear();
    for (const std::string_view sequence : sequences) {
      for (const int64_t position : positions_) {
        in_.push_back(static_cast<unsigned char>(sequence[position]));
        out_.push_back(static_cast<unsigned char>(sequence[position + 1]));
      }
    }
  }

  static ra_tensor tensor(const float* data) { return {const_cast<float*>(data), 0, 0, 0, 0}; }  // packed

  /** branch = mha(h_1) */
  void attend(const Weights::Layer& w, Layer& layer) {
    ra_error error;
    ra_mha_forward_args args;
    ra_init_mha_forward_args(&args, sizeof args);
    args.x = tensor(layer.h_1.data());
    args.w_q = tensor(w.w_q), args.w_k = tensor(w.w_k), args.w_v = tensor(w.w_v), args.w_o = tensor(w.w_o);
    args.out = tensor(branch_.data());
    args.activations = layer.activations.data(), args.activations_size = layer.activations.size() * sizeof(Line);
    check(ra_mha_forward(context_, &layer.attention, &mha_, &args, &error), error);
  }
  /** dh = the gradient of h_1, given that of branch, which is dx. */
  void differentiate_attention(const Weights::Layer& w, const Layer& layer, const Weights::Layer& dw) {
    ra_error error;
    ra_mha_backward_args args;
    ra_init_mha_backward_args(&args, sizeof args);
    args.dout = tensor(dx_.data());
    args.x = tensor(layer.h_1.data());
    args.w_q = tensor(w.w_q), args.w_k = tensor(w.w_k), args.w_v = tensor(w.w_v), args.w_o = tensor(w.w_o);
    args.dx = tensor(dh_.data());
    args.dw_q = tensor(dw.w_q), args.dw_k = tensor(dw.w_k), args.dw_v = tensor(dw.w_v), args.dw_o = tensor(dw.w_o);
    args.activations = layer.activations.data(), args.activations_size = layer.activations.size() * sizeof(Line);
    check(ra_mha_backward(context_, &layer.attention, &mha_, &args, &error), error);
  }

  const Shape s_;
  ra_context* const context_;
  ra_mha_desc mha_;
  std::vector<int64_t> positions_;  // of this rank's tokens in a sequence
  int64_t n_;                       // this rank's tokens of all sequences
  std::vector<unsigned char> in_, out_;
  std::vector<Layer> layers_;
  Floats x_, h_, branch_, logits_, dx_, dh_, dgate_, dup_;
};
