// Which queries see a piece of keys, and so which ranks do, from the keys and the sharding rule alone, without looking at anybody's
// queries:
//
//   keys at positions x .. y of a unit (domain.h) are seen by its queries at positions x - upper .. y - lower (problem.h)
//   queries side by side belong to ranks side by side in the ring (shard.h)
//
// A piece of a striped shard is many blocks. If what sees one reaches to what sees the next, all are seen from one stretch of
// positions. If not, the first block that is seen may be cut short, by the chunk or by where the unit's queries begin; the
// second is not, and those behind it stand whole turns of the ring behind it, so no other ranks see them.
//
// So a piece costs a few divisions, however many ranks and keys there are.
#pragma once

#include <array>
#include <cstdint>

#include "plan/interval.h"

namespace ringattn {

// Positions begin .. end - 1; none where these are equal.
struct Positions {
  std::int64_t begin = 0, end = 0;
};

// The ranks that own any query of these two stretches are those that have one which sees any of `keys`. `q_length`: queries of the
// unit; `kv_length`: keys of the whole sequence before padding.
std::array<Positions, 2> find_seeing(const WorkItem& unit, std::int64_t q_length, const Piece& keys,
                                     std::int64_t kv_length);

}  // namespace ringattn
