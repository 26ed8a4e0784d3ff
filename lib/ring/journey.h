// What the forward and the backward pass share: chunks on their way, and one moment of sending, computing and waiting.
//
// Every chunk is computed from where it lies packed: the own one from a copy, made when its moment begins, the others from the
// slot that they arrived in. Only where one rank has one chunk is there no copy, and the caller's shard is the chunk.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <span>

#include "core/memory.h"
#include "ring/ring.h"

namespace ringattn {

inline Tensor rows_of(const Tensor& shard, const Stretch& stretch) {
  return shard.from_row(stretch.row).every(stretch.step, 1);
}

// K and V of a shard or of a chunk, and their keys' bias where the problem has one; a chunk's are packed as they travel.
struct Chunk {
  Tensor k, v;
  Tensor key_bias;  // [batch, rows, 1, 1] fp32

  Chunk from_row(std::int64_t row) const { return {k.from_row(row), v.from_row(row), key_bias.from_row(row)}; }
  Chunk rows_of(const Stretch& s) const {
    return {ringattn::rows_of(k, s), ringattn::rows_of(v, s), ringattn::rows_of(key_bias, s)};
  }
};

// Gradients of K and V, in the same way.
struct Pair {
  Tensor k, v;

  Pair from_row(std::int64_t row) const { return {k.from_row(row), v.from_row(row)}; }
  Pair rows_of(const Stretch& s) const { return {ringattn::rows_of(k, s), ringattn::rows_of(v, s)}; }
};

inline Pair packed_pair(const Problem& p, void* data, DType dtype, std::int64_t rows) {
  const std::int64_t k_bytes = p.batch * rows * p.num_heads_kv * p.head_dim * size_of(dtype);
  return {packed_tensor(data, dtype, rows, p.num_heads_kv, p.head_dim),
          packed_tensor(static_cast<std::byte*>(data) + k_bytes, dtype, rows, p.num_heads_kv, p.head_dim_v)};
}

// Calls f(in_shard, in_chunk, rows) for each stretch of the rank's own shard that a chunk of it is packed from.
template <class Tensors, class F>
void for_each_stretch(const Plan& plan, std::int64_t chunk, const Tensors& shard, const Tensors& packed, F&& f) {
  std::int64_t row = 0;
  for (const Stretch& stretch : plan.chunk_stretches(plan.rank(), chunk)) {
    f(shard.rows_of(stretch), packed.from_row(row), stretch.length);
    row += stretch.length;
  }
}

// Buffers of one size, one behind the other.
class Slots {
 public:
  static Slots take(Arena& arena, int count, std::int64_t bytes) {
    Arena one;
    one.take<std::byte>(bytes);
    Slots slots;
    slots.size_ = static_cast<std::int64_t>(one.size());
    slots.data_ = arena.take<std::byte>(count * slots.size_);
    return slots;
  }
  std::byte* operator[](int slot) const { return data_ + slot * size_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
};

class Journey {
 public:
  // `moments_before`: of the same call, in other plans.
  Journey(const Plan& plan, const Machinery& on, std::int64_t moments_before, const Slots& chunks,
          const Slots& gradients)
      : plan_(plan), on_(on), moments_before_(moments_before), chunks_(chunks), gradients_(gradients) {}
  Journey(const Journey&) = delete;
  Journey& operator=(const Journey&) = delete;
  // However the pass ends, its memory is the caller's again.
  ~Journey() { on_.transport.abandon(); }

  // `shard`: that of this rank in the part, which is a problem of its own. It outlives the part's moments.
  void begin_part(std::int64_t part, const Problem& problem, const Chunk& shard) {
    part_ = part;
    problem_ = &problem;
    shard_ = shard;
  }

  // The chunk that this moment holds.
  Chunk held(const Moment& m) const {
    if (!plan_.packs()) return shard_;
    std::byte* const data = chunks_[m.slot];
    const std::int64_t rows = plan_.chunk_rows(m.holds, m.chunk);
    const Pair pair = packed_pair(*problem_, data, problem_->dtype, rows);
    return {pair.k, pair.v,
            problem_->has_key_bias ? key_bias_tensor(data + plan_.key_bias_offset(rows), rows) : Tensor{}};
  }
  // Gradients of some rank's chunk.
  Pair gradients(int slot, int owner, std::int64_t chunk) const {
    return packed_pair(*problem_, gradients_[slot], DType::float32, plan_.chunk_rows(owner, chunk));
  }

