// A schedule as data: what one rank sends, receives and computes at each moment, and where it has it. The ring:
//
//   for chunk c of every shard:                      outer, so that two chunk buffers are all that is ever in flight
//     for a tour in each direction that is needed:   downstream to rank + 1, then upstream to rank - 1
//       for time t = 0, 1, ...:                      at time t a rank holds the chunk of the rank t places behind it
//         hand on what is held, take in the next; compute the step if a row sees a key of what is held
//
// A chunk's reach in each direction is the least that visits every rank that sees any of it, so a window shorter than a
// shard makes one hop and a chunk nobody else sees makes none. In the backward pass a chunk's gradients follow one moment
// behind it: what was added at time t travels at time t + 1, and from the last rank straight home to the owner.
//
// And all_gather, for one part of the problem after the other (schedule.h):
//
//   for chunk c of every shard:
//     send the own chunk to all ranks that see it, take in all that this one sees; compute the own one
//     for time t = 1, 2, ...:                        compute with the chunk of the rank t places behind, if a row sees a key of it
//     backward: send each chunk's gradients to its owner, take in the others' of the own one, and add them, the nearest's first
//
// K and V lie in chunk slots and their gradients in gradient slots: all that a rank does is said in terms of these, so that whoever
// carries out a plan does not ask which schedule it is. Slot 0 has the own chunk first, and the own gradients when they are complete.
//
// All ranks have the same moments, one after the other, and both ends of a transfer have it in the same one. It begins and ends within
// that moment, which both reach whatever others do, so that no schedule can deadlock.
//
// A chunk holds as many tokens of a document's front piece as of its back piece (shard.h), because under a causal mask the two
// are seen by different numbers of queries: at every moment the ranks of a zigzag ring have equal work.
//
// Pure: no threads, no memory, no device. Every rank computes the same reaches from the same problem. A plan keeps the problem and
// a moment for each chunk and rank; what anybody owns is worked out when it is asked for, for the documents of one chunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "plan/domain.h"
#include "plan/interval.h"
#include "plan/problem.h"
#include "plan/schedule.h"
#include "plan/shard.h"

namespace ringattn {

constexpr int nobody = -1;

// A chunk's K and V, or their gradients, on their way to another rank or from it.
struct Transfer {
  enum Kind : std::uint8_t { keys_and_values, gradients } kind;
  bool sends;
  int peer;
  int owner;  // of the chunk
  int slot;   // of the kind's slots
};

// At the end of a moment: gradients that have arrived are added to others of the same chunk.
struct Addition {
  int from, to;  // gradient slots
  int owner;     // of the chunk
};

// One moment of one rank.
struct Moment {
  std::int64_t chunk = 0;
  int holds = nobody;     // owner of the chunk to compute with ...
  int slot = 0;           // ... and its chunk slot
  int gradient_slot = 0;  // for what is computed
  bool packs = false;     // the own chunk, into that slot, before anything else
  bool begins_chunk = false;
  bool computes = false;        // some row of this rank sees a key of what is held
  bool finishes_chunk = false;  // at its end the own gradients are complete
  std::uint32_t transfers = 0;  // of the plan's, those up to the next moment's
  std::uint32_t additions = 0;  // the same
};

// What a rank will have done at the end of the pass.
struct Totals {
  std::int64_t steps = 0;
  std::int64_t hops = 0;
  std::int64_t hop_bytes = 0;
  friend bool operator==(const Totals&, const Totals&) = default;
};

// What one part of a problem begins with.
struct Part {
  std::int64_t entry = 0;
  std::int64_t head_kv = 0;
};

// Rows row, row + step, ... of a shard.
struct Stretch {
  std::int64_t row = 0;
  std::int64_t length = 0;
  std::int64_t step = 1;
  bool operator==(const Stretch&) const = default;
};

// The work items of one step, with the storage that they refer to.
struct StepItems {
  std::vector<Piece> queries, keys;
  std::vector<WorkItem> items;
};

class Plan {
 public:
  // Of all documents.
  Plan(const Problem& problem, int world_size, int rank, Pass pass);
  // Of a part of the attention that `problem` asks for: rows are those of the domain.
  Plan(std::shared_ptr<const Problem> problem, std::shared_ptr<const Domain> domain, int world_size, int rank,
       Pass pass);

  const Problem& problem() const { return *problem_; }
  const Domain& domain() const { return *domain_; }
  int world_size() const { return world_size_; }
  int rank() const { return rank_; }
  Pass pass() const { return pass_; }

  Schedule schedule() const { return cutting_.schedule; }
  std::int64_t num_chunks() const { return cutting_.num_chunks; }
  std::int64_t query_rows() const { return domain_->rows(Side::query, rank_); }
  std::int64_t longest_query_piece() const { return domain_->longest_piece(Side::query, rank_); }
  std::int64_t key_rows(int owner) const { return domain_->rows(Side::key_value, owner); }

