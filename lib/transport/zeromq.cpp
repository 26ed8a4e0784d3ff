// One rank of a group over ZeroMQ: Control (zeromq/control.h) knows who is there, Links (zeromq/links.h) carry the data, or, where it
// is a ControlPlane only, somebody else does.
//
//   join   inlets are open -> hello, with their addresses -> all have come -> outlets to all, and a first word on each -> a word from all
//   wait   looks at data and at Control's news in turn, and sleeps on both
//
// Data sockets are used by whatever thread makes progress, one at a time.
#include "transport/zeromq.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "transport/zeromq/control.h"
#include "transport/zeromq/links.h"

namespace ringattn {
namespace {

using namespace zeromq;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds retry(10);  // where there was no room for what is to be sent

// What one rank opens: its own sockets with what wakes them, and two connections with each other rank, and one for the control plane.
constexpr int own_descriptors = 24;
int descriptors_of(int world_size) { return own_descriptors + 5 * world_size; }

// The address of this machine from which `host` is reached.
std::string address_towards(const std::string& host) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_flags = AI_NUMERICHOST;
  hints.ai_socktype = SOCK_DGRAM;
  if (getaddrinfo(host.c_str(), "9", &hints, &found) != 0) return host;
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  const int probe = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return host;
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  char name[INET6_ADDRSTRLEN] = {};
  const bool is_known =
      connect(probe, found->ai_addr, found->ai_addrlen) == 0 &&  // of a datagram socket: sends nothing
      getsockname(probe, reinterpret_cast<sockaddr*>(&own), &size) == 0 &&
      getnameinfo(reinterpret_cast<sockaddr*>(&own), size, name, sizeof name, nullptr, 0, NI_NUMERICHOST) == 0;
  close(probe);
  return is_known ? name : host;
}

Hello make_hello(const ZeromqGroup& group, ra_backend backend) {
  Hello hello;
  hello.library = ra_get_version();
  hello.world_size = group.world_size;
  hello.rank = group.rank;
  hello.backend = backend;
  return hello;
}

Hello make_hello(const ZeromqGroup& group, const Inlets& inlets) {
  Hello hello = make_hello(group, RA_BACKEND_CPU);
  hello.encryption = group.encrypts ? 0 : 1;
  hello.cipher = static_cast<std::int32_t>(best_cipher());
  hello.address = inlets.address();
  hello.machine = inlets.machine();
  return hello;
}

Session draw_session() {
  Session session;
  sodium_library().randombytes_buf(session.data(), session.size());
  return session;
}

class ZeromqTransport final : public Transport {
 public:
  ZeromqTransport(const ZeromqGroup& group, const UniqueId& id, std::int64_t timeout_ms,
                  std::function<void()> on_failure)
      : rank_(group.rank),
        timeout_ms_(timeout_ms),
        claim_(std::in_place, descriptors_of(group.world_size)),
        context_(group.world_size + 16),
        inlets_(context_,
                group.bind_address.empty() ? address_towards(id.host) : own_address(group.bind_address.c_str()),
                group.bind_address.empty()),
        control_(context_, id, make_hello(group, inlets_), draw_session(), timeout_ms, std::move(on_failure)) {}

  ZeromqTransport(const ZeromqTransport&) = delete;
  ZeromqTransport& operator=(const ZeromqTransport&) = delete;
  ~ZeromqTransport() override { drop_if_broken(); }

  // Until all have joined. Tells the others of its failure, as long as it can.
  void join(const Secret& secret, bool encrypts) {
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms_);
    try {
      const Roster& roster = control_.join();
      links_ = std::make_unique<Links>(context_, inlets_, secret, roster, rank_, encrypts);
      wait_until(deadline, [&] { return links_->unopened(); });
      inlets_.close_door();
      claim_.reset();
    } catch (const Error& e) {
      control_.fail({e, rank_});
      drop_if_broken();
      throw;
    } catch (const std::exception&) {
      control_.fail({RA_STATUS_OUT_OF_MEMORY, rank_, "out of memory while joining"});
      drop_if_broken();
      throw;
    }
  }

  std::vector<std::byte> all_gather(std::span<const std::byte> record) override {
    std::vector<std::byte> all = control_.gather(record);
    const std::lock_guard lock(mutex_);
    links_->begin_operation(++operations_);
    return all;
  }

  void send(int peer, std::uint64_t tag, std::span<const std::byte> data) override {
    const std::lock_guard lock(mutex_);
    links_->send(peer, tag, data);
    has_transfers_ = true;
  }
  void receive(int peer, std::uint64_t tag, std::span<std::byte> data) override {
    const std::lock_guard lock(mutex_);
    links_->receive(peer, tag, data);
    has_transfers_ = true;
  }

