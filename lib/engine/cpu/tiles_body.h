// The tiles in plain C++ over vectors of WIDTH floats that the compiler maps to the registers it has. Included once by the
// file of an instruction set, which is compiled for it; everything has internal linkage, so that no code made for one
// instruction set can be linked into another.
//
// Define before including: RA_WIDTH (floats per vector), RA_ROWS x RA_VECTORS (register tile of multiply).

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/cpu/tiles.h"

namespace ringattn::cpu {
namespace {

constexpr int width = RA_WIDTH;
constexpr int tile_rows = RA_ROWS;
constexpr int tile_vectors = RA_VECTORS;
constexpr int tile_columns = width * tile_vectors;
static_assert(padding % tile_columns == 0);
constexpr std::int64_t span = 16;  // terms of a product that are summed by themselves, before they join the sum of all
static_assert(padding % span == 0);

typedef float Vector __attribute__((vector_size(width * 4), aligned(4), may_alias));

constexpr float infinity = __builtin_huge_valf();

// ---- products

template <int Rows>
inline void multiply_tile(const Product& p, std::int64_t i, std::int64_t j) {
  const auto at = [&](int r, int n) { return reinterpret_cast<Vector*>(p.c + (i + r) * p.ldc + j + n * width); };
  const float* a = p.a + i * p.a_row;
  const float* b = p.b + j;
  for (std::int64_t begin = 0; begin == 0 || begin < p.k; begin += span) {
    Vector c[Rows][tile_vectors] = {};
    for (std::int64_t k = begin; k < (begin + span < p.k ? begin + span : p.k); ++k, a += p.a_col, b += p.ldb) {
      Vector row[tile_vectors];
#pragma GCC unroll 8
      for (int n = 0; n < tile_vectors; ++n) row[n] = *reinterpret_cast<const Vector*>(b + n * width);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const Vector x = a[r * p.a_row] - Vector{};
#pragma GCC unroll 8
        for (int n = 0; n < tile_vectors; ++n) c[r][n] += x * row[n];
      }
    }
    const bool add = p.accumulate || begin > 0;
    for (int r = 0; r < Rows; ++r)
      for (int n = 0; n < tile_vectors; ++n) *at(r, n) = add ? *at(r, n) + c[r][n] : c[r][n];
  }
}

// Rows that do not fill a tile, by halves.
template <int Rows>
inline void multiply_rest(const Product& p, std::int64_t i, std::int64_t j) {
  if (p.m - i >= Rows) {
    multiply_tile<Rows>(p, i, j);
    i += Rows;
  }
  if constexpr (Rows > 1)
    if (i < p.m) multiply_rest<Rows / 2>(p, i, j);
}

constexpr int largest_power_below(int n) {
  int power = 1;
  while (power * 2 < n) power *= 2;
  return power;
}

void multiply(const Product& p) {
  for (std::int64_t j = 0; j < p.n; j += tile_columns) {
    std::int64_t i = 0;
    for (; i + tile_rows <= p.m; i += tile_rows) multiply_tile<tile_rows>(p, i, j);
    if (i < p.m) multiply_rest<largest_power_below(tile_rows)>(p, i, j);
  }
}

// ---- elementary functions, written so that loops over them vectorise

// Cephes expf: exp(x) = 2^n exp(r), |r| <= ln 2 / 2; about 1 ulp; 0 below -87, infinity above 88.7.
inline float exponential(float x) {
  constexpr float lowest = -87.33654F, highest = 88.72283F, magic = 12582912.0F;  // magic: rounds to an integer
  float bounded = x < lowest ? lowest : x;
  bounded = bounded > highest ? highest : bounded;
  const float shifted = bounded * 1.44269504F + magic;
  const float n = shifted - magic;
  const float r = bounded - n * 0.693359375F - n * -2.12194440e-4F;
  float series = 1.9875691500e-4F;
  series = series * r + 1.3981999507e-3F;
  series = series * r + 8.3334519073e-3F;
  series = series * r + 4.1665795894e-2F;
  series = series * r + 1.6666665459e-1F;
  series = series * r + 5.0000001201e-1F;
  // 1 + r + series r^2, its largest part first and with what that rounds away.
  const float head = 1.0F + r, tail = r - (head - 1.0F);
  series = head + (tail + series * r * r);
  // 2^n as 2 * 2^(n - 1): n may be 128. It is read from the low bits of `shifted`, since NaN converts to no integer; the
  // power is then anything, and the value NaN.
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(magic) + 126U;
  const float power = std::bit_cast<float>(exponent << 23);
  const float value = series * power * 2.0F;
  return x < lowest ? 0.0F : x > highest ? infinity : value;
}

// cap * tanh(product / cap), and the tangent itself. Cephes tanhf: near 0, where 1 - 2 / (exp(2x) + 1) would cancel, tanh(x)
// is x times one plus a small polynomial, so there the score is the product times that, with no more rounding than it takes.
struct Capped {
  float score, tangent;
};
inline Capped cap_score(float product, float cap) {
  const float x = product / cap;
  const float magnitude = x < 0 ? -x : x;
  const float square = x * x;
  float series = -5.70498872745e-3F;
  series = series * square + 2.06390887954e-2F;
  series = series * square - 5.37397155531e-2F;
  series = series * square + 1.33314422036e-1F;
  series = series * square - 3.33332819422e-1F;
  series = series * square;
  const float far = 1.0F - 2.0F / (exponential(2.0F * magnitude) + 1.0F);
  const float tangent = x < 0 ? -far : far;
  const bool near = magnitude < 0.625F;
  return {near ? series * product + product : cap * tangent, near ? series * x + x : tangent};
}

// ---- softmax

// scores = softcap(scale * products) over one row's visible keys.
inline void score_row(float* s, std::int64_t lo, std::int64_t hi, float scale, float softcap) {
  if (softcap == 0.0F) {
#pragma omp simd
    for (std::int64_t j = lo; j < hi; ++j) s[j] *= scale;
  } else {
#pragma omp simd
    for (std::int64_t j = lo; j < hi; ++j) s[j] = cap_score(s[j] * scale, softcap).score;
  }
}

inline void fill(float* row, std::int64_t begin, std::int64_t end, float value) {
  for (std::int64_t j = begin; j < end; ++j) row[j] = value;
}

void softmax(const SoftmaxTile& t) {
  for (std::int64_t i = 0; i < t.rows; ++i) {
    float* s = t.scores + i * t.ld;
    const std::int64_t lo = t.visible[i].lo, hi = t.visible[i].hi;
    t.factor[i] = 1.0F;
    if (lo >= hi) {
      fill(s, 0, t.columns, 0.0F);
      continue;
    }
    score_row(s, lo, hi, t.scale, t.softcap);
    float largest = t.max[i];
#pragma omp simd reduction(max : largest)
    for (std::int64_t j = lo; j < hi; ++j) largest = s[j] > largest ? s[j] : largest;
    const float base = largest == -infinity ? 0.0F : largest;  // only scores of -infinity so far: weights of 0
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = lo; j < hi; ++j) {
      s[j] = exponential(s[j] - base);
      sum += s[j];
    }
    // One number scales all earlier results of the row, so its error does not average out: it is rounded once. It is seldom
    // anything but 1 after the first blocks.
    if (t.max[i] != base)
      t.factor[i] = static_cast<float>(std::exp(static_cast<double>(t.max[i]) - static_cast<double>(base)));
    t.sum[i] = t.sum[i] * t.factor[i] + sum;
    t.max[i] = largest;
    fill(s, 0, lo, 0.0F);
    fill(s, hi, t.columns, 0.0F);
  }
}

