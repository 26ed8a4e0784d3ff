// Traps of ZeroMQ 4.3, and what libringattn promises in each: a test is named after its trap.
//
//   a queue at its high-water mark    says nothing of whether the other end lives, so nobody is taken for dead because of one
//   descriptors run out               libzmq ends the process; here it is OUT_OF_MEMORY, before libzmq can find out
//   a monitor that nobody drains      stops ZeroMQ's own thread; ours is drained, and has no limit
//   reconnecting                      a rank that comes before rank 0 tries again; a link of data that is gone stays gone
//   zmq_unbind                        ends connections that are there; nothing is unbound, but the way to the socket is removed
//   a successor                       whoever comes after a rank, or in its place, is not taken for it
//   a connection that is gone         has no descriptor when what it brought is read; that is no failure
//   a descriptor                      is the next one's when what a stranger brought is read; that is not the next one's fault
//   an oversized message              ends the connection though it was "sent"; no rank sends one
//   binding an ipc path               steals it from whoever has it; no two ranks have the same
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "support/proxy.h"
#include "support/random.h"
#include "support/ranks.h"
#include "transport/zeromq.h"
#include "transport/zeromq/links.h"
#include "transport/zeromq/membership.h"
#include "transport/zeromq/unique_id.h"

namespace ringattn::zeromq {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

constexpr std::int64_t patience_ms = 60'000;  // for what takes no time where nothing is wrong

Bytes numbered(std::size_t size, int from) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i * 7 + (i >> 11)) + static_cast<unsigned>(from));
  return bytes;
}

// ---------------------------------------------------------------- groups

struct Group {
  std::string id = make_zeromq_id(nullptr);
  std::vector<std::unique_ptr<Transport>> ranks;

  // `before(rank)`: on the rank's thread, before it joins.
  explicit Group(int world_size, const char* bind_address = "", const std::function<void(int)>& before = {})
      : ranks(static_cast<std::size_t>(world_size)) {
    run([&](int rank) {
      if (before) before(rank);
      ranks[static_cast<std::size_t>(rank)] = join_zeromq({id, bind_address, true, world_size, rank}, patience_ms, {});
    });
    for (const auto& rank : ranks) require(rank != nullptr, "a rank has not joined");
  }
  void run(const std::function<void(int)>& body) const { test::run_threads(static_cast<int>(ranks.size()), body); }
  Transport& operator[](int rank) const { return *ranks[static_cast<std::size_t>(rank)]; }

  // Every rank sends so much to the next, and has what the one before sent.
  void pass_on(std::size_t size) const {
    const int world_size = static_cast<int>(ranks.size());
    run([&](int rank) {
      Transport& transport = (*this)[rank];
      const std::byte word{static_cast<unsigned char>(rank)};
      EXPECT_EQ(transport.all_gather(std::span(&word, 1)).size(), ranks.size());
      const int next = (rank + 1) % world_size, before = (rank + world_size - 1) % world_size;
      const Bytes sent = numbered(size, rank);
      Bytes received(size);
      transport.send(next, 1, sent);
      transport.receive(before, 1, received);
      transport.wait();
      transport.end_call();
      EXPECT_EQ(received, numbered(size, before)) << "rank " << rank;
    });
  }
  // Each on a thread of its own, as rank 0 waits for the others.
  void leave() {
    run([&](int rank) { ranks[static_cast<std::size_t>(rank)].reset(); });
  }
  ~Group() { leave(); }
};

// ---------------------------------------------------------------- links alone

struct End {
  explicit End(bool is_machine_open) : inlets(context, "127.0.0.1", is_machine_open) {}
  Context context{16};
  Inlets inlets;
  std::unique_ptr<Links> links;
};

