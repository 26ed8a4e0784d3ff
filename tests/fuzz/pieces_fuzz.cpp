// Pieces of data from anybody. Rank 1 of three takes them (Links): from rank 0 by TCP, from rank 2 by TCP or on this machine. The fuzzer is the
// others, who have the keys, and strangers, who have not; and it is the network, which changes pieces.
//
// What is taken is what its sender sealed for this place. What a stranger sends on a connection that no rank has used changes nothing. All
// else is PEER_LOST naming whose connection it is, or MISMATCH. What waits for its place is bounded, and so is what is under way.
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>

#include "core/memory.h"
#include "fuzz/input.h"
#include "fuzz/sockets.h"
#include "transport/zeromq/links.h"

namespace ringattn::zeromq {
namespace {

using fuzz::check;
using fuzz::Input;
using Bytes = std::vector<std::byte>;

constexpr int own = 1, world_size = 3;
constexpr std::size_t longest = 200;  // transfer
constexpr Secret secret{std::byte{1}};
constexpr Session session{std::byte{2}};

std::byte content(int from, std::uint64_t tag, std::uint64_t at) {
  return static_cast<std::byte>(static_cast<std::uint64_t>(from) * 101 + tag * 37 + at * 11 + at / 256);
}

// Changes a frame, or leaves it as it is.
void tamper(Input& input, Bytes& frame) {
  switch (input.below(8)) {
    case 0:
      for (int n = 1 + input.below(3); n > 0; --n) {
        const std::size_t at = input.number<std::uint8_t>();
        const std::byte by = input.number<std::byte>();
        if (at < frame.size()) frame[at] ^= by;
      }
      break;
    case 1:
      if (const std::size_t size = input.number<std::uint16_t>(); size < frame.size()) frame.resize(size);
      break;
    case 2:
      frame.resize(frame.size() + input.number<std::uint8_t>());
      break;
    case 3:
      if (!frame.empty()) frame.back() ^= input.number<std::byte>();
      break;
    case 4:  // as long as it says that it is
      if (frame.size() >= header_size) {
        const std::uint64_t length = frame.size() - std::min(frame.size(), overhead);
        std::memcpy(frame.data() + header_size - sizeof length, &length, sizeof length);
      }
      break;
    default:
      break;
  }
  frame.shrink_to_fit();
}

bool can(Cipher cipher) { return cipher == Cipher::xchacha20 || best_cipher() == cipher; }

// ---- A piece by itself.

void open_one(Input& input) {
  const LinkKey key{std::byte{3}};
  PieceHeader header;
  header.wire = input.number<std::uint8_t>();
  header.kind = static_cast<PieceKind>(input.below(3));
  header.protection = static_cast<Protection>(input.below(3));
  header.cipher = static_cast<Cipher>(input.below(2));
  if (!can(header.cipher)) header.cipher = Cipher::xchacha20;
  header.from = input.number<std::int32_t>();
  header.to = input.number<std::int32_t>();
  header.number = input.number<std::uint64_t>();
  header.operation = input.number<std::int64_t>();
  header.tag = input.number<std::uint64_t>();
  header.size = input.number<std::uint64_t>();
  header.offset = input.number<std::uint64_t>();
  const std::size_t extra = static_cast<std::size_t>(input.below(longest));
  const int changes = input.below(4);
  Input how = input;  // what the changes are to be
  Bytes payload = input.bytes(extra);
  payload.resize(extra);
  header.length = payload.size();
  Bytes genuine(overhead + payload.size());
  seal(header, payload, key, genuine);
  const bool is_sound = header.from >= 0 && header.to >= 0 &&
                        (header.kind != PieceKind::data ||
                         (header.offset <= header.size && header.length <= header.size - header.offset));
  const auto read = read_header(genuine);
  check(read.has_value() == is_sound && (!read || *read == header), "a header is not read as it was written");
  if (!is_sound) return;
  Bytes opened(payload.size());
  check(open(genuine, header, key, opened) && opened == payload, "a piece does not open");

  Bytes frame = genuine;
  for (int n = 0; n < changes; ++n) tamper(how, frame);
  if (frame == genuine) return;
  const auto other = read_header(frame);
  if (!other) return;
  check(other->length == frame.size() - overhead && other->from >= 0 && other->to >= 0,
        "a header disagrees with its frame");
  Bytes taken(other->length);
  if (!open(frame, *other, key, taken)) return;
  check(other->protection == Protection::checked, "a changed piece is taken");  // a sum can be made to fit
  Bytes again(frame.size());
  seal(*other, taken, key, again);
  check(again == frame, "a piece is taken whose sum is wrong");
}

// ---- Links.

// Sockets of the process, for all its worlds; nobody comes by the file system.
Inlets& inlets() {
  static const Context& context = make_immortal<Context>(16);
  static Inlets& all = make_immortal<Inlets>(context, "127.0.0.1", true);
  all.close_door();
  return all;
}

fuzz::FakeSocket& socket_at(const std::string& beginning) {
  for (fuzz::FakeSocket* const s : fuzz::open_sockets())
    if (s->endpoint.starts_with(beginning)) return *s;
  check(false, "no socket at ", beginning);
  std::abort();
}

class World {
 public:
  explicit World(Input& input) : input_(input) {
    Inlets& here = inlets();
    for (fuzz::FakeSocket* const s : fuzz::open_sockets()) s->incoming.clear();
    const int choice = input.below(8);
    encrypts_ = (choice & 1) != 0;
    cipher_ = (choice & 2) != 0 && can(Cipher::aes256gcm) ? Cipher::aes256gcm : Cipher::xchacha20;
    is_near_ = (choice & 4) != 0 && !here.machine().empty();
    Roster roster;
    roster.session = session;
    for (int r = 0; r < world_size; ++r) {
      Hello& hello = roster.ranks.emplace_back();
      hello.rank = r;
      hello.world_size = world_size;
      hello.cipher = static_cast<std::int32_t>(cipher_);
      hello.address = text("ipc://to", r, " tcp://to", r);
      if (r == own || (r == 2 && is_near_)) hello.machine = here.machine();
      peers_[static_cast<std::size_t>(r)].in = link_key(secret, session, r, own);
      peers_[static_cast<std::size_t>(r)].out = link_key(secret, session, own, r);
    }
    links_ = std::make_unique<Links>(*context_, here, secret, roster, own, encrypts_);
  }

