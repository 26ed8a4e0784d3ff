// How fast memory is read, measured beside what reads it.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "benchmark/peaks.h"

namespace ringattn::benchmark {

// Bytes a second that some threads read at the same time, of each buffer a part each.
inline double measure_read_rate(std::initializer_list<std::span<const std::byte>> buffers, int threads) {
  double seconds = 0, bytes = 0;
  for (const std::span<const std::byte> buffer : buffers) {
    const std::size_t floats = buffer.size() / sizeof(float) / static_cast<std::size_t>(threads);
    std::vector<double> rates(static_cast<std::size_t>(threads));
    {
      std::vector<std::jthread> readers;
      for (std::size_t n = 0; n < rates.size(); ++n)
        readers.emplace_back([&, n] {
          rates[n] = ringattn_measure_read_rate(reinterpret_cast<const float*>(buffer.data()) + n * floats, floats);
        });
    }
    bytes += static_cast<double>(buffer.size());
    seconds += static_cast<double>(buffer.size()) / std::accumulate(rates.begin(), rates.end(), 0.0);
  }
  return bytes / seconds;
}

}  // namespace ringattn::benchmark
