#include "engine/reference/oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <locale>
#include <numeric>
#include <sstream>

namespace ringattn::reference {
namespace {

// Cuts `length` at `cuts` random places: 0, ..., length.
std::vector<std::int64_t> draw_offsets(Random& random, std::int64_t length, std::int64_t documents) {
  std::vector<std::int64_t> offsets{0, length};
  for (std::int64_t i = 1; i < documents; ++i) offsets.push_back(draw(random, 0, length));
  std::sort(offsets.begin(), offsets.end());
  return offsets;
}

struct Format {
  int significand_bits;  // stored
  int least_exponent;    // of a normal number
  double largest;
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return {7, -126, 0x1.fep127};
    case DType::float16:
      return {10, -14, 65504.0};
    default:
      return {23, -126, std::numeric_limits<float>::max()};
  }
}

// NaN if either is; std::max may drop it.
double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double x : values)
    if (std::isfinite(x)) result = std::max(result, std::abs(x));
  return result;
}

// What the tolerance is at least: twice the rounding errors of the terms, and of storage. `magnitudes`: sums of the terms'.
Expected expect(std::vector<double> exact, const std::vector<double>& magnitudes, DType dtype) {
  const auto roundoff = [](DType d) { return std::ldexp(1.0, -format_of(d).significand_bits - 1); };
  const double least = largest(magnitudes) * roundoff(DType::float32) + largest(exact) * roundoff(dtype);
  return {std::move(exact), 2 * least};
}

// Raises the tolerance to twice the error of one plain result. To NaN, within which nothing lies, if that is not a number.
void allow(Expected& expected, const std::vector<float>& plain, DType dtype) {
  for (std::size_t i = 0; i < plain.size(); ++i)
    if (std::isfinite(expected.exact[i]))
      expected.tolerance =
          larger(expected.tolerance, 2 * std::abs(rounded(static_cast<double>(plain[i]), dtype) - expected.exact[i]));
}

// values[..., order[d]] in place d of every row.
template <class Real>
std::vector<float> reordered(const std::vector<Real>& values, const std::vector<std::size_t>& order) {
  std::vector<float> result(values.size());
  for (std::size_t row = 0; row < values.size(); row += order.size())
    for (std::size_t d = 0; d < order.size(); ++d) result[row + d] = static_cast<float>(values[row + order[d]]);
  return result;
}

template <class Real>
Modifiers<Real> modifiers_of(const Inputs& inputs) {
  return {{inputs.key_bias.begin(), inputs.key_bias.end()}, {inputs.sinks.begin(), inputs.sinks.end()}};
}

std::vector<std::size_t> inverse(const std::vector<std::size_t>& order) {
  std::vector<std::size_t> result(order.size());
  for (std::size_t d = 0; d < order.size(); ++d) result[order[d]] = d;
  return result;
}

// dsinks sum over all rows what comes of rounded results, each with an error of its own: the root of their squares is what these add up
// to. Twice that, since weights may have been rounded as coarsely before (precision.h).
double rounding_of_dsinks(const Inputs& inputs, const Result<double>& exact) {
  const Problem& p = inputs.problem;
  double worst = 0;
  for (std::int64_t h = 0; h < p.num_heads_q; ++h)
    for (std::int64_t n = 0; n < p.num_sinks; ++n) {
      double squares = 0;
      for (std::int64_t b = 0; b < p.batch; ++b)
        for (std::int64_t i = 0; i < p.seqlen_q; ++i) {
          const auto row = static_cast<std::size_t>((b * p.num_heads_q + h) * p.seqlen_q + i),
                     out = static_cast<std::size_t>(((b * p.seqlen_q + i) * p.num_heads_q + h) * p.head_dim_v);
          const double sink = inputs.sinks[static_cast<std::size_t>(h * p.num_sinks + n)];
          if (!std::isfinite(sink)) continue;
          const double weight = std::exp(sink - exact.lse[row]);
          for (std::size_t d = out; d < out + static_cast<std::size_t>(p.head_dim_v); ++d)
            squares += std::pow(weight * exact.out[d] * inputs.dout[d], 2);
        }
      worst = std::max(worst, std::sqrt(squares));
    }
  return 2 * worst * std::ldexp(1.0, -format_of(p.out_dtype).significand_bits - 1);
}