// Two ends, and the roster that both have.
struct Pair {
  // `before` is called with the inlets of rank 1, when nobody has connected yet. `rank_0_first`: rank 1 reads when what rank 0 begins with
  // is there.
  explicit Pair(bool is_machine_open, const std::function<void(const Inlets&)>& before = {}, bool rank_0_first = false)
      : ends{End(is_machine_open), End(is_machine_open)} {
    if (before) before(ends[1].inlets);
    roster.session.fill(std::byte{1});
    for (int rank = 0; rank < 2; ++rank) {
      Hello hello;
      hello.rank = rank;
      hello.world_size = 2;
      hello.cipher = static_cast<std::int32_t>(best_cipher());
      hello.address = ends[rank].inlets.address();
      hello.machine = ends[rank].inlets.machine();
      roster.ranks.push_back(hello);
    }
    for (int rank = 0; rank < 2; ++rank) {
      ends[rank].links = make_links(rank);
      if (!rank_0_first || rank == 1) continue;
      ends[rank].links->pump();
      std::this_thread::sleep_for(200ms * test::slowness);
    }
    pump([&] { return ends[0].links->unopened() < 0 && ends[1].links->unopened() < 0; });
  }
  std::unique_ptr<Links> make_links(int rank) {
    return std::make_unique<Links>(ends[rank].context, ends[rank].inlets, secret, roster, rank, true);
  }
  bool pump(const std::function<bool()>& is_over, std::chrono::milliseconds within = 30s) {
    for (const auto end = Clock::now() + within; !is_over();) {
      if (Clock::now() > end) return false;
      for (End& e : ends) {
        if (e.links == nullptr) continue;
        e.links->pump();
        std::vector<zmq_pollitem_t> items = e.links->items();
        poll(items, 1);
      }
    }
    return true;
  }
  void pass(std::size_t size, std::uint64_t tag) {
    const Bytes sent = numbered(size, static_cast<int>(tag));
    Bytes received(size);
    ends[0].links->send(1, tag, sent);
    ends[1].links->receive(0, tag, received);
    EXPECT_TRUE(pump([&] { return ends[0].links->blocker() < 0 && ends[1].links->blocker() < 0; })) << size << " bytes";
    for (End& e : ends) e.links->forget();
    EXPECT_EQ(received, sent);
  }

  End ends[2];
  Secret secret{};
  Roster roster;
};

std::string tcp_of(const Inlets& inlets) {
  const std::string& address = inlets.address();
  return address.substr(address.find("tcp://"));
}

// ---------------------------------------------------------------- high-water marks

// All that may be under way is, and nobody takes it, for longer than a rank may be silent.
TEST(HighWaterMark, IsNoDeath) {
  constexpr auto busy = 1ms * Membership::beat_ms * (Membership::silent_beats + 3);
  std::vector<std::thread> both;
  for (const char* const address : {"", "127.0.0.1"})
    both.emplace_back([address, busy] {
      const Group group(2, address);
      const Bytes sent = numbered(3 * Links::window * Links::piece_size, 5);
      group.run([&](int rank) {
        Transport& transport = group[rank];
        Bytes received(sent.size());
        if (rank == 0) {
          transport.receive(1, 1, received);
          std::this_thread::sleep_for(busy);
        } else {
          transport.send(0, 1, sent);
        }
        transport.wait();
        transport.end_call();
        EXPECT_EQ(rank == 1 || received == sent, true) << "by " << address;
      });
    });
  for (std::thread& thread : both) thread.join();
}

// What waits for room hears of a failure as everybody does. (That a rank is killed meanwhile: fault/process_test.cpp, "traffic".)
TEST(HighWaterMark, HidesNoFailure) {
  const Group group(2, "127.0.0.1");
  group.run([&](int rank) {
    Transport& transport = group[rank];
    if (rank == 0) return transport.fail({RA_STATUS_ABORTED, 0, "enough"});
    const Bytes sent(3 * Links::window * Links::piece_size);
    transport.send(0, 1, sent);
    try {
      transport.wait();
      ADD_FAILURE() << "nobody took it";
    } catch (const Error& error) {
      EXPECT_EQ(error.status, RA_STATUS_ABORTED);
    }
  });
}

// ---------------------------------------------------------------- descriptors

int open_descriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count - 1;  // this one's own
}

void set_limit(int descriptors) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = static_cast<rlim_t>(descriptors);
  setrlimit(RLIMIT_NOFILE, &limit);
}

