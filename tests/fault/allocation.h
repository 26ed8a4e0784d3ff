// The global operator new of a test program: it counts what is in use, and asks the test before every allocation whether it fails.
// And what else a process has in use.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <iterator>

namespace ringattn::test {

extern std::atomic<std::int64_t> live_bytes;  // in use now

// The test program's own: whether the allocation that this thread is about to make fails.
bool allocation_fails() noexcept;

inline std::int64_t entries(const char* directory) {
  return std::distance(std::filesystem::directory_iterator(directory), std::filesystem::directory_iterator());
}
inline std::int64_t threads() { return entries("/proc/self/task"); }
inline std::int64_t descriptors() { return entries("/proc/self/fd"); }

}  // namespace ringattn::test
