// Attention of a few queries, which every rank has, to the pages of a cache (cache.h), by all ranks; all get the same result.
//
//   pass_q   each rank attends all queries to its own keys, whose pages are the pieces of one step of the engine. Then what a row has of
//            each rank's keys, (out, lse), is merged:
//              rows are cut into a part for each rank; each rank sends what it has of a part to the rank whose part it is
//              that merges what came, in the order of ranks, and sends it to all
//            No key moves, and what does depends on the number of rows alone: row h * n + i is query i of all n, in head h.
//   ring     each rank attends a part of the queries to all keys, which go around (plan/plan.h, ring/forward.cpp), and sends its part
//            of the results to all. For long prompts, of which K and V are fewer bytes than what queries bring back.
//
// Sinks join the softmax once: with pass_q as if they were among the first rank's keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "cache/cache.h"
#include "cache/keys.h"
#include "plan/plan.h"
#include "ring/ring.h"

namespace ringattn {

// Of the two the one that is asked for, or else that by which fewer bytes travel: with pass_q 2 t num_heads_q head_dim, of q or of out,
// for t queries, and with ring n num_heads_kv (head_dim + head_dim_v) for n keys.
Schedule choose_decoding(const Problem& asked, std::int64_t queries, std::int64_t keys, int world_size);

// Whole tensors, the same on every rank.
struct DecodeCall {
  Tensor q, out;
  float* lse = nullptr;          // may be null
  const float* sinks = nullptr;  // [num_heads_q, num_sinks], where the problem has any
  void* workspace = nullptr;
};

class Decoding {
 public:
  // `asked`: entry n of its batch is the last seqlen_q tokens of sequences[n]. All that is kept of book and sequences is what they say now.
  Decoding(const Problem& asked, const PageBook& book, std::span<const std::int64_t> sequences, int rank);

  Schedule schedule() const { return schedule_; }
  std::size_t workspace_bytes(const Engine& engine) const;
  // Collective.
  Statistics run(const Machinery& on, const KvCache& cache, const DecodeCall& call) const;

 private:
  Statistics pass_queries(const Machinery& on, const KvCache& cache, const DecodeCall& call) const;
  Statistics pass_keys(const Machinery& on, const KvCache& cache, const DecodeCall& call) const;

  Problem asked_;
  int rank_, world_size_;
  Schedule schedule_;
  std::shared_ptr<const Problem> problem_;  // of documents (keys.h); with pass_q results are fp32
  std::shared_ptr<const CachedKeys> keys_;
  std::unique_ptr<const Plan> plan_;  // of ring
};

}  // namespace ringattn
