// Emulated devices, for tests with a CPU engine in the place of the kernels (host_engine.cpp).
#include "emulation/emulated_machine.h"

namespace ringattn::test {

struct Machine::State {};

Machine::Machine(int devices) : devices_(devices), state_(std::make_unique<State>()) {}
Machine::~Machine() = default;

void Machine::reset(std::uint64_t seed) { reset_emulation(devices_, seed); }
void Machine::reset_late() { reset_emulation_late(devices_); }
void Machine::forbid_allocation() { forbid_emulated_allocation(); }
void Machine::expect_no_allocation() { expect_no_emulated_allocation(); }
void Machine::expect_clean() const { expect_clean_emulation(); }

}  // namespace ringattn::test
