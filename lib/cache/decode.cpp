#include "cache/decode.h"

#include <algorithm>
#include <span>
#include <vector>

#include "core/memory.h"

namespace ringattn {
namespace {

// Beyond all that a plan numbers.
constexpr std::uint64_t first_tag = std::uint64_t{1} << 62;

// What ranks send to each other between two waits.
class Exchange {
 public:
  Exchange(const Machinery& on, int rank, int world_size, Statistics& statistics)
      : on_(on), rank_(rank), world_size_(world_size), statistics_(statistics) {}

  // Begins to send sent(peer) to each other rank, and to take what that sends from it to received(peer).
  template <class Sent, class Received>
  void begin(std::uint64_t tag, Sent&& sent, Received&& received) {
    const Phase posting(on_.trace, "post");
    for (int distance = 1; distance < world_size_; ++distance) {
      const int to = (rank_ + distance) % world_size_, from = (rank_ + world_size_ - distance) % world_size_;
      const std::span<std::byte> there = received(from);
      const std::span<const std::byte> here = sent(to);
      if (!there.empty()) on_.transport.receive(from, tag, there);
      if (here.empty()) continue;
      on_.transport.send(to, tag, here);
      statistics_.totals.hops += 1;
      statistics_.totals.hop_bytes += static_cast<std::int64_t>(here.size());
    }
  }
  void end() {
    Phase phase(on_.trace, "wait");
    on_.transport.wait();
    statistics_.wait_seconds += phase.end();
  }

 private:
  const Machinery& on_;
  const int rank_, world_size_;
  Statistics& statistics_;
};

// Results of some rows, [count, dim], and the lse of each.
struct Rows {
  float* out = nullptr;
  float* lse = nullptr;
  std::int64_t count = 0;
  std::int64_t dim = 0;

  static Rows take(Arena& arena, std::int64_t count, std::int64_t dim) {
    Rows r{.count = count, .dim = dim};
    r.out = arena.take<float>(count * dim);
    r.lse = arena.take<float>(count);
    return r;
  }
  Rows part(std::int64_t begin, std::int64_t length) const { return {out + begin * dim, lse + begin, length, dim}; }
  std::span<float> outs() const { return {out, static_cast<std::size_t>(count * dim)}; }
  std::span<float> lses() const { return {lse, static_cast<std::size_t>(count)}; }
  Partial partial() const { return {packed_tensor(out, DType::float32, count, 1, dim), lse}; }
};

void copy(const Rows& from, const Rows& to) {
  std::ranges::copy(from.outs(), to.out);
  std::ranges::copy(from.lses(), to.lse);
}

// a = what rows have of the keys of both.
void merge(const Rows& a, const Rows& b) {
  merge_attention({a.count, 1, a.dim}, 1, a.partial(), b.partial(), a.partial().out, a.lse);
}

// All rows, of which every rank has what its own keys give, become those of the keys of all. `parts` has room for what each rank has of
// this rank's part of the rows.
void merge_over_ranks(const Machinery& on, int rank, int world_size, const Rows& all, const Rows& parts,
                      Statistics& statistics) {
  const Cut cut(all.count, world_size);
  const auto part_of = [&](int peer) { return all.part(cut.begin(peer), cut.length(peer)); };
  const auto brought_by = [&](int peer) { return parts.part(peer * cut.length(0), cut.length(rank)); };
  Exchange exchange(on, rank, world_size, statistics);
  const auto give = [&](std::uint64_t tag, auto sent, auto received) {  // rows
    exchange.begin(
        tag, [&](int peer) { return std::as_bytes(sent(peer).outs()); },
        [&](int peer) { return std::as_writable_bytes(received(peer).outs()); });
    exchange.begin(
        tag + 1, [&](int peer) { return std::as_bytes(sent(peer).lses()); },
        [&](int peer) { return std::as_writable_bytes(received(peer).lses()); });
    exchange.end();
  };
  give(first_tag, part_of, brought_by);
  Phase merging(on.trace, "merge");
  copy(part_of(rank), brought_by(rank));
  for (int peer = 1; peer < world_size; ++peer) merge(brought_by(0), brought_by(peer));
  copy(brought_by(0), part_of(rank));
  merging.end();
  give(
      first_tag + 2, [&](int) { return part_of(rank); }, part_of);
}

struct PassQMemory {
  std::byte* q = nullptr;  // packed
  Rows all;
  Rows parts;  // what each rank has of this rank's part of the rows
  float* sinks = nullptr;
  std::byte* scratch = nullptr;

