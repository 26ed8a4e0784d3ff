#include "transport/zeromq/keys.h"

#include <cstdint>
#include <tuple>

#include "core/error.h"
#include "transport/zeromq/libraries.h"

namespace ringattn::zeromq {
namespace {

unsigned char* bytes(std::array<std::byte, 32>& key) { return reinterpret_cast<unsigned char*>(key.data()); }
const unsigned char* bytes(const std::array<std::byte, 32>& key) {
  return reinterpret_cast<const unsigned char*>(key.data());
}

}  // namespace

CurveKeys curve_keys(const Secret& secret, int rank) {
  static_assert(crypto_kdf_KEYBYTES == std::tuple_size_v<Secret>);
  static_assert(crypto_scalarmult_SCALARBYTES == 32 && crypto_scalarmult_BYTES == 32);
  constexpr char context[crypto_kdf_CONTEXTBYTES + 1] = "ringattn";
  const Sodium& sodium = sodium_library();
  CurveKeys keys;
  if (sodium.crypto_kdf_derive_from_key(bytes(keys.secret_key), keys.secret_key.size(),
                                        static_cast<std::uint64_t>(rank), context, bytes(secret)) != 0 ||
      sodium.crypto_scalarmult_base(bytes(keys.public_key), bytes(keys.secret_key)) != 0)
    fail(RA_STATUS_INTERNAL_ERROR, "libsodium makes no key of rank ", rank);
  return keys;
}

}  // namespace ringattn::zeromq
