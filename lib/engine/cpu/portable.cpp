// The portable engine: whatever the compiler's baseline for the target offers.
#define RA_WIDTH 4
#define RA_TERMS 1
#define RA_SUMMANDS 1
#define RA_AMX 0
#define RA_ROWS 6
#define RA_VECTORS 2
#define RA_KEY_BLOCK 192
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& portable_tiles() {
  static constexpr Tiles tiles = make_tiles("portable", 128 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
