#include "transport/zeromq/membership.h"

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <utility>

namespace ringattn::zeromq {

// The first byte of a frame. What follows is little-endian, without padding; a text is its length (16 bits) and its bytes. HELLO up to
// its wire version, and BROKEN, are the same in all wire versions: else nobody could tell another version that it is one.
enum class Membership::Kind : std::uint8_t {
  hello =
      1,  // to the hub: wire (u32), library, world_size, rank, backend, encryption, cipher (i32), address, machine (text)
  welcome = 2,  // to a spoke: session, what follows the first byte of HELLO for each rank
  beat = 3,    // to the hub: waits_for (i32), calls (i64), answer (u32); to a spoke: first absent (i32), question (u32)
  record = 4,  // to the hub: round (i64), bytes to the frame's end
  records = 5,  // to a spoke: the same, of all ranks
  broken = 6,   // both ways: status, rank, cuda_error, nccl_result (i32), message (text)
  leave = 7,    // to the hub: nothing
  left =
      8,  // to a spoke: rank (i32), rounds (i64) that its record is, or will be, among, calls (i64) that it was done with
  timed_out = 9,  // to the hub: blocker (i32), timeout_ms (i64)
};

// Reads a frame front to back. Past its end everything is 0 or empty, and is_complete() false for good.
class Membership::Reader {
 public:
  explicit Reader(std::span<const std::byte> frame) : rest_(frame) {}

  template <class T>
  T number() {
    std::make_unsigned_t<T> value = 0;
    const std::span<const std::byte> bytes = take(sizeof(T));
    for (std::size_t i = 0; i < bytes.size(); ++i)
      value = static_cast<decltype(value)>(value | static_cast<decltype(value)>(bytes[i]) << 8 * i);
    return static_cast<T>(value);
  }
  std::span<const std::byte> take(std::size_t size) {
    if (size > rest_.size()) {
      is_good_ = false;
      rest_ = {};
    }
    if (!is_good_) return {};
    const std::span<const std::byte> bytes = rest_.first(size);
    rest_ = rest_.subspan(size);
    return bytes;
  }
  std::span<const std::byte> take_rest() { return take(rest_.size()); }
  std::string text(std::size_t longest) {
    const std::size_t size = number<std::uint16_t>();
    if (size > longest) is_good_ = false;
    std::string characters;
    for (const std::byte byte : take(size)) characters += static_cast<char>(byte);
    return characters;
  }
  void refuse() { is_good_ = false; }
  bool is_good() const { return is_good_; }
  bool is_complete() const { return is_good_ && rest_.empty(); }  // and nothing is left over

