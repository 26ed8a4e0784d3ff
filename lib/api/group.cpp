#include "api/group.h"

#include <cstring>

#include "api/barrier.h"
#include "api/validate.h"
#include "plan/problem.h"
#include "transport/local.h"
#include "transport/nccl.h"

namespace ringattn::api {

void require_place(const ra_context_config &c) {
  require_range("world_size", c.world_size, 1, most_ranks);
  require_range("rank", c.rank, 0, c.world_size - 1);
}

void require_here(std::int32_t transport) {
  require_range("transport", transport, RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL);
  if (transport == RA_TRANSPORT_ZEROMQ)
    fail(RA_STATUS_NOT_SUPPORTED, "transport is ", transport,
         " (RA_TRANSPORT_ZEROMQ), which this version does not have yet");
  if (transport != RA_TRANSPORT_NCCL) return;
  const std::string missing = missing_nccl();
  if (!missing.empty()) fail(RA_STATUS_NOT_SUPPORTED, "transport is ", transport, " (RA_TRANSPORT_NCCL); ", missing);
}

std::string to_local_id(const ra_context_config &c) {
  require(c.nccl_comm == nullptr, "nccl_comm is ", c.nccl_comm, "; must be NULL with RA_TRANSPORT_LOCAL");
  require(c.bind_address == nullptr, "bind_address is \"", c.bind_address == nullptr ? "" : c.bind_address,
          "\"; must be NULL with RA_TRANSPORT_LOCAL");
  if (c.unique_id == nullptr) {
    require(c.world_size == 1, "unique_id is NULL while world_size is ", c.world_size,
            "; must come from ra_create_unique_id");
    return make_local_id();
  }
  const std::string id(c.unique_id, strnlen(c.unique_id, sizeof(ra_unique_id::text)));
  require(is_local_id(id), "unique_id is \"", id.substr(0, 64),
          "\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_LOCAL");
  require(is_own_local_id(id), "unique_id is \"", id.substr(0, 64),
          "\"; must be made in this process, whole and unchanged");
  return id;
}

void refuse(const ra_context_config &c) noexcept {
  if (c.world_size == 1 || c.transport != RA_TRANSPORT_LOCAL) return;
  ra_error why;
  clear(&why);
  const ra_status status = report_exception(&why, c.rank);
  try {
    require_place(c);
    ra_context_config group = c;  // whatever else is wrong with it
    group.nccl_comm = nullptr;
    group.bind_address = nullptr;
    refuse_local(to_local_id(group), c.world_size, c.rank, status, why.message);
  } catch (...) {
    // They find out by their time-outs.
  }
}

}  // namespace ringattn::api
