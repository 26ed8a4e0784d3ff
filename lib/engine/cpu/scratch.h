// The memory that one thread needs for the tile algorithm.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/memory.h"
#include "engine/cpu/modifiers.h"
#include "engine/cpu/tiles.h"
#include "plan/interval.h"
#include "plan/problem.h"

namespace ringattn::cpu {

// Query rows of a unit, of one head: few enough that those of all heads of a group stay near, so many that packing a block of
// keys is a small part of what is done with it.
inline std::int64_t most_unit_rows(const Tiles& tiles, const Problem& p, std::int64_t longest_piece) {
  const std::int64_t rows =
      tiles.unit_floats / (padded(tiles.cells(p.head_dim)) + padded(p.head_dim_v)) - tiles.key_block;
  return std::max(std::min(rows / p.group(), longest_piece), std::int64_t{1});
}

// What rows have of the keys so far.
struct Running {
  float* out;        // packed
  float *max, *sum;  // [rows]

  static Running take(Arena& arena, const Problem& p, std::int64_t rows) {
    Running r;
    r.out = arena.take<float>(rows * padded(p.head_dim_v));
    r.max = arena.take<float>(rows);
    r.sum = arena.take<float>(rows);
    return r;
  }
  // Of the rows behind the first `rows`, which are packed by themselves.
  Running behind(const Problem& p, std::int64_t rows) const {
    return {out + rows * padded(p.head_dim_v), max + rows, sum + rows};
  }
};

struct ForwardScratch {
  float* q;  // packed, rows of the unit in all heads
  Running running;
  float *k, *v;      // packed, a block of keys
  Interval* seen;    // of each row of a head
  Visible* visible;  // of all rows
  ModifierScratch modifiers;

  static ForwardScratch take(Arena& arena, const Tiles& tiles, const Problem& p, std::int64_t longest_piece) {
    const std::int64_t rows = most_unit_rows(tiles, p, longest_piece), most = rows * p.group();
    ForwardScratch s;
    s.q = arena.take<float>(most * padded(tiles.cells(p.head_dim)));
    s.running = Running::take(arena, p, most);
    s.k = arena.take<float>(tiles.key_block * tiles.cells(p.head_dim));
    s.v = arena.take<float>(tiles.cells(tiles.key_block) * padded(p.head_dim_v));
    s.seen = arena.take<Interval>(rows);
    s.visible = arena.take<Visible>(most);
    s.modifiers = ModifierScratch::take(arena, p, most, padded(tiles.key_block));
    return s;
  }
};

// Parts that `keys` keys are cut into which one of `pieces` pieces of queries sees: several where queries are few, and there would
// be too little for threads to share. A function of the problem and never of the threads, since results depend on it.
inline std::int64_t choose_splits(const Problem& p, std::int64_t pieces, std::int64_t keys) {
  constexpr std::int64_t enough = 32, least_keys = 256, most_rows = 256;
  if (p.seqlen_q * p.num_heads_q > most_rows * p.num_heads_kv || keys < 2 * least_keys) return 1;
  return std::max(std::min(enough / (p.batch * p.num_heads_kv * pieces), keys / least_keys), std::int64_t{1});
}

inline std::int64_t most_splits(const Problem& p) { return choose_splits(p, 1, p.seqlen_kv); }

// What all rows have of all splits, where there may be several.
inline Running take_partials(Arena& arena, const Problem& p) {
  const std::int64_t splits = most_splits(p);
  return Running::take(arena, p, splits == 1 ? 0 : splits * p.batch * p.num_heads_q * p.seqlen_q);
}

// Keys that a backward thread takes on at a time: one block or two, or less where rows are long. Two are better than one, as tiles
// of rows are packed half as often, as long as all that is made of the keys stays near.
inline std::int64_t stretch_keys(const Tiles& tiles, const Problem& p) {
  constexpr std::int64_t most_floats = 416 * 1024;
  const std::int64_t keys = most_floats / (3 * padded(p.head_dim) + 2 * padded(p.head_dim_v));
  return keys < tiles.key_block ? std::max(keys / padding, std::int64_t{1}) * padding
                                : std::min<std::int64_t>(keys / tiles.key_block, 2) * tiles.key_block;
}

struct BackwardScratch {
  float *k, *k_columns, *v_columns;  // packed, the blocks of a stretch of keys
  float *dk, *dv;
  float *q, *dout;              // packed, a tile of rows, as left operands
  float *q_right, *dout_right;  // as right ones: the same where a cell is a float
  float* dq;
  float* scores;
  Interval* seen;
  Visible* visible;
  ModifierScratch modifiers;

