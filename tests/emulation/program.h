// What the tests of the emulated machine write their small programs with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include "nccl.h"
#include "support/cuda.h"
#include "support/random.h"

namespace ringattn::test {

using cuda::Access;
using emulation::Rule;

inline void ok(ncclResult_t result) { EXPECT_EQ(result, ncclSuccess) << ncclGetErrorString(result); }

constexpr std::size_t length = 64;  // elements of every buffer
constexpr std::size_t bytes = length * sizeof(std::uint32_t);
using Buffer = std::uint32_t*;

inline Access reads(const void* data, std::size_t count = bytes) { return {data, count, false}; }
inline Access writes(const void* data, std::size_t count = bytes) { return {data, count, true}; }

inline Buffer make_buffer(int device, std::size_t count = bytes) {
  Buffer buffer = nullptr;
  ok(cudaSetDevice(device));
  ok(cudaMalloc(&buffer, count));
  return buffer;
}
inline Buffer make_pinned() {
  Buffer buffer = nullptr;
  ok(cudaMallocHost(&buffer, bytes));
  return buffer;
}

inline void launch(cudaStream_t stream, const char* name, std::initializer_list<Access> accesses,
                   std::function<void()> function) {
  int device = 0;
  ok(cudaStreamGetDevice(stream, &device));
  ok(cudaSetDevice(device));
  ok(emulation::submit(stream, name, {accesses.begin(), accesses.size()}, std::move(function)));
}
inline void fill(cudaStream_t stream, const char* name, Buffer to, std::uint32_t value, std::size_t count = length) {
  launch(stream, name, {writes(to, count * 4)}, [=] { std::fill_n(to, count, value); });
}
inline void add_one(cudaStream_t stream, const char* name, Buffer from, Buffer to) {
  launch(stream, name, {reads(from), writes(to)},
         [=] { std::transform(from, from + length, to, [](auto x) { return x + 1; }); });
}
inline void order(cudaStream_t before, cudaStream_t after, cudaEvent_t event) {
  ok(cudaEventRecord(event, before));
  ok(cudaStreamWaitEvent(after, event, 0));
}
// Whether a buffer has this value everywhere, as the host may see it now.
inline bool holds(Buffer buffer, std::uint32_t value, std::size_t count = length) {
  emulation::host_read(buffer, count * 4);
  return std::all_of(buffer, buffer + count, [&](std::uint32_t x) { return x == value; });
}

// Those of a program that is expected to have none.
inline void expect_no_violations(const char* what = "") {
  for (const emulation::Violation& violation : emulation::violations()) ADD_FAILURE() << what << ": " << violation;
}

}  // namespace ringattn::test
