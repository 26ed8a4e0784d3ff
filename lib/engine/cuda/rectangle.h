// Attention as libraries know it: all rows of a rectangle see the keys from so many before the diagonal to so many after it. Host code,
// pure.
//
// Pieces of a shard (plan/shard.h) whose tokens stand at equal distances are such a rectangle: with query i at position  qs + i d  and
// key j at  ks + j d,  the item's band on positions is one on  j - i,  rounded inwards. Rows that see no key, and keys that no row sees,
// are cut off, so that each row of a rectangle sees a key, and its first row the first key or one behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "plan/interval.h"

namespace ringattn::cuda {

struct Rectangle {
  std::int64_t first_row = 0, rows = 0;  // as queries are stored
  std::int64_t first_key = 0, keys = 0;  // as keys are stored
  Band band;  // of j - i, both counted from the first; unbounded where nothing is hidden on that side
  friend bool operator==(const Rectangle& a, const Rectangle& b) {
    return a.first_row == b.first_row && a.rows == b.rows && a.first_key == b.first_key && a.keys == b.keys &&
           a.band.lower == b.band.lower && a.band.upper == b.band.upper;
  }
};

// Why what the queries see of the keys is no rectangle; empty if it is one, or nothing. No key is padding.
std::string find_rectangle(const Band& band, const Piece& queries, const Piece& keys, std::optional<Rectangle>& found);

}  // namespace ringattn::cuda
