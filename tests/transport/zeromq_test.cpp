// What the ZeroMQ transport is built on: ids, keys and sealed pieces.
#include "transport/zeromq.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/random.h"
#include "transport/zeromq/crc32c.h"
#include "transport/zeromq/keys.h"
#include "transport/zeromq/libraries.h"
#include "transport/zeromq/seal.h"
#include "transport/zeromq/unique_id.h"

namespace ringattn::zeromq {
namespace {

using namespace std::string_literals;
using Random = std::mt19937_64;

void fill(std::span<std::byte> bytes, Random& random) {
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
}

std::size_t below(Random& random, std::size_t end) { return static_cast<std::size_t>(random() % end); }

// ---- Ids

UniqueId random_id(Random& random) {
  UniqueId id;
  std::array<std::byte, 16> address;
  fill(address, random);
  if (random() % 2 == 0) std::fill_n(address.begin() + static_cast<int>(random() % 8), random() % 9, std::byte{0});
  std::array<char, INET6_ADDRSTRLEN> host;
  id.host = inet_ntop(random() % 2 == 0 ? AF_INET : AF_INET6, address.data(), host.data(), host.size());
  id.port = static_cast<std::uint16_t>(1 + random() % 65535);
  fill(id.secret, random);
  return id;
}

// What `make` refuses with; empty if it does not.
std::string refusal(const std::function<void()>& make) {
  try {
    make();
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.status, RA_STATUS_INVALID_ARGUMENT) << error.message;
    return error.message;
  }
}

TEST(Id, RoundTrips) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(10'000); ++n) {
    const UniqueId id = random_id(random);
    const std::string text = id.text();
    ASSERT_TRUE(is_zeromq_id(text)) << text;
    ASSERT_LT(text.size(), sizeof(ra_unique_id::text));
    ASSERT_TRUE(std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; })) << text;
    const UniqueId read = parse_unique_id(text);
    ASSERT_EQ(read.host, id.host);
    ASSERT_EQ(read.port, id.port);
    ASSERT_EQ(read.secret, id.secret);
    ASSERT_EQ(read.text(), text);
  }
  const UniqueId v4{"127.0.0.1", 40001, {}}, v6{"::1", 1, {}};
  EXPECT_EQ(v4.endpoint(), "tcp://127.0.0.1:40001");
  EXPECT_EQ(v6.endpoint(), "tcp://[::1]:1");
  EXPECT_EQ(v4.text(), "ringattn-zeromq-1-127.0.0.1:40001-" + std::string(64, '0'));
  EXPECT_EQ(v6.text(), "ringattn-zeromq-1-[::1]:1-" + std::string(64, '0'));
}

