// Sums over ranks.
#pragma once

#include <cstdint>

#include "ring/ring.h"

namespace ringattn {

// Numbers that all_reduce needs room for, beside those that it sums.
inline std::int64_t all_reduce_room(std::int64_t count, int world_size) {
  return world_size == 1 ? 0 : (count + world_size - 1) / world_size;
}

// data[i] = sum of data[i] of all ranks, fp32, to the same bits on each. The data is cut into a part for each rank; part r is summed
// along the ring from rank r on, and where it is complete goes around once more. Collective; tags from `first_tag` on, 2 world_size of
// them. What this costs is added to `statistics`.
void all_reduce(const Machinery& on, int rank, int world_size, float* data, std::int64_t count, float* room,
                std::uint64_t first_tag, Statistics& statistics);

}  // namespace ringattn