// One life of a group whose process may have so many more files. Whether it came to be.
bool live_with(int world_size, int spare, const char* bind_address, bool is_refused) {
  const ra_unique_id id = test::make_unique_id(RA_TRANSPORT_ZEROMQ);
  set_limit(open_descriptors() + spare);
  std::atomic<int> joined{0};
  std::vector<test::Context> contexts(static_cast<std::size_t>(world_size));
  test::run_threads(world_size, [&](std::int32_t rank) {
    ra_context_config config = test::make_config(world_size, rank, &id);
    config.transport = RA_TRANSPORT_ZEROMQ;
    config.timeout_ms = 300;
    config.bind_address = bind_address;
    if (is_refused) config.device = 1;  // which the others are told
    test::Error error;
    contexts[static_cast<std::size_t>(rank)].reset(ra_create_context(&config, &error));
    if (contexts[static_cast<std::size_t>(rank)] != nullptr) {
      ++joined;
    } else if (!is_refused && error.status != RA_STATUS_OUT_OF_MEMORY && error.status != RA_STATUS_TIMEOUT &&
               error.status != RA_STATUS_PEER_LOST) {
      std::cerr << spare << " descriptors: " << error << '\n';
      _exit(1);
    }
  });
  test::run_threads(world_size, [&](std::int32_t rank) { contexts[static_cast<std::size_t>(rank)].reset(); });
  set_limit(1000);
  return joined == world_size;
}

// In a process of its own, which libzmq would end. It has opened more than a rank needs.
void run_out(int world_size, const char* bind_address) {
  for (int n = 0; n < 200; ++n) dup(STDERR_FILENO);
  live_with(world_size, 500, bind_address, false);  // loads what is loaded once
  // UndefinedBehaviorSanitizer itself opens a pipe, and finds errors where it cannot.
  const int none = test::slowness > 1 ? 4 : 0;
  int spare = none;
  while (!live_with(world_size, spare, bind_address, false)) spare += 1 + spare / 6;
  for (int few = none; few < 80; few += 16) live_with(world_size, few, bind_address, true);
  std::cerr << "a group of " << world_size << " came to be with " << spare << " descriptors\n";
  _exit(0);
}

TEST(DescriptorsRunOut, IsAnError) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(run_out(2, "127.0.0.1"), testing::ExitedWithCode(0), "came to be");
  EXPECT_EXIT(run_out(8, nullptr), testing::ExitedWithCode(0), "came to be");
}

// ---------------------------------------------------------------- monitors

// Puts a function in the place of one of ZeroMQ's, while it lives.
template <class Function>
class Replaced {
 public:
  Replaced(Function Zeromq::*which, Function other)
      : place_(const_cast<Zeromq&>(zeromq_library()).*which), real_(std::exchange(place_, other)) {}
  Replaced(const Replaced&) = delete;
  Replaced& operator=(const Replaced&) = delete;
  ~Replaced() { place_ = real_; }

 private:
  Function& place_;
  Function real_;
};

// A stranger connects to where rank 0 listens, says something and goes; or only when rank 0 has seen him off.
void come_and_go(const UniqueId& id, bool is_patient = false) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(id.port);
  inet_pton(AF_INET, id.host.c_str(), &address.sin_addr);
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const linger at_once{1, 0};  // leaves no port behind
  setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  if (connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    [[maybe_unused]] const auto sent = send(connection, "?", 1, MSG_NOSIGNAL);
    for (char word[64]; is_patient && recv(connection, word, sizeof word, 0) > 0;) continue;
  }
  close(connection);
}

