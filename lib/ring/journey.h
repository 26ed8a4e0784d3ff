// What the forward and the backward pass share: chunks on their way, and one moment of sending, computing and waiting.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <span>

#include "core/memory.h"
#include "ring/ring.h"

namespace ringattn {

// K and V of a chunk, or their gradients, packed as they travel.
struct Pair {
  Tensor k, v;
};

inline Pair packed_pair(const Problem& p, void* data, DType dtype, std::int64_t rows) {
  const std::int64_t k_bytes = p.batch * rows * p.num_heads_kv * p.head_dim * size_of(dtype);
  return {packed_tensor(data, dtype, rows, p.num_heads_kv, p.head_dim),
          packed_tensor(static_cast<std::byte*>(data) + k_bytes, dtype, rows, p.num_heads_kv, p.head_dim_v)};
}

class Journey {
 public:
  using Clock = std::chrono::steady_clock;

  Journey(const Plan& plan, const Machinery& on, Pair shard, Arena& arena) : plan_(plan), on_(on), shard_(shard) {
    for (std::byte*& buffer : buffers_) buffer = take_buffer(arena, plan);
  }
  static std::byte* take_buffer(Arena& arena, const Plan& plan) {
    return arena.take<std::byte>(plan.travels() ? plan.chunk_bytes(plan.longest_chunk()) : 0);
  }

  // The chunk that this moment holds: the caller's own memory, or the buffer that it arrived in.
  Pair held(const Moment& m) const {
    if (m.holds == plan_.rank()) {
      const std::int64_t row = plan_.chunk_begin(m.holds, m.chunk);
      return {shard_.k.from_row(row), shard_.v.from_row(row)};
    }
    return travelling(m.time, plan_.chunk_rows(m.holds, m.chunk));
  }

  // Hands on what is held and opens the other buffer for what comes next. The own chunk is packed first.
  void begin_transfers(const Moment& m) {
    if (m.send_to != nobody) {
      const std::int64_t rows = plan_.chunk_rows(m.holds, m.chunk);
      if (m.time == 0) pack(held(m), travelling(0, rows), rows);
      send(m.send_to, m, keys_and_values, {buffer(m.time), static_cast<std::size_t>(plan_.chunk_bytes(rows))});
    }
    if (m.receive_from != nobody)
      receive(m.receive_from, m, keys_and_values,
              {buffer(m.time + 1),
               static_cast<std::size_t>(plan_.chunk_bytes(plan_.chunk_rows(m.receive_owner, m.chunk)))});
  }

  enum Kind : std::uint64_t { keys_and_values = 0, gradients = 1, gradients_home = 2 };

  void send(int peer, const Moment& m, Kind kind, std::span<const std::byte> data) {
    on_.transport.send(peer, tag(m, kind), data);
    statistics_.totals.hops += 1;
    statistics_.totals.hop_bytes += static_cast<std::int64_t>(data.size());
  }
  void receive(int peer, const Moment& m, Kind kind, std::span<std::byte> data) {
    on_.transport.receive(peer, tag(m, kind), data);
  }

  // Runs f on the rank's threads while transfers go on beside it.
  template <class F>
  void compute(const Moment& m, F&& f) {
    const auto begin = Clock::now();
    if (plan_.travels()) {
      on_.threads.run_both(f, [&] { on_.transport.progress(); });
    } else {
      f();
    }
    statistics_.totals.steps += m.computes ? 1 : 0;
    statistics_.compute_seconds += seconds_since(begin);
  }

  // Also the place where a broken or aborted group is noticed.
  void end_transfers() {
    const auto begin = Clock::now();
    on_.transport.wait();
    statistics_.wait_seconds += seconds_since(begin);
  }

  Statistics finish() {
    statistics_.total_seconds = seconds_since(begin_);
    return statistics_;
  }

 private:
  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  std::byte* buffer(int time) const { return buffers_[static_cast<std::size_t>(time % 2)]; }
  Pair travelling(int time, std::int64_t rows) const {
    return packed_pair(plan_.problem(), buffer(time), plan_.problem().dtype, rows);
  }
  void pack(const Pair& from, const Pair& to, std::int64_t rows) {
    const Problem& p = plan_.problem();
    on_.engine.copy(p, from.k, to.k, {rows, p.num_heads_kv, p.head_dim}, on_.threads);
    on_.engine.copy(p, from.v, to.v, {rows, p.num_heads_kv, p.head_dim_v}, on_.threads);
  }
  // Distinct within a call; both ends compute it from the moment they share.
  std::uint64_t tag(const Moment& m, Kind kind) const {
    const std::uint64_t tour = static_cast<std::uint64_t>(m.chunk) * 2 + (m.direction > 0 ? 0 : 1);
    return (tour * static_cast<std::uint64_t>(plan_.world_size() + 2) + static_cast<std::uint64_t>(m.time)) * 4 + kind;
  }

  const Plan& plan_;
  const Machinery& on_;
  Pair shard_;
  std::array<std::byte*, 2> buffers_{};
  Statistics statistics_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace ringattn
