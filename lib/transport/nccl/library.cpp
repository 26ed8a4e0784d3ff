#include "transport/nccl/library.h"

#include <string>

#include "core/dynamic_library.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

namespace ringattn {
namespace {

std::string version_name(int version) {
  const int major = version < 10'000 ? 1'000 : 10'000;  // NCCL_VERSION: the former until 2.8
  return text(version / major, '.', version % major / 100, '.', version % 100);
}

struct LoadedNccl {
  DynamicLibrary library = find_library("RINGATTN_NCCL_LIBRARY", "libnccl.so.2");
  Nccl functions = load();

  Nccl load() const {
    int version = 0;
    library.get<decltype(&ncclGetVersion)>("ncclGetVersion")(&version);
    if (version < oldest_nccl)
      fail(RA_STATUS_NOT_SUPPORTED, library.path(), " is NCCL ", version_name(version), "; must be ",
           version_name(oldest_nccl), " or newer");
    log(RA_LOG_LEVEL_DEBUG, "NCCL ", version_name(version), " is ", library.path());
#define RINGATTN_GET(function) library.get<decltype(&::function)>(#function),
    return {RINGATTN_NCCL_FUNCTIONS(RINGATTN_GET)};
#undef RINGATTN_GET
  }
};

}  // namespace

const Nccl& nccl() {
  static const LoadedNccl& loaded = make_immortal<LoadedNccl>();
  return loaded.functions;
}

}  // namespace ringattn
