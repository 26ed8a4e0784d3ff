// Products of small matrices on AMX: 2 x 2 tiles of C, 32 x 32, summed over k, 16 cells at a time, for each pair of parts.
//
// A tile of A is 16 rows of 16 cells, wherever they lie at equal distances. A tile of B is 16 cells of k, 16 columns of each: a part
// of a panel as it is. Tiles are whole: rows that A lacks, and cells of k that B lacks, are zeros in a copy of its last tile. Cells
// of k that A lacks follow those that it has, and are 0, or finite: what is packed ends in zeros, and so do scores as operands.
#pragma once

#include "engine/cpu/fma/shape.h"
#include "engine/cpu/instructions/amx.h"

namespace ringattn::cpu {
namespace {

constexpr std::int64_t block_columns = 2 * amx_cells;
static_assert(columns % block_columns == 0 && tile_rows == 2 * amx_rows && terms == 2);

inline void begin_products() { configure_tiles(); }
inline void end_products() { release_tiles(); }

// 16 rows of A, `row` cells apart, in panels.
struct TileRows {
  const float* at;
  std::int64_t row, panel;
  template <int tile>
  void load(std::int64_t k) const {
    load_tile<tile>(at + k / columns * panel + k % columns, row);
  }
};

// The last rows of A with zeros instead of those that are missing.
struct LastRows {
  TileRows copy(const TileRows& from, std::int64_t rows, std::int64_t k) {
    for (std::int64_t r = 0; r < amx_rows; ++r)
      for (std::int64_t cell = 0; cell < k; cell += amx_cells)
        write(cells + r * most + cell,
              r < rows ? read(from.at + cell / columns * from.panel + r * from.row + cell % columns) : Vector{});
    return {cells, most, columns};
  }
  static constexpr std::int64_t most = summands * 128;  // of k
  static_assert(most_head_dim <= 256 && key_block <= 256 && gradient_rows <= 256);
  alignas(64) float cells[amx_rows * most];
};

// Rows x Columns tiles of C, of which `rows` rows and Columns vectors are wanted.
template <Left left, int Rows, int Columns>
void multiply_block(const Product& p, const TileRows& upper, const TileRows& lower, std::int64_t rows, const float* b,
                    float* c, const float* factor) {
  clear_tile<0>();
  if constexpr (Columns > 1) clear_tile<1>();
  if constexpr (Rows > 1) clear_tile<2>();
  if constexpr (Rows > 1 && Columns > 1) clear_tile<3>();
  const auto add = [&](std::int64_t k, const float* right) {
    load_tile<6>(right, columns);
    if constexpr (Columns > 1) load_tile<7>(right + amx_cells, columns);
    upper.load<4>(k);
    multiply_tiles<0, 4, 6>();
    if constexpr (Columns > 1) multiply_tiles<1, 4, 7>();
    if constexpr (Rows > 1) {
      lower.load<5>(k);
      multiply_tiles<2, 5, 6>();
      if constexpr (Columns > 1) multiply_tiles<3, 5, 7>();
    }
  };
  const std::int64_t rest = p.k % amx_cells, whole = p.k - rest;
  for (const PartPair pair : kept)
    for (std::int64_t k = 0; k < whole; k += amx_cells)
      add(pair.a * p.a_part + k, b + (pair.b * p.b_part + k) * columns);
  if (rest > 0) {
    alignas(64) float last[amx_cells * columns];
    for (std::int64_t k = 0; k < amx_cells; ++k)
      for (std::int64_t n = 0; n < block_columns; n += width)
        write(last + k * columns + n, k < rest ? read(b + (whole + k) * columns + n) : Vector{});
    add(whole, last);
  }

  alignas(64) float sums[tile_rows * block_columns];
  store_tile<0>(sums, block_columns);
  if constexpr (Columns > 1) store_tile<1>(sums + amx_cells, block_columns);
  if constexpr (Rows > 1) store_tile<2>(sums + amx_rows * block_columns, block_columns);
  if constexpr (Rows > 1 && Columns > 1) store_tile<3>(sums + amx_rows * block_columns + amx_cells, block_columns);
  const auto leave = [&](auto result) {
    for (std::int64_t r = 0; r < rows; ++r)
      for (int n = 0; n < Columns; ++n) {
        float* const at = c + r * c_row<left> + n * width;
        write(at, result(at, r, read(sums + r * block_columns + n * width)));
      }
  };
  const float scale = p.scale;
  if constexpr (left == Left::packed)
    leave([&](const float*, std::int64_t, Vector v) { return v * scale; });
  else if (!p.accumulate)
    leave([](const float*, std::int64_t, Vector v) { return v; });
  else if (factor == nullptr)
    leave([](const float* at, std::int64_t, Vector v) { return read(at) + v; });
  else
    leave([&](const float* at, std::int64_t r, Vector v) { return read(at) * factor[r] + v; });
}

template <Left left>
void multiply(const Product& p) {
  const std::int64_t a_panel = left == Left::packed ? p.a_panel : columns;
  for (std::int64_t first = 0; first < p.m; first += tile_rows) {
    const std::int64_t rows = p.m - first < tile_rows ? p.m - first : tile_rows;
    TileRows upper{p.a + first * a_row<left>, a_row<left>, a_panel};
    TileRows lower{upper.at + amx_rows * upper.row, upper.row, upper.panel};
    LastRows last;
    if (rows < amx_rows)
      upper = last.copy(upper, rows, (summands - 1) * p.a_part + p.k);
    else if (amx_rows < rows && rows < tile_rows)
      lower = last.copy(lower, rows - amx_rows, (summands - 1) * p.a_part + p.k);
    const float* const factor = p.factor == nullptr ? nullptr : p.factor + first;
    for (std::int64_t n = 0; n < p.n; n += block_columns) {
      const float* const b = p.b + n / columns * p.b_panel + n % columns;
      float* const c = p.c + n / columns * p.c_panel + first * c_row<left> + n % columns;
      const bool wide = p.n - n > amx_cells;
      if (rows > amx_rows)
        wide ? multiply_block<left, 2, 2>(p, upper, lower, rows, b, c, factor)
             : multiply_block<left, 2, 1>(p, upper, lower, rows, b, c, factor);
      else
        wide ? multiply_block<left, 1, 2>(p, upper, lower, rows, b, c, factor)
             : multiply_block<left, 1, 1>(p, upper, lower, rows, b, c, factor);
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
