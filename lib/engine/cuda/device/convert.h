// Conversions, and exp2.
#pragma once

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

// mov.b32: the bits of a float, and back.
__device__ __forceinline__ std::uint32_t bits_of(float x) {
#ifdef __CUDACC__
  return __float_as_uint(x);
#else
  return std::bit_cast<std::uint32_t>(x);
#endif
}
__device__ __forceinline__ float from_bits(std::uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

// The number that 16 bits are: mov.b32, or cvt.f32.f16. A float stays one.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return from_bits(std::uint32_t{x.bits} << 16); }
__device__ __forceinline__ float to_float(Float16 x) {
#ifdef __CUDACC__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return emulation::f16_value(x.bits);
#endif
}

// What a word holds: one float, or two numbers of 16 bits, the one in the low half first.
template <class T>
__device__ __forceinline__ void unpack(std::uint32_t word, float* to) {
  if constexpr (std::is_same_v<T, float>) {
    to[0] = from_bits(word);
  } else {
    to[0] = to_float(T{static_cast<std::uint16_t>(word & 0xffffU)});
    to[1] = to_float(T{static_cast<std::uint16_t>(word >> 16)});
  }
}

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

}  // namespace ringattn::cuda
