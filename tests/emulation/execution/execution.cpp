#include "emulation/execution/execution.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>

#include "emulation/execution/block.h"

namespace emulation {
namespace {

constexpr int most_threads = 1024;
constexpr std::size_t most_shared_bytes = 227 * 1024;  // compute capability 9.0

std::function<int(const Launch&)> launcher;
Options options_at_once;

void check(const Launch& launch) {
  const auto refuse = [&](const std::string& what) {
    throw Fault(Wrong::launch, std::string(launch.name) + ": " + what);
  };
  if (launch.threads < 32 || launch.threads > most_threads || launch.threads % 32 != 0)
    refuse(std::to_string(launch.threads) + " threads; must be a multiple of 32, at most " +
           std::to_string(most_threads));
  if (launch.shared_bytes > most_shared_bytes)
    refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory; at most " +
           std::to_string(most_shared_bytes));
  if (launch.grid.x < 1 || launch.grid.y < 1 || launch.grid.z < 1) refuse("an empty grid");
}

}  // namespace

const char* name(Wrong wrong) {
  switch (wrong) {
    case Wrong::launch:
      return "launch";
    case Wrong::out_of_bounds:
      return "out of bounds";
    case Wrong::misaligned:
      return "misaligned";
    case Wrong::unwritten:
      return "unwritten";
    case Wrong::race:
      return "race";
    case Wrong::not_waited:
      return "not waited for";
    case Wrong::divergence:
      return "divergence";
    case Wrong::barrier:
      return "barrier";
    case Wrong::argument:
      return "argument";
  }
  return "";
}

void run(const Launch& launch, const Options& options) {
  check(launch);
  const Index grid = launch.grid;
  std::vector<std::int64_t> order(static_cast<std::size_t>(grid.x) * static_cast<std::size_t>(grid.y) *
                                  static_cast<std::size_t>(grid.z));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  Random random(options.seed);
  std::shuffle(order.begin(), order.end(), random);

  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      Block block(launch, options.seed);
      // Relaxed, so that ThreadSanitizer takes no two blocks to be ordered by it.
      for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < order.size();) {
        const std::int64_t b = order[i];
        block.run({static_cast<int>(b % grid.x), static_cast<int>(b / grid.x % grid.y),
                   static_cast<int>(b / grid.x / grid.y)});
      }
    } catch (...) {
      next.store(order.size(), std::memory_order_relaxed);
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < options.host_threads; ++i) others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

int launch(const Launch& launch) {
  if (launcher) return launcher(launch);
  run(launch, options_at_once);
  return 0;
}
void set_launcher(std::function<int(const Launch&)> to) { launcher = std::move(to); }
void set_options(const Options& options) { options_at_once = options; }

}  // namespace emulation
