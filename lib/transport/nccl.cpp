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
// NCCL reports an error, the watchdog breaks the group. Whatever breaks it, the watchdog of each rank that knows ends what is enqueued
// by aborting the communicator. All calls of NCCL that might block happen on the watchdog; the host waits for it no longer than
// the time-out, and then leaves it behind with what it uses.
//
// Who knows is up to the *control plane* (control_plane.h). Where ranks have one, all do, at once, and it says whose fault it is. Where
// the id is NCCL's, or the communicator is borrowed, each rank is Alone: the others' time has to be over, too.
//
// Of a captured call there is nothing to look at before a graph is launched, and when it is only what NCCL itself reports.
#include "transport/nccl.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/cuda/queue.h"
#include "transport/nccl/group.h"
#include "transport/nccl/library.h"

namespace ringattn {
namespace {

using cuda::BesideCapture;
using namespace nccl_detail;

class NcclTransport final : public Transport {
 public:
  NcclTransport(const NcclGroup& group, cuda::Queue& queue, std::int64_t timeout_ms)
      : world_size_(group.world_size),
        rank_(group.rank),
        is_borrowed_(group.borrowed != nullptr),
        queue_(queue),
        group_(std::make_shared<Group>(group, queue.device(), timeout_ms)) {
    const BesideCapture beside;
    const cuda::OnDevice on(queue.device());
    telling_others([&] {
      const std::size_t bytes = Group::slots * slot_bytes();
      staging_ = cuda::PinnedMemory(bytes);
      records_ = cuda::DeviceMemory(bytes);
      posts_.reserve(8);
      watchdog_ = std::thread([shared = group_] { shared->run(); });
    });
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
    telling_others([&] { group.borrowed != nullptr ? group_->check_borrowed(group) : group_->join(); });
  }

  // Waits for the threads of all ranks, and for the transfers that were enqueued before.
  std::vector<std::byte> all_gather(std::span<const std::byte> record) override {
    const BesideCapture beside;
    const cuda::OnDevice on(queue_.device());
    std::unique_ptr<Exchange> exchange = enqueue_gathering(record);
    group_->wait_until([&] { return is_over(exchange->done); }, exchange->peers, "ncclAllGather");
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

  void end_call() noexcept override { group_->end_call(); }
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

  // What fails before there is a transport.
  template <class F>
  void telling_others(F&& f) {
    try {
      f();
    } catch (const Error& error) {
      group_->fail({error, rank_});
      throw;
    } catch (const std::exception& error) {
      group_->fail({RA_STATUS_OUT_OF_MEMORY, rank_, error.what()});
      throw;
    }
  }

  // A slot is this rank's record, and then all ranks'.
  std::unique_ptr<Exchange> enqueue_gathering(std::span<const std::byte> record) {
    if (record.size() > most_record) ringattn::fail(RA_STATUS_INTERNAL_ERROR, "a record has ", record.size(), " bytes");
    std::unique_ptr<Exchange> exchange = group_->take();
    group_->wait_until([&] { return group_->take_slot(*exchange); }, exchange->peers, "ncclAllGather");
    const std::size_t offset = static_cast<std::size_t>(exchange->slot) * slot_bytes();
    std::byte* const mine = static_cast<std::byte*>(staging_.get()) + offset;
    std::byte* const on_device = static_cast<std::byte*>(records_.get()) + offset;
    const std::size_t bytes = record.size() * static_cast<std::size_t>(world_size_);
    const cudaStream_t stream = queue_.transfers();
    exchange->gathered = {mine + most_record, bytes};
    std::memcpy(mine, record.data(), record.size());
    exchange->offered.record(stream);
    has_enqueued_ = true;
    cuda::check(cudaMemcpyAsync(on_device, mine, record.size(), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    group_->call("ncclAllGather", [&] {
      return nccl().ncclAllGather(on_device, on_device + most_record, record.size(), ncclUint8, group_->comm(), stream);
    });
    group_->settle("ncclAllGather", exchange->peers);
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
    group_->settle("ncclGroupEnd", exchange_->peers);
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
    std::vector<int>& peers = exchange_->peers;
    for (const Post& post : posts_) {
      const auto at = std::lower_bound(peers.begin(), peers.end(), post.peer);
      if (at == peers.end() || *at != post.peer) peers.insert(at, post.peer);
    }
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

}  // namespace

std::string missing_nccl() {
  try {
    nccl();
    return {};
  } catch (const Error& error) {
    return error.message;
  }
}

std::unique_ptr<Transport> join_nccl(const NcclGroup& group, cuda::Queue& queue, std::int64_t timeout_ms) {
  auto transport = std::make_unique<NcclTransport>(group, queue, timeout_ms);
  transport->join(group);
  return transport;
}

}  // namespace ringattn
