// AVX-512: 32 registers of 16 floats.
#define RA_WIDTH 16
#define RA_TERMS 1
#define RA_SUMMANDS 1
#define RA_AMX 0
#define RA_ROWS 6
#define RA_VECTORS 4
#define RA_KEY_BLOCK 256
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& avx512_tiles() {
  static constexpr Tiles tiles = make_tiles("avx512", 544 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