// More events than a queue of ZeroMQ holds by default, as fast as they can be made.
TEST(Monitor, IsNotFilledByAFloodOfConnections) {
  Group group(2);
  const UniqueId id = parse_unique_id(group.id);
  std::thread flood([&] {
    for (int n = 0; n < 2'000; ++n) come_and_go(id);
  });
  group.pass_on(1000);
  flood.join();
  group.pass_on(1000);
  const auto begin = Clock::now();
  group.leave();
  EXPECT_LT(Clock::now() - begin, 10s * test::slowness);
}

// ---------------------------------------------------------------- reconnecting

TEST(Reconnecting, BringsThoseWhoComeBeforeRank0) {
  std::atomic<int> waiting{0};
  Group group(3, "", [&](int rank) {
    if (rank > 0) {
      ++waiting;
      return;
    }
    while (waiting < 2) std::this_thread::yield();
    std::this_thread::sleep_for(100ms);  // in which they try in vain
  });
  group.pass_on(1000);
}

// A connection of the control plane that ends before it is one is made again; one of data, which may have lost something, is not.
TEST(Reconnecting, IsNotForData) {
  for (const bool is_data : {false, true}) {
    const test::Stream cut{1, is_data ? 1 : 0, true};
    bool is_cut = false;
    test::Proxy proxy([&](const test::Unit& unit) {
      const bool is_here = !is_cut && unit.stream == cut && unit.number == test::Unit::greetings;
      is_cut |= is_here;
      return test::Passage{is_here ? "" : unit.bytes, is_here};
    });
    const std::string id = make_zeromq_id(nullptr);
    std::atomic<int> joined{0};
    test::run_threads(2, [&](int rank) {
      const test::Proxy::Client client(proxy, rank);
      try {
        const auto transport = join_zeromq({id, "127.0.0.1", true, 2, rank}, is_data ? 1000 : patience_ms, {});
        ++joined;
        const std::byte word{};
        transport->all_gather(std::span(&word, 1));
        transport->end_call();
      } catch (const Error& error) {
        EXPECT_TRUE(is_data && error.status == RA_STATUS_TIMEOUT) << error.what();
      }
    });
    EXPECT_EQ(joined == 2, !is_data);
    EXPECT_EQ(proxy.made(1, is_data ? 1 : 0), is_data ? 1 : 2);
  }
}

// ---------------------------------------------------------------- unbinding

// Once all have joined, nobody finds the socket any more; those who have, stay.
TEST(Unbinding, IsDoneByRemovingTheWay) {
  Pair pair(true);
  const std::string& address = pair.ends[1].inlets.address();
  const std::string path = address.substr(6, address.find(' ') - 6);
  EXPECT_TRUE(std::filesystem::exists(path)) << path;
  for (End& end : pair.ends) end.inlets.close_door();
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::path(path).parent_path())) << path;
  pair.pass(3 * Links::piece_size, 1);
}

// ---------------------------------------------------------------- successors

// Of a group that is whole: it goes on.
TEST(Successor, OfARankIsRefused) {
  Group group(3);
  group.pass_on(1000);
  for (const int rank : {0, 1, 2}) {
    try {
      join_zeromq({group.id, "", true, 3, rank}, patience_ms, {});
      ADD_FAILURE() << "a second rank " << rank << " has joined";
    } catch (const Error& error) {
      EXPECT_EQ(error.status, RA_STATUS_MISMATCH) << error.what();
    }
    group.pass_on(1000);
  }
}

// Of a link that has ended, with its keys or with those of another session.
TEST(Successor, OfALinkIsNotTakenForIt) {
  for (const bool is_same_session : {false, true})
    for (const bool is_machine_open : {false, true}) {
      Pair pair(is_machine_open);
      pair.pass(1000, 1);
      pair.ends[0].links.reset();
      if (!is_same_session) pair.roster.session.fill(std::byte{2});
      pair.ends[0].links = pair.make_links(0);
      const Bytes sent = numbered(1000, 2);
      Bytes received(1000);
      pair.ends[1].links->receive(0, 2, received);
      pair.ends[0].links->send(1, 2, sent);
      // On TCP it may be a stranger's, whom nobody listens to, unless the system has given it the descriptor of the one before.
      try {
        const bool is_taken = pair.pump([&] { return pair.ends[1].links->blocker() < 0; }, 200ms);
        EXPECT_FALSE(is_taken || is_machine_open);
      } catch (const Error& error) {
        EXPECT_EQ(error.status, RA_STATUS_PEER_LOST) << error.what();
        EXPECT_EQ(error.rank, 0) << error.what();
      }
      EXPECT_EQ(received, Bytes(1000));
    }
}

// Somebody has recorded what a rank sent, and sends it again, as it goes on.
TEST(Successor, IsNobodyWhoRepeatsWhatARankSent) {
  Pair pair(false);
  const Context context(4);
  Socket stranger(context, ZMQ_PUSH);
  stranger.set(ZMQ_LINGER, 0);
  stranger.connect(tcp_of(pair.ends[1].inlets));
  for (std::uint64_t number = 0; number < 20; ++number) {
    PieceHeader header;
    header.wire = wire_version;
    header.kind = number == 0 ? PieceKind::opening : PieceKind::received;
    header.protection = number == 0 ? Protection::authenticated : Protection::encrypted;
    header.cipher = best_cipher();
    header.to = 1;
    header.number = number;
    Message frame(overhead);
    seal(header, {}, link_key(pair.secret, pair.roster.session, 0, 1), frame.data());
    EXPECT_TRUE(stranger.send(frame));
    pair.pass(1000, number);
  }
}

