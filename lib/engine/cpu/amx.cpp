// AMX: tiles of pairs in bfloat16, and the registers of AVX-512 for all that is not a product.
#define RA_WIDTH 16
#define RA_TERMS 2
#define RA_SUMMANDS 1
#define RA_AMX 1
#define RA_ROWS 32
#define RA_VECTORS 2
#define RA_KEY_BLOCK 256
#define RA_GRADIENT_ROWS 256
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& amx_tiles() {
  static constexpr Tiles tiles = make_tiles("amx", 240 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
