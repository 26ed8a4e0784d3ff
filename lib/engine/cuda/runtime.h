// What the backend takes from the CUDA runtime, each owned by one object, and failures as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

#include "core/error.h"

namespace ringattn::cuda {

// Throws CUDA_ERROR, or OUT_OF_MEMORY: "cudaMalloc: out of memory".
[[noreturn]] void fail_cuda(cudaError_t error, const char* function);
inline void check(cudaError_t error, const char* function) {
  if (error != cudaSuccess) fail_cuda(error, function);
}

// Compute capability of a GPU: 9.0 is 90.
using Capability = int;
Capability capability_of(int device);
std::string dotted(Capability capability);  // "9.0"

// The calling thread works on a device until the end of the block, and then on its own again.
class OnDevice {
 public:
  explicit OnDevice(int device);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice();

 private:
  int before_ = 0;
  bool changed_ = false;
};

// What this thread calls meanwhile does no harm to captures of streams, its own or another thread's, that do not concern it.
class BesideCapture {
 public:
  BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;
  BesideCapture& operator=(const BesideCapture&) = delete;
  ~BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// An owned handle. Objects are made for the device that the thread works on.
template <class Handle, cudaError_t (*destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) destroy(handle_);
  }
  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, nullptr); }

 protected:
  Handle handle_ = nullptr;
};

struct Stream : Owned<cudaStream_t, cudaStreamDestroy> {
  Stream() = default;
  enum class Priority { least, greatest };
  explicit Stream(Priority priority);
};

struct Event : Owned<cudaEvent_t, cudaEventDestroy> {
  Event() = default;
  enum class For { ordering };
  explicit Event(For);

  void record(cudaStream_t stream) const { check(cudaEventRecord(handle_, stream), "cudaEventRecord"); }
};

inline void wait(cudaStream_t stream, const Event& event) {
  check(cudaStreamWaitEvent(stream, event.get(), cudaEventWaitDefault), "cudaStreamWaitEvent");
}

struct DeviceMemory : Owned<void*, cudaFree> {
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes);
};

struct PinnedMemory : Owned<void*, cudaFreeHost> {
  PinnedMemory() = default;
  explicit PinnedMemory(std::size_t bytes);
};

bool is_capturing(cudaStream_t stream);

}  // namespace ringattn::cuda
