// The cells of operands (tiles.h): a float, or where RA_TERMS is 2 a pair of numbers in bfloat16 whose products are added by one
// instruction.
#pragma once

#include "engine/cpu/fma/vector.h"
#if RA_TERMS == 2
#include "engine/cpu/instructions/bfloat16.h"
#endif

namespace ringattn::cpu {
namespace {

constexpr int terms = RA_TERMS;
constexpr bool on_amx = RA_AMX;  // and not in registers alone
constexpr int summands = RA_SUMMANDS;
constexpr int part_multiple = summands == 1 ? 1 : 16;
// That one part of n numbers takes, and all.
constexpr std::int64_t part_cells(std::int64_t n) {
  constexpr std::int64_t multiple = terms * part_multiple;
  return (n + multiple - 1) / multiple * part_multiple;
}
constexpr std::int64_t cells(std::int64_t n) { return summands * part_cells(n); }

#if RA_TERMS == 1

inline void add_product(Vector& sum, Vector a, Vector b) { sum += a * b; }
// Exactly 0 where cells are finite.
inline Vector zero_if_finite(Vector cells) { return cells * 0.0F; }

// Calls f(row) where row.read(from, at, count) gives the cells that begin with element `at`, `count` being left.
template <class F>
auto with_cells(DType dtype, F&& f) {
  return with_dtype(dtype, f);
}

#else

inline Bits low_half(Vector cells) { return bits(cells) << 16; }
inline Bits high_half(Vector cells) { return bits(cells) & 0xffff0000U; }

inline void add_product(Vector& sum, Vector a, Vector b) {
  sum = dot_pairs(sum, _mm512_castps_si512(a), _mm512_castps_si512(b));
}
// As a tile of AMX is summed: first terms and second terms by themselves.
inline Vector sum_of_products(const Vector* a, const Vector* b, std::int64_t count) {
  Vector first = {}, second = {};
  for (std::int64_t k = 0; k < count; ++k) {
    first += from_bits(low_half(a[k])) * from_bits(low_half(b[k]));
    second += from_bits(high_half(a[k])) * from_bits(high_half(b[k]));
  }
  return first + second;
}
inline Vector zero_if_finite(Vector cells) {
  return from_bits(low_half(cells)) * 0.0F + from_bits(high_half(cells)) * 0.0F;
}

// Cells of numbers that are representable in bfloat16, one from each.
inline Vector paired(Vector low, Vector high) { return from_bits(bits(low) >> 16 | bits(high)); }

// Cells of 2 * width neighbours in a row, rounded.
inline Vector round_columns(Vector first, Vector second) { return _mm512_castsi512_ps(to_bfloat16(first, second)); }
// Cells of two rows, rounded.
inline Vector round_rows(Vector low, Vector high) {
  alignas(64) static constexpr std::uint16_t order[2 * width] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(order), to_bfloat16(low, high)));
}

// The parts of numbers: each what those before it have left over, rounded half away from zero, and at last the rest.
inline void split(Vector x, Vector (&part)[summands]) {
#pragma GCC unroll 3
  for (int i = 0; i + 1 < summands; ++i) {
    part[i] = from_bits((bits(x) + 0x8000U) & 0xffff0000U);
    x -= part[i];
  }
  part[summands - 1] = x;
}

// The products of parts that are made, the smallest first. Those that are not are less than 2^-23 of the product.
struct PartPair {
  int a, b;
};
#if RA_SUMMANDS == 1
constexpr PartPair kept[] = {{0, 0}};
#else
constexpr PartPair kept[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
#endif

struct PairedRow {
  static constexpr bool is_raw = true;
  static Vector read(const void* row, std::int64_t at, std::int64_t count) {
    const std::uint16_t* const from = static_cast<const std::uint16_t*>(row) + at;
    const __mmask32 all = ~__mmask32{0}, some = count >= 2 * width ? all : (__mmask32{1} << count) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(some, from));
  }
};
template <class F>
auto with_cells(DType, F&& f) {
  return f(PairedRow());
}

#endif

}  // namespace
}  // namespace ringattn::cpu
