#include "engine/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "engine/dropout.h"

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

// The last terms first. delta is summed so: of a row that sees one key it should be that key's dot product, and the rounding errors of
// both, if summed alike, would be the same and take each other away, as those of no other computation do.
template <class Real>
Real dot_from_end(const Real* a, const Real* b, std::int64_t n) {
  Real sum = 0;
  for (std::int64_t d = n - 1; d >= 0; --d) sum += a[d] * b[d];
  return sum;
}

// The root of the squares of a dot product's terms: what their rounding errors, each of its own sign, add up to.
template <class Real>
Real spread(const Real* a, const Real* b, std::int64_t n) {
  Real sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d] * a[d] * b[d];
  return std::sqrt(sum);
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

// ---------------------------------------------------------------- dilation

const Document& document_of_query(const Problem& p, std::int64_t i) {
  const auto has_i = [&](const Document& d) { return d.q_begin <= i && i < d.q_begin + d.q_length; };
  return *std::find_if(p.documents.begin(), p.documents.end(), has_i);
}

// One branch's segments of one document: positions are those of its keys.
struct Segments {
  std::int64_t keys, length, dilation, phase;

  Segments(const Problem& p, const Branch& branch, const Document& d, std::int64_t h)
      : keys(d.kv_length), length(std::min(branch.segment_length, d.kv_length)), dilation(branch.dilation) {
    const std::int64_t heads_of_phase = (p.num_heads_q + dilation - 1) / dilation;
    phase = p.dilation_phase == DilationPhase::interleaved_heads ? h % dilation : h / heads_of_phase;
  }
  // What faces no key is in the first segment, or the last.
  std::int64_t number(std::int64_t position) const { return position < 0 ? 0 : std::min(position, keys - 1) / length; }
  bool keeps(std::int64_t position) const {
    const std::int64_t within = position - number(position) * length;
    return (within % dilation + dilation) % dilation == phase;
  }
  // Slots for keys of that segment that hold none.
  std::int64_t empty_slots(std::int64_t segment) const {
    std::int64_t kept = 0;
    for (std::int64_t j = segment * length; j < std::min((segment + 1) * length, keys); ++j) kept += keeps(j) ? 1 : 0;
    return (length + dilation - 1) / dilation - kept;
  }
};

// A key that a row sees, and by which branch; the only one has number 0.
struct Seen {
  std::vector<std::int64_t> keys;
  std::vector<std::size_t> branches;
  std::vector<std::int64_t> zero_keys{0};  // of each branch, besides
};

// Those that row i of head h sees, from `first` on and around.
void find_keys(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t first, Seen& seen) {
  seen.keys.clear();
  seen.branches.clear();
  seen.zero_keys.assign(std::max<std::size_t>(p.branches.size(), 1), 0);
  const Document& d = document_of_query(p, i);
  const std::int64_t position = i - d.q_begin + p.shift(d);
  std::vector<Segments> kept;
  for (const Branch& branch : p.branches) kept.emplace_back(p, branch, d, h);
  for_each_index(p.seqlen_kv, first, [&](std::int64_t j) {
    if (!sees(p, b, i, j)) return;
    for (std::size_t n = 0; n < seen.zero_keys.size(); ++n) {
      const bool both = kept.empty() || (kept[n].keeps(position) && kept[n].keeps(j - d.kv_begin) &&
                                         kept[n].number(position) == kept[n].number(j - d.kv_begin));
      if (!both) continue;
      seen.keys.push_back(j);
      seen.branches.push_back(n);
    }
  });
  if (p.dilation_padding == DilationPadding::zero_keys && d.kv_length > 0)
    for (std::size_t n = 0; n < kept.size(); ++n)
      if (kept[n].keeps(position)) seen.zero_keys[n] = kept[n].empty_slots(kept[n].number(position));
}

// How far apart a query and a key of one document are, of which alibi_slopes takes its share off.
std::int64_t distance(const Problem& p, std::int64_t i, std::int64_t j) {
  const Document& d = document_of_query(p, i);
  return std::abs((i - d.q_begin) + p.shift(d) - (j - d.kv_begin));
}