  // What goes wrong here is thrown by the next wait, which sees it again.
  void progress() override {
    if (!has_transfers_.load(std::memory_order_relaxed)) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || trouble_ != nullptr) return;
    try {
      links_->pump();
    } catch (...) {
      trouble_ = std::current_exception();
    }
  }

  void wait() override {
    const std::lock_guard lock(mutex_);
    try {
      if (trouble_ != nullptr) std::rethrow_exception(trouble_);
      wait_until(Clock::now() + std::chrono::milliseconds(timeout_ms_), [&] {
        links_->pump();
        return links_->blocker();
      });
      forget();
    } catch (...) {
      forget();
      throw;
    }
  }

  void abandon() noexcept override {
    const std::lock_guard lock(mutex_);
    forget();
  }

  void trace_to(Trace* trace) override {
    const std::lock_guard lock(mutex_);
    links_->trace_to(trace);
  }
  void end_call() noexcept override { control_.end_call(); }
  void fail(const Failure& failure) noexcept override { control_.fail(failure); }
  Failure failure() const noexcept override { return control_.failure(); }
  bool can_tell() const { return control_.can_tell(); }

 private:
  // Waits until blocker() says that no rank is in the way any more (-1).
  template <class F>
  void wait_until(Clock::time_point deadline, F&& blocker) {
    std::vector<zmq_pollitem_t> items;
    int waits_for = -1;
    Clock::time_point left{};  // when the rank that this one waits for was first seen to have left
    for (;;) {
      control_.news().clear();
      if (const Failure failure = control_.failure(); failure.status != RA_STATUS_SUCCESS) throw failure.to_error();
      const int rank = blocker();
      if (rank != waits_for) control_.set_waits_for(waits_for = rank);
      if (rank < 0) return;
      const auto now = Clock::now();
      const bool has_left = control_.has_left(rank);
      if (!has_left) left = {};
      if (has_left && left == Clock::time_point()) left = now;
      if (has_left && now - left >= farewell) throw left_while_waited_for(rank, rank_).to_error();
      if (now >= deadline) throw control_.time_out(rank).to_error();
      if (items.empty()) {
        if (links_ != nullptr) items = links_->items();
        items.push_back(control_.news().item());
      }
      auto until = std::min(deadline, has_left ? left + farewell : deadline);
      if (links_ != nullptr && links_->lacks_room()) until = std::min(until, now + retry);
      poll(items, std::max<std::int64_t>(std::chrono::ceil<std::chrono::milliseconds>(until - now).count(), 0));
    }
  }
  // What is still on its way to others is of no use to them in a broken group, and one that has been stopped would not take it.
  void drop_if_broken() {
    if (links_ != nullptr && failure().status != RA_STATUS_SUCCESS) links_->drop();
  }
  void forget() {
    links_->forget();
    has_transfers_ = false;
  }

  const int rank_;
  const std::int64_t timeout_ms_;
  std::int64_t operations_ = 0;
  std::optional<DescriptorClaim> claim_;  // until all is open
  Context context_;
  Inlets inlets_;
  Control control_;
  std::mutex mutex_;  // of what follows
  std::unique_ptr<Links> links_;
  std::exception_ptr trouble_;
  std::atomic<bool> has_transfers_{false};
};

class ZeromqControlPlane final : public ControlPlane {
 public:
  ZeromqControlPlane(const ZeromqGroup& group, std::int64_t timeout_ms, std::function<void()> on_failure)
      : rank_(group.rank),
        claim_(std::in_place, own_descriptors + (group.rank == 0 ? group.world_size : 1)),
        context_(16) {
    const UniqueId id = parse_unique_id(group.id);
    Hello hello = make_hello(group, RA_BACKEND_CUDA);
    hello.address = address_towards(id.host);
    control_.emplace(context_, id, std::move(hello), draw_session(), timeout_ms, std::move(on_failure));
  }

  void join(std::span<std::byte> brought, const Bring& bring) override {
    control_->join();
    claim_.reset();
    if (rank_ == 0) bring(brought);
    const std::vector<std::byte> all = control_->gather(brought);
    std::copy_n(all.begin(), brought.size(), brought.begin());
  }
  void fail(const Failure& failure) noexcept override { control_->fail(failure); }
  Failure failure() const noexcept override { return control_->failure(); }
  Failure time_out(const Failure& found) override {
    return control_->time_out(found.rank >= 0 ? found.rank : Membership::transfers);
  }
  Failure lose_peer(const Failure& found) override { return control_->lose_peer(found); }
  void set_waits(bool waits) noexcept override {
    control_->set_waits_for(waits ? Membership::transfers : Membership::nobody);
  }
  bool has_left_undone(int rank) const noexcept override { return control_->has_left_undone(rank); }
  void end_call() noexcept override { control_->end_call(); }
  void leave() noexcept override { control_->leave(); }

 private:
  const int rank_;
  std::optional<DescriptorClaim> claim_;  // until all is open
  Context context_;
  std::optional<Control> control_;
};

}  // namespace

std::string make_zeromq_id(const char* bind_address) { return make_unique_id(bind_address).text(); }

std::unique_ptr<Transport> join_zeromq(const ZeromqGroup& group, std::int64_t timeout_ms,
                                       std::function<void()> on_failure) {
  const UniqueId id = parse_unique_id(group.id);
  std::unique_ptr<ZeromqTransport> transport;
  try {
    transport = std::make_unique<ZeromqTransport>(group, id, timeout_ms, std::move(on_failure));
    transport->join(id.secret, group.encrypts);
    return transport;
  } catch (const Error& e) {
    const bool is_unknown = transport == nullptr || (e.rank == group.rank && !transport->can_tell());
    transport.reset();
    if (is_unknown) refuse_zeromq(group, e.status, e.what());
    throw;
  }
}

std::unique_ptr<ControlPlane> open_control_plane(const ZeromqGroup& group, std::int64_t timeout_ms,
                                                 std::function<void()> on_failure) {
  try {
    return std::make_unique<ZeromqControlPlane>(group, timeout_ms, std::move(on_failure));
  } catch (const Error& e) {
    refuse_zeromq(group, e.status, e.what());
    throw;
  }
}

void refuse_zeromq(const ZeromqGroup& group, ra_status status, const char* message) noexcept {
  try {
    const DescriptorClaim claim(descriptors_of(1));
    const Context context(16);
    constexpr std::int64_t at_most_ms = 1000;
    const Control control(context, parse_unique_id(group.id), make_hello(group, RA_BACKEND_CPU), Session(), at_most_ms,
                          {}, {status, group.rank, message});
  } catch (const std::exception&) {
    // The others find out by their time-outs.
  }
}

}  // namespace ringattn
