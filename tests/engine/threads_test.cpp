// What engines rely on of the threads that they are given.
#include "core/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace ringattn {
namespace {

using Clock = std::chrono::steady_clock;

TEST(Threads, PartsBeginInAscendingOrder) {
  constexpr std::int64_t parts = 200;
  for (const int count : {1, 2, 5}) {
    Threads threads(count);
    std::vector<std::atomic<int>> begun(parts);
    std::atomic<int> late = 0;
    threads.for_each(parts, [&](std::int64_t index, int) {
      begun[static_cast<std::size_t>(index)] = 1;
      // Were the part before one that no thread has taken yet, this could wait for ever.
      const auto limit = Clock::now() + std::chrono::seconds(20);
      while (index > 0 && begun[static_cast<std::size_t>(index - 1)] == 0)
        if (Clock::now() > limit) {
          late = 1;
          break;
        } else {
          std::this_thread::yield();
        }
    });
    EXPECT_EQ(late, 0) << count << " threads";
    for (const auto& part : begun) EXPECT_EQ(part, 1);
  }
}

TEST(Threads, StopWhenCancelledOrGoOn) {
  for (const int count : {1, 3}) {
    Threads threads(count);
    threads.cancel();
    std::atomic<int> done = 0;
    const auto part = [&](std::int64_t, int) { ++done; };
    threads.for_each(50, part);
    EXPECT_EQ(done, 0);
    threads.for_each(50, part, OnCancel::go_on);
    EXPECT_EQ(done, 50);
  }
}

}  // namespace
}  // namespace ringattn
