// One part of a call (plan/schedule.h) as a call of its own: its problem, and the caller's tensors from its first entry and head on.
#pragma once

#include <cstddef>

#include "plan/plan.h"
#include "ring/journey.h"
#include "ring/ring.h"

namespace ringattn {

class PartProblem {
 public:
  explicit PartProblem(const Plan& plan) : plan_(plan) {
    if (plan.num_parts() == 1) return;
    own_ = plan.problem();
    own_.batch = plan.part_entries();
    own_.num_heads_q = plan.part_heads_kv() * own_.group();
    own_.num_heads_kv = plan.part_heads_kv();
  }

  // Until it is asked for another part. Parts differ in their padding alone.
  const Problem& of(const Part& part) {
    const Problem& whole = plan_.problem();
    if (plan_.num_parts() == 1) return whole;
    const auto entry = whole.kv_lengths.begin() + (whole.kv_lengths.empty() ? 0 : part.entry);
    if (!whole.kv_lengths.empty()) own_.kv_lengths.assign(entry, entry + own_.batch);
    return own_;
  }

 private:
  const Plan& plan_;
  Problem own_;
};

class PartTensors {
 public:
  PartTensors(const Plan& plan, const Part& part)
      : part_(part),
        head_q_(part.head_kv * plan.problem().group()),
        lane_((part.entry * plan.problem().num_heads_q + head_q_) * plan.query_rows()) {}

  Tensor of_queries(const Tensor& whole) const { return whole.from(part_.entry, 0, head_q_); }
  Tensor of_keys(const Tensor& whole) const { return whole.from(part_.entry, 0, part_.head_kv); }
  Tensor of_key_bias(const Tensor& whole) const { return whole.from(part_.entry, 0, 0); }
  // [num_heads_q, count]; may be null.
  template <class T>
  T* of_heads(T* whole, std::int64_t count) const {
    return whole == nullptr ? nullptr : whole + head_q_ * count;
  }
  Origin origin(const Origin& of_whole) const {
    return {of_whole.entry + part_.entry, of_whole.head + head_q_ * of_whole.head_step, of_whole.head_step};
  }
  // [batch, num_heads_q, query rows]; several entries are so with all heads only. May be null.
  template <class T>
  T* of_rows(T* whole) const {
    return whole == nullptr ? nullptr : whole + lane_;
  }

 private:
  Part part_;
  std::int64_t head_q_, lane_;
};

}  // namespace ringattn