void draw_modifiers(Random& random, Problem& p) {
  const auto has = [&] { return draw(random, 0, 2) == 0; };
  if (has()) p.alibi_slopes = draw_slopes(random, p);
  p.has_key_bias = has();
  if (has()) p.num_sinks = draw(random, 1, 3);
  if (has()) p.dropout = draw_dropout(random);
}

// Cuts a rectangle into smaller ones, and keeps some of them.
void cut_slices(Random& random, MaskSlice whole, int cuts, std::vector<MaskSlice>& slices) {
  if (cuts == 0 || draw(random, 0, 4) == 0) {
    whole.kind = static_cast<SliceKind>(draw(random, 0, 3));
    if (draw(random, 0, 3) != 0) slices.push_back(whole);
    return;
  }
  MaskSlice front = whole, back = whole;
  if (draw(random, 0, 1) == 0)
    front.q_end = back.q_begin = draw(random, whole.q_begin, whole.q_end);
  else
    front.kv_end = back.kv_begin = draw(random, whole.kv_begin, whole.kv_end);
  cut_slices(random, front, cuts - 1, slices);
  cut_slices(random, back, cuts - 1, slices);
}

void draw_layers(Random& random, Problem& p) {
  const std::int64_t kind = draw(random, 0, 2);
  if (kind != 1) p.slices = draw_slices(random, p);
  if (kind == 0) return;
  p.branches = draw_branches(random, p);
  p.dilation_phase = static_cast<DilationPhase>(draw(random, 0, 1));
  const bool is_full = !p.causal && p.window_left < 0 && p.window_right < 0 && p.slices.empty();
  if (is_full) p.dilation_padding = static_cast<DilationPadding>(draw(random, 0, 1));
  p.dilation_gradient = static_cast<DilationGradient>(draw(random, 0, 1));
}

}  // namespace

std::vector<Document> draw_documents(Random& random, const Problem& p, std::int64_t count) {
  const auto offsets_q = draw_offsets(random, p.seqlen_q, count);
  const auto offsets_kv =
      p.seqlen_kv == p.seqlen_q && draw(random, 0, 1) == 0 ? offsets_q : draw_offsets(random, p.seqlen_kv, count);
  std::vector<Document> documents;
  for (std::size_t d = 0; d + 1 < offsets_q.size(); ++d)
    documents.push_back(
        {offsets_q[d], offsets_q[d + 1] - offsets_q[d], offsets_kv[d], offsets_kv[d + 1] - offsets_kv[d]});
  return documents;
}

std::vector<float> draw_slopes(Random& random, const Problem& p) {
  std::vector<float> slopes;
  for (std::int64_t h = 0; h < p.num_heads_q; ++h) {
    const float slope = std::ldexp(1.0F, -static_cast<int>(draw(random, 1, 8)));
    const std::int64_t kind = draw(random, 0, 9);
    slopes.push_back(kind == 0 ? 0.0F : kind == 1 ? -slope : slope);
  }
  return slopes;
}

Dropout draw_dropout(Random& random) { return {static_cast<float>(draw(random, 1, 9)) / 10, random(), random()}; }

std::vector<MaskSlice> draw_slices(Random& random, const Problem& p) {
  std::vector<MaskSlice> slices;
  cut_slices(random, {0, p.seqlen_q, 0, p.seqlen_kv, SliceKind::full}, static_cast<int>(draw(random, 1, 4)), slices);
  if (slices.empty()) slices.push_back({0, p.seqlen_q, 0, p.seqlen_kv, SliceKind::causal});
  return slices;
}

std::vector<Branch> draw_branches(Random& random, const Problem& p) {
  std::vector<Branch> branches;
  for (std::int64_t n = draw(random, 1, 3); n > 0; --n)
    branches.push_back({draw(random, 1, std::max<std::int64_t>(p.seqlen_kv + 2, 8)), draw(random, 1, 5)});
  return branches;
}

