// A layer of multi-head attention by its definition, on the whole sequence: around the oracle's attention, plain loops. Real = double is the
// truth that errors are measured against; Real = float, with what lies between stored in its dtype, is the plain computation of the
// tolerance rule (engine/reference/oracle.h). And random layers.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "engine/reference/oracle.h"
#include "support/mha.h"

namespace ringattn::test {

// Any problem that a layer can have.
inline Problem draw_attention(reference::Random& random, const reference::ProblemLimits& limits) {
  Problem p;
  do {
    p = reference::draw_problem(random, limits);
  } while (p.num_sinks > 0 || p.has_key_bias || p.seqlen_kv != p.seqlen_q ||
           std::ranges::any_of(p.documents,
                               [](const Document& d) { return d.q_begin != d.kv_begin || d.q_length != d.kv_length; }));
  return p;
}
inline ra_mha_desc draw_mha(reference::Random& random, const Problem& p) {
  const auto coin = [&] { return static_cast<std::int32_t>(reference::draw(random, 0, 1)); };
  ra_mha_desc mha = make_mha(reference::draw(random, 1, 40));
  if (p.head_dim >= 2) mha.rotary = static_cast<std::int32_t>(reference::draw(random, 0, 2));
  mha.rotary_base = 300;
  if (p.head_dim >= 4 && coin() == 1) mha.rotary_fraction = 0.7F;
  mha.has_qkv_bias = coin();
  mha.has_out_bias = coin();
  mha.normalize_heads = coin();
  mha.checkpoint = static_cast<std::int32_t>(reference::draw(random, 0, 2));
  return mha;
}

// Everything that a layer writes.
template <class Real>
struct MhaResults {
  std::vector<Real> out, dx;                                       // [batch, seqlen, d_model]
  std::array<std::vector<Real>, MhaShard::num_weights> gradients;  // of the weights, as they are in MhaShard
};

template <class Real>
class MhaReference {
 public:
  // `whole`: the shard of the only rank. `operands`: what weights of attention are rounded to before they are multiplied.
  MhaReference(const Problem& problem, const MhaShard& whole, DType operands = DType::float32)
      : p_(problem), s_(whole), rows_(problem.batch * problem.seqlen_q) {
    summation_.operands = operands;
    p_.out_dtype = p_.grad_dtype = p_.dtype;
    for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] = numbers(s_.weights[i]);
    x_ = numbers(s_.x);
    dout_ = numbers(s_.dout);
  }

  MhaResults<Real> run() {
    constexpr std::array input{w_q, w_k, w_v}, bias{b_q, b_k, b_v}, norm{norm_q, norm_k, none};
    const std::array<std::int64_t, 3> heads{p_.num_heads_q, p_.num_heads_kv, p_.num_heads_kv},
        dims{p_.head_dim, p_.head_dim, p_.head_dim_v};
    const std::int64_t d_model = s_.mha.d_model, attended_columns = p_.num_heads_q * p_.head_dim_v;
    std::array<std::vector<Real>, 3> raw, made;
    for (std::size_t i = 0; i < 3; ++i) {
      raw[i] = product(x_, false, weights_[input[i]], false, rows_, heads[i] * dims[i], d_model);
      add_row(raw[i], weights_[bias[i]]);
      store(raw[i]);
      made[i] = raw[i];
      if (norm[i] == none) continue;
      for (std::int64_t row = 0; row < rows_; ++row)
        for (std::int64_t h = 0; h < heads[i]; ++h)
          style(weights_[norm[i]], row, made[i].data() + (row * heads[i] + h) * dims[i]);
      store(made[i]);
    }
    reference::Result<Real> attended = reference::forward<Real>(p_, made[0], made[1], made[2], {}, summation_);
    store(attended.out);
    MhaResults<Real> results;
    results.out = product(attended.out, false, weights_[w_o], false, rows_, d_model, attended_columns);
    add_row(results.out, weights_[b_o]);

    std::vector<Real> dattended = product(dout_, false, weights_[w_o], true, rows_, attended_columns, d_model);
    store(dattended);
    results.gradients[w_o] = product(attended.out, true, dout_, false, attended_columns, d_model, rows_);
    results.gradients[b_o] = sum_of_rows(dout_, weights_[b_o].size());
    reference::Gradients<Real> g =
        reference::backward<Real>(p_, made[0], made[1], made[2], attended, dattended, {}, summation_);
    results.dx.resize(x_.size());
    const std::array<std::vector<Real>*, 3> gradients{&g.dq, &g.dk, &g.dv};
    for (std::size_t i = 0; i < 3; ++i) {
      std::vector<Real>& gradient = *gradients[i];
      store(gradient);
      if (norm[i] != none) {
        std::vector<Real>& dnorm = results.gradients[norm[i]];
        dnorm.resize(weights_[norm[i]].size());
        for (std::int64_t row = 0; row < rows_; ++row)
          for (std::int64_t h = 0; h < heads[i]; ++h) {
            const std::int64_t at = (row * heads[i] + h) * dims[i];
            differentiate(weights_[norm[i]], row, raw[i].data() + at, gradient.data() + at, dnorm);
          }
        store(gradient);
      }
      results.gradients[input[i]] = product(x_, true, gradient, false, d_model, heads[i] * dims[i], rows_);
      results.gradients[bias[i]] = sum_of_rows(gradient, weights_[bias[i]].size());
      const std::vector<Real> part =
          product(gradient, false, weights_[input[i]], true, rows_, d_model, heads[i] * dims[i]);
      for (std::size_t n = 0; n < part.size(); ++n) results.dx[n] += part[n];
    }
    return results;
  }