  static PassQMemory take(Arena& arena, const Problem& p, int world_size, std::int64_t longest_piece,
                          const Engine& engine) {
    const std::int64_t rows = p.seqlen_q * p.num_heads_q;
    PassQMemory m;
    m.q = arena.take<std::byte>(rows * p.head_dim * size_of(p.dtype));
    m.all = Rows::take(arena, rows, p.head_dim_v);
    m.parts = Rows::take(arena, world_size == 1 ? 0 : world_size * Cut(rows, world_size).length(0), p.head_dim_v);
    if (p.num_sinks > 0) m.sinks = arena.take<float>(p.num_heads_q);
    m.scratch =
        arena.take<std::byte>(static_cast<std::int64_t>(engine.scratch_bytes(p, Pass::forward, longest_piece, true)));
    return m;
  }
};

// What ranks have merged and give to each other at the end: of each rank lse, [num_heads_q, rows], and out, [rows, num_heads_q, dim_v].
struct RingMemory {
  std::byte* q = nullptr;                     // of this rank's rows, packed
  std::vector<std::span<std::byte>> results;  // of each rank
  std::byte* workspace = nullptr;             // of the pass

  static RingMemory take(Arena& arena, const Plan& plan, const Engine& engine) {
    const Problem& p = plan.problem();
    RingMemory m;
    m.q = arena.take<std::byte>(plan.query_rows() * p.num_heads_q * p.head_dim * size_of(p.dtype));
    for (int rank = 0; rank < plan.world_size(); ++rank) {
      const std::int64_t bytes = plan.domain().rows(Side::query, rank) * p.num_heads_q *
                                 (size_of(DType::float32) + p.head_dim_v * size_of(p.out_dtype));
      m.results.emplace_back(arena.take<std::byte>(bytes), static_cast<std::size_t>(bytes));
    }
    m.workspace = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes(plan, engine)));
    return m;
  }
};

}  // namespace

Schedule choose_decoding(const Problem& asked, std::int64_t queries, std::int64_t keys, int world_size) {
  if (world_size == 1) return Schedule::pass_q;
  if (asked.schedule != Schedule::automatic) return asked.schedule;
  return queries * asked.num_heads_q < 2 * asked.num_heads_kv * keys ? Schedule::pass_q : Schedule::ring;
}

Decoding::Decoding(const Problem& asked, const PageBook& book, std::span<const std::int64_t> sequences, int rank)
    : asked_(asked), rank_(rank), world_size_(book.world_size()) {
  std::vector<std::int64_t> lengths;
  lengths.reserve(sequences.size());
  for (const std::int64_t id : sequences) lengths.push_back(book.sequence(id).length);
  Problem p = make_problem(asked, lengths);
  schedule_ = choose_decoding(asked, p.seqlen_q, p.seqlen_kv, world_size_);
  if (schedule_ == Schedule::pass_q) {
    p.out_dtype = DType::float32;
    if (rank > 0) p.num_sinks = 0;
  }
  problem_ = std::make_shared<const Problem>(std::move(p));
  keys_ = std::make_shared<const CachedKeys>(problem_, book, sequences);
  if (schedule_ == Schedule::ring)
    plan_ = std::make_unique<const Plan>(problem_, keys_, world_size_, rank_, Pass::forward);
}

std::size_t Decoding::workspace_bytes(const Engine& engine) const {
  Arena arena;
  if (plan_ != nullptr)
    RingMemory::take(arena, *plan_, engine);
  else
    PassQMemory::take(arena, *problem_, world_size_, asked_.seqlen_q, engine);
  return arena.size();
}

Statistics Decoding::run(const Machinery& on, const KvCache& cache, const DecodeCall& call) const {
  Statistics statistics = plan_ != nullptr ? pass_keys(on, cache, call) : pass_queries(on, cache, call);
  on.transport.wait();  // an abort while results were stored
  statistics.schedule = schedule_;
  return statistics;
}

