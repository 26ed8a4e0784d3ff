// Which tokens a rank owns, and where it stores them: closed forms, so that nobody keeps lists of what others own.
//
//   contiguous   a document is cut into P parts, rank r owns part r
//   zigzag       a document is cut into 2 P parts, rank r owns parts r and 2 P - 1 - r
//   striped      token p of the whole sequence belongs to rank (p / stripe) mod P, in whatever document it is
//
// Of a document of n tokens, the first of which is token b of the whole sequence, m parts have n / m tokens each. The n mod m that
// are left go one each to parts b mod m, b mod m + 1, ..., around from part m - 1 to part 0: on from where the document before
// left off. So a rank has as many of the tokens before b as if they were one document, a closed form, and shards differ by one
// token, or by one stripe, however many documents there are.
//
// A run is an arithmetic progression of blocks of positions; it covers all shardings: a part is one block, a striped shard is
// blocks of `stripe` tokens every P * stripe. A piece is a stretch of a run that is stored densely; a shard is a list of
// pieces, at most two per document, ascending in position and therefore in storage too. That order is what makes the keys a
// query sees one interval of storage, whatever the sharding (interval.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <vector>

#include "core/host_device.h"
#include "plan/problem.h"

namespace ringattn {

// Member n stands at position start + (n / block) * stride + n % block, for 0 <= n < length. Where all is in the first block, as in
// contiguous and zigzag shards, nothing is divided: this is asked for every row of every step.
struct Run {
  std::int64_t start = 0;
  std::int64_t block = 1;
  std::int64_t stride = 1;  // >= block
  std::int64_t length = 0;

  RA_HOST_DEVICE std::int64_t position(std::int64_t n) const {
    return n < block ? start + n : start + n / block * stride + n % block;
  }

  // How many members stand before `position`.
  std::int64_t count_below(std::int64_t position) const {
    const std::int64_t distance = position - start;
    if (distance <= 0) return 0;
    const std::int64_t members =
        distance < stride ? std::min(distance, block) : distance / stride * block + std::min(distance % stride, block);
    return std::min(members, length);
  }
};

// Members first .. first + length - 1 of a run of positions inside a document, stored side by side from `row` on.
struct Piece {
  std::int64_t unit = 0;  // of a domain (domain.h): of whole documents, the index in Problem::documents
  Run run;
  std::int64_t first = 0;
  std::int64_t length = 0;
  std::int64_t row = 0;

  RA_HOST_DEVICE std::int64_t position(std::int64_t i) const { return run.position(first + i); }

  // How many of this piece's members stand before `position`.
  std::int64_t count_below(std::int64_t position) const {
    return std::clamp<std::int64_t>(run.count_below(position) - first, 0, length);
  }
};

// The same, but stored at rows row, row + step, ...: what a dilated layer keeps of a shard (layer.h).
struct SpacedPiece : Piece {
  std::int64_t step = 1;
};

// What one rank has of one document, or of the part of it in a chunk: non-empty pieces. Those of a shard ascend in position; what a
// layer keeps of a striped one may be pieces that alternate.
class Share {
 public:
  void add(const Piece& piece, std::int64_t step = 1) { add(SpacedPiece{piece, step}); }
  void add(const SpacedPiece& piece) {
    if (piece.length == 0) return;
    if (count_ == few_.size()) many_.assign(few_.begin(), few_.end());
    if (count_ < few_.size())
      few_[count_] = piece;
    else
      many_.push_back(piece);
    ++count_;
  }
  bool empty() const { return count_ == 0; }
  std::size_t size() const { return count_; }
  const SpacedPiece& operator[](std::size_t i) const { return begin()[i]; }
  const SpacedPiece* begin() const { return many_.empty() ? few_.data() : many_.data(); }
  const SpacedPiece* end() const { return begin() + count_; }

 private:
  std::array<SpacedPiece, 2> few_;  // more is seldom needed
  std::vector<SpacedPiece> many_;
  std::size_t count_ = 0;
};

// `length` things cut into `parts` parts, one behind the other, that differ by at most one: the longer ones are part `first`
// and those that follow it, around from the last part to part 0.
class Cut {
 public:
  constexpr Cut(std::int64_t length, std::int64_t parts, std::int64_t first = 0)
      : parts_(parts),
        shorter_(length / parts),
        first_(first),
        around_(std::max<std::int64_t>(0, first + length % parts - parts)),
        ahead_(length % parts - around_) {}

  // Where part `part` begins; that of part `parts` is the whole length.
  constexpr std::int64_t begin(std::int64_t part) const {
    return shorter_ * part + std::min(part, around_) + std::clamp<std::int64_t>(part - first_, 0, ahead_);
  }
  constexpr std::int64_t length(std::int64_t part) const { return begin(part + 1) - begin(part); }
  constexpr std::int64_t shortest() const { return shorter_; }
  // The part that a thing is in.
  std::int64_t part_of(std::int64_t thing) const;
  // Things before the empty parts in the middle; 0 where there are none such: things side by side are then in parts side by side.
  constexpr std::int64_t before_gap() const { return shorter_ == 0 ? around_ : 0; }

 private:
  std::int64_t parts_, shorter_, first_;
  std::int64_t around_;  // longer parts 0, 1, ... before part `first`
  std::int64_t ahead_;   // longer parts from `first` on
};

// Positions start, start + spacing, ... of a document, `count` of them.
struct Progression {
  std::int64_t start = 0;
  std::int64_t spacing = 1;
  std::int64_t count = 0;

