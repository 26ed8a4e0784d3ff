#include "api/group.h"

#include <cstring>

#include "api/barrier.h"
#include "api/validate.h"
#include "plan/problem.h"
#include "transport/local.h"

namespace ringattn::api {
namespace {

const char *name_of(std::int32_t transport) {
  return transport == RA_TRANSPORT_LOCAL    ? "RA_TRANSPORT_LOCAL"
         : transport == RA_TRANSPORT_ZEROMQ ? "RA_TRANSPORT_ZEROMQ"
                                            : "RA_TRANSPORT_NCCL";
}

void require_none(const char *field, const char *value, std::int32_t transport) {
  require(value == nullptr, field, " is \"", value == nullptr ? "" : value, "\"; must be NULL with ",
          name_of(transport));
}

// A group of one needs no id.
bool is_alone(const ra_context_config &c) {
  require(c.nccl_comm == nullptr, "nccl_comm is ", c.nccl_comm, "; must be NULL with ", name_of(c.transport));
  require(c.unique_id != nullptr || c.world_size == 1, "unique_id is NULL while world_size is ", c.world_size,
          "; must come from ra_create_unique_id");
  return c.unique_id == nullptr;
}

// What only ranks over ZeroMQ choose.
void require_no_links(const ra_context_config &c) {
  require_none("bind_address", c.bind_address, c.transport);
  require(c.encryption == RA_ENCRYPTION_ON, "encryption is ", c.encryption, "; must be 0 with ", name_of(c.transport));
}

// For ranks that come together over ZeroMQ, whatever carries their data: as `what` says.
void require_zeromq(const char *what) {
  const std::string missing = missing_zeromq();
  if (!missing.empty()) fail(RA_STATUS_NOT_SUPPORTED, what, "; ", missing);
}

std::string show_id(const std::string &id) { return id.substr(0, 20); }  // in which nothing is secret

std::string id_of(const ra_context_config &c) {
  return {c.unique_id, strnlen(c.unique_id, sizeof(ra_unique_id::text))};
}

}  // namespace

void require_place(const ra_context_config &c) {
  require_range("world_size", c.world_size, 1, most_ranks);
  require_range("rank", c.rank, 0, c.world_size - 1);
}

void require_here(std::int32_t transport) {
  require_range("transport", transport, RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL);
  if (transport == RA_TRANSPORT_LOCAL) return;
  const std::string missing = transport == RA_TRANSPORT_NCCL ? missing_nccl() : missing_zeromq();
  if (!missing.empty())
    fail(RA_STATUS_NOT_SUPPORTED, "transport is ", transport, " (", name_of(transport), "); ", missing);
}

std::string make_id(std::int32_t transport, const char *bind_address) {
  require_here(transport);
  if (transport == RA_TRANSPORT_ZEROMQ) return make_zeromq_id(bind_address);
  if (transport == RA_TRANSPORT_LOCAL) {
    require_none("bind_address", bind_address, transport);
    return make_local_id();
  }
  if (bind_address == nullptr) return make_nccl_id();
  require_zeromq("bind_address is not NULL: ranks come together there over ZeroMQ");
  return make_zeromq_id(bind_address);
}

std::string to_local_id(const ra_context_config &c) {
  require_no_links(c);
  if (is_alone(c)) return make_local_id();
  const std::string id = id_of(c);
  require(is_local_id(id), "unique_id is \"", show_id(id),
          "\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_LOCAL");
  require(is_own_local_id(id), "unique_id is \"", show_id(id), "\"; must be made in this process, whole and unchanged");
  return id;
}

ZeromqGroup to_zeromq_group(const ra_context_config &c) {
  require_range("encryption", c.encryption, RA_ENCRYPTION_ON, RA_ENCRYPTION_OFF);
  const bool alone = is_alone(c);
  const std::string id = alone ? std::string() : id_of(c);
  require(alone || !id.empty(),
          "unique_id is \"\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_ZEROMQ");
  return {id, c.bind_address == nullptr ? "" : c.bind_address, c.encryption == RA_ENCRYPTION_ON, c.world_size, c.rank};
}

NcclGroup to_nccl_group(const ra_context_config &c) {
  require_no_links(c);
  NcclGroup group{{}, static_cast<ncclComm *>(c.nccl_comm), c.world_size, c.rank};
  if (group.borrowed != nullptr) {
    require(c.unique_id == nullptr, "unique_id is set; must be NULL with an nccl_comm");
  } else if (c.unique_id == nullptr) {
    require(c.world_size == 1, "unique_id is NULL while world_size is ", c.world_size,
            "; must come from ra_create_unique_id, or nccl_comm be set");
    group.id = make_nccl_id();
  } else {
    group.id = id_of(c);
    require(is_nccl_id(group.id) || is_zeromq_id(group.id), "unique_id is \"", show_id(group.id),
            "\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_NCCL");
    if (is_zeromq_id(group.id)) require_zeromq("unique_id is of ranks that come together over ZeroMQ");
  }
  return group;
}

void refuse(const ra_context_config &c) noexcept {
  if (c.world_size == 1) return;
  ra_error why;
  clear(&why);
  const ra_status status = report_exception(&why, c.rank);
  try {
    require_place(c);
    ra_context_config group = c;  // whatever else is wrong with it
    group.nccl_comm = nullptr;
    group.bind_address = nullptr;
    group.encryption = RA_ENCRYPTION_ON;
    if (c.transport == RA_TRANSPORT_LOCAL)
      refuse_local(to_local_id(group), c.world_size, c.rank, status, why.message);
    else if (c.transport == RA_TRANSPORT_ZEROMQ || (c.unique_id != nullptr && is_zeromq_id(id_of(c))))
      refuse_zeromq(to_zeromq_group(group), status, why.message);
  } catch (...) {
    // They find out by their time-outs.
  }
}

}  // namespace ringattn::api
