// Machine (support/machine.h) as an emulated one: all but what its devices compute with.
#pragma once

#include "emulation/program.h"
#include "support/machine.h"

namespace ringattn::test {

inline void reset_emulation(int devices, std::uint64_t seed) { emulation::reset({.devices = devices, .seed = seed}); }
inline void reset_emulation_late(int devices) {
  emulation::reset({.devices = devices, .order = emulation::Order::late});
}
inline void forbid_emulated_allocation() {
  for (const char* function : {"cudaMalloc", "cudaMallocHost"})
    emulation::fail_call(function, 1, cudaErrorMemoryAllocation);
}
inline void expect_no_emulated_allocation() { EXPECT_EQ(emulation::take_back_failures(), 2); }
inline void expect_clean_emulation() {
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

}  // namespace ringattn::test