  std::int64_t position(std::int64_t n) const { return start + n * spacing; }
  // The least number of a member that stands at `position` or behind it, were there no end.
  std::int64_t first_from(std::int64_t position) const {
    return position <= start ? 0 : (position - start - 1) / spacing + 1;
  }
  // Members begin .. end - 1.
  Progression part(std::int64_t begin, std::int64_t end) const { return {position(begin), spacing, end - begin}; }
};

// A set of ranks on the ring. Each goes by its distance downstream from one of them, `origin`: 0 .. world_size - 1.
class RankSet {
 public:
  RankSet(int world_size, int origin)
      : world_size_(world_size),
        origin_(origin),
        words_(static_cast<std::size_t>(world_size + word_bits - 1) / word_bits) {}

  // Adds rank `first` and those behind it, `count` in all, around from the last rank to rank 0.
  void add(std::int64_t first, std::int64_t count);
  void add(std::int64_t rank) {
    const std::int64_t distance = rank < origin_ ? rank - origin_ + world_size_ : rank - origin_;
    words_[static_cast<std::size_t>(distance / word_bits)] |= std::uint64_t{1} << distance % word_bits;
  }
  // Whether one of the stretches alone had every rank.
  bool is_full() const { return is_full_; }
  // The least distance, `from` or more, of a rank that is a member, or is none; world_size if there is no such rank.
  int find(int from, bool member) const;
  bool has(int distance) const { return find(distance, true) == distance; }

 private:
  static constexpr int word_bits = 64;
  void add_distances(int begin, int end);

  int world_size_, origin_;
  std::vector<std::uint64_t> words_;  // a bit for each distance
  bool is_full_ = false;
};

// One side of a problem as `world_size` ranks share it. Keeps a reference to the problem.
class Shards {
 public:
  Shards(const Problem& problem, Side side, int world_size)
      : problem_(problem),
        side_(side),
        world_size_(world_size),
        sharding_(world_size == 1 ? Sharding::contiguous : problem.sharding) {}

  // Rows of a whole shard.
  std::int64_t rows(int rank) const { return rows_before(rank, problem_.seqlen(side_)); }
  // What none of its pieces is longer than: a part, or in a striped shard all rows.
  std::int64_t longest_piece(int rank) const {
    if (sharding_ == Sharding::striped) return rows(rank);
    return (problem_.seqlen(side_) + parts_of_cut() - 1) / parts_of_cut();
  }
  // Numbers of the documents, one after the other, that rows begin .. end - 1 of a shard belong to.
  using Documents = std::ranges::iota_view<std::int64_t, std::int64_t>;
  Documents documents(int rank, std::int64_t begin, std::int64_t end) const {
    return begin == end ? Documents(0, 0) : Documents(document_of(rank, begin), document_of(rank, end - 1) + 1);
  }
  Documents documents() const { return {0, num_documents()}; }
  // Of the first token that a rank has of a document, or would have.
  std::int64_t first_row(int rank, std::int64_t document) const { return rows_before(rank, begin_of(document)); }

  // What a rank has of one document.
  Share share(int rank, std::int64_t document) const;
  // What rows begin .. end - 1 of a whole shard, in the order of dealing, have of one document: one document comes after the
  // other, and of a document's pieces one token each in turn. So a cut of a zigzag shard takes as much of the front piece of a
  // long document as of its back piece, and short documents stay whole. Rows are those of the shard.
  Share deal(int rank, std::int64_t document, std::int64_t begin, std::int64_t end) const;

  // Adds the ranks that own any of those tokens of a document. Costs a few divisions; where tokens are spaced wider than a stripe, or
  // than the shortest part, some for each rank that has one, or for each place that they have in stripes.
  void add_owners(std::int64_t document, const Progression& tokens, RankSet& owners) const;

  // How many tokens the rank that owns the one at a position of a document has side by side, from that on.
  std::int64_t count_beside(std::int64_t document, std::int64_t position) const;
  // Tokens at this distance always have the same owner; 0 where there is no such distance.
  std::int64_t turn() const { return sharding_ == Sharding::striped ? world_size_ * problem_.stripe : 0; }

 private:
  std::int64_t num_documents() const { return static_cast<std::int64_t>(problem_.documents.size()); }
  // Position in the whole sequence of the first token of a document; of the one after the last, the end of the sequence.
  std::int64_t begin_of(std::int64_t document) const {
    return document < num_documents() ? problem_.documents[static_cast<std::size_t>(document)].begin(side_)
                                      : problem_.seqlen(side_);
  }
  std::int64_t document_of(int rank, std::int64_t row) const;
  // Rows of the tokens before a position at which a document begins or the sequence ends.
  std::int64_t rows_before(int rank, std::int64_t position) const;
  Cut cut_of(std::int64_t document) const {
    const std::int64_t begin = begin_of(document);
    return {begin_of(document + 1) - begin, parts_of_cut(), begin % parts_of_cut()};
  }
  std::int64_t parts_of_cut() const { return std::int64_t{world_size_} * (sharding_ == Sharding::zigzag ? 2 : 1); }

  const Problem& problem_;
  Side side_;
  int world_size_;
  Sharding sharding_;  // of one rank all are the same, and this one is in one piece
};

// The non-empty pieces of a rank's shard.
std::vector<Piece> shard_pieces(const Problem& problem, Side side, int world_size, int rank);

// The parts of `pieces` that are stored in rows begin .. end - 1, with rows counted from `begin`.
std::vector<Piece> cut_rows(std::span<const Piece> pieces, std::int64_t begin, std::int64_t end);

inline std::int64_t row_count(const std::vector<Piece>& pieces) {
  return pieces.empty() ? 0 : pieces.back().row + pieces.back().length;
}

// Position in the whole sequence of one stored row.
std::int64_t row_position(const Problem& problem, Side side, const std::vector<Piece>& pieces, std::int64_t row);

}  // namespace ringattn
