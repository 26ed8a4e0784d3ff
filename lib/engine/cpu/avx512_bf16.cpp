// AVX512_BF16: the registers of AVX-512, and products of pairs in bfloat16.
#define RA_WIDTH 16
#define RA_TERMS 2
#define RA_SUMMANDS 1
#define RA_AMX 0
#define RA_ROWS 6
#define RA_VECTORS 4
#define RA_KEY_BLOCK 256
#define RA_GRADIENT_ROWS 96
#include "engine/cpu/fma/table.h"

namespace ringattn::cpu {

const Tiles& avx512_bf16_tiles() {
  static constexpr Tiles tiles = make_tiles("avx512_bf16", 208 * 1024);
  return tiles;
}

}  // namespace ringattn::cpu
