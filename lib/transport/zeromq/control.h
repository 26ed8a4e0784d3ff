// The control plane: one thread that keeps a rank's Membership (membership.h) in touch with the others'.
//
// Rank 0 listens with a ROUTER socket where the id says, the others connect a DEALER to it. Both speak CURVE, with the keys that the
// id's secret gives each rank (keys.h), so whoever gets through is a member, and which one its key says: a ZAP handler, in the same thread,
// lets in the keys of the group's ranks until the group is whole, and nobody from then on. Sockets are read as soon as anything is
// there, those of ZeroMQ's monitors too, so nothing that comes from the network fills them up.
//
// Only the thread touches sockets. Everybody else talks to the Membership, under a lock, and wakes the thread for what is to be sent.
#pragma once

#include <pthread.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "transport/transport.h"
#include "transport/zeromq/membership.h"
#include "transport/zeromq/socket.h"
#include "transport/zeromq/unique_id.h"

namespace ringattn::zeromq {

class Control {
 public:
  // Begins to join, or, with a refusal, says nothing but that. `session` is read on rank 0. `on_failure` is called once, with a lock held,
  // when the group breaks: it must be quick and call nothing here.
  Control(const Context& context, const UniqueId& id, Hello own, const Session& session, std::int64_t timeout_ms,
          std::function<void()> on_failure, const Failure& refusal = {});
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  ~Control();  // leaves

  const Roster& join();  // waits until the group is whole
  std::vector<std::byte> gather(std::span<const std::byte> record);

  void fail(const Failure& failure) noexcept;
  Failure failure() const noexcept;
  bool can_tell() const;  // the others of a failure: false once the thread has failed itself
  bool has_left(int rank) const;
  bool has_left_undone(int rank) const;
  // This rank waits for `blocker` from now on: a rank, or what Membership has for others.
  void set_waits_for(int blocker);
  // It has waited too long for it: returns what the group broke with.
  Failure time_out(int blocker);
  // It has found somebody gone, by what carries data: returns what the group broke with, for which others get the time to say whom.
  Failure lose_peer(const Failure& found);
  void end_call() noexcept;
  // Rank 0 leaves when all others have got as far as it (Membership::may_leave), at the latest after the time-out.
  void leave() noexcept;

  // Signalled when the group breaks or a rank leaves.
  Signal& news() { return news_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Connection {  // of the hub to a spoke
    int rank;
    int descriptor;
    std::vector<std::byte> route;
  };

  void run() noexcept;
  void turn();
  void read_frames(std::size_t most);
  void answer_admissions();
  void read_events(std::size_t most);
  void send_frames();
  int rank_of_key(std::span<const std::byte> public_key);

  bool is_hub() const { return own_.rank == 0; }
  template <class F>
  void tell(F&& f) noexcept;
  template <class F>
  void wait(std::unique_lock<std::mutex>& lock, F&& is_over, int blocker);
  Failure time_out_locked(std::unique_lock<std::mutex>& lock, int blocker);
  bool await_failure(std::unique_lock<std::mutex>& lock);
  void fail_locked(const Failure& failure);
  void spread();

  const UniqueId id_;
  const Hello own_;
  const std::int64_t timeout_ms_;
  const int linger_ms_;  // at the end: a refusal has nothing else to do in its time
  const std::function<void()> on_failure_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Membership membership_;  // guarded by mutex_, with what follows
  bool is_failure_told_ = false, can_tell_ = true;
  int left_told_ = 0;
  std::set<int> guests_;  // of rank 0: ranks that have come
  bool leaves_ = false, ends_ = false;
  std::int64_t rounds_ = 0;  // of gather
  std::string refusal_;      // why rank 0 would not let this rank in, as far as it said

  // The thread's own.
  Socket socket_, monitor_;
  std::unique_ptr<Socket> admission_;
  std::vector<Connection> connections_;
  std::vector<std::array<std::byte, 32>> public_keys_;  // of ranks 0, 1, ...
  std::deque<Membership::Frame> outbox_;
  bool is_connected_ = false;
  Clock::time_point next_beat_;
  Signal wake_, news_;
  pthread_t thread_;
};

}  // namespace ringattn::zeromq
