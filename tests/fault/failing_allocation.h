// A thread whose n-th allocation (allocation.h) from now on fails.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>

#include "fault/allocation.h"
#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"

namespace ringattn::test {

constexpr bool kSanitized = slowness > 1;
constexpr std::chrono::milliseconds kAtOnce{kSanitized ? 5000 : 1000};
constexpr std::int64_t kMostAllocations = 400;

inline thread_local std::int64_t allocations_left = 0;  // until the one that fails; 0: not armed
inline thread_local bool has_failed = false;
inline thread_local std::chrono::milliseconds failing_takes{0};

// call(), in which the n-th allocation fails, if there are as many.
template <class Call>
std::int32_t with_failing_allocation(std::int64_t n, Call&& call) {
  has_failed = false;
  allocations_left = n;
  const std::int32_t status = call();
  allocations_left = 0;
  return status;
}

// Makes the call, of which each allocation fails once, until it succeeds: it has that many. after() follows each time.
template <class Call, class After>
std::int64_t fail_each_allocation(const char* name, const Error& error, Call&& call, After&& after) {
  for (std::int64_t n = 1; n <= kMostAllocations; ++n) {
    const std::int32_t status = with_failing_allocation(n, call);
    EXPECT_EQ(status, has_failed ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_SUCCESS)
        << name << ", allocation " << n << ": " << error;
    if (!has_failed || testing::Test::HasFailure()) return n - 1;
    after();
  }
  ADD_FAILURE() << name << " still allocates";
  return kMostAllocations;
}

}  // namespace ringattn::test
