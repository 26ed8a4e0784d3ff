// Vectors of RA_WIDTH floats, which the compiler maps to the registers that it has, and elementary functions of them.
//
// The headers of this folder are the tiles of engines whose products are sums in registers, and what those of AMX share with them.
// They are included once by the file of an instruction set, which is compiled for it and defines RA_WIDTH, RA_TERMS, RA_SUMMANDS,
// RA_AMX, RA_ROWS and RA_VECTORS. Everything has internal linkage and nothing of the standard library is called that the compiler
// might emit, so that no code made for one instruction set can be linked into another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "engine/cpu/tiles.h"

namespace ringattn::cpu {
namespace {

constexpr int width = RA_WIDTH;

// Read and written at any address.
typedef float Vector __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef std::int32_t Lanes __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef std::uint16_t Halves __attribute__((vector_size(width * 2), aligned(2), may_alias));

constexpr float infinity = __builtin_huge_valf();

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool fused = true;  // a * b + c is rounded once
#else
constexpr bool fused = false;
#endif

inline Vector all(float x) { return x - Vector{}; }
inline Vector read(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void write(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
inline Bits bits(Vector v) { return reinterpret_cast<Bits&>(v); }
inline Vector from_bits(Bits b) { return reinterpret_cast<Vector&>(b); }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Whether a comparison, whose lanes are 0 or -1, holds in all of them.
inline bool all_of(Lanes holds) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(holds)) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(holds)) == -1;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(holds)) == 0xffff;
#elif defined(__ARM_NEON)
  return vmaxvq_s32(reinterpret_cast<int32x4_t>(holds)) < 0;
#else
  for (int lane = 0; lane < width; ++lane)
    if (holds[lane] == 0) return false;
  return true;
#endif
}

// Every lane combined with its partner `step` lanes away, until all lanes hold the result: a tree.
template <int step, int... lane>
inline Vector partners(Vector v, std::integer_sequence<int, lane...>) {
  return __builtin_shuffle(v, Lanes{(lane ^ step)...});
}
template <int step = width / 2, class Combine>
inline float reduce(Vector v, Combine combine) {
  if constexpr (step == 0)
    return v[0];
  else
    return reduce<step / 2>(combine(v, partners<step>(v, std::make_integer_sequence<int, width>())), combine);
}
inline float sum_of(Vector v) {
  return reduce(v, [](Vector a, Vector b) { return a + b; });
}
inline float largest_of(Vector v) { return reduce(v, larger); }

// exp(x[i]) for n vectors, stage by stage, so that none waits for another: 0 below -87.3, infinity above 88.7, NaN stays NaN.
//
//   exp(x) = 2^k exp(r), k = x / ln 2 rounded to an integer;  exp(r) = 1 + r + r^2 p(r), minimax: relative error 3e-9
//
// k ln 2 is taken off in two parts, as in Cephes, the first of them exact. At most 2 units in the last place off.
template <int n>
inline void exponentials(Vector (&x)[n]) {
  constexpr float magic = 12582912.0F;  // 1.5 2^23: the last digit of a sum with it is 1
  constexpr float p[5] = {4.999999403953552e-1F, 1.666652113199234e-1F, 4.166838899254799e-2F, 8.368716575205326e-3F,
                          1.381459878757596e-3F};
  constexpr float least = -87.33654F;
  Vector shifted[n], k[n], r[n], series[n];
  const auto each = [](auto stage) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) stage(i);
  };
  each([&](int i) { shifted[i] = x[i] * 1.44269504F + magic; });
  each([&](int i) { k[i] = shifted[i] - magic; });
  each([&](int i) { r[i] = x[i] - k[i] * 0.693359375F - k[i] * -2.12194440e-4F; });
  each([&](int i) { series[i] = p[4] * r[i] + p[3]; });
  each([&](int i) { series[i] = series[i] * r[i] + p[2]; });
  each([&](int i) { series[i] = series[i] * r[i] + p[1]; });
  each([&](int i) { series[i] = series[i] * r[i] + p[0]; });
  if constexpr (fused) {
    each([&](int i) { series[i] = series[i] * r[i] + 1.0F; });
    each([&](int i) { series[i] = series[i] * r[i] + 1.0F; });
  } else {  // the largest part first, and with what that rounds away
    each([&](int i) {
      const Vector head = 1.0F + r[i], tail = r[i] - (head - 1.0F);
      series[i] = head + (tail + series[i] * (r[i] * r[i]));
    });
  }
  each([&](int i) {
#if defined(__AVX512F__)
    x[i] = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x[i], all(least), _CMP_NLT_UQ), series[i], k[i]);
