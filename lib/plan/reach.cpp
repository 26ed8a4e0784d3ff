#include "plan/reach.h"

#include <algorithm>

namespace ringattn {

std::array<Positions, 2> find_seeing(const WorkItem& unit, std::int64_t q_length, const Piece& keys,
                                     std::int64_t kv_length) {
  const Band& band = unit.band;
  const std::int64_t begin = keys.count_below(band.lower);  // before the first query's band, nobody sees a key
  const std::int64_t end = keys.count_below(unit.positions_before(kv_length));
  if (begin >= end || band.lower > band.upper) return {};
  const auto seeing = [&](std::int64_t first, std::int64_t last) -> Positions {
    const std::int64_t from = std::max<std::int64_t>(0, keys.position(first) - band.upper),
                       to = std::min(q_length, keys.position(last) - band.lower + 1);
    return {from, std::max(from, to)};
  };
  const std::int64_t block = keys.run.block, gap = keys.run.stride - block;
  if (gap <= band.upper - band.lower) return {seeing(begin, end - 1)};
  const std::int64_t second = ((keys.first + begin) / block + 1) * block - keys.first;
  if (second >= end) return {seeing(begin, end - 1)};
  return {seeing(begin, second - 1), seeing(second, std::min(second + block, end) - 1)};
}

}  // namespace ringattn
