#include "transport/zeromq/membership.h"

#include <algorithm>
#include <utility>

namespace ringattn::zeromq {
namespace {

// Whom to name where no hub is there to be asked whose fault it is.
int without_hub(int blocker) {
  return blocker == Membership::whoever ? 0 : blocker == Membership::transfers ? Membership::nobody : blocker;
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
  if (!can_say(own_))
    return break_group(
        {RA_STATUS_INTERNAL_ERROR, own_.rank,
         text("the address of rank ", own_.rank, " has ", own_.address.size(), " characters, its machine ",
              own_.machine.size(), "; at most ", longest_address, " and ", longest_machine, ", all printable")},
        true);
  if (own_.world_size == 1)
    is_whole_ = true;
  else if (!is_hub())
    send(0, write_hello(own_));
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
      send(0, write_record({round, record}));
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
    send(0, write_timed_out({waits_for, timeout_ms}));
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
        send_to_all(write_left({own_.rank, rounds_, me().calls}));
      else if (is_present(0))
        send(0, write_leave());
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
  send(to, is_hub() ? write_question({first_absent(), questions_})
                    : write_beat({me().waits_for, me().calls, me().answered}));
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
  const std::vector<std::byte> frame = write_broken(broken_);
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
  FrameReader read(frame);
  const FrameKind kind = read.kind();
  if (is_over() || from >= own_.world_size) {
    if (kind == FrameKind::hello) answer_stranger(from, read);
    return true;
  }
  Member& sender = member(from);
  if (sender.has_left) return true;
  const bool was_here = std::exchange(sender.is_here, true);  // it is to be told from now on, whatever this is
  sender.silent = 0;
  if (kind == FrameKind::broken) return take_broken(read);  // also from a rank that will not join
  if (kind == FrameKind::hello) return take_hello(from, read, was_here);
  if (!was_here) return false;
  switch (kind) {
    case FrameKind::beat:
      return take_beat(from, read);
    case FrameKind::record:
      return take_record(from, read);
    case FrameKind::timed_out:
      return take_timed_out(from, read);
    case FrameKind::leave:
      return take_leave(from, read);
    default:
      return false;
  }
}

bool Membership::take_as_spoke(std::span<const std::byte> frame) {
  FrameReader read(frame);
  switch (read.kind()) {
    case FrameKind::welcome:
      return take_welcome(read);
    case FrameKind::beat:
      return take_question(read);
    case FrameKind::records:
      return take_records(read);
    case FrameKind::broken:
      return take_broken(read);
    case FrameKind::left:
      return take_left(read);
    default:
      return false;
  }
}

bool Membership::take_hello(int from, FrameReader& read, bool came_before) {
  Hello hello = read.hello(own_.wire);
  if (!read.is_good()) return false;
  if (hello.wire == own_.wire && (!read.is_complete() || hello.rank != from)) return false;
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
  send_to_all(write_welcome(roster_));
  return true;
}

// Somebody says hello who has no place here, or comes when all is over. A group that is forming breaks, since that rank takes it for its
// own; one that is whole is not disturbed.
void Membership::answer_stranger(int from, FrameReader& read) {
  Failure answer = broken_;
  if (answer.status == RA_STATUS_SUCCESS) {
    const Hello hello = read.hello(own_.wire);
    if (me().has_left || !read.is_good()) return;
    const std::string message = difference(hello, from, own_);
    if (message.empty()) return;
    answer = {RA_STATUS_MISMATCH, contradicting(from), message};
    if (!is_whole_) break_group(answer, true);
  }
  send(from, write_broken(answer));
}

// The culprit where a newcomer is not like those who came before: alone against two or more that agree, but not one of two.
int Membership::contradicting(int newcomer) const {
  int others = 0;
  for (int r = 0; r < own_.world_size; ++r) others += r != newcomer && member(r).is_here ? 1 : 0;
  return others >= 2 ? newcomer : nobody;
}

bool Membership::take_welcome(FrameReader& read) {
  if (is_whole_) return false;
  Roster roster = read.welcome(own_.world_size);
  if (!read.is_complete()) return false;
  for (int r = 0; r < own_.world_size; ++r) {
    const Hello& hello = roster.ranks[static_cast<std::size_t>(r)];
    if (hello.rank != r || !difference(hello, r, own_).empty()) return false;
  }
  if (const Hello& hello = roster.ranks[static_cast<std::size_t>(own_.rank)]; hello != own_) {
    break_group({RA_STATUS_MISMATCH, own_.rank, twice(hello, own_)}, true);
    return true;
  }
  roster_ = std::move(roster);
  is_whole_ = true;
  return true;
}

bool Membership::take_beat(int from, FrameReader& read) {
  const auto [waits_for, calls, answer] = read.beat();
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

bool Membership::take_question(FrameReader& read) {
  const auto [absent, question] = read.question();
  if (!read.is_complete() || absent >= own_.world_size || (is_whole_ ? absent != nobody : absent < 0)) return false;
  if (!is_whole_) absent_ = absent;
  if (question != me().answered) {
    me().answered = question;
    send_beat(0);
  }
  return true;
}

bool Membership::take_record(int from, FrameReader& read) {
  const auto [round, record] = read.record();
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
    send_to_all(write_records({rounds_, all}));
    ++rounds_;
    last_ = last;
  }
}

bool Membership::take_records(FrameReader& read) {
  const auto [round, all] = read.record();
  if (!read.is_complete() || !is_whole_ || round != rounds_ || round >= me().rounds) return false;
  const std::size_t slot = static_cast<std::size_t>(round % 2);
  if (all.size() != me().records[slot].size() * members_.size()) return false;
  all_[slot].assign(all.begin(), all.end());
  ++rounds_;
  return true;
}

bool Membership::take_broken(FrameReader& read) {
  const Failure failure = read.broken();
  if (!read.is_complete() || failure.rank < nobody ||
      (is_hub() && failure.rank >= own_.world_size))  // a hub may have a larger group in mind
    return false;
  break_group(failure, is_hub());
  return true;
}

bool Membership::take_timed_out(int from, FrameReader& read) {
  const auto [blocker, timeout_ms] = read.timed_out();
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

bool Membership::take_leave(int from, FrameReader& read) {
  if (!read.is_complete() || !is_whole_) return false;
  member(from).has_left = true;
  const Member& gone = member(from);
  send_to_all(write_left({from, gone.rounds, gone.calls}));
  judge(false);
  return true;
}

bool Membership::take_left(FrameReader& read) {
  const auto [rank, rounds, calls] = read.left();
  if (!read.is_complete() || !is_whole_ || rank < 0 || rank >= own_.world_size || rank == own_.rank || has_left(rank) ||
      rounds < rounds_ || calls < 0)
    return false;
  member(rank).has_left = true;
  member(rank).rounds = rounds;
  member(rank).calls = calls;
  return true;
}

}  // namespace ringattn::zeromq
