#include "plan/domain.h"

#include "plan/reach.h"

namespace ringattn {

WorkItem WholeDocuments::item(std::int64_t unit) const {
  const Document& d = document(unit);
  WorkItem item;
  item.band = problem_->band(d);
  item.q_begin = d.q_begin;
  item.kv_begin = d.kv_begin;
  item.shift = problem_->shift(d);
  return item;
}

std::int64_t WholeDocuments::add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                                        RankSet& seeing) const {
  std::int64_t looks = 0;
  for (const std::int64_t unit : units(Side::key_value, owner, begin, end)) {
    if (seeing.is_full()) break;
    ++looks;
    for (const Piece& keys : deal(Side::key_value, owner, unit, begin, end))
      for (const Positions& queries : find_seeing(item(unit), document(unit).q_length, keys, kv_length))
        queries_.add_owners(unit, {queries.begin, 1, queries.end - queries.begin}, seeing);
  }
  return looks;
}

}  // namespace ringattn