  static BackwardScratch take(Arena& arena, const Tiles& tiles, const Problem& p) {
    const std::int64_t dim = padded(p.head_dim), dim_v = padded(p.head_dim_v);
    BackwardScratch s;
    // An item has one or two pieces of keys (plan/shard.h), each of which may end within a panel.
    const std::int64_t keys = stretch_keys(tiles, p) + 2 * padding;
    s.k = arena.take<float>(tiles.cells(keys) * dim);
    s.k_columns = arena.take<float>(keys * tiles.cells(p.head_dim));
    s.v_columns = arena.take<float>(keys * tiles.cells(p.head_dim_v));
    s.dk = arena.take<float>(keys * dim);
    s.dv = arena.take<float>(keys * dim_v);
    s.q = arena.take<float>(tiles.gradient_rows * padded(tiles.cells(p.head_dim)));
    s.dout = arena.take<float>(tiles.gradient_rows * padded(tiles.cells(p.head_dim_v)));
    s.q_right = tiles.terms == 1 ? s.q : arena.take<float>(tiles.cells(tiles.gradient_rows) * dim);
    s.dout_right = tiles.terms == 1 ? s.dout : arena.take<float>(tiles.cells(tiles.gradient_rows) * dim_v);
    s.dq = arena.take<float>(tiles.gradient_rows * dim);
    s.scores = arena.take<float>(tiles.score_floats);
    s.seen = arena.take<Interval>(tiles.gradient_rows);
    s.visible = arena.take<Visible>(tiles.gradient_rows);
    s.modifiers = ModifierScratch::take(arena, p, tiles.gradient_rows, padded(keys));
    return s;
  }
};

// What one thread needs, and where the thread in a slot has it.
template <class Scratch, class... Bounds>
std::size_t thread_bytes(const Tiles& tiles, const Problem& p, Bounds... bounds) {
  Arena arena;
  Scratch::take(arena, tiles, p, bounds...);
  return arena.size();
}
template <class Scratch, class... Bounds>
Scratch of_thread(void* base, int slot, const Tiles& tiles, const Problem& p, Bounds... bounds) {
  Arena arena(static_cast<std::byte*>(base) +
              thread_bytes<Scratch>(tiles, p, bounds...) * static_cast<std::size_t>(slot));
  return Scratch::take(arena, tiles, p, bounds...);
}

// Keys of a piece that rows first .. first + rows - 1 of another see. Both ends ascend: where they are those of the last row already
// for the first, they are those of all.
inline void find_seen(const WorkItem& item, const Piece& queries, std::int64_t first, std::int64_t rows,
                      const Piece& keys, std::int64_t kv_length, Interval* seen) {
  const Interval front = item.visible(queries, first, keys, kv_length);
  if (front == item.visible(queries, first + rows - 1, keys, kv_length)) {
    std::fill_n(seen, rows, front);
    return;
  }
  for (std::int64_t i = 0; i < rows; ++i) seen[i] = item.visible(queries, first + i, keys, kv_length);
}

// What rows see, clipped to the keys block .. block + count - 1. False if none sees any.
inline bool clip(const Interval* seen, std::int64_t rows, std::int64_t block, std::int64_t count, Visible* visible) {
  bool any = false;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t lo = std::clamp<std::int64_t>(seen[i].lo - block, 0, count);
    const std::int64_t hi = std::clamp<std::int64_t>(seen[i].hi - block, 0, count);
    visible[i] = {static_cast<std::int32_t>(lo), static_cast<std::int32_t>(hi)};
    any = any || lo < hi;
  }
  return any;
}

}  // namespace ringattn::cpu
