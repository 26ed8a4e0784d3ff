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
