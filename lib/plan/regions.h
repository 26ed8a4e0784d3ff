// What a layer (layer.h) keeps of a problem: regions, each of one document, in one segment of a branch and one slice, the queries and
// keys that are kept. They count positions from the first that is kept on, `spacing` tokens apart, so that the mask stays one band
// around a diagonal, and to those who plan and compute a region is a document as any other: a unit (domain.h).
//
// What a rank owns of a region follows from what it owns of the document: the intersection of two arithmetic progressions. Kept rows
// travel and are computed with packed, so bytes and work fall as the rows do.
//
// Nobody lists a million regions that are alike but for where they are. What is listed is a pattern of them, how often it is repeated and
// at what distance; and for each rank that has any rows of a pattern, its rows before each listed region. In which unit a row is, what
// rows are before a unit, and what region it is are then a bisection and a division. A layer keeps 80 bytes for each region that is listed
// and 16 for each rank that has rows of it, and who sees a chunk is asked of one turn of a pattern. So a plan keeps what ranks and chunks
// need, not what segments do; only visible pairs are counted segment by segment, of the rank's own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan/domain.h"

namespace ringattn {

struct Region {
  std::int64_t document = 0;
  std::int64_t q_base = 0, kv_base = 0;      // positions inside the document of the first that are kept
  std::int64_t q_length = 0, kv_length = 0;  // how many are
  std::int64_t spacing = 1;
  std::int64_t shift = 0;  // as WorkItem has it
  Band band;
  std::int64_t zero_keys = 0;  // keys with score 0 and no value that each row sees besides (DilationPadding::zero_keys)

  // Positions of the document.
  Progression kept(Side side) const {
    return side == Side::query ? Progression{q_base, spacing, q_length} : Progression{kv_base, spacing, kv_length};
  }
};

// Regions from number first_region up to where the next pattern begins, in turn, `times` times, each time `distance` tokens further on
// both sides. Every rank has as many rows of each repetition as of the region that is listed.
struct Pattern {
  std::int64_t first_region = 0;
  std::int64_t first_unit = 0;  // in a layer
  std::int64_t times = 1;
  std::int64_t distance = 0;
};

// All regions of a layer that have the same owners: the ranks that have any row of them.
struct RegionGroup {
  std::vector<int> owners;
  std::vector<Region> regions;
  std::vector<Pattern> patterns;
};

// A layer's regions: groups of them, that share no owners.
class LayerRegions final : public Domain {
 public:
  // `problem`: that of all layers.
  LayerRegions(std::shared_ptr<const Problem> problem, const std::vector<const RegionGroup*>& groups, int world_size);

  Units units() const override { return {0, patterns_.back().first_unit}; }
  std::int64_t rows(Side side, int rank) const override;
  std::int64_t longest_piece(Side side, int rank) const override;
  std::int64_t first_row(Side side, int rank, std::int64_t unit) const override;
  using Domain::units;
  Units units(Side side, int rank, std::int64_t begin, std::int64_t end) const override;
  Share share(Side side, int rank, std::int64_t unit) const override;
  Share deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const override;
  WorkItem item(std::int64_t unit) const override;
  std::int64_t num_keys(std::int64_t unit) const override { return region(unit).kv_length; }
  std::int64_t add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                          RankSet& seeing) const override;

  Region region(std::int64_t unit) const;
  std::int64_t regions_listed() const { return std::ssize(regions_); }

 private:
  struct Owner {  // a rank of a group; of none: of no patterns
    std::int64_t first_pattern = 0, end_pattern = 0;
    std::int64_t first_count = 0;  // in before_, of the group's first region
  };
  const Shards& of(Side side) const { return side == Side::query ? queries_ : keys_; }
  const Owner& owner(int rank) const { return owners_[static_cast<std::size_t>(rank)]; }
  const Pattern& pattern(std::int64_t n) const { return patterns_[static_cast<std::size_t>(n)]; }
  const Pattern& pattern_of(std::int64_t unit) const;
  // Of one of patterns_, but the last.
  static std::int64_t size(const Pattern& p) { return (&p + 1)->first_region - p.first_region; }
  // A rank's rows before a region of its group where that is listed, or before where the next group's begin.
  std::int64_t before(Side side, int rank, std::int64_t region) const {
    const Owner& o = owner(rank);
    return before_[static_cast<std::size_t>(side)]
                  [static_cast<std::size_t>(o.first_count + region - pattern(o.first_pattern).first_region)];
  }
  // A rank's rows of one repetition of a pattern.
  std::int64_t rows_of(Side side, int rank, const Pattern& p) const {
    return (before(side, rank, (&p + 1)->first_region) - before(side, rank, p.first_region)) / p.times;
  }
  bool owns_any(int rank) const { return owner(rank).first_pattern < owner(rank).end_pattern; }
  std::int64_t unit_of(Side side, int rank, std::int64_t row) const;
  Share find_share(Side side, int rank, const Region& region, std::int64_t unit) const;
  WorkItem item_of(const Region& region) const;
  void count_rows(Side side, int rank);

  std::shared_ptr<const Problem> problem_;
  Shards queries_, keys_;
  std::vector<Region> regions_;
  std::vector<Pattern> patterns_;  // and one behind the last
  std::vector<Owner> owners_;      // of each rank
  // Of each side, of each owner: its rows before each region of its group, and of all of them.
  std::array<std::vector<std::int64_t>, 2> before_;
};

// What a piece of a document's positions has of those that a region keeps, in the region's positions; rows are those of the shard.
void add_kept(const Piece& piece, const Progression& region, std::int64_t unit, Share& kept);

}  // namespace ringattn
