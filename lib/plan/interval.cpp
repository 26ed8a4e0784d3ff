#include "plan/interval.h"

namespace ringattn {

// Walks both pieces in step: from a query, to the first key that is not too early for it; if that key is too late, to the
// first query that is not too early for the key. Where both runs repeat with one stride, a turn that equals the turn before
// it but for whole strides will repeat for ever, so the walk ends after a few turns; else it takes at most one per block.
bool any_visible(const Band& band, const Piece& queries, const Piece& keys, std::int64_t limit) {
  const bool same_stride = queries.run.stride == keys.run.stride;
  std::int64_t i = 0, previous_distance = Band::unbounded, previous_phase = -1;
  while (i < queries.length) {
    const std::int64_t query = queries.position(i);
    const std::int64_t j = keys.count_below(query + band.lower);
    if (j == keys.length) return false;
    const std::int64_t key = keys.position(j);
    if (key >= limit) return false;
    if (key - query <= band.upper) return true;
    const std::int64_t phase = (query - queries.run.start) % queries.run.stride;
    if (same_stride && key - query == previous_distance && phase == previous_phase) return false;
    previous_distance = key - query;
    previous_phase = phase;
    i = queries.count_below(key - band.upper);
  }
  return false;
}

}  // namespace ringattn
