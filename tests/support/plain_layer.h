// A layer of multi-head attention as ra_mha_desc words it, in fp64, written for reading: attention is the oracle's
// (engine/reference), what is around it stands here.
//
//   forward    q, k, v = x w + b;  heads of q and k normalised, then turned;  attended = attention(q, k, v);  out = attended w_o + b_o
//   backward   the same steps from the last to the first, each by the formula of its derivative
//
// Tensors are whole and packed: x, out and their gradients [batch, seqlen, d_model], weights as in ra_mha_forward_args.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/reference/reference.h"
#include "ringattn/ringattn.h"

namespace ringattn::test {

using Numbers = std::vector<double>;

// Of a layer, or their gradients; empty where it has none.
struct LayerWeights {
  Numbers w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k;
};
// In the order of ra_mha_forward_args.
inline constexpr std::array layer_weights{
    &LayerWeights::w_q, &LayerWeights::w_k, &LayerWeights::w_v, &LayerWeights::w_o,    &LayerWeights::b_q,
    &LayerWeights::b_k, &LayerWeights::b_v, &LayerWeights::b_o, &LayerWeights::norm_q, &LayerWeights::norm_k};

struct LayerResult {
  Numbers out, dx;
  LayerWeights gradients;
};

class PlainLayer {
 public:
  PlainLayer(const Problem& attention, const ra_mha_desc& mha)
      : p_(attention), mha_(mha), rows_(p_.batch * p_.seqlen_q) {
    if (mha.rotary != RA_ROTARY_NONE)
      pairs_ =
          static_cast<std::int64_t>(static_cast<double>(mha.rotary_fraction) * static_cast<double>(p_.head_dim) / 2);
  }

  LayerResult run(const Numbers& x, const LayerWeights& w, const Numbers& dout) const {
    const std::int64_t q_columns = p_.num_heads_q * p_.head_dim, k_columns = p_.num_heads_kv * p_.head_dim,
                       v_columns = p_.num_heads_kv * p_.head_dim_v, attended_columns = p_.num_heads_q * p_.head_dim_v;
    const Numbers raw_q = product(x, w.w_q, mha_.d_model, q_columns, w.b_q),
                  raw_k = product(x, w.w_k, mha_.d_model, k_columns, w.b_k),
                  v = product(x, w.w_v, mha_.d_model, v_columns, w.b_v);
    const Numbers q = styled(raw_q, w.norm_q, p_.num_heads_q), k = styled(raw_k, w.norm_k, p_.num_heads_kv);
    const reference::Result<double> attended = reference::forward(p_, q, k, v);
    LayerResult r;
    r.out = product(attended.out, w.w_o, attended_columns, mha_.d_model, w.b_o);

    LayerWeights& g = r.gradients;
    g.w_o = product_over_rows(attended.out, dout, attended_columns, mha_.d_model);
    if (!w.b_o.empty()) g.b_o = sum_over_rows(dout, mha_.d_model);
    const Numbers dattended =
        product(dout, transposed(w.w_o, attended_columns, mha_.d_model), mha_.d_model, attended_columns);
    reference::Gradients<double> of = reference::backward(p_, q, k, v, attended, dattended);
    differentiate_style(raw_q, w.norm_q, p_.num_heads_q, of.dq, g.norm_q);
    differentiate_style(raw_k, w.norm_k, p_.num_heads_kv, of.dk, g.norm_k);
    r.dx.assign(x.size(), 0);
    const auto differentiate_projection = [&](const Numbers& dy, const Numbers& weight, const Numbers& bias,
                                              std::int64_t columns, Numbers& dweight, Numbers& dbias) {
      dweight = product_over_rows(x, dy, mha_.d_model, columns);
      if (!bias.empty()) dbias = sum_over_rows(dy, columns);
      const Numbers share = product(dy, transposed(weight, mha_.d_model, columns), columns, mha_.d_model);
      for (std::size_t i = 0; i < share.size(); ++i) r.dx[i] += share[i];
    };
    differentiate_projection(of.dq, w.w_q, w.b_q, q_columns, g.w_q, g.b_q);
    differentiate_projection(of.dk, w.w_k, w.b_k, k_columns, g.w_k, g.b_k);
    differentiate_projection(of.dv, w.w_v, w.b_v, v_columns, g.w_v, g.b_v);
    return r;
  }

 private:
  static std::size_t at(std::int64_t row, std::int64_t columns, std::int64_t column) {
    return static_cast<std::size_t>(row * columns + column);
  }
  static Numbers zeros(std::int64_t count) { return Numbers(static_cast<std::size_t>(count), 0); }