#else
    const Vector value = from_bits(bits(series[i]) + (bits(shifted[i]) << 23));  // adds to the exponent
    x[i] = x[i] < least ? Vector{} : x[i] <= 88.72283F ? value : x[i] * infinity;
#endif
  });
}
inline Vector exponential(Vector x) {
  Vector one[1] = {x};
  exponentials(one);
  return one[0];
}

// cap * tanh(product / cap), and the tangent itself, without branches: with x = product / cap,
//
//   cap tanh(x) = product n(x^2) / d(x^2)    n, d of degree 4, minimax: relative error 1.7e-8 up to |x| = 8.8, where tanh is 1
//
// Near 0 both polynomials are 1, so there the score is the product with no more rounding than that takes. At most 6 units in
// the last place off, most where tanh is nearly 1.
class Cap {
 public:
  struct Capped {
    Vector score, tangent;
  };

  // Of caps beyond what a float's inverse, or its square, can be, the scores stay finite.
  explicit Cap(float cap)
      : inverse_(1.0F / (cap > 0x1p-126F ? cap : 0x1p-126F)), limit_(cap < 0x1p116F ? 8.8F * cap : 0x1p119F) {}

  Capped operator()(Vector product) const {
    const Vector near = clamped(product);
    const Vector x = near * inverse_, square = x * x;
    Vector n = all(1.37146939e-8F), d = all(7.92279423e-7F);
    n = n * square + 2.08654001e-5F;
    d = d * square + 3.31099794e-4F;
    n = n * square + 3.51105398e-3F;
    d = d * square + 2.59357318e-2F;
    n = n * square + 0.133940205F;
    d = d * square + 0.467273384F;
    n = n * square + 1.0F;
    d = d * square + 1.0F;
    const Vector score = quotient(near * n, d);
    return {score, score * inverse_};
  }

 private:
  // NaN stays.
  Vector clamped(Vector x) const {
#if defined(__AVX512F__)
    // Where one of two is NaN these give the second.
    return _mm512_maskz_max_ps(0xffff, all(-limit_), _mm512_maskz_min_ps(0xffff, all(limit_), x));
#else
    x = x > limit_ ? all(limit_) : x;
    return x < -limit_ ? all(-limit_) : x;
#endif
  }
  static Vector quotient(Vector a, Vector b) {
#if defined(__AVX512F__)  // an estimate and its remainder, in a fourth of a division's time
    const Vector inverse = _mm512_maskz_rcp14_ps(0xffff, b), estimate = a * inverse;
    return estimate + (a - b * estimate) * inverse;
#else
    return a / b;
#endif
  }

  float inverse_, limit_;
};

// ---- conversions

inline Vector widen_bfloat16(Bits x) { return from_bits(x << 16); }

