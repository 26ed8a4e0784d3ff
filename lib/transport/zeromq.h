// Ranks in processes of their own, on one machine or many: ZeroMQ moves what they send to each other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "transport/control_plane.h"
#include "transport/transport.h"

namespace ringattn {

// Why RA_TRANSPORT_ZEROMQ cannot be used here: "libzmq.so.5: cannot open ...; looked in ..."; empty if it can. Loads ZeroMQ and
// libsodium.
std::string missing_zeromq();

// An id for one group: rank 0 will listen on `bind_address` ("host", "host:port"; null: loopback). Throws INVALID_ARGUMENT.
std::string make_zeromq_id(const char* bind_address);
constexpr std::string_view zeromq_id_beginning = "ringattn-zeromq-";
inline bool is_zeromq_id(const std::string& id) { return id.starts_with(zeromq_id_beginning); }

struct ZeromqGroup {
  std::string id;
  std::string
      bind_address;  // that this rank takes data on; empty: the library's choice, and sockets of the file system within a machine
  bool encrypts = true;  // what goes over TCP; authenticated it is always
  int world_size = 1;
  int rank = 0;
};

// Joins the group; returns when all have joined and each can send to each. `on_failure` is called once, from any thread and with locks
// held, when the group breaks: it must be quick and call nothing here.
// Throws Error TIMEOUT, MISMATCH, PEER_LOST, INVALID_ARGUMENT (id, bind_address), OUT_OF_MEMORY (descriptors, too).
std::unique_ptr<Transport> join_zeromq(const ZeromqGroup& group, std::int64_t timeout_ms,
                                       std::function<void()> on_failure);

// The same without data: the group's id, world size and rank, of GPUs. Begins to join; `on_failure` as above. Throws as above, and
// tells the others.
std::unique_ptr<ControlPlane> open_control_plane(const ZeromqGroup& group, std::int64_t timeout_ms,
                                                 std::function<void()> on_failure);

// Tells the ranks that wait for this one to join that it never will: for failures before joining. Blocks for a second at most.
void refuse_zeromq(const ZeromqGroup& group, ra_status status, const char* message) noexcept;

}  // namespace ringattn
