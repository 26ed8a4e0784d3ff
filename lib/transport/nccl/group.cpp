#include "transport/nccl/group.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "transport/nccl/id.h"
#include "transport/zeromq.h"

namespace ringattn::nccl_detail {
namespace {

using cuda::BesideCapture;
using cuda::Event;

// A rank that has no word of the others.
class Alone final : public ControlPlane {
 public:
  Alone(std::vector<std::byte> id, std::function<void()> on_failure)
      : id_(std::move(id)), on_failure_(std::move(on_failure)) {}

  void join(std::span<std::byte> brought, const Bring&) override { std::ranges::copy(id_, brought.begin()); }
  void fail(const Failure& failure) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      if (failure_.status != RA_STATUS_SUCCESS) return;
      failure_ = failure;
    }
    on_failure_();
  }
  Failure failure() const noexcept override {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  Failure time_out(const Failure& found) override {
    fail(found);
    return failure();
  }
  Failure lose_peer(const Failure& found) override { return time_out(found); }
  void set_waits(bool) noexcept override {}
  bool has_left_undone(int) const noexcept override { return false; }
  void end_call() noexcept override {}
  void leave() noexcept override {}

 private:
  const std::vector<std::byte> id_;
  const std::function<void()> on_failure_;
  mutable std::mutex mutex_;
  Failure failure_;
};

std::unique_ptr<ControlPlane> open_control(const NcclGroup& group, std::int64_t timeout_ms,
                                           std::function<void()> on_failure) {
  if (group.borrowed != nullptr || is_nccl_id(group.id))
    return std::make_unique<Alone>(group.borrowed != nullptr ? std::vector<std::byte>() : parse_id(group.id),
                                   std::move(on_failure));
  return open_control_plane({group.id, {}, true, group.world_size, group.rank}, timeout_ms, std::move(on_failure));
}

}  // namespace

std::string show(const std::vector<int>& peers) {
  if (peers.empty()) return "the other ranks";
  if (peers.size() == 1) return text("rank ", peers.front());
  return text("ranks ", peers.front(), peers.size() == 2 ? " and " : " .. ", peers.back());
}

bool is_over(const Event& event) {
  const cudaError_t error = cudaEventQuery(event.get());
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  cuda::check(error, "cudaEventQuery");
  return true;
}

Group::Group(const NcclGroup& group, int device, std::int64_t timeout_ms)
    : rank_(group.rank),
      world_size_(group.world_size),
      device_(device),
      timeout_(timeout_ms),
      comm_(group.borrowed),
      is_borrowed_(group.borrowed != nullptr),
      control_(open_control(group, timeout_ms, [this] { note_failure(); })) {}

void Group::wait_until(const std::function<bool()>& is_done, const std::vector<int>& peers, const char* what,
                       Clock::time_point begin) {
  std::optional<Waiting> waiting;
  Departure departure;
  for (int turn = 0; !is_done(); ++turn) {
    throw_failure();
    if (turn == 0) waiting.emplace(*this);
    const auto waited = Clock::now() - begin;
    if (waited > timeout_)
      throw control_
          ->time_out({RA_STATUS_TIMEOUT, peers.size() == 1 ? peers.front() : -1,
                      text(what, " did not end within timeout_ms = ", timeout_.count(), " (rank ", rank_,
                           " waited for ", show(peers), ")")})
          .to_error();
    if (turn < 100) {
      std::this_thread::yield();
      continue;
    }
    await_departed(peers, departure);
    std::this_thread::sleep_for(std::min<Clock::duration>(waited / 10, milliseconds(1)));
  }
  throw_failure();
}

ncclResult_t Group::ask(const char* function) {
  ncclResult_t state = ncclSuccess;
  call(function, [&] {
    const ncclResult_t result = comm_ == nullptr ? ncclSuccess : nccl().ncclCommGetAsyncError(comm_, &state);
    return result == ncclSuccess ? state : result;
  });
  return state;
}

void Group::join() {
  const Clock::time_point begin = Clock::now();
  ncclUniqueId id{};
  control_->join(std::as_writable_bytes(std::span(id.internal)), draw_id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  call("ncclCommInitRankConfig",
       [&] { return nccl().ncclCommInitRankConfig(&comm_, world_size_, id, rank_, &config); });
  settle("ncclCommInitRankConfig", {}, begin);
}

void Group::check_borrowed(const NcclGroup& group) {
  int count = 0, rank = 0, device = 0;
  call("ncclCommCount", [&] { return nccl().ncclCommCount(comm_, &count); });
  call("ncclCommUserRank", [&] { return nccl().ncclCommUserRank(comm_, &rank); });
  call("ncclCommCuDevice", [&] { return nccl().ncclCommCuDevice(comm_, &device); });
  require(count == group.world_size, "nccl_comm has ", count, " ranks; must have world_size = ", group.world_size);
  require(rank == group.rank, "nccl_comm is of rank ", rank, "; must be of rank = ", group.rank);
  require(device == device_, "nccl_comm is of device ", device, "; must be of device = ", device_);
}

std::unique_ptr<Exchange> Group::take() {
  std::unique_ptr<Exchange> exchange;
  {
    const std::lock_guard lock(mutex_);
    exchange = unused_.pop();
  }
  if (exchange == nullptr) {
    exchange = std::make_unique<Exchange>();
    exchange->peers.reserve(static_cast<std::size_t>(world_size_));
  }
  exchange->peers.clear();
  exchange->has_begun = false;
  exchange->departure = {};
  exchange->calls_ended = 0;
  exchange->check = nullptr;
  return exchange;
}

void Group::give_back(std::unique_ptr<Exchange> exchange) noexcept {
  const std::lock_guard lock(mutex_);
  put_away(std::move(exchange));
}

bool Group::take_slot(Exchange& exchange) {
  const std::lock_guard lock(mutex_);
  for (int slot = 0; slot < slots && exchange.slot < 0; ++slot)
    if (!used_slots_[static_cast<std::size_t>(slot)]) exchange.slot = slot;
  if (exchange.slot < 0) return false;
  return used_slots_[static_cast<std::size_t>(exchange.slot)] = true;
}

void Group::watch(std::unique_ptr<Exchange> exchange) noexcept {
  const std::lock_guard lock(mutex_);
  watched_.push(std::move(exchange));
  changed_.notify_all();
}

void Group::end_call() noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!watched_.empty()) {
      ++watched_.back().calls_ended;
      return;
    }
  }
  control_->end_call();
}

