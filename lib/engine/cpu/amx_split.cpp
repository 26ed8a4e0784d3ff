// AMX for floats: each is the sum of three parts in bfloat16.
#define RA_WIDTH 16
#define RA_TERMS 2
#define RA_SUMMANDS 3
#define RA_AMX 1
#define RA_ROWS 32
#define RA_VECTORS 4  // as those of AVX-512, which take the blocks that these do not
#define RA_KEY_BLOCK 256
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& amx_split_tiles() {
  static constexpr Tiles tiles = make_tiles("amx_split", 300 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
