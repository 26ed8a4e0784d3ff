// AVX2 with FMA: 16 registers of 8 floats.
#define RA_WIDTH 8
#define RA_TERMS 1
#define RA_SUMMANDS 1
#define RA_AMX 0
#define RA_ROWS 6
#define RA_VECTORS 2
#define RA_KEY_BLOCK 192
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& avx2_tiles() {
  static constexpr Tiles tiles = make_tiles("avx2", 128 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
