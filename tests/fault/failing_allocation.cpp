#include "fault/failing_allocation.h"

#include <thread>

namespace ringattn::test {

bool allocation_fails() noexcept {
  if (allocations_left == 0 || --allocations_left > 0) return false;
  has_failed = true;
  std::this_thread::sleep_for(failing_takes);
  return true;
}

}  // namespace ringattn::test
