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

void WholeDocuments::add_seeing(const Piece& keys, std::int64_t kv_length, RankSet& seeing) const {
  ringattn::add_seeing(*problem_, keys, kv_length, queries_, seeing);
}

}  // namespace ringattn
