#include "support/proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "transport/zeromq/libraries.h"

namespace ringattn::test {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {
    if (number < 0) throw std::runtime_error(text("proxy: ", std::strerror(errno)));
  }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  operator int() const { return number_; }

 private:
  int number_;
};

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

Descriptor make_socket() { return Descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); }

// Small units go at once, and nothing waits.
void prepare(int connection) {
  const int yes = 1;
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  fcntl(connection, F_SETFL, O_NONBLOCK);
}

// The bytes of the unit that `bytes` begins with, and of its header; nothing while it is not complete.
std::optional<std::pair<std::size_t, std::size_t>> measure(int number, const std::string& bytes) {
  constexpr std::size_t greeting[Unit::greetings] = {10, 1, 53};  // signature; major version; minor version, mechanism
  std::size_t header = 0, size = 0;
  if (number < Unit::greetings) {
    header = size = greeting[number];
  } else {
    if (bytes.empty()) return {};
    const bool is_long = (bytes[0] & 2) != 0;
    header = is_long ? 9 : 2;
    if (bytes.size() < header) return {};
    for (std::size_t i = 1; i < header; ++i) size = size << 8 | static_cast<unsigned char>(bytes[i]);
    size += header;
  }
  if (bytes.size() < size) return {};
  return std::pair(size, header);
}

struct Place {
  Proxy* proxy = nullptr;
  int rank = 0;
  int connections = 0;
};
thread_local Place place;

decltype(&zmq_connect) real_connect = nullptr;

}  // namespace

// One direction of a connection.
struct Proxy::Way {
  Stream stream;
  int from, to;
  int number = 0;
  std::string unread{}, unsent{};
  bool ends = false;  // with what is unsent
};

struct Proxy::Link {
  Descriptor near, far;
  Way forth, back;
};

// Where a connection is expected, and where it leads.
struct Proxy::Door {
  Descriptor listener;
  int rank, connection;
  std::uint16_t target;
  int made = 0;
};

Proxy::Proxy(Bend bend) : bend_(std::move(bend)) {
  // The table is no constant; only the library has no way to change it.
  [[maybe_unused]] static const bool is_installed = [] {
    Zeromq& table = const_cast<Zeromq&>(zeromq_library());
    real_connect = std::exchange(table.zmq_connect, &Proxy::connect_through);
    return true;
  }();
  thread_ = std::thread([this] { run(); });
}

Proxy::~Proxy() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake_.signal();
  thread_.join();
}

Proxy::Client::Client(Proxy& proxy, int rank) { place = {&proxy, rank}; }
Proxy::Client::~Client() { place = {}; }

int Proxy::made(int rank, int connection) const {
  const std::lock_guard lock(mutex_);
  for (const Door& door : doors_)
    if (door.rank == rank && door.connection == connection) return door.made;
  return 0;
}

int Proxy::connect_through(void* socket, const char* endpoint) {
  const std::string to = endpoint;
  if (place.proxy == nullptr || !to.starts_with("tcp://")) return real_connect(socket, endpoint);
  return real_connect(socket, place.proxy->open_door(place.rank, place.connections++, to).c_str());
}

std::string Proxy::open_door(int rank, int connection, const std::string& endpoint) {
  Door door{make_socket(), rank, connection,
            static_cast<std::uint16_t>(std::stoul(endpoint.substr(endpoint.rfind(':') + 1)))};
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  auto* const name = reinterpret_cast<sockaddr*>(&address);
  if (bind(door.listener, name, size) != 0 || listen(door.listener, 16) != 0 ||
      getsockname(door.listener, name, &size) != 0)
    throw std::runtime_error(text("proxy: ", std::strerror(errno)));
  fcntl(door.listener, F_SETFL, O_NONBLOCK);
  {
    const std::lock_guard lock(mutex_);
    doors_.push_back(std::move(door));
  }
  wake_.signal();
  return text("tcp://127.0.0.1:", ntohs(address.sin_port));
}

void Proxy::run() {
  for (;;) {
    wake_.clear();
    std::vector<pollfd> items{{wake_.item().fd, POLLIN, 0}};
    std::vector<Door*> doors;
    {
      const std::lock_guard lock(mutex_);
      if (ends_) return;
      for (Door& door : doors_) {
        doors.push_back(&door);
        items.push_back({door.listener, POLLIN, 0});
      }
    }
    const std::size_t first = items.size();
    for (const Link& link : links_) {
      const auto events_of = [](const Way& in, const Way& out) {
        return static_cast<short>((in.ends ? 0 : POLLIN) | (out.unsent.empty() ? 0 : POLLOUT));
      };
      items.push_back({link.near, events_of(link.forth, link.back), 0});
      items.push_back({link.far, events_of(link.back, link.forth), 0});
    }
    poll(items.data(), items.size(), -1);
    std::size_t n = first;
    for (auto link = links_.begin(); link != links_.end(); n += 2) {
      const bool lives = move(link->forth, items[n].revents) && move(link->back, items[n + 1].revents);
      link = lives ? std::next(link) : links_.erase(link);
    }
    for (std::size_t d = 0; d < doors.size(); ++d)
      if (items[d + 1].revents != 0) accept(*doors[d]);
  }
}

// Where nobody listens yet, the connection ends at once, and is tried again by whoever made it.
void Proxy::accept(Door& door) {
  const int accepted = ::accept4(door.listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (accepted < 0) return;
  Descriptor near(accepted), far = make_socket();
  const sockaddr_in address = loopback(door.target);
  if (connect(far, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return;
  {
    const std::lock_guard lock(mutex_);
    ++door.made;
  }
  prepare(near);
  prepare(far);
  const int a = near, b = far;
  links_.push_back({std::move(near), std::move(far), Way{{door.rank, door.connection, true}, a, b},
                    Way{{door.rank, door.connection, false}, b, a}});
}

// False when the connection is over.
bool Proxy::move(Way& way, short events) {
  if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && !way.ends) {
    std::vector<char> buffer(1 << 16);
    const ssize_t got = recv(way.from, buffer.data(), buffer.size(), 0);
    if (got > 0) way.unread.append(buffer.data(), static_cast<std::size_t>(got));
    way.ends = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
    while (const auto size = measure(way.number, way.unread)) {
      const Passage passage = bend_({way.stream, way.number++, size->second, way.unread.substr(0, size->first)});
      way.unread.erase(0, size->first);
      way.unsent += passage.bytes;
      if (passage.is_end) {
        way.ends = true;
        way.unread.clear();
        break;
      }
    }
    if (way.ends) way.unsent += std::exchange(way.unread, {});
  }
  while (!way.unsent.empty()) {
    const ssize_t sent = send(way.to, way.unsent.data(), way.unsent.size(), MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR;
    way.unsent.erase(0, static_cast<std::size_t>(sent));
  }
  return !way.ends;
}

}  // namespace ringattn::test
