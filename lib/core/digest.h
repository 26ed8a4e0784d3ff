// FNV-1a over whole numbers: tells different lists apart without sending them.
#pragma once

#include <bit>
#include <cstdint>

namespace ringattn {

class Digest {
 public:
  void add(std::int64_t x) {
    for (int byte = 0; byte < 8; ++byte)
      state_ = (state_ ^ (static_cast<std::uint64_t>(x) >> (8 * byte) & 0xff)) * 0x100000001b3U;
  }
  std::int64_t value() const { return std::bit_cast<std::int64_t>(state_); }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325U;
};

}  // namespace ringattn