Statistics Decoding::pass_queries(const Machinery& on, const KvCache& cache, const DecodeCall& call) const {
  const Problem& p = *problem_;
  const std::int64_t t = asked_.seqlen_q, queries = p.seqlen_q;
  Arena arena(call.workspace);
  const PassQMemory memory = PassQMemory::take(arena, p, world_size_, t, on.engine);
  Statistics statistics;

  Phase computing(on.trace, "compute");
  ForwardStep step;
  step.q = packed_tensor(memory.q, p.dtype, queries, p.num_heads_q, p.head_dim);
  on.engine.copy(asked_, call.q, packed_tensor(memory.q, p.dtype, t, p.num_heads_q, p.head_dim),
                 {t, p.num_heads_q, p.head_dim});
  step.k = cache.k();
  step.v = cache.v();
  step.query_rows = queries;
  step.key_rows = cache.shape().rows();
  step.out = {memory.all.out, DType::float32, 0, p.head_dim_v, queries * p.head_dim_v};
  step.lse = memory.all.lse;
  step.sinks = memory.sinks;
  step.scratch = memory.scratch;
  if (memory.sinks != nullptr) on.engine.combine_sinks(p, call.sinks, memory.sinks);
  std::vector<Piece> asking;
  std::vector<WorkItem> items;
  asking.reserve(p.documents.size());
  items.reserve(p.documents.size());
  for (const std::int64_t unit : keys_->units()) {
    asking.push_back({.unit = unit, .run = {0, t, t, t}, .first = 0, .length = t, .row = unit * t});
    WorkItem item = keys_->item(unit);
    item.queries = std::span(&asking.back(), 1);
    item.keys = keys_->pieces(rank_, unit);
    items.push_back(item);
  }
  step.items = items;
  on.engine.forward(p, step);
  statistics.totals.steps = keys_->rows(Side::key_value, rank_) > 0 ? 1 : 0;
  statistics.compute_seconds = computing.end();

  if (world_size_ > 1) merge_over_ranks(on, rank_, world_size_, memory.all, memory.parts, statistics);

  const Phase rounding(on.trace, "round");
  Tensor out = step.out, lse{memory.all.lse, DType::float32, t, 1, queries};
  out.batch_stride = t * p.head_dim_v;
  on.engine.round(asked_, out, call.out, {t, p.num_heads_q, p.head_dim_v}, false);
  if (call.lse != nullptr) on.engine.copy(asked_, lse, row_tensor(call.lse, t, p.num_heads_q), {t, p.num_heads_q, 1});
  return statistics;
}

Statistics Decoding::pass_keys(const Machinery& on, const KvCache& cache, const DecodeCall& call) const {
  const Problem& p = *problem_;
  const Problem one_entry;
  Arena arena(call.workspace);
  const RingMemory memory = RingMemory::take(arena, *plan_, on.engine);
  // Calls f(entry, first query of it, row of the rank's, so many).
  const auto for_each_piece = [&](int rank, auto&& f) {
    std::int64_t row = 0;
    for (const std::int64_t unit : keys_->units(Side::query, rank))
      for (const Piece& piece : keys_->share(Side::query, rank, unit)) {
        f(unit, piece.position(0), row, piece.length);
        row += piece.length;
      }
  };
  const auto rows_of = [&](int rank) { return keys_->rows(Side::query, rank); };
  const auto lse_of = [&](int rank) {
    return reinterpret_cast<float*>(memory.results[static_cast<std::size_t>(rank)].data());
  };
  const auto out_of = [&](int rank) {
    return packed_tensor(lse_of(rank) + rows_of(rank) * p.num_heads_q, p.out_dtype, rows_of(rank), p.num_heads_q,
                         p.head_dim_v);
  };

  ForwardCall pass;
  pass.q = packed_tensor(memory.q, p.dtype, rows_of(rank_), p.num_heads_q, p.head_dim);
  for_each_piece(rank_, [&](std::int64_t entry, std::int64_t query, std::int64_t row, std::int64_t count) {
    on.engine.copy(one_entry, call.q.from(entry, query, 0), pass.q.from_row(row), {count, p.num_heads_q, p.head_dim});
  });
  pass.k = cache.k();
  pass.v = cache.v();
  pass.out = out_of(rank_);
  pass.lse = lse_of(rank_);
  pass.sinks = call.sinks;
  pass.workspace = memory.workspace;
  Statistics statistics = run_forward(*plan_, on, pass);

  Exchange exchange(on, rank_, world_size_, statistics);
  const auto result_of = [&](int rank) { return memory.results[static_cast<std::size_t>(rank)]; };
  exchange.begin(
      first_tag, [&](int) { return result_of(rank_); }, result_of);
  exchange.end();
  const Phase rounding(on.trace, "round");
  for (int rank = 0; rank < world_size_; ++rank)
    for_each_piece(rank, [&](std::int64_t entry, std::int64_t query, std::int64_t row, std::int64_t count) {
      on.engine.copy(one_entry, out_of(rank).from_row(row), call.out.from(entry, query, 0),
                     {count, p.num_heads_q, p.head_dim_v});
      if (call.lse == nullptr) return;
      on.engine.copy(one_entry, row_tensor(lse_of(rank), rows_of(rank), p.num_heads_q).from_row(row),
                     row_tensor(call.lse, asked_.seqlen_q, p.num_heads_q).from(entry, query, 0),
                     {count, p.num_heads_q, 1});
    });
  return statistics;
}

}  // namespace ringattn
