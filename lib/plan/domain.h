// What a plan is about, in units that attend by themselves: the documents of a problem, or the regions of one of its layers (layer.h).
//
// A rank's rows of a domain are those that it owns of the units, one unit behind the other. Of whole documents these are the rows of
// its shard; of a layer they are some of them, and where they are packed they lie densely in this order. A piece (shard.h) says where
// its rows are in the shard.
//
// No two units share a query or a key.
#pragma once

#include <cstdint>
#include <memory>
#include <ranges>

#include "plan/interval.h"
#include "plan/problem.h"
#include "plan/shard.h"

namespace ringattn {

class Domain {
 public:
  using Units = Shards::Documents;

  virtual ~Domain() = default;
  virtual Units units() const = 0;
  virtual std::int64_t rows(Side side, int rank) const = 0;
  // What no piece of any unit is longer than.
  virtual std::int64_t longest_piece(Side side, int rank) const = 0;
  // Of the rank's, those before that unit.
  virtual std::int64_t first_row(Side side, int rank, std::int64_t unit) const = 0;
  // Units that rows begin .. end - 1 belong to, and all that a rank has any rows of; between them may be others.
  virtual Units units(Side side, int rank, std::int64_t begin, std::int64_t end) const = 0;
  Units units(Side side, int rank) const { return units(side, rank, 0, rows(side, rank)); }
  // What a rank has of a unit, and what rows begin .. end - 1 in the order of dealing have of it (Shards::deal).
  virtual Share share(Side side, int rank, std::int64_t unit) const = 0;
  virtual Share deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const = 0;

  // Without queries and keys.
  virtual WorkItem item(std::int64_t unit) const = 0;
  virtual std::int64_t num_keys(std::int64_t unit) const = 0;
  // Adds the ranks that have a query which sees any of the keys that rows begin .. end - 1 of `owner`, in the order of dealing, have.
  // `kv_length`: keys of the whole sequence before padding. Returns how many units have been looked at for it.
  virtual std::int64_t add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                                  RankSet& seeing) const = 0;

 protected:
  Domain() = default;
  Domain(const Domain&) = default;
  Domain& operator=(const Domain&) = default;
};

// All documents of a problem, in closed form.
class WholeDocuments final : public Domain {
 public:
  WholeDocuments(std::shared_ptr<const Problem> problem, int world_size)
      : problem_(std::move(problem)),
        queries_(*problem_, Side::query, world_size),
        keys_(*problem_, Side::key_value, world_size) {}

  Units units() const override { return queries_.documents(); }
  std::int64_t rows(Side side, int rank) const override { return of(side).rows(rank); }
  std::int64_t longest_piece(Side side, int rank) const override { return of(side).longest_piece(rank); }
  std::int64_t first_row(Side side, int rank, std::int64_t unit) const override {
    return of(side).first_row(rank, unit);
  }
  using Domain::units;
  Units units(Side side, int rank, std::int64_t begin, std::int64_t end) const override {
    return of(side).documents(rank, begin, end);
  }
  Share share(Side side, int rank, std::int64_t unit) const override { return of(side).share(rank, unit); }
  Share deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const override {
    return of(side).deal(rank, unit, begin, end);
  }
  WorkItem item(std::int64_t unit) const override;
  std::int64_t num_keys(std::int64_t unit) const override { return document(unit).kv_length; }
  std::int64_t add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                          RankSet& seeing) const override;

 private:
  const Shards& of(Side side) const { return side == Side::query ? queries_ : keys_; }
  const Document& document(std::int64_t unit) const { return problem_->documents[static_cast<std::size_t>(unit)]; }

  std::shared_ptr<const Problem> problem_;
  Shards queries_, keys_;
};

}  // namespace ringattn
