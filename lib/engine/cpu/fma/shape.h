// Of what size and where the operands and results of products are.
#pragma once

#include "engine/cpu/fma/cells.h"
#include "engine/cpu/fma/parts.h"

namespace ringattn::cpu {
namespace {

constexpr int tile_rows = RA_ROWS;
constexpr int tile_vectors = RA_VECTORS;
constexpr int columns = width * tile_vectors;  // of a panel
static_assert(padding % columns == 0);

constexpr std::int64_t strip_rows = on_amx ? tile_rows : 2 * tile_rows;  // whose scores are made and used at a time

constexpr std::int64_t key_block = RA_KEY_BLOCK;
constexpr std::int64_t gradient_rows = RA_GRADIENT_ROWS;
constexpr std::int64_t score_stride = key_block;  // floats between rows of scores
static_assert(key_block % columns == 0);

constexpr std::int64_t span = fused ? INT64_MAX : 16;

// Sums begin at a multiple of this many keys or rows, wherever the first one is that matters, so that no bit depends on it.
constexpr std::int64_t granule = on_amx ? padding : 16;
static_assert(granule % width == 0 && granule % terms == 0 && (span % granule == 0 || fused));
constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t whole_granules_before(std::int64_t n) { return n / granule * granule; }

// How the left operand lies, and C: floats, or cells, from one row to the next, and from one k to the next within a panel.
template <Left left>
constexpr std::int64_t a_row = left == Left::packed    ? columns
                               : left == Left::weights ? (summands == 1 ? score_stride : cells(key_block))
                               : on_amx                ? cells(gradient_rows)
                                                       : 1;
template <Left left>
constexpr std::int64_t a_step = left == Left::transposed && !on_amx ? score_stride : 1;
// And from one part of scores to the next.
template <Left left>
constexpr std::int64_t score_part = left == Left::weights ? key_block / terms : gradient_rows / terms;
template <Left left>
constexpr std::int64_t c_row = left == Left::packed ? score_stride : columns;

}  // namespace
}  // namespace ringattn::cpu