Problem draw_problem(Random& random, const ProblemLimits& limits) {
  Problem p;
  p.batch = draw(random, 1, limits.batch);
  p.seqlen_q = draw(random, 0, 9) == 0 ? draw(random, 0, 3) : draw(random, 0, limits.seqlen);
  p.seqlen_kv = draw(random, 0, 2) == 0 ? draw(random, 0, limits.seqlen) : p.seqlen_q;
  p.num_heads_kv = draw(random, 1, limits.num_heads_kv);
  p.num_heads_q = p.num_heads_kv * draw(random, 1, limits.group);
  p.head_dim = draw(random, 1, limits.head_dim);
  p.head_dim_v = draw(random, 0, 2) == 0 ? draw(random, 1, limits.head_dim) : p.head_dim;
  const auto draw_dtype = [&] { return static_cast<DType>(draw(random, 1, 3)); };
  p.dtype = draw_dtype();
  p.out_dtype = draw(random, 0, 2) == 0 ? draw_dtype() : p.dtype;
  p.grad_dtype = draw(random, 0, 2) == 0 ? draw_dtype() : p.dtype;
  p.sharding = static_cast<Sharding>(draw(random, 0, 2));
  p.stripe = p.sharding != Sharding::striped ? 1
             : draw(random, 0, 2) == 0       ? draw(random, 1, limits.seqlen + 2)
                                             : draw(random, 1, 8);
  p.causal = draw(random, 0, 1) == 1;
  p.bottom_right = draw(random, 0, 1) == 1;
  const auto draw_window = [&] {
    return draw(random, 0, 2) == 0 ? draw(random, 0, limits.seqlen / (draw(random, 0, 1) == 0 ? 8 : 1)) : -1;
  };
  p.window_left = draw_window();
  p.window_right = draw_window();
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  if (draw(random, 0, 2) == 0) p.softcap = static_cast<float>(draw(random, 1, 30));
  p.num_chunks = draw(random, 0, 2) == 0 ? 0 : draw(random, 1, 5);
  Random next = random, apart(next());  // no problem depends on how it is exchanged
  p.schedule = static_cast<Schedule>(draw(apart, 0, 2));
  if (draw(apart, 0, 2) != 0) p.gather_bytes = std::int64_t{1} << draw(apart, 0, 20);
  if (limits.modifiers) draw_modifiers(apart, p);

  const std::int64_t documents = draw(random, 0, 2) == 0 ? draw(random, 1, 6) : 1;
  p.documents = draw_documents(random, p, documents);
  if (draw(random, 0, 2) == 0)
    for (std::int64_t b = 0; b < p.batch; ++b) p.kv_lengths.push_back(draw(random, 0, p.seqlen_kv));
  if (limits.layers) draw_layers(apart, p);
  return p;
}

std::string describe(const Problem& p) {
  std::ostringstream s;
  s.imbue(std::locale::classic());  // whatever the program has set
  s << "batch " << p.batch << ", seqlen " << p.seqlen_q << " x " << p.seqlen_kv << ", heads " << p.num_heads_q << ":"
    << p.num_heads_kv << ", head_dim " << p.head_dim << "/" << p.head_dim_v << ", dtype " << static_cast<int>(p.dtype)
    << "/" << static_cast<int>(p.out_dtype) << "/" << static_cast<int>(p.grad_dtype) << ", sharding "
    << static_cast<int>(p.sharding) << " (stripe " << p.stripe << "), causal " << p.causal << ", bottom_right "
    << p.bottom_right << ", window " << p.window_left << " " << p.window_right << ", softcap " << p.softcap
    << ", num_chunks " << p.num_chunks << ", schedule " << static_cast<int>(p.schedule) << " (gather_bytes "
    << p.gather_bytes << "), documents";
  for (const Document& d : p.documents) s << " " << d.q_length << "x" << d.kv_length;
  s << ", kv_lengths";
  for (const std::int64_t length : p.kv_lengths) s << " " << length;
  if (!p.alibi_slopes.empty()) s << ", alibi_slopes";
  for (const float slope : p.alibi_slopes) s << " " << slope;
  if (!p.slices.empty()) s << ", slices";
  for (const MaskSlice& m : p.slices)
    s << " " << m.q_begin << ":" << m.q_end << "x" << m.kv_begin << ":" << m.kv_end << "/" << static_cast<int>(m.kind);
  if (!p.branches.empty())
    s << ", dilation (phase " << static_cast<int>(p.dilation_phase) << ", padding "
      << static_cast<int>(p.dilation_padding) << ", gradient " << static_cast<int>(p.dilation_gradient) << ")";
  for (const Branch& branch : p.branches) s << " " << branch.segment_length << "/" << branch.dilation;
  if (p.has_key_bias) s << ", key_bias";
  if (p.num_sinks > 0) s << ", num_sinks " << p.num_sinks;
  if (p.dropout.probability != 0)
    s << ", dropout " << p.dropout.probability << " (seed " << p.dropout.seed << ", offset " << p.dropout.offset << ")";
  return std::move(s).str();
}