 private:
  enum Weight : std::size_t { w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k, none };
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  static std::vector<Real> numbers(const Tensor& t) {
    std::vector<Real> all;
    if (t.size > 0)
      t.for_each_element([&](auto b, auto s, auto h, auto d) { all.push_back(static_cast<Real>(t.get(b, s, h, d))); });
    return all;
  }
  void store(std::vector<Real>& numbers) const {
    if constexpr (std::is_same_v<Real, float>)
      for (Real& x : numbers) x = static_cast<Real>(reference::rounded(static_cast<double>(x), p_.dtype));
  }
  // [rows, depth] times [depth, columns], of which either may be stored transposed.
  static std::vector<Real> product(const std::vector<Real>& left, bool left_turned, const std::vector<Real>& right,
                                   bool right_turned, std::int64_t rows, std::int64_t columns, std::int64_t depth) {
    std::vector<Real> to(at(rows * columns));
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t k = 0; k < depth; ++k) {
        const Real x = left[at(left_turned ? k * rows + i : i * depth + k)];
        for (std::int64_t j = 0; j < columns; ++j)
          to[at(i * columns + j)] += x * right[at(right_turned ? j * depth + k : k * columns + j)];
      }
    return to;
  }
  static void add_row(std::vector<Real>& to, const std::vector<Real>& row) {
    for (std::size_t n = 0; n < to.size() && !row.empty(); ++n) to[n] += row[n % row.size()];
  }
  static std::vector<Real> sum_of_rows(const std::vector<Real>& from, std::size_t columns) {
    std::vector<Real> sum(columns);
    for (std::size_t n = 0; n < from.size() && columns > 0; ++n) sum[n % columns] += from[n];
    return sum;
  }

  Real scale_of(const Real* head) const {
    Real sum = 0;
    for (std::int64_t d = 0; d < p_.head_dim; ++d) sum += head[d] * head[d];
    return 1 / std::sqrt(sum / static_cast<Real>(p_.head_dim) + static_cast<Real>(s_.mha.norm_epsilon));
  }
  // Forwards (1) or back (-1).
  void turn(std::int64_t row, int direction, Real* head) const {
    if (s_.mha.rotary == RA_ROTARY_NONE) return;
    const auto pairs =
        static_cast<std::int64_t>(static_cast<double>(s_.mha.rotary_fraction) * static_cast<double>(p_.head_dim) / 2);
    const bool is_interleaved = s_.mha.rotary == RA_ROTARY_INTERLEAVED;
    for (std::int64_t i = 0; i < pairs; ++i) {
      Real &a = head[is_interleaved ? 2 * i : i], &b = head[is_interleaved ? 2 * i + 1 : i + pairs];
      const double angle =
          static_cast<double>(row % p_.seqlen_q) *
          std::pow(static_cast<double>(s_.mha.rotary_base), -static_cast<double>(i) / static_cast<double>(pairs));
      const auto cosine = static_cast<Real>(std::cos(angle)), sine = static_cast<Real>(direction * std::sin(angle));
      const Real x = a, y = b;
      a = x * cosine - y * sine;
      b = x * sine + y * cosine;
    }
  }
  void style(const std::vector<Real>& norm, std::int64_t row, Real* head) const {
    if (!norm.empty()) {
      const Real scale = scale_of(head);
      for (std::size_t d = 0; d < norm.size(); ++d) head[d] *= scale * norm[d];
    }
    turn(row, 1, head);
  }
  void differentiate(const std::vector<Real>& norm, std::int64_t row, const Real* head, Real* g,
                     std::vector<Real>& dnorm) const {
    turn(row, -1, g);
    if (norm.empty()) return;
    const Real scale = scale_of(head);
    Real sum = 0;
    for (std::size_t d = 0; d < norm.size(); ++d) {
      dnorm[d] += g[d] * scale * head[d];
      g[d] *= norm[d];
      sum += g[d] * head[d];
    }
    const Real part = scale * scale * sum / static_cast<Real>(norm.size());
    for (std::size_t d = 0; d < norm.size(); ++d) g[d] = scale * (g[d] - part * head[d]);
  }

  Problem p_;
  const MhaShard& s_;
  const std::int64_t rows_;
  reference::Summation summation_;
  std::array<std::vector<Real>, MhaShard::num_weights> weights_;
  std::vector<Real> x_, dout_;
};

}  // namespace ringattn::test
