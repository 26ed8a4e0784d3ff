#include "engine/cuda/queue.h"

namespace ringattn::cuda {

Queue::Queue(int device, int num_sms) : device_(device), num_sms_(num_sms) {
  const OnDevice on(device);
  transfers_ = Stream(Stream::Priority::greatest);
  probe_ = Event(Event::For::ordering);
  finished_ = Event(Event::For::ordering);
}

// Only a stream of the event's device can record it.
std::string Queue::refusal(cudaStream_t stream) {
  const OnDevice on(device_);
  const cudaError_t error = cudaEventRecord(probe_.get(), stream);
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  if (error != cudaErrorInvalidResourceHandle) fail_cuda(error, "cudaEventRecord");
  return text("stream is ", static_cast<const void*>(stream), ", of another device; must be one of device ", device_);
}

void Queue::begin(cudaStream_t stream) {
  check(cudaGetDevice(&device_before_), "cudaGetDevice");
  check(cudaSetDevice(device_), "cudaSetDevice");
  stream_ = stream;
  try {
    captures_ = is_capturing(stream);
    if (is_lost_ && !captures_) finish();
    if (has_finished_ && !captures_) wait(stream, finished_);
  } catch (...) {
    cudaSetDevice(device_before_);
    throw;
  }
}

void Queue::end() noexcept {
  if (!captures_) {
    if (cudaEventRecord(finished_.get(), stream_) == cudaSuccess)
      has_finished_ = true;
    else
      is_lost_ = true;
  }
  cudaSetDevice(device_before_);
}

void Queue::finish() noexcept {
  if (is_abandoned_) return;
  const BesideCapture beside;
  if (!is_lost_ && (!has_finished_ || cudaEventSynchronize(finished_.get()) == cudaSuccess)) return;
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  cudaDeviceSynchronize();
  cudaSetDevice(before);
  cudaGetLastError();
  is_lost_ = has_finished_ = false;
}

}  // namespace ringattn::cuda
