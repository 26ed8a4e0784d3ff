// Which group of ranks a config means.
#pragma once

#include <string>

#include "ringattn/ringattn.h"
#include "transport/nccl.h"
#include "transport/zeromq.h"

namespace ringattn::api {

void require_place(const ra_context_config &config);  // world_size and rank
void require_here(std::int32_t transport);  // NOT_SUPPORTED where this build or machine lacks the ra_transport

// A text for one group: ranks come together over ZeroMQ where there is a bind_address. Refuses one that the transport does not know.
std::string make_id(std::int32_t transport, const char *bind_address);

// Each with its own transport: the id of the group, or one of its own for a group of one. Refuses what belongs to other transports.
std::string to_local_id(const ra_context_config &config);
ZeromqGroup to_zeromq_group(const ra_context_config &config);
NcclGroup to_nccl_group(const ra_context_config &config);

// In a catch block. Others may be waiting for this rank, which has no context: they are told, if it is clear who they are. That
// breaks the group, for this rank too: they may be gone before it could come with a better config.
void refuse(const ra_context_config &config) noexcept;

}  // namespace ringattn::api
