#include "core/threads.h"

#include <oneapi/tbb/parallel_for.h>

namespace ringattn {

Threads::Threads(int count) : arena_(count) {}
Threads::~Threads() = default;

int Threads::count() const { return arena_.max_concurrency(); }

void Threads::run(std::int64_t count, const Work& work) {
  if (count <= 1 || this->count() == 1) {  // a microsecond less
    for (std::int64_t index = 0; index < count; ++index) work(index, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};  // oneTBB hands out its own indices in any order
  arena_.execute([&] {
    tbb::parallel_for(
        std::int64_t{0}, count,
        [&](std::int64_t) {
          work(next.fetch_add(1, std::memory_order_relaxed), tbb::this_task_arena::current_thread_index());
        },
        tbb::simple_partitioner());
  });
}

}  // namespace ringattn
