#include "transport/zeromq/frame.h"

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <utility>

namespace ringattn::zeromq {
namespace {

bool is_control_character(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

bool is_plain(std::string_view characters) {
  return std::none_of(characters.begin(), characters.end(), is_control_character);
}

class Writer {
 public:
  explicit Writer(FrameKind kind, std::size_t size = 0) {
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
  std::vector<std::byte> frame() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

bool can_say(const Hello& hello) {
  return hello.address.size() <= longest_address && hello.machine.size() <= longest_machine &&
         is_plain(hello.address) && is_plain(hello.machine);
}

// ---- Writing.

std::vector<std::byte> write_hello(const Hello& hello) { return Writer(FrameKind::hello).hello(hello).frame(); }

std::vector<std::byte> write_welcome(const Roster& roster) {
  Writer write(FrameKind::welcome);
  write.bytes(roster.session);
  for (const Hello& hello : roster.ranks) write.hello(hello);
  return write.frame();
}

std::vector<std::byte> write_beat(const Beat& beat) {
  return Writer(FrameKind::beat).number(beat.waits_for).number(beat.calls).number(beat.answer).frame();
}

std::vector<std::byte> write_question(const Question& question) {
  return Writer(FrameKind::beat).number(question.absent).number(question.number).frame();
}

std::vector<std::byte> write_record(const Record& record) {
  return Writer(FrameKind::record, record.bytes.size()).number(record.round).bytes(record.bytes).frame();
}

std::vector<std::byte> write_records(const Record& records) {
  return Writer(FrameKind::records, records.bytes.size()).number(records.round).bytes(records.bytes).frame();
}

std::vector<std::byte> write_broken(const Failure& failure) {
  Writer write(FrameKind::broken, sizeof failure.message);
  for (const int x : {static_cast<int>(failure.status), failure.rank, failure.cuda_error, failure.nccl_result})
    write.number(std::int32_t{x});
  return write.text(failure.message).frame();
}

std::vector<std::byte> write_leave() { return Writer(FrameKind::leave).frame(); }

std::vector<std::byte> write_left(const Left& left) {
  return Writer(FrameKind::left).number(left.rank).number(left.rounds).number(left.calls).frame();
}

std::vector<std::byte> write_timed_out(const TimedOut& timed_out) {
  return Writer(FrameKind::timed_out).number(timed_out.blocker).number(timed_out.timeout_ms).frame();
}

// ---- Reading.

// The next number, or 0.
template <class T>
T FrameReader::number() {
  std::make_unsigned_t<T> value = 0;
  const std::span<const std::byte> bytes = take(sizeof(T));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    value = static_cast<decltype(value)>(value | static_cast<decltype(value)>(bytes[i]) << 8 * i);
  return static_cast<T>(value);
}

std::span<const std::byte> FrameReader::take(std::size_t size) {
  if (size > rest_.size()) {
    is_good_ = false;
    rest_ = {};
  }
  if (!is_good_) return {};
  const std::span<const std::byte> bytes = rest_.first(size);
  rest_ = rest_.subspan(size);
  return bytes;
}

std::string FrameReader::text(std::size_t longest) {
  const std::size_t size = number<std::uint16_t>();
  if (size > longest) is_good_ = false;
  std::string characters;
  for (const std::byte byte : take(size)) characters += static_cast<char>(byte);
  return characters;
}

void FrameReader::read_after_wire(Hello& hello) {
  for (std::int32_t* const field :
       {&hello.library, &hello.world_size, &hello.rank, &hello.backend, &hello.encryption, &hello.cipher})
    *field = number<std::int32_t>();
  hello.address = text(longest_address);
  hello.machine = text(longest_machine);
  if (!is_plain(hello.address) || !is_plain(hello.machine)) is_good_ = false;
}

// What is in braces is read in its order.

FrameReader::FrameReader(std::span<const std::byte> frame)
    : rest_(frame), kind_(static_cast<FrameKind>(number<std::uint8_t>())) {}

Hello FrameReader::hello(std::uint32_t known) {
  Hello hello;
  hello.wire = number<std::uint32_t>();
  if (hello.wire == known) read_after_wire(hello);
  return hello;
}

Roster FrameReader::welcome(int world_size) {
  Roster roster;
  const auto session = take(roster.session.size());
  std::copy(session.begin(), session.end(), roster.session.begin());
  for (int r = 0; r < world_size && is_good_; ++r) {
    Hello& hello = roster.ranks.emplace_back();
    hello.wire = number<std::uint32_t>();
    read_after_wire(hello);
  }
  return roster;
}

Beat FrameReader::beat() { return {number<std::int32_t>(), number<std::int64_t>(), number<std::uint32_t>()}; }

Question FrameReader::question() { return {number<std::int32_t>(), number<std::uint32_t>()}; }

Record FrameReader::record() { return {number<std::int64_t>(), take(rest_.size())}; }

Failure FrameReader::broken() {
  const int status = number<std::int32_t>();
  if (status <= RA_STATUS_SUCCESS || status > RA_STATUS_INTERNAL_ERROR) is_good_ = false;
  Failure failure(static_cast<ra_status>(status), number<std::int32_t>(), {});
  failure.cuda_error = number<std::int32_t>();
  failure.nccl_result = number<std::int32_t>();
  std::string message = text(sizeof failure.message - 1);
  std::replace_if(message.begin(), message.end(), is_control_character, '?');
  message.copy(failure.message, message.size());
  return failure;
}

Left FrameReader::left() { return {number<std::int32_t>(), number<std::int64_t>(), number<std::int64_t>()}; }

TimedOut FrameReader::timed_out() { return {number<std::int32_t>(), number<std::int64_t>()}; }

}  // namespace ringattn::zeromq
