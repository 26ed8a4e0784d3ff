#include "transport/zeromq/links.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

namespace ringattn::zeromq {
namespace {

constexpr int flush_ms = 1000;  // for the last words when sockets are closed
constexpr int backlog = 1024;
constexpr int pieces_at_once = 64;

Socket make_inlet(const Context& context) {
  Socket socket(context, ZMQ_PULL);
  socket.set(ZMQ_LINGER, 0);
  socket.set(ZMQ_BACKLOG, backlog);
  socket.set(ZMQ_RCVHWM,
             static_cast<int>(4 * Links::window));  // the senders' windows leave it half empty; strangers' it bounds
  socket.set(ZMQ_MAXMSGSIZE, static_cast<std::int64_t>(Links::piece_size + overhead));
  return socket;
}

Socket make_outlet(const Context& context, const std::string& address) {
  Socket socket(context, ZMQ_PUSH);
  socket.set(ZMQ_LINGER, flush_ms);
  socket.set(ZMQ_SNDHWM, 0);          // the window is the limit
  socket.set(ZMQ_RECONNECT_IVL, -1);  // a link that is gone does not come back with pieces missing
  socket.set(ZMQ_IPV6, address.find('[') != std::string::npos ? 1 : 0);
  socket.connect(address);
  return socket;
}

// An address of Hello: "tcp://...", or "ipc://... tcp://..." where the file system leads there too.
struct Address {
  std::string machine, tcp;
};
Address split(const std::string& address) {
  const std::size_t space = address.find(' ');
  if (space == std::string::npos) return {"", address};
  return {address.substr(0, space), address.substr(space + 1)};
}

// Which socket a descriptor is now: no two have the same since the system came up. 0 where it is none.
std::uint64_t cookie_of(int descriptor) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return getsockopt(descriptor, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

Cipher common_cipher(const Roster& roster) {
  const bool all = std::ranges::all_of(
      roster.ranks, [](const Hello& h) { return h.cipher == static_cast<std::int32_t>(Cipher::aes256gcm); });
  return all ? Cipher::aes256gcm : Cipher::xchacha20;
}

}  // namespace

Inlets::Inlets(const Context& context, const std::string& tcp_host, bool is_machine_open) : tcp_(make_inlet(context)) {
  const bool is_v6 = tcp_host.find(':') != std::string::npos;
  tcp_.set(ZMQ_IPV6, is_v6 ? 1 : 0);
  tcp_.bind(text("tcp://", is_v6 ? "[" : "", tcp_host, is_v6 ? "]" : "", ":*"));
  address_ = tcp_.endpoint();
  if (!is_machine_open) return;
  machine_ = PrivateDirectory::machine();
  if (machine_.empty()) return;
  directory_ = std::make_unique<PrivateDirectory>();
  ipc_ = std::make_unique<Socket>(make_inlet(context));
  ipc_->bind(text("ipc://", directory_->path(), "/", PrivateDirectory::socket_name));
  address_ = text(ipc_->endpoint(), " ", address_);
}

void Inlets::close_door() { directory_.reset(); }

Links::Links(const Context& context, Inlets& inlets, const Secret& secret, const Roster& roster, int rank,
             bool encrypts)
    : inlets_(inlets), rank_(rank), cipher_(common_cipher(roster)), links_(roster.ranks.size()) {
  sends_.reserve(8);
  receives_.reserve(8);
  const std::string& machine = roster.ranks[static_cast<std::size_t>(rank)].machine;
  for (int r = 0; r < static_cast<int>(links_.size()); ++r) {
    if (r == rank) continue;
    const Hello& hello = roster.ranks[static_cast<std::size_t>(r)];
    const Address address = split(hello.address);
    const bool is_near = !machine.empty() && hello.machine == machine && !address.machine.empty();
    auto made = std::make_unique<Link>(make_outlet(context, is_near ? address.machine : address.tcp),
                                       is_near    ? Protection::checked
                                       : encrypts ? Protection::encrypted
                                                  : Protection::authenticated);
    made->out = link_key(secret, roster.session, rank, r);
    made->in = link_key(secret, roster.session, r, rank);
    links_[static_cast<std::size_t>(r)] = std::move(made);
  }
}

int Links::unopened() {
  pump();
  for (int r = 0; r < static_cast<int>(links_.size()); ++r)
    if (r != rank_ && (link(r).owes_opening || !link(r).is_open)) return r;
  return -1;
}

void Links::send(int peer, std::uint64_t tag, std::span<const std::byte> data) { sends_.push_back({peer, tag, data}); }

void Links::receive(int peer, std::uint64_t tag, std::span<std::byte> data) {
  receives_.push_back({peer, tag, data});
  std::vector<Early>& early = link(peer).early;
  for (std::size_t n = 0; n < early.size() && !receives_.back().is_over;) {
    if (early[n].header.tag != tag) {
      ++n;
      continue;
    }
    place(peer, early[n].header, early[n].payload);
    early.erase(early.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

int Links::blocker() const {
  for (const Receive& r : receives_)
    if (!r.is_over) return r.peer;
  for (const Send& s : sends_)
    if (!s.is_sent || links_[static_cast<std::size_t>(s.peer)]->taken < s.last) return s.peer;
  return -1;
}

void Links::forget() {
  sends_.clear();
  receives_.clear();
}

void Links::drop() noexcept {
  for (const auto& l : links_)
    if (l != nullptr) l->socket.drop();
}

std::vector<zmq_pollitem_t> Links::items() const {
  std::vector<zmq_pollitem_t> items{inlets_.tcp_.item()};
  if (inlets_.ipc_ != nullptr) items.push_back(inlets_.ipc_->item());
  return items;
}

void Links::pump() {
  lacks_room_ = false;
  for (int r = 0; r < static_cast<int>(links_.size()); ++r)
    if (r != rank_ && link(r).owes_opening) put(r, PieceKind::opening, nullptr);
  for (int n = 0; n < pieces_at_once; ++n) {
    const bool by_tcp = take_from(inlets_.tcp_, true);
    const bool by_machine = inlets_.ipc_ != nullptr && take_from(*inlets_.ipc_, false);
    bool has_sent = false;
    for (Send& transfer : sends_) {
      Link& to = link(transfer.peer);
      if (transfer.is_sent || to.sent - to.taken >= window) continue;
      has_sent |= put(transfer.peer, PieceKind::data, &transfer);
    }
    for (int r = 0; r < static_cast<int>(links_.size()); ++r)
      if (r != rank_ && link(r).owes_word) put(r, PieceKind::received, nullptr);
    if (!by_tcp && !by_machine && !has_sent) return;
  }
}

// Sends one piece: the next of a transfer, or a word without data.
bool Links::put(int to, PieceKind kind, Send* transfer) {
  Link& l = link(to);
  PieceHeader header;
  header.wire = static_cast<std::uint8_t>(wire_version);
  header.kind = kind;
  // The first word is authenticated on whatever way, so that every link has shown that its ends have the same secret.
  header.protection = kind == PieceKind::opening ? Protection::authenticated : l.protection;
  header.cipher = cipher_;
  header.from = rank_;
  header.to = to;
  header.number = l.number_out;
  header.operation = operation_;
  std::span<const std::byte> payload;
  if (transfer != nullptr) {
    payload = transfer->data.subspan(transfer->sent, std::min(piece_size, transfer->data.size() - transfer->sent));
    header.tag = transfer->tag;
    header.size = transfer->data.size();
    header.offset = transfer->sent;
    header.length = payload.size();
  } else if (kind == PieceKind::received) {
    header.size = l.arrived;
  }
  Message frame(overhead + payload.size());
  seal(header, payload, l.out, frame.data());
  if (!l.socket.send(frame)) {
    lacks_room_ = true;
    return false;
  }
  ++l.number_out;
  if (transfer != nullptr) {
    ++l.sent;
    transfer->sent += payload.size();
    transfer->is_sent = transfer->sent == transfer->data.size();
    transfer->last = l.sent;
  } else {
    (kind == PieceKind::opening ? l.owes_opening : l.owes_word) = false;
  }
  return true;
}

bool Links::take_from(Socket& socket, bool is_tcp) {
  Message frame;
  if (!socket.receive(frame)) {
    if (is_tcp) connections_.note_drained();
    return false;
  }
  bool is_single = true;
  while (frame.has_more()) {  // nobody of the group sends such
    is_single = false;
    if (!socket.receive(frame)) return true;
  }
  if (is_single) take(frame, is_tcp);
  return true;
}

void Links::take(Message& frame, bool is_tcp) {
  const auto lost = [&](int from, const auto&... why) {
    fail_at(RA_STATUS_PEER_LOST, from, "the link from rank ", from, " to rank ", rank_, why...);
  };
  const int descriptor = frame.descriptor();
  // By the file system only ranks come.
  const Bringer bringer = is_tcp ? connections_.bringer(descriptor, cookie_of(descriptor)) : Bringer{-1, true};
  const auto junk = [&](int from, const char* why) {
    if (bringer.answers && from >= 0) lost(from, why);
  };

  const std::optional<PieceHeader> header = read_header(frame.data());
  const bool is_plausible = header && header->to == rank_ && header->from >= 0 &&
                            header->from < static_cast<int>(links_.size()) && header->from != rank_;
  if (!is_plausible || (bringer.rank >= 0 && bringer.rank != header->from))
    return junk(bringer.rank, " has brought what is no piece");
  const int from = header->from;
  Link& l = link(from);
  if (is_tcp && !connections_.may_be_from(from, bringer)) return;
  if (!bringer.is_known && header->number != l.number_in) return;
  const bool is_opening = header->kind == PieceKind::opening;
  const Protection due = is_opening ? Protection::authenticated : l.protection;
  const bool is_way = is_tcp == (l.protection != Protection::checked);
  if (!is_way || header->protection != due || header->cipher != cipher_)
    return junk(from, " has brought a piece that is not protected as agreed");
  if (header->wire != wire_version) return junk(from, " has brought a piece of another version");

  // Straight to its place if it has one. Nothing of the header is believed before the piece is open.
  const bool is_next = header->kind == PieceKind::data && header->number == l.number_in;
  Receive* transfer = is_next ? find(from, header->tag) : nullptr;
  if (transfer != nullptr && (header->operation != operation_ || transfer->data.size() != header->size ||
                              transfer->received != header->offset || header->length > header->size - header->offset))
    transfer = nullptr;
  std::vector<std::byte> aside(transfer != nullptr ? 0 : header->length);
  const std::span<std::byte> room =
      transfer != nullptr ? transfer->data.subspan(header->offset, header->length) : std::span(aside);
  if (!open(frame.data(), *header, l.in, room)) return junk(from, " has brought a piece that was changed on its way");
  if (is_tcp) connections_.note(from, bringer);
  if (header->number != l.number_in)
    lost(from, " has brought piece ", header->number, " where ", l.number_in, " was next");
  ++l.number_in;
  switch (header->kind) {
    case PieceKind::opening:
      l.is_open = true;
      return;
    case PieceKind::received:
      if (header->size < l.taken || header->size > l.sent) lost(from, " acknowledges what was not sent");
      trace_taken(from, std::exchange(l.taken, header->size));
      return;
    case PieceKind::data:
      break;
  }
  if (transfer != nullptr) return count_in(l, *transfer, header->length);
  if (find(from, header->tag) != nullptr) return place(from, *header, aside);
  if (l.early.size() >= window) lost(from, " brings more than it may");
  l.early.push_back({*header, std::move(aside)});
}

// The transfer that a piece with that tag belongs to, or null where it is still to be posted.
Links::Receive* Links::find(int from, std::uint64_t tag) {
  const auto is_it = [&](const Receive& r) { return r.peer == from && r.tag == tag && !r.is_over; };
  const auto found = std::ranges::find_if(receives_, is_it);
  return found == receives_.end() ? nullptr : &*found;
}

// A piece that is open, in a transfer that find() knows.
void Links::place(int from, const PieceHeader& header, std::span<const std::byte> payload) {
  Receive& transfer = *find(from, header.tag);
  if (header.operation != operation_)
    fail(RA_STATUS_MISMATCH, "rank ", from, " is in its collective call ", header.operation, ", rank ", rank_, " in ",
         operation_);
  if (transfer.data.size() != header.size)
    fail(RA_STATUS_MISMATCH, "rank ", from, " sends ", header.size, " bytes where rank ", rank_, " expects ",
         transfer.data.size());
  if (header.offset != transfer.received || header.length > header.size - header.offset)
    fail_at(RA_STATUS_PEER_LOST, from, "the link from rank ", from, " to rank ", rank_, " has brought ", header.length,
            " bytes from byte ", header.offset, " of a transfer, where ", transfer.received, " was next");
  if (!payload.empty()) std::memcpy(transfer.data.data() + header.offset, payload.data(), payload.size());
  count_in(link(from), transfer, header.length);
}

// Transfers to that rank are over whose last piece it has taken since.
void Links::trace_taken(int rank, std::uint64_t before) {
  if (trace_ == nullptr) return;
  for (const Send& s : sends_)
    if (s.peer == rank && s.is_sent && s.last > before && s.last <= link(rank).taken)
      trace_->transfer(true, rank, s.data.size(), s.begin);
}

void Links::count_in(Link& l, Receive& transfer, std::size_t length) {
  transfer.received += length;
  transfer.is_over = transfer.received == transfer.data.size();
  if (transfer.is_over && trace_ != nullptr)
    trace_->transfer(false, transfer.peer, transfer.data.size(), transfer.begin);
  ++l.arrived;
  l.owes_word = true;
}

}  // namespace ringattn::zeromq
