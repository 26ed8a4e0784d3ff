// The AMX instructions, by name. There are eight tiles of 16 rows of 64 bytes. With RA_EMULATE what they do, in AVX-512: for tests on
// processors without them.
#pragma once

#include <cstdint>

#include "engine/cpu/instructions/bfloat16.h"

namespace ringattn::cpu {
namespace {

constexpr int amx_rows = 16, amx_cells = 16;  // of a tile

#ifdef RA_EMULATE
struct AmxTiles {
  alignas(64) float rows[8][amx_rows][amx_cells];
  bool configured;
};
thread_local AmxTiles amx;

inline float* amx_row(int tile, std::int64_t row) {
  if (!amx.configured) __builtin_trap();
  return amx.rows[tile][row];
}
#endif

// All eight tiles, of the greatest size, until release_tiles: a thread that holds none is switched faster. LDTILECFG.
inline void configure_tiles() {
#ifdef RA_EMULATE
  amx.configured = true;
#else
  struct {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  asm volatile("ldtilecfg %0" ::"m"(config));
#endif
}
// TILERELEASE.
inline void release_tiles() {
#ifdef RA_EMULATE
  amx.configured = false;
#else
  asm volatile("tilerelease" ::: "memory");
#endif
}

// Rows from memory, `stride` floats apart. TILELOADD.
template <int tile>
inline void load_tile(const float* from, std::int64_t stride) {
#ifdef RA_EMULATE
  for (std::int64_t r = 0; r < amx_rows; ++r) __builtin_memcpy(amx_row(tile, r), from + r * stride, 64);
#else
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(tile) : "memory");
#endif
}
// TILESTORED.
template <int tile>
inline void store_tile(float* to, std::int64_t stride) {
#ifdef RA_EMULATE
  for (std::int64_t r = 0; r < amx_rows; ++r) __builtin_memcpy(to + r * stride, amx_row(tile, r), 64);
#else
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(tile) : "memory");
#endif
}
// TILEZERO.
template <int tile>
inline void clear_tile() {
#ifdef RA_EMULATE
  __builtin_memset(amx_row(tile, 0), 0, sizeof amx.rows[tile]);
#else
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
#endif
}
// c += a b, a being rows of 16 cells and b 16 rows of cells. TDPBF16PS: the products of all cells' first terms are summed, and
// those of the second terms, and then both sums are added to c.
template <int c, int a, int b>
inline void multiply_tiles() {
#ifdef RA_EMULATE
  for (std::int64_t r = 0; r < amx_rows; ++r) {
    __m512 first = _mm512_setzero_ps(), second = first;
    for (std::int64_t k = 0; k < amx_cells; ++k) {
      const __m512i left = _mm512_castps_si512(_mm512_set1_ps(amx_row(a, r)[k])),
                    right = _mm512_castps_si512(_mm512_load_ps(amx_row(b, k)));
      first = flushed(_mm512_fmadd_ps(low_halves(left), low_halves(right), first));
      second = flushed(_mm512_fmadd_ps(high_halves(left), high_halves(right), second));
    }
    float* const to = amx_row(c, r);
    _mm512_store_ps(to, flushed(_mm512_add_ps(_mm512_load_ps(to), flushed(_mm512_add_ps(first, second)))));
  }
#else
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
#endif
}

}  // namespace
}  // namespace ringattn::cpu
