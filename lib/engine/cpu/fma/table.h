// The table of the instruction set that this is compiled for.
#pragma once

#include "engine/cpu/fma/differentiate.h"

namespace ringattn::cpu {
namespace {

void multiply_any(Left left, const Product& product) {
  switch (left) {
    case Left::packed:
      return multiply<Left::packed>(product);
    case Left::weights:
      return multiply<Left::weights>(product);
    case Left::transposed:
      return multiply<Left::transposed>(product);
  }
}

constexpr Parts parts = {score_stride, multiply_any, softmax, differentiate_scores};

constexpr Tiles make_tiles(const char* name, std::int64_t unit_floats) {
  return {name,          terms,
          summands,      part_multiple,
          columns,       key_block,
          tile_rows,     unit_floats,
          gradient_rows, Scores::floats,
          pack_rows,     pack_left,
          pack_right,    pack_columns,
          unpack_rows,   attend,
          finish,        differentiate,
          load,          store,
          dot_rows,      terms == 1 ? &parts : nullptr};
}

}  // namespace
}  // namespace ringattn::cpu
