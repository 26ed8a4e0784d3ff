// The GPUs of this machine: what runs on them runs in one order, and nobody watches but compute-sanitizer.
#include "support/machine.h"

#include <algorithm>

#include "support/cuda.h"

namespace ringattn::test {

struct Machine::State {
  std::size_t free_bytes = 0;
};

namespace {

int count_devices() {
  int count = 0;
  ok(cudaGetDeviceCount(&count));
  return std::max(count, 1);
}
std::size_t free_bytes() {
  std::size_t free = 0, all = 0;
  ok(cudaMemGetInfo(&free, &all));
  return free;
}

}  // namespace

Machine::Machine(int devices) : devices_(std::min(devices, count_devices())), state_(std::make_unique<State>()) {}
Machine::~Machine() = default;

void Machine::reset(std::uint64_t) {}
void Machine::reset_late() {}
void Machine::forbid_allocation() { state_->free_bytes = free_bytes(); }
void Machine::expect_no_allocation() { EXPECT_EQ(free_bytes(), state_->free_bytes); }
void Machine::expect_clean() const {
  for (int device = 0; device < devices_; ++device) {
    ok(cudaSetDevice(device));
    ok(cudaDeviceSynchronize());
  }
  ok(cudaGetLastError());
}

}  // namespace ringattn::test
