// What a rank reads before its group is whole: the text of an id, an address to listen on, the hub a HELLO, a spoke its WELCOME.
//
// Nothing of a text or a frame is passed over: it is refused, or it is what would be written of that which was understood.
#include <netdb.h>

#include <cstring>
#include <string>

#include "fuzz/input.h"
#include "transport/zeromq.h"
#include "transport/zeromq/membership.h"
#include "transport/zeromq/unique_id.h"

namespace {
std::string resolved;  // the host that getaddrinfo was asked for
}

// In the place of the system's: nobody's network is asked for hosts that a fuzzer makes up, and no socket is opened.
extern "C" int getaddrinfo(const char* host, const char*, const addrinfo*, addrinfo**) {
  resolved = host;
  return EAI_NONAME;
}

namespace ringattn::zeromq {
namespace {

using fuzz::check;
using Bytes = std::vector<std::byte>;

std::string to_text(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// What `read` is refused with; empty if it is not.
template <class F>
std::string refusal(F&& read) {
  try {
    read();
    return {};
  } catch (const Error& error) {
    check(error.status == RA_STATUS_INVALID_ARGUMENT && error.rank == -1, "refused with ", error.status);
    check(!error.message.empty(), "refused without a word");
    return error.message;
  }
}

void read_id(const std::string& given) {
  UniqueId id;
  const std::string why = refusal([&] { id = parse_unique_id(given); });
  if (why.empty())
    check(is_zeromq_id(given) && id.text() == given && id.port != 0, given, " is understood as ", id.text());
  else
    check(why.find("unique_id is \"") == 0, why);
}

// A host is looked up as it stands there: alone, or in brackets, and before nothing but a port.
void read_address(const std::string& given) {
  for (const bool is_own : {false, true}) {
    resolved.clear();
    const std::string why =
        refusal([&] { is_own ? void(own_address(given.c_str())) : void(make_unique_id(given.c_str())); });
    check(why.find("bind_address is \"" + given.substr(0, 128) + "\"; ") == 0, why);
    if (resolved.empty()) continue;
    const bool is_in_brackets = given.starts_with('[');
    const std::string host = is_in_brackets ? "[" + resolved + "]" : resolved;
    check(given.starts_with(host), "looks up ", resolved, " for ", given);
    const std::string port = given.substr(host.size());
    check(port.empty() || (port[0] == ':' && port.find_first_not_of("0123456789", 1) == std::string::npos), "looks up ",
          resolved, " for ", given);
    check(!is_in_brackets || resolved.find(':') != std::string::npos, "takes ", resolved, " for IPv6");
  }
}

Hello hello_of(int world_size, int rank) {
  Hello hello;
  hello.library = 100;
  hello.world_size = world_size;
  hello.rank = rank;
  hello.address = "tcp://10.0.0.1:4000";
  hello.machine = "m";
  return hello;
}

void check_failure(const Failure& failure, int from) {
  check(failure.status == RA_STATUS_MISMATCH || failure.status == RA_STATUS_PEER_LOST ||
            (failure.status != RA_STATUS_SUCCESS && failure.status <= RA_STATUS_INTERNAL_ERROR),
        "fails with ", failure.status);
  check(failure.rank >= -1, "names ", failure.rank, ", where ", from, " spoke");
  check(std::memchr(failure.message, 0, sizeof failure.message) != nullptr, "a message without an end");
  for (const char c : std::string(failure.message))
    check(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f, "a control character in a message");
}

// A frame to the hub of two, from rank 1, which is all that it waits for.
void read_hello(const Bytes& frame) {
  Membership hub(hello_of(2, 0), Session{std::byte{7}});
  hub.begin();
  hub.on_frame(1, frame);
  if (!hub.is_whole()) {
    check_failure(hub.failure(), 1);
    return;
  }
  check(hub.failure().status == RA_STATUS_SUCCESS, hub.failure().message);
  const Hello& read = hub.roster().ranks[1];
  check(read.rank == 1 && read.world_size == 2, "rank 1 is ", read.rank, " of ", read.world_size);
  Membership spoke(read, Session{});
  spoke.begin();
  const auto written = spoke.take_frames();
  check(written.size() == 1 && written[0].bytes == frame, "a HELLO that no rank would write");
  for (const auto& welcome : hub.take_frames()) spoke.on_frame(0, welcome.bytes);
  check(spoke.is_whole() && spoke.roster().ranks == hub.roster().ranks, "its WELCOME is not understood");
}

// A frame to rank 1 of two, from the hub.
void read_welcome(const Bytes& frame) {
  Membership spoke(hello_of(2, 1), Session{});
  spoke.begin();
  const auto hello = spoke.take_frames();
  spoke.on_frame(0, frame);
  if (spoke.failure().status != RA_STATUS_SUCCESS) check_failure(spoke.failure(), 0);
  if (!spoke.is_whole()) return;
  const Roster& roster = spoke.roster();
  check(spoke.failure().status == RA_STATUS_SUCCESS, spoke.failure().message);
  check(roster.ranks.size() == 2 && roster.ranks[1] == hello_of(2, 1), "rank 1 is another");
  Membership hub(roster.ranks[0], roster.session);
  hub.begin();
  hub.on_frame(1, hello[0].bytes);
  const auto written = hub.take_frames();
  check(written.size() == 1 && written[0].bytes == frame, "a WELCOME that no hub would write");
}

}  // namespace
}  // namespace ringattn::zeromq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ringattn::zeromq;
  ringattn::fuzz::Input input(data, size);
  const int what = input.below(4);
  const std::vector<std::byte> rest = input.rest();
  switch (what) {
    case 0:
      read_id(to_text(rest));
      break;
    case 1:
      read_address(to_text(rest).c_str());
      break;
    case 2:
      read_hello(rest);
      break;
    default:
      read_welcome(rest);
  }
  return 0;
}
