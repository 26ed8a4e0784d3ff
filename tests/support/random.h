// How long a random test runs, and from which seed: printed by every test that draws anything.
//
//   RINGATTN_TEST_SEED=n    draws from n instead of 1
//   RINGATTN_TEST_BRIEF=1   a part of what is drawn: engines that the library does not choose here, or that are emulated
//   RINGATTN_TEST_FULL=1    full sweeps (./dev test full)
//   RINGATTN_TEST_CASE=n    that one case of a sweep, as its messages number them
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>

namespace ringattn::test {

// How slowly code runs, so that a sample has to do: under a sanitizer, or on an emulated processor (tests/CMakeLists.txt).
#if defined(RINGATTN_CROSS_BUILT)
constexpr int slowness = 60;
#elif defined(RINGATTN_SANITIZED)
constexpr int slowness = 20;
#else
constexpr int slowness = 1;
#endif

// A number from the environment, or `otherwise`.
inline std::uint64_t number_of(const char* name, std::uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::strtoull(value, nullptr, 10) : otherwise;
}

inline bool full() { return number_of("RINGATTN_TEST_FULL", 0) != 0; }
inline bool brief() { return number_of("RINGATTN_TEST_BRIEF", 0) != 0; }

// Whether case n of a sweep runs, as far as the environment has a say in it.
inline bool chosen(int n) {
  return number_of("RINGATTN_TEST_CASE", static_cast<std::uint64_t>(n)) == static_cast<std::uint64_t>(n);
}

// Repetitions of a random test: all of them in an ordinary build, a sample where it is slow.
inline int sample(int all) {
  const int share = slowness * (brief() ? 4 : 1);
  return full() ? all : (all + share - 1) / share;
}

// Whether what one thread does alone, case n of a table, runs: ThreadSanitizer has little to see there.
inline bool sampled_if_alone([[maybe_unused]] std::size_t n) {
#ifdef RINGATTN_THREAD_SANITIZER
  return full() || n % 8 == 0;
#else
  return true;
#endif
}

// Whether case n of a table runs: every one in an ordinary build, one in `every` under a sanitizer, or in three times as many.
inline bool sampled(int n, int every) { return slowness == 1 || full() || n % (every * slowness / 20) == 0; }

inline std::uint64_t seed() {
  const std::uint64_t seed = number_of("RINGATTN_TEST_SEED", 1);
  std::cout << "seed " << seed << " (repeat with RINGATTN_TEST_SEED=" << seed << ")\n";
  return seed;
}

}  // namespace ringattn::test
