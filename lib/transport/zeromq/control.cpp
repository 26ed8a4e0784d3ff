#include "transport/zeromq/control.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include "plan/problem.h"
#include "transport/zeromq/keys.h"

namespace ringattn::zeromq {
namespace {

constexpr const char* admission_endpoint = "inproc://zeromq.zap.01";  // where libzmq asks, by ZeroMQ's RFC 27
constexpr const char* monitor_endpoint = "inproc://ringattn-control-monitor";
constexpr int flush_ms =
    500;  // for what is still to be sent at the end, and for those who come after it has gone wrong
constexpr int handshake_ms = 5000;         // until a connection must have said who it is
constexpr int retry_ms = 10;               // while rank 0 does not listen yet
constexpr int backlog = 1024;              // connections that wait to be accepted, strangers' among them
constexpr std::size_t most_at_once = 256;  // frames, or events, before time is looked at again
constexpr std::size_t all = std::numeric_limits<std::size_t>::max();  // that are there

Socket make_socket(const Context& context, const UniqueId& id, int rank, int linger_ms) {
  const bool is_hub = rank == 0;
  const CurveKeys own = curve_keys(id.secret, rank), hub = curve_keys(id.secret, 0);
  Socket socket(context, is_hub ? ZMQ_ROUTER : ZMQ_DEALER);
  socket.set(ZMQ_LINGER, linger_ms);
  socket.set(ZMQ_HANDSHAKE_IVL, handshake_ms);
  socket.set(ZMQ_SNDHWM, 0);  // few and small, and nobody who does not take them stays in the group
  socket.set(ZMQ_IPV6, id.host.find(':') != std::string::npos ? 1 : 0);
  socket.set(ZMQ_CURVE_SECRETKEY, own.secret_key);
  socket.set(ZMQ_CURVE_PUBLICKEY, own.public_key);
  if (is_hub) {
    socket.set(ZMQ_CURVE_SERVER, 1);
    socket.set(ZMQ_ZAP_DOMAIN, "ringattn");
    socket.set(ZMQ_BACKLOG, backlog);
    socket.set(ZMQ_MAXMSGSIZE, static_cast<std::int64_t>(2 * Membership::largest_record));
  } else {
    socket.set(ZMQ_CURVE_SERVERKEY, hub.public_key);
    socket.set(ZMQ_RECONNECT_IVL, retry_ms);
    socket.set(ZMQ_MAXMSGSIZE, static_cast<std::int64_t>(Membership::largest_frame));
  }
  return socket;
}

Socket make_monitor(const Context& context, Socket& of) {
  of.monitor(monitor_endpoint, ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                                   ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                                   ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL);
  Socket reader(context, ZMQ_PAIR);
  reader.set(ZMQ_LINGER, 0);
  reader.set(ZMQ_RCVHWM, 0);  // without a limit, or a full one would stop ZeroMQ's own thread
  reader.connect(monitor_endpoint);
  return reader;
}

// A thread that no signal is delivered to: they are for the host's. The caller's own mask is left alone.
pthread_t start_thread(void* (*function)(void*), void* argument) {
  sigset_t all;
  sigfillset(&all);
  pthread_attr_t attributes;
  pthread_t thread{};
  int error = pthread_attr_init(&attributes);
  if (error == 0) {
    error = pthread_attr_setsigmask_np(&attributes, &all);
    if (error == 0) error = pthread_create(&thread, &attributes, function, argument);
    pthread_attr_destroy(&attributes);
  }
  if (error != 0) ringattn::fail(RA_STATUS_OUT_OF_MEMORY, "pthread_create: ", zeromq_library().zmq_strerror(error));
  return thread;
}

}  // namespace

Control::Control(const Context& context, const UniqueId& id, Hello own, const Session& session, std::int64_t timeout_ms,
                 std::function<void()> on_failure, const Failure& refusal)
    : id_(id),
      own_(std::move(own)),
      timeout_ms_(timeout_ms),
      linger_ms_(refusal.status == RA_STATUS_SUCCESS ? flush_ms : static_cast<int>(timeout_ms)),
      on_failure_(std::move(on_failure)),
      membership_(own_, session),
      socket_(make_socket(context, id_, own_.rank, linger_ms_)),
      monitor_(make_monitor(context, socket_)) {
  if (is_hub()) {
    for (int r = 0; r < own_.world_size; ++r) public_keys_.push_back(curve_keys(id_.secret, r).public_key);
    admission_ = std::make_unique<Socket>(context, ZMQ_REP);
    admission_->set(ZMQ_LINGER, 0);
    admission_->bind(admission_endpoint);
    switch (const int error = socket_.try_bind(id_.endpoint()); error) {
      case 0:
        break;
      case EADDRINUSE:
        ringattn::fail(RA_STATUS_MISMATCH, "rank 0 listens on ", id_.endpoint(),
                       ", where somebody listens already: another rank 0 of this unique_id, or another program");
      case EADDRNOTAVAIL:
      case ENODEV:
        ringattn::fail(RA_STATUS_INVALID_ARGUMENT, "rank 0 listens on ", id_.endpoint(),
                       ", which unique_id says; it must be an address of this machine");
      default:
        fail_with("zmq_bind", id_.endpoint(), error);
    }
  } else {
    socket_.connect(id_.endpoint());
  }
  membership_.fail(refusal);
  membership_.begin();
  const auto body = [](void* self) -> void* {
    static_cast<Control*>(self)->run();
    return nullptr;
  };
  thread_ = start_thread(body, this);
}

void Control::leave() noexcept {
  {
    std::unique_lock lock(mutex_);
    if (std::exchange(leaves_, true)) return;
    const auto is_free = [&] { return membership_.may_leave() || membership_.failure().status != RA_STATUS_SUCCESS; };
    changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms_), is_free);
    // A group that breaks before it is whole: those who come now are to hear why.
    const bool is_missed = is_hub() && !membership_.is_whole();
    const auto have_all_come = [&] { return std::ssize(guests_) >= own_.world_size - 1; };
    if (is_missed)
      changed_.wait_for(lock, std::chrono::milliseconds(std::min<std::int64_t>(timeout_ms_, linger_ms_)),
                        have_all_come);
    membership_.leave();
  }
  wake_.signal();
}

