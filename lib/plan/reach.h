// Which ranks see a piece of keys, from the keys and the sharding rule alone, without looking at anybody's queries:
//
//   keys at positions x .. y of a document are seen by its queries at positions x - upper .. y - lower (problem.h)
//   queries side by side in a document belong to ranks side by side in the ring (shard.h)
//
// A piece of a striped shard is many blocks. If what sees one reaches to what sees the next, all are seen from one stretch of
// positions. If not, the first block that is seen may be cut short, by the chunk or by where the document's queries begin; the
// second is not, and those behind it stand whole turns of the ring behind it, so no other ranks see them.
//
// So a piece costs a few divisions, however many ranks and keys there are.
#pragma once

#include "plan/problem.h"
#include "plan/shard.h"

namespace ringattn {

// Adds the ranks that have a query which sees any of `keys`. `kv_length`: keys of the whole sequence before padding.
void add_seeing(const Problem& problem, const Piece& keys, std::int64_t kv_length, const Shards& queries,
                RankSet& seeing);

}  // namespace ringattn