 private:
  std::span<const std::byte> rest_;
  bool is_good_ = true;
};

class Membership::Writer {
 public:
  explicit Writer(Kind kind, std::size_t size = 0) {
    bytes_.reserve(size + 64);
    number(static_cast<std::uint8_t>(kind));
  }
  template <class T>
  Writer& number(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bytes_.push_back(static_cast<std::byte>(static_cast<std::make_unsigned_t<T>>(value) >> 8 * i & 0xff));
    return *this;
  }
  Writer& bytes(std::span<const std::byte> some) {
    bytes_.insert(bytes_.end(), some.begin(), some.end());
    return *this;
  }
  Writer& text(std::string_view characters) {
    number(static_cast<std::uint16_t>(characters.size()));
    return bytes(std::as_bytes(std::span(characters)));
  }
  Writer& hello(const Hello& h) {
    number(h.wire)
        .number(h.library)
        .number(h.world_size)
        .number(h.rank)
        .number(h.backend)
        .number(h.encryption)
        .number(h.cipher);
    return text(h.address).text(h.machine);
  }
  Writer& failure(const Failure& f) {
    for (const int x : {static_cast<int>(f.status), f.rank, f.cuda_error, f.nccl_result}) number(std::int32_t{x});
    return text(f.message);
  }
  std::vector<std::byte> frame() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

namespace {

constexpr std::size_t longest_address = 256, longest_machine = 64;

// Whom to name where no hub is there to be asked whose fault it is.
int without_hub(int blocker) {
  return blocker == Membership::whoever ? 0 : blocker == Membership::transfers ? Membership::nobody : blocker;
}

bool is_control_character(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

bool is_plain(const std::string& characters) {
  return std::none_of(characters.begin(), characters.end(), is_control_character);
}

// What is after the wire version.
template <class Reader>
void read_hello(Reader& read, Hello& hello) {
  for (std::int32_t* const field :
       {&hello.library, &hello.world_size, &hello.rank, &hello.backend, &hello.encryption, &hello.cipher})
    *field = read.template number<std::int32_t>();
  hello.address = read.text(longest_address);
  hello.machine = read.text(longest_machine);
  if (!is_plain(hello.address) || !is_plain(hello.machine)) read.refuse();
}

// The part of a version that has to be the same: before 1.0 a minor version may change anything.
std::int32_t release_of(std::int32_t version) { return version / 100; }

std::string show_version(std::int32_t version) {
  return text(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

// What `other` contradicts `mine` in; empty if in nothing.
std::string difference(const Hello& other, int rank, const Hello& mine) {
  const auto differ = [&](const char* name, const auto& theirs, const auto& ours) {
    return text(name, " is ", theirs, " on rank ", rank, " but ", ours, " on rank ", mine.rank);
  };
  if (other.wire != mine.wire) return differ("wire version", other.wire, mine.wire);
  if (release_of(other.library) != release_of(mine.library))
    return differ("version", show_version(other.library), show_version(mine.library));
  if (other.world_size != mine.world_size) return differ("world_size", other.world_size, mine.world_size);
  if (other.backend != mine.backend) return differ("backend", other.backend, mine.backend);
  if (other.encryption != mine.encryption) return differ("encryption", other.encryption, mine.encryption);
  return {};
}

std::string twice(const Hello& one, const Hello& other) {
  return text("rank is ", one.rank, " twice, at ", one.address.substr(0, 120), " and at ", other.address.substr(0, 120),
              "; each rank comes once");
}

}  // namespace

Membership::Membership(Hello own, const Session& session) : own_(std::move(own)) {
  members_.resize(static_cast<std::size_t>(own_.world_size));
  me().is_here = true;
  if (!is_hub()) return;
  roster_.session = session;
  roster_.ranks.resize(members_.size());
  roster_.ranks[0] = own_;
}

// Without memory a rank breaks its group.
template <class F>
void Membership::guarded(F&& f) noexcept {
  try {
    f();
  } catch (...) {
    break_group({RA_STATUS_OUT_OF_MEMORY, own_.rank, "no memory for the group's control messages"}, true);
  }
}

// ---- What happens.

void Membership::begin() {
  if (is_over()) return;
  if (own_.address.size() > longest_address || own_.machine.size() > longest_machine || !is_plain(own_.address) ||
      !is_plain(own_.machine))
    return break_group(
        {RA_STATUS_INTERNAL_ERROR, own_.rank,
         text("the address of rank ", own_.rank, " has ", own_.address.size(), " characters, its machine ",
              own_.machine.size(), "; at most ", longest_address, " and ", longest_machine, ", all printable")},
        true);
  if (own_.world_size == 1)
    is_whole_ = true;
  else if (!is_hub())
    send(0, Writer(Kind::hello).hello(own_).frame());
}

void Membership::on_frame(int from, std::span<const std::byte> frame) noexcept {
  guarded([&] {
    if (from < 0 || from == own_.rank || (!is_hub() && from != 0)) return;
    if (is_hub()) {
      if (!take_as_hub(from, frame)) break_by_nonsense(from, frame);
    } else if (!is_over() && !member(0).has_left) {
      member(0).is_here = true;
      member(0).silent = 0;
      if (!take_as_spoke(frame)) break_by_nonsense(0, frame);
    }
  });
}

void Membership::on_disconnect(int from) noexcept {
  guarded([&] {
    if (is_over() || from < 0 || from >= own_.world_size || from == own_.rank || member(from).has_left) return;
    if (is_hub() ? !member(from).is_here : from != 0) return;
    break_group({RA_STATUS_PEER_LOST, from, text("the connection to rank ", from, " is gone")}, true);
  });
}

void Membership::on_beat() noexcept {
  guarded([&] {
    if (!is_told_) tell();
    for (int r = 0; r < own_.world_size && !is_over(); ++r)
      if (is_present(r) && ++member(r).silent > silent_beats)
        break_group({RA_STATUS_PEER_LOST, r, text("rank ", r, " has been silent for ", silent_beats * beat_ms, " ms")},
                    true);
    if (is_over()) return;
    if (overdue_.waiter != nobody && --overdue_.beats == 0) {
      if (is_hub()) return judge(true);
      return break_by_timeout(member(0).has_left ? without_hub(overdue_.blocker) : 0, own_.rank, overdue_.timeout_ms);
    }
    for (int r = 0; r < own_.world_size; ++r)
      if (is_present(r)) send_beat(r);
  });
}

void Membership::gather(std::span<const std::byte> record) noexcept {
  guarded([&] {
    if (is_over()) return;
    const std::int64_t round = me().rounds;
    const auto refuse = [&](const std::string& message) {
      break_group({RA_STATUS_INTERNAL_ERROR, own_.rank, message}, true);
    };
    if (!is_whole_ || round > rounds_ + 1)
      return refuse(
          text("round ", round, " of gather begins ",
               is_whole_ ? text("while round ", rounds_, " is going on") : text("before the group is whole")));
    if (record.size() > longest_record())
      return refuse(text("a record of gather has ", record.size(), " bytes; at most ", longest_record()));
    me().records[static_cast<std::size_t>(round % 2)].assign(record.begin(), record.end());
    ++me().rounds;
    if (is_hub())
      end_rounds(own_.rank);
    else if (is_present(0))
      send(0, Writer(Kind::record, record.size()).number(round).bytes(record).frame());
  });
}

void Membership::on_timeout(int blocker, std::int64_t timeout_ms) noexcept {
  guarded([&] {
    if (is_over() || overdue_.waiter == own_.rank) return;
    set_waits_for(!is_whole_ ? nobody : blocker == nobody ? whoever : blocker);
    const int waits_for = me().waits_for;
    if (!is_whole_ && (is_hub() || !is_present(0))) return break_by_timeout(first_absent(), own_.rank, timeout_ms);
    if (is_hub()) return inquire(own_.rank, waits_for, timeout_ms);
    if (!is_present(0)) return break_by_timeout(without_hub(waits_for), own_.rank, timeout_ms);
    overdue_ = {own_.rank, waits_for, timeout_ms, silent_beats};
    send(0, Writer(Kind::timed_out).number(std::int32_t{waits_for}).number(timeout_ms).frame());
  });
}

void Membership::set_waits_for(int blocker) noexcept {
  const bool is_another = blocker >= transfers && blocker < own_.world_size && blocker != own_.rank;
  me().waits_for = is_another ? blocker : nobody;
}

void Membership::fail(const Failure& failure) noexcept {
  if (failure.status != RA_STATUS_SUCCESS) break_group(failure, true);
}

void Membership::end_call() noexcept {
  ++me().calls;
  guarded([&] {
    if (!is_hub() && is_whole_ && !is_over()) send_beat(0);
  });
}

void Membership::leave() noexcept {
  guarded([&] {
    if (!is_over() && !is_whole_)
      break_group({RA_STATUS_PEER_LOST, own_.rank, text("rank ", own_.rank, " left before all ranks had joined")},
                  true);
    if (!is_over()) {
      if (is_hub())
        send_to_all(Writer(Kind::left).number(std::int32_t{0}).number(rounds_).number(me().calls).frame());
      else if (is_present(0))
        send(0, Writer(Kind::leave).frame());
    }
  });
  me().has_left = true;
}

std::vector<Membership::Frame> Membership::take_frames() { return std::exchange(frames_, {}); }

// ---- What is known.

int Membership::first_absent() const {
  if (is_whole_) return nobody;
  if (!is_hub()) return absent_;
  const auto absent = std::find_if(members_.begin(), members_.end(), [](const Member& m) { return !m.is_here; });
  return absent == members_.end() ? nobody : static_cast<int>(absent - members_.begin());
}

bool Membership::has_left(int rank) const { return rank >= 0 && rank < own_.world_size && member(rank).has_left; }

bool Membership::has_left_undone(int rank) const { return has_left(rank) && member(rank).calls <= me().calls; }

const std::vector<std::byte>* Membership::records(std::int64_t round) const {
  if (round < 0 || round >= rounds_ || round < rounds_ - 2) return nullptr;
  return &all_[static_cast<std::size_t>(round % 2)];
}

int Membership::left_before(std::int64_t round) const {
  if (round < rounds_) return nobody;
  for (int r = 0; r < own_.world_size; ++r)
    if (member(r).has_left && member(r).rounds <= round) return r;
  return nobody;
}

bool Membership::may_leave() const {
  if (!is_hub() || is_over()) return true;
  return is_whole_ && std::all_of(members_.begin(), members_.end(),
                                  [&](const Member& m) { return m.has_left || m.calls >= me().calls; });
}

bool Membership::is_present(int rank) const {
  return rank != own_.rank && (is_hub() || rank == 0) && member(rank).is_here && !member(rank).has_left;
}

std::size_t Membership::longest_record() const {
  return std::min(largest_record, (largest_frame - 16) / members_.size());
}

// ---- What is sent.

void Membership::send_to_all(const std::vector<std::byte>& frame) {
  for (int r = 0; r < own_.world_size; ++r)
    if (is_present(r)) send(r, frame);
}

void Membership::send_beat(int to) {
  Writer write(Kind::beat);
  if (is_hub())
    write.number(std::int32_t{first_absent()}).number(questions_);
  else
    write.number(std::int32_t{me().waits_for}).number(me().calls).number(me().answered);
  send(to, write.frame());
}

// The first failure counts. It is known before anything is allocated.
void Membership::break_group(const Failure& failure, bool is_to_be_told) noexcept {
  if (is_over()) return;
  broken_ = failure;
  seen_ = failure.seen_by(own_.rank);
  is_told_ = !is_to_be_told;
  if (is_told_) return;
  try {
    tell();
  } catch (...) {
    // The next beat tries again. If none comes, this rank's silence says enough.
  }
}

void Membership::tell() {
  const std::vector<std::byte> frame = Writer(Kind::broken, sizeof broken_.message).failure(broken_).frame();
  if (is_hub())
    send_to_all(frame);
  else if (!member(0).has_left)
    send(0, frame);  // also to a hub that has not been heard yet
  is_told_ = true;
}

void Membership::break_by_nonsense(int from, std::span<const std::byte> frame) {
  const std::string kind = frame.empty() ? "" : text("kind ", static_cast<int>(frame[0]), ", ");
  break_group({RA_STATUS_PEER_LOST, from,
               text("rank ", from, " sent a frame that means nothing here (", kind, frame.size(), " bytes)")},
              true);
}

void Membership::break_by_timeout(int culprit, int waiter, std::int64_t timeout_ms) {
  if (culprit == nobody)
    return break_group({RA_STATUS_TIMEOUT, nobody,
                        text("transfers of rank ", waiter, " did not end within timeout_ms = ", timeout_ms,
                             ", and every other rank waits for some, too")},
                       true);
  break_group({RA_STATUS_TIMEOUT, culprit,
               text("rank ", culprit, " did not come within timeout_ms = ", timeout_ms, " (rank ", waiter, " waited)")},
              true);
}

// ---- What arrives.

bool Membership::take_as_hub(int from, std::span<const std::byte> frame) {
  Reader read(frame);
  const Kind kind = static_cast<Kind>(read.number<std::uint8_t>());
  if (is_over() || from >= own_.world_size) {
    if (kind == Kind::hello) answer_stranger(from, read);
    return true;
  }
  Member& sender = member(from);
  if (sender.has_left) return true;
  const bool was_here = std::exchange(sender.is_here, true);  // it is to be told from now on, whatever this is
  sender.silent = 0;
  if (kind == Kind::broken) return take_broken(read);  // also from a rank that will not join
  if (kind == Kind::hello) return take_hello(from, read, was_here);
  if (!was_here) return false;
  switch (kind) {
    case Kind::beat:
      return take_beat(from, read);
    case Kind::record:
      return take_record(from, read);
    case Kind::timed_out:
      return take_timed_out(from, read);
    case Kind::leave:
      return take_leave(from, read);
    default:
      return false;
  }
}

bool Membership::take_as_spoke(std::span<const std::byte> frame) {
  Reader read(frame);
  switch (static_cast<Kind>(read.number<std::uint8_t>())) {
    case Kind::welcome:
      return take_welcome(read);
    case Kind::beat:
      return take_question(read);
    case Kind::records:
      return take_records(read);
    case Kind::broken:
      return take_broken(read);
    case Kind::left:
      return take_left(read);
    default:
      return false;
  }
}

bool Membership::take_hello(int from, Reader& read, bool came_before) {
  Hello hello;
  hello.wire = read.number<std::uint32_t>();
  if (!read.is_good()) return false;
  const bool is_known = hello.wire == own_.wire;  // else the rest may be anything
  if (is_known) {
    read_hello(read, hello);
    if (!read.is_complete() || hello.rank != from) return false;
  }
  const auto refuse = [&](int culprit, const std::string& message) {
    break_group({RA_STATUS_MISMATCH, culprit, message}, true);
    return true;
  };
  if (const std::string message = difference(hello, from, own_); !message.empty())
    return refuse(contradicting(from), message);
  Hello& place = roster_.ranks[static_cast<std::size_t>(from)];
  if (came_before) return refuse(from, twice(place, hello));
  place = std::move(hello);
  if (first_absent() != nobody) {
    send_beat(from);
    return true;
  }
  last_ = from;
  is_whole_ = true;
  Writer welcome(Kind::welcome);
  welcome.bytes(roster_.session);
  for (const Hello& h : roster_.ranks) welcome.hello(h);
  send_to_all(welcome.frame());
  return true;
}

// Somebody says hello who has no place here, or comes when all is over. A group that is forming breaks, since that rank takes it for its
// own; one that is whole is not disturbed.
void Membership::answer_stranger(int from, Reader& read) {
  Failure answer = broken_;
  if (answer.status == RA_STATUS_SUCCESS) {
    Hello hello;
    hello.wire = read.number<std::uint32_t>();
    if (hello.wire == own_.wire) read_hello(read, hello);
    if (me().has_left || !read.is_good()) return;
    const std::string message = difference(hello, from, own_);
    if (message.empty()) return;
    answer = {RA_STATUS_MISMATCH, contradicting(from), message};
    if (!is_whole_) break_group(answer, true);
  }
  send(from, Writer(Kind::broken, sizeof answer.message).failure(answer).frame());
}

// The culprit where a newcomer is not like those who came before: alone against two or more that agree, but not one of two.
int Membership::contradicting(int newcomer) const {
  int others = 0;
  for (int r = 0; r < own_.world_size; ++r) others += r != newcomer && member(r).is_here ? 1 : 0;
  return others >= 2 ? newcomer : nobody;
}

bool Membership::take_welcome(Reader& read) {
  if (is_whole_) return false;
  Roster roster;
  const auto session = read.take(roster.session.size());
  std::copy(session.begin(), session.end(), roster.session.begin());
  for (int r = 0; r < own_.world_size && read.is_good(); ++r) {
    Hello& hello = roster.ranks.emplace_back();
    hello.wire = read.number<std::uint32_t>();
    read_hello(read, hello);
    if (hello.rank != r || !difference(hello, r, own_).empty()) return false;
  }
  if (!read.is_complete()) return false;
  if (const Hello& hello = roster.ranks[static_cast<std::size_t>(own_.rank)]; hello != own_) {
    break_group({RA_STATUS_MISMATCH, own_.rank, twice(hello, own_)}, true);
    return true;
  }
  roster_ = std::move(roster);
  is_whole_ = true;
  return true;
}

bool Membership::take_beat(int from, Reader& read) {
  const int waits_for = read.number<std::int32_t>();
  const std::int64_t calls = read.number<std::int64_t>();
  const std::uint32_t answer = read.number<std::uint32_t>();
  Member& sender = member(from);
  if (!read.is_complete() || waits_for < transfers || waits_for >= own_.world_size || waits_for == from ||
      calls < sender.calls)
    return false;
  sender.waits_for = waits_for;
  sender.calls = calls;
  if (answer == questions_) sender.answered = answer;
  judge(false);
  return true;
}

bool Membership::take_question(Reader& read) {
  const int absent = read.number<std::int32_t>();
  const std::uint32_t question = read.number<std::uint32_t>();
  if (!read.is_complete() || absent >= own_.world_size || (is_whole_ ? absent != nobody : absent < 0)) return false;
  if (!is_whole_) absent_ = absent;
  if (question != me().answered) {
    me().answered = question;
    send_beat(0);
  }
  return true;
}

bool Membership::take_record(int from, Reader& read) {
  const std::int64_t round = read.number<std::int64_t>();
  const auto record = read.take_rest();
  Member& sender = member(from);
  if (!read.is_complete() || !is_whole_ || round != sender.rounds || round > rounds_ + 1 ||
      record.size() > longest_record())
    return false;
  sender.records[static_cast<std::size_t>(round % 2)].assign(record.begin(), record.end());
  ++sender.rounds;
  end_rounds(from);
  return true;
}

// Sends what is complete since `last` sent its record.
void Membership::end_rounds(int last) {
  while (std::all_of(members_.begin(), members_.end(), [&](const Member& m) { return m.rounds > rounds_; })) {
    const std::size_t slot = static_cast<std::size_t>(rounds_ % 2);
    const auto size_of = [&](int rank) { return member(rank).records[slot].size(); };
    int second = 1;
    while (second < own_.world_size && size_of(second) == size_of(0)) ++second;
    if (second < own_.world_size) {
      int unlike_first = 0, unlike_second = 0;
      for (int r = 0; r < own_.world_size; ++r) {
        unlike_first += size_of(r) != size_of(0) ? 1 : 0;
        unlike_second += size_of(r) != size_of(second) ? 1 : 0;
      }
      int alone = nobody;  // also where they are the only two
      if (unlike_first != unlike_second) alone = unlike_second == 1 ? 0 : unlike_first == 1 ? second : nobody;
      return break_group({RA_STATUS_MISMATCH, alone,
                          text("the record of gather has ", size_of(0), " bytes on rank 0 but ", size_of(second),
                               " on rank ", second)},
                         true);
    }
    std::vector<std::byte>& all = all_[slot];
    all.clear();
    for (const Member& m : members_) all.insert(all.end(), m.records[slot].begin(), m.records[slot].end());
    send_to_all(Writer(Kind::records, all.size()).number(rounds_).bytes(all).frame());
    ++rounds_;
    last_ = last;
  }
}

bool Membership::take_records(Reader& read) {
  const std::int64_t round = read.number<std::int64_t>();
  const auto all = read.take_rest();
  if (!read.is_complete() || !is_whole_ || round != rounds_ || round >= me().rounds) return false;
  const std::size_t slot = static_cast<std::size_t>(round % 2);
  if (all.size() != me().records[slot].size() * members_.size()) return false;
  all_[slot].assign(all.begin(), all.end());
  ++rounds_;
  return true;
}

bool Membership::take_broken(Reader& read) {
  const int status = read.number<std::int32_t>();
  Failure failure(static_cast<ra_status>(status), read.number<std::int32_t>(), {});
  failure.cuda_error = read.number<std::int32_t>();
  failure.nccl_result = read.number<std::int32_t>();
  std::string message = read.text(sizeof failure.message - 1);
  if (!read.is_complete() || status <= RA_STATUS_SUCCESS || status > RA_STATUS_INTERNAL_ERROR ||
      failure.rank < nobody || (is_hub() && failure.rank >= own_.world_size))  // a hub may have a larger group in mind
    return false;
  std::replace_if(message.begin(), message.end(), is_control_character, '?');
  message.copy(failure.message, message.size());
  break_group(failure, is_hub());
  return true;
}

bool Membership::take_timed_out(int from, Reader& read) {
  const int blocker = read.number<std::int32_t>();
  const std::int64_t timeout_ms = read.number<std::int64_t>();
  if (!read.is_complete() || blocker < transfers || blocker >= own_.world_size || blocker == from) return false;
  if (!is_whole_)
    break_by_timeout(first_absent(), from, timeout_ms);
  else if (blocker == nobody)  // the join ended too late for it
    break_by_timeout(last_ == from ? 0 : last_, from, timeout_ms);
  else
    inquire(from, blocker, timeout_ms);
  return true;
}

// Asks all whom they wait for.
void Membership::inquire(int waiter, int blocker, std::int64_t timeout_ms) {
  member(waiter).waits_for = blocker;
  if (overdue_.waiter != nobody) return;
  overdue_ = {waiter, blocker, timeout_ms, 2};
  ++questions_;
  for (int r = 0; r < own_.world_size; ++r)
    if (is_present(r)) send_beat(r);
  member(waiter).answered = questions_;
  judge(false);
}

// Names the end of the chain, when all have answered or it is to be `now`.
void Membership::judge(bool now) {
  if (overdue_.waiter == nobody) return;
  for (int r = 0; r < own_.world_size && !now; ++r)
    if (is_mute(r)) return;
  int culprit = blocker_of(overdue_.waiter);
  if (culprit == transfers) return break_by_timeout(nobody, overdue_.waiter, overdue_.timeout_ms);
  if (culprit == nobody) culprit = last_ == overdue_.waiter ? 0 : last_;  // came just now
  for (int hops = 0; hops < own_.world_size && !is_mute(culprit) && !member(culprit).has_left; ++hops) {
    const int next = blocker_of(culprit);
    if (next == transfers) return break_by_timeout(nobody, overdue_.waiter, overdue_.timeout_ms);
    if (next == nobody) break;
    culprit = next;
  }
  break_by_timeout(culprit, overdue_.waiter, overdue_.timeout_ms);
}

// As far as the hub knows. In a gather: the first whose record is missing. Of transfers: the first that does not wait and is not done
// with the call either, of those that are there before those that have left; or `transfers` itself where there is none.
int Membership::blocker_of(int rank) const {
  if (member(rank).waits_for == transfers) {
    for (const bool has_left : {false, true})
      for (int r = 0; r < own_.world_size; ++r)
        if (r != rank && member(r).has_left == has_left && member(r).calls <= member(rank).calls &&
            (has_left || is_mute(r) || member(r).waits_for == nobody))
          return r;
    return transfers;
  }
  if (member(rank).waits_for != whoever) return member(rank).waits_for;
  if (member(rank).rounds <= rounds_) return nobody;
  for (int r = 0; r < own_.world_size; ++r)
    if (member(r).rounds <= rounds_) return r;
  return nobody;
}

bool Membership::take_leave(int from, Reader& read) {
  if (!read.is_complete() || !is_whole_) return false;
  member(from).has_left = true;
  const Member& gone = member(from);
  send_to_all(Writer(Kind::left).number(std::int32_t{from}).number(gone.rounds).number(gone.calls).frame());
  judge(false);
  return true;
}

bool Membership::take_left(Reader& read) {
  const int rank = read.number<std::int32_t>();
  const std::int64_t rounds = read.number<std::int64_t>(), calls = read.number<std::int64_t>();
  if (!read.is_complete() || !is_whole_ || rank < 0 || rank >= own_.world_size || rank == own_.rank || has_left(rank) ||
      rounds < rounds_ || calls < 0)
    return false;
  member(rank).has_left = true;
  member(rank).rounds = rounds;
  member(rank).calls = calls;
  return true;
}

}  // namespace ringattn::zeromq
