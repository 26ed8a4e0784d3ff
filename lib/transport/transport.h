// What carries bytes between ranks, and how a group of ranks fails together.
//
// The ring posts the transfers of one moment, computes, and waits for all of them. What is sent is complete, and the room for what is
// received is free, when all is over that was given to the engine before the first of them. A transfer is matched by peer and tag.
// Both sides post a transfer in the same moment of their plans, so a wait never depends on a later moment of a peer.
//
// Failure is a property of the group: the first rank that fails says why, every wait on every rank then throws that
// reason, and the group never recovers. A wait that no peer ends within the time-out fails the group with TIMEOUT. Over NCCL without a
// control plane (control_plane.h) ranks have no other word from each other: each finds out by itself that its transfers do not end.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/trace.h"

namespace ringattn {

// Why a group broke.
struct Failure {
  ra_status status = RA_STATUS_SUCCESS;
  int rank = -1;  // the culprit; -1 where ranks disagree and none is alone, or where nobody knows
  int cuda_error = 0;
  int nccl_result = 0;
  char message[384] = {};

  Failure() = default;
  Failure(ra_status status_, int rank_, std::string_view message_) noexcept : status(status_), rank(rank_) {
    message_.copy(message, sizeof message - 1);
  }
  // What rank `own` has thrown.
  Failure(const Error& error, int own) noexcept : Failure(error.status, culprit_of(error, own), error.what()) {
    cuda_error = error.cuda_error;
    nccl_result = error.nccl_result;
  }
  // As `own` is to report it: what only concerns the culprit is a lost peer to the others.
  Failure seen_by(int own) const noexcept {
    switch (status) {
      case RA_STATUS_SUCCESS:
      case RA_STATUS_TIMEOUT:
      case RA_STATUS_ABORTED:
      case RA_STATUS_MISMATCH:
      case RA_STATUS_PEER_LOST:
        return *this;
      default: {
        Failure seen = *this;
        if (rank == own) return seen;
        seen.status = RA_STATUS_PEER_LOST;
        std::snprintf(seen.message, sizeof seen.message, "rank %d failed: %.320s", rank, message);
        return seen;
      }
    }
  }
  Error to_error() const {
    Error error(status, message, rank);
    error.cuda_error = cuda_error;
    error.nccl_result = nccl_result;
    return error;
  }
};

// How long a rank that has left is still waited for where its last messages may be under way, and what the group breaks with then.
constexpr std::chrono::milliseconds farewell{500};
inline Failure left_while_waited_for(int gone, int waiter) {
  return {RA_STATUS_PEER_LOST, gone, text("rank ", gone, " left while rank ", waiter, " waited for it")};
}

class Transport {
 public:
  virtual ~Transport() = default;

  // Every rank's record, in the order of ranks. Collective; records of all ranks have the same size.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> record) = 0;
  // The same, and then check(all records), which throws what the group is to break with. Unless it has to be `now`, where transfers
  // are only enqueued this is too: what check throws is then found by failure(), and by whatever comes next.
  using Check = void (*)(std::span<const std::byte> all);
  virtual void gather(std::span<const std::byte> record, Check check, [[maybe_unused]] bool now) {
    check(all_gather(record));
  }
  // Whether either can be called for a call that is captured in a CUDA graph.
  virtual bool gathers_in_captures() const { return true; }

  // Begin a transfer; the memory belongs to the transport until the next wait or abandon has ended. Do not block.
  virtual void send(int peer, std::uint64_t tag, std::span<const std::byte> data) = 0;
  virtual void receive(int peer, std::uint64_t tag, std::span<std::byte> data) = 0;

  // Moves what can be moved without blocking; from any threads while the owner computes, as often as they like: it costs next to
  // nothing where nothing new can be moved.
  virtual void progress() = 0;
  // Returns when every transfer begun on this rank is complete, or is ordered before all that is given to the engine from now on;
  // abandons them all if it throws.
  virtual void wait() = 0;
  // Takes back every transfer begun on this rank; returns when nobody touches their memory any more, which waits for copies
  // that have begun and for nothing else. For what ends without a wait, as by an exception; the destructor does the same.
  virtual void abandon() noexcept = 0;

  // Transfers that end from now on are to be in that trace, where the transport sees them end; until null is given.
  virtual void trace_to([[maybe_unused]] Trace* trace) {}

  // A collective call is over on this rank: nothing is waited for until the next.
  virtual void end_call() noexcept {}

  // Breaks the group. Only the first failure counts; all ranks then name its culprit. Never throws; from any thread.
  virtual void fail(const Failure& failure) noexcept = 0;
  // What broke the group; status SUCCESS while it is whole. Never throws; from any thread.
  virtual Failure failure() const noexcept = 0;
};

}  // namespace ringattn
