#include "plan/reach.h"

namespace ringattn {

void add_seeing(const Problem& problem, const Piece& keys, std::int64_t kv_length, const Shards& queries,
                RankSet& seeing) {
  const Document& document = problem.documents[static_cast<std::size_t>(keys.document)];
  const Band band = problem.band(document);
  const std::int64_t begin = keys.count_below(band.lower);  // before the first query's band, nobody sees a key
  const std::int64_t end = keys.count_below(kv_length - document.kv_begin);
  if (begin >= end) return;
  const auto add_side_by_side = [&](std::int64_t first, std::int64_t last) {
    const std::int64_t from = std::max<std::int64_t>(0, keys.position(first) - band.upper),
                       to = std::min(document.q_length, keys.position(last) - band.lower + 1);
    if (from < to) queries.add_owners(keys.document, from, to, seeing);
  };
  const std::int64_t block = keys.run.block, gap = keys.run.stride - block;
  if (gap <= band.upper - band.lower) return add_side_by_side(begin, end - 1);
  const std::int64_t second = ((keys.first + begin) / block + 1) * block - keys.first;
  add_side_by_side(begin, std::min(second, end) - 1);
  if (second < end) add_side_by_side(second, std::min(second + block, end) - 1);
}

}  // namespace ringattn
