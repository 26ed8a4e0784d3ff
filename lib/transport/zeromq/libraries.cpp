#include "transport/zeromq/libraries.h"

#include "core/dynamic_library.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "transport/zeromq.h"

namespace ringattn {
namespace {

std::string version_name(int version) {
  return text(version / 10'000, '.', version % 10'000 / 100, '.', version % 100);  // ZMQ_MAKE_VERSION
}

#define RINGATTN_GET(function) library.get<decltype(&::function)>(#function),

struct LoadedZeromq {
  DynamicLibrary library = find_library("RINGATTN_ZEROMQ_LIBRARY", "libzmq.so.5");
  Zeromq functions = load();
  // A context for good, without sockets and so without threads: with the first context libzmq opens libraries of its own (OpenPGM), and
  // with the last it closes them, neither of which goes well on two threads at once.
  void* kept = functions.zmq_ctx_new();

  Zeromq load() const {
    int major = 0, minor = 0, patch = 0;
    library.get<decltype(&zmq_version)>("zmq_version")(&major, &minor, &patch);
    const int version = ZMQ_MAKE_VERSION(major, minor, patch);
    if (version < oldest_zeromq)
      fail(RA_STATUS_NOT_SUPPORTED, library.path(), " is ZeroMQ ", version_name(version), "; must be ",
           version_name(oldest_zeromq), " or newer");
    if (library.get<decltype(&zmq_has)>("zmq_has")("curve") != 1)
      fail(RA_STATUS_NOT_SUPPORTED, library.path(), " was built without CURVE, by which ranks know each other");
    log(RA_LOG_LEVEL_DEBUG, "ZeroMQ ", version_name(version), " is ", library.path());
    return {RINGATTN_ZEROMQ_FUNCTIONS(RINGATTN_GET)};
  }
};

struct LoadedSodium {
  DynamicLibrary library = find_library("RINGATTN_SODIUM_LIBRARY", "libsodium.so.23");
  Sodium functions = load();

  Sodium load() const {
    const Sodium loaded{RINGATTN_SODIUM_FUNCTIONS(RINGATTN_GET)};
    if (loaded.sodium_init() < 0) fail(RA_STATUS_NOT_SUPPORTED, library.path(), " fails in sodium_init");
    log(RA_LOG_LEVEL_DEBUG, "libsodium is ", library.path());
    return loaded;
  }
};

#undef RINGATTN_GET

// Empty if `load` does not throw.
template <class Load>
std::string reason(Load&& load) {
  try {
    load();
    return {};
  } catch (const Error& error) {
    return error.message;
  }
}

}  // namespace

const Zeromq& zeromq_library() {
  static const LoadedZeromq& loaded = make_immortal<LoadedZeromq>();
  return loaded.functions;
}

const Sodium& sodium_library() {
  static const LoadedSodium& loaded = make_immortal<LoadedSodium>();
  return loaded.functions;
}

std::string missing_zeromq() {
  const std::string zeromq = reason(zeromq_library), sodium = reason(sodium_library);
  return text(zeromq, zeromq.empty() || sodium.empty() ? "" : "; and ", sodium);
}

}  // namespace ringattn