  void run() {
    try {
      for (int n = 0; n < 100 && !input_.is_over(); ++n) {
        step();
        look();
      }
      check(links_->is_idle() == (receives_.empty() && sends_.empty()), "is idle, or not");
      if (links_->blocker() < 0)
        for (const Receive& r : receives_) check(r.is_over, "is over before all is here");
    } catch (const Error& e) {
      check(e.status == RA_STATUS_PEER_LOST || e.status == RA_STATUS_MISMATCH, e.message);
      check(e.status == RA_STATUS_MISMATCH || e.rank == 0 || e.rank == 2, "names ", e.rank, ": ", e.message);
      check(!must_be_ignored_, "a stranger is not ignored: ", e.message);
      check(lost_ < 0 || (e.status == RA_STATUS_PEER_LOST && e.rank == lost_), "rank ", lost_, " is lost: ", e.message);
    }
    links_->forget();
    links_->drop();
  }

 private:
  struct Peer {
    LinkKey in{}, out{};
    std::uint64_t number = 0;                           // of its next piece
    std::uint64_t tag = 0, size = 0, offset = 0;        // of what it is sending
    std::uint64_t number_out = 0, sent = 0, taken = 0;  // of the pieces to it
    std::vector<PieceHeader> early;                     // that wait for their place
    bool is_open = false;
  };
  struct Receive {
    int from;
    std::uint64_t tag;
    Bytes data;
    std::size_t received = 0;
    bool is_over = false;
  };
  struct Send {
    int to;
    std::uint64_t tag;
    Bytes data;
  };

  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  int any_peer() { return input_.below(2) == 0 ? 0 : 2; }
  bool is_near(int rank) const { return rank == 2 && is_near_; }
  Protection protection_of(int rank) const {
    return is_near(rank) ? Protection::checked : encrypts_ ? Protection::encrypted : Protection::authenticated;
  }
  Receive* find(int from, std::uint64_t tag) {
    const auto is_it = [&](const Receive& r) { return r.from == from && r.tag == tag && !r.is_over; };
    const auto found = std::ranges::find_if(receives_, is_it);
    return found == receives_.end() ? nullptr : &*found;
  }

