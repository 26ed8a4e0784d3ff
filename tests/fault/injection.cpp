#include "fault/injection.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <netdb.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <type_traits>
#include <utility>

#include "fault/allocation.h"
#include "transport/zeromq/libraries.h"

namespace ringattn::test {
namespace {

thread_local Injection* own = nullptr;
thread_local bool is_inside = false;  // what a library does itself is not counted
thread_local const void* in_message_of =
    nullptr;  // the socket that this thread has read a part of a message from, not the last

// Nothing that this thread calls until the end of this is counted.
class Inside {
 public:
  Inside() : before_(std::exchange(is_inside, true)) {}
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside() { is_inside = before_; }

 private:
  const bool before_;
};

constexpr bool survived = true, reported = false;
Fault again(int error) { return {error, survived, false, true}; }  // EAGAIN of a message
Fault done(int error) { return {error, survived, true}; }

std::vector<Function> make_functions() {
  const Fault interrupted{EINTR, survived}, terminated{ETERM, reported}, no_socket{ENOTSOCK, reported};
  const Fault invalid{EINVAL, reported}, no_memory{ENOMEM, reported}, no_file{EMFILE, reported};
  const Fault refused{-1, reported};
  return {
      {"operator new", {no_memory}},

      {"zmq_version", {}},
      {"zmq_errno", {}},
      {"zmq_strerror", {}},
      {"zmq_has", {}},
      {"zmq_ctx_new", {no_memory, no_file}},
      {"zmq_ctx_set", {{EINVAL, survived}}},
      {"zmq_ctx_term", {interrupted, done(EFAULT)}},
      {"zmq_socket", {no_file, terminated, invalid}},
      {"zmq_close", {done(ENOTSOCK)}},
      {"zmq_setsockopt", {invalid, terminated, no_socket, interrupted}},
      {"zmq_getsockopt", {invalid, terminated, no_socket, interrupted}},
      {"zmq_bind",
       {invalid,
        {EADDRINUSE, reported},
        {EADDRNOTAVAIL, reported},
        {ENODEV, reported},
        {EMTHREAD, reported},
        no_memory,
        no_file,
        terminated,
        no_socket,
        interrupted}},
      {"zmq_connect", {invalid, {EMTHREAD, reported}, {ECONNREFUSED, reported}, terminated, no_socket, interrupted}},
      {"zmq_socket_monitor", {terminated, {EPROTONOSUPPORT, reported}, {EADDRINUSE, reported}}},
      {"zmq_poll", {terminated, {EFAULT, reported}, interrupted}},
      {"zmq_msg_init", {}},
      {"zmq_msg_init_size", {no_memory}},
      {"zmq_msg_close", {done(EFAULT)}},
      {"zmq_msg_data", {}},
      {"zmq_msg_size", {}},
      {"zmq_msg_more", {}},
      {"zmq_msg_get", {invalid}},
      {"zmq_msg_gets", {invalid}},
      {"zmq_msg_send",
       {terminated, no_socket, {ENOTSUP, reported}, {EHOSTUNREACH, reported}, interrupted, again(EAGAIN)}},
      {"zmq_msg_recv", {terminated, no_socket, {EFSM, reported}, interrupted, again(EAGAIN)}},

      {"sodium_init", {}},  // as the library is loaded: tests/transport/zeromq_libraries_test.cpp
      {"randombytes_buf", {}},
      {"crypto_kdf_derive_from_key", {refused}},
      {"crypto_generichash", {refused}},
      {"crypto_scalarmult_base", {refused}},
      {"crypto_aead_aes256gcm_is_available", {{0, reported}}},
      {"crypto_aead_aes256gcm_encrypt_detached", {refused}},
      {"crypto_aead_aes256gcm_decrypt_detached", {refused}},
      {"crypto_aead_xchacha20poly1305_ietf_encrypt_detached", {refused}},
      {"crypto_aead_xchacha20poly1305_ietf_decrypt_detached", {refused}},

      {"socket", {no_file, {ENFILE, reported}, no_memory, {EACCES, reported}, {EAFNOSUPPORT, reported}}},
      {"connect", {{ENETUNREACH, reported}, {EACCES, reported}, interrupted}},
      {"bind", {{EADDRINUSE, reported}, {EADDRNOTAVAIL, reported}, {EACCES, reported}, no_memory}},
      {"listen", {{EADDRINUSE, reported}, {ENOBUFS, reported}}},
      {"setsockopt", {no_memory, {ENOPROTOOPT, reported}}},
      {"getsockopt", {{ENOPROTOOPT, survived}, {EBADF, survived}}},
      {"getsockname", {{ENOBUFS, reported}}},
      {"getaddrinfo", {{EAI_MEMORY, reported}, {EAI_NONAME, reported}, {EAI_AGAIN, reported}, {EAI_SYSTEM, reported}}},
      {"getnameinfo", {{EAI_MEMORY, reported}, {EAI_OVERFLOW, reported}, {EAI_SYSTEM, reported}}},
      {"eventfd", {no_file, {ENFILE, reported}, no_memory}},
      {"read", {interrupted, {EAGAIN, survived}}},
      {"write", {interrupted, done(EAGAIN)}},  // there is no room for another signal beside those that nobody has taken
      {"close", {done(EINTR), done(EIO)}},
      {"open", {{EMFILE, survived}, {ENOSPC, survived}, {EACCES, survived}, {ENOENT, survived}, interrupted}},
      {"flock", {{EWOULDBLOCK, survived}, {ENOLCK, survived}, interrupted}},
      {"access", {{EACCES, survived}, {ENOENT, survived}}},
      {"stat", {{EACCES, survived}, {ENOMEM, survived}}},
      {"lstat", {{EACCES, survived}, {ENOENT, survived}}},
      {"fstat", {{EIO, reported}}},
      {"mkdtemp", {{EACCES, reported}, {ENOSPC, reported}, {EEXIST, reported}, {EROFS, reported}}},
      {"rename", {{EACCES, survived}, {ENOSPC, survived}}},
      {"getrlimit", {{EINVAL, survived}}},
      {"pthread_attr_init", {no_memory}},
      {"pthread_attr_setsigmask_np", {no_memory}},
      {"pthread_create", {{EAGAIN, reported}, {EPERM, reported}}},
      {"pthread_setname_np", {{ERANGE, survived}}},
      {"pthread_join", {done(EDEADLK)}},
      {"dlopen", {{ENOENT, reported}}},
      {"dlsym", {{ENOENT, reported}}},
      {"dlinfo", {{-1, survived}}},
      {"dladdr", {{0, survived}}},
      {"opendir", {no_file, {ENOENT, survived}, no_memory}},
      {"readdir", {{EIO, survived}}},
      {"closedir", {done(EBADF)}},
      {"unlink", {done(EIO)}},
      {"rmdir", {done(EIO)}},
      // What opens a std::ifstream, which depends on the optimization.
      {"_ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode", {{EACCES, survived}}},
      {"_ZNSt13basic_filebufIcSt11char_traitsIcEE4openEPKcSt13_Ios_Openmode", {{EACCES, survived}, {EMFILE, survived}}},
  };
}

const Fault* next_fault(int function, const void* from, bool is_first = true) noexcept {
  return own == nullptr || is_inside ? nullptr : own->next(function, from, is_first);
}

}  // namespace

const std::vector<Function>& functions() {
  static const std::vector<Function>& all = *new std::vector<Function>(make_functions());
  return all;
}

int index_of(std::string_view function) {
  const auto found = std::ranges::find_if(functions(), [&](const Function& f) { return f.name == function; });
  return found == functions().end() ? -1 : static_cast<int>(found - functions().begin());
}

Injection::Injection(int function, int n, int fault, bool is_lasting)
    : function_(function), n_(n), fault_(fault), is_lasting_(is_lasting), counts_(functions().size()) {}

std::vector<Injection::Call> Injection::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

const Fault* Injection::next(int function, const void* from, bool is_first) noexcept {
  const Inside inside;
  const std::lock_guard lock(mutex_);
  const int n = ++counts_[static_cast<std::size_t>(function)];
  if (n_ == 0) calls_.push_back({function, n, from, stage});
  if (function != function_ || n_ == 0 || (is_lasting_ ? n < n_ : n != n_)) return nullptr;
  const Fault& fault = functions()[static_cast<std::size_t>(function)].faults[static_cast<std::size_t>(fault_)];
  if (fault.is_first && !is_first) return nullptr;
  if (!has_failed_.exchange(true)) failed_in_ = stage.load();
  return &fault;
}

Armed::Armed(Injection* injection) : before_(std::exchange(own, injection)) {}
Armed::~Armed() { own = before_; }

bool allocation_fails() noexcept {
  static constexpr int operator_new = 0;  // in functions()
  return own != nullptr && next_fault(operator_new, nullptr) != nullptr;
}

namespace {

// ---------------------------------------------------------------- what fails, and how it says so

// call(), or what the function says instead of it. `returns_errno`: as pthread_create does; others say -1 or null, and errno.
template <bool returns_errno = false, class F>
auto injected(int function, const void* from, F&& call, bool is_first = true) {
  using Result = decltype(call());
  const Fault* const fault = next_fault(function, from, is_first);
  if (fault == nullptr || fault->is_done) {
    const Inside library;
    if (fault == nullptr) return call();
    call();
  }
  errno = fault->error > 0 ? fault->error : EIO;
  if constexpr (std::is_pointer_v<Result>)
    return Result(nullptr);
  else
    return static_cast<Result>(returns_errno || fault->error <= 0 ? fault->error : -1);
}

// A function of a library's table.
template <class R, class... A>
R substituted(int function, R (*real)(A...), const void* from, A... arguments) {
  if (!functions()[static_cast<std::size_t>(function)].faults.empty())
    if constexpr (!std::is_void_v<R>) return injected(function, from, [&] { return real(arguments...); });
  const Inside library;
  return real(arguments...);
}

}  // namespace
}  // namespace ringattn::test

