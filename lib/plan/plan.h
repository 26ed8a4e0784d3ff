// The ring as data: which chunks travel how far, and what one rank sends, receives and computes at each moment.
//
//   for chunk c of every shard:                      outer, so that two chunk buffers are all that is ever in flight
//     for a tour in each direction that is needed:   downstream to rank + 1, then upstream to rank - 1
//       for time t = 0, 1, ...:                      at time t a rank holds the chunk of the rank t places behind it
//         hand on what is held, take in the next; compute the step if a row sees a key of what is held
//
// A chunk's reach in each direction is the least that visits every rank that sees any of it, so a window shorter than a
// shard makes one hop and a chunk nobody else sees makes none. In the backward pass a chunk's gradients follow one moment
// behind it: what was added at time t travels at time t + 1, and from the last rank straight home to the owner. Every
// transfer begins and ends within one moment that both ranks reach whatever the others do, so the ring cannot deadlock.
//
// A chunk holds as many tokens of a document's front piece as of its back piece (shard.h), because under a causal mask the two
// are seen by different numbers of queries: at every moment the ranks of a zigzag ring have equal work.
//
// Pure: no threads, no memory, no device. Every rank computes the same reaches from the same problem. A plan keeps the problem and
// a moment for each chunk and rank; what anybody owns is worked out when it is asked for, for the documents of one chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/interval.h"
#include "plan/problem.h"
#include "plan/shard.h"

namespace ringattn {

enum class Pass { forward, backward };

constexpr int nobody = -1;

// One moment of one rank. Ranks are `nobody` where nothing happens.
struct Moment {
  std::int64_t chunk = 0;
  int direction = 1;  // +1 downstream, -1 upstream
  int time = 0;
  int holds = nobody;          // owner of the chunk held
  bool computes = false;       // some row of this rank sees a key of it
  int send_to = nobody;        // the held K/V go there
  int receive_from = nobody;   // the next K/V come from there ...
  int receive_owner = nobody;  // ... and belong to this rank
  // Backward only. Gradients of the chunk held a moment ago go out; those of the held chunk, as far as summed, come in.
  int gradient_send_to = nobody;
  int gradient_send_owner = nobody;
  int gradient_receive_from = nobody;
  int gradient_home_from = nobody;  // this rank's own gradients come home
  bool finishes_chunk = false;      // last moment of this chunk: its own gradients are complete
};

// What a rank will have done at the end of the pass.
struct Totals {
  std::int64_t steps = 0;
  std::int64_t hops = 0;
  std::int64_t hop_bytes = 0;
  friend bool operator==(const Totals&, const Totals&) = default;
};

// Rows of a shard that are stored one after the other.
struct Stretch {
  std::int64_t row = 0;
  std::int64_t length = 0;
};

// The work items of one step, with the storage that they refer to.
struct StepItems {
  std::vector<Piece> queries, keys;
  std::vector<WorkItem> items;
};

class Plan {
 public:
  Plan(const Problem& problem, int world_size, int rank, Pass pass);

  const Problem& problem() const { return problem_; }
  int world_size() const { return world_size_; }
  int rank() const { return rank_; }
  Pass pass() const { return pass_; }

  std::int64_t num_chunks() const { return num_chunks_; }
  std::int64_t query_rows() const { return shards(Side::query).rows(rank_); }
  std::int64_t longest_query_piece() const { return shards(Side::query).longest_piece(rank_); }
  std::int64_t key_rows(int owner) const { return shards(Side::key_value).rows(owner); }

  std::int64_t chunk_rows(int owner, std::int64_t chunk) const {
    return chunk_begin(owner, chunk + 1) - chunk_begin(owner, chunk);
  }
  std::int64_t longest_chunk() const;  // rows, over all owners

  // The keys of a chunk. Rows are those of the owner's shard.
  std::vector<Piece> chunk_keys(int owner, std::int64_t chunk) const;
  // The same as stretches of storage that do not touch: three at most, since whole documents follow one another.
  std::vector<Stretch> chunk_stretches(int owner, std::int64_t chunk) const;

  // K and V of one chunk as they travel: packed [batch, rows, num_heads_kv, head_dim] and then the same with head_dim_v.
  std::int64_t chunk_bytes(std::int64_t rows) const;
  // Their gradients, fp32, in the same order.
  std::int64_t gradient_bytes(std::int64_t rows) const;

  const std::vector<Moment>& moments() const { return moments_; }
  const Totals& totals() const { return totals_; }
  bool travels() const { return world_size_ > 1; }
  // False where the only chunk is the whole shard and stays at home: nothing has to be packed.
  bool packs() const { return travels() || num_chunks_ > 1; }

  // Work of a step; its keys are packed. `all_rows`: also list the queries that see nothing of it, so that their results are begun or ended.
  StepItems items(const Moment& moment, bool all_rows) const;

  // What making the plan has cost: documents looked at, once for each chunk that has keys of one.
  std::int64_t documents_visited() const { return documents_visited_; }

 private:
  struct Reach {
    int downstream = 0;
    int upstream = 0;
    bool here = false;  // this rank sees the chunk
    int in(int direction) const { return direction > 0 ? downstream : upstream; }
  };
  Shards shards(Side side) const { return {problem_, side, world_size_}; }
  std::int64_t chunk_begin(int owner, std::int64_t chunk) const {  // in the order of dealing
    return Cut(key_rows(owner), num_chunks_).begin(chunk);
  }
  // The ranks that see a chunk, by their distance from its owner.
  RankSet find_seeing(int owner, std::int64_t chunk);
  Reach find_reach(int owner, std::int64_t chunk);
  void add_tour(std::int64_t chunk, int direction, const std::vector<Reach>& reaches);
  int at_distance(int steps) const { return ((rank_ + steps) % world_size_ + world_size_) % world_size_; }

  Problem problem_;
  int world_size_;
  int rank_;
  Pass pass_;
  std::int64_t num_chunks_ = 1;
  std::int64_t kv_length_;  // of the longest batch entry
  std::vector<Moment> moments_;
  Totals totals_;
  std::int64_t documents_visited_ = 0;
};

// (query, key) pairs that the rows of a rank see, over the whole batch, for one head.
double count_visible_pairs(const Problem& problem, int world_size, int rank);

}  // namespace ringattn
