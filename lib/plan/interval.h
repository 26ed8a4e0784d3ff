// What a query sees of a piece of keys: one half-open interval of the piece, in closed form.
//
//   lo(i) = keys before  position(i) + band.lower           hi(i) = keys before  min(position(i) + band.upper + 1, limit)
//
// Both are nondecreasing in i. The limit is the end of the document or of the batch entry's padding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "plan/problem.h"
#include "plan/shard.h"

namespace ringattn {

struct Interval {
  std::int64_t lo = 0;
  std::int64_t hi = 0;  // >= lo
  bool empty() const { return lo == hi; }
  friend bool operator==(const Interval&, const Interval&) = default;
};

// All queries and all keys that a step has of one document, or of another unit (domain.h). Pieces of one side never share a row or a
// position. Positions count in steps of `spacing` tokens from where the unit begins.
struct WorkItem {
  Band band;
  std::int64_t q_begin = 0;   // where position 0 is in the whole sequence, of queries
  std::int64_t kv_begin = 0;  // and of keys
  std::int64_t spacing = 1;
  std::int64_t shift = 0;  // the query at position i faces the key at position i + shift
  std::span<const Piece> queries;
  std::span<const Piece> keys;  // may be empty: the rows take part but see nothing here

  // Positions of keys that lie before one of the whole sequence.
  std::int64_t positions_before(std::int64_t token) const {
    const std::int64_t distance = token - kv_begin;
    return spacing == 1 ? distance : distance <= 0 ? 0 : (distance - 1) / spacing + 1;
  }

  // `kv_length`: keys of the whole sequence before the batch entry's padding (Problem::kv_length).
  Interval visible(const Piece& query, std::int64_t i, const Piece& key, std::int64_t kv_length) const {
    const std::int64_t position = query.position(i);
    const std::int64_t limit = positions_before(kv_length);
    const std::int64_t lo = key.count_below(position + band.lower);
    const std::int64_t hi = key.count_below(std::min(position + band.upper + 1, limit));
    return {std::min(lo, hi), hi};
  }
};

// Whether any query of one piece sees any key of the other; exact, without visiting every row.
bool any_visible(const Band& band, const Piece& queries, const Piece& keys, std::int64_t limit);

}  // namespace ringattn
