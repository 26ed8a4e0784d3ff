// How long a random test runs, and from which seed: printed by every test that draws anything.
//
//   RINGATTN_TEST_SEED=n   draws from n instead of 1
//   RINGATTN_TEST_FULL=1   full sweeps (./dev test full)
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>

namespace ringattn::test {

// Whether code runs so slowly that a sample has to do: under a sanitizer, or emulated (tests/CMakeLists.txt).
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(RINGATTN_CROSS_BUILT)
constexpr bool slow = true;
#else
constexpr bool slow = false;
#endif

inline bool full() {
  const char* const value = std::getenv("RINGATTN_TEST_FULL");
  return value != nullptr && *value != '\0' && *value != '0';
}

// Repetitions of a random test: all of them in an ordinary build, a sample where it is slow.
inline int sample(int all) { return slow && !full() ? (all + 19) / 20 : all; }

// Whether case n of a table runs: every one in an ordinary build, one in `every` where it is slow.
inline bool sampled(int n, int every) { return !slow || full() || n % every == 0; }

inline std::uint64_t seed() {
  const char* const value = std::getenv("RINGATTN_TEST_SEED");
  const std::uint64_t seed = value != nullptr ? std::strtoull(value, nullptr, 10) : 1;
  std::cout << "seed " << seed << " (repeat with RINGATTN_TEST_SEED=" << seed << ")\n";
  return seed;
}

}  // namespace ringattn::test
