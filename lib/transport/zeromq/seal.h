// Pieces of data as they travel: a header in clear and a payload, so that nothing but what its sender meant for this place is ever taken.
//
// `encrypted`: AES-256-GCM or XChaCha20-Poly1305; the header is authenticated with the payload. `authenticated`: the same with nothing
// encrypted (all is additional data). `checked`: CRC32C of header and payload, where nobody else can get at the bytes
// (sockets in a directory of this user's own). Keys are per session, sender and receiver; the nonce is the piece's number, which no
// key sees twice.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "transport/zeromq/crc32c.h"
#include "transport/zeromq/unique_id.h"

namespace ringattn::zeromq {

enum class Protection : std::uint8_t { checked, authenticated, encrypted };

enum class Cipher : std::uint8_t { xchacha20, aes256gcm };

// The faster one of what libsodium can do on this processor, AES-256-GCM where it has AES. XChaCha20 all can do, so a group
// takes it if it is the best of any of its ranks. Throws NOT_SUPPORTED.
Cipher best_cipher();

enum class PieceKind : std::uint8_t {
  opening,  // the first on a link, so that the receiver knows whose it is
  data,
  received,  // the sender of this has taken so many pieces of the other's: room for more
};

// Little-endian on the wire, packed in this order behind the four letters RAzp.
struct PieceHeader {
  std::uint8_t wire = 0;  // wire_version
  PieceKind kind = PieceKind::data;
  Protection protection = Protection::checked;
  Cipher cipher = Cipher::xchacha20;  // of no account where it is `checked`
  std::int32_t from = 0, to = 0;
  std::uint64_t number = 0;    // of the pieces from..to, from 0
  std::int64_t operation = 0;  // number of the collective call
  std::uint64_t tag = 0;       // of the transfer
  std::uint64_t size = 0;      // of the whole transfer, bytes
  std::uint64_t offset = 0;    // of this piece in it
  std::uint64_t length = 0;    // of this piece
  friend bool operator==(const PieceHeader&, const PieceHeader&) = default;
};

constexpr std::size_t header_size = 64, tag_size = 16;
constexpr std::size_t overhead =
    header_size + tag_size;  // of a piece; its frame is header, payload, tag (CRC32C: 4 bytes and zeros)

using LinkKey = std::array<std::byte, 32>;

// The key of what `from` sends to `to` in a session of the group with that secret.
LinkKey link_key(const Secret& secret, std::span<const std::byte, 16> session, int from, int to);

// Writes the frame of a piece: `frame` has overhead + payload.size() bytes; header.length is payload.size(). Throws NOT_SUPPORTED where
// the cipher cannot be had.
void seal(const PieceHeader& header, std::span<const std::byte> payload, const LinkKey& key,
          std::span<std::byte> frame);

// The header of a frame as it says itself; nothing if it is none, of whatever content. Trusts nothing; does not look at the payload. One
// that is read has ranks that are not negative, length is what is there, and data lie within their transfer (offset + length <= size).
std::optional<PieceHeader> read_header(std::span<const std::byte> frame);

// Writes the payload of a frame, header.length bytes, to `payload`, and says whether it is what its sender sealed with this header; if
// not, `payload` may hold anything. Also false where the cipher cannot be had.
bool open(std::span<const std::byte> frame, const PieceHeader& header, const LinkKey& key,
          std::span<std::byte> payload);

}  // namespace ringattn::zeromq
