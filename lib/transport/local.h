// Ranks are threads of one process and copy straight from each other's memory, as their copiers do it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "transport/copier.h"
#include "transport/transport.h"

namespace ringattn {

// An id for one group of this process.
std::string make_local_id();
bool is_local_id(const std::string& id);      // of any process
bool is_own_local_id(const std::string& id);  // of this one

// Joins rank `rank` of the group `id`; returns when all have joined. `on_failure` is called once, from the thread that
// breaks the group and with locks held, when the group breaks: it must be quick and call nothing here.
// Throws Error TIMEOUT, MISMATCH, PEER_LOST, and what Copier::meet throws.
std::unique_ptr<Transport> join_local(const std::string& id, int world_size, int rank, std::int64_t timeout_ms,
                                      std::function<void()> on_failure,
                                      std::unique_ptr<Copier> copier = make_host_copier());

// Tells the ranks that wait, or will wait, for `rank` to join that it never will: for failures before join_local. From then on
// that rank has been there, and cannot come.
void refuse_local(const std::string& id, int world_size, int rank, ra_status status, const char* message) noexcept;

}  // namespace ringattn