Control::~Control() {
  leave();
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake_.signal();
  pthread_join(thread_, nullptr);
  socket_.stop_monitor();
}

const Roster& Control::join() {
  std::unique_lock lock(mutex_);
  wait(
      lock, [&] { return membership_.is_whole(); }, Membership::nobody);
  return membership_.roster();  // for good
}

std::vector<std::byte> Control::gather(std::span<const std::byte> record) {
  const std::int64_t round = rounds_++;
  tell([&] {
    membership_.gather(record);
    membership_.set_waits_for(Membership::whoever);
  });
  std::unique_lock lock(mutex_);
  const std::vector<std::byte>* all = nullptr;
  wait(
      lock,
      [&] {
        all = membership_.records(round);
        const int lost = all == nullptr ? membership_.left_before(round) : -1;
        if (lost >= 0) fail_locked(left_while_waited_for(lost, own_.rank));
        return all != nullptr;
      },
      Membership::whoever);
  membership_.set_waits_for(Membership::nobody);
  return *all;
}

void Control::fail(const Failure& failure) noexcept {
  tell([&] { membership_.fail(failure); });
}

Failure Control::failure() const noexcept {
  const std::lock_guard lock(mutex_);
  return membership_.failure();
}

bool Control::can_tell() const {
  const std::lock_guard lock(mutex_);
  return can_tell_;
}

bool Control::has_left_undone(int rank) const {
  const std::lock_guard lock(mutex_);
  return membership_.has_left_undone(rank);
}

bool Control::has_left(int rank) const {
  const std::lock_guard lock(mutex_);
  return membership_.has_left(rank);
}

void Control::set_waits_for(int blocker) {
  const std::lock_guard lock(mutex_);  // nobody needs to be told: the next beat says it
  membership_.set_waits_for(blocker);
}

Failure Control::time_out(int blocker) {
  std::unique_lock lock(mutex_);
  return time_out_locked(lock, blocker);
}

Failure Control::lose_peer(const Failure& found) {
  std::unique_lock lock(mutex_);
  if (!await_failure(lock)) fail_locked(found);
  return membership_.failure();
}

void Control::end_call() noexcept {
  tell([&] { membership_.end_call(); });
}

// ---------------------------------------------------------------- whoever waits

template <class F>
void Control::wait(std::unique_lock<std::mutex>& lock, F&& is_over, int blocker) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms_);
  for (bool is_late = false;;) {
    const bool over = is_over();
    if (membership_.failure().status != RA_STATUS_SUCCESS) throw membership_.failure().to_error();
    if (over) return;
    if (is_late) throw time_out_locked(lock, blocker).to_error();
    is_late = changed_.wait_until(lock, deadline) == std::cv_status::timeout;
  }
}

