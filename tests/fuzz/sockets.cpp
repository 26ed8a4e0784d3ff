#include "fuzz/sockets.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/memory.h"
#include "transport/zeromq.h"
#include "transport/zeromq/libraries.h"

namespace ringattn {
namespace fuzz {

std::vector<FakeSocket*>& open_sockets() {
  static auto& sockets = make_immortal<std::vector<FakeSocket*>>();
  return sockets;
}

namespace {

FakeSocket& socket_of(void* handle) { return *static_cast<FakeSocket*>(handle); }
int try_again() {
  errno = EAGAIN;
  return -1;
}

// A message's place holds the address of its part, or null.
Part*& part_of(zmq_msg_t* message) { return *reinterpret_cast<Part**>(message); }
const Part* part_of(const zmq_msg_t* message) { return *reinterpret_cast<Part* const*>(message); }
int init(zmq_msg_t* message) { return part_of(message) = nullptr, 0; }
int init_size(zmq_msg_t* message, std::size_t size) {
  return part_of(message) = new Part{std::vector<std::byte>(size)}, 0;
}
int close(zmq_msg_t* message) {
  delete part_of(message);
  return init(message);
}
void* data(zmq_msg_t* message) { return part_of(message) == nullptr ? nullptr : part_of(message)->bytes.data(); }
std::size_t size(const zmq_msg_t* message) { return part_of(message) == nullptr ? 0 : part_of(message)->bytes.size(); }
int more(const zmq_msg_t* message) { return part_of(message) != nullptr && part_of(message)->has_more; }
int get(const zmq_msg_t* message, int) { return part_of(message) == nullptr ? -1 : part_of(message)->descriptor; }

int receive(zmq_msg_t* message, void* handle, int) {
  auto& incoming = socket_of(handle).incoming;
  if (incoming.empty()) return try_again();
  close(message);
  part_of(message) = new Part(std::move(incoming.front()));
  incoming.pop_front();
  return static_cast<int>(size(message));
}
int send(zmq_msg_t* message, void* handle, int flags) {
  const int sent = static_cast<int>(size(message));
  socket_of(handle).sent.push_back(sent == 0 ? Part{} : std::move(*part_of(message)));
  socket_of(handle).sent.back().has_more = (flags & ZMQ_SNDMORE) != 0;
  close(message);
  return sent;
}

void* open(void*, int) { return open_sockets().emplace_back(new FakeSocket); }
int shut(void* handle) {
  std::erase(open_sockets(), &socket_of(handle));
  delete &socket_of(handle);
  return 0;
}
int attach(void* handle, const char* endpoint) { return socket_of(handle).endpoint = endpoint, 0; }
int set_option(void*, int, const void*, std::size_t) { return 0; }
int get_option(void* handle, int, void* value, std::size_t* size) {
  const std::string& endpoint = socket_of(handle).endpoint;
  *size = endpoint.copy(static_cast<char*>(value), *size - 1) + 1;
  static_cast<char*>(value)[*size - 1] = '\0';
  return 0;
}

}  // namespace
}  // namespace fuzz

const Zeromq& zeromq_library() {
  static const Zeromq table = [] {
    Zeromq z{};
    z.zmq_errno = [] { return errno; };
    z.zmq_strerror = [](int number) -> const char* { return std::strerror(number); };
    z.zmq_ctx_new = []() -> void* { return &errno; };
    z.zmq_ctx_set = [](void*, int, int) { return 0; };
    z.zmq_ctx_term = [](void*) { return 0; };
    z.zmq_socket = fuzz::open;
    z.zmq_close = fuzz::shut;
    z.zmq_setsockopt = fuzz::set_option;
    z.zmq_getsockopt = fuzz::get_option;
    z.zmq_bind = z.zmq_connect = fuzz::attach;
    z.zmq_msg_init = fuzz::init;
    z.zmq_msg_init_size = fuzz::init_size;
    z.zmq_msg_close = fuzz::close;
    z.zmq_msg_data = fuzz::data;
    z.zmq_msg_size = fuzz::size;
    z.zmq_msg_more = fuzz::more;
    z.zmq_msg_get = fuzz::get;
    z.zmq_msg_send = fuzz::send;
    z.zmq_msg_recv = fuzz::receive;
    return z;
  }();
  return table;
}

const Sodium& sodium_library() {
#define RINGATTN_ADDRESS(function) ::function,
  static const Sodium table{RINGATTN_SODIUM_FUNCTIONS(RINGATTN_ADDRESS)};
#undef RINGATTN_ADDRESS
  static const int ready = ::sodium_init();
  if (ready < 0) std::abort();
  return table;
}

std::string missing_zeromq() { return {}; }

}  // namespace ringattn