  void step() {
    must_be_ignored_ = false;
    lost_ = -1;
    switch (input_.below(8)) {
      case 0:
        return post_receive();
      case 1:
        return post_send();
      case 2:
        links_->begin_operation(operation_ = input_.below(3));
        return;
      case 3:
        return bring_anything();
      case 4:
        check(links_->unopened() == (!peer(0).is_open ? 0 : !peer(2).is_open ? 2 : -1), "who is unopened");
        return;
      default:
        return bring_piece();
    }
  }

  void post_receive() {
    const int from = any_peer();
    const std::uint64_t tag = static_cast<std::uint64_t>(input_.below(4));
    if (find(from, tag) != nullptr || receives_.size() >= 8) return;
    Receive& receive =
        receives_.emplace_back(Receive{from, tag, Bytes(static_cast<std::size_t>(input_.below(longest)))});
    links_->receive(from, tag, receive.data);
    std::erase_if(peer(from).early, [&](const PieceHeader& h) {
      const bool is_its = h.tag == tag && !receive.is_over;
      if (is_its) place(receive, h);
      return is_its;
    });
  }

  // A piece that was taken.
  void place(Receive& receive, const PieceHeader& header) {
    check(header.operation == operation_ && header.size == receive.data.size(), "a piece of another transfer is taken");
    check(header.offset == receive.received, "a piece is taken out of its order");
    receive.received += header.length;
    check(receive.received <= receive.data.size(), "more is taken than there is room for");
    receive.is_over = receive.received == receive.data.size();
  }

  void post_send() {
    if (sends_.size() >= 12) return;
    const int to = any_peer();
    Send& send = sends_.emplace_back(Send{to, sends_.size(), Bytes(static_cast<std::size_t>(input_.below(40)))});
    for (std::size_t i = 0; i < send.data.size(); ++i) send.data[i] = content(own, send.tag, i);
    links_->send(to, send.tag, send.data);
    links_->pump();
  }

  // A piece as its sender would make it next, but for what is changed before it is sealed, or afterwards.
  void bring_piece() {
    const int from = any_peer();
    Peer& p = peer(from);
    PieceHeader header;
    header.wire = static_cast<std::uint8_t>(wire_version);
    header.kind = static_cast<PieceKind>(std::array{1, 1, 1, 2, 0}[static_cast<std::size_t>(input_.below(5))]);
    if (!p.is_open) header.kind = PieceKind::opening;
    header.protection = header.kind == PieceKind::opening ? Protection::authenticated : protection_of(from);
    header.cipher = cipher_;
    header.from = from;
    header.to = own;
    header.number = p.number;
    header.operation = operation_;
    if (header.kind == PieceKind::data) {
      if (p.offset == p.size) {
        p.tag = (p.tag + 1) % 4;
        p.size = static_cast<std::uint64_t>(input_.below(longest));
        if (const Receive* const r = find(from, p.tag); r != nullptr && input_.below(4) != 3) p.size = r->data.size();
        p.offset = 0;
      }
      header.tag = p.tag;
      header.size = p.size;
      header.offset = p.offset;
      header.length = std::min<std::uint64_t>(p.size - p.offset, 1U + input_.number<std::uint8_t>());
    } else if (header.kind == PieceKind::received) {
      header.size = p.sent;
    }
    bool is_as_agreed = true;
    if (input_.chance(4)) is_as_agreed = change(header);
    Bytes payload(header.length);
    for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = content(header.from, header.tag, header.offset + i);
    Bytes frame(overhead + payload.size());
    const bool has_key = !input_.chance(8);
    seal(header, payload, has_key ? p.in : LinkKey{}, frame);
    const Bytes sealed = frame;
    if (input_.chance(4)) tamper(input_, frame);
    const bool is_genuine = (has_key || header.protection == Protection::checked) && is_as_agreed && frame == sealed &&
                            header.from == from && read_header(frame).has_value();
    bring(std::move(frame), from, is_genuine ? std::optional(header) : std::nullopt);
  }