double rounded(double x, DType dtype) {
  if (dtype == DType::float32) return static_cast<double>(static_cast<float>(x));
  if (!std::isfinite(x) || x == 0) return x;
  const Format format = format_of(dtype);
  constexpr int bias = 1023, fraction = 52;
  constexpr double whole = 0x1.8p52;  // plus and minus this, a number that is not large is rounded to a whole one
  const int own_exponent = static_cast<int>(std::bit_cast<std::uint64_t>(x) >> fraction & 0x7ff) - bias;
  const int exponent = std::max(own_exponent, format.least_exponent) - format.significand_bits;
  const auto unit = std::bit_cast<double>(static_cast<std::uint64_t>(exponent + bias) << fraction);
  const double result = std::copysign((x / unit + whole - whole) * unit, x);
  return std::abs(result) > format.largest ? std::copysign(std::numeric_limits<double>::infinity(), x) : result;
}

void encode(double x, DType dtype, void* to) {
  const double value = rounded(x, dtype);
  const float single = static_cast<float>(value);
  if (dtype == DType::float32) {
    std::memcpy(to, &single, sizeof single);
    return;
  }
  std::uint16_t bits = 0;
  if (dtype == DType::bfloat16) {
    bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(single) >> 16);
    if (std::isnan(single)) bits |= 0x40;
  } else {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::abs(value);
    if (std::isnan(value)) {
      bits = 0x7e00;
    } else if (std::isinf(value)) {
      bits = 0x7c00;
    } else if (magnitude < 0x1p-14) {
      bits = static_cast<std::uint16_t>(magnitude / 0x1p-24);
    } else {
      const int exponent = std::ilogb(magnitude);
      bits = static_cast<std::uint16_t>(((exponent + 15) << 10) +
                                        static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024);
    }
    bits = static_cast<std::uint16_t>(bits | sign);
  }
  std::memcpy(to, &bits, sizeof bits);
}

double decode(const void* from, DType dtype) {
  if (dtype == DType::float32) {
    float x;
    std::memcpy(&x, from, sizeof x);
    return static_cast<double>(x);
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  if (dtype == DType::bfloat16)
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
  const int exponent = bits >> 10 & 31, significand = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31)
    return significand ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * significand * 0x1p-24;
  return sign * std::ldexp(1024 + significand, exponent - 25);
}

Inputs::Inputs(const Problem& p, Random& random) : problem(p) {
  std::normal_distribution<double> normal;
  const auto draw_tensor = [&](std::int64_t tokens, std::int64_t heads, std::int64_t dim, DType dtype) {
    std::vector<double> values(static_cast<std::size_t>(p.batch * tokens * heads * dim));
    for (double& x : values) x = rounded(normal(random), dtype);
    return values;
  };
  q = draw_tensor(p.seqlen_q, p.num_heads_q, p.head_dim, p.dtype);
  k = draw_tensor(p.seqlen_kv, p.num_heads_kv, p.head_dim, p.dtype);
  v = draw_tensor(p.seqlen_kv, p.num_heads_kv, p.head_dim_v, p.dtype);
  dout = draw_tensor(p.seqlen_q, p.num_heads_q, p.head_dim_v, p.out_dtype);
  const auto draw_logits = [&](std::int64_t count, std::int64_t one_is_hopeless) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& x : values)
      x = draw(random, 1, one_is_hopeless) == 1 ? -std::numeric_limits<double>::infinity()
                                                : rounded(2 * normal(random), DType::float32);
    return values;
  };
  if (p.has_key_bias) key_bias = draw_logits(p.batch * p.seqlen_kv, 6);
  if (p.num_sinks > 0) sinks = draw_logits(p.num_heads_q * p.num_sinks, 12);
}

