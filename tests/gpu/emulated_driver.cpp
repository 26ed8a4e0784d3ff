// The NVIDIA driver's functions that gpu.py calls, of an emulated GPU: so gpu_check.py is tested without one. Linked with the CUDA
// backend on emulated devices into one library, which is both its --library and its --driver.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "emulation.h"

namespace {

constexpr std::size_t device_bytes = std::size_t{1} << 32;

// What is allocated, from "40 bytes of device 0".
std::size_t used_bytes() {
  std::size_t sum = 0;
  for (const std::string& object : emulation::live_objects())
    if (object.find(" bytes of device ") != std::string::npos) sum += std::stoull(object);
  return sum;
}

}  // namespace

#define RA_EXPORT extern "C" __attribute__((visibility("default")))

RA_EXPORT int cuInit(unsigned) {
  emulation::reset({.devices = 1, .seed = 1, .device_bytes = device_bytes});
  return 0;
}
RA_EXPORT int cuGetErrorName(int error, const char** name) {
  *name = cudaGetErrorName(static_cast<cudaError_t>(error));
  return 0;
}
RA_EXPORT int cuDeviceGet(int* device, int number) {
  *device = number;
  return number == 0 ? 0 : cudaErrorInvalidDevice;
}
RA_EXPORT int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "emulated GPU", static_cast<std::size_t>(length));
  return 0;
}
RA_EXPORT int cuDriverGetVersion(int* version) { return cudaDriverGetVersion(version); }
RA_EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = nullptr;
  return 0;
}
RA_EXPORT int cuCtxSetCurrent(void*) { return cudaSetDevice(0); }
RA_EXPORT int cuMemAlloc_v2(std::uint64_t* data, std::size_t bytes) {
  void* allocated = nullptr;
  const cudaError_t error = cudaMalloc(&allocated, bytes);
  *data = reinterpret_cast<std::uintptr_t>(allocated);
  return error;
}
RA_EXPORT int cuMemFree_v2(std::uint64_t data) { return cudaFree(reinterpret_cast<void*>(data)); }
RA_EXPORT int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t bytes) {
  return cudaMemcpy(reinterpret_cast<void*>(to), from, bytes, cudaMemcpyHostToDevice);
}
RA_EXPORT int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t bytes) {
  return cudaMemcpy(to, reinterpret_cast<const void*>(from), bytes, cudaMemcpyDeviceToHost);
}
RA_EXPORT int cuStreamCreate(cudaStream_t* stream, unsigned flags) { return cudaStreamCreateWithFlags(stream, flags); }
RA_EXPORT int cuStreamDestroy_v2(cudaStream_t stream) { return cudaStreamDestroy(stream); }
RA_EXPORT int cuStreamSynchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
RA_EXPORT int cuMemGetInfo_v2(std::size_t* free, std::size_t* all) {
  *all = device_bytes;
  *free = device_bytes - std::min(used_bytes(), device_bytes);
  return 0;
}
