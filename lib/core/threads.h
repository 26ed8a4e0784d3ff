// The threads of one context: a oneTBB arena and the flag that calls its work off.
#pragma once

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <atomic>
#include <cstdint>

namespace ringattn {

class Threads {
 public:
  explicit Threads(int count) : arena_(count) {}
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return arena_.max_concurrency(); }

  // Calls f(index, slot) for every index < count, in any order, on any thread. `slot` < count() is the thread's own while
  // f runs: it names its scratch memory. Returns early, with work left undone, once cancelled.
  template <class F>
  void for_each(std::int64_t count, F&& f) {
    arena_.execute([&] {
      tbb::parallel_for(
          std::int64_t{0}, count,
          [&](std::int64_t index) {
            if (!cancelled()) f(index, tbb::this_task_arena::current_thread_index());
          },
          tbb::simple_partitioner());
    });
  }

  // Runs f() on these threads; what it starts with for_each meanwhile runs beside it.
  template <class F>
  void execute(F&& f) {
    arena_.execute(f);
  }

  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  tbb::task_arena arena_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace ringattn
