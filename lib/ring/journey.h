// What the forward and the backward pass share: chunks on their way, and one moment of sending, computing and waiting.
//
// Every chunk is computed from where it lies packed: the own one from a copy, made when its moment begins, the others from the
// buffer that they arrived in. Only where one rank has one chunk is there no copy, and the caller's shard is the chunk.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <span>

#include "core/memory.h"
#include "core/stopwatch.h"
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

// Calls f(in_shard, in_chunk, rows) for each stretch of the rank's own shard that a chunk of it is packed from.
template <class F>
void for_each_stretch(const Plan& plan, std::int64_t chunk, const Pair& shard, const Pair& packed, F&& f) {
  std::int64_t row = 0;
  for (const Stretch& stretch : plan.chunk_stretches(plan.rank(), chunk)) {
    f(Pair{shard.k.from_row(stretch.row), shard.v.from_row(stretch.row)},
      Pair{packed.k.from_row(row), packed.v.from_row(row)}, stretch.length);
    row += stretch.length;
  }
}

class Journey {
 public:
  Journey(const Plan& plan, const Machinery& on, Pair shard, Arena& arena) : plan_(plan), on_(on), shard_(shard) {
    buffers_ = take_buffers(arena, plan);
  }
  Journey(const Journey&) = delete;
  Journey& operator=(const Journey&) = delete;
  // However the pass ends, its memory is the caller's again.
  ~Journey() { on_.transport.abandon(); }

  using Buffers = std::array<std::byte*, 2>;
  static Buffers take_buffers(Arena& arena, const Plan& plan) {
    const std::int64_t bytes = plan.chunk_bytes(plan.longest_chunk());
    std::byte* const held = arena.take<std::byte>(plan.packs() ? bytes : 0);
    std::byte* const next = arena.take<std::byte>(plan.travels() ? bytes : 0);
    return {held, next};
  }

  // The chunk that this moment holds.
  Pair held(const Moment& m) const {
    if (!plan_.packs()) return shard_;
    return packed_pair(plan_.problem(), buffer(m.time), plan_.problem().dtype, plan_.chunk_rows(m.holds, m.chunk));
  }

  // Hands on what is held and opens the other buffer for what comes next.
  void begin_transfers(const Moment& m) {
    if (m.time == 0 && plan_.packs() && (m.computes || m.send_to != nobody)) pack(m);
    if (m.send_to != nobody)
      send(m.send_to, m, keys_and_values,
           {buffer(m.time), static_cast<std::size_t>(plan_.chunk_bytes(plan_.chunk_rows(m.holds, m.chunk)))});
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

  // Runs f, which computes. What is posted meanwhile is moved by whichever thread is the next to begin a part of the work;
  // what comes after the last part has begun is left to end_transfers.
  template <class F>
  void compute(const Moment& m, F&& f) {
    const Stopwatch stopwatch;
    const auto between = [&] { on_.transport.progress(); };
    on_.engine.interleave(std::ref(f), std::ref(between));
    statistics_.totals.steps += m.computes ? 1 : 0;
    statistics_.compute_seconds += stopwatch.seconds();
  }

  // Also the place where a broken or aborted group is noticed.
  void end_transfers() {
    const Stopwatch stopwatch;
    on_.transport.wait();
    statistics_.wait_seconds += stopwatch.seconds();
  }

  const Statistics& statistics() const { return statistics_; }

 private:
  std::byte* buffer(int time) const { return buffers_[static_cast<std::size_t>(time % 2)]; }
  void pack(const Moment& m) {
    const Problem& p = plan_.problem();
    for_each_stretch(plan_, m.chunk, shard_, held(m),
                     [&](const Pair& in_shard, const Pair& in_chunk, std::int64_t rows) {
                       on_.engine.copy(p, in_shard.k, in_chunk.k, {rows, p.num_heads_kv, p.head_dim});
                       on_.engine.copy(p, in_shard.v, in_chunk.v, {rows, p.num_heads_kv, p.head_dim_v});
                     });
  }
  // Distinct within a call; both ends compute it from the moment they share.
  std::uint64_t tag(const Moment& m, Kind kind) const {
    const std::uint64_t tour = static_cast<std::uint64_t>(m.chunk) * 2 + (m.direction > 0 ? 0 : 1);
    return (tour * static_cast<std::uint64_t>(plan_.world_size() + 2) + static_cast<std::uint64_t>(m.time)) * 4 + kind;
  }

  const Plan& plan_;
  const Machinery& on_;
  Pair shard_;
  Buffers buffers_{};
  Statistics statistics_;
};

}  // namespace ringattn
