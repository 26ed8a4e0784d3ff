#include "plan/problem.h"

#include <algorithm>

namespace ringattn {

std::int64_t Problem::longest_kv() const {
  return kv_lengths.empty() ? seqlen_kv : *std::max_element(kv_lengths.begin(), kv_lengths.end());
}

Band Problem::band(const Document& document) const {
  const std::int64_t shift = this->shift(document);
  Band band;
  if (window_left >= 0) band.lower = shift - std::min(window_left, Band::unbounded);
  if (window_right >= 0) band.upper = shift + std::min(window_right, Band::unbounded);
  if (causal) band.upper = std::min(band.upper, shift);
  return band;
}

}  // namespace ringattn