  // Packs what is held, if it is the own chunk, and begins all transfers of the moment.
  void begin_transfers(const Moment& m) {
    if (m.packs) {
      const Phase phase(on_.trace, "pack");
      pack(m);
    }
    if (plan_.transfers(m).empty()) return;
    const Phase phase(on_.trace, "post");
    for (const Transfer& transfer : plan_.transfers(m)) {
      const std::span<std::byte> data = bytes_of(transfer, m);
      if (!transfer.sends) {
        on_.transport.receive(transfer.peer, tag(m, transfer), data);
        continue;
      }
      on_.transport.send(transfer.peer, tag(m, transfer), data);
      statistics_.totals.hops += 1;
      statistics_.totals.hop_bytes += static_cast<std::int64_t>(data.size());
    }
  }

  // Runs f(), which computes, while what is posted is moved.
  template <class F>
  void compute(F&& f) {
    const auto between = [&] { on_.transport.progress(); };
    on_.engine.interleave(std::ref(f), std::ref(between));
  }
  // Runs f(work), which computes with what this rank sees of the chunk held, and with `all_rows` begins or ends the others, too. What is posted meanwhile is moved by whichever thread is the next to begin a part of the work;
  // what comes after the last part has begun is left to end_transfers.
  template <class F>
  void compute(const Moment& m, bool all_rows, F&& f) {
    Phase phase(on_.trace, "compute");
    const StepItems work = m.computes || all_rows ? plan_.items(m, all_rows) : StepItems{};
    compute([&] { f(std::span(work.items)); });
    statistics_.totals.steps += m.computes ? 1 : 0;
    statistics_.compute_seconds += phase.end();
  }

  // Waits for them. Also the place where a broken or aborted group is noticed.
  void end_transfers() {
    Phase phase(on_.trace, "wait");
    on_.transport.wait();
    statistics_.wait_seconds += phase.end();
  }
  // And adds up the gradients that have arrived.
  void end_transfers(const Moment& m) {
    end_transfers();
    const std::span<const Addition> additions = plan_.additions(m);
    if (additions.empty()) return;
    const Phase phase(on_.trace, "add gradients");
    for (const Addition& a : additions)
      on_.engine.add(reinterpret_cast<const float*>(gradients_[a.from]), reinterpret_cast<float*>(gradients_[a.to]),
                     plan_.gradient_bytes(plan_.chunk_rows(a.owner, m.chunk)) / size_of(DType::float32));
  }

  const Statistics& statistics() const { return statistics_; }

 private:
  void pack(const Moment& m) {
    const Problem& p = *problem_;
    for_each_stretch(plan_, m.chunk, shard_, held(m),
                     [&](const Chunk& in_shard, const Chunk& in_chunk, std::int64_t rows) {
                       on_.engine.copy(p, in_shard.k, in_chunk.k, {rows, p.num_heads_kv, p.head_dim});
                       on_.engine.copy(p, in_shard.v, in_chunk.v, {rows, p.num_heads_kv, p.head_dim_v});
                       if (p.has_key_bias) on_.engine.copy(p, in_shard.key_bias, in_chunk.key_bias, {rows, 1, 1});
                     });
  }
  std::span<std::byte> bytes_of(const Transfer& transfer, const Moment& m) const {
    const std::int64_t rows = plan_.chunk_rows(transfer.owner, m.chunk);
    const bool is_gradient = transfer.kind == Transfer::gradients;
    const std::int64_t size = is_gradient ? plan_.gradient_bytes(rows) : plan_.chunk_bytes(rows);
    return {(is_gradient ? gradients_ : chunks_)[transfer.slot], static_cast<std::size_t>(size)};
  }
  // Distinct within a call, between two ranks; both ends compute it from the moment they share.
  std::uint64_t tag(const Moment& m, const Transfer& transfer) const {
    const auto index = moments_before_ + (&m - plan_.moments().data()) + part_ * std::ssize(plan_.moments());
    return static_cast<std::uint64_t>(index) * 2 + transfer.kind;
  }

  const Plan& plan_;
  const Machinery& on_;
  const std::int64_t moments_before_;
  const Slots chunks_, gradients_;
  std::int64_t part_ = 0;
  const Problem* problem_ = nullptr;
  Chunk shard_;
  Statistics statistics_;
};

}  // namespace ringattn
