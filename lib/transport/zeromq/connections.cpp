#include "transport/zeromq/connections.h"

#include <algorithm>

namespace ringattn::zeromq {

Bringer Connections::bringer(int descriptor, std::uint64_t cookie) const {
  const auto found = std::ranges::find(all_, descriptor, &Connection::descriptor);
  const bool is_ranks = found != all_.end();
  if (descriptor < 0 || (is_ranks && found->cookie != cookie)) return {-1, false, false, descriptor, cookie};
  if (!is_ranks) return {-1, false, true, descriptor, cookie};
  return {found->rank, found->is_alone, true, descriptor, cookie};
}

bool Connections::may_be_from(int rank, const Bringer& bringer) const {
  if (!bringer.is_known || bringer.rank == rank) return true;
  return bringer.rank < 0 && std::ranges::find(all_, rank, &Connection::rank) == all_.end();
}

void Connections::note(int rank, const Bringer& bringer) {
  if (bringer.is_known && bringer.rank < 0) all_.push_back({bringer.descriptor, rank, bringer.cookie});
}

void Connections::note_drained() {
  for (Connection& connection : all_) connection.is_alone = true;
}

}  // namespace ringattn::zeromq
