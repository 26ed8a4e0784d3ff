// What the bytes of a fuzzer mean to a target: numbers and decisions, read front to back. Past their end everything is 0, so every string
// of bytes is a test, and a longer one begins as the shorter one does.
//
//   extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)    what a target defines
//
// It has no memory of earlier calls. What must hold is check()ed; what does not hold ends the process, and libFuzzer keeps the bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <span>
#include <vector>

#include "core/error.h"

namespace ringattn::fuzz {

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::cerr << "FAILED: " << text(parts...) << std::endl;
  std::abort();
}

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(std::as_bytes(std::span(data, size))) {}

  bool is_over() const { return rest_.empty(); }

  template <class T>
  T number() {
    T value{};
    const std::span<const std::byte> some = take(sizeof value);
    if (!some.empty()) std::memcpy(&value, some.data(), some.size());
    return value;
  }
  // 0 .. end - 1, end <= 2^16; from a byte where that is enough.
  int below(int end) { return end <= 256 ? number<std::uint8_t>() % end : number<std::uint16_t>() % end; }
  bool chance(int one_in) { return below(256) % one_in == one_in - 1; }  // not where the bytes have ended
  std::vector<std::byte> bytes(std::size_t most) {
    const std::span<const std::byte> some = take(most);
    return {some.begin(), some.end()};
  }
  std::vector<std::byte> rest() { return bytes(rest_.size()); }

 private:
  std::span<const std::byte> take(std::size_t most) {
    const std::span<const std::byte> some = rest_.first(std::min(most, rest_.size()));
    rest_ = rest_.subspan(some.size());
    return some;
  }

  std::span<const std::byte> rest_;
};

}  // namespace ringattn::fuzz
