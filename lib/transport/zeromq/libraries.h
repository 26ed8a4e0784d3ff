// Functions of ZeroMQ and libsodium. The library is linked with neither: both are loaded when they are first needed, as NCCL is
// (nccl/library.h), and tests put their own tables in the place of libraries.cpp.
#pragma once

#include <sodium.h>
#include <zmq.h>

#include <string>

namespace ringattn {

#define RINGATTN_ZEROMQ_FUNCTIONS(F) \
  F(zmq_version)                     \
  F(zmq_errno)                       \
  F(zmq_strerror)                    \
  F(zmq_has)                         \
  F(zmq_ctx_new)                     \
  F(zmq_ctx_set)                     \
  F(zmq_ctx_term)                    \
  F(zmq_socket)                      \
  F(zmq_close)                       \
  F(zmq_setsockopt)                  \
  F(zmq_getsockopt)                  \
  F(zmq_bind)                        \
  F(zmq_connect)                     \
  F(zmq_socket_monitor)              \
  F(zmq_poll)                        \
  F(zmq_msg_init)                    \
  F(zmq_msg_init_size)               \
  F(zmq_msg_close)                   \
  F(zmq_msg_data)                    \
  F(zmq_msg_size)                    \
  F(zmq_msg_more)                    \
  F(zmq_msg_get)                     \
  F(zmq_msg_gets)                    \
  F(zmq_msg_send)                    \
  F(zmq_msg_recv)

#define RINGATTN_SODIUM_FUNCTIONS(F)                     \
  F(sodium_init)                                         \
  F(randombytes_buf)                                     \
  F(crypto_kdf_derive_from_key)                          \
  F(crypto_generichash)                                  \
  F(crypto_scalarmult_base)                              \
  F(crypto_aead_aes256gcm_is_available)                  \
  F(crypto_aead_aes256gcm_encrypt_detached)              \
  F(crypto_aead_aes256gcm_decrypt_detached)              \
  F(crypto_aead_xchacha20poly1305_ietf_encrypt_detached) \
  F(crypto_aead_xchacha20poly1305_ietf_decrypt_detached)

#define RINGATTN_MEMBER(function) decltype(&::function) function;
struct Zeromq {
  RINGATTN_ZEROMQ_FUNCTIONS(RINGATTN_MEMBER)
};
struct Sodium {
  RINGATTN_SODIUM_FUNCTIONS(RINGATTN_MEMBER)
};
#undef RINGATTN_MEMBER

constexpr int oldest_zeromq = ZMQ_MAKE_VERSION(4, 3, 0);
static_assert(ZMQ_VERSION >= oldest_zeromq, "zmq.h is older than ZeroMQ 4.3");

// The file that RINGATTN_ZEROMQ_LIBRARY (RINGATTN_SODIUM_LIBRARY) names in the environment, or libzmq.so.5 (libsodium.so.23) where the
// system finds it or the program has loaded it; for good, once it was found. Throws NOT_SUPPORTED: where it was looked for, which
// version was found, that libzmq was built without CURVE, or what it lacks.
const Zeromq& zeromq_library();
const Sodium& sodium_library();  // sodium_init has been called

}  // namespace ringattn
