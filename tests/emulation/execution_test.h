// Kernels of the tests, given as functions of no argument.
#pragma once

#include <gtest/gtest.h>

#include <functional>

#include "emulation/execution/execution.h"
#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/copy.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/matrix.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
#include "support/random.h"

namespace ringattn::cuda {

inline constexpr std::size_t test_shared_bytes = 4096;

inline void run_block(int threads, std::uint64_t seed, std::function<void()> kernel) {
  emulation::run({.name = "kernel",
                  .grid = {},
                  .threads = threads,
                  .shared_bytes = test_shared_bytes,
                  .stream = nullptr,
                  .accesses = {},
                  .kernel = std::move(kernel)},
                 {.seed = seed, .host_threads = 1});
}

}  // namespace ringattn::cuda
