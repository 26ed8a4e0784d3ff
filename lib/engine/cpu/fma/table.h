// The table of the instruction set that this is compiled for.
#pragma once

#include "engine/cpu/fma/differentiate.h"
#if RA_TERMS == 1
#include "engine/cpu/fma/few.h"
#endif

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

#if RA_TERMS != 1
constexpr std::int64_t few_rows = 0, few_keys = 0;
constexpr void (*attend_few)(const FewTile&) = nullptr;
#endif

constexpr Tiles make_tiles(const char* name, std::int64_t unit_floats) {
  return {name,          terms,       summands,    part_multiple, columns,
          key_block,     tile_rows,   unit_floats, gradient_rows, Scores::floats,
          few_rows,      few_keys,    pack_rows,   pack_left,     pack_right,
          pack_columns,  unpack_rows, attend,      attend_few,    finish,
          differentiate, load,        store,       dot_rows,      terms == 1 ? &parts : nullptr};
}

}  // namespace
}  // namespace ringattn::cpu
