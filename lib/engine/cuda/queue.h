// The order of what a context does on its GPU.
//
// A call enqueues its computation on the caller's stream, and its communication on a stream of the context's own, `transfers`, with
// events between the two. So communication goes on beside computation, and what the caller enqueues after the call comes after all of
// it. Calls may be given different streams: each comes after the one before it.
//
// Of a call in a capture nothing happens before its graph is launched. Only the caller knows when, so that such calls are ordered
// with others as the caller's streams order them.
#pragma once

#include "engine/cuda/runtime.h"

namespace ringattn::cuda {

class Queue {
 public:
  // `num_sms`: no kernel takes more room than so many multiprocessors have; 0: than all.
  explicit Queue(int device, int num_sms = 0);
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { finish(); }

  int device() const { return device_; }
  int num_sms() const { return num_sms_; }
  cudaStream_t stream() const { return stream_; }  // of the call in progress
  cudaStream_t transfers() const { return transfers_.get(); }

  // Why a call cannot have this stream, or empty. Enqueues nothing.
  std::string refusal(cudaStream_t stream);

  // Between the two the thread works on the device.
  void begin(cudaStream_t stream);
  void end() noexcept;
  bool captures() const { return captures_; }  // the call in progress is being captured

  // Waits until all that calls have enqueued is over, but for graphs. For what has to be freed.
  void finish() noexcept;
  // Something that was enqueued never ends: nothing is waited for or freed any more.
  void abandon() noexcept { is_abandoned_ = true; }
  bool is_abandoned() const { return is_abandoned_; }

 private:
  const int device_;
  const int num_sms_;
  Stream transfers_;
  Event probe_;     // only ever recorded
  Event finished_;  // the last call that was not captured
  bool has_finished_ = false;
  bool is_lost_ = false;  // a call could not record that: the next one waits for the device
  bool is_abandoned_ = false;

  cudaStream_t stream_ = nullptr;
  bool captures_ = false;
  int device_before_ = 0;
};

}  // namespace ringattn::cuda