// As long as anybody may take to answer, or to be found silent.
bool Control::await_failure(std::unique_lock<std::mutex>& lock) {
  constexpr std::chrono::milliseconds answer((Membership::silent_beats + 2) * Membership::beat_ms);
  return changed_.wait_for(lock, answer, [&] { return membership_.failure().status != RA_STATUS_SUCCESS; });
}

Failure Control::time_out_locked(std::unique_lock<std::mutex>& lock, int blocker) {
  membership_.on_timeout(blocker, timeout_ms_);
  spread();
  wake_.signal();
  if (!await_failure(lock)) {
    const int mute = std::max(blocker, 0);  // rank 0, where only that could have said whom all wait for
    fail_locked({RA_STATUS_TIMEOUT, mute, text("rank ", mute, " did not come within timeout_ms = ", timeout_ms_)});
  }
  Failure failure = membership_.failure();
  if (failure.status == RA_STATUS_TIMEOUT && !refusal_.empty())
    failure = {failure.status, failure.rank, text(failure.message, "; ", refusal_)};
  return failure;
}

void Control::fail_locked(const Failure& failure) {
  membership_.fail(failure);
  spread();
  wake_.signal();
}

// With the lock held: tells who should know that something has changed.
void Control::spread() {
  if (!is_failure_told_ && membership_.failure().status != RA_STATUS_SUCCESS) {
    is_failure_told_ = true;
    if (on_failure_) on_failure_();
    news_.signal();
  }
  int left = 0;
  for (int r = 0; r < own_.world_size; ++r) left += membership_.has_left(r) ? 1 : 0;
  if (left != left_told_) {
    left_told_ = left;
    news_.signal();
  }
  changed_.notify_all();
}

template <class F>
void Control::tell(F&& f) noexcept {
  {
    const std::lock_guard lock(mutex_);
    f();
    spread();
  }
  wake_.signal();
}

// ---------------------------------------------------------------- the thread

void Control::run() noexcept {
  pthread_setname_np(pthread_self(), "ringattn-ctl");
  next_beat_ = Clock::now() + std::chrono::milliseconds(Membership::beat_ms);
  for (bool was_told = false;;) {  // to end; what cannot be sent at once then is tried once more
    bool ends = false;
    {
      const std::lock_guard lock(mutex_);
      ends = ends_;
    }
    try {
      send_frames();
      if (ends && (was_told || outbox_.empty())) return;
      was_told = ends;
      turn();
    } catch (const std::exception& e) {  // no memory, or ZeroMQ has failed
      if (ends) return;
      const auto* const error = dynamic_cast<const Error*>(&e);
      const Failure failure = error != nullptr
                                  ? Failure(*error, own_.rank)
                                  : Failure(RA_STATUS_OUT_OF_MEMORY, own_.rank, "out of memory in the control thread");
      bool is_first = false;
      tell([&] {
        is_first = std::exchange(can_tell_, false);
        membership_.fail(failure);
      });
      if (is_first) continue;  // the others are told of it, if anything works here
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(Membership::beat_ms), [&] { return ends_; });
    }
  }
}

void Control::turn() {
  std::array<zmq_pollitem_t, 4> items{socket_.item(), monitor_.item(), wake_.item(), wake_.item()};
  if (admission_ != nullptr) items[3] = admission_->item();
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_beat_ - Clock::now()).count();
  poll(std::span(items).first(admission_ != nullptr ? 4 : 3), std::max<std::int64_t>(left, 0));
  wake_.clear();

  if (admission_ != nullptr) answer_admissions();
  read_frames(most_at_once);
  read_events(most_at_once);
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (now >= next_beat_) {
    membership_.on_beat();
    next_beat_ = now + std::chrono::milliseconds(Membership::beat_ms);
  }
  spread();
}

void Control::read_frames(std::size_t most) {
  for (std::size_t n = 0; n < most; ++n) {
    Message route, frame;
    if (is_hub() && !socket_.receive(route)) return;
    if (!socket_.receive(frame)) return;
    int from = 0;
    if (is_hub()) {
      const std::string user = frame.property("User-Id");  // which answer_admissions gave it
      std::from_chars(user.data(), user.data() + user.size(), from);
      const auto is_same = [&](const Connection& c) { return std::ranges::equal(c.route, route.data()); };
      if (std::ranges::none_of(connections_, is_same))
        connections_.push_back({from, frame.descriptor(), {route.data().begin(), route.data().end()}});
    }
    bool is_single = true;
    while (frame.has_more()) {  // no member sends such
      is_single = false;
      if (!socket_.receive(frame)) return;
    }
    const std::lock_guard lock(mutex_);
    if (is_hub()) guests_.insert(from);
    membership_.on_frame(from, is_single ? frame.data() : std::span<const std::byte>());
  }
}

