// The GPUs of a test of the CUDA backend: emulated (tests/emulation/host_machine.cpp, with a CPU engine; kernel_machine.cpp, with kernels),
// or those that there are (tests/gpu/machine.cpp). The same tests are linked with either.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "ringattn/ringattn.h"

namespace ringattn::test {

class Machine {
 public:
  // Of so many devices, or of as many as there are, at least 1.
  explicit Machine(int devices);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine();

  int devices() const { return devices_; }
  // Over NCCL each rank has a device of its own; others share them.
  bool has_room_for(std::int32_t transport, std::int32_t world_size) const {
    return transport != RA_TRANSPORT_NCCL || world_size <= devices_;
  }

  // A new emulated machine, whose work runs in an order drawn from the seed. Nothing may be left of the old one.
  void reset(std::uint64_t seed);
  // The same, and nothing runs before somebody waits for it.
  void reset_late();
  // From now on device memory and pinned memory are as they are; the second says whether they were.
  void forbid_allocation();
  void expect_no_allocation();
  // Nothing was done that must not be, and nothing is left.
  void expect_clean() const;

 private:
  struct State;
  int devices_;
  std::unique_ptr<State> state_;
};

#define RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, world_size) \
  if (!(machine).has_room_for(transport, world_size))                 \
  GTEST_SKIP() << world_size << " ranks over NCCL need as many devices; there are " << (machine).devices()

}  // namespace ringattn::test
