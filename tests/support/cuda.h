// Small change of programs that use CUDA, emulated or not.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

namespace ringattn::test {

inline void ok(cudaError_t error) { EXPECT_EQ(error, cudaSuccess) << cudaGetErrorName(error); }

inline cudaStream_t make_stream(int device, unsigned flags = cudaStreamNonBlocking) {
  cudaStream_t stream = nullptr;
  ok(cudaSetDevice(device));
  ok(cudaStreamCreateWithPriority(&stream, flags, 0));
  return stream;
}
inline cudaEvent_t make_event(int device) {
  cudaEvent_t event = nullptr;
  ok(cudaSetDevice(device));
  ok(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

}  // namespace ringattn::test
