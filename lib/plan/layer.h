// Mask slices and dilated attention, as layers: attention problems by themselves, each over some heads and some rows, whose results add
// up to that of the whole problem as the softmax over all of their keys together (ra_merge_attention does the same).
//
//   slices     a row may see keys of several slices. Slices that share neither queries nor keys go into one layer, greedily
//   dilation   for each branch and each phase, the heads of that phase, with the positions that they keep
//   both       each with each
//
// A layer's units (domain.h) are regions: of one document, in one segment of the branch and one slice, the queries and keys that are
// kept. They count positions from the first that is kept on, `spacing` tokens apart, so that the mask stays one band around a diagonal,
// and to those who plan and compute a region is a document as any other.
//
// What a rank owns of a region follows from what it owns of the document: the intersection of two arithmetic progressions. Kept rows
// travel and are computed with packed, so bytes and work fall as the rows do.
//
// Regions of one layer are each in the hands of the same ranks, or of others altogether: so a chunk holds no rows that some of the
// ranks which it travels to have nothing to do with, and a region inside one rank causes no traffic.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/domain.h"

namespace ringattn {

// Query heads first_q, first_q + step_q, ... of which `group` each use the heads first_kv, first_kv + step_kv, ... of K and V.
struct HeadSet {
  std::int64_t first_q = 0, step_q = 1;
  std::int64_t first_kv = 0, step_kv = 1;
  std::int64_t count_kv = 1, group = 1;
  std::int64_t count_q() const { return count_kv * group; }
};

struct Region {
  std::int64_t document = 0;
  std::int64_t q_base = 0, kv_base = 0;      // positions inside the document of the first that are kept
  std::int64_t q_length = 0, kv_length = 0;  // how many are
  std::int64_t spacing = 1;
  std::int64_t shift = 0;  // as WorkItem has it
  Band band;
  std::int64_t zero_keys = 0;  // keys with score 0 and no value that each row sees besides (DilationPadding::zero_keys)

  std::int64_t base(Side side) const { return side == Side::query ? q_base : kv_base; }
  std::int64_t length(Side side) const { return side == Side::query ? q_length : kv_length; }
};

struct Layer {
  std::int64_t branch = 0;
  HeadSet heads;
  std::vector<Region> regions;
};

// Of a problem that is_layered(); the same on all ranks. Those of one branch follow one another.
std::vector<Layer> find_layers(const Problem& problem, int world_size);

// A layer's regions. Sums of rows are kept for each rank.
class LayerRegions final : public Domain {
 public:
  // `problem`: that of all layers.
  LayerRegions(std::shared_ptr<const Problem> problem, std::vector<Region> regions, int world_size);

  Units units() const override { return {0, std::ssize(regions_)}; }
  std::int64_t rows(Side side, int rank) const override { return of(side).first_row(rank, std::ssize(regions_)); }
  std::int64_t longest_piece(Side side, int rank) const override;
  std::int64_t first_row(Side side, int rank, std::int64_t unit) const override {
    return of(side).first_row(rank, unit);
  }
  Units units(Side side, int rank, std::int64_t begin, std::int64_t end) const override;
  Share share(Side side, int rank, std::int64_t unit) const override;
  Share deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const override;
  WorkItem item(std::int64_t unit) const override;
  std::int64_t num_keys(std::int64_t unit) const override { return region(unit).kv_length; }
  void add_seeing(const Piece& keys, std::int64_t kv_length, RankSet& seeing) const override;

  const Region& region(std::int64_t unit) const { return regions_[static_cast<std::size_t>(unit)]; }

 private:
  struct Rows {                                     // before each unit, and of all units, of one side
    std::vector<std::vector<std::int64_t>> before;  // [rank][unit]
    std::int64_t first_row(int rank, std::int64_t unit) const {
      return before[static_cast<std::size_t>(rank)][static_cast<std::size_t>(unit)];
    }
  };
  const Rows& of(Side side) const { return side == Side::query ? query_rows_ : key_rows_; }
  int world_size() const { return static_cast<int>(query_rows_.before.size()); }

  std::shared_ptr<const Problem> problem_;
  std::vector<Region> regions_;
  Shards queries_, keys_;
  Rows query_rows_, key_rows_;
};

// What a piece of a document's positions has of those that a region keeps, in the region's positions; rows are those of the shard.
void add_kept(const Piece& piece, std::int64_t base, std::int64_t spacing, std::int64_t length, std::int64_t unit,
              Share& kept);

}  // namespace ringattn
