// The text that makes a group: "ringattn-zeromq-1-<host>:<port>-<64 hexadecimal digits>". Whoever has it can join: it is a credential.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ringattn::zeromq {

using Secret = std::array<std::byte, 32>;

struct UniqueId {
  std::string host;        // a numeric address, IPv6 without brackets
  std::uint16_t port = 0;  // that rank 0 will listen on
  Secret secret{};

  std::string text() const;
  std::string endpoint() const;  // "tcp://127.0.0.1:40001", "tcp://[::1]:40001"
};

UniqueId parse_unique_id(const std::string& text);  // throws INVALID_ARGUMENT: what is wrong with unique_id

// "host", "host:port", "[v6]:port" or null (loopback), names resolved; a port that is not given, or 0, is one that is free now. A wildcard
// (0.0.0.0, ::) is refused: the others must know where to connect. Throws INVALID_ARGUMENT (bind_address), NOT_SUPPORTED.
UniqueId make_unique_id(const char* bind_address);

// The same for a rank that others send to: its address without a port.
std::string own_address(const char* bind_address);

}  // namespace ringattn::zeromq