  std::int64_t chunk_rows(int owner, std::int64_t chunk) const {
    return chunk_begin(owner, chunk + 1) - chunk_begin(owner, chunk);
  }
  std::int64_t longest_chunk() const;  // rows, over all owners

  // The keys of a chunk. Rows are those of the owner's shard.
  std::vector<SpacedPiece> chunk_keys(int owner, std::int64_t chunk) const;
  // The same as stretches of storage, those that touch in one: of whole documents three at most, since they follow one another.
  std::vector<Stretch> chunk_stretches(int owner, std::int64_t chunk) const;
  // Where this rank's query rows are in its shard.
  std::vector<Stretch> query_stretches() const;

  // The moments are those of one part, and are gone through for each. All have as many entries and heads.
  std::int64_t num_parts() const;
  Part part(std::int64_t n) const;
  std::int64_t part_entries() const { return cutting_.entries; }
  std::int64_t part_heads_kv() const { return cutting_.heads_kv; }

  // One chunk as it travels: K, packed [entries, rows, heads, head_dim] of a part, V, the same with head_dim_v, and where the problem
  // has one the keys' bias, fp32 [entries, rows], at that offset.
  std::int64_t chunk_bytes(std::int64_t rows) const;
  std::int64_t key_bias_offset(std::int64_t rows) const;
  // Their gradients, fp32, in the same order.
  std::int64_t gradient_bytes(std::int64_t rows) const;

  const std::vector<Moment>& moments() const { return moments_; }
  // Whether each row begins and ends in one step, so that there is no running result between steps.
  bool has_one_step() const { return moments_.size() == 1 && !problem_->is_partial; }
  std::span<const Transfer> transfers(const Moment& moment) const {
    return between(transfers_, moment, &Moment::transfers);
  }
  std::span<const Addition> additions(const Moment& moment) const {
    return between(additions_, moment, &Moment::additions);
  }
  // Whether dK and dV are added to the caller's tensors straight away.
  bool adds_directly() const { return !packs() && problem_->stored_grad() == DType::float32; }
  // Of the size of the longest chunk. Without a chunk slot the caller's shard is what is held, and needs no packing.
  int chunk_slots() const { return chunk_slots_; }
  int gradient_slots() const { return gradient_slots_; }
  const Totals& totals() const { return totals_; }  // of all parts
  // False where the only chunk is the whole shard and stays at home: nothing has to be packed.
  bool packs() const { return world_size_ > 1 || num_chunks() > 1 || problem_->is_partial; }

  // Work of a step; its keys are packed. `all_rows`: also list the queries that see nothing of it, so that their results are begun or ended.
  StepItems items(const Moment& moment, bool all_rows) const;

  // What making the plan has cost: units looked at, at most once for each chunk that has keys of one.
  std::int64_t units_visited() const { return units_visited_; }

 private:
  struct Reach {
    int downstream = 0;
    int upstream = 0;
    bool here = false;  // this rank sees the chunk
    int in(int direction) const { return direction > 0 ? downstream : upstream; }
  };
  std::int64_t longest_shard() const;
  std::int64_t chunk_begin(int owner, std::int64_t chunk) const {  // in the order of dealing
    return Cut(key_rows(owner), num_chunks()).begin(chunk);
  }
  // The ranks that see a chunk, by their distance from its owner.
  RankSet find_seeing(int owner, std::int64_t chunk);
  Reach find_reach(int owner, std::int64_t chunk);
  void add_tours(std::int64_t chunk);
  void add_tour(std::int64_t chunk, int direction, const std::vector<Reach>& reaches);
  void add_gathering(std::int64_t chunk);
  Moment& add_moment(std::int64_t chunk);
  void add_transfer(const Transfer& transfer, std::int64_t chunk);
  template <class T>
  std::span<const T> between(const std::vector<T>& all, const Moment& moment, std::uint32_t Moment::*begin) const {
    const bool is_last = &moment == &moments_.back();
    const std::size_t first = moment.*begin, end = is_last ? all.size() : (&moment)[1].*begin;
    return std::span(all).subspan(first, end - first);
  }
  int at_distance(int steps) const { return ((rank_ + steps) % world_size_ + world_size_) % world_size_; }

  std::shared_ptr<const Problem> problem_;
  std::shared_ptr<const Domain> domain_;
  int world_size_;
  int rank_;
  Pass pass_;
  Cutting cutting_;
  std::int64_t kv_length_;  // of the longest batch entry
  int chunk_slots_ = 0;
  int gradient_slots_ = 0;
  std::vector<Moment> moments_;
  std::vector<Transfer> transfers_;  // of all moments, in their order; as are
  std::vector<Addition> additions_;
  Totals totals_;
  std::int64_t units_visited_ = 0;
};

// (query, key) pairs that the rows of a rank see, over the whole batch, for one head.
double count_visible_pairs(const Problem& problem, const Domain& domain, int rank);

}  // namespace ringattn
