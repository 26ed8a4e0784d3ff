// ZeroMQ's contexts, sockets and messages, each of which ends with its owner. What fails throws INTERNAL_ERROR with ZeroMQ's own words,
// but for OUT_OF_MEMORY where that is what they say.
//
// libzmq ends the process where it finds no file descriptor for a socket. So whoever makes a context asks beforehand for as many as it may
// ever need (DescriptorClaim), and makes all its sockets at once.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "core/error.h"
#include "transport/zeromq/libraries.h"

namespace ringattn::zeromq {

[[noreturn]] inline void fail_with(const char* function, const std::string& of, int number) {
  fail(number == ENOMEM || number == EMFILE || number == ENFILE ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_INTERNAL_ERROR,
       function, of.empty() ? "" : " ", of, ": ", zeromq_library().zmq_strerror(number));
}

// What a signal of the host's interrupts is called again.
template <class F>
int uninterrupted(F&& call) {
  for (;;)
    if (const int result = call(); result >= 0 || zeromq_library().zmq_errno() != EINTR) return result;
}

class Context {
 public:
  explicit Context(int most_sockets) : handle_(zeromq_library().zmq_ctx_new()) {
    if (handle_ == nullptr) fail_with("zmq_ctx_new", {}, zeromq_library().zmq_errno());
    zeromq_library().zmq_ctx_set(handle_, ZMQ_MAX_SOCKETS, most_sockets);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  // Waits for what its sockets still have to send, as long as they linger.
  ~Context() {
    uninterrupted([&] { return zeromq_library().zmq_ctx_term(handle_); });
  }
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

class Message {
 public:
  Message() { zeromq_library().zmq_msg_init(&message_); }
  explicit Message(std::size_t size) {
    if (zeromq_library().zmq_msg_init_size(&message_, size) != 0) throw std::bad_alloc();
  }
  explicit Message(std::span<const std::byte> bytes) : Message(bytes.size()) {
    if (!bytes.empty()) std::memcpy(data().data(), bytes.data(), bytes.size());
  }
  explicit Message(const std::string& text) : Message(std::as_bytes(std::span(text))) {}
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;
  ~Message() { zeromq_library().zmq_msg_close(&message_); }

  std::span<std::byte> data() {
    return {static_cast<std::byte*>(zeromq_library().zmq_msg_data(&message_)),
            zeromq_library().zmq_msg_size(&message_)};
  }
  bool has_more() const { return zeromq_library().zmq_msg_more(&message_) != 0; }
  // Of the connection it came on; -1 of one whose other end was gone before ZeroMQ could ask who it is.
  int descriptor() const { return zeromq_library().zmq_msg_get(&message_, ZMQ_SRCFD); }
  std::string property(const char* name) const {
    const char* const value = zeromq_library().zmq_msg_gets(&message_, name);
    if (value == nullptr) fail_with("zmq_msg_gets", name, zeromq_library().zmq_errno());
    return value;
  }
  std::string text() { return {reinterpret_cast<const char*>(data().data()), data().size()}; }
  zmq_msg_t* get() { return &message_; }

 private:
  zmq_msg_t message_;
};

class Socket {
 public:
  Socket(const Context& context, int type) : handle_(zeromq_library().zmq_socket(context.handle(), type)) {
    if (handle_ == nullptr) fail_with("zmq_socket", {}, zeromq_library().zmq_errno());
  }
  Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Socket& operator=(Socket&&) = delete;
  ~Socket() {
    if (handle_ != nullptr) zeromq_library().zmq_close(handle_);
  }

  void set(int option, int value) { set(option, &value, sizeof value); }
  void set(int option, std::int64_t value) { set(option, &value, sizeof value); }
  void set(int option, std::span<const std::byte> value) { set(option, value.data(), value.size()); }
  void set(int option, const char* value) { set(option, value, std::strlen(value)); }
  // 0, or the number of the error.
  int try_bind(const std::string& endpoint) {
    const auto call = [&] { return zeromq_library().zmq_bind(handle_, endpoint.c_str()); };
    return uninterrupted(call) == 0 ? 0 : zeromq_library().zmq_errno();
  }
  void bind(const std::string& endpoint) {
    if (const int error = try_bind(endpoint); error != 0) fail_with("zmq_bind", endpoint, error);
  }
  void connect(const std::string& endpoint) {
    if (uninterrupted([&] { return zeromq_library().zmq_connect(handle_, endpoint.c_str()); }) != 0)
      fail_with("zmq_connect", endpoint, zeromq_library().zmq_errno());
  }
  std::string endpoint() const {  // that it was last bound to
    char name[512] = {};
    std::size_t size = sizeof name - 1;
    if (uninterrupted([&] { return zeromq_library().zmq_getsockopt(handle_, ZMQ_LAST_ENDPOINT, name, &size); }) != 0)
      fail_with("zmq_getsockopt", "ZMQ_LAST_ENDPOINT", zeromq_library().zmq_errno());
    return name;
  }
  // Events of its connections, to be read from a PAIR socket connected to that endpoint.
  void monitor(const char* endpoint, int events) {
    if (uninterrupted([&] { return zeromq_library().zmq_socket_monitor(handle_, endpoint, events); }) != 0)
      fail_with("zmq_socket_monitor", endpoint, zeromq_library().zmq_errno());
  }
  void stop_monitor() noexcept { zeromq_library().zmq_socket_monitor(handle_, nullptr, 0); }

  // Closed before all is sent: nobody is there to take it.
  void drop() noexcept {
    const int linger = 0;
    uninterrupted([&] { return zeromq_library().zmq_setsockopt(handle_, ZMQ_LINGER, &linger, sizeof linger); });
  }

  // Do not block. False: there is nothing, or no room.
  bool receive(Message& message) {
    const auto call = [&] { return zeromq_library().zmq_msg_recv(message.get(), handle_, ZMQ_DONTWAIT); };
    return uninterrupted(call) >= 0 || give_up_unless_busy("zmq_msg_recv");
  }
  bool send(Message& message, bool has_more = false) {
    const int flags = ZMQ_DONTWAIT | (has_more ? ZMQ_SNDMORE : 0);
    const auto call = [&] { return zeromq_library().zmq_msg_send(message.get(), handle_, flags); };
    return uninterrupted(call) >= 0 || give_up_unless_busy("zmq_msg_send");
  }
  zmq_pollitem_t item() const { return {handle_, 0, ZMQ_POLLIN, 0}; }

 private:
  void set(int option, const void* value, std::size_t size) {
    if (uninterrupted([&] { return zeromq_library().zmq_setsockopt(handle_, option, value, size); }) != 0)
      fail_with("zmq_setsockopt", text("option ", option), zeromq_library().zmq_errno());
  }
  static bool give_up_unless_busy(const char* function) {
    const int error = zeromq_library().zmq_errno();
    if (error != EAGAIN) fail_with(function, {}, error);
    return false;
  }

  void* handle_;
};

// Waits until something is there, or so many milliseconds have passed, or a signal has come.
inline void poll(std::span<zmq_pollitem_t> items, std::int64_t milliseconds) {
  if (zeromq_library().zmq_poll(items.data(), static_cast<int>(items.size()), static_cast<long>(milliseconds)) < 0) {
    const int error = zeromq_library().zmq_errno();
    if (error != EINTR) fail_with("zmq_poll", {}, error);
  }
}

// File descriptors that somebody is about to open: while it lives, no other claim of this process is granted the same ones. Throws
// OUT_OF_MEMORY if there are not so many, and `spare` for the host, which opens files meanwhile.
class DescriptorClaim {
 public:
  explicit DescriptorClaim(int count);
  DescriptorClaim(const DescriptorClaim&) = delete;
  DescriptorClaim& operator=(const DescriptorClaim&) = delete;
  ~DescriptorClaim();

  static constexpr int spare = 32;

 private:
  const int count_;
};

// A file descriptor that is readable from signal() to clear().
class Signal {
 public:
  Signal();
  Signal(const Signal&) = delete;
  Signal& operator=(const Signal&) = delete;
  ~Signal();
  void signal() noexcept;
  void clear() noexcept;
  zmq_pollitem_t item() const { return {nullptr, descriptor_, ZMQ_POLLIN, 0}; }

 private:
  int descriptor_;
};

}  // namespace ringattn::zeromq
