#include "engine/cuda/cudnn_library.h"

#include "core/dynamic_library.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

namespace ringattn::cuda {
namespace {

std::string version_name(std::size_t version) {
  return text(version / 10'000, '.', version % 10'000 / 100, '.', version % 100);
}

DynamicLibrary find_cudnn() {
  DynamicLibrary library = find_library("RINGATTN_CUDNN_LIBRARY", "libcudnn.so.9");
  const std::size_t version = library.get<decltype(&::cudnnGetVersion)>("cudnnGetVersion")();
  if (version < oldest_cudnn)
    fail(RA_STATUS_NOT_SUPPORTED, library.path(), " is cuDNN ", version_name(version), "; must be ",
         version_name(oldest_cudnn), " or newer");
  log(RA_LOG_LEVEL_DEBUG, "cuDNN ", version_name(version), " is ", library.path());
  return library;
}

// cuDNN ends the process if it does not find this library when it makes its first plan. So it is found before: where the system has it,
// or where NVIDIA's wheels do, and cuDNN takes the one that is loaded.
DynamicLibrary find_cublas(const DynamicLibrary& cudnn) {
  const std::size_t major = cudnn.get<decltype(&::cudnnGetCudartVersion)>("cudnnGetCudartVersion")() / 1000;
  const std::string file = text("libcublasLt.so.", major), folder = cudnn.path().substr(0, cudnn.path().rfind('/') + 1);
  for (const std::string& beside : {std::string(), std::string("../../cublas/lib/"), text("../../cu", major, "/lib/")})
    try {
      return DynamicLibrary(folder + beside + file);
    } catch (const Error&) {
    }
  try {
    return DynamicLibrary(file);
  } catch (const Error& error) {
    throw Error(error.status, text(error.message, "; ", cudnn.path(), " needs it"));
  }
}

struct LoadedCudnn {
  DynamicLibrary library = find_cudnn();
  DynamicLibrary cublas = find_cublas(library);
  CudnnFunctions functions = load();

  CudnnFunctions load() const {
#define RINGATTN_GET(function) library.get<decltype(&::function)>(#function),
    return {RINGATTN_CUDNN_FUNCTIONS(RINGATTN_GET)};
#undef RINGATTN_GET
  }
};

}  // namespace

const CudnnFunctions& cudnn_functions() {
  static const LoadedCudnn& loaded = make_immortal<LoadedCudnn>();
  return loaded.functions;
}

std::string cudnn_version() { return version_name(cudnn_functions().cudnnGetVersion()); }

}  // namespace ringattn::cuda