  // One field; whether it is one that a rank of this group may fill in as it likes.
  bool change(PieceHeader& header) {
    const std::uint64_t by = input_.number<std::uint8_t>();
    switch (input_.below(10)) {
      case 0:
        header.number += by;
        return true;
      case 1:
        header.operation += static_cast<std::int64_t>(by);
        return true;
      case 2:
        header.tag += by;
        return true;
      case 3:
        header.size += by;
        return true;
      case 4:
        header.offset += by;
        return true;
      case 5:
        header.size -= std::min(header.size, by);
        return true;
      case 6:
        header.protection = static_cast<Protection>(by % 3);
        break;
      case 7:
        header.cipher =
            header.cipher == Cipher::xchacha20 && can(Cipher::aes256gcm) ? Cipher::aes256gcm : Cipher::xchacha20;
        break;
      case 8:
        header.wire = static_cast<std::uint8_t>(by);
        break;
      default:
        (by % 2 == 0 ? header.to : header.from) = static_cast<std::int32_t>(by / 2 % 8) - 1;
    }
    const Protection due = header.kind == PieceKind::opening ? Protection::authenticated : protection_of(header.from);
    return header.protection == due && header.cipher == cipher_ && header.wire == wire_version && header.to == own;
  }

  void bring_anything() {
    const std::size_t size = static_cast<std::size_t>(input_.below(longest));
    Bytes frame = input_.bytes(size);
    if (input_.chance(2) && frame.size() >= 4) std::memcpy(frame.data(), "RAzp", 4);
    bring(std::move(frame), any_peer(), {});
  }

  // On one of the connections. `genuine`: the header that the owner of a key has sealed this with.
  void bring(Bytes frame, int from, const std::optional<PieceHeader>& genuine) {
    const bool is_tcp = input_.chance(8) ? is_near(from) : !is_near(from);
    const int descriptor = input_.chance(4) ? 10 + input_.below(4) : 10 + from;
    if (!is_tcp && inlets().machine().empty()) return;
    const bool is_single = !input_.chance(16);
    fuzz::FakeSocket& inlet = socket_at(is_tcp ? "tcp://127" : "ipc:///");
    const auto owner = owners_.find(descriptor);
    const int whose = is_tcp && owner != owners_.end() ? owner->second : -1;
    const std::optional<PieceHeader> read = read_header(frame);
    const bool has_connected = std::ranges::any_of(owners_, [&](const auto& o) { return o.second == from; });
    const bool is_its_way = !is_tcp || whose == from || (whose < 0 && !has_connected);  // a rank connects once
    const bool is_taken = is_single && genuine && is_tcp != is_near(from) && is_its_way;

    if (!is_taken) {
      const bool is_plausible = read && read->to == own && (read->from == 0 || read->from == 2);
      if (!is_tcp && is_plausible && is_summed(frame, *read))
        return;  // who is on this machine can make what is checked
      lost_ = !is_single ? -1 : is_tcp ? whose : is_plausible ? read->from : -1;
      must_be_ignored_ = lost_ < 0;
    } else {
      if (is_tcp) owners_[descriptor] = from;
      expect(from, *genuine);
    }
    const int blocker = links_->blocker();
    inlet.incoming.push_back({std::move(frame), descriptor, !is_single});
    if (!is_single) inlet.incoming.push_back({Bytes(3), descriptor, false});
    links_->pump();
    check(lost_ < 0, "rank ", lost_, " brings nonsense and is not lost");
    check(!must_be_ignored_ || blocker == links_->blocker(), "a stranger has moved something");
    if (is_taken) count(from, *genuine);
  }

