// NEON: 32 registers of 4 floats, and FMA, on every aarch64 processor.
#define RA_WIDTH 4
#define RA_TERMS 1
#define RA_SUMMANDS 1
#define RA_AMX 0
#define RA_ROWS 6
#define RA_VECTORS 4
#define RA_KEY_BLOCK 192
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& neon_tiles() {
  static constexpr Tiles tiles = make_tiles("neon", 128 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
