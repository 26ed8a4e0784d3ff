#include "plan/pass_plan.h"

#include <algorithm>

namespace ringattn {
namespace {

// The heads of a layer as a problem of their own. Its regions say what is seen; the lists that they come from may be long.
std::shared_ptr<Problem> problem_of(const Problem& whole, const HeadSet& heads) {
  Problem p = whole;
  p.num_heads_q = heads.count_q();
  p.num_heads_kv = heads.count_kv;
  p.is_partial = true;
  p.slices = std::vector<MaskSlice>();  // with the room that they took
  p.documents = std::vector<Document>();
  p.num_sinks = 0;  // they join the results of all layers together
  if (p.schedule == Schedule::automatic) p.schedule = Schedule::ring;
  return std::make_shared<Problem>(std::move(p));
}

}  // namespace

PassPlan::PassPlan(const Problem& problem, int world_size, int rank, Pass pass)
    : problem_(std::make_shared<Problem>(problem)), rank_(rank), pass_(pass), documents_(problem_, world_size) {
  if (!problem_->is_layered()) {
    whole_ = std::make_unique<const Plan>(problem_, std::make_shared<const WholeDocuments>(problem_, world_size),
                                          world_size, rank, pass);
    totals_ = whole_->totals();
    visible_pairs_ = count_visible_pairs(*problem_, documents_, rank) * static_cast<double>(problem_->num_heads_q);
    return;
  }
  const std::vector<Layer> layers = find_layers(problem_, world_size);
  layers_ = plan_layers(layers, world_size, pass);
  if (pass == Pass::backward && problem_->dilation_gradient == DilationGradient::constant_weights)
    outputs_ = plan_layers(layers, world_size, Pass::forward);
  for_each_plan([&](const Plan& plan) {
    totals_.steps += plan.totals().steps;
    totals_.hops += plan.totals().hops;
    totals_.hop_bytes += plan.totals().hop_bytes;
  });
  for (const LayerPlan& layer : layers_)
    visible_pairs_ +=
        count_visible_pairs(layer.plan.problem(), *layer.regions, rank) * static_cast<double>(layer.heads.count_q());
}

void PassPlan::set_dropout(const Dropout& dropout) {
  problem_->dropout = dropout;
  for (const std::shared_ptr<Problem>& p : layer_problems_) p->dropout = dropout;
}

std::vector<LayerPlan> PassPlan::plan_layers(const std::vector<Layer>& layers, int world_size, Pass pass) {
  std::vector<LayerPlan> plans;
  for (const Layer& layer : layers) {
    const std::shared_ptr<const LayerRegions>& regions = layer.regions;
    layer_problems_.push_back(problem_of(*problem_, layer.heads));
    Plan plan(layer_problems_.back(), regions, world_size, rank_, pass);
    const bool keeps_all = layer.heads.count_q() == problem_->num_heads_q && plan.query_rows() == query_rows() &&
                           plan.query_stretches() == std::vector<Stretch>{{0, query_rows(), 1}};
    plans.push_back({layer.branch, layer.heads, regions, std::move(plan), keeps_all});
  }
  return plans;
}

template <class F>
void PassPlan::for_each_plan(F&& f) const {
  if (whole_ != nullptr) f(*whole_);
  for (const std::vector<LayerPlan>* const plans : {&layers_, &outputs_})
    for (const LayerPlan& layer : *plans) f(layer.plan);
}

Schedule PassPlan::schedule() const {
  Schedule schedule = Schedule::ring;
  for_each_plan([&](const Plan& plan) { schedule = plan.schedule(); });
  return schedule;
}

std::int64_t PassPlan::num_chunks() const {
  std::int64_t most = 1;
  for_each_plan([&](const Plan& plan) { most = std::max(most, plan.num_chunks()); });
  return most;
}

std::int64_t PassPlan::num_parts() const {
  std::int64_t parts = 0;
  for_each_plan([&](const Plan& plan) { parts += plan.num_parts(); });
  return parts;
}

}  // namespace ringattn
