// Ranks with a GPU each, in one process or many: NCCL moves what they send to each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "transport/transport.h"

struct ncclComm;

namespace ringattn {

namespace cuda {
class Queue;
}

// Why RA_TRANSPORT_NCCL cannot be used here: "libnccl.so.2: cannot open ...; looked in ..."; empty if it can. Loads NCCL.
std::string missing_nccl();

// An id for one group, NCCL's own as text.
std::string make_nccl_id();
bool is_nccl_id(const std::string& id);

// Which communicator: that of the id, made with the other ranks, or one that the caller lends and that stays his. Over an id of
// transport/zeromq.h ranks come together, and hear of each other, by a control plane, which also brings them NCCL's id.
struct NcclGroup {
  std::string id;
  ncclComm* borrowed = nullptr;
  int world_size = 1;
  int rank = 0;
};

// Joins the group; returns when all have joined, at once with a communicator that is borrowed. `queue` outlives it.
// Throws Error TIMEOUT, NCCL_ERROR, INVALID_ARGUMENT where what is borrowed does not fit; with a control plane also MISMATCH, PEER_LOST,
// OUT_OF_MEMORY, and the others are told.
std::unique_ptr<Transport> join_nccl(const NcclGroup& group, cuda::Queue& queue, std::int64_t timeout_ms);

}  // namespace ringattn
