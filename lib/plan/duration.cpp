#include "plan/duration.h"

#include <algorithm>
#include <deque>

namespace ringattn {
namespace {

constexpr std::int64_t looked_at = 256;  // rows of a piece: what they see is linear but for a few bends

double count_pairs(const WorkItem& item, const Piece& queries, const Piece& keys, std::int64_t kv_length) {
  const std::int64_t samples = std::min(queries.length, looked_at);
  double sum = 0;
  for (std::int64_t n = 0; n < samples; ++n) {  // the row in the middle of each of so many parts
    const Interval seen = item.visible(queries, (2 * n + 1) * queries.length / (2 * samples), keys, kv_length);
    sum += static_cast<double>(seen.hi - seen.lo);
  }
  return samples == 0 ? 0 : sum * static_cast<double>(queries.length) / static_cast<double>(samples);
}

// The ranks' plans of one layer, or of the whole problem, and when each rank has come how far.
class Clocks {
 public:
  Clocks(const Rates& rates, int world_size)
      : rates_(rates), now_(static_cast<std::size_t>(world_size)), compute_(now_.size()) {
    if (world_size > 1) std::ranges::fill(now_, 2 * rates.link_seconds);  // all agree, by way of one of them
  }

  void pass(const std::vector<const Plan*>& plans) {
    const std::int64_t moments = std::ssize(plans.front()->moments());
    for (std::int64_t part = 0; part < plans.front()->num_parts(); ++part)
      for (std::int64_t n = 0; n < moments; ++n) pass_moment(plans, n);
    work_.clear();
  }

  Duration of(int rank) const {
    const auto r = static_cast<std::size_t>(rank);
    return {now_[r], compute_[r]};
  }

 private:
  struct Work {  // of one rank in one moment
    double seconds = 0, sent = 0, received = 0;
  };

  // That of all ranks. Parts are alike, so it is found once for each moment.
  const std::vector<Work>& work_of(const std::vector<const Plan*>& plans, std::int64_t moment) {
    if (moment < std::ssize(work_)) return work_[static_cast<std::size_t>(moment)];
    std::vector<Work>& all = work_.emplace_back();
    for (const Plan* const plan : plans) {
      const Moment& m = plan->moments()[static_cast<std::size_t>(moment)];
      Work& work = all.emplace_back();
      const double pairs = count_step_pairs(*plan, m) / static_cast<double>(plan->num_parts());
      work.seconds = pairs * flops_per_pair(plan->problem(), plan->pass()) / rates_.flops;
      for (const Transfer& t : plan->transfers(m)) (t.sends ? work.sent : work.received) += bytes_of(*plan, t, m);
    }
    return all;
  }

  static double bytes_of(const Plan& plan, const Transfer& transfer, const Moment& m) {
    const std::int64_t rows = plan.chunk_rows(transfer.owner, m.chunk);
    return static_cast<double>(transfer.kind == Transfer::gradients ? plan.gradient_bytes(rows)
                                                                    : plan.chunk_bytes(rows));
  }

  void pass_moment(const std::vector<const Plan*>& plans, std::int64_t moment) {
    const std::vector<Work>& work = work_of(plans, moment);
    std::vector<double> next = now_;
    for (std::size_t r = 0; r < plans.size(); ++r) {
      next[r] = std::max(next[r], now_[r] + work[r].seconds);
      compute_[r] += work[r].seconds;
      for (const Transfer& t : plans[r]->transfers(plans[r]->moments()[static_cast<std::size_t>(moment)])) {
        if (!t.sends) continue;
        const auto peer = static_cast<std::size_t>(t.peer);
        const double end = std::max(now_[r], now_[peer]) + rates_.link_seconds +
                           std::max(work[r].sent, work[peer].received) / rates_.link_bytes;
        next[r] = std::max(next[r], end);
        next[peer] = std::max(next[peer], end);
      }
    }
    now_ = std::move(next);
  }

  const Rates rates_;
  std::vector<double> now_, compute_;
  std::deque<std::vector<Work>> work_;  // of the moments of this layer
};

}  // namespace

double count_step_pairs(const Plan& plan, const Moment& moment) {
  if (!moment.computes) return 0;
  const Problem& p = plan.problem();
  const std::int64_t entries = p.kv_lengths.empty() ? 1 : p.batch;  // without padding all entries are alike
  double pairs = 0;
  const StepItems work = plan.items(moment, false);
  for (const WorkItem& item : work.items)
    for (const Piece& queries : item.queries)
      for (const Piece& keys : item.keys)
        for (std::int64_t b = 0; b < entries; ++b) pairs += count_pairs(item, queries, keys, p.kv_length(b));
  return pairs * static_cast<double>(p.batch / entries * p.num_heads_q);
}

Duration estimate_duration(const Problem& problem, int world_size, int rank, Pass pass, const Rates& rates) {
  std::deque<PassPlan> passes;
  for (int r = 0; r < world_size; ++r) passes.emplace_back(problem, world_size, r, pass);
  Clocks clocks(rates, world_size);
  const auto run = [&](const auto& plan_of) {
    std::vector<const Plan*> plans;
    for (const PassPlan& p : passes) plans.push_back(&plan_of(p));
    clocks.pass(plans);
  };
  if (!passes.front().has_layers()) {
    run([](const PassPlan& p) -> const Plan& { return p.whole(); });
    return clocks.of(rank);
  }
  for (std::size_t n = 0; n < passes.front().outputs().size(); ++n)
    run([n](const PassPlan& p) -> const Plan& { return p.outputs()[n].plan; });
  for (std::size_t n = 0; n < passes.front().layers().size(); ++n)
    run([n](const PassPlan& p) -> const Plan& { return p.layers()[n].plan; });
  return clocks.of(rank);
}

}  // namespace ringattn
