// Modifiers (tiles.h) of a problem's queries and keys, where they lie in the whole problem: made once for the rows of a unit or tile and
// once for a block of keys, in memory that only problems with modifiers take.
#pragma once

#include <cstdint>

#include "core/memory.h"
#include "engine/cpu/tiles.h"
#include "engine/dropout.h"
#include "engine/engine.h"
#include "plan/interval.h"
#include "plan/problem.h"

namespace ringattn::cpu {

// Sinks are not among them: they are part of a row's beginning.
inline bool modifies_tiles(const Problem& p) {
  return !p.alibi_slopes.empty() || p.has_key_bias || p.dropout.probability != 0;
}

struct ModifierScratch {
  ModifiedRow* rows;
  float *offsets, *bias;  // of each key
  std::uint64_t* groups;  // two of each key
  std::int32_t* words;

  // `keys`: whole multiples of `padding`.
  static ModifierScratch take(Arena& arena, const Problem& p, std::int64_t rows, std::int64_t keys) {
    const std::int64_t alibi = p.alibi_slopes.empty() ? 0 : keys, dropout = p.dropout.probability == 0 ? 0 : keys;
    ModifierScratch s;
    s.rows = arena.take<ModifiedRow>(modifies_tiles(p) ? rows : 0);
    s.offsets = arena.take<float>(alibi);
    s.bias = arena.take<float>(p.has_key_bias ? keys : 0);
    s.groups = arena.take<std::uint64_t>(2 * dropout);
    s.words = arena.take<std::int32_t>(dropout);
    return s;
  }
};

// Rows first .. first + count - 1 of a piece of queries, in one head of a step's.
inline void modify_rows(const Problem& p, const Origin& origin, const WorkItem& item, const Piece& queries,
                        std::int64_t first, std::int64_t count, std::int64_t b, std::int64_t head, ModifiedRow* rows) {
  const std::int64_t whole_head = origin.head + head * origin.head_step;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t position = queries.position(first + i);
    ModifiedRow& row = rows[i];
    row = {(position + item.shift) * item.spacing, 0, {}};
    if (!p.alibi_slopes.empty()) row.slope = p.alibi_slopes[static_cast<std::size_t>(whole_head)];
    if (p.dropout.probability == 0) continue;
    const PhiloxKey key =
        dropout_row_key(p.dropout.seed, item.q_begin + position * item.spacing, origin.entry + b, whole_head);
    row.dropout[0] = key[0];
    row.dropout[1] = key[1];
  }
}

// Keys first .. first + count - 1 of a piece. `bias`: that of the first of them. `room`: keys of the scratch before theirs, a multiple of
// `padding`.
inline Modifiers modify_keys(const Problem& p, const WorkItem& item, const Piece& keys, std::int64_t first,
                             std::int64_t count, const float* bias, const ModifierScratch& scratch,
                             std::int64_t room = 0) {
  const std::int64_t all = padded(count);
  Modifiers m{};
  m.rows = scratch.rows;
  const auto position = [&](std::int64_t j) { return keys.position(first + j) * item.spacing; };
  m.first = position(0);
  if (!p.alibi_slopes.empty()) {
    float* const offsets = scratch.offsets + room;
    for (std::int64_t j = 0; j < all; ++j) offsets[j] = j < count ? static_cast<float>(position(j) - m.first) : 0.0F;
    m.offsets = offsets;
  }
  if (p.has_key_bias) {
    float* const own = scratch.bias + room;
    for (std::int64_t j = 0; j < all; ++j) own[j] = j < count ? bias[j] : 0.0F;
    m.bias = own;
  }
  if (p.dropout.probability != 0) {
    std::uint64_t* const groups = scratch.groups + 2 * room;
    std::int32_t* const words = scratch.words + room;
    std::int64_t last = -1;  // of the groups
    for (std::int64_t j = 0; j < all; ++j) {
      if (j >= count) {
        words[j] = words[j - 1] + 1;
        continue;
      }
      const auto key = static_cast<std::uint64_t>(item.kv_begin + position(j));
      if (last < 0 || groups[last] != key / 4) groups[++last] = key / 4;
      words[j] = static_cast<std::int32_t>(4 * last + static_cast<std::int64_t>(key % 4));
    }
    while (++last < all + padding) groups[last] = 0;
    m.groups = groups;
    m.words = words;
    m.dropout_offset = p.dropout.offset;
    m.threshold = dropout_threshold(p.dropout.probability);
    m.kept = static_cast<float>(1 / (1 - static_cast<double>(p.dropout.probability)));
  }
  return m;
}

}  // namespace ringattn::cpu