inline Vector widen_float16(Bits x) {
  const Bits sign = (x & 0x8000U) << 16, magnitude = x & 0x7fffU;
  const Vector scaled = from_bits(magnitude << 13) * 0x1p112F;  // exact, subnormals included
  const Bits special = 0x7f800000U | magnitude << 13;           // infinity and NaN keep their significand
  return from_bits((magnitude >= 0x7c00U ? special : bits(scaled)) | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
inline Bits narrow_bfloat16(Vector v) {
  const Bits x = bits(v);
  const Bits rounded = (x + 0x7fffU + (x >> 16 & 1U)) >> 16, nan = x >> 16 | 0x40U;
  return (x & 0x7fffffffU) > 0x7f800000U ? nan : rounded;
}

inline Bits narrow_float16(Vector v) {
  const Bits sign = bits(v) >> 16 & 0x8000U, magnitude = bits(v) & 0x7fffffffU;
  const Bits normal = (magnitude - (112U << 23) + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
  // Below 2^-14 the spacing is 2^-24: adding 0.5 rounds to it, ties to even.
  const Bits small = bits(from_bits(magnitude) + 0.5F) - 0x3f000000U;
  Bits result = magnitude < (113U << 23) ? small : normal;
  result = magnitude >= 0x477ff000U ? Bits{} + 0x7c00U : result;  // rounds to 2^16 or beyond
  result = magnitude > 0x7f800000U ? Bits{} + 0x7e00U : result;
  return result | sign;
}

// A row of any dtype as a sequence of vectors. `count` < width: the rest is 0 when read, and left alone when written.
template <DType dtype>
struct Row {
  using Element = std::conditional_t<dtype == DType::float32, float, std::uint16_t>;
  static constexpr bool is_raw = dtype == DType::float32;  // a vector is bytes as they lie

  static Vector read(const void* row, std::int64_t at, std::int64_t count) {
    const Element* from = static_cast<const Element*>(row) + at;
    return count >= width ? read_whole(from) : read_some(from, count);
  }
  static void write(void* row, std::int64_t at, std::int64_t count, Vector v) {
    Element* to = static_cast<Element*>(row) + at;
    return count >= width ? write_whole(to, v) : write_some(to, count, v);
  }

  // Of elements of two bytes.
  static Vector widen(Bits elements) {
    return dtype == DType::bfloat16 ? widen_bfloat16(elements) : widen_float16(elements);
  }

 private:
  static Vector read_whole(const Element* from) {
    if constexpr (dtype == DType::float32)
      return *reinterpret_cast<const Vector*>(from);
    else
      return widen(to_bits(*reinterpret_cast<const Halves*>(from)));
  }
#if defined(__AVX512F__)
  static __mmask16 first(std::int64_t count) { return static_cast<__mmask16>((1U << count) - 1U); }
  static Vector read_some(const Element* from, std::int64_t count) {
    if constexpr (dtype == DType::float32)
      return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(first(count), from));
    else
      return widen(to_bits(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(first(count), from))));
  }
  static void write_some(Element* to, std::int64_t count, Vector v) {
    if constexpr (dtype == DType::float32)
      _mm512_mask_storeu_ps(to, first(count), reinterpret_cast<__m512>(v));
    else
      _mm256_mask_storeu_epi16(to, first(count), reinterpret_cast<__m256i>(narrow(v)));
  }
#else
  static Vector read_some(const Element* from, std::int64_t count) {
    Element some[width] = {};
    __builtin_memcpy(some, from, static_cast<std::size_t>(count) * sizeof(Element));
    return read_whole(some);
  }
  static void write_some(Element* to, std::int64_t count, Vector v) {
    Element some[width];
    write_whole(some, v);
    __builtin_memcpy(to, some, static_cast<std::size_t>(count) * sizeof(Element));
  }
#endif
  static Bits to_bits(Halves halves) {
#if defined(__AVX512F__)  // GCC 12 would make two of them
    return reinterpret_cast<Bits>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves)));
#else
    return __builtin_convertvector(halves, Bits);
#endif
  }
  static void write_whole(Element* to, Vector v) {
    if constexpr (dtype == DType::float32)
      *reinterpret_cast<Vector*>(to) = v;
    else
      *reinterpret_cast<Halves*>(to) = narrow(v);
  }
  static Halves narrow(Vector v) {
    return __builtin_convertvector(dtype == DType::bfloat16 ? narrow_bfloat16(v) : narrow_float16(v), Halves);
  }
};

// Calls f(Row<dtype>).
template <class F>
auto with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16:
      return f(Row<DType::bfloat16>());
    case DType::float16:
      return f(Row<DType::float16>());
    default:
      return f(Row<DType::float32>());
  }
}

}  // namespace
}  // namespace ringattn::cpu