void gradient(const GradientTile& t) {
  for (std::int64_t i = 0; i < t.rows; ++i) {
    float* s = t.scores + i * t.ld;
    float* ds = t.dscores + i * t.ld;
    const std::int64_t lo = t.visible[i].lo, hi = t.visible[i].hi;
    const float lse = t.lse[i], delta = t.delta[i];
    if (lo >= hi || lse == -infinity) {
      fill(s, 0, t.columns, 0.0F);
      fill(ds, 0, t.columns, 0.0F);
      continue;
    }
    if (t.softcap == 0.0F) {
#pragma omp simd
      for (std::int64_t j = lo; j < hi; ++j) {
        s[j] = exponential(s[j] * t.scale - lse);
        ds[j] = s[j] * (ds[j] - delta) * t.scale;
      }
    } else {
#pragma omp simd
      for (std::int64_t j = lo; j < hi; ++j) {
        const Capped capped = cap_score(s[j] * t.scale, t.softcap);
        s[j] = exponential(capped.score - lse);
        ds[j] = s[j] * (ds[j] - delta) * t.scale * (1.0F - capped.tangent * capped.tangent);
      }
    }
    for (float* row : {s, ds}) {
      fill(row, 0, lo, 0.0F);
      fill(row, hi, t.columns, 0.0F);
    }
  }
}

// ---- conversions

inline float widen_bfloat16(std::uint16_t x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); }

inline float widen_float16(std::uint16_t x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000U) << 16;
  const std::uint32_t magnitude = x & 0x7fffU;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;  // exact, subnormals included
  const std::uint32_t special = 0x7f800000U | magnitude << 13;            // infinity and NaN keep their significand
  const std::uint32_t bits = magnitude >= 0x7c00U ? special : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t narrow_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  const std::uint32_t nan = bits >> 16 | 0x40U;
  return static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
}