// ---------------------------------------------------------------- oversized messages

TEST(OversizedMessage, IsNeverSent) {
  for (const bool is_machine_open : {false, true}) {
    Pair pair(is_machine_open);
    std::uint64_t tag = 0;
    for (const std::size_t pieces : {std::size_t{0}, std::size_t{1}, std::size_t{2}, 2 * Links::window})
      for (const int more : {-1, 0, 1})
        if (pieces > 0 || more >= 0) pair.pass(pieces * Links::piece_size + static_cast<std::size_t>(more), ++tag);
  }
  const Group group(3);
  group.run([&](int rank) {
    const Bytes record = numbered(Membership::largest_record, rank);
    const Bytes all = group[rank].all_gather(record);
    ASSERT_EQ(all.size(), 3 * record.size());
    for (int r = 0; r < 3; ++r)
      EXPECT_TRUE(std::ranges::equal(std::span(all).subspan(static_cast<std::size_t>(r) * record.size(), record.size()),
                                     numbered(record.size(), r)));
    group[rank].end_call();
  });
}

// Nor taken from whoever sends one; that is no rank, and the ranks go on.
TEST(OversizedMessage, OfAStrangerIsDropped) {
  Pair pair(false);
  const Context context(4);
  Socket stranger(context, ZMQ_PUSH);
  stranger.set(ZMQ_LINGER, 0);
  stranger.connect(tcp_of(pair.ends[1].inlets));
  Message message(Links::piece_size + overhead + 1);
  std::ranges::fill(message.data(), std::byte{'R'});
  EXPECT_TRUE(stranger.send(message));
  for (std::uint64_t tag = 1; tag < 20; ++tag) pair.pass(100'000, tag);
}

// ---------------------------------------------------------------- connections that are gone as they come

decltype(&zmq_msg_get) real_get = nullptr;
int get_no_descriptor(const zmq_msg_t* message, int property) {
  return property == ZMQ_SRCFD ? -1 : real_get(message, property);
}
int get_one_descriptor(const zmq_msg_t* message, int property) {
  const int descriptor = real_get(message, property);
  return property == ZMQ_SRCFD && descriptor >= 0 ? 0 : descriptor;
}

void send_words(Socket& stranger) {
  for (int n = 0; n < 10; ++n) {
    Message message(1000);
    std::ranges::fill(message.data(), std::byte{'R'});
    EXPECT_TRUE(stranger.send(message));
  }
}

// Those whose other end is gone before ZeroMQ asks who it is have no descriptor. What they brought is a stranger's, which is dropped, or
// a rank's, which is taken.
TEST(NamelessConnection, AccusesNobody) {
  real_get = zeromq_library().zmq_msg_get;
  const Replaced get(&Zeromq::zmq_msg_get, &get_no_descriptor);
  Pair pair(false);
  const Context context(4);
  Socket stranger(context, ZMQ_PUSH);
  stranger.set(ZMQ_LINGER, 0);
  stranger.connect(tcp_of(pair.ends[1].inlets));
  for (std::uint64_t tag = 1; tag < 20; ++tag) {
    send_words(stranger);
    pair.pass(3 * Links::piece_size / 2, tag);
  }
}

// A stranger's words, not all of which are read when he is gone and a rank has his descriptor, as the system gives it to whoever is next.
TEST(DescriptorThatWasAStrangers, AccusesNobody) {
  real_get = zeromq_library().zmq_msg_get;
  const Replaced get(&Zeromq::zmq_msg_get, &get_one_descriptor);
  Pair pair(
      false,
      [](const Inlets& of_rank_1) {
        const Context context(4);
        Socket stranger(context, ZMQ_PUSH);
        stranger.set(ZMQ_LINGER, 10'000);
        stranger.connect(tcp_of(of_rank_1));
        send_words(stranger);
      },
      true);
  pair.pass(3 * Links::piece_size / 2, 1);
}

// And the other way round: the rank is gone, and a stranger has what was its descriptor.
std::atomic<int> given_descriptor{0};
int get_given_descriptor(const zmq_msg_t* message, int property) {
  const int descriptor = real_get(message, property);
  return property == ZMQ_SRCFD && descriptor >= 0 ? given_descriptor.load() : descriptor;
}
TEST(DescriptorThatWasARanks, AccusesNobody) {
  real_get = zeromq_library().zmq_msg_get;
  const Replaced get(&Zeromq::zmq_msg_get, &get_given_descriptor);
  int first[2], second[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, first), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, second), 0);
  given_descriptor = first[0];
  Pair pair(false);
  pair.pass(3 * Links::piece_size / 2, 1);
  ASSERT_EQ(dup2(second[0], first[0]), first[0]);
  const Context context(4);
  Socket stranger(context, ZMQ_PUSH);
  stranger.set(ZMQ_LINGER, 0);
  stranger.connect(tcp_of(pair.ends[1].inlets));
  for (std::uint64_t tag = 2; tag < 10; ++tag) {
    send_words(stranger);
    pair.pass(3 * Links::piece_size / 2, tag);  // what the rank had sent before it went
  }
  for (const int descriptor : {first[0], first[1], second[0], second[1]}) close(descriptor);
}

