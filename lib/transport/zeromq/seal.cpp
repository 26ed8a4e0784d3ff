#include "transport/zeromq/seal.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "transport/zeromq/libraries.h"

namespace ringattn::zeromq {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are written as they lie");

constexpr std::array<char, 4> magic = {'R', 'A', 'z', 'p'};

// All fields in the order of the wire.
template <class Header, class F>
void for_each_field(Header& h, F&& f) {
  f(h.wire), f(h.kind), f(h.protection), f(h.cipher);
  f(h.from), f(h.to);
  f(h.number), f(h.operation), f(h.tag), f(h.size), f(h.offset), f(h.length);
}

void write_header(const PieceHeader& header, std::byte* to) {
  std::memcpy(to, magic.data(), magic.size());
  to += magic.size();
  for_each_field(header, [&](const auto& field) {
    std::memcpy(to, &field, sizeof field);
    to += sizeof field;
  });
}

// In blocks, so that what is summed is in the nearest cache. It is the copy that is summed: nobody can change that in between.
std::uint32_t copy_with_crc(std::uint32_t crc, std::span<const std::byte> from, std::byte* to) {
  constexpr std::size_t block = 12 << 10;
  for (std::size_t at = 0; at < from.size(); at += block) {
    const std::size_t size = std::min(block, from.size() - at);
    std::memcpy(to + at, from.data() + at, size);
    crc = crc32c(crc, {to + at, size});
  }
  return crc;
}

using Tag = std::array<std::byte, tag_size>;

Tag tag_of_crc(std::uint32_t crc) {
  Tag tag{};
  std::memcpy(tag.data(), &crc, sizeof crc);
  return tag;
}

// A number serves one piece of one key, whatever its protection; that is in the nonce all the same, lest a mistake there were an open
// door.
using Nonce = std::array<unsigned char, crypto_aead_xchacha20poly1305_ietf_NPUBBYTES>;
static_assert(crypto_aead_aes256gcm_NPUBBYTES == 12 && sizeof(Nonce) == 24);
static_assert(crypto_aead_aes256gcm_ABYTES == tag_size && crypto_aead_xchacha20poly1305_ietf_ABYTES == tag_size);
static_assert(crypto_aead_aes256gcm_KEYBYTES == sizeof(LinkKey) &&
              crypto_aead_xchacha20poly1305_ietf_KEYBYTES == sizeof(LinkKey));

Nonce nonce_of(const PieceHeader& header) {
  Nonce nonce{};
  std::memcpy(nonce.data(), &header.number, 8);
  nonce[8] = static_cast<unsigned char>(header.protection);
  return nonce;
}

unsigned char* bytes(std::byte* data) { return reinterpret_cast<unsigned char*>(data); }
const unsigned char* bytes(const std::byte* data) { return reinterpret_cast<const unsigned char*>(data); }

bool can(Cipher cipher, const Sodium& sodium) {
  return cipher != Cipher::aes256gcm || sodium.crypto_aead_aes256gcm_is_available() != 0;
}

}  // namespace

Cipher best_cipher() { return can(Cipher::aes256gcm, sodium_library()) ? Cipher::aes256gcm : Cipher::xchacha20; }

LinkKey link_key(const Secret& secret, std::span<const std::byte, 16> session, int from, int to) {
  static_assert(crypto_generichash_KEYBYTES_MAX >= sizeof(Secret) && crypto_generichash_BYTES_MAX >= sizeof(LinkKey));
  constexpr std::string_view purpose = "ringattn link";
  const std::array<std::int32_t, 2> ranks = {from, to};
  std::array<std::byte, purpose.size() + 16 + sizeof ranks> link;
  std::memcpy(link.data(), purpose.data(), purpose.size());
  std::memcpy(link.data() + purpose.size(), session.data(), 16);
  std::memcpy(link.data() + purpose.size() + 16, ranks.data(), sizeof ranks);
  LinkKey key;
  if (sodium_library().crypto_generichash(bytes(key.data()), key.size(), bytes(link.data()), link.size(),
                                          bytes(secret.data()), secret.size()) != 0)
    fail(RA_STATUS_INTERNAL_ERROR, "libsodium makes no key of what ", from, " sends to ", to);
  return key;
}

