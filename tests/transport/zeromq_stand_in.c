/* A libzmq or a libsodium, as far as it is looked at when it is loaded. ZEROMQ is a minor version of 4, CURVE whether it was built with
   that; it has no other functions. A libsodium has sodium_init only, or with FAILS all functions, and does not start. */
#if defined(ZEROMQ)
void zmq_version(int *major, int *minor, int *patch);
int zmq_has(const char *capability);
void zmq_version(int *major, int *minor, int *patch) {
  *major = 4;
  *minor = ZEROMQ;
  *patch = 5;
}
int zmq_has(const char *capability) { return capability[0] == 'c' && CURVE; }
#else
int sodium_init(void);
int sodium_init(void) { return -1; }
#ifdef FAILS
#define IS_THERE(function) \
  void function(void);     \
  void function(void) {}
IS_THERE(sodium_memzero)
IS_THERE(randombytes_buf)
IS_THERE(crypto_kdf_derive_from_key)
IS_THERE(crypto_generichash)
IS_THERE(crypto_scalarmult_base)
IS_THERE(crypto_aead_aes256gcm_is_available)
IS_THERE(crypto_aead_aes256gcm_encrypt_detached)
IS_THERE(crypto_aead_aes256gcm_decrypt_detached)
IS_THERE(crypto_aead_xchacha20poly1305_ietf_encrypt_detached)
IS_THERE(crypto_aead_xchacha20poly1305_ietf_decrypt_detached)
#endif
#endif