// The same of the control plane: that a stranger has gone is read when a rank that has his descriptor has said hello, since the thread that
// reads both had no turn in between. Here it has none while it reads that the rank asks to be let in, nor once it has answered.
struct Lateness {
  decltype(&zmq_msg_recv) receive;
  decltype(&zmq_msg_send) send;
  UniqueId id;
  std::atomic<void*> answers{nullptr};  // the socket that admits
};
Lateness late;

int receive_late(zmq_msg_t* message, void* socket, int flags) {
  const int size = late.receive(message, socket, flags);
  const bool has_more = size > 0 && zeromq_library().zmq_msg_more(message) == 1;
  void* const data = size > 0 ? zeromq_library().zmq_msg_data(message) : nullptr;
  if (size == 3 && has_more && std::memcmp(data, "1.0", 3) == 0) {  // a request (RFC 27)
    late.answers = socket;
    come_and_go(late.id, true);
  }
  std::uint16_t event = 0;
  if (size == 6 && has_more) std::memcpy(&event, data, sizeof event);
  if (event == ZMQ_EVENT_DISCONNECTED) std::memset(static_cast<char*>(data) + 2, 0, 4);  // of descriptor 0
  return size;
}
int send_late(zmq_msg_t* message, void* socket, int flags) {
  const int size = late.send(message, socket, flags);
  if (socket == late.answers && (flags & ZMQ_SNDMORE) == 0) std::this_thread::sleep_for(200ms);
  return size;
}

TEST(DescriptorThatWasAStrangers, EndsNoMembership) {
  real_get = zeromq_library().zmq_msg_get;
  late.receive = zeromq_library().zmq_msg_recv;
  late.send = zeromq_library().zmq_msg_send;
  const std::string id = make_zeromq_id(nullptr);
  late.id = parse_unique_id(id);
  const Replaced get(&Zeromq::zmq_msg_get, &get_one_descriptor);
  const Replaced receive(&Zeromq::zmq_msg_recv, &receive_late);
  const Replaced send(&Zeromq::zmq_msg_send, &send_late);
  test::run_threads(2, [&](int rank) {
    const auto transport = join_zeromq({id, "", true, 2, rank}, patience_ms, {});
    const std::byte word{};
    EXPECT_EQ(transport->all_gather(std::span(&word, 1)).size(), 2u);
    transport->end_call();
  });
}

// ---------------------------------------------------------------- paths

TEST(IpcPath, IsNobodyElses) {
  Pair pair(true), another(true);
  std::vector<std::string> paths;
  for (const Pair* p : {&pair, &another})
    for (const End& end : p->ends) {
      const std::string& address = end.inlets.address();
      const std::string path = address.substr(6, address.find(' ') - 6);
      EXPECT_EQ(std::ranges::count(paths, path), 0) << path;
      paths.push_back(path);
      struct stat status {};
      ASSERT_EQ(stat(std::filesystem::path(path).parent_path().c_str(), &status), 0) << path;
      EXPECT_EQ(status.st_mode & 0777, 0700u) << path;
      EXPECT_EQ(status.st_uid, getuid()) << path;
    }
  pair.pass(1000, 1);
  another.pass(1000, 1);
  pair.pass(1000, 2);
}

}  // namespace
}  // namespace ringattn::zeromq
