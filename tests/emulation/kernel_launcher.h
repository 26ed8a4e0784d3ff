// Kernels as operations of emulated devices: what launch.h is given is submitted to its stream, and runs in the order that streams and
// events leave open.
#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "emulation.h"
#include "emulation/execution/execution.h"

namespace ringattn::test {

// While it exists.
class KernelLauncher {
 public:
  KernelLauncher() {
    emulation::set_launcher([this](const emulation::Launch& launch) {
      {
        const std::lock_guard lock(mutex_);
        largest_grid_ = std::max(largest_grid_, launch.grid.x * launch.grid.y * launch.grid.z);
      }
      return static_cast<int>(emulation::submit(launch.stream, launch.name, launch.accesses, [this, launch] {
        try {
          emulation::run(launch, {.seed = 1});
        } catch (const std::exception& fault) {
          const std::lock_guard lock(mutex_);
          faults_.push_back(fault.what());
        }
      }));
    });
  }
  KernelLauncher(const KernelLauncher&) = delete;
  KernelLauncher& operator=(const KernelLauncher&) = delete;
  ~KernelLauncher() { emulation::set_launcher({}); }

  // Blocks of the largest launch so far.
  int largest_grid() const {
    const std::lock_guard lock(mutex_);
    return largest_grid_;
  }
  // What kernels did that they must not.
  std::vector<std::string> faults() const {
    const std::lock_guard lock(mutex_);
    return faults_;
  }

 private:
  mutable std::mutex mutex_;
  int largest_grid_ = 0;
  std::vector<std::string> faults_;
};

}  // namespace ringattn::test