using namespace ringattn;
using namespace ringattn::test;

extern "C" {
const Zeromq& __real__ZN8ringattn14zeromq_libraryEv();
const Sodium& __real__ZN8ringattn14sodium_libraryEv();
}

namespace {

const Zeromq& zeromq() { return __real__ZN8ringattn14zeromq_libraryEv(); }
const Sodium& sodium() { return __real__ZN8ringattn14sodium_libraryEv(); }

int receive(zmq_msg_t* message, void* socket, int flags) {
  static const int function = index_of("zmq_msg_recv");
  const auto call = [&] {
    const int result = zeromq().zmq_msg_recv(message, socket, flags);
    if (result >= 0) in_message_of = zeromq().zmq_msg_more(message) != 0 ? socket : nullptr;
    return result;
  };
  return injected(function, __builtin_return_address(0), call, in_message_of != socket);
}

int send(zmq_msg_t* message, void* socket, int flags) {
  static const int function = index_of("zmq_msg_send");
  int type = 0;
  std::size_t size = sizeof type;
  zeromq().zmq_getsockopt(socket, ZMQ_TYPE, &type, &size);
  const bool can_be_full = type == ZMQ_DEALER || type == ZMQ_PUSH;  // others drop what they have no room for
  return injected(
      function, __builtin_return_address(0), [&] { return zeromq().zmq_msg_send(message, socket, flags); },
      can_be_full);
}

#define RINGATTN_SUBSTITUTE(table, function)                                                \
  [](auto... arguments) {                                                                   \
    static const int index = index_of(#function);                                           \
    return substituted(index, table().function, __builtin_return_address(0), arguments...); \
  },
#define RINGATTN_SUBSTITUTE_ZEROMQ(function) RINGATTN_SUBSTITUTE(zeromq, function)
#define RINGATTN_SUBSTITUTE_SODIUM(function) RINGATTN_SUBSTITUTE(sodium, function)

Zeromq zeromq_table() {
  Zeromq table{RINGATTN_ZEROMQ_FUNCTIONS(RINGATTN_SUBSTITUTE_ZEROMQ)};
  table.zmq_msg_recv = receive;
  table.zmq_msg_send = send;
  return table;
}

}  // namespace

// ---------------------------------------------------------------- in the place of functions

#define RINGATTN_WRAP_AS(returns_errno, Result, name, parameters, arguments)                                        \
  Result __real_##name parameters;                                                                                  \
  Result __wrap_##name parameters {                                                                                 \
    static const int function = index_of(#name);                                                                    \
    return injected<returns_errno>(function, __builtin_return_address(0), [&] { return __real_##name arguments; }); \
  }
#define RINGATTN_WRAP(Result, name, parameters, arguments) RINGATTN_WRAP_AS(false, Result, name, parameters, arguments)
#define RINGATTN_WRAP_PTHREAD(name, parameters, arguments) RINGATTN_WRAP_AS(true, int, name, parameters, arguments)

extern "C" {

const Zeromq& __wrap__ZN8ringattn14zeromq_libraryEv() {
  zeromq();  // what that throws, and what it asks the system for, is a call of the thread's
  static const Zeromq table = zeromq_table();
  return table;
}
const Sodium& __wrap__ZN8ringattn14sodium_libraryEv() {
  sodium();
  static const Sodium table{RINGATTN_SODIUM_FUNCTIONS(RINGATTN_SUBSTITUTE_SODIUM)};
  return table;
}

RINGATTN_WRAP(int, socket, (int a, int b, int c), (a, b, c))
RINGATTN_WRAP(int, connect, (int a, const sockaddr* b, socklen_t c), (a, b, c))
RINGATTN_WRAP(int, bind, (int a, const sockaddr* b, socklen_t c), (a, b, c))
RINGATTN_WRAP(int, listen, (int a, int b), (a, b))
RINGATTN_WRAP(int, setsockopt, (int a, int b, int c, const void* d, socklen_t e), (a, b, c, d, e))
RINGATTN_WRAP(int, getsockopt, (int a, int b, int c, void* d, socklen_t* e), (a, b, c, d, e))
RINGATTN_WRAP(int, getsockname, (int a, sockaddr* b, socklen_t* c), (a, b, c))
RINGATTN_WRAP(int, getaddrinfo, (const char* a, const char* b, const addrinfo* c, addrinfo** d), (a, b, c, d))
RINGATTN_WRAP(int, getnameinfo, (const sockaddr* a, socklen_t b, char* c, socklen_t d, char* e, socklen_t f, int g),
              (a, b, c, d, e, f, g))
RINGATTN_WRAP(int, eventfd, (unsigned a, int b), (a, b))
RINGATTN_WRAP(ssize_t, read, (int a, void* b, std::size_t c), (a, b, c))
RINGATTN_WRAP(ssize_t, write, (int a, const void* b, std::size_t c), (a, b, c))
RINGATTN_WRAP(int, close, (int a), (a))
RINGATTN_WRAP(int, open, (const char* a, int b, mode_t c), (a, b, c))
RINGATTN_WRAP(int, flock, (int a, int b), (a, b))
RINGATTN_WRAP(int, access, (const char* a, int b), (a, b))
RINGATTN_WRAP(int, stat, (const char* a, struct stat* b), (a, b))
RINGATTN_WRAP(int, lstat, (const char* a, struct stat* b), (a, b))
RINGATTN_WRAP(int, fstat, (int a, struct stat* b), (a, b))
RINGATTN_WRAP(char*, mkdtemp, (char* a), (a))
RINGATTN_WRAP(int, rename, (const char* a, const char* b), (a, b))
RINGATTN_WRAP(int, getrlimit, (int a, rlimit* b), (a, b))
RINGATTN_WRAP_PTHREAD(pthread_attr_init, (pthread_attr_t * a), (a))
RINGATTN_WRAP_PTHREAD(pthread_attr_setsigmask_np, (pthread_attr_t * a, const sigset_t* b), (a, b))
RINGATTN_WRAP_PTHREAD(pthread_setname_np, (pthread_t a, const char* b), (a, b))
RINGATTN_WRAP_PTHREAD(pthread_join, (pthread_t a, void** b), (a, b))
RINGATTN_WRAP(DIR*, opendir, (const char* a), (a))
RINGATTN_WRAP(dirent*, readdir, (DIR * a), (a))
RINGATTN_WRAP(int, closedir, (DIR * a), (a))
RINGATTN_WRAP(int, unlink, (const char* a), (a))
RINGATTN_WRAP(int, rmdir, (const char* a), (a))
RINGATTN_WRAP(void*, dlopen, (const char* a, int b), (a, b))
RINGATTN_WRAP(void*, dlsym, (void* a, const char* b), (a, b))
RINGATTN_WRAP(int, dlinfo, (void* a, int b, void* c), (a, b, c))
RINGATTN_WRAP(int, dladdr, (const void* a, Dl_info* b), (a, b))
RINGATTN_WRAP(void*, _ZNSt13basic_filebufIcSt11char_traitsIcEE4openEPKcSt13_Ios_Openmode,
              (void* self, const char* a, int b), (self, a, b))

void __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(void* self, const char* name, int mode);
void __wrap__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(void* self, const char* name, int mode) {
  static const int function = index_of("_ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode");
  const bool fails = next_fault(function, __builtin_return_address(0)) != nullptr;
  __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(self, fails ? "/" : name, mode);
}

// The new thread's calls belong to whoever starts it.
int __real_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*),
                          void* argument);
int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*),
                          void* argument) {
  struct Start {
    Injection* injection;
    void* (*function)(void*);
    void* argument;
  };
  static const int index = index_of("pthread_create");
  return injected<true>(index, __builtin_return_address(0), [&] {
    auto start = std::make_unique<Start>(Start{own, function, argument});
    const auto body = [](void* of) -> void* {
      const Start begun = *std::unique_ptr<Start>(static_cast<Start*>(of));
      const Armed armed(begun.injection);
      return begun.function(begun.argument);
    };
    const int error = __real_pthread_create(thread, attributes, body, start.get());
    if (error == 0) start.release();
    return error;
  });
}

}  // extern "C"