  // a [rows_, inner] by b [inner, columns], and a bias for each column, if any.
  Numbers product(const Numbers& a, const Numbers& b, std::int64_t inner, std::int64_t columns,
                  const Numbers& bias = {}) const {
    Numbers c = zeros(rows_ * columns);
    for (std::int64_t row = 0; row < rows_; ++row)
      for (std::int64_t column = 0; column < columns; ++column) {
        double& sum = c[at(row, columns, column)];
        if (!bias.empty()) sum = bias[static_cast<std::size_t>(column)];
        for (std::int64_t i = 0; i < inner; ++i) sum += a[at(row, inner, i)] * b[at(i, columns, column)];
      }
    return c;
  }
  // The transpose of a [rows_, a_columns] by b [rows_, b_columns].
  Numbers product_over_rows(const Numbers& a, const Numbers& b, std::int64_t a_columns, std::int64_t b_columns) const {
    Numbers c = zeros(a_columns * b_columns);
    for (std::int64_t row = 0; row < rows_; ++row)
      for (std::int64_t i = 0; i < a_columns; ++i)
        for (std::int64_t j = 0; j < b_columns; ++j)
          c[at(i, b_columns, j)] += a[at(row, a_columns, i)] * b[at(row, b_columns, j)];
    return c;
  }
  Numbers sum_over_rows(const Numbers& a, std::int64_t columns) const {
    return product_over_rows(Numbers(static_cast<std::size_t>(rows_), 1), a, 1, columns);
  }
  static Numbers transposed(const Numbers& a, std::int64_t rows, std::int64_t columns) {
    Numbers b = zeros(rows * columns);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t column = 0; column < columns; ++column) b[at(column, rows, row)] = a[at(row, columns, column)];
    return b;
  }

  // The root of the mean square of a head.
  double size_of_head(const double* head) const {
    double sum = 0;
    for (std::int64_t d = 0; d < p_.head_dim; ++d) sum += head[d] * head[d];
    return std::sqrt(sum / static_cast<double>(p_.head_dim) + static_cast<double>(mha_.norm_epsilon));
  }
  // By the angles of a position, or back with `direction` -1.
  void turn(double* head, std::int64_t position, int direction) const {
    const bool is_interleaved = mha_.rotary == RA_ROTARY_INTERLEAVED;
    for (std::int64_t i = 0; i < pairs_; ++i) {
      const double angle =
          direction * static_cast<double>(position) *
          std::pow(static_cast<double>(mha_.rotary_base), -static_cast<double>(i) / static_cast<double>(pairs_));
      double &a = head[is_interleaved ? 2 * i : i], &b = head[is_interleaved ? 2 * i + 1 : i + pairs_];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = turned;
    }
  }
  // f(index of its first element, position) of each head.
  template <class F>
  void for_each_head(std::int64_t heads, F&& f) const {
    for (std::int64_t row = 0; row < rows_; ++row)
      for (std::int64_t h = 0; h < heads; ++h) f(at(row * heads + h, p_.head_dim, 0), row % p_.seqlen_q);
  }

  Numbers styled(Numbers y, const Numbers& norm, std::int64_t heads) const {
    for_each_head(heads, [&](std::size_t first, std::int64_t position) {
      double* const head = &y[first];
      const double size = norm.empty() ? 1 : size_of_head(head);
      for (std::size_t d = 0; d < norm.size(); ++d) head[d] *= norm[d] / size;
      turn(head, position, 1);
    });
    return y;
  }
  // `gradient`, of what styled(raw) is, becomes that of raw; writes that of norm, if there is any.
  void differentiate_style(const Numbers& raw, const Numbers& norm, std::int64_t heads, Numbers& gradient,
                           Numbers& dnorm) const {
    dnorm.assign(norm.size(), 0);
    for_each_head(heads, [&](std::size_t first, std::int64_t position) {
      const double* const x = &raw[first];
      double* const g = &gradient[first];
      turn(g, position, -1);
      if (norm.empty()) return;
      const double size = size_of_head(x);
      double along = 0;  // dot of x with the gradient of x / size
      for (std::size_t d = 0; d < norm.size(); ++d) {
        dnorm[d] += g[d] * x[d] / size;
        along += g[d] * norm[d] * x[d];
      }
      for (std::size_t d = 0; d < norm.size(); ++d)
        g[d] = (g[d] * norm[d] - x[d] * along / (size * size * static_cast<double>(p_.head_dim))) / size;
    });
  }

  const Problem& p_;
  const ra_mha_desc& mha_;
  std::int64_t rows_, pairs_ = 0;
};

}  // namespace ringattn::test
