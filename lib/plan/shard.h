// Which tokens a rank owns, and where it stores them.
//
// A run is an arithmetic progression of blocks of positions; it covers all shardings: a contiguous piece is one block, a
// striped shard is blocks of `stripe` tokens every P * stripe. A piece is a stretch of a run that is stored densely; a shard
// is a list of pieces, one or two per document, ascending in position and therefore in storage too. That order is what
// makes the keys a query sees one interval of storage, whatever the sharding (interval.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/problem.h"

namespace ringattn {

// Member n stands at position start + (n / block) * stride + n % block, for 0 <= n < length.
struct Run {
  std::int64_t start = 0;
  std::int64_t block = 1;
  std::int64_t stride = 1;  // >= block
  std::int64_t length = 0;

  std::int64_t position(std::int64_t n) const { return start + n / block * stride + n % block; }

  // How many members stand before `position`.
  std::int64_t count_below(std::int64_t position) const {
    const std::int64_t distance = position - start;
    if (distance <= 0) return 0;
    const std::int64_t members = distance / stride * block + std::min(distance % stride, block);
    return std::min(members, length);
  }
};

// Members first .. first + length - 1 of a run of positions inside a document, stored at rows row .. row + length - 1.
struct Piece {
  std::int64_t document = 0;  // index in Problem::documents
  Run run;
  std::int64_t first = 0;
  std::int64_t length = 0;
  std::int64_t row = 0;

  std::int64_t position(std::int64_t i) const { return run.position(first + i); }

  // How many of this piece's members stand before `position`.
  std::int64_t count_below(std::int64_t position) const {
    return std::clamp<std::int64_t>(run.count_below(position) - first, 0, length);
  }
};

// Cuts `length` things into `parts` parts that differ by at most one, longer ones first: where part `part` begins.
constexpr std::int64_t part_begin(std::int64_t length, std::int64_t parts, std::int64_t part) {
  return length / parts * part + std::min(length % parts, part);
}

// The non-empty pieces of a rank's shard.
std::vector<Piece> shard_pieces(const Problem& problem, Side side, int world_size, int rank);

// The parts of `pieces` that are stored in rows begin .. end - 1, with rows counted from `begin`.
std::vector<Piece> cut_rows(std::span<const Piece> pieces, std::int64_t begin, std::int64_t end);

// Tokens begin .. end - 1 of a whole shard in the order of dealing: one document after the other, and of a document's pieces
// one token each in turn. So a cut of a zigzag shard takes as much of the front piece of a long document as of its back piece,
// and short documents stay whole. Rows are those of the shard.
std::vector<Piece> deal(std::span<const Piece> shard, std::int64_t begin, std::int64_t end);

// The same pieces stored densely, one behind the other, from row 0.
std::vector<Piece> packed(std::vector<Piece> pieces);

inline std::int64_t row_count(const std::vector<Piece>& pieces) {
  return pieces.empty() ? 0 : pieces.back().row + pieces.back().length;
}

// Position in the whole sequence of one stored row.
std::int64_t row_position(const Problem& problem, Side side, const std::vector<Piece>& pieces, std::int64_t row);

}  // namespace ringattn
