#include "engine/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace ringattn::reference {
namespace {

// Offsets of head h of token t of batch entry b in a packed [batch, seq, heads, dim] tensor, and of a row of lse.
struct Shape {
  std::int64_t seq, heads, dim;
  std::size_t at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return static_cast<std::size_t>(((b * seq + t) * heads + h) * dim);
  }
};

struct Shapes {
  explicit Shapes(const Problem& p)
      : q{p.seqlen_q, p.num_heads_q, p.head_dim},
        k{p.seqlen_kv, p.num_heads_kv, p.head_dim},
        v{p.seqlen_kv, p.num_heads_kv, p.head_dim_v},
        out{p.seqlen_q, p.num_heads_q, p.head_dim_v} {}
  Shape q, k, v, out;
  std::size_t row(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return static_cast<std::size_t>((b * q.heads + h) * q.seq + i);
  }
};

std::size_t count(const Problem& p, const Shape& s) {
  return static_cast<std::size_t>(p.batch * s.seq * s.heads * s.dim);
}

template <class Real>
Real dot(const Real* a, const Real* b, std::int64_t n) {
  Real sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

// The dot product of `a` with each of some rows, four at a time: a sum waits for itself at each of its terms, but not for others.
template <class Real, class F>
void dots(const Real* a, const std::vector<std::int64_t>& rows, F&& row_of, std::int64_t dim,
          std::vector<Real>& products) {
  products.resize(rows.size());
  std::size_t n = 0;
  for (; n + 4 <= rows.size(); n += 4) {
    const Real *r0 = row_of(rows[n]), *r1 = row_of(rows[n + 1]), *r2 = row_of(rows[n + 2]), *r3 = row_of(rows[n + 3]);
    Real s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
      s0 += a[d] * r0[d];
      s1 += a[d] * r1[d];
      s2 += a[d] * r2[d];
      s3 += a[d] * r3[d];
    }
    products[n] = s0;
    products[n + 1] = s1;
    products[n + 2] = s2;
    products[n + 3] = s3;
  }
  for (; n < rows.size(); ++n) products[n] = dot(a, row_of(rows[n]), dim);
}

// score = cap * tanh(scale * dot / cap), and its derivative with respect to the dot product.
template <class Real>
struct Score {
  Real value, slope;
};
template <class Real>
Score<Real> score(const Problem& p, Real product) {
  const Real scale = static_cast<Real>(p.softmax_scale), cap = static_cast<Real>(p.softcap);
  const Real scaled = scale * product;
  if (cap == 0) return {scaled, scale};
  const Real t = std::tanh(scaled / cap);
  return {cap * t, scale * (1 - t * t)};
}

template <class F>
void for_each_index(std::int64_t count, std::int64_t first, F&& f) {
  if (count == 0) return;
  const std::int64_t begin = first % count;
  for (std::int64_t n = begin; n < count; ++n) f(n);
  for (std::int64_t n = 0; n < begin; ++n) f(n);
}

template <class Real>
Real term(Real x, const Summation& summation) {
  return summation.magnitudes ? std::abs(x) : x;
}

template <class F>
void for_each_row(const Problem& p, std::int64_t first, F&& f) {
  for (std::int64_t b = 0; b < p.batch; ++b)
    for_each_index(p.num_heads_q, first, [&](std::int64_t h) {
      for_each_index(p.seqlen_q, first, [&](std::int64_t i) { f(b, h, i, h / p.group()); });
    });
}

// Those that row i sees, from `first` on and around.
void find_keys(const Problem& p, std::int64_t b, std::int64_t i, std::int64_t first, std::vector<std::int64_t>& keys) {
  keys.clear();
  for_each_index(p.seqlen_kv, first, [&](std::int64_t j) {
    if (sees(p, b, i, j)) keys.push_back(j);
  });
}

}  // namespace

bool sees(const Problem& p, std::int64_t b, std::int64_t i, std::int64_t j) {
  if (!p.kv_lengths.empty() && j >= p.kv_lengths[static_cast<std::size_t>(b)]) return false;
  for (const Document& d : p.documents) {
    const bool has_i = d.q_begin <= i && i < d.q_begin + d.q_length;
    const bool has_j = d.kv_begin <= j && j < d.kv_begin + d.kv_length;
    if (!has_i || !has_j) continue;
    const std::int64_t diagonal = (i - d.q_begin) + (p.bottom_right ? d.kv_length - d.q_length : 0);
    const std::int64_t key = j - d.kv_begin;
    if (p.causal && key > diagonal) return false;
    if (p.window_left >= 0 && key < diagonal - p.window_left) return false;
    if (p.window_right >= 0 && key > diagonal + p.window_right) return false;
    return true;
  }
  return false;
}

