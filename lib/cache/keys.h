// What the ranks have of the keys of some sequences: the pages of a cache as a domain (plan/domain.h), so that whoever plans or computes
// with them sees pieces of documents as anywhere else.
//
// A unit is a sequence: its queries are its last tokens, dealt out like those of any document; its keys are where its pages are. A rank's
// keys are those of its pages, one sequence behind the other, in the order of their positions. Pages that follow each other in its pool,
// and evenly in the sequence, are one piece.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/pages.h"
#include "plan/domain.h"

namespace ringattn {

// Queries and keys of a batch of sequences as documents of one entry: document n is entry n of `asked`, which has seqlen_q queries and
// lengths[n] keys.
Problem make_problem(const Problem& asked, std::span<const std::int64_t> lengths);

class CachedKeys final : public Domain {
 public:
  // `problem`: make_problem's. Reads the book now, and does not keep it.
  CachedKeys(std::shared_ptr<const Problem> problem, const PageBook& book, std::span<const std::int64_t> sequences);

  Units units() const override { return documents_.units(); }
  std::int64_t rows(Side side, int rank) const override {
    return side == Side::query ? documents_.rows(side, rank) : held(rank).before.back();
  }
  std::int64_t longest_piece(Side side, int rank) const override;
  std::int64_t first_row(Side side, int rank, std::int64_t unit) const override {
    return side == Side::query ? documents_.first_row(side, rank, unit)
                               : held(rank).before[static_cast<std::size_t>(unit)];
  }
  using Domain::units;
  Units units(Side side, int rank, std::int64_t begin, std::int64_t end) const override;
  Share share(Side side, int rank, std::int64_t unit) const override;
  Share deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const override;
  WorkItem item(std::int64_t unit) const override { return documents_.item(unit); }
  std::int64_t num_keys(std::int64_t unit) const override { return documents_.num_keys(unit); }
  std::int64_t add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                          RankSet& seeing) const override;

  // A rank's keys of a unit. Rows are those of its pool.
  std::span<const Piece> pieces(int rank, std::int64_t unit) const;

 private:
  struct Held {
    std::vector<Piece> pieces;               // of all units
    std::vector<std::size_t> first = {0};    // of those, of each unit, and behind the last
    std::vector<std::int64_t> before = {0};  // the rank's keys before each unit, and all
  };
  const Held& held(int rank) const { return held_[static_cast<std::size_t>(rank)]; }

  std::shared_ptr<const Problem> problem_;
  WholeDocuments documents_;
  Shards queries_;
  std::vector<Held> held_;  // of each rank
};

}  // namespace ringattn
