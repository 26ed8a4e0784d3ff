// The innermost tiles: all that differs from one instruction set to another.
//
// An instruction set supplies one table of functions; forward.cpp and backward.cpp are written once above it. What lies between
// them is packed in panels: of a matrix [rows, dim], panel p holds columns p * w .. p * w + w - 1 of every row, row after row,
// where w, the columns of a register tile, is the instruction set's own affair. Panels are filled up with zeros, so that a
// packed matrix takes rows * padded(dim) floats. K and V^T stand with keys as columns, [dim, keys], where a product sums over dim.
//
// Results are floats. An operand of a product consists of cells of four bytes, each of which holds one term of the sum, a float,
// or two that are neighbours along the dimension that is summed over, in bfloat16: as a left operand [rows, dim] becomes
// [rows, cells(dim)], as a right one that is summed over rows [cells(rows), dim]. What is missing in a last cell is 0.
// A float may also be the sum of three parts in bfloat16: then the dimension that is summed over holds the cells of all first
// parts, and then those of the second and the third ones.
#pragma once

#include <cstdint>

#include "plan/problem.h"

namespace ringattn::cpu {

// What a packed row is a multiple of: the columns of the widest register tile, in floats.
constexpr std::int64_t padding = 64;
constexpr std::int64_t padded(std::int64_t n) { return (n + padding - 1) / padding * padding; }

// Keys of a block that one row sees: lo <= j < hi.
struct Visible {
  std::int32_t lo, hi;
};

// Rows of a tensor, `stride` elements apart, and where they are packed: `panel` floats, or cells, from one panel to the next.
// Cells of two terms and one part take bfloat16 only.
struct PackedRows {
  DType dtype;
  const void* from;
  std::int64_t stride, rows, dim;
  float* to;
  std::int64_t panel;
};

// Back from panels to fp32 rows, `stride` floats apart: to = scale * from, or to += scale * from.
struct UnpackedRows {
  const float* from;
  std::int64_t panel, rows, dim;
  float* to;
  std::int64_t stride;
  bool accumulate = false;
  float scale = 1;
};

// The results of packed rows: out = running / sum, or 0 where the sum is, rounded once to rows `stride` elements apart.
struct FinishedRows {
  const float* running;
  std::int64_t panel, rows, dim;
  const float* sum;  // [rows]
  DType dtype;
  void* out;
  std::int64_t stride;
};

// A row, as modifiers see it.
struct ModifiedRow {
  std::int64_t position;     // of the key that it faces
  float slope;               // of alibi_slopes
  std::uint32_t dropout[2];  // dropout_row_key
};

// What a problem's modifiers do to a tile: score = score - slope |distance| + bias, and weights that are dropped or made larger once they
// are in the sum. What is null does nothing. What there is of each key goes on, with anything, up to a multiple of `padding`.
struct Modifiers {
  const ModifiedRow* rows;  // [rows]
  std::int64_t first;       // position that the keys' are counted from, as the rows' are
  const float* offsets;     // [keys], positions from there: exact below 2^24
  const float* bias;        // [keys]
  // Dropout: key j has word words[j] % 4 of the group of four keys groups[words[j] / 4]. Both ascend. There are `padding` more groups
  // than keys, the last of them any.
  const std::uint64_t* groups;
  const std::int32_t* words;  // [keys]
  std::uint64_t dropout_offset;
  std::uint32_t threshold;  // dropout_threshold
  float kept;               // what kept weights are multiplied by
};

// Rows of queries attend to a block of keys. [rows]: one per row.
struct AttendTile {
  std::int64_t rows, keys, dim, dim_v;
  const float *q, *k, *v;  // cells, packed [rows, dim], [dim, keys], [keys, dim_v]
  bool finite;             // all of v
  const Visible* visible;  // [rows]
  float scale, softcap;
  float* out;        // packed [rows, dim_v], running
  float *max, *sum;  // [rows], running
  const Modifiers* modifiers = nullptr;
};

// The same for rows so few that keys and values are taken where they lie, `stride` elements apart.
struct FewTile {
  std::int64_t rows, keys, dim, dim_v;  // rows <= few_rows, keys <= few_keys
  const float* q;                       // packed [rows, dim]
  DType dtype;
  const void *k, *v;
  std::int64_t k_stride, v_stride;
  const void* next_k;  // keys that come next, `next_keys` of them: they are asked for early
  std::int64_t next_keys;
  const Visible* visible;  // [rows]
  float scale, softcap;
  float* out;        // packed [rows, dim_v], running
  float *max, *sum;  // [rows], running
  const Modifiers* modifiers = nullptr;
};

// Gradients of a tile of query rows and a block of keys. dq and dk lack the softmax scale.
struct GradientTile {
  std::int64_t rows, keys, dim, dim_v;
  const float *q, *dout;                   // left operands: cells, packed [rows, dim], [rows, dim_v]
  const float *q_right, *dout_right;       // the same as right operands, summed over rows
  const float *k, *k_columns, *v_columns;  // cells, packed [keys, dim], [dim, keys], [dim_v, keys]
  bool finite;                             // all of q, dout, k and v
  const Visible* visible;                  // [rows]
  float scale, softcap;
  const float *lse, *delta;  // [rows]
  float* scores;             // room for Tiles::score_floats
  float *dk, *dv, *dq;       // packed [keys, dim], [keys, dim_v], [rows, dim], added to
  const Modifiers* modifiers = nullptr;
};

// delta[r] = dot(a row, b row).
struct DotRows {
  struct Rows {
    DType dtype;
    const void* data;
    std::int64_t stride;
  } a, b;
  std::int64_t rows, dim;
  float* out;
};

struct Parts;  // fma/parts.h

struct Tiles {
  const char* name;
  std::int64_t terms;          // of a cell
  std::int64_t summands;       // of a number
  std::int64_t part_multiple;  // of cells, that one part of a row or column takes
  std::int64_t columns;        // of a panel
  std::int64_t key_block;      // keys that are packed and attended at a time
  std::int64_t rows;           // of a register tile
  std::int64_t unit_floats;  // forward: a packed block and the query rows that share it, streamed from the second cache
  std::int64_t gradient_rows;  // and backward
  std::int64_t score_floats;   // of GradientTile::scores
  std::int64_t few_rows;       // that attend_few takes: none where cells are not floats
  std::int64_t few_keys;

