// Which schedule a problem gets, and how it is cut for it: a pure function of what all ranks know.
//
//   ring         chunks go from neighbour to neighbour
//   all_gather   one part after the other: all ranks send what they have of it to all who see it, in one exchange, then compute, and in
//                the backward pass return the gradients, in another exchange; chunk by chunk, if there are several
//
// A part is some batch entries with all their heads, or of one entry some heads of K and V with the heads of Q that use them: an
// attention problem by itself. Parts are alike, so their entries divide the batch, or their heads num_heads_kv. The ring has one part.
//
// What all_gather holds at once is bounded by `gather_bytes`: with P ranks, for each head of each entry and each row of a chunk
//
//   P (head_dim + head_dim_v) elements                  K and V of all ranks
//   (2 P - 1) (head_dim + head_dim_v) fp32 numbers      in the backward pass: the gradients of all ranks' rows that are to be sent, and
//                                                       those of its own that come from the others
//
// and, for each entry and row, P fp32 numbers where keys have a bias.
//
// Parts are as large as that allows. If one head of one entry is too much, shards are cut into chunks, if the caller has not: into no more
// than the ring's, since a plan has a moment for each chunk and rank.
#pragma once

#include <cstdint>

#include "plan/problem.h"

namespace ringattn {

struct Cutting {
  Schedule schedule = Schedule::ring;  // never automatic
  std::int64_t num_chunks = 1;         // of a shard
  std::int64_t entries = 1;            // of a part
  std::int64_t heads_kv = 1;           // of a part
  friend bool operator==(const Cutting&, const Cutting&) = default;
};

constexpr std::int64_t usual_gather_bytes = std::int64_t{1} << 28;  // where the caller does not say

// Schedule::automatic is all_gather if
//
//   there are at least 3 ranks                  two exchange the same in one hop
//   no rank has more keys than gathered_rows    a hop's own cost is then more than what it hides
//   num_chunks is left to us                    who asks for chunks asks for less memory
//   all is one part and one chunk, and no more  one exchange stands in the place of P - 1 hops, and memory stays near that of a ring
//   than automatic_gather_bytes
//
// else ring, which sends as much, but only to neighbours. Measured with ranks of one process on CPUs (./dev bench ring --schedules),
// where all_gather is faster up to some 500 rows of one head, and neither is beyond; not on GPUs, nor across machines.
constexpr std::int64_t gathered_rows = 256;
constexpr std::int64_t automatic_gather_bytes = std::int64_t{1} << 24;
Cutting choose_cutting(const Problem& problem, int world_size, Pass pass);
// The same where no rank has more keys than that.
Cutting choose_cutting(const Problem& problem, int world_size, Pass pass, std::int64_t longest_shard);

}  // namespace ringattn
