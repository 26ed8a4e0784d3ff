#include "engine/cuda/runtime.h"

namespace ringattn::cuda {

void fail_cuda(cudaError_t error, const char* function) {
  cudaGetLastError();  // else the host's next look at it would find this error
  Error failure(error == cudaErrorMemoryAllocation ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_CUDA_ERROR,
                text(function, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
  failure.cuda_error = error;
  throw failure;
}

Capability capability_of(int device) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return major * 10 + minor;
}
std::string dotted(Capability capability) { return text(capability / 10, '.', capability % 10); }

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  changed_ = true;
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);
}

Stream::Stream(Priority priority) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(
      cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking, priority == Priority::greatest ? greatest : least),
      "cudaStreamCreateWithPriority");
}

Event::Event(For) { check(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }

DeviceMemory::DeviceMemory(std::size_t bytes) {
  if (bytes > 0) check(cudaMalloc(&handle_, bytes), "cudaMalloc");
}

PinnedMemory::PinnedMemory(std::size_t bytes) {
  if (bytes > 0) check(cudaMallocHost(&handle_, bytes), "cudaMallocHost");
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace ringattn::cuda
