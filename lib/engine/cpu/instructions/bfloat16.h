// The AVX512_BF16 instructions, by name. With RA_EMULATE what they do, in AVX-512: for tests on processors without them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ringattn::cpu {
namespace {

#ifdef RA_EMULATE

typedef std::uint32_t Emulated __attribute__((vector_size(64)));
inline __m512 as_floats(Emulated x) { return reinterpret_cast<__m512>(x); }

// What is smaller than a normal number is taken, and given, as 0.
inline Emulated flushed(Emulated x) { return (x & 0x7fffffffU) < 0x00800000U ? x & 0x80000000U : x; }
inline __m512 flushed(__m512 x) { return as_floats(flushed(reinterpret_cast<Emulated>(x))); }
inline __m512 low_halves(__m512i x) { return as_floats(flushed(reinterpret_cast<Emulated>(x) << 16)); }
inline __m512 high_halves(__m512i x) { return as_floats(flushed(reinterpret_cast<Emulated>(x) & 0xffff0000U)); }
// To nearest, ties to even; NaN stays NaN.
inline Emulated rounded(__m512 v) {
  const Emulated x = flushed(reinterpret_cast<Emulated>(v));
  const Emulated nearest = (x + 0x7fffU + (x >> 16 & 1U)) >> 16;
  return (x & 0x7fffffffU) > 0x7f800000U ? x >> 16 | 0x40U : nearest;
}

#endif

// sum + a1 b1 + a0 b0 in every lane, a and b being pairs of bfloat16 of which the first is the low half. VDPBF16PS: the
// high halves' product is added first, and each sum is rounded.
inline __m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
#ifdef RA_EMULATE
  const __m512 high = flushed(_mm512_fmadd_ps(high_halves(a), high_halves(b), flushed(sum)));
  return flushed(_mm512_fmadd_ps(low_halves(a), low_halves(b), high));
#else
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#endif
}

// 32 numbers rounded to nearest: those of `low` in the low 16 halves. VCVTNE2PS2BF16.
inline __m512i to_bfloat16(__m512 low, __m512 high) {
#ifdef RA_EMULATE
  const Emulated rounded_low = rounded(low), rounded_high = rounded(high);
  alignas(64) std::uint16_t halves[32];
  for (int i = 0; i < 16; ++i) {
    halves[i] = static_cast<std::uint16_t>(rounded_low[i]);
    halves[16 + i] = static_cast<std::uint16_t>(rounded_high[i]);
  }
  return _mm512_load_si512(halves);
#else
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
#endif
}

}  // namespace
}  // namespace ringattn::cpu
