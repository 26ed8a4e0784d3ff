// What a rank knows of its group: who has come, who is alive, why the group broke. A pure state machine: it is told what arrives and
// that time passes, and says what is to be sent. It knows no sockets, no clock and no threads (control.h has them), nor how frames are
// laid out (frame.h), so that thousands of groups can be simulated in a second, each repeatable by its seed.
//
// The group is a star: rank 0 is the hub, everybody else hears of the others through it.
//
//   joining   a spoke says HELLO; when the hub has all hellos it sends WELCOME with all of them: the group is whole
//   here      every beat each end of a connection sends BEAT, the spoke from its HELLO on; who is silent for silent_beats of the
//             listener's own beats is lost. Silence is counted in beats, not in time: a process that was itself stopped accuses
//             nobody when it goes on
//   gather    each spoke sends its RECORD; the hub sends all of them as RECORDS
//   broken    the first failure that the hub hears of goes to all as BROKEN. Whoever breaks the group himself knows it at once; who
//             loses the hub says so himself. Nothing follows
//   late      who has waited too long says TIMED_OUT; the hub asks all, by a number in its BEAT that they answer in theirs, whom they
//             wait for, and names the end of that chain, or who does not answer within two beats
//   leaving   a spoke says LEAVE, which the hub passes on as LEFT: no failure, but of whoever waits for that rank afterwards
//
// A frame comes from a rank whose key the transport below has checked; what is in it is checked here, since a member may run
// another version, or have been taken over: a frame that means nothing breaks the group with MISMATCH (versions) or PEER_LOST.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "transport/transport.h"
#include "transport/zeromq/frame.h"

namespace ringattn::zeromq {

class Membership {
 public:
  static constexpr std::int64_t beat_ms = 250;
  static constexpr int silent_beats = 4;
  static constexpr std::size_t largest_record = std::size_t{1} << 16;  // of gather
  static constexpr std::size_t largest_frame = std::size_t{1} << 26;   // records of 1,024 ranks
  // Whom a rank waits for, where that is not another rank: `whoever` has not sent its record of the gather, which only the hub knows;
  // whose `transfers` are missing that are not over here, which what carries them does not say: somebody who waits for nobody.
  static constexpr int nobody = -1, whoever = -2, transfers = -3;

  Membership(Hello own, const Session& session);  // `session` is read on rank 0 only

  struct Frame {
    int to;  // on rank 0 any rank that has sent something, be it one of the group or not; two connections of one rank both get it
    std::vector<std::byte> bytes;
  };

  // ---- What happens. None throws but std::bad_alloc.
  void begin();                                                        // says hello
  void on_frame(int from, std::span<const std::byte> frame) noexcept;  // on rank 0 from a spoke, elsewhere from 0
  void on_disconnect(int from) noexcept;  // the connection is gone, and with it whoever had it; after its last frame
  void on_beat() noexcept;                // beat_ms of this process's own time have passed
  // The next round's. At most one round ahead of the last that is complete here.
  void gather(std::span<const std::byte> record) noexcept;
  // This rank has waited too long for `blocker` (nobody: for whoever has not joined; whoever: in a gather), and gives up. TIMEOUT
  // names the rank that all this waiting is for: the end of the chain of those that wait for each other; none where all wait for
  // transfers. It is found within two beats of the hub, or within silent_beats of one's own where the hub does not answer.
  void on_timeout(int blocker, std::int64_t timeout_ms) noexcept;
  void set_waits_for(int blocker) noexcept;  // a rank, whoever, transfers, or nobody; sends nothing
  void fail(const Failure& failure) noexcept;
  void end_call() noexcept;  // this rank is done with a collective call: the hub is told
  void leave() noexcept;     // says so to all that are there; a group that is not whole breaks

  // ---- What is to be sent, in order, since it was last asked.
  std::vector<Frame> take_frames();

