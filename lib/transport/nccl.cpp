// The transfers of one moment are one NCCL group on the context's stream for transfers, before and after which events order it with the
// caller's stream:
//
//   caller's stream   ... offered |  computes ...            | waits for done, goes on
//   transfers                     -> waits | group | done ->
//
// The group is enqueued before the computation is, lest a GPU that is full of it lets the group wait.
//
// NCCL has no word from a rank that is gone: its peers' groups just do not end. A *watchdog*, a thread of each context, looks at the
// communicator and at the oldest exchange that is not over. From when it was offered it has the time-out to end; then, or when
// NCCL reports an error, the watchdog breaks this rank's group, which ends what is enqueued by aborting the communicator. The ranks
// that waited for this one do the same when their time is over. All calls of NCCL that might block happen on the watchdog; the
// host waits for it no longer than the time-out, and then leaves it behind with what it uses.
//
// Of a captured call there is nothing to look at before a graph is launched, and when it is only what NCCL itself reports.
#include "transport/nccl.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "core/error.h"
#include "engine/cuda/queue.h"
#include "transport/nccl_library.h"

namespace ringattn {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::BesideCapture;
using cuda::Event;
using std::chrono::milliseconds;

[[noreturn]] void fail_nccl(ncclResult_t result, const std::string& what) {
  Error failure(result == ncclRemoteError ? RA_STATUS_PEER_LOST : RA_STATUS_NCCL_ERROR, what);
  failure.nccl_result = result;
  throw failure;
}

std::string explain(const char* function, ncclResult_t result, ncclComm_t comm) {
  const char* const last = nccl().ncclGetLastError(comm);
  return text(function, ": ", nccl().ncclGetErrorString(result), " (ncclResult_t ", +result, ")",
              last != nullptr && *last != 0 ? ": " : "", last != nullptr ? last : "");
}

// What is between two waits, or a gathering of records. Owned by the line that it stands in.
struct Exchange {
  Event offered{Event::For::ordering};
  Event done{Event::For::ordering};
  std::array<char, 64> peers{};  // "ranks 1 and 3", or "ranks 0 .. 3" where they are more than two
  int peer = -1;                 // the only one, if there is only one
  bool has_begun = false;
  Clock::time_point begun{};
  int slot = -1;                        // where the records are, of a gathering
  std::span<const std::byte> gathered;  // of all ranks, when it is done
  Transport::Check check = nullptr;     // what then looks at them
  std::unique_ptr<Exchange> next;
};

bool is_over(const Event& event) {
  const cudaError_t error = cudaEventQuery(event.get());
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  cuda::check(error, "cudaEventQuery");
  return true;
}

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

// What a context and its watchdog share. Whoever of the two is the last to leave frees it.
class Group {
 public:
  Group(const NcclGroup& group, int device, std::int64_t timeout_ms)
      : rank_(group.rank),
        device_(device),
        timeout_(timeout_ms),
        comm_(group.borrowed),
        is_borrowed_(group.borrowed != nullptr) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  milliseconds timeout() const { return timeout_; }
  ncclComm_t comm() const { return comm_; }

  void fail(const Failure& failure) noexcept {
    const std::lock_guard lock(mutex_);
    if (failure_.status != RA_STATUS_SUCCESS) return;
    failure_ = failure;
    changed_.notify_all();
  }
  Failure failure() const noexcept {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  void throw_failure() const {
    const Failure seen = failure();
    if (seen.status != RA_STATUS_SUCCESS) throw seen.to_error();
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
    if (result != ncclSuccess && result != ncclInProgress) fail_nccl(result, explain(function, result, comm_));
  }

  // Waits until is_done() says so, not beyond the time-out, and for nothing once the group is broken.
  template <class F, class G>
  void wait_until(F&& is_done, G&& on_timeout) {
    const Clock::time_point begin = Clock::now();
    for (int turn = 0; !is_done(); ++turn) {
      throw_failure();
      const auto waited = Clock::now() - begin;
      if (waited > timeout_) on_timeout();
      if (turn < 100)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::min<Clock::duration>(waited / 10, milliseconds(1)));
    }
  }

  // What the communicator says of the function that it was called for last: ncclSuccess or ncclInProgress.
  ncclResult_t ask(const char* function) {
    ncclResult_t state = ncclSuccess;
    call(function, [&] {
      const ncclResult_t result = comm_ == nullptr ? ncclSuccess : nccl().ncclCommGetAsyncError(comm_, &state);
      return result == ncclSuccess ? state : result;
    });
    return state;
  }

