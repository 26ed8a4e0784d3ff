// CRC32C (Castagnoli, RFC 3720 appendix B.4), by the processor's instruction where it has one.
//
// The instruction takes eight bytes, but its result comes three cycles later. So three lanes of a block are summed side by side and then
// put together: a register that has gone over `lane` zero bytes is a linear function of what it was, which four tables hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ringattn::zeromq {

// Begin with 0; crc32c(crc32c(0, a), b) is that of a and b, one behind the other.
std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes);

// The same by tables, on any processor.
std::uint32_t crc32c_by_tables(std::uint32_t crc, std::span<const std::byte> bytes);

}  // namespace ringattn::zeromq