// What softmax takes of a query and a key whose product that is.
template <class Real>
struct Logit {
  Real value;
  Real slope;  // its derivative with respect to the product
  Real size;   // of what it is made of besides the product: what further rounding errors of it are relative to
};
template <class Real>
Logit<Real> make_logit(const Problem& p, const Modifiers<Real>& m, Real product, std::int64_t b, std::int64_t h,
                       std::int64_t i, std::int64_t j) {
  const Score<Real> s = score(p, product);
  constexpr Real of_cap = 3;  // its quotient, the tangent, and its product round
  Logit<Real> logit{s.value, s.slope, p.softcap == 0 ? 0 : of_cap * std::abs(s.value)};
  const auto add = [&](Real x) {
    logit.value += x;
    if (std::isfinite(x)) logit.size += std::abs(x);
  };
  if (!p.alibi_slopes.empty())
    add(-static_cast<Real>(p.alibi_slopes[static_cast<std::size_t>(h)]) * static_cast<Real>(distance(p, i, j)));
  if (p.has_key_bias) add(m.key_bias[static_cast<std::size_t>(b * p.seqlen_kv + j)]);
  return logit;
}

// Rounding errors of a term that do not depend on its logit: one of the product that it is, and where there is dropout of the factor
// 1 / (1 - probability) and of the product with it.
template <class Real>
Real roundings(const Problem& p) {
  return p.dropout.probability == 0 ? 1 : 3;
}

// The logarithm of the sum of a head's sinks, which stand for keys without values.
template <class Real>
Real sink_of(const Problem& p, const Modifiers<Real>& m, std::int64_t h) {
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  const Real* const sinks = m.sinks.data() + h * p.num_sinks;
  Real max = -infinity, sum = 0;
  for (std::int64_t n = 0; n < p.num_sinks; ++n) max = std::max(max, sinks[n]);
  if (max == -infinity) return max;
  for (std::int64_t n = 0; n < p.num_sinks; ++n) sum += std::exp(sinks[n] - max);
  return max + std::log(sum);
}

// The same with a row's zero keys, of all branches.
template <class Real>
Real with_zero_keys(Real sink, const Seen& seen) {
  const std::int64_t zeros = std::accumulate(seen.zero_keys.begin(), seen.zero_keys.end(), std::int64_t{0});
  if (zeros == 0) return sink;
  const Real own = std::log(static_cast<Real>(zeros)), max = std::max(sink, own);
  return max + std::log(std::exp(sink - max) + std::exp(own - max));
}

// Of the logarithm of a sum, how far off it is for one rounding of a term that is `weight` of the sum.
template <class Real>
Real rounding_of(Real weight, Real logarithm) {
  return weight == 0 ? 0 : weight * std::abs(logarithm);
}

// The factors of a row's weights: 0 where dropout drops them, else 1 / (1 - probability).
template <class Real>
class Kept {
 public:
  Kept(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t i) : dropout_(p.dropout) {
    if (drops()) key_ = dropout_row_key(dropout_.seed, i, b, h);
  }
  Real operator()(std::int64_t j) const {
    if (!drops()) return 1;
    const bool kept = dropout_keeps(key_, dropout_.offset, j, dropout_threshold(dropout_.probability));
    return kept ? 1 / (1 - static_cast<Real>(dropout_.probability)) : 0;
  }

 private:
  bool drops() const { return dropout_.probability != 0; }
  Dropout dropout_;
  PhiloxKey key_{};
};

template <class Real>
Real term(Real x, const Summation& summation) {
  return summation.magnitudes ? std::abs(x) : x;
}

// An operand of the products of weights with values, and of their gradients with keys and queries.
template <class Real>
Real operand(Real x, const Summation& summation) {
  return summation.operands == DType::float32 ? x
                                              : static_cast<Real>(rounded(static_cast<double>(x), summation.operands));
}

template <class F>
void for_each_row(const Problem& p, std::int64_t first, F&& f) {
  for (std::int64_t b = 0; b < p.batch; ++b)
    for_each_index(p.num_heads_q, first, [&](std::int64_t h) {
      for_each_index(p.seqlen_q, first, [&](std::int64_t i) { f(b, h, i, h / p.group()); });
    });
}

}  // namespace

