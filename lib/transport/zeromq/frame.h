// Frames of the control plane: what ranks that are processes say to each other, byte by byte. When they say it is in membership.h.
//
// The first byte is a frame's kind. What follows is little-endian, without padding; a text is its length (16 bits) and its bytes. HELLO up
// to its wire version, and BROKEN, are the same in all wire versions: else nobody could tell another version that it is one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "transport/transport.h"

namespace ringattn::zeromq {

constexpr std::uint32_t wire_version = 1;  // of frames and pieces; ranks of one group have the same

enum class FrameKind : std::uint8_t {
  hello = 1,      // to the hub: Hello
  welcome = 2,    // to a spoke: Roster
  beat = 3,       // to the hub: Beat; to a spoke: Question
  record = 4,     // to the hub: Record
  records = 5,    // to a spoke: the same, of all ranks
  broken = 6,     // both ways: Failure: status, rank, cuda_error, nccl_result (i32), message (text)
  leave = 7,      // to the hub: nothing
  left = 8,       // to a spoke: Left
  timed_out = 9,  // to the hub: TimedOut
};

// Fields below are written in their order.

// What a rank says of itself. Ranks must agree in the first three, and each comes once.
struct Hello {
  std::uint32_t wire = wire_version;
  std::int32_t library = 0;  // ra_get_version()
  std::int32_t world_size = 1;
  std::int32_t rank = 0;
  std::int32_t backend = 0;     // ra_backend: all the same
  std::int32_t encryption = 0;  // ra_encryption: all the same
  std::int32_t cipher = 0;      // the best Cipher (seal.h) that it can do
  std::string address;          // where others send it what they send ("ipc://...", "tcp://...")
  std::string machine;          // equal on two ranks if one can open the other's ipc address
  friend bool operator==(const Hello&, const Hello&) = default;
};

constexpr std::size_t longest_address = 256, longest_machine = 64;  // characters

// Whether others will read it: address and machine are not too long, and printable.
bool can_say(const Hello& hello);

using Session = std::array<std::byte, 16>;  // drawn by the hub: keys of one run of a group are no use in another

// What WELCOME brings: every rank's Hello, as many as the group has.
struct Roster {
  Session session{};
  std::vector<Hello> ranks;
};

struct Beat {
  std::int32_t waits_for;  // a rank, or what Membership has for others
  std::int64_t calls;      // that the spoke is done with
  std::uint32_t answer;    // the last question that it has heard
};

struct Question {
  std::int32_t absent;  // the first rank that is missing; Membership::nobody once the group is whole
  std::uint32_t number;
};

struct Record {
  std::int64_t round;                // of gather
  std::span<const std::byte> bytes;  // to the frame's end
};

struct Left {
  std::int32_t rank;
  std::int64_t rounds;  // that its record is, or will be, among
  std::int64_t calls;   // that it was done with
};

struct TimedOut {
  std::int32_t blocker;  // as Beat::waits_for
  std::int64_t timeout_ms;
};

std::vector<std::byte> write_hello(const Hello& hello);
std::vector<std::byte> write_welcome(const Roster& roster);
std::vector<std::byte> write_beat(const Beat& beat);
std::vector<std::byte> write_question(const Question& question);
std::vector<std::byte> write_record(const Record& record);
std::vector<std::byte> write_records(const Record& records);
std::vector<std::byte> write_broken(const Failure& failure);
std::vector<std::byte> write_leave();
std::vector<std::byte> write_left(const Left& left);
std::vector<std::byte> write_timed_out(const TimedOut& timed_out);

// Reads a frame front to back, which it does not own: its kind, and then what that kind has. Past its end, and after what cannot be,
// everything is 0 or empty, and is_good() false for good. Ranks, rounds and numbers are as they stand there, whatever they are.
class FrameReader {
 public:
  explicit FrameReader(std::span<const std::byte> frame);

  FrameKind kind() const { return kind_; }  // may be none
  Hello hello(std::uint32_t known);  // only its wire version if that is not the `known` one: the rest may be anything
  Roster welcome(int world_size);    // all of it, whatever the wire versions
  Beat beat();
  Question question();
  Record record();   // also of RECORDS
  Failure broken();  // of a status of the enum, but SUCCESS; the message printable
  Left left();
  TimedOut timed_out();

  bool is_good() const { return is_good_; }
  bool is_complete() const { return is_good_ && rest_.empty(); }  // and nothing is left over

 private:
  template <class T>
  T number();
  std::span<const std::byte> take(std::size_t size);
  std::string text(std::size_t longest);
  void read_after_wire(Hello& hello);

  std::span<const std::byte> rest_;
  bool is_good_ = true;
  FrameKind kind_;
};

}  // namespace ringattn::zeromq