  bool is_summed(const Bytes& frame, const PieceHeader& header) {
    Bytes payload(header.length);
    return header.protection == Protection::checked && open(frame, header, peer(header.from).in, payload);
  }

  // A piece that its sender has sealed: what must come of it, as far as that is clear.
  void expect(int from, const PieceHeader& header) {
    const Peer& p = peer(from);
    if (header.number != p.number) lost_ = from;
    if (header.kind == PieceKind::received && (header.size < p.taken || header.size > p.sent)) lost_ = from;
  }

  // It was taken.
  void count(int from, const PieceHeader& header) {
    Peer& p = peer(from);
    ++p.number;
    switch (header.kind) {
      case PieceKind::opening:
        p.is_open = true;
        break;
      case PieceKind::received:
        p.taken = header.size;
        break;
      default: {
        if (Receive* const receive = find(from, header.tag); receive != nullptr)
          place(*receive, header);
        else
          p.early.push_back(header);
        check(p.early.size() <= Links::window, "keeps more than a window of pieces");
        if (header.tag == p.tag && header.offset == p.offset) p.offset += header.length;
      }
    }
  }

  // Of what was taken nothing is wrong, and what is sent is what was to be sent.
  void look() {
    for (const Receive& r : receives_)
      for (std::size_t i = 0; i < r.received; ++i)
        check(r.data[i] == content(r.from, r.tag, i), "byte ", i, " of ", r.data.size(), " is wrong");
    for (const int to : {0, 2}) {
      Peer& p = peer(to);
      for (auto& sent = socket_at(text(is_near(to) ? "ipc" : "tcp", "://to", to)).sent; !sent.empty();
           sent.pop_front()) {
        const Bytes& frame = sent.front().bytes;
        const auto header = read_header(frame);
        check(header && header->from == own && header->to == to && header->number == p.number_out,
              "a wrong piece is sent");
        ++p.number_out;
        Bytes payload(header->length);
        check(open(frame, *header, p.out, payload), "what is sent does not open");
        check(
            header->protection == (header->kind == PieceKind::opening ? Protection::authenticated : protection_of(to)),
            "what is sent is not protected");
        if (header->kind != PieceKind::data) continue;
        ++p.sent;
        for (std::size_t i = 0; i < payload.size(); ++i)
          check(payload[i] == content(own, header->tag, header->offset + i), "byte ", i, " sent is wrong");
      }
      check(p.sent - p.taken <= Links::window, "more than a window is under way");
    }
  }

  Input& input_;
  bool encrypts_ = false, is_near_ = false;
  Cipher cipher_ = Cipher::xchacha20;
  std::int64_t operation_ = 0;
  std::array<Peer, world_size> peers_;
  std::vector<Receive> receives_;
  std::vector<Send> sends_;
  std::map<int, int> owners_;  // of connections by TCP
  // What must come of the piece that is brought.
  bool must_be_ignored_ = false;
  int lost_ = -1;
  std::unique_ptr<Context> context_ = std::make_unique<Context>(16);
  std::unique_ptr<Links> links_;
};

}  // namespace
}  // namespace ringattn::zeromq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ringattn::fuzz::Input input(data, size);
  if (input.below(4) == 3)
    ringattn::zeromq::open_one(input);
  else
    ringattn::zeromq::World(input).run();
  return 0;
}
