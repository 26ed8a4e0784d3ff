#include "engine/cuda/cublas_library.h"

#include "core/dynamic_library.h"
#include "core/log.h"
#include "core/memory.h"

namespace ringattn::cuda {
namespace {

DynamicLibrary find_cublas() {
  const std::string file = text("libcublas.so.", CUDART_VERSION / 1000);
  DynamicLibrary library = find_library("RINGATTN_CUBLAS_LIBRARY", file.c_str());
  log(RA_LOG_LEVEL_DEBUG, "cuBLAS is ", library.path());
  return library;
}

struct LoadedCublas {
  DynamicLibrary library = find_cublas();
  CublasFunctions functions = load();

  CublasFunctions load() const {
#define RINGATTN_GET(result, function, parameters) library.get<result(*) parameters>(#function),
    return {RINGATTN_CUBLAS_FUNCTIONS(RINGATTN_GET)};
#undef RINGATTN_GET
  }
};

}  // namespace

const CublasFunctions& cublas_functions() {
  static const LoadedCublas& loaded = make_immortal<LoadedCublas>();
  return loaded.functions;
}

}  // namespace ringattn::cuda
