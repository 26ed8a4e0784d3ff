// Fibres: stacks that one host thread runs in turn.
//
// Boost.Context knows of AddressSanitizer only when built for it with ucontext, which Debian's is not, and ucontext makes a system
// call at every switch; so the switch is ten instructions of our own on x86-64, and ucontext elsewhere.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

class Fibre {
 public:
  Fibre();  // of the host thread that makes it
  // Runs run(argument) when first switched to. What that returns is switched to last.
  Fibre(Fibre* (*run)(void* argument), void* argument);
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  ~Fibre();  // has returned, or has never begun

  // From this one, which is running. Returns when something switches back.
  void switch_to(Fibre& next) { leave_to(next, false); }

 private:
  void leave_to(Fibre& next, bool for_ever);
  void arrive();
  static void begin();

  Fibre* (*run_)(void* argument) = nullptr;
  void* argument_ = nullptr;
  std::byte* mapping_ = nullptr;  // a guard page and the stack
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
  const void* stack_ = nullptr;  // what the sanitizers want to know
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace emulation