  // Waits until the communicator has begun what it was last asked for; an event recorded earlier would miss it.
  template <class G>
  void settle(const char* function, G&& on_timeout) {
    wait_until([&] { return ask(function) == ncclSuccess; }, on_timeout);
  }

  void join(const NcclGroup& group) {
    const std::string hexadecimal = group.id.substr(group.id.size() - 2 * sizeof(ncclUniqueId));
    ncclUniqueId id;
    for (std::size_t i = 0; i < sizeof id; ++i)
      id.internal[i] = static_cast<char>(std::stoi(hexadecimal.substr(2 * i, 2), nullptr, 16));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    call("ncclCommInitRankConfig",
         [&] { return nccl().ncclCommInitRankConfig(&comm_, group.world_size, id, group.rank, &config); });
    settle("ncclCommInitRankConfig", [&] {
      ringattn::fail(RA_STATUS_TIMEOUT, "of ", group.world_size,
                     " ranks not all came within timeout_ms = ", timeout_.count(), " (rank ", rank_, " waited)");
    });
  }

  void check_borrowed(const NcclGroup& group) {
    int count = 0, rank = 0, device = 0;
    call("ncclCommCount", [&] { return nccl().ncclCommCount(comm_, &count); });
    call("ncclCommUserRank", [&] { return nccl().ncclCommUserRank(comm_, &rank); });
    call("ncclCommCuDevice", [&] { return nccl().ncclCommCuDevice(comm_, &device); });
    require(count == group.world_size, "nccl_comm has ", count, " ranks; must have world_size = ", group.world_size);
    require(rank == group.rank, "nccl_comm is of rank ", rank, "; must be of rank = ", group.rank);
    require(device == device_, "nccl_comm is of device ", device, "; must be of device = ", device_);
  }

  std::unique_ptr<Exchange> take() {
    std::unique_ptr<Exchange> exchange;
    {
      const std::lock_guard lock(mutex_);
      exchange = unused_.pop();
    }
    if (exchange == nullptr) exchange = std::make_unique<Exchange>();
    exchange->has_begun = false;
    exchange->check = nullptr;
    return exchange;
  }
  void give_back(std::unique_ptr<Exchange> exchange) noexcept {
    const std::lock_guard lock(mutex_);
    put_away(std::move(exchange));
  }

  // Room for records; false if all of it is in use. It comes back with the exchange.
  static constexpr int slots = 8;
  bool take_slot(Exchange& exchange) {
    const std::lock_guard lock(mutex_);
    for (int slot = 0; slot < slots && exchange.slot < 0; ++slot)
      if (!used_slots_[static_cast<std::size_t>(slot)]) exchange.slot = slot;
    if (exchange.slot < 0) return false;
    return used_slots_[static_cast<std::size_t>(exchange.slot)] = true;
  }
  void watch(std::unique_ptr<Exchange> exchange) noexcept {
    const std::lock_guard lock(mutex_);
    watched_.push(std::move(exchange));
    changed_.notify_all();
  }

