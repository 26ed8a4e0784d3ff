// Between steps a row has (O, max, sum), so far, of the keys that it has seen: O / sum is their weighted mean of V, and
// log(2^max sum) their log-sum-exp. max, in units of log 2, is a number that the weights are relative to; without any key it is
// -infinity, and sum is 0. What dropout keeps is made larger where the row ends.
#pragma once

#include "engine/cuda/device/convert.h"

namespace ringattn::cuda {

constexpr float minus_infinity = -__builtin_huge_valf();
constexpr float log2_of_e = 1.44269504088896340736F;
constexpr float log_2 = 0.693147181F, log_2_rest = -1.90465421e-9F;  // ln 2 is their sum

// Rounded to its type.
__device__ __forceinline__ void store_number(float* to, float x) { *to = x; }
template <class T>
__device__ __forceinline__ void store_number(T* to, float x) {
  to->bits = static_cast<std::uint16_t>(pack<T>(x, 0.0F) & 0xffffU);
}

// What x log2(e) has lost where it was rounded to `rounded`; 0 where that is not finite.
__device__ __forceinline__ float rest_of_log2(float x, float rounded) {
  constexpr float log2_of_e_rest = 1.92596299e-8F;  // log2(e) is the sum of both
  return is_finite(rounded) ? multiply_add(x, log2_of_e, -rounded) + x * log2_of_e_rest : 0.0F;
}

struct RowState {
  float max, sum;
};
// Of keys with that log-sum-exp; of -infinity none. The sum is what rounding max has lost.
__device__ __forceinline__ RowState begin_with(float sink) {
  if (sink == minus_infinity) return {minus_infinity, 0.0F};
  const float max = sink * log2_of_e;
  return {max, multiply_add(rest_of_log2(sink, max), log_2, 1.0F)};
}

// log(2^max sum): what cancels is taken away before it is rounded.
__device__ __forceinline__ float log_of(float max, float sum) {
  if (sum == 0.0F) return minus_infinity;
  const std::int32_t exponent = static_cast<std::int32_t>(bits_of(sum) >> 23) - 127;
  const float whole = max + static_cast<float>(exponent);
  const float part = float_of((bits_of(sum) & 0x007fffffU) | 0x3f800000U);  // 1 .. 2, or what is not finite
  return multiply_add(whole, log_2, multiply_add(whole, log_2_rest, natural_logarithm(is_finite(sum) ? part : sum)));
}

}  // namespace ringattn::cuda