inline std::uint16_t narrow_float16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7fffffffU;
  const std::uint32_t normal = (magnitude - (112U << 23) + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
  // Below 2^-14 the spacing is 2^-24: adding 0.5 rounds to it, ties to even.
  const std::uint32_t small =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - std::bit_cast<std::uint32_t>(0.5F);
  std::uint32_t result = magnitude < (113U << 23) ? small : normal;
  result = magnitude >= 0x477ff000U ? 0x7c00U : result;  // rounds to 2^16 or beyond
  result = magnitude > 0x7f800000U ? 0x7e00U : result;
  return static_cast<std::uint16_t>(result | sign);
}

// A sum over values that is 0 exactly if all are finite: 0 * x is 0, or NaN for infinity and NaN.
template <class T, class Widen>
bool load_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t dim, float* to, std::int64_t ld,
               Widen widen) {
  float check = 0.0F;
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* source = from + r * stride;
    float* target = to + r * ld;
#pragma omp simd reduction(+ : check)
    for (std::int64_t d = 0; d < dim; ++d) {
      target[d] = widen(source[d]);
      check += target[d] * 0.0F;
    }
    fill(target, dim, ld, 0.0F);
  }
  return check == 0.0F;
}

bool load(DType dtype, const void* from, std::int64_t stride, std::int64_t rows, std::int64_t dim, float* to,
          std::int64_t ld) {
  switch (dtype) {
    case DType::bfloat16:
      return load_rows(static_cast<const std::uint16_t*>(from), stride, rows, dim, to, ld, widen_bfloat16);
    case DType::float16:
      return load_rows(static_cast<const std::uint16_t*>(from), stride, rows, dim, to, ld, widen_float16);
    default:
      return load_rows(static_cast<const float*>(from), stride, rows, dim, to, ld, [](float x) { return x; });
  }
}

void transpose(const float* from, std::int64_t ldf, std::int64_t rows, std::int64_t dim, float* to, std::int64_t ld) {
  constexpr std::int64_t block = 8;
  for (std::int64_t r = 0; r < rows; r += block)
    for (std::int64_t d = 0; d < dim; d += block)
      for (std::int64_t y = d; y < (d + block < dim ? d + block : dim); ++y)
        for (std::int64_t x = r; x < (r + block < rows ? r + block : rows); ++x) to[y * ld + x] = from[x * ldf + y];
  for (std::int64_t d = 0; d < dim; ++d) fill(to + d * ld, rows, ld, 0.0F);
}

void scale(float* rows, std::int64_t ld, std::int64_t count, std::int64_t dim, const float* factor) {
  for (std::int64_t r = 0; r < count; ++r) {
    if (factor[r] == 1.0F) continue;
    float* row = rows + r * ld;
#pragma omp simd
    for (std::int64_t d = 0; d < dim; ++d) row[d] *= factor[r];
  }
}

template <class T, class Widen, class Narrow>
void store_row(const float* from, std::int64_t dim, T* to, bool accumulate, Widen widen, Narrow narrow) {
  if (accumulate) {
#pragma omp simd
    for (std::int64_t d = 0; d < dim; ++d) to[d] = narrow(widen(to[d]) + from[d]);
  } else {
#pragma omp simd
    for (std::int64_t d = 0; d < dim; ++d) to[d] = narrow(from[d]);
  }
}

void store(DType dtype, const float* from, std::int64_t dim, void* to, bool accumulate) {
  const auto same = [](float x) { return x; };
  switch (dtype) {
    case DType::bfloat16:
      return store_row(from, dim, static_cast<std::uint16_t*>(to), accumulate, widen_bfloat16, narrow_bfloat16);
    case DType::float16:
      return store_row(from, dim, static_cast<std::uint16_t*>(to), accumulate, widen_float16, narrow_float16);
    default:
      return store_row(from, dim, static_cast<float*>(to), accumulate, same, same);
  }
}

void dot_rows(const float* a, const float* b, std::int64_t ld, std::int64_t rows, std::int64_t dim, float* out) {
  constexpr std::int64_t together = 8;  // independent sums hide the latency of one
  for (std::int64_t r = 0; r < rows; r += together) {
    const std::int64_t count = rows - r < together ? rows - r : together;
    float total[together] = {};
    for (std::int64_t begin = 0; begin < dim; begin += span) {
      float sum[together] = {};
      for (std::int64_t d = begin; d < (begin + span < dim ? begin + span : dim); ++d)
        for (std::int64_t i = 0; i < count; ++i) sum[i] += a[(r + i) * ld + d] * b[(r + i) * ld + d];
      for (std::int64_t i = 0; i < count; ++i) total[i] += sum[i];
    }
    for (std::int64_t i = 0; i < count; ++i) out[r + i] = total[i];
  }
}

}  // namespace
}  // namespace ringattn::cpu