void seal(const PieceHeader& header, std::span<const std::byte> payload, const LinkKey& key,
          std::span<std::byte> frame) {
  if (header.length != payload.size() || frame.size() != overhead + payload.size())
    fail(RA_STATUS_INTERNAL_ERROR, "a piece of ", payload.size(), " bytes says ", header.length,
         " and is written to a frame of ", frame.size());
  std::byte* const body = frame.data() + header_size;
  std::byte* const tag = body + payload.size();
  write_header(header, frame.data());
  if (header.protection == Protection::checked) {
    const std::uint32_t crc = copy_with_crc(crc32c(0, frame.first(header_size)), payload, body);
    std::memcpy(tag, tag_of_crc(crc).data(), tag_size);
    return;
  }

  const Sodium& sodium = sodium_library();
  if (!can(header.cipher, sodium))
    fail(RA_STATUS_NOT_SUPPORTED,
         "AES-256-GCM was chosen to protect data, which libsodium does not have on this processor");
  const bool encrypts = header.protection == Protection::encrypted;
  if (!encrypts && !payload.empty()) std::memcpy(body, payload.data(), payload.size());
  const auto encrypt = header.cipher == Cipher::aes256gcm ? sodium.crypto_aead_aes256gcm_encrypt_detached
                                                          : sodium.crypto_aead_xchacha20poly1305_ietf_encrypt_detached;
  const int result = encrypt(bytes(body), bytes(tag), nullptr, bytes(payload.data()), encrypts ? payload.size() : 0,
                             bytes(frame.data()), encrypts ? header_size : header_size + payload.size(), nullptr,
                             nonce_of(header).data(), bytes(key.data()));
  if (result != 0) fail(RA_STATUS_INTERNAL_ERROR, "libsodium does not seal ", payload.size(), " bytes");
}

std::optional<PieceHeader> read_header(std::span<const std::byte> frame) {
  if (frame.size() < overhead || std::memcmp(frame.data(), magic.data(), magic.size()) != 0) return {};
  PieceHeader header;
  const std::byte* from = frame.data() + magic.size();
  for_each_field(header, [&](auto& field) {
    std::memcpy(&field, from, sizeof field);
    from += sizeof field;
  });
  if (header.kind > PieceKind::received || header.protection > Protection::encrypted ||
      header.cipher > Cipher::aes256gcm)
    return {};
  if (header.from < 0 || header.to < 0 || header.length != frame.size() - overhead) return {};
  if (header.kind == PieceKind::data && (header.offset > header.size || header.length > header.size - header.offset))
    return {};
  return header;
}

bool open(std::span<const std::byte> frame, const PieceHeader& header, const LinkKey& key,
          std::span<std::byte> payload) {
  if (read_header(frame) != header || payload.size() != header.length) return false;
  const std::span<const std::byte> body = frame.subspan(header_size, payload.size());
  const std::byte* const tag = frame.data() + header_size + payload.size();
  if (header.protection == Protection::checked) {
    const std::uint32_t crc = copy_with_crc(crc32c(0, frame.first(header_size)), body, payload.data());
    return std::memcmp(tag, tag_of_crc(crc).data(), tag_size) == 0;
  }

  const Sodium& sodium = sodium_library();
  if (!can(header.cipher, sodium)) return false;
  const bool encrypts = header.protection == Protection::encrypted;
  const auto decrypt = header.cipher == Cipher::aes256gcm ? sodium.crypto_aead_aes256gcm_decrypt_detached
                                                          : sodium.crypto_aead_xchacha20poly1305_ietf_decrypt_detached;
  if (decrypt(bytes(payload.data()), nullptr, bytes(body.data()), encrypts ? payload.size() : 0, bytes(tag),
              bytes(frame.data()), encrypts ? header_size : header_size + payload.size(), nonce_of(header).data(),
              bytes(key.data())) != 0)
    return false;
  if (!encrypts && !body.empty()) std::memcpy(payload.data(), body.data(), body.size());
  return true;
}

}  // namespace ringattn::zeromq