void Group::run() noexcept {
  const BesideCapture beside;
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  while (!is_broken_ && !(leaves_ && watched_.empty())) {
    lock.unlock();
    look();
    lock.lock();
    const milliseconds period = std::clamp(timeout_ / 20, milliseconds(1), milliseconds(50));
    if (!is_broken_ && !(leaves_ && watched_.empty()))
      changed_.wait_for(lock, watched_.empty() && !leaves_ ? 4 * period : period);
  }
  lock.unlock();
  end();
  lock.lock();
  has_ended_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return leaves_; });
  is_gone_ = true;
  changed_.notify_all();
}

bool Group::leave() {
  std::unique_lock lock(mutex_);
  leaves_ = true;
  changed_.notify_all();
  constexpr milliseconds for_an_abort{10'000};
  return changed_.wait_for(lock, timeout_ + for_an_abort, [&] { return is_gone_; });
}

void Group::await_end() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout_, [&] { return has_ended_; });
}

void Group::add_waits(int change) noexcept {
  const std::lock_guard lock(waits_mutex_);
  const bool waited = waits_ > 0;
  waits_ += change;
  if ((waits_ > 0) != waited) control_->set_waits(waits_ > 0);
}

void Group::note_failure() noexcept {
  const std::lock_guard lock(mutex_);
  is_broken_ = true;
  changed_.notify_all();
}

void Group::await_departed(const std::vector<int>& peers, Departure& departure) const {
  const auto look_at = [&](int rank) {
    if (departure.rank < 0 && rank != rank_ && control_->has_left_undone(rank)) departure = {rank, Clock::now()};
  };
  for (const int rank : peers) look_at(rank);
  for (int rank = 0; rank < (peers.empty() ? world_size_ : 0); ++rank) look_at(rank);
  if (departure.rank >= 0 && Clock::now() - departure.since > farewell)
    throw left_while_waited_for(departure.rank, rank_).to_error();
}

void Group::look() noexcept {
  try {
    ask("NCCL");
    for (std::unique_lock lock(mutex_); !watched_.empty();) {
      Exchange& oldest = watched_.front();  // only this thread takes any out
      lock.unlock();
      if (!is_over(oldest.done)) return wait_for(oldest);
      if (oldest.has_begun) add_waits(-1);
      if (is_broken_) return;  // which may be why it is over
      if (oldest.check != nullptr) oldest.check(oldest.gathered);
      lock.lock();
      const int calls = oldest.calls_ended;
      put_away(watched_.pop());
      lock.unlock();
      for (int n = 0; n < calls; ++n) control_->end_call();
      lock.lock();
    }
  } catch (const Error& error) {
    fail({error, rank_});
  } catch (const std::exception& error) {
    fail({RA_STATUS_OUT_OF_MEMORY, rank_, error.what()});
  }
}

void Group::wait_for(Exchange& oldest) {
  if (!oldest.has_begun && is_over(oldest.offered)) {
    oldest.has_begun = true;
    oldest.begun = Clock::now();
    add_waits(1);
  }
  if (!oldest.has_begun) return;
  await_departed(oldest.peers, oldest.departure);
  if (Clock::now() - oldest.begun > timeout_)
    control_->time_out({RA_STATUS_TIMEOUT, oldest.peers.size() == 1 ? oldest.peers.front() : -1,
                        text("rank ", rank_, " exchanged nothing with ", show(oldest.peers),
                             " within timeout_ms = ", timeout_.count())});
}

void Group::put_away(std::unique_ptr<Exchange> exchange) noexcept {  // with the lock held
  if (exchange->slot >= 0) used_slots_[static_cast<std::size_t>(std::exchange(exchange->slot, -1))] = false;
  unused_.push(std::move(exchange));
}

void Group::end() noexcept {
  if (!is_broken_) control_->leave();  // before NCCL is ended, which may wait until the others end it, too
  const std::lock_guard lock(calls_);
  is_aborted_ = true;
  if (comm_ == nullptr || is_borrowed_) return;
  if (is_broken_ || !finalize())
    nccl().ncclCommAbort(comm_);
  else
    nccl().ncclCommDestroy(comm_);
  comm_ = nullptr;
}

// Nothing is under way here any more, and the others are waited for no longer than what is under way to them may take.
bool Group::finalize() noexcept {
  const Clock::time_point begin = Clock::now();
  ncclResult_t state = nccl().ncclCommFinalize(comm_);
  while (state == ncclInProgress && !is_broken_ && Clock::now() - begin < farewell) {
    std::this_thread::sleep_for(milliseconds(1));
    if (nccl().ncclCommGetAsyncError(comm_, &state) != ncclSuccess) return false;
  }
  return state == ncclSuccess;
}

}  // namespace ringattn::nccl_detail
