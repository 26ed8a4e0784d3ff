// Emulated devices, for tests with the kernels, emulated too.
#include "emulation/emulated_machine.h"
#include "emulation/kernel_launcher.h"

namespace ringattn::test {

struct Machine::State {
  KernelLauncher launcher;
};

Machine::Machine(int devices) : devices_(devices), state_(std::make_unique<State>()) {}
Machine::~Machine() = default;

void Machine::reset(std::uint64_t seed) { reset_emulation(devices_, seed); }
void Machine::reset_late() { reset_emulation_late(devices_); }
void Machine::forbid_allocation() { forbid_emulated_allocation(); }
void Machine::expect_no_allocation() { expect_no_emulated_allocation(); }
void Machine::expect_clean() const {
  expect_clean_emulation();
  EXPECT_EQ(state_->launcher.faults(), std::vector<std::string>{});
}

}  // namespace ringattn::test
