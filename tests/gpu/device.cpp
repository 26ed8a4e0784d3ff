// Kernels run on the GPU, with memory of the host that it sees too: pinned, and so at the same address. Slow, and exact.
#include "support/device.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <new>

namespace ringattn::test::device {

bool is_emulated() { return false; }

Memory::Memory(std::size_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes > 0 ? bytes : 1) != cudaSuccess) throw std::bad_alloc();
  bytes_ = {static_cast<std::byte*>(data), bytes};
  std::memset(data, 0xff, bytes);
}

Memory::~Memory() {
  if (bytes_.data() == nullptr) return;
  cudaDeviceSynchronize();
  cudaFreeHost(bytes_.data());
}

Launches::Launches(reference::Random& random, bool limited)
    : num_sms_(limited && reference::draw(random, 0, 1) == 0 ? static_cast<int>(reference::draw(random, 1, 5)) : 0) {}

Launches::~Launches() { finish(); }

void finish() {
  const cudaError_t error = cudaDeviceSynchronize();
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

}  // namespace ringattn::test::device
