// Whoever has no id connects to every port of a group, while it joins and while it computes, and changes nothing: the group forms about as
// fast as without, and its results are right.
//
// Strangers find the ports as a port scan would, here by asking the system which this process listens on. What they do there: nothing, one
// byte, noise, half a handshake that they leave or reset, a handshake without CURVE or with a wrong key, frames that are too long, and, where
// data is taken, whole frames that look like pieces of a rank's.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/oracle_run.h"
#include "support/random.h"
#include "support/ranks.h"
#include "transport/zeromq/frame.h"
#include "transport/zeromq/keys.h"
#include "transport/zeromq/seal.h"
#include "transport/zeromq/socket.h"

namespace ringattn {
namespace {

using Clock = std::chrono::steady_clock;
using reference::Random;

// Ports of 127.0.0.1 that this process listens on.
std::set<std::uint16_t> listening_ports() {
  std::set<std::string> own;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc/self/fd", error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry->path(), gone).string();
    if (target.starts_with("socket:[")) own.insert(target.substr(8, target.size() - 9));
  }
  std::set<std::uint16_t> ports;
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    std::string slot, local, remote, state, queues, timer, retransmits, user, timeout, inode;
    fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >> inode;
    if (state == "0A" && own.contains(inode))
      ports.insert(static_cast<std::uint16_t>(std::stoul(local.substr(local.find(':') + 1), nullptr, 16)));
  }
  return ports;
}

int connect_to(std::uint16_t port) {
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connection >= 0 && connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0)
    return connection;
  if (connection >= 0) close(connection);
  return -1;
}

std::string noise(Random& random, std::size_t length) {
  std::string bytes(length, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// The greeting of ZMTP 3.0 (RFC 23).
std::string greeting(const std::string& mechanism) {
  std::string bytes("\xFF\0\0\0\0\0\0\0\x01\x7F\x03\0", 12);
  bytes += mechanism + std::string(20 - mechanism.size(), '\0');
  bytes.resize(64, '\0');
  return bytes;
}

// A piece as rank `from` would send it, had it the secret.
std::vector<std::byte> forged_piece(Random& random) {
  zeromq::PieceHeader header;
  header.wire = zeromq::wire_version;
  header.kind = static_cast<zeromq::PieceKind>(random() % 3);
  header.protection = random() % 2 == 0 ? zeromq::Protection::encrypted : zeromq::Protection::authenticated;
  header.cipher = zeromq::best_cipher();
  header.from = static_cast<int>(random() % 3);
  header.to = static_cast<int>(random() % 3);
  header.number = random() % 4;
  header.tag = random() % 8;
  const std::vector<std::byte> payload(random() % 2000);
  header.size = header.length = payload.size();
  zeromq::LinkKey key{};
  std::vector<std::byte> frame(zeromq::overhead + payload.size());
  zeromq::seal(header, payload, key, frame);
  return frame;
}

class Strangers {
 public:
  explicit Strangers(std::uint64_t seed) : random_(seed), thread_([this] { run(); }) {}
  ~Strangers() {
    ends_ = true;
    thread_.join();
    for (const int connection : held_) close(connection);
  }
  int count() const { return count_; }

 private:
  enum Kind { nothing, one_byte, garbage, reset, held, without_curve, wrong_key, oversized, forged, kinds };

  void run() {
    while (!ends_) {
      for (const std::uint16_t port : listening_ports())
        for (int n = 0; n < 4 && !ends_; ++n) come(port, static_cast<Kind>(random_() % kinds));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void come(std::uint16_t port, Kind kind) {
    ++count_;
    if (kind == forged || kind == wrong_key) return come_by_zeromq(port, kind);
    const int connection = connect_to(port);
    if (connection < 0) return;
    std::string bytes;
    if (kind == one_byte) bytes = noise(random_, 1);
    if (kind == garbage) bytes = noise(random_, 1 + random_() % 300);
    if (kind == reset) bytes = greeting("CURVE").substr(0, random_() % 64);
    if (kind == without_curve) bytes = greeting("NULL") + std::string("\x04\x1A\x05READY", 8) + noise(random_, 20);
    if (kind == oversized) {
      bytes = greeting("NULL") + std::string("\x04\x19\x05READY\x0BSocket-Type\0\0\0\x04PUSH", 28);
      bytes += std::string("\x02\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 9);  // one of 2^63 - 1 bytes
    }
    [[maybe_unused]] const auto sent = send(connection, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (kind == held && held_.size() < 100) {
      held_.push_back(connection);
      return;
    }
    if (kind == reset) {
      const linger at_once{1, 0};
      setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    close(connection);
  }

  void come_by_zeromq(std::uint16_t port, Kind kind) {
    const std::string endpoint = text("tcp://127.0.0.1:", port);
    zeromq::Socket socket(context_, kind == forged ? ZMQ_PUSH : ZMQ_DEALER);
    socket.set(ZMQ_LINGER, 0);
    if (kind == wrong_key) {
      zeromq::Secret secret{};
      secret[0] = static_cast<std::byte>(random_());
      const zeromq::CurveKeys own = zeromq::curve_keys(secret, 1);
      socket.set(ZMQ_CURVE_SECRETKEY, own.secret_key);
      socket.set(ZMQ_CURVE_PUBLICKEY, own.public_key);
      socket.set(ZMQ_CURVE_SERVERKEY, zeromq::curve_keys(secret, 0).public_key);
    }
    socket.connect(endpoint);
    for (int n = 0; n < 3; ++n) {
      zeromq::Message piece(forged_piece(random_));
      socket.send(piece);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // until they are there
  }

  Random random_;
  zeromq::Context context_{64};
  std::vector<int> held_;
  std::atomic<int> count_{0};
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

// Seconds that a group takes to form; it then computes a random problem, and goes.
double form_and_compute(Random& random) {
  reference::ProblemLimits limits;
  limits.seqlen = 64;
  const reference::Oracle oracle(reference::draw_problem(random, limits), random);
  const auto begin = Clock::now();
  const test::Ranks ranks(3, [](ra_context_config& config) { config.bind_address = "127.0.0.1"; });
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  test::expect_within(test::run_on(ranks, oracle), oracle);
  return seconds;
}

TEST(Strangers, ChangeNothing) {
  const std::uint64_t seed = test::seed();
  Random random(seed);
  double quiet = 0, disturbed = 0;
  for (int n = 0; n < 5; ++n) quiet = std::max(quiet, form_and_compute(random));
  const int enough = test::full() ? 10'000 : test::sample(1'500);
  Strangers strangers(seed);
  int groups = 0;
  for (; strangers.count() < enough && !HasFailure(); ++groups)
    disturbed = std::max(disturbed, form_and_compute(random));
  EXPECT_LT(disturbed, quiet + 1.0 * (test::slowness > 1 ? 5 : 1));
  std::cout << strangers.count() << " connections, " << groups << " groups; the slowest took "
            << static_cast<int>(1e3 * disturbed) << " ms to form, " << static_cast<int>(1e3 * quiet)
            << " ms without strangers\n";
}

}  // namespace
}  // namespace ringattn

int main(int argc, char** argv) {
  setenv("RINGATTN_TEST_TRANSPORT", "zeromq", 1);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
