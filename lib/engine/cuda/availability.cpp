#include "engine/cuda/availability.h"

#include <cuda_runtime_api.h>

#include "core/dynamic_library.h"
#include "core/error.h"

namespace ringattn::cuda {
namespace {

constexpr const char* driver_file = "libcuda.so.1";

std::string version_name(int version) { return text(version / 1000, '.', version % 1000 / 10); }

// The CUDA runtime, which is part of this library, says that there is no driver, but not why.
std::string why_no_driver() {
  try {
    const DynamicLibrary driver(driver_file);
    return text(driver.path(), " is no NVIDIA driver: the CUDA runtime finds none in it");
  } catch (const Error& error) {
    return "the NVIDIA driver, " + error.message;
  }
}

}  // namespace

Availability availability() {
  // Any driver of the same major version runs kernels that were compiled for its device; where they are compiled as they are
  // loaded, from PTX, it has to know all of the compiler's version.
  constexpr int oldest_driver = CUDART_VERSION / 1000 * 1000;
  int version = 0;
  cudaError_t error = cudaDriverGetVersion(&version);
  if (error == cudaSuccess && version == 0) return {0, why_no_driver()};
  if (error == cudaSuccess && version < oldest_driver)
    return {0, text("the NVIDIA driver (", driver_file, ") is for CUDA ", version_name(version), "; must be for ",
                    version_name(oldest_driver), " or newer")};
  int devices = 0;
  if (error == cudaSuccess) error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    cudaGetLastError();  // else the host's next look at it would find this error
    return {0, text("the NVIDIA driver, for CUDA ", version_name(version), ", says: ", cudaGetErrorString(error))};
  }
  return {devices, {}};
}

}  // namespace ringattn::cuda
