// Whether other programs leave the processors alone. On a shared machine they come and go, on one processor more than on the
// other; then nothing that is measured says much, least of all what two sides make of unequal processors.
#pragma once

#include <sched.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "benchmark/peaks.h"

namespace ringattn::benchmark {

// Instructions a second of the slowest processor that this program may use, all of them at once: a millisecond.
inline double measure_slowest_processor() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::vector<double> rates(CPU_SETSIZE, 0);
  {
    std::vector<std::jthread> threads;
    for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      threads.emplace_back([cpu, &rates] {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        ringattn_measure_instruction_rate();  // the thread has only just come here
        rates[cpu] = ringattn_measure_instruction_rate();
      });
    }
  }
  std::erase(rates, 0);
  return *std::min_element(rates.begin(), rates.end());
}

// Moments of a run, and which of them were quiet: the slowest processor was at least nine tenths as fast as it ever was.
class Quiet {
 public:
  double look() {
    const double rate = measure_slowest_processor();
    best_ = std::max(best_, rate);
    return rate;
  }
  bool was_quiet(double rate) const { return rate >= 0.9 * best_; }

 private:
  double best_ = 0;
};

}  // namespace ringattn::benchmark