template <class Real>
Result<Real> forward(const Problem& p, const std::vector<Real>& q, const std::vector<Real>& k,
                     const std::vector<Real>& v, const Summation& summation) {
  const Shapes at(p);
  Result<Real> result;
  result.out.assign(count(p, at.out), 0);
  result.lse.assign(static_cast<std::size_t>(p.batch * p.num_heads_q * p.seqlen_q),
                    -std::numeric_limits<Real>::infinity());
  std::vector<Real> scores;
  std::vector<std::int64_t> keys;
  for_each_row(p, summation.first, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t h_kv) {
    find_keys(p, b, i, summation.first, keys);
    if (keys.empty()) return;
    const auto key = [&](std::int64_t j) { return &k[at.k.at(b, j, h_kv)]; };
    dots(&q[at.q.at(b, i, h)], keys, key, p.head_dim, scores);
    Real max = -std::numeric_limits<Real>::infinity();
    for (Real& s : scores) {
      s = score(p, s).value;
      max = std::max(max, s);
    }
    Real sum = 0;
    for (std::size_t n = 0; n < keys.size(); ++n) sum += scores[n] = std::exp(scores[n] - max);
    Real* out = &result.out[at.out.at(b, i, h)];
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Real* row = &v[at.v.at(b, keys[n], h_kv)];
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) out[d] += term(scores[n] * row[d], summation);
    }
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) out[d] /= sum;
    result.lse[at.row(b, i, h)] = max + std::log(sum);
  });
  return result;
}

template <class Real>
Gradients<Real> backward(const Problem& p, const std::vector<Real>& q, const std::vector<Real>& k,
                         const std::vector<Real>& v, const Result<Real>& forward, const std::vector<Real>& dout,
                         const Summation& summation) {
  const Shapes at(p);
  Gradients<Real> gradients;
  gradients.dq.assign(q.size(), 0);
  gradients.dk.assign(k.size(), 0);
  gradients.dv.assign(v.size(), 0);
  std::vector<Real> products, dweights;
  std::vector<std::int64_t> keys;
  for_each_row(p, summation.first, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t h_kv) {
    const Real lse = forward.lse[at.row(b, i, h)];
    const Real* query = &q[at.q.at(b, i, h)];
    const Real* grad = &dout[at.out.at(b, i, h)];
    const Real delta = dot(grad, &forward.out[at.out.at(b, i, h)], p.head_dim_v);
    Real* dq = &gradients.dq[at.q.at(b, i, h)];
    find_keys(p, b, i, summation.first, keys);
    const auto row_of_k = [&](std::int64_t j) { return &k[at.k.at(b, j, h_kv)]; };
    const auto row_of_v = [&](std::int64_t j) { return &v[at.v.at(b, j, h_kv)]; };
    dots(query, keys, row_of_k, p.head_dim, products);
    dots(grad, keys, row_of_v, p.head_dim_v, dweights);
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const std::int64_t j = keys[n];
      const Real* key = row_of_k(j);
      const Score<Real> s = score(p, products[n]);
      const Real weight = std::exp(s.value - lse);
      const Real dp = dweights[n];
      const Real ds = weight * (summation.magnitudes ? std::abs(dp) + std::abs(delta) : dp - delta) * s.slope;
      Real* dk = &gradients.dk[at.k.at(b, j, h_kv)];
      Real* dv = &gradients.dv[at.v.at(b, j, h_kv)];
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        dq[d] += term(ds * key[d], summation);
        dk[d] += term(ds * query[d], summation);
      }
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) dv[d] += term(weight * grad[d], summation);
    }
  });
  return gradients;
}

#define INSTANTIATE(Real)                                                                                    \
  template Result<Real> forward(const Problem&, const std::vector<Real>&, const std::vector<Real>&,          \
                                const std::vector<Real>&, const Summation&);                                 \
  template Gradients<Real> backward(const Problem&, const std::vector<Real>&, const std::vector<Real>&,      \
                                    const std::vector<Real>&, const Result<Real>&, const std::vector<Real>&, \
                                    const Summation&);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace ringattn::reference
