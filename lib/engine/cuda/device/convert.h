// Conversions and functions of numbers.
#pragma once

#include <cmath>
#include <type_traits>

#include "engine/cuda/device/target.h"

namespace ringattn::cuda {

// cvt.rn.bf16x2.f32 or cvt.rn.f16x2.f32: two numbers, rounded to nearest even, `low` in the low half. What is too large becomes
// infinity; NaN becomes 0x7fff.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
#ifdef __CUDACC__
  std::uint32_t packed;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const auto bits = std::is_same_v<T, BFloat16> ? emulation::bf16_bits : emulation::f16_bits;
  return std::uint32_t{bits(low)} | std::uint32_t{bits(high)} << 16;
#endif
}

// The number in the low half of what pack has made: shl.b32 or cvt.f32.f16.
template <class T>
__device__ __forceinline__ float unpack_low(std::uint32_t packed) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, BFloat16>) return __uint_as_float(packed << 16);
  float x;
  asm("{.reg .b16 low, high;\n mov.b32 {low, high}, %1;\n cvt.f32.f16 %0, low;}" : "=f"(x) : "r"(packed));
  return x;
#else
  const auto bits = static_cast<std::uint16_t>(packed);
  return std::is_same_v<T, BFloat16> ? emulation::bf16_value(bits) : emulation::f16_value(bits);
#endif
}
template <class T>
__device__ __forceinline__ float unpack_high(std::uint32_t packed) {
  return unpack_low<T>(packed >> 16);
}

// mov.b32
__device__ __forceinline__ std::uint32_t bits_of(float x) {
#ifdef __CUDACC__
  return __float_as_uint(x);
#else
  return std::bit_cast<std::uint32_t>(x);
#endif
}
__device__ __forceinline__ float float_of(std::uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

__device__ __forceinline__ bool is_finite(float x) { return (bits_of(x) & 0x7f800000U) != 0x7f800000U; }

// cvt.rna.tf32.f32: to 10 bits behind the point, to nearest, halves away from zero; the low 13 bits are zero.
__device__ __forceinline__ std::uint32_t round_to_tf32(float x) {
#ifdef __CUDACC__
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return emulation::tf32_bits(x);
#endif
}

// ex2.approx.ftz.f32: 2^x with a relative error of at most 2^-22; subnormal numbers, x or 2^x, are taken for zero.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulation::exp2_ftz(x);
#endif
}

// fma.rn.f32: a b + c, rounded once.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
// The larger of two numbers, or the one that is a number.
__device__ __forceinline__ float larger(float a, float b) { return ::fmaxf(a, b); }
// To within two units of the last place, by the CUDA math library on a GPU.
__device__ __forceinline__ float hyperbolic_tangent(float x) { return ::tanhf(x); }
__device__ __forceinline__ float natural_logarithm(float x) { return ::logf(x); }
// The same in fp64.
__device__ __forceinline__ void sine_and_cosine(double x, double* sine, double* cosine) {
#ifdef __CUDACC__
  ::sincos(x, sine, cosine);
#else
  *sine = std::sin(x);
  *cosine = std::cos(x);
#endif
}
__device__ __forceinline__ double square_root(double x) { return ::sqrt(x); }

// A number of any type as fp32, which has them all.
__device__ __forceinline__ float number_of(float x) { return x; }
template <class T>
__device__ __forceinline__ float number_of(T x) {
  return unpack_low<T>(x.bits);
}

}  // namespace ringattn::cuda
