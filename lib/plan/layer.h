// Mask slices and dilated attention, as layers: attention problems by themselves, each over some heads and some rows, whose results add
// up to that of the whole problem as the softmax over all of their keys together (ra_merge_attention does the same).
//
//   slices     a row may see keys of several slices. Slices that share neither queries nor keys go into one layer, greedily
//   dilation   for each branch and each phase, the heads of that phase, with the positions that they keep
//   both       each with each
//
// Regions of one layer are each in the hands of the same ranks, or of others altogether: so a chunk holds no rows that some of the
// ranks which it travels to have nothing to do with, and a region inside one rank causes no traffic.
//
// A branch may have a million segments, and nobody lists them. Those of which a document and a slice cut nothing off are alike but for
// where they are; and while one rank has them all, or where they stand whole turns of the stripes apart, every rank has as many rows of
// one as of the other. So what is listed is a pattern of regions, how often it is repeated and at what distance:
//
//   document, slice, branch, phase   are patterns: one for each rank's own segments, or for all those that stripes divide alike, and
//                                    the segments that several ranks share or that are cut, each once
//   groups                           are patterns whose rows are in the hands of the same ranks
//   layers                           are groups, each in the first layer where no other has any of its ranks; those of few ranks first
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/regions.h"

namespace ringattn {

// Query heads first_q, first_q + step_q, ... of which `group` each use the heads first_kv, first_kv + step_kv, ... of K and V.
struct HeadSet {
  std::int64_t first_q = 0, step_q = 1;
  std::int64_t first_kv = 0, step_kv = 1;
  std::int64_t count_kv = 1, group = 1;
  std::int64_t count_q() const { return count_kv * group; }
};

// Some heads' attention to their regions, which all heads of a phase share.
struct Layer {
  std::int64_t branch = 0;
  HeadSet heads;
  std::shared_ptr<const LayerRegions> regions;
};

// Of a problem that is_layered(); the same on all ranks. Those of one branch follow one another.
std::vector<Layer> find_layers(const std::shared_ptr<const Problem>& problem, int world_size);

}  // namespace ringattn