Oracle::Oracle(Inputs inputs, Random& random, Of of) : Inputs(std::move(inputs)) {
  const Problem& p = problem;
  const bool backwards = of == Of::all;
  const Modifiers<double> modifiers = modifiers_of<double>(*this);
  const Modifiers<float> plain_modifiers = modifiers_of<float>(*this);
  Result<double> exact = forward(p, q, k, v, modifiers);
  constexpr Summation of_magnitudes{.magnitudes = true};
  const Result<double> magnitudes = forward(p, q, k, v, modifiers, of_magnitudes);
  if (backwards) {
    Gradients<double> gradients = backward(p, q, k, v, exact, dout, modifiers);
    const Gradients<double> gradient_magnitudes = backward(p, q, k, v, exact, dout, modifiers, of_magnitudes);
    dq = expect(std::move(gradients.dq), gradient_magnitudes.dq, p.grad_dtype);
    dk = expect(std::move(gradients.dk), gradient_magnitudes.dk, p.grad_dtype);
    dv = expect(std::move(gradients.dv), gradient_magnitudes.dv, p.grad_dtype);
    dsinks = expect(std::move(gradients.dsinks), gradient_magnitudes.dsinks, DType::float32);
    dsinks.tolerance += 2 * rounding_of_dsinks(*this, exact);
  }
  lse = expect(exact.lse, magnitudes.lse, DType::float32);
  out = expect(exact.out, magnitudes.out, p.out_dtype);
  for (double& x : exact.out) x = rounded(x, p.out_dtype);

  constexpr std::int64_t enough_products = 1 << 22, least_orders = 8, most_orders = 64;
  const std::int64_t products = p.batch * p.num_heads_q * p.seqlen_q * p.seqlen_kv * (p.head_dim + p.head_dim_v);
  const std::int64_t orders =
      std::clamp(enough_products / std::max<std::int64_t>(products, 1), least_orders, most_orders);
  std::vector<std::size_t> order(static_cast<std::size_t>(p.head_dim)), order_v(static_cast<std::size_t>(p.head_dim_v));
  std::iota(order.begin(), order.end(), 0);
  std::iota(order_v.begin(), order_v.end(), 0);
  for (std::int64_t n = 0; n < orders; ++n) {
    const auto q_n = reordered(q, order), k_n = reordered(k, order), v_n = reordered(v, order_v);
    const Summation from{.first = n == 0 ? 0 : draw(random, 0, std::max(p.seqlen_q, p.seqlen_kv)),
                         .operands = n % 4 < 2 ? DType::float32 : p.dtype};
    Result<float> plain = forward(p, q_n, k_n, v_n, plain_modifiers, from);
    for (float& x : plain.out) x = static_cast<float>(rounded(static_cast<double>(x), p.out_dtype));
    allow(out, reordered(plain.out, inverse(order_v)), p.out_dtype);
    allow(lse, plain.lse, DType::float32);
    if (backwards) {
      if (n % 2 == 1) plain = {reordered(exact.out, order_v), {exact.lse.begin(), exact.lse.end()}};
      const Gradients<float> gradients =
          backward(p, q_n, k_n, v_n, plain, reordered(dout, order_v), plain_modifiers, from);
      allow(dq, reordered(gradients.dq, inverse(order)), p.grad_dtype);
      allow(dk, reordered(gradients.dk, inverse(order)), p.grad_dtype);
      allow(dv, reordered(gradients.dv, inverse(order_v)), p.grad_dtype);
      allow(dsinks, gradients.dsinks, DType::float32);
    }
    std::shuffle(order.begin(), order.end(), random);
    std::shuffle(order_v.begin(), order_v.end(), random);
  }
}

double finite_difference_error(const Oracle& oracle, Random& random, int samples) {
  constexpr double step = 1e-5;
  std::vector<double> inputs[] = {oracle.q, oracle.k, oracle.v, oracle.sinks};
  const std::vector<double>* const gradients[] = {&oracle.dq.exact, &oracle.dk.exact, &oracle.dv.exact,
                                                  &oracle.dsinks.exact};
  const auto loss = [&] {
    const Result<double> result =
        forward(oracle.problem, inputs[0], inputs[1], inputs[2], Modifiers<double>{oracle.key_bias, inputs[3]});
    double sum = 0;
    for (std::size_t i = 0; i < result.out.size(); ++i) sum += result.out[i] * oracle.dout[i];
    return sum;
  };
  double worst = 0;
  for (std::size_t n = 0; n < std::size(inputs); ++n) {
    if (inputs[n].empty()) continue;
    double largest = 1e-3;
    for (const double x : *gradients[n]) largest = larger(largest, std::abs(x));
    for (int sample = 0; sample < samples; ++sample) {
      const auto i = static_cast<std::size_t>(draw(random, 0, static_cast<std::int64_t>(inputs[n].size()) - 1));
      const double kept = inputs[n][i];
      inputs[n][i] = kept + step;
      const double above = loss();
      inputs[n][i] = kept - step;
      const double below = loss();
      inputs[n][i] = kept;
      worst = larger(worst, std::abs((above - below) / (2 * step) - (*gradients[n])[i]) / largest);
    }
  }
  return worst;
}

}  // namespace ringattn::reference
