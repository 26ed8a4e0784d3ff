// Block sizes of the tile algorithm, and the memory that one thread needs for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/memory.h"
#include "engine/cpu/tiles.h"
#include "plan/interval.h"
#include "plan/problem.h"

namespace ringattn::cpu {

constexpr std::int64_t key_block = 128;     // keys that are loaded and multiplied at a time
constexpr std::int64_t query_tile = 32;     // rows of a forward tile: its scores stay in the first cache
constexpr std::int64_t gradient_tile = 64;  // rows of a backward tile
static_assert(key_block % padding == 0);

constexpr std::int64_t most_unit_rows = 512;

// Rows of one head that a forward unit takes: enough that loading K and V is a small part, few enough that every thread gets
// its share of units. Results do not depend on it.
inline std::int64_t forward_unit_rows(const Problem& problem, std::int64_t query_rows, int threads) {
  constexpr std::int64_t units_per_thread = 16, least = 64;
  const std::int64_t all = problem.batch * problem.num_heads_q * query_rows;
  const std::int64_t rows = std::clamp(all / (units_per_thread * threads), least, most_unit_rows);
  return std::max<std::int64_t>(1, rows / problem.group());
}

struct ForwardScratch {
  float *q, *out;       // [rows of the unit in all heads, padded dim]
  float *rows, *k, *v;  // keys as loaded, transposed [dim, key_block], and values
  float* scores;        // [query_tile, key_block]
  float *max, *sum;     // running, of all rows
  float* factor;        // of a tile
  Interval* seen;       // of each row of a head
  Visible* visible;     // of a tile

  static ForwardScratch take(Arena& arena, const Problem& p) {
    const std::int64_t most = std::max(most_unit_rows, p.group());
    ForwardScratch s;
    s.q = arena.take<float>(most * padded(p.head_dim));
    s.out = arena.take<float>(most * padded(p.head_dim_v));
    s.rows = arena.take<float>(key_block * padded(p.head_dim));
    s.k = arena.take<float>(key_block * p.head_dim);
    s.v = arena.take<float>(key_block * padded(p.head_dim_v));
    s.scores = arena.take<float>(query_tile * key_block);
    s.max = arena.take<float>(most);
    s.sum = arena.take<float>(most);
    s.factor = arena.take<float>(query_tile);
    s.seen = arena.take<Interval>(most_unit_rows);
    s.visible = arena.take<Visible>(query_tile);
    return s;
  }
  static std::size_t bytes(const Problem& p) {
    Arena arena;
    take(arena, p);
    return arena.size();
  }
  static ForwardScratch of_thread(const Problem& p, void* base, int slot) {
    Arena arena(static_cast<std::byte*>(base) + bytes(p) * static_cast<std::size_t>(slot));
    return take(arena, p);
  }
};

struct BackwardScratch {
  float *k, *k_columns;  // keys [key_block, padded dim], and transposed [dim, key_block]
  float *v, *v_columns;
  float *dk, *dv;        // of the block, [key_block, padded dim]
  float *q, *dout, *dq;  // of the tile, [gradient_tile, padded dim]
  float *scores, *dscores;
  Interval* seen;
  Visible* visible;

  static BackwardScratch take(Arena& arena, const Problem& p) {
    const std::int64_t dim = padded(p.head_dim), dim_v = padded(p.head_dim_v);
    BackwardScratch s;
    s.k = arena.take<float>(key_block * dim);
    s.k_columns = arena.take<float>(key_block * p.head_dim);
    s.v = arena.take<float>(key_block * dim_v);
    s.v_columns = arena.take<float>(key_block * p.head_dim_v);
    s.dk = arena.take<float>(key_block * dim);
    s.dv = arena.take<float>(key_block * dim_v);
    s.q = arena.take<float>(gradient_tile * dim);
    s.dout = arena.take<float>(gradient_tile * dim_v);
    s.dq = arena.take<float>(gradient_tile * dim);
    s.scores = arena.take<float>(gradient_tile * key_block);
    s.dscores = arena.take<float>(gradient_tile * key_block);
    s.seen = arena.take<Interval>(gradient_tile);
    s.visible = arena.take<Visible>(gradient_tile);
    return s;
  }
  static std::size_t bytes(const Problem& p) {
    Arena arena;
    take(arena, p);
    return arena.size();
  }
  static BackwardScratch of_thread(const Problem& p, void* base, int slot) {
    Arena arena(static_cast<std::byte*>(base) + bytes(p) * static_cast<std::size_t>(slot));
    return take(arena, p);
  }
};

// The part of a block of keys that a tile of rows sees.
struct Columns {
  std::int64_t begin = 0;  // a multiple of `padding`
  std::int64_t count = 0;  // 0: no row sees any
};

// Rows first, first + 1, ... of `seen`, wrapping to 0 at `period`, clipped to keys block .. block + count - 1 and counted
// from the first column.
inline Columns clip(const Interval* seen, std::int64_t first, std::int64_t period, std::int64_t rows,
                    std::int64_t block, std::int64_t count, Visible* visible) {
  std::int64_t begin = count, end = 0;
  for (std::int64_t n = 0, i = first; n < rows; ++n, i = i + 1 == period ? 0 : i + 1) {
    const std::int64_t lo = std::clamp<std::int64_t>(seen[i].lo - block, 0, count);
    const std::int64_t hi = std::clamp<std::int64_t>(seen[i].hi - block, 0, count);
    visible[n] = {static_cast<std::int32_t>(lo), static_cast<std::int32_t>(hi)};
    if (lo == hi) continue;
    begin = std::min(begin, lo);
    end = std::max(end, hi);
  }
  if (begin >= end) return {};
  begin = begin / padding * padding;
  for (std::int64_t n = 0; n < rows; ++n) {
    const bool empty = visible[n].lo == visible[n].hi;
    visible[n].lo = empty ? 0 : visible[n].lo - static_cast<std::int32_t>(begin);
    visible[n].hi = empty ? 0 : visible[n].hi - static_cast<std::int32_t>(begin);
  }
  return {begin, end - begin};
}

// product.a holds weights [rows, keys], 0 where hidden. Where B is not finite, each row is multiplied by what it sees only.
inline void multiply_weights(const Tiles& tiles, const Product& product, const Visible* visible, bool finite) {
  if (finite) return tiles.multiply(product);
  for (std::int64_t i = 0; i < product.m; ++i) {
    Product row = product;
    row.m = 1;
    row.k = visible[i].hi - visible[i].lo;
    row.a += i * product.a_row + visible[i].lo * product.a_col;
    row.b += visible[i].lo * product.ldb;
    row.c += i * product.ldc;
    tiles.multiply(row);
  }
}

// The same with the weights transposed: row j of the product is key j, and sees the rows i with lo <= j < hi. These are
// neighbours, since intervals ascend with the rows of one piece.
inline void multiply_transposed_weights(const Tiles& tiles, const Product& product, const Visible* visible,
                                        bool finite) {
  if (finite) return tiles.multiply(product);
  for (std::int64_t j = 0; j < product.m; ++j) {
    std::int64_t first = 0, end = product.k;
    while (first < end && !(visible[first].lo <= j && j < visible[first].hi)) ++first;
    while (end > first && !(visible[end - 1].lo <= j && j < visible[end - 1].hi)) --end;
    Product key = product;
    key.m = 1;
    key.k = end - first;
    key.a += j * product.a_row + first * product.a_col;
    key.b += first * product.ldb;
    key.c += j * product.ldc;
    tiles.multiply(key);
  }
}

}  // namespace ringattn::cpu
