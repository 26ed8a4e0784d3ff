// How long a pass takes: its plans, gone through for all ranks at once with a clock for each.
//
// In a moment every rank begins its transfers and computes. A transfer begins when both of its ends have come to the moment and takes
// the link's latency and as long as the busier of the two takes for all that it sends, or receives, in that moment. A rank comes to
// the next moment when it has computed and all its transfers are over. So where chunks travel for longer than ranks compute with them,
// a call takes as long as the transfers: that is the knee at which communication stops hiding.
//
// Pure. What is counted is what grows with a problem: products of visible pairs, and bytes. What a rank packs, adds and rounds is not.
#pragma once

#include "plan/pass_plan.h"

namespace ringattn {

// Of each rank, all alike.
struct Rates {
  double flops = 0;         // per second, as ra_memory_requirements counts them
  double link_bytes = 0;    // per second that a rank sends and, at the same time, receives; infinity: no limit
  double link_seconds = 0;  // from when both ends are there until the first byte has arrived
};

struct Duration {
  double seconds = 0;          // of the whole call
  double compute_seconds = 0;  // of it
};

Duration estimate_duration(const Problem& problem, int world_size, int rank, Pass pass, const Rates& rates);

// (query, key) pairs that a rank's rows see of the chunk that it holds in that moment, over all entries and heads of all parts. Exact
// where a rank has at most 256 rows of each document, else about 1 % may be missing, as only so many are looked at.
double count_step_pairs(const Plan& plan, const Moment& moment);

// Products and sums of a visible pair.
inline double flops_per_pair(const Problem& p, Pass pass) {
  return static_cast<double>(pass == Pass::forward ? 2 * (p.head_dim + p.head_dim_v)
                                                   : 2 * (3 * p.head_dim + 2 * p.head_dim_v));
}

}  // namespace ringattn