  // The watchdog's life: until the context leaves, and then until nothing is under way.
  void run() noexcept {
    const BesideCapture beside;
    cudaSetDevice(device_);
    std::unique_lock lock(mutex_);
    while (failure_.status == RA_STATUS_SUCCESS && !(leaves_ && watched_.empty())) {
      lock.unlock();
      look();
      lock.lock();
      const milliseconds period = std::clamp(timeout_ / 20, milliseconds(1), milliseconds(50));
      if (failure_.status == RA_STATUS_SUCCESS && !(leaves_ && watched_.empty()))
        changed_.wait_for(lock, watched_.empty() && !leaves_ ? 4 * period : period);
    }
    const bool broken = failure_.status != RA_STATUS_SUCCESS;
    lock.unlock();
    end(broken);
    lock.lock();
    has_ended_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return leaves_; });
    is_gone_ = true;
    changed_.notify_all();
  }

  // The context leaves. False if the watchdog does not end in time, and all that it may still use must stay.
  bool leave() {
    std::unique_lock lock(mutex_);
    leaves_ = true;
    changed_.notify_all();
    constexpr milliseconds for_an_abort{10'000};
    return changed_.wait_for(lock, timeout_ + for_an_abort, [&] { return is_gone_; });
  }

  // Waits until what is enqueued on a broken group will end by itself.
  void await_end() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout_, [&] { return has_ended_; });
  }

 private:
  // One look at the communicator and at the oldest exchange.
  void look() noexcept {
    try {
      ask("NCCL");
      for (std::unique_lock lock(mutex_); !watched_.empty();) {
        Exchange& oldest = watched_.front();  // only this thread takes any out
        lock.unlock();
        if (is_over(oldest.done)) {
          if (oldest.check != nullptr) oldest.check(oldest.gathered);
          lock.lock();
          put_away(watched_.pop());
          continue;
        }
        if (!oldest.has_begun && is_over(oldest.offered)) {
          oldest.has_begun = true;
          oldest.begun = Clock::now();
        }
        if (oldest.has_begun && Clock::now() - oldest.begun > timeout_)
          throw Error(RA_STATUS_PEER_LOST,
                      text("rank ", rank_, " exchanged nothing with ", oldest.peers.data(),
                           " within timeout_ms = ", timeout_.count()),
                      oldest.peer);
        return;
      }
    } catch (const Error& error) {
      fail({error, rank_});
    } catch (const std::exception& error) {
      fail({RA_STATUS_OUT_OF_MEMORY, rank_, error.what()});
    }
  }

  void put_away(std::unique_ptr<Exchange> exchange) noexcept {  // with the lock held
    if (exchange->slot >= 0) used_slots_[static_cast<std::size_t>(std::exchange(exchange->slot, -1))] = false;
    unused_.push(std::move(exchange));
  }

  void end(bool broken) noexcept {
    const std::lock_guard lock(calls_);
    is_aborted_ = true;
    if (comm_ == nullptr || is_borrowed_) return;
    if (broken)
      nccl().ncclCommAbort(comm_);
    else
      nccl().ncclCommDestroy(comm_);
    comm_ = nullptr;
  }

  const int rank_;
  const int device_;
  const milliseconds timeout_;

  std::mutex calls_;  // of the communicator, by the context; and its end
  ncclComm_t comm_;
  const bool is_borrowed_;
  bool is_aborted_ = false;

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  Failure failure_;
  Line watched_, unused_;
  std::array<bool, slots> used_slots_{};
  bool leaves_ = false;     // the context
  bool has_ended_ = false;  // the communicator
  bool is_gone_ = false;    // the watchdog
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(const NcclGroup& group, cuda::Queue& queue, std::int64_t timeout_ms)
      : world_size_(group.world_size), rank_(group.rank), is_borrowed_(group.borrowed != nullptr), queue_(queue) {
    const BesideCapture beside;
    const cuda::OnDevice on(queue.device());
    const std::size_t bytes = Group::slots * slot_bytes();
    staging_ = cuda::PinnedMemory(bytes);
    records_ = cuda::DeviceMemory(bytes);
    posts_.reserve(8);
    group_ = std::make_shared<Group>(group, queue.device(), timeout_ms);
    watchdog_ = std::thread([shared = group_] { shared->run(); });
  }
  NcclTransport(const NcclTransport&) = delete;
  NcclTransport& operator=(const NcclTransport&) = delete;
  ~NcclTransport() override {
    abandon();
    const bool ends = !is_borrowed_ || !has_enqueued_ || failure().status == RA_STATUS_SUCCESS;
    const bool left = group_->leave();
    left ? watchdog_.join() : watchdog_.detach();
    const BesideCapture beside;
    if (left && ends) {
      cudaStreamSynchronize(queue_.transfers());
    } else {  // NCCL does not come back, or what the caller has lent is stuck: what it may use stays
      queue_.abandon();
      staging_.release();
      records_.release();
    }
    staging_ = {};
    records_ = {};
  }

  void join(const NcclGroup& group) {
    const BesideCapture beside;
    const cuda::OnDevice on(queue_.device());
    try {
      if (group.borrowed != nullptr)
        group_->check_borrowed(group);
      else
        group_->join(group);
    } catch (const Error& error) {
      group_->fail({error, rank_});
      throw;
    }
  }

  // Waits for the threads of all ranks, and for the transfers that were enqueued before.
  std::vector<std::byte> all_gather(std::span<const std::byte> record) override {
    const BesideCapture beside;
    const cuda::OnDevice on(queue_.device());
    std::unique_ptr<Exchange> exchange = enqueue_gathering(record);
    group_->wait_until([&] { return is_over(exchange->done); }, [&] { fail_late(); });
    std::vector<std::byte> all(exchange->gathered.begin(), exchange->gathered.end());
    group_->give_back(std::move(exchange));
    return all;
  }
  void gather(std::span<const std::byte> record, Check check, bool now) override {
    if (now) return check(all_gather(record));
    const cuda::OnDevice on(queue_.device());
    std::unique_ptr<Exchange> exchange = enqueue_gathering(record);
    exchange->check = check;
    group_->watch(std::move(exchange));
  }
  bool gathers_in_captures() const override { return false; }

  void send(int peer, std::uint64_t tag, std::span<const std::byte> data) override {
    post({peer, tag, const_cast<std::byte*>(data.data()), data.size(), true});  // the bytes are only read
  }
  void receive(int peer, std::uint64_t tag, std::span<std::byte> data) override {
    post({peer, tag, data.data(), data.size(), false});
  }

  // Called before computation is enqueued.
  void progress() override { enqueue(); }

  void wait() override {
    try {
      group_->throw_failure();
      enqueue();
      if (is_enqueued_) end_exchange();
    } catch (...) {
      abandon();
      throw;
    }
  }

  // What NCCL has been given ends, if need be with the communicator. What follows in the caller's stream comes after it.
  void abandon() noexcept override {
    if (is_enqueued_) {
      try {
        end_exchange();
      } catch (const std::exception&) {
        group_->fail({RA_STATUS_ABORTED, rank_, "a call failed while a transfer was under way"});
        group_->await_end();
        if (cudaEventRecord(exchange_->done.get(), queue_.transfers()) == cudaSuccess)
          cudaStreamWaitEvent(queue_.stream(), exchange_->done.get(), cudaEventWaitDefault);
        cudaGetLastError();
      }
      is_enqueued_ = false;
    }
    if (exchange_ != nullptr) group_->give_back(std::move(exchange_));
    posts_.clear();
  }

  void fail(const Failure& failure) noexcept override { group_->fail(failure); }
  Failure failure() const noexcept override { return group_->failure(); }

 private:
  static constexpr std::size_t most_record = 512;

  struct Post {
    int peer;
    std::uint64_t tag;
    std::byte* data;
    std::size_t size;
    bool sends;
  };

  std::size_t slot_bytes() const { return most_record * static_cast<std::size_t>(world_size_ + 1); }

  [[noreturn]] void fail_late() const {
    ringattn::fail(RA_STATUS_TIMEOUT, "not all ranks came within timeout_ms = ", group_->timeout().count(), " (rank ",
                   rank_, " waited)");
  }

  // A slot is this rank's record, and then all ranks'.
  std::unique_ptr<Exchange> enqueue_gathering(std::span<const std::byte> record) {
    if (record.size() > most_record) ringattn::fail(RA_STATUS_INTERNAL_ERROR, "a record has ", record.size(), " bytes");
    std::unique_ptr<Exchange> exchange = group_->take();
    group_->wait_until([&] { return group_->take_slot(*exchange); }, [&] { fail_late(); });
    const std::size_t offset = static_cast<std::size_t>(exchange->slot) * slot_bytes();
    std::byte* const mine = static_cast<std::byte*>(staging_.get()) + offset;
    std::byte* const on_device = static_cast<std::byte*>(records_.get()) + offset;
    const std::size_t bytes = record.size() * static_cast<std::size_t>(world_size_);
    const cudaStream_t stream = queue_.transfers();
    exchange->peer = -1;
    exchange->gathered = {mine + most_record, bytes};
    std::snprintf(exchange->peers.data(), exchange->peers.size(), "the other ranks");
    std::memcpy(mine, record.data(), record.size());
    exchange->offered.record(stream);
    has_enqueued_ = true;
    cuda::check(cudaMemcpyAsync(on_device, mine, record.size(), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    group_->call("ncclAllGather", [&] {
      return nccl().ncclAllGather(on_device, on_device + most_record, record.size(), ncclUint8, group_->comm(), stream);
    });
    group_->settle("ncclAllGather", [&] { fail_late(); });
    cuda::check(cudaMemcpyAsync(mine + most_record, on_device + most_record, bytes, cudaMemcpyDeviceToHost, stream),
                "cudaMemcpyAsync");
    exchange->done.record(stream);
    return exchange;
  }

  void post(const Post& post) {
    if (exchange_ == nullptr) {
      exchange_ = group_->take();
      exchange_->offered.record(queue_.stream());
    }
    posts_.push_back(post);
  }

  // One group, in an order that both sides of every transfer know: NCCL pairs them as they come.
  void enqueue() {
    if (exchange_ == nullptr || is_enqueued_) return;
    std::sort(posts_.begin(), posts_.end(), [](const Post& a, const Post& b) { return a.tag < b.tag; });
    name_peers();
    const cudaStream_t stream = queue_.transfers();
    cuda::wait(stream, exchange_->offered);
    group_->call("ncclGroupEnd", [&] {
      ncclResult_t result = nccl().ncclGroupStart();
      if (result != ncclSuccess) return result;
      for (const Post& p : posts_) {
        if (p.size == 0) continue;
        result = p.sends ? nccl().ncclSend(p.data, p.size, ncclUint8, p.peer, group_->comm(), stream)
                         : nccl().ncclRecv(p.data, p.size, ncclUint8, p.peer, group_->comm(), stream);
        if (result != ncclSuccess && result != ncclInProgress) break;
      }
      const bool added_all = result == ncclSuccess || result == ncclInProgress;
      is_enqueued_ = has_enqueued_ = true;
      const ncclResult_t ended = nccl().ncclGroupEnd();
      return added_all ? ended : result;
    });
  }

  // What follows in the caller's stream comes after the exchange.
  void end_exchange() {
    group_->settle("ncclGroupEnd", [&] {
      throw Error(RA_STATUS_PEER_LOST,
                  text("rank ", rank_, " exchanged nothing with ", exchange_->peers.data(),
                       " within timeout_ms = ", group_->timeout().count()),
                  exchange_->peer);
    });
    exchange_->done.record(queue_.transfers());
    cuda::wait(queue_.stream(), exchange_->done);
    is_enqueued_ = false;
    if (queue_.captures())
      group_->give_back(std::move(exchange_));
    else
      group_->watch(std::move(exchange_));
    posts_.clear();
  }

  void name_peers() {
    int low = posts_.front().peer, high = low;
    for (const Post& p : posts_) {
      low = std::min(low, p.peer);
      high = std::max(high, p.peer);
    }
    const bool others =
        std::any_of(posts_.begin(), posts_.end(), [&](const Post& p) { return low < p.peer && p.peer < high; });
    exchange_->peer = low == high ? low : -1;
    if (low == high)
      std::snprintf(exchange_->peers.data(), exchange_->peers.size(), "rank %d", low);
    else
      std::snprintf(exchange_->peers.data(), exchange_->peers.size(), "ranks %d %s %d", low, others ? ".." : "and",
                    high);
  }

  const int world_size_;
  const int rank_;
  const bool is_borrowed_;
  cuda::Queue& queue_;
  cuda::PinnedMemory staging_;  // slots for records
  cuda::DeviceMemory records_;  // the same
  std::vector<Post> posts_;
  std::unique_ptr<Exchange> exchange_;  // of the posts
  bool is_enqueued_ = false;            // NCCL may have it
  bool has_enqueued_ = false;           // NCCL has ever had anything
  std::shared_ptr<Group> group_;
  std::thread watchdog_;
};

constexpr const char* id_prefix = "ringattn-nccl-";

}  // namespace

std::string missing_nccl() {
  try {
    nccl();
    return {};
  } catch (const Error& error) {
    return error.message;
  }
}

std::string make_nccl_id() {
  ncclUniqueId id;
  const ncclResult_t result = nccl().ncclGetUniqueId(&id);
  if (result != ncclSuccess) fail_nccl(result, explain("ncclGetUniqueId", result, nullptr));
  std::string digits = id_prefix;
  for (const char byte : id.internal) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
    digits += pair;
  }
  return digits;
}

bool is_nccl_id(const std::string& id) {
  const std::size_t prefix = std::strlen(id_prefix);
  return id.starts_with(id_prefix) && id.size() == prefix + 2 * sizeof(ncclUniqueId) &&
         id.find_first_not_of("0123456789abcdef", prefix) == std::string::npos;
}

std::unique_ptr<Transport> join_nccl(const NcclGroup& group, cuda::Queue& queue, std::int64_t timeout_ms) {
  auto transport = std::make_unique<NcclTransport>(group, queue, timeout_ms);
  transport->join(group);
  return transport;
}

}  // namespace ringattn