// A request of libzmq's (RFC 27): version, request, domain, address, identity, mechanism, credentials, which for CURVE is a public key.
void Control::answer_admissions() {
  for (std::size_t n = 0; n < most_at_once; ++n) {
    std::array<std::string, 7> request;
    Message part;
    if (!admission_->receive(part)) return;
    request[0] = part.text();
    std::size_t parts = 1;
    while (part.has_more()) {
      if (!admission_->receive(part)) return;
      if (parts < request.size()) request[parts] = part.text();
      ++parts;
    }
    // Whose descriptor the newcomer has, if he was before, went before he asked.
    read_events(all);
    bool is_open;
    {
      const std::lock_guard lock(mutex_);
      is_open = !membership_.is_whole();  // of a broken one too: to hear why
    }
    const int rank = is_open && parts == request.size() && request[5] == "CURVE"
                         ? rank_of_key(std::as_bytes(std::span(request[6])))
                         : -1;
    const bool admits = rank >= 0;
    const std::array<std::string, 6> answer{"1.0",
                                            request[1],
                                            admits ? "200" : "400",
                                            admits ? "welcome" : "the group is whole or broken, or has no such key",
                                            admits ? std::to_string(rank) : "",
                                            ""};
    for (std::size_t i = 0; i < answer.size(); ++i) {
      Message message(answer[i]);
      if (!admission_->send(message, i + 1 < answer.size())) return;
    }
  }
}

// -1 if it is nobody's. Whoever comes here has the id's secret, and perhaps another idea of how many ranks there are.
int Control::rank_of_key(std::span<const std::byte> public_key) {
  for (std::size_t r = 0; r < most_ranks; ++r) {
    if (r == public_keys_.size()) public_keys_.push_back(curve_keys(id_.secret, static_cast<int>(r)).public_key);
    if (std::ranges::equal(public_keys_[r], public_key)) return static_cast<int>(r);
  }
  return -1;
}

// An event is two messages, of which the first is its number, 16 bits, and its value, 32 bits.
void Control::read_events(std::size_t most) {
  std::vector<int> gone;
  Message event, address;
  for (std::size_t n = 0; n < most && monitor_.receive(event); ++n) {
    while (event.has_more() && monitor_.receive(address) && address.has_more()) continue;
    if (event.data().size() < 6) continue;
    std::uint16_t number;
    std::int32_t value;
    std::memcpy(&number, event.data().data(), sizeof number);
    std::memcpy(&value, event.data().data() + sizeof number, sizeof value);
    if (number == ZMQ_EVENT_DISCONNECTED) {
      if (is_hub() || is_connected_) gone.push_back(value);  // else an attempt to connect has failed
    } else if (is_hub()) {
      continue;  // strangers
    } else if (number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
      is_connected_ = true;
    } else if (number == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
      fail({RA_STATUS_MISMATCH, own_.rank,
            text("rank 0 at ", id_.endpoint(),
                 " lets nobody in any more: the group of this unique_id is whole or has broken; rank ", own_.rank,
                 " came twice or too late")});
    } else {
      const std::lock_guard lock(mutex_);
      refusal_ = text("what listens at ", id_.endpoint(), " is no rank 0 of this unique_id");
    }
  }
  if (gone.empty()) return;
  read_frames(all);  // what they said before
  const std::lock_guard lock(mutex_);
  for (const int descriptor : gone) {
    if (!is_hub()) {
      membership_.on_disconnect(0);
      socket_.drop();
      continue;
    }
    const auto found = std::ranges::find(connections_, descriptor, &Connection::descriptor);
    if (found == connections_.end()) continue;
    const int rank = found->rank;
    connections_.erase(found);
    membership_.on_disconnect(rank);
  }
}

void Control::send_frames() {
  {
    const std::lock_guard lock(mutex_);
    std::ranges::move(membership_.take_frames(), std::back_inserter(outbox_));
  }
  for (; !outbox_.empty(); outbox_.pop_front()) {
    const Membership::Frame& frame = outbox_.front();
    if (!is_hub()) {
      Message message(frame.bytes);
      if (!socket_.send(message)) return;  // again with the next
      continue;
    }
    for (const Connection& connection : connections_) {  // two, where a rank came twice
      if (connection.rank != frame.to) continue;
      Message route(connection.route), message(frame.bytes);
      if (socket_.send(route, true)) socket_.send(message);
    }
  }
}

}  // namespace ringattn::zeromq
