// What a row has of its keys beside its output (engine.h), on a CPU: max is the largest score so far.
#pragma once

#include <cmath>
#include <limits>

namespace ringattn::cpu {

struct RowState {
  float max, sum;

  // One key of that score without a value; of -infinity none.
  static RowState begin(float sink) { return {sink, sink == -std::numeric_limits<float>::infinity() ? 0.0F : 1.0F}; }

  // log(exp(max) sum), rounded once.
  float lse() const {
    if (sum == 0.0F) return -std::numeric_limits<float>::infinity();
    return static_cast<float>(static_cast<double>(max) + std::log(static_cast<double>(sum)));
  }
};

}  // namespace ringattn::cpu
