// The portable engine's tiles: whatever the compiler's baseline for the target offers.
#define RA_WIDTH 4
#define RA_ROWS 6
#define RA_VECTORS 2
#include "engine/cpu/tiles_body.h"

namespace ringattn::cpu {

const Tiles& portable_tiles() {
  static constexpr Tiles tiles{"portable", multiply, softmax, gradient, load, transpose, scale, store, dot_rows};
  return tiles;
}

}  // namespace ringattn::cpu
