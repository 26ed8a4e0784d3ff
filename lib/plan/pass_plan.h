// What one rank does in a whole pass: a plan for the problem, or where it is computed in layers (layer.h) one for each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/layer.h"
#include "plan/plan.h"

namespace ringattn {

struct LayerPlan {
  std::int64_t branch;
  HeadSet heads;
  std::shared_ptr<const LayerRegions> regions;
  Plan plan;
  bool keeps_all;  // the rank's queries of the whole problem, in the order in which they lie, in all heads
};

class PassPlan {
 public:
  PassPlan(const Problem& problem, int world_size, int rank, Pass pass);

  const Problem& problem() const { return *problem_; }
  // Nothing else in a plan depends on it.
  void set_dropout(const Dropout& dropout);
  int rank() const { return rank_; }
  Pass pass() const { return pass_; }

  // Of a problem that is not computed in layers.
  const Plan& whole() const { return *whole_; }
  bool has_layers() const { return whole_ == nullptr; }
  // Each is a problem by itself that goes on with what the ones before it have (Problem::is_partial).
  const std::vector<LayerPlan>& layers() const { return layers_; }
  // In a backward pass, what makes each layer's output again: where Problem::dilation_gradient is constant_weights, else none.
  const std::vector<LayerPlan>& outputs() const { return outputs_; }

  std::int64_t query_rows() const { return documents_.rows(Side::query, rank_); }  // of the shard
  std::int64_t key_rows() const { return documents_.rows(Side::key_value, rank_); }

  Schedule schedule() const;        // of all layers
  std::int64_t num_chunks() const;  // most of any layer
  std::int64_t num_parts() const;   // of all layers together
  const Totals& totals() const { return totals_; }
  // (query, key) pairs that the rank's rows see, over batch and heads.
  double visible_pairs() const { return visible_pairs_; }

 private:
  std::vector<LayerPlan> plan_layers(const std::vector<Layer>& layers, int world_size, Pass pass);
  template <class F>
  void for_each_plan(F&& f) const;

  std::shared_ptr<Problem> problem_;
  std::vector<std::shared_ptr<Problem>> layer_problems_;
  int rank_;
  Pass pass_;
  WholeDocuments documents_;
  std::unique_ptr<const Plan> whole_;
  std::vector<LayerPlan> layers_, outputs_;
  Totals totals_;
  double visible_pairs_ = 0;
};

}  // namespace ringattn
