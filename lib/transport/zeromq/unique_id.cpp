#include "transport/zeromq/unique_id.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "transport/zeromq.h"
#include "transport/zeromq/libraries.h"

namespace ringattn::zeromq {
namespace {

constexpr std::string_view family = zeromq_id_beginning, beginning = "ringattn-zeromq-1-";
constexpr std::string_view digits = "0123456789abcdef";
constexpr std::size_t secret_digits = 2 * std::tuple_size_v<Secret>;

// An address as the system writes it; nothing if `host` is none.
std::optional<std::string> numeric(int version, const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> address{};
  std::array<char, INET6_ADDRSTRLEN> written{};
  if (inet_pton(version, host.c_str(), address.data()) != 1) return {};
  return inet_ntop(version, address.data(), written.data(), written.size());
}
bool is_ipv6(const std::string& host) { return numeric(AF_INET6, host).has_value(); }

// A port in decimal digits, and nothing else.
std::optional<std::uint16_t> to_port(std::string_view written) {
  std::uint16_t port = 0;
  const char* const end = written.data() + written.size();
  const auto [stopped, error] = std::from_chars(written.data(), end, port);
  if (written.empty() || error != std::errc() || stopped != end) return {};
  return port;
}

std::string with_port(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? text(host, ':', port) : text('[', host, "]:", port);
}

// ---- The address that rank 0 will listen on.

// bind_address, taken apart: "host", "host:port", "[IPv6]", "[IPv6]:port", "IPv6".
struct Asked {
  std::string given;
  std::string host;
  std::uint16_t port = 0;

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(RA_STATUS_INVALID_ARGUMENT, "bind_address is \"", given.substr(0, 128), "\"; ", parts...);
  }
};

Asked take_apart(const char* bind_address) {
  Asked asked{bind_address, {}};
  const std::string& given = asked.given;
  std::string_view port;  // with its colon
  const std::size_t colon = given.find(':');
  if (given.starts_with('[')) {
    const std::size_t end = given.find(']');
    if (end == std::string::npos) asked.refuse("the bracket must be closed, as in [::1]:40001");
    asked.host = given.substr(1, end - 1);
    port = std::string_view(given).substr(end + 1);
    if (!is_ipv6(asked.host)) asked.refuse("between brackets must be an IPv6 address in digits");
    if (!port.empty() && !port.starts_with(':')) asked.refuse("after ] must be nothing, or a colon and a port");
  } else if (colon != std::string::npos && given.find(':', colon + 1) != std::string::npos) {
    asked.host = given;
    if (!is_ipv6(given)) asked.refuse("must be host, host:port, or an IPv6 address, in brackets if a port follows");
  } else {
    asked.host = given.substr(0, colon);
    if (colon != std::string::npos) port = std::string_view(given).substr(colon);
    if (asked.host.empty()) asked.refuse("must begin with a host; NULL is loopback");
  }
  if (!port.empty()) {
    const std::optional<std::uint16_t> number = to_port(port.substr(1));
    if (!number) asked.refuse("the port must be 0 .. 65535, and nothing may follow it");
    asked.port = *number;
  }
  return asked;
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};

std::unique_ptr<addrinfo, FreeAddresses> resolve(const Asked& asked) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int result = getaddrinfo(asked.host.c_str(), nullptr, &hints, &list);
  const int error = errno;
  if (result == EAI_MEMORY) throw std::bad_alloc();
  if (result != 0)
    asked.refuse("no address of that host is found: ",
                 result == EAI_SYSTEM ? std::generic_category().message(error) : gai_strerror(result));
  return std::unique_ptr<addrinfo, FreeAddresses>(list);
}