  std::int64_t cells(std::int64_t n) const {
    const std::int64_t multiple = terms * part_multiple;
    return (n + multiple - 1) / multiple * part_multiple * summands;
  }
  // They do not take blocks of which something is not finite, or so small or large that its parts or their products would not be exact.
  bool ordinary_only() const { return summands > 1; }

  bool (*pack_rows)(const PackedRows& rows);  // as floats; they return whether all values are finite, or ordinary
  bool (*pack_left)(const PackedRows& rows);  // as cells of a left operand
  bool (*pack_right)(const PackedRows& rows);
  bool (*pack_columns)(const PackedRows& rows);  // as a right operand that is summed over dim
  void (*unpack_rows)(const UnpackedRows& rows);
  void (*attend)(const AttendTile& tile);
  void (*attend_few)(const FewTile& tile);
  void (*finish)(const FinishedRows& rows);
  void (*differentiate)(const GradientTile& tile);

  // to = from, dense, from any dtype.
  void (*load)(DType dtype, const void* from, std::int64_t count, float* to);
  // to = from or to += from, dense; `to` is rounded to dtype once.
  void (*store)(DType dtype, const float* from, std::int64_t count, void* to, bool accumulate);
  void (*dot_rows)(const DotRows& rows);

  const Parts* parts = nullptr;  // what the functions above are made of, where they are made of products of floats
};

// Of every instruction set that the library is built with; registry.cpp knows which of them run here.
const Tiles& portable_tiles();
const Tiles& avx2_tiles();
const Tiles& avx512_tiles();
const Tiles& avx512_bf16_tiles();
const Tiles& amx_tiles();
const Tiles& neon_tiles();
const Tiles& amx_split_tiles();

}  // namespace ringattn::cpu
