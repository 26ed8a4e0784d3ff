#include "transport/zeromq/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ringattn::zeromq {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

using Table = std::array<std::uint32_t, 256>;

constexpr std::uint32_t polynomial = 0x82f63b78;  // bits reversed

// tables[k][b]: a register that held b, after k + 1 zero bytes.
constexpr std::array<Table, 8> tables = [] {
  std::array<Table, 8> made{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc % 2 != 0 ? crc >> 1 ^ polynomial : crc >> 1;
    made[0][byte] = crc;
  }
  for (std::size_t k = 1; k < made.size(); ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      made[k][byte] = made[k - 1][byte] >> 8 ^ made[0][made[k - 1][byte] & 0xff];
  return made;
}();

std::uint64_t load(const std::byte* from) {
  std::uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// All of these take and return the register, which is the complement of the CRC.
std::uint32_t by_tables(std::uint32_t crc, const std::byte* from, std::size_t size) {
  for (; size >= 8; from += 8, size -= 8) {
    const std::uint64_t word = load(from) ^ crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= tables[7 - k][word >> 8 * k & 0xff];
  }
  for (; size > 0; ++from, --size) crc = crc >> 8 ^ tables[0][(crc ^ std::to_integer<std::uint32_t>(*from)) & 0xff];
  return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)
#define RINGATTN_CRC32C 1

constexpr std::size_t lane = 1024;  // bytes

// after_lane[k][b]: a register that held b << 8 * k, after `lane` zero bytes.
constexpr std::array<Table, 4> after_lane = [] {
  std::array<std::uint32_t, 32> bits{};
  for (std::size_t bit = 0; bit < 32; ++bit) {
    std::uint32_t crc = std::uint32_t{1} << bit;
    for (std::size_t n = 0; n < lane; ++n) crc = crc >> 8 ^ tables[0][crc & 0xff];
    bits[bit] = crc;
  }
  std::array<Table, 4> made{};
  for (std::size_t k = 0; k < 4; ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      for (std::size_t bit = 0; bit < 8; ++bit)
        if ((byte >> bit & 1) != 0) made[k][byte] ^= bits[8 * k + bit];
  return made;
}();

std::uint32_t skip_lane(std::uint32_t crc) {
  return after_lane[0][crc & 0xff] ^ after_lane[1][crc >> 8 & 0xff] ^ after_lane[2][crc >> 16 & 0xff] ^
         after_lane[3][crc >> 24];
}

#if defined(__x86_64__)
#define RINGATTN_WITH_CRC __attribute__((target("sse4.2")))
bool has_instruction() { return __builtin_cpu_supports("sse4.2") != 0; }
RINGATTN_WITH_CRC inline std::uint32_t add(std::uint32_t crc, std::uint64_t word) {
  return static_cast<std::uint32_t>(_mm_crc32_u64(crc, word));
}
RINGATTN_WITH_CRC inline std::uint32_t add(std::uint32_t crc, std::byte byte) {
  return _mm_crc32_u8(crc, std::to_integer<unsigned char>(byte));
}
#else
#define RINGATTN_WITH_CRC __attribute__((target("+crc")))
bool has_instruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
RINGATTN_WITH_CRC inline std::uint32_t add(std::uint32_t crc, std::uint64_t word) { return __crc32cd(crc, word); }
RINGATTN_WITH_CRC inline std::uint32_t add(std::uint32_t crc, std::byte byte) {
  return __crc32cb(crc, std::to_integer<std::uint8_t>(byte));
}
#endif

RINGATTN_WITH_CRC std::uint32_t by_instruction(std::uint32_t crc, const std::byte* from, std::size_t size) {
  for (; size >= 3 * lane; from += 3 * lane, size -= 3 * lane) {
    std::uint32_t second = 0, third = 0;
    for (std::size_t i = 0; i < lane; i += 8) {
      crc = add(crc, load(from + i));
      second = add(second, load(from + lane + i));
      third = add(third, load(from + 2 * lane + i));
    }
    crc = skip_lane(skip_lane(crc) ^ second) ^ third;
  }
  for (; size >= 8; from += 8, size -= 8) crc = add(crc, load(from));
  for (; size > 0; ++from, --size) crc = add(crc, *from);
  return crc;
}
#endif

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes) {
#ifdef RINGATTN_CRC32C
  static const bool has = has_instruction();
  if (has) return ~by_instruction(~crc, bytes.data(), bytes.size());
#endif
  return ~by_tables(~crc, bytes.data(), bytes.size());
}

std::uint32_t crc32c_by_tables(std::uint32_t crc, std::span<const std::byte> bytes) {
  return ~by_tables(~crc, bytes.data(), bytes.size());
}

}  // namespace ringattn::zeromq
