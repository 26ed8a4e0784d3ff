#include "ring/all_reduce.h"

#include <algorithm>
#include <span>

namespace ringattn {

void all_reduce(const Machinery& on, int rank, int world_size, float* data, std::int64_t count, float* room,
                std::uint64_t first_tag, Statistics& statistics) {
  if (world_size == 1 || count == 0) return;
  const std::int64_t size = all_reduce_room(count, world_size);
  const auto part = [&](int step) {  // that of the rank so many behind this one on the ring
    const std::int64_t begin = std::min((rank - step % world_size + world_size) % world_size * size, count);
    return std::span(data + begin, static_cast<std::size_t>(std::min(size, count - begin)));
  };
  const int next = (rank + 1) % world_size, previous = (rank + world_size - 1) % world_size;
  // In each step a rank sends on what it got in the last one: first to be added to, then to be kept.
  for (int step = 0; step < 2 * (world_size - 1); ++step) {
    const bool sums = step < world_size - 1;
    const int turn = sums ? step : step - world_size;  // the whole sums begin with the part of the rank ahead
    const std::span<float> sent = part(turn + world_size), got = part(turn + 1 + world_size);
    const std::span<float> to = sums ? std::span(room, got.size()) : got;
    const std::uint64_t tag = first_tag + static_cast<std::uint64_t>(step);
    Phase phase(on.trace, "wait");
    if (!to.empty()) on.transport.receive(previous, tag, std::as_writable_bytes(to));
    if (!sent.empty()) {
      on.transport.send(next, tag, std::as_bytes(sent));
      statistics.totals.hops += 1;
      statistics.totals.hop_bytes += static_cast<std::int64_t>(sent.size_bytes());
    }
    on.transport.wait();
    statistics.wait_seconds += phase.end();
    if (!sums) continue;
    const Phase adding(on.trace, "add gradients");
    on.engine.add(room, got.data(), static_cast<std::int64_t>(got.size()));
  }
}

}  // namespace ringattn