bool sees(const Problem& p, std::int64_t b, std::int64_t i, std::int64_t j) {
  if (!p.kv_lengths.empty() && j >= p.kv_lengths[static_cast<std::size_t>(b)]) return false;
  const auto allows = [&](const MaskSlice& s) {
    const bool causal = s.kind == SliceKind::causal || s.kind == SliceKind::bidirectional_causal;
    const bool inverse = s.kind == SliceKind::inverse_causal || s.kind == SliceKind::bidirectional_causal;
    return s.q_begin <= i && i < s.q_end && s.kv_begin <= j && j < s.kv_end &&
           (!causal || j - s.kv_end <= i - s.q_end) && (!inverse || j - s.kv_begin >= i - s.q_begin);
  };
  if (!p.slices.empty() && std::none_of(p.slices.begin(), p.slices.end(), allows)) return false;
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

int times_seen(const Problem& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  if (!sees(p, b, i, j)) return 0;
  Seen seen;
  find_keys(p, b, h, i, 0, seen);
  return static_cast<int>(std::count(seen.keys.begin(), seen.keys.end(), j));
}

template <class Real>
Result<Real> forward(const Problem& p, const std::vector<Real>& q, const std::vector<Real>& k,
                     const std::vector<Real>& v, const Modifiers<Real>& modifiers, const Summation& summation) {
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  const Shapes at(p);
  Result<Real> result;
  result.out.assign(count(p, at.out), 0);
  result.lse.assign(static_cast<std::size_t>(p.batch * p.num_heads_q * p.seqlen_q), -infinity);
  std::vector<Real> scores, sizes;
  Seen seen;
  const std::vector<std::int64_t>& keys = seen.keys;
  for_each_row(p, summation.first, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t h_kv) {
    find_keys(p, b, h, i, summation.first, seen);
    const Real sink = with_zero_keys(sink_of(p, modifiers, h), seen);
    const auto key = [&](std::int64_t j) { return &k[at.k.at(b, j, h_kv)]; };
    dots(&q[at.q.at(b, i, h)], keys, key, p.head_dim, scores);
    sizes.resize(scores.size());
    Real max = sink;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Logit<Real> logit = make_logit(p, modifiers, scores[n], b, h, i, keys[n]);
      scores[n] = logit.value;
      sizes[n] = logit.size;
      if (summation.magnitudes)
        sizes[n] += std::abs(logit.slope) * spread(&q[at.q.at(b, i, h)], key(keys[n]), p.head_dim);
      max = std::isnan(scores[n]) ? scores[n] : std::max(max, scores[n]);  // which keeps a NaN that it has first
    }
    if (max == -infinity) return;
    const Real sink_weight = std::exp(sink - max);
    Real sum = sink_weight;
    for (std::size_t n = 0; n < keys.size(); ++n) sum += scores[n] = std::exp(scores[n] - max);
    Real& lse = result.lse[at.row(b, i, h)];
    lse = max + std::log(sum);

    Real* out = &result.out[at.out.at(b, i, h)];
    const Kept<Real> kept(p, b, h, i);
    const Real of_sink = rounding_of(sink_weight / sum, sink);
    Real lse_size = std::abs(lse) + of_sink;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Real* row = &v[at.v.at(b, keys[n], h_kv)];
      const Real weight = operand(kept(keys[n]) * scores[n], summation);
      const Real size = summation.magnitudes ? roundings<Real>(p) + of_sink + sizes[n] : 1;
      lse_size += scores[n] / sum * sizes[n];
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) out[d] += size * term(weight * row[d], summation);
    }
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) out[d] /= sum;
    if (summation.magnitudes) lse = lse_size;
  });
  return result;
}

