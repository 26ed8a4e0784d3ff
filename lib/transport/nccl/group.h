// A rank's group: its communicator, what is under way on it, and how it ends. What a context and its watchdog share, and whoever of the
// two is the last to leave frees.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/cuda/queue.h"
#include "transport/control_plane.h"
#include "transport/nccl.h"
#include "transport/nccl/error.h"
#include "transport/nccl/library.h"

namespace ringattn::nccl_detail {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Since when a rank is known to have left that something waits for.
struct Departure {
  int rank = -1;
  Clock::time_point since{};
};

// What is between two waits, or a gathering of records. Owned by the line that it stands in.
struct Exchange {
  cuda::Event offered{cuda::Event::For::ordering};
  cuda::Event done{cuda::Event::For::ordering};
  std::vector<int> peers;  // ascending; empty: all others
  bool has_begun = false;
  Clock::time_point begun{};
  Departure departure;
  int calls_ended = 0;                  // collective calls that are over with it
  int slot = -1;                        // where the records are, of a gathering
  std::span<const std::byte> gathered;  // of all ranks, when it is done
  Transport::Check check = nullptr;     // what then looks at them
  std::unique_ptr<Exchange> next;
};

bool is_over(const cuda::Event& event);
std::string show(const std::vector<int>& peers);  // "rank 1", "ranks 1 and 3", "ranks 0 .. 3", "the other ranks"

// First in, first out, without allocating.
class Line {
 public:
  Line() = default;
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  ~Line() {
    while (pop() != nullptr) continue;
  }
  bool empty() const { return first_ == nullptr; }
  Exchange& front() const { return *first_; }
  Exchange& back() const { return *last_; }
  void push(std::unique_ptr<Exchange> exchange) {
    Exchange* const added = exchange.get();
    (first_ == nullptr ? first_ : last_->next) = std::move(exchange);
    last_ = added;
  }
  std::unique_ptr<Exchange> pop() {
    std::unique_ptr<Exchange> exchange = std::move(first_);
    if (exchange != nullptr) first_ = std::move(exchange->next);
    return exchange;
  }

 private:
  std::unique_ptr<Exchange> first_;
  Exchange* last_ = nullptr;
};

class Group {
 public:
  Group(const NcclGroup& group, int device, std::int64_t timeout_ms);
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  ncclComm_t comm() const { return comm_; }

  void fail(const Failure& failure) noexcept { control_->fail(failure); }
  Failure failure() const noexcept { return control_->failure(); }
  void throw_failure() const {
    if (is_broken_) throw failure().to_error();
  }

  // Calls NCCL; f() returns an ncclResult_t. A communicator that is being aborted is not called any more.
  template <class F>
  void call(const char* function, F&& f) {
    throw_failure();
    std::unique_lock lock(calls_, std::try_to_lock);
    while (!lock) {  // an abort, which begins with a failure, may hold it for long
      throw_failure();
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      lock.try_lock();
    }
    if (is_aborted_) {
      lock.unlock();
      throw_failure();
      ringattn::fail(RA_STATUS_INTERNAL_ERROR, function, " is called after the communicator's end");
    }
    const ncclResult_t result = f();
    if (result == ncclSuccess || result == ncclInProgress) return;
    Error error = nccl_error(function, result, comm_);
    lock.unlock();
    if (error.status == RA_STATUS_PEER_LOST) error = control_->lose_peer({error, rank_}).to_error();
    throw error;
  }

  // Waits for `peers` until is_done() says so, not beyond the time-out, and for nothing once the group is broken: whatever ends then
  // has not been done.
  void wait_until(const std::function<bool()>& is_done, const std::vector<int>& peers, const char* what,
                  Clock::time_point begin = Clock::now());

  // What the communicator says of the function that it was called for last: ncclSuccess or ncclInProgress.
  ncclResult_t ask(const char* function);

  // Waits until the communicator has begun what it was last asked for; an event recorded earlier would miss it.
  void settle(const char* function, const std::vector<int>& peers, Clock::time_point begin = Clock::now()) {
    wait_until([&] { return ask(function) == ncclSuccess; }, peers, function, begin);
  }

  void join();  // with the other ranks
  void check_borrowed(const NcclGroup& group);

  std::unique_ptr<Exchange> take();
  void give_back(std::unique_ptr<Exchange> exchange) noexcept;

  // Room for records; false if all of it is in use. It comes back with the exchange.
  static constexpr int slots = 8;
  bool take_slot(Exchange& exchange);

  void watch(std::unique_ptr<Exchange> exchange) noexcept;
  // A collective call is over with all that is watched.
  void end_call() noexcept;

  // The watchdog's life: until the context leaves, and then until nothing is under way.
  void run() noexcept;

  // The context leaves. False if the watchdog does not end in time, and all that it may still use must stay.
  bool leave();

  // Waits until what is enqueued on a broken group will end by itself.
  void await_end();

 private:
  // What the others are told for as long as it lives.
  class Waiting {
   public:
    explicit Waiting(Group& group) : group_(group) { group_.add_waits(1); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    ~Waiting() { group_.add_waits(-1); }

   private:
    Group& group_;
  };
  void add_waits(int change) noexcept;

  void note_failure() noexcept;
  // Throws when one of them has been gone for so long that nothing of it is to be waited for.
  void await_departed(const std::vector<int>& peers, Departure& departure) const;
  // One look at the communicator and at the oldest exchange.
  void look() noexcept;
  void wait_for(Exchange& oldest);
  void put_away(std::unique_ptr<Exchange> exchange) noexcept;  // with the lock held
  void end() noexcept;
  bool finalize() noexcept;

  const int rank_;
  const int world_size_;
  const int device_;
  const milliseconds timeout_;

  std::mutex calls_;  // of the communicator, by the context; and its end
  ncclComm_t comm_;
  const bool is_borrowed_;
  bool is_aborted_ = false;

  std::mutex waits_mutex_;
  int waits_ = 0;  // of the context's thread and the watchdog

  std::mutex mutex_;  // of what follows; whoever holds it does not call control_, which calls note_failure
  std::condition_variable changed_;
  std::atomic<bool> is_broken_{false};
  Line watched_, unused_;
  std::array<bool, slots> used_slots_{};
  bool leaves_ = false;     // the context
  bool has_ended_ = false;  // the communicator
  bool is_gone_ = false;    // the watchdog

  const std::unique_ptr<ControlPlane> control_;  // ends before what note_failure needs
};

}  // namespace ringattn::nccl_detail