// Nothing in a text is passed over: it is refused, without telling what the secret is, or it is the text of what was understood.
TEST(Id, ChangedOnesAreRefusedOrUnderstood) {
  Random random(test::seed());
  const std::string letters = "0123456789abcdefABCDEFxyz-:.[]% \n\0\xff"s;
  int refused = 0;
  const int all = test::sample(20'000);
  for (int n = 0; n < all; ++n) {
    const std::string text = random_id(random).text(), secret = text.substr(text.size() - 64);
    std::string changed = text;
    for (std::size_t change = 0; change < 1 + n % 3u && !changed.empty(); ++change) {
      const std::size_t at = below(random, changed.size());
      switch (random() % 5) {
        case 0:
          changed[at] = letters[below(random, letters.size())];
          break;
        case 1:
          changed.insert(at, 1, letters[below(random, letters.size())]);
          break;
        case 2:
          changed.erase(at, 1 + below(random, 20));
          break;
        case 3:
          changed.resize(at);
          break;
        default:
          std::swap(changed[at], changed[below(random, changed.size())]);
      }
    }
    UniqueId id;
    const std::string why = refusal([&] { id = parse_unique_id(changed); });
    if (why.empty()) {
      ASSERT_EQ(id.text(), changed);
      continue;
    }
    ++refused;
    ASSERT_NE(why.find("unique_id"), std::string::npos) << why;
    for (std::size_t i = 0; i + 8 <= secret.size(); ++i)
      ASSERT_EQ(why.find(secret.substr(i, 8)), std::string::npos) << why << "\nof " << changed;
  }
  EXPECT_GT(refused, all / 2);
  EXPECT_LT(refused, all);
}

TEST(Id, SaysWhatIsWrong) {
  const std::string secret(64, 'a'), good = "ringattn-zeromq-1-127.0.0.1:40001-";
  const std::pair<std::string, std::string> cases[] = {
      {"", "does not begin with ringattn-zeromq-"},
      {"ringattn-local-1-2", "does not begin with ringattn-zeromq-"},
      {" " + good + secret, "does not begin with ringattn-zeromq-"},
      {"ringattn-zeromq-2-127.0.0.1:40001-" + secret, "\"ringattn-zeromq-...\"; it is not of version 1"},
      {"ringattn-zeromq-1-", "not an address"},
      {"ringattn-zeromq-1-" + secret, "\"ringattn-zeromq-1-...\"; what follows is not an address"},
      {"ringattn-zeromq-1-localhost:40001-" + secret, "not an address"},
      {"ringattn-zeromq-1-127.1:40001-" + secret, "not an address"},
      {"ringattn-zeromq-1-127.0.0.01:40001-" + secret, "not an address"},
      {"ringattn-zeromq-1-::1:40001-" + secret, "not an address"},
      {"ringattn-zeromq-1-[127.0.0.1]:40001-" + secret, "not an IPv6 address"},
      {"ringattn-zeromq-1-[0::1]:40001-" + secret, "not an IPv6 address"},
      {"ringattn-zeromq-1-[::1", "a port must follow"},
      {"ringattn-zeromq-1-[::1]40001-" + secret, "a port must follow"},
      {"ringattn-zeromq-1-127.0.0.1", "a port must follow"},
      {"ringattn-zeromq-1-127.0.0.1:-" + secret, "the port must be 1 .. 65535"},
      {"ringattn-zeromq-1-127.0.0.1:0-" + secret, "the port must be 1 .. 65535"},
      {"ringattn-zeromq-1-127.0.0.1:080-" + secret, "the port must be 1 .. 65535"},
      {"ringattn-zeromq-1-127.0.0.1:65536-" + secret,
       "\"ringattn-zeromq-1-127.0.0.1:...\"; the port must be 1 .. 65535"},
      {"ringattn-zeromq-1-127.0.0.1:+1-" + secret, "the port must be 1 .. 65535"},
      {"ringattn-zeromq-1-127.0.0.1:40001", "the secret must follow"},
      {good, "the secret has 0 digits and must have 64"},
      {good + secret.substr(1), "the secret has 63 digits and must have 64"},
      {good + secret + "a", "the secret has 65 digits and must have 64"},
      {good + secret + "\n", "the secret has 65 digits and must have 64"},
      {good + secret.substr(1) + "A", "\"" + good + "...\"; digit 63 of the secret is none of 0123456789abcdef"},
      {good + "-" + secret.substr(1), "digit 0 of the secret"},
  };
  for (const auto& [text, part] : cases) {
    const std::string why = refusal([&, &given = text] { parse_unique_id(given); });
    EXPECT_NE(why.find("unique_id is \""), std::string::npos) << text << ": " << why;
    EXPECT_NE(why.find(part), std::string::npos) << text << ": " << why;
    EXPECT_EQ(why.find(std::string(8, 'a')), std::string::npos) << why;
  }
}

// It is none of a group of one, in which nobody would come.
TEST(Id, AnEmptyOneIsRefused) {
  for (const int world_size : {1, 2}) {
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.transport = RA_TRANSPORT_ZEROMQ;
    config.world_size = world_size;
    config.timeout_ms = 1000;
    config.unique_id = "";
    ra_error error;
    EXPECT_EQ(ra_create_context(&config, &error), nullptr);
    EXPECT_EQ(error.status, RA_STATUS_INVALID_ARGUMENT) << error.message;
    EXPECT_EQ(std::string(error.message).find("unique_id is \"\"; must be a text made by ra_create_unique_id"), 0U)
        << error.message;
  }
}

// A listener on a port of its own.
class Listener {
 public:
  Listener() {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address_;
    EXPECT_EQ(bind(socket_, reinterpret_cast<const sockaddr*>(&address_), size), 0);
    EXPECT_EQ(listen(socket_, 1), 0);
    EXPECT_EQ(getsockname(socket_, reinterpret_cast<sockaddr*>(&address_), &size), 0);
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener() { close(socket_); }
  std::uint16_t port() const { return ntohs(address_.sin_port); }

 private:
  int socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address_{};
};

bool can_listen(const char* address) {
  try {
    make_unique_id(address);
    return true;
  } catch (const Error&) {
    return false;
  }
}

TEST(Id, HasTheAddressThatWasAskedFor) {
  std::uint16_t free_port = 0;
  {
    const Listener listener;
    free_port = listener.port();
  }
  const std::string with_port = "127.0.0.1:" + std::to_string(free_port);
  struct Case {
    const char* asked;
    const char* host;
    std::uint16_t port;  // 0: any
  };
  std::vector<Case> cases = {{nullptr, "127.0.0.1", 0},       {"127.0.0.1", "127.0.0.1", 0},
                             {"127.0.0.1:0", "127.0.0.1", 0}, {with_port.c_str(), "127.0.0.1", free_port},
                             {"127.1", "127.0.0.1", 0},       {"127.0.0.1:00", "127.0.0.1", 0}};
  if (can_listen("::1"))
    cases.insert(cases.end(), {{"::1", "::1", 0}, {"[::1]", "::1", 0}, {"[::1]:0", "::1", 0}, {"[0:0::1]", "::1", 0}});
  for (const auto& [asked, host, port] : cases) {
    const UniqueId id = make_unique_id(asked);
    EXPECT_EQ(id.host, host);
    EXPECT_TRUE(port == 0 ? id.port != 0 : id.port == port) << id.endpoint();
    EXPECT_EQ(parse_unique_id(id.text()).text(), id.text());
    EXPECT_NE(id.secret, make_unique_id(asked).secret);
  }
  const std::string local = make_unique_id("localhost").host;
  EXPECT_TRUE(local == "127.0.0.1" || local == "::1") << local;
}

TEST(Id, SaysWhatIsWrongWithAnAddress) {
  const Listener listener;
  const std::string port = std::to_string(listener.port());
  const std::pair<std::string, std::string> cases[] = {
      {"", "must begin with a host"},
      {":40001", "must begin with a host"},
      {"127.0.0.1:", "the port must be 0 .. 65535"},
      {"127.0.0.1:65536", "the port must be 0 .. 65535"},
      {"127.0.0.1:99999999999999999999", "the port must be 0 .. 65535"},
      {"127.0.0.1:-1", "the port must be 0 .. 65535"},
      {"127.0.0.1: 1", "the port must be 0 .. 65535"},
      {"127.0.0.1:40001/", "nothing may follow it"},
      {"127.0.0.1:http", "the port must be 0 .. 65535"},
      {"127.0.0.1:1:2", "must be host, host:port, or an IPv6 address"},
      {"tcp://127.0.0.1:40001", "must be host, host:port, or an IPv6 address"},
      {"[::1", "the bracket must be closed"},
      {"[::1]40001", "after ] must be nothing, or a colon and a port"},
      {"[::1]:65536", "the port must be 0 .. 65535"},
      {"[]:1", "between brackets must be an IPv6 address"},
      {"[127.0.0.1]:1", "between brackets must be an IPv6 address"},
      {"[fe80::1%lo]", "between brackets must be an IPv6 address"},
      {"[fe80::1]", "must be one that all ranks know by the same digits"},
      {"a..b", "no address of that host is found: "},
      {"127.0.0.1 ", "no address of that host is found: "},
      {"*", "no address of that host is found: "},
      {"0", "that is 0.0.0.0, all addresses of this machine; must be one that the other ranks can connect to"},
      {"0.0.0.0", "that is 0.0.0.0, all addresses of this machine; must be one that the other ranks can connect to"},
      {"::", "that is ::, all addresses of this machine; must be one that the other ranks can connect to"},
      {"192.0.2.1", "192.0.2.1 is no address of this machine"},
      {"192.0.2.1:40001", "192.0.2.1 is no address of this machine"},
      {"[2001:db8::1]:40001", "2001:db8::1 is no address of this machine"},
      {"127.0.0.1:" + port, "port " + port + " of 127.0.0.1 is in use"},
  };
  for (const auto& [asked, part] : cases) {
    const std::string why = refusal([&, &given = asked] { make_unique_id(given.c_str()); });
    EXPECT_NE(why.find("bind_address is \"" + asked + "\"; "), std::string::npos) << asked << ": " << why;
    EXPECT_NE(why.find(part), std::string::npos) << asked << ": " << why;
  }
}

// ---- Pieces

struct Sealing {
  Protection protection;
  Cipher cipher;
};

// What can be had here.
std::vector<Sealing> sealings() {
  std::vector<Sealing> all;
  for (const Protection protection : {Protection::checked, Protection::authenticated, Protection::encrypted})
    for (const Cipher cipher : {Cipher::xchacha20, Cipher::aes256gcm})
      if (protection == Protection::checked || cipher == Cipher::xchacha20 || best_cipher() == cipher)
        all.push_back({protection, cipher});
  return all;
}

std::string name(const Sealing& s) {
  return text("protection ", static_cast<int>(s.protection), ", cipher ", static_cast<int>(s.cipher), ": ");
}

PieceHeader random_header(Random& random, const Sealing& sealing, std::size_t length) {
  const auto any = [&](std::uint64_t end) { return random() % end >> random() % 64; };
  PieceHeader h;
  h.wire = static_cast<std::uint8_t>(random());
  h.kind = static_cast<PieceKind>(random() % 3);
  h.protection = sealing.protection;
  h.cipher = sealing.cipher;
  h.from = static_cast<std::int32_t>(any(1u << 31));
  h.to = static_cast<std::int32_t>(any(1u << 31));
  h.number = any(~0ull);
  h.operation = static_cast<std::int64_t>(any(1ull << 63));
  h.tag = any(~0ull);
  h.length = length;
  h.offset = any(~0ull - length);
  h.size = h.offset + length + any(~0ull - h.offset - length);
  return h;
}

struct Piece {
  PieceHeader header;
  LinkKey key;
  std::vector<std::byte> payload, frame;

  Piece(Random& random, const Sealing& sealing, std::size_t length)
      : header(random_header(random, sealing, length)), payload(length), frame(overhead + length) {
    fill(key, random);
    fill(payload, random);
    fill(frame, random);
    seal(header, payload, key, frame);
  }
};

// Whether a receiver that reads the header takes the frame for one of its sender's.
bool is_taken(std::span<const std::byte> frame, const LinkKey& key) {
  const std::optional<PieceHeader> header = read_header(frame);
  if (!header) return false;
  std::vector<std::byte> payload(header->length);
  return open(frame, *header, key, payload);
}

TEST(Seal, RoundTrips) {
  Random random(test::seed());
  for (const Sealing& sealing : sealings()) {
    for (int n = 0; n < test::sample(1'000); ++n) {
      const std::size_t length = below(random, std::size_t{1} << random() % 17);
      Piece piece(random, sealing, length);
      const std::optional<PieceHeader> header = read_header(piece.frame);
      ASSERT_TRUE(header.has_value());
      ASSERT_EQ(*header, piece.header);
      std::vector<std::byte> opened(length + 1, std::byte{0xa5});
      ASSERT_TRUE(open(piece.frame, *header, piece.key, std::span(opened).first(length))) << name(sealing) << length;
      ASSERT_EQ(opened.back(), std::byte{0xa5});
      opened.pop_back();
      ASSERT_EQ(opened, piece.payload) << name(sealing) << length;
      const bool is_clear = std::equal(opened.begin(), opened.end(), piece.frame.begin() + header_size);
      ASSERT_TRUE(length < 16 || is_clear == (sealing.protection != Protection::encrypted)) << name(sealing) << length;
    }
  }
}

TEST(Seal, RefusesEverySingleBitFlip) {
  Random random(test::seed());
  for (const Sealing& sealing : sealings())
    for (const std::size_t length : {0u, 1u, 100u}) {
      Piece piece(random, sealing, length);
      std::vector<std::byte> opened(length);
      ASSERT_TRUE(is_taken(piece.frame, piece.key));
      for (std::size_t bit = 0; bit < 8 * piece.frame.size(); ++bit) {
        const std::byte flip = std::byte{1} << static_cast<int>(bit % 8);
        piece.frame[bit / 8] ^= flip;
        EXPECT_FALSE(is_taken(piece.frame, piece.key)) << name(sealing) << "bit " << bit;
        EXPECT_FALSE(open(piece.frame, piece.header, piece.key, opened)) << name(sealing) << "bit " << bit;
        piece.frame[bit / 8] ^= flip;
      }
      ASSERT_TRUE(is_taken(piece.frame, piece.key));
    }
}

TEST(Seal, RefusesOtherKeys) {
  Random random(test::seed());
  for (const Sealing& sealing : sealings()) {
    if (sealing.protection == Protection::checked) continue;
    Piece piece(random, sealing, 50);
    for (std::size_t bit = 0; bit < 8 * sizeof(LinkKey); ++bit) {
      LinkKey key = piece.key;
      key[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
      EXPECT_FALSE(is_taken(piece.frame, key)) << name(sealing) << "bit " << bit;
    }
  }
}

// A whole piece, taken from one place and put in another.
TEST(Seal, RefusesWhatWasMeantForAnotherPlace) {
  Random random(test::seed());
  const std::vector<std::function<void(PieceHeader&)>> changes = {
      [](PieceHeader& h) { ++h.wire; },
      [](PieceHeader& h) { h.kind = h.kind == PieceKind::data ? PieceKind::received : PieceKind::data; },
      [](PieceHeader& h) { h.cipher = h.cipher == Cipher::xchacha20 ? Cipher::aes256gcm : Cipher::xchacha20; },
      [](PieceHeader& h) { h.protection = static_cast<Protection>((static_cast<int>(h.protection) + 1) % 3); },
      [](PieceHeader& h) { h.from ^= 1; },
      [](PieceHeader& h) { h.to ^= 1; },
      [](PieceHeader& h) { std::swap(h.from, h.to); },
      [](PieceHeader& h) { ++h.number; },
      [](PieceHeader& h) { --h.number; },
      [](PieceHeader& h) { h.number += std::uint64_t{1} << 32; },
      [](PieceHeader& h) { h.operation ^= 1; },
      [](PieceHeader& h) { h.tag ^= std::uint64_t{1} << 63; },
      [](PieceHeader& h) { ++h.size; },
      [](PieceHeader& h) { --h.offset; },
      [](PieceHeader& h) { --h.length; },
  };
  for (const Sealing& sealing : sealings())
    for (std::size_t n = 0; n < changes.size(); ++n) {
      Piece piece(random, sealing, 100);
      piece.header.from = 3;
      piece.header.to = 5;
      piece.header.offset = 100;
      piece.header.size = 1000;
      seal(piece.header, piece.payload, piece.key, piece.frame);
      ASSERT_TRUE(is_taken(piece.frame, piece.key));
      PieceHeader other = piece.header;
      changes[n](other);
      std::vector<std::byte> opened(other.length);
      EXPECT_FALSE(open(piece.frame, other, piece.key, opened)) << name(sealing) << "change " << n;
      if (other.length != 100) continue;

      // Its header put before the same rest, which nobody who has no key can do better.
      std::vector<std::byte> forged(piece.frame.size());
      PieceHeader unsealed = other;
      unsealed.protection = Protection::checked;
      unsealed.cipher = Cipher::xchacha20;
      seal(unsealed, piece.payload, piece.key, forged);
      forged[6] = static_cast<std::byte>(other.protection);
      forged[7] = static_cast<std::byte>(other.cipher);
      ASSERT_EQ(read_header(forged), other);
      std::copy(piece.frame.begin() + header_size, piece.frame.end(), forged.begin() + header_size);
      EXPECT_FALSE(is_taken(forged, piece.key)) << name(sealing) << "change " << n;
    }
}

TEST(Seal, RefusesWhatIsCutOrLengthened) {
  Random random(test::seed());
  for (const Sealing& sealing : sealings()) {
    Piece piece(random, sealing, 100);
    for (std::size_t size = 0; size < 300; ++size) {
      if (size == piece.frame.size()) continue;
      std::vector<std::byte> other = piece.frame;
      other.resize(size, static_cast<std::byte>(random()));
      EXPECT_FALSE(read_header(other).has_value()) << size;
      if (size < overhead) continue;
      const std::uint64_t length = size - overhead;  // as if it had been so
      std::memcpy(other.data() + header_size - sizeof length, &length, sizeof length);
      EXPECT_FALSE(is_taken(other, piece.key)) << name(sealing) << size;
    }
    std::vector<std::byte> small(99), large(10'000);
    EXPECT_FALSE(open(piece.frame, piece.header, piece.key, small));
    EXPECT_FALSE(open(piece.frame, piece.header, piece.key, large));
  }
}

// Whatever bytes come: a header that is read is consistent, and is written again as it was.
TEST(Seal, ReadsNoHeaderThatDisagreesWithItsFrame) {
  Random random(test::seed());
  int read = 0;
  for (int n = 0; n < test::sample(200'000); ++n) {
    Piece piece(random, {static_cast<Protection>(0), static_cast<Cipher>(random() % 2)}, below(random, 40));
    std::vector<std::byte>& frame = piece.frame;
    for (std::size_t change = 0; change < static_cast<std::size_t>(n % 3); ++change)
      frame[below(random, header_size)] = static_cast<std::byte>(random() >> random() % 64);
    if (n % 5 == 0) frame.resize(below(random, 200));
    const std::optional<PieceHeader> header = read_header(frame);
    if (!header) continue;
    ++read;
    ASSERT_EQ(header->length, frame.size() - overhead);
    ASSERT_LE(header->kind, PieceKind::received);
    ASSERT_LE(header->protection, Protection::encrypted);
    ASSERT_LE(header->cipher, Cipher::aes256gcm);
    ASSERT_GE(header->from, 0);
    ASSERT_GE(header->to, 0);
    if (header->kind == PieceKind::data) {
      ASSERT_LE(header->length, header->size);
      ASSERT_LE(header->offset, header->size - header->length);
    }
    if (header->protection != Protection::checked) continue;
    std::vector<std::byte> again(frame.size());
    seal(*header, std::span(frame).subspan(header_size, header->length), piece.key, again);
    ASSERT_TRUE(std::equal(again.begin(), again.begin() + header_size, frame.begin()));
  }
  EXPECT_GT(read, test::sample(200'000) / 4);
}

// The same bytes look different each time that they are sent: no two pieces share a nonce.
TEST(Seal, NeverEncryptsTwiceAlike) {
  Random random(test::seed());
  for (const Sealing& sealing : sealings()) {
    if (sealing.protection != Protection::encrypted) continue;
    Piece piece(random, sealing, 64);
    std::set<std::vector<std::byte>> seen;
    for (int n = 0; n < 122; ++n) {  // 0 .. 63, and every bit above
      piece.header.number = n < 64 ? static_cast<std::uint64_t>(n) : std::uint64_t{1} << (n - 58);
      seal(piece.header, piece.payload, piece.key, piece.frame);
      seen.insert({piece.frame.begin() + header_size, piece.frame.end() - tag_size});
    }
    EXPECT_EQ(seen.size(), 122u) << name(sealing);
  }
}

// ---- CRC32C

std::uint32_t bit_by_bit(std::uint32_t crc, std::span<const std::byte> bytes) {
  crc = ~crc;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1) * 0x82f63b78u;
  }
  return ~crc;
}

// RFC 3720, B.4, and the check value of catalogues of CRCs.
TEST(Crc, KnowsWhatOthersSay) {
  std::array<std::byte, 32> zeros{}, ones, up, down;
  ones.fill(std::byte{0xff});
  for (std::size_t i = 0; i < 32; ++i) {
    up[i] = static_cast<std::byte>(i);
    down[i] = static_cast<std::byte>(31 - i);
  }
  const std::string digits = "123456789";
  for (const auto crc : {crc32c, crc32c_by_tables, bit_by_bit}) {
    EXPECT_EQ(crc(0, std::as_bytes(std::span(digits))), 0xe3069283);
    EXPECT_EQ(crc(0, zeros), 0x8a9136aa);
    EXPECT_EQ(crc(0, ones), 0x62a8ab43);
    EXPECT_EQ(crc(0, up), 0x46dd794e);
    EXPECT_EQ(crc(0, down), 0x113fdb5c);
    EXPECT_EQ(crc(0, {}), 0u);
  }
}

TEST(Crc, IsItsDefinition) {
  Random random(test::seed());
  std::vector<std::byte> all(20'000);
  fill(all, random);
  for (int n = 0; n < test::sample(2'000); ++n) {
    const std::size_t begin = below(random, 70), size = below(random, std::size_t{1} << random() % 15);
    const std::span<const std::byte> bytes = std::span(all).subspan(begin, size);
    const auto before = static_cast<std::uint32_t>(random());
    const std::uint32_t expected = bit_by_bit(before, bytes);
    ASSERT_EQ(crc32c(before, bytes), expected) << size;
    ASSERT_EQ(crc32c_by_tables(before, bytes), expected) << size;
    const std::size_t cut = below(random, size + 1);
    ASSERT_EQ(crc32c(crc32c(before, bytes.first(cut)), bytes.subspan(cut)), expected) << size << ", cut at " << cut;
  }
}

// ---- Keys

TEST(Keys, AreDifferentForEveryRankSessionAndDirection) {
  Random random(test::seed());
  std::set<std::array<std::byte, 32>> seen;
  std::size_t made = 0;
  const auto add = [&](const std::array<std::byte, 32>& key) {
    seen.insert(key);
    ++made;
  };
  for (int n = 0; n < 4; ++n) {
    Secret secret;
    fill(secret, random);
    add(secret);
    for (const int rank : {0, 1, 2, 255, 256, 4095}) {
      const CurveKeys keys = curve_keys(secret, rank);
      add(keys.public_key);
      add(keys.secret_key);
      const CurveKeys again = curve_keys(secret, rank);
      EXPECT_EQ(again.public_key, keys.public_key);
      EXPECT_EQ(again.secret_key, keys.secret_key);
    }
    for (int session_number = 0; session_number < 3; ++session_number) {
      std::array<std::byte, 16> session;
      fill(session, random);
      for (int from = 0; from < 6; ++from)
        for (int to = 0; to < 6; ++to) {
          const LinkKey key = link_key(secret, session, from, to);
          add(key);
          EXPECT_EQ(link_key(secret, session, from, to), key);
        }
    }
  }
  EXPECT_EQ(seen.size(), made);
}

// Whether a message of a client comes through to a server of CURVE; the client knows the server's public key.
bool comes_through(const CurveKeys& server_keys, const std::array<std::byte, 32>& known, const CurveKeys& client_keys,
                   int timeout_ms) {
  const Zeromq& zmq = zeromq_library();
  void* const context = zmq.zmq_ctx_new();
  void* const server = zmq.zmq_socket(context, ZMQ_DEALER);
  void* const client = zmq.zmq_socket(context, ZMQ_DEALER);
  const int yes = 1, none = 0;
  const auto set = [&](void* socket, int option, const void* value, std::size_t size) {
    EXPECT_EQ(zmq.zmq_setsockopt(socket, option, value, size), 0) << zmq.zmq_strerror(zmq.zmq_errno());
  };
  set(server, ZMQ_LINGER, &none, sizeof none);
  set(client, ZMQ_LINGER, &none, sizeof none);
  set(server, ZMQ_CURVE_SERVER, &yes, sizeof yes);
  set(server, ZMQ_CURVE_SECRETKEY, server_keys.secret_key.data(), 32);
  set(client, ZMQ_CURVE_SERVERKEY, known.data(), 32);
  set(client, ZMQ_CURVE_PUBLICKEY, client_keys.public_key.data(), 32);
  set(client, ZMQ_CURVE_SECRETKEY, client_keys.secret_key.data(), 32);
  std::array<char, 64> endpoint{};
  std::size_t size = endpoint.size();
  EXPECT_EQ(zmq.zmq_bind(server, "tcp://127.0.0.1:*"), 0);
  EXPECT_EQ(zmq.zmq_getsockopt(server, ZMQ_LAST_ENDPOINT, endpoint.data(), &size), 0);
  EXPECT_EQ(zmq.zmq_connect(client, endpoint.data()), 0);
  zmq_msg_t message;
  zmq.zmq_msg_init_size(&message, 5);
  std::memcpy(zmq.zmq_msg_data(&message), "hello", 5);
  EXPECT_EQ(zmq.zmq_msg_send(&message, client, 0), 5);
  zmq_pollitem_t item{server, 0, ZMQ_POLLIN, 0};
  const bool came = zmq.zmq_poll(&item, 1, timeout_ms) == 1;
  zmq.zmq_close(client);
  zmq.zmq_close(server);
  zmq.zmq_ctx_term(context);
  return came;
}

TEST(Keys, AreWhatCurveUses) {
  Random random(test::seed());
  Secret secret, other;
  fill(secret, random);
  fill(other, random);
  const CurveKeys server = curve_keys(secret, 0), client = curve_keys(secret, 1);
  EXPECT_TRUE(comes_through(server, server.public_key, client, 10'000));
  EXPECT_FALSE(comes_through(server, client.public_key, client, 300));
  EXPECT_FALSE(comes_through(server, curve_keys(other, 0).public_key, curve_keys(other, 1), 300));
  EXPECT_FALSE(comes_through(server, server.public_key, {client.public_key, server.secret_key}, 300));
}

}  // namespace
}  // namespace ringattn::zeromq