class Socket {
 public:
  explicit Socket(int version) : number_(socket(version, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

// One of the addresses that a name stands for.
struct Candidate {
  int version = AF_INET;
  sockaddr_storage address{};
  socklen_t size = 0;

  explicit Candidate(const addrinfo& found) : version(found.ai_family), size(found.ai_addrlen) {
    std::memcpy(&address, found.ai_addr, found.ai_addrlen);
  }
  in_port_t& port() {
    return version == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                              : reinterpret_cast<sockaddr_in6&>(address).sin6_port;
  }
  const void* number() const {
    return version == AF_INET ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(address).sin_addr)
                              : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
  }
  std::string host() const {
    std::array<char, INET6_ADDRSTRLEN> written{};
    return inet_ntop(version, number(), written.data(), written.size());
  }
  bool is_wildcard() const {
    constexpr in6_addr any{};  // of either version
    return std::memcmp(number(), &any, version == AF_INET ? sizeof(in_addr) : sizeof(in6_addr)) == 0;
  }
  bool is_link_local() const {
    return version == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(static_cast<const in6_addr*>(number()));
  }

  // Whether one can listen on the port, or, where it is 0, on which; it is set to that. 0, or an error number.
  int probe(std::uint16_t asked) {
    const Socket probing(version);
    // As ZeroMQ's listener will: connections of an earlier one, still being buried, are no obstacle.
    const int reuse = asked != 0;
    port() = htons(asked);
    if (probing.number() < 0 || setsockopt(probing.number(), SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) != 0 ||
        bind(probing.number(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        listen(probing.number(), 1) != 0 ||
        getsockname(probing.number(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
      return errno;
    return 0;
  }
};

// A port below those that the system gives out by itself: one of those could be anybody's by the time that rank 0 listens.
std::uint16_t draw_port() {
  int first_given_out = 32768;
  std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> first_given_out;
  constexpr int most = 16384, first_of_all = 1024;
  const int range = std::clamp(first_given_out - first_of_all, 0, most);
  std::uint32_t number = 0;
  sodium_library().randombytes_buf(&number, sizeof number);
  if (range == 0) return 0;
  return static_cast<std::uint16_t>(first_given_out - 1 - static_cast<int>(number % static_cast<std::uint32_t>(range)));
}

// Whether one can listen on the port, or, where it is 0, on which. 0, or an error number.
int probe(Candidate& candidate, std::uint16_t port) {
  constexpr int attempts = 20;
  for (int n = 0; port == 0 && n < attempts; ++n)
    if (candidate.probe(draw_port()) == 0) return 0;
  return candidate.probe(port);
}

// The first address of the host that this machine can listen on.
void choose_address(const Asked& asked, UniqueId& id) {
  const auto list = resolve(asked);
  std::string why;
  for (const addrinfo* found = list.get(); found != nullptr; found = found->ai_next) {
    if (found->ai_family != AF_INET && found->ai_family != AF_INET6) continue;
    Candidate candidate(*found);
    const std::string host = candidate.host();
    if (candidate.is_wildcard()) {
      why = text("that is ", host, ", all addresses of this machine; must be one that the other ranks can connect to");
      continue;
    }
    if (candidate.is_link_local()) {
      why = text(host, " is another address on every link; must be one that all ranks know by the same digits");
      continue;
    }
    const int error = probe(candidate, asked.port);
    if (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS)
      fail(RA_STATUS_OUT_OF_MEMORY, "a socket for ", host, ": ", std::generic_category().message(error));
    if (error == 0) {
      id.host = host;
      id.port = ntohs(candidate.port());
      return;
    }
    if (error == EADDRNOTAVAIL || error == EAFNOSUPPORT)
      why = text(host, " is no address of this machine");
    else if (error == EADDRINUSE)
      why = asked.port == 0 ? text(host, " has no free port") : text("port ", asked.port, " of ", host, " is in use");
    else
      why = text("cannot listen on ", with_port(host, asked.port), ": ", std::generic_category().message(error));
  }
  asked.refuse(why.empty() ? "the host has neither an IPv4 nor an IPv6 address" : why);
}

// ---- An id as text. What is shown of a wrong one is what was understood, so that no part of the secret can be in it.

class Reader {
 public:
  explicit Reader(std::string_view all) : rest_(all) {}
  std::string_view rest() const { return rest_; }
  const std::string& understood() const { return understood_; }

  bool take(std::string_view what) {
    if (!rest_.starts_with(what)) return false;
    understood_ += what;
    rest_.remove_prefix(what.size());
    return true;
  }
  std::string_view until(char end) const { return rest_.substr(0, rest_.find(end)); }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(RA_STATUS_INVALID_ARGUMENT, "unique_id is \"", understood_, "...\"; ", parts...,
         "; must be a text made by ra_create_unique_id for RA_TRANSPORT_ZEROMQ, whole and unchanged");
  }

 private:
  std::string_view rest_;
  std::string understood_;
};

}  // namespace

std::string UniqueId::text() const {
  std::string all = ringattn::text(beginning, with_port(host, port), '-');
  for (const std::byte byte : secret) {
    all += digits[std::to_integer<std::size_t>(byte >> 4)];
    all += digits[std::to_integer<std::size_t>(byte & std::byte{15})];
  }
  return all;
}

std::string UniqueId::endpoint() const { return "tcp://" + with_port(host, port); }

UniqueId parse_unique_id(const std::string& text) {
  Reader reader(text);
  if (!reader.take(family)) reader.refuse("it does not begin with ", family);
  if (!reader.take(beginning.substr(family.size())))
    reader.refuse("it is not of version 1, the only one that this library knows");

  UniqueId id;
  const bool is_v6 = reader.take("[");
  id.host = reader.until(is_v6 ? ']' : ':');
  // Only as the system writes it: one address has one text.
  if (numeric(is_v6 ? AF_INET6 : AF_INET, id.host) != id.host)
    reader.refuse("what follows is not ", is_v6 ? "an IPv6 address" : "an address");
  reader.take(id.host);
  if (!reader.take(is_v6 ? "]:" : ":")) reader.refuse("a port must follow");

  const std::string_view port = reader.until('-');
  id.port = to_port(port).value_or(0);
  if (id.port == 0 || port.starts_with('0')) reader.refuse("the port must be 1 .. 65535");
  reader.take(port);
  if (!reader.take("-")) reader.refuse("the secret must follow");

  const std::string_view secret = reader.rest();
  if (secret.size() != secret_digits)
    reader.refuse("the secret has ", secret.size(), " digits and must have ", secret_digits);
  for (std::size_t i = 0; i < secret_digits; ++i) {
    const std::size_t digit = digits.find(secret[i]);
    if (digit == std::string_view::npos) reader.refuse("digit ", i, " of the secret is none of ", digits);
    id.secret[i / 2] = id.secret[i / 2] << 4 | static_cast<std::byte>(digit);
  }
  return id;
}

std::string own_address(const char* bind_address) {
  const Asked asked = take_apart(bind_address);
  if (asked.port != 0) asked.refuse("must be a host alone: the port is one that is free");
  UniqueId found;
  choose_address(asked, found);
  return found.host;
}

UniqueId make_unique_id(const char* bind_address) {
  UniqueId id;
  choose_address(take_apart(bind_address == nullptr ? "127.0.0.1" : bind_address), id);
  sodium_library().randombytes_buf(id.secret.data(), id.secret.size());
  return id;
}

}  // namespace ringattn::zeromq