template <class Real>
Gradients<Real> backward(const Problem& p, const std::vector<Real>& q, const std::vector<Real>& k,
                         const std::vector<Real>& v, const Result<Real>& forward, const std::vector<Real>& dout,
                         const Modifiers<Real>& modifiers, const Summation& summation) {
  const Shapes at(p);
  Gradients<Real> gradients;
  gradients.dq.assign(q.size(), 0);
  gradients.dk.assign(k.size(), 0);
  gradients.dv.assign(v.size(), 0);
  gradients.dsinks.assign(modifiers.sinks.size(), 0);
  std::vector<Real> products, dweights, own_out;
  Seen seen;
  const std::vector<std::int64_t>& keys = seen.keys;
  for_each_row(p, summation.first, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t h_kv) {
    const Real lse = forward.lse[at.row(b, i, h)];
    if (lse == -std::numeric_limits<Real>::infinity()) return;
    const Real* query = &q[at.q.at(b, i, h)];
    const Real* grad = &dout[at.out.at(b, i, h)];
    const Real* out = &forward.out[at.out.at(b, i, h)];
    Real delta = dot_from_end(grad, out, p.head_dim_v);
    if (summation.magnitudes) delta = std::abs(delta) + spread(grad, out, p.head_dim_v);
    Real* dq = &gradients.dq[at.q.at(b, i, h)];
    find_keys(p, b, h, i, summation.first, seen);
    const auto row_of_k = [&](std::int64_t j) { return &k[at.k.at(b, j, h_kv)]; };
    const auto row_of_v = [&](std::int64_t j) { return &v[at.v.at(b, j, h_kv)]; };
    dots(query, keys, row_of_k, p.head_dim, products);
    dots(grad, keys, row_of_v, p.head_dim_v, dweights);
    const Kept<Real> kept(p, b, h, i);
    const Real sink = with_zero_keys(sink_of(p, modifiers, h), seen), of_sink = rounding_of(std::exp(sink - lse), sink);
    const auto logit_of = [&](std::size_t n) { return make_logit(p, modifiers, products[n], b, h, i, keys[n]); };
    // Of each branch, dot(dout, out): that of all together, or where their weights are constants its own.
    std::vector<Real> deltas(seen.zero_keys.size(), delta);
    if (!p.branches.empty() && p.dilation_gradient == DilationGradient::constant_weights)
      for (std::size_t branch = 0; branch < deltas.size(); ++branch) {
        Real sum = static_cast<Real>(seen.zero_keys[branch]) * std::exp(-lse), size = 0;
        own_out.assign(static_cast<std::size_t>(p.head_dim_v), 0);
        for (std::size_t n = 0; n < keys.size(); ++n) {
          if (seen.branches[n] != branch) continue;
          const Real weight = std::exp(logit_of(n).value - lse), kept_weight = kept(keys[n]) * weight;
          sum += weight;
          if (summation.magnitudes)
            size += kept_weight * (std::abs(dweights[n]) + spread(grad, row_of_v(keys[n]), p.head_dim_v));
          for (std::size_t d = 0; d < own_out.size(); ++d) own_out[d] += kept_weight * row_of_v(keys[n])[d];
        }
        deltas[branch] =
            sum == 0 ? 0 : (summation.magnitudes ? size : dot_from_end(grad, own_out.data(), p.head_dim_v)) / sum;
      }
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const std::int64_t j = keys[n];
      const Logit<Real> logit = logit_of(n);
      const Real delta_of_branch = deltas[seen.branches[n]];
      const Real score_spread =
          summation.magnitudes ? std::abs(logit.slope) * spread(query, row_of_k(j), p.head_dim) : 0;
      const Real size = summation.magnitudes ? roundings<Real>(p) + of_sink + logit.size + score_spread : 1;
      const Real weight = size * std::exp(logit.value - lse);
      const Real factor = kept(j), dp = factor * dweights[n];
      const Real dp_size = summation.magnitudes ? std::abs(dp) + factor * spread(grad, row_of_v(j), p.head_dim_v) : 0;
      const Real ds = operand(
          weight * (summation.magnitudes ? dp_size + std::abs(delta_of_branch) : dp - delta_of_branch) * logit.slope,
          summation);
      const Real kept_weight = operand(factor * weight, summation);
      Real* dk = &gradients.dk[at.k.at(b, j, h_kv)];
      Real* dv = &gradients.dv[at.v.at(b, j, h_kv)];
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        dq[d] += term(ds * row_of_k(j)[d], summation);
        dk[d] += term(ds * query[d], summation);
      }
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) dv[d] += term(kept_weight * grad[d], summation);
    }
    Real through = 0;
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) through += term(grad[d] * out[d], summation);
    for (std::int64_t n = 0; n < p.num_sinks; ++n) {
      const auto index = static_cast<std::size_t>(h * p.num_sinks + n);
      const Real weight = std::exp(modifiers.sinks[index] - lse);
      const Real size = summation.magnitudes ? 1 + rounding_of(Real{1}, sink) : 1;
      if (weight != 0) gradients.dsinks[index] -= size * weight * through;
    }
  });
  return gradients;
}

#define INSTANTIATE(Real)                                                                                    \
  template Result<Real> forward(const Problem&, const std::vector<Real>&, const std::vector<Real>&,          \
                                const std::vector<Real>&, const Modifiers<Real>&, const Summation&);         \
  template Gradients<Real> backward(const Problem&, const std::vector<Real>&, const std::vector<Real>&,      \
                                    const std::vector<Real>&, const Result<Real>&, const std::vector<Real>&, \
                                    const Modifiers<Real>&, const Summation&);
INSTANTIATE(double)
INSTANTIATE(float)
#undef INSTANTIATE

}  // namespace ringattn::reference