  // ---- What is known.
  bool is_whole() const { return is_whole_; }       // all have come (and may have broken or left since)
  const Roster& roster() const { return roster_; }  // once it is
  int first_absent() const;  // of a group that is not whole: a rank that is missing, as far as known
  const Failure& failure() const { return seen_; }  // as this rank is to report it; SUCCESS while there is none
  bool has_left(int rank) const;
  bool has_left_undone(int rank) const;  // and was never done with the call that this rank is in
  // The records of `round` (0, 1, ...) in the order of ranks, or null if they are not all here. Kept until those of the round after
  // the next are.
  const std::vector<std::byte>* records(std::int64_t round) const;
  // A rank that has left without its record of that round, which therefore never ends; -1 while none is known. (A rank that sent its
  // record may have left before the others have all of them.)
  int left_before(std::int64_t round) const;
  // Nobody needs this rank any more: every other one is done with as many calls, or has left; or the group is broken. What rank 0
  // waits for before it leaves, since with it goes all word of the others.
  bool may_leave() const;

 private:
  // What this rank knows of one, or of itself.
  struct Member {
    bool is_here = false;  // has been heard: by the hub a spoke's hello, by a spoke anything from the hub
    bool has_left = false;
    int silent = 0;  // own beats since it was heard
    int waits_for = nobody;
    std::uint32_t answered = 0;  // the last question of the hub
    std::int64_t calls = 0;      // done; on a spoke known of those that have left
    std::int64_t rounds = 0;     // that its record is here of; once it has left: that it ever will be of
    std::array<std::vector<std::byte>, 2> records;  // of the last two
  };
  // Who gave up, until the hub has found out whom to name.
  struct Overdue {
    int waiter = nobody;
    int blocker = nobody;
    std::int64_t timeout_ms = 0;
    int beats = 0;  // that are left
  };

  template <class F>
  void guarded(F&& f) noexcept;
  bool is_hub() const { return own_.rank == 0; }
  bool is_over() const { return broken_.status != RA_STATUS_SUCCESS || me().has_left; }
  Member& member(int rank) { return members_[static_cast<std::size_t>(rank)]; }
  const Member& member(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  Member& me() { return member(own_.rank); }
  const Member& me() const { return member(own_.rank); }
  bool is_present(int rank) const;  // another to be sent to
  std::size_t longest_record() const;

  void send(int to, std::vector<std::byte> frame) { frames_.push_back({to, std::move(frame)}); }
  void send_to_all(const std::vector<std::byte>& frame);
  void send_beat(int to);
  void break_group(const Failure& failure, bool is_to_be_told) noexcept;
  void tell();
  void break_by_nonsense(int from, std::span<const std::byte> frame);
  void break_by_timeout(int culprit, int waiter, std::int64_t timeout_ms);

  // False if the frame means nothing.
  bool take_as_hub(int from, std::span<const std::byte> frame);
  bool take_as_spoke(std::span<const std::byte> frame);
  bool take_hello(int from, FrameReader& read, bool came_before);
  void answer_stranger(int from, FrameReader& read);
  bool take_welcome(FrameReader& read);
  bool take_beat(int from, FrameReader& read);
  bool take_question(FrameReader& read);
  bool take_record(int from, FrameReader& read);
  bool take_records(FrameReader& read);
  bool take_broken(FrameReader& read);
  bool take_timed_out(int from, FrameReader& read);
  bool take_leave(int from, FrameReader& read);
  bool take_left(FrameReader& read);

  int contradicting(int newcomer) const;
  void end_rounds(int last);
  void inquire(int waiter, int blocker, std::int64_t timeout_ms);
  void judge(bool now);
  int blocker_of(int rank) const;
  bool is_mute(int rank) const { return is_present(rank) && member(rank).answered != questions_; }

  Hello own_;
  Roster roster_;
  std::vector<Member> members_;
  std::vector<Frame> frames_;
  Failure broken_, seen_;  // as it goes to others, and as this rank reports it
  bool is_told_ = true;    // false while it could not be sent for lack of memory
  bool is_whole_ = false;
  int absent_ = 0;                             // on a spoke: as the hub last said
  int last_ = 0;                               // on the hub: whose coming ended the join, or the last round of gather
  std::int64_t rounds_ = 0;                    // complete
  std::array<std::vector<std::byte>, 2> all_;  // records of the last two
  std::uint32_t questions_ = 0;                // asked by the hub
  Overdue overdue_;
};

}  // namespace ringattn::zeromq
