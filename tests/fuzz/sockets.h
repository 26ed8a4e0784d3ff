// Sockets of ZeroMQ without a network, in the place of transport/zeromq/libraries.cpp: what comes in is what a target puts there, and what is
// sent is kept for it. A message lies in memory of exactly its own size, so that AddressSanitizer sees a byte read beyond it. libsodium
// is the real one.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <vector>

namespace ringattn::fuzz {

struct Part {
  std::vector<std::byte> bytes;
  int descriptor = 0;  // of the connection that it came on
  bool has_more = false;
};

struct FakeSocket {
  std::string endpoint;  // that it is bound or connected to
  std::deque<Part> incoming, sent;
};

// Sockets that are open, in the order in which they were made.
std::vector<FakeSocket*>& open_sockets();

}  // namespace ringattn::fuzz
