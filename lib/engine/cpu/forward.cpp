// Forward on a CPU: online softmax over tiles (Dao et al. 2022, "FlashAttention", Algorithm 1).
//
//   for each unit in parallel:  the query rows of one stretch of one piece, in all heads of a group, and the keys of one split
//     pack Q, and the running (O, max, sum) or their beginning: nothing, or sinks, which count as one key without a value
//     for each block of keys that any row sees:
//       pack K (as columns) and V once for all rows and heads of the unit, or where rows are few read them where they lie
//       S = Q K^T;  P = softmax(S), running;  O = O * factor + P V         the instruction set's own loop (tiles.h)
//     unless there are other splits, of keys that few rows see:
//       unpack the running (O, max, sum), or divide, round and write out and lse
//   for each such group of rows in parallel:  merge what the splits have, in their order, and do the same
//
// A row's arithmetic does not depend on which rows share its tile or unit: hidden keys add zeros, sums run over keys in
// ascending order, and blocks begin at fixed places of a piece. So results do not depend on threads or on how units are cut.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/memory.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/row_state.h"
#include "engine/cpu/scratch.h"

namespace ringattn::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// exp(max - largest), rounded once.
float shrink(float max, float largest) {
  return max == largest ? 1.0F : static_cast<float>(std::exp(static_cast<double>(max) - static_cast<double>(largest)));
}

// Query rows of one item that one thread attends at a time to one split of the keys.
struct Unit {
  std::int32_t item;
  std::int32_t piece;  // of the item's queries
  std::int64_t first;  // within the piece
  Interval keys;       // of the item, counted through its pieces
  std::int32_t rows;
  float cost;          // (query, key) pairs, roughly
  std::int32_t split;  // of so many
  std::int32_t splits;
};

// The keys of an item that a piece of queries sees, from the first to the last, counted through its pieces.
Interval find_keys(const Problem& problem, const WorkItem& item, const Piece& queries) {
  Interval all;
  std::int64_t before = 0;
  for (const Piece& keys : item.keys) {
    const std::int64_t lo = item.visible(queries, 0, keys, problem.longest_kv()).lo;
    const std::int64_t hi = item.visible(queries, queries.length - 1, keys, problem.longest_kv()).hi;
    if (lo < hi) all = {all.empty() ? before + lo : all.lo, before + hi};
    before += keys.length;
  }
  return all;
}

// Rows of a piece of queries that may see any key of the item, as stretches that do not touch. Between the first and the last step the
// others need not be: under a window they are most of a long shard.
void list_seeing_rows(const Problem& problem, const WorkItem& item, const Piece& queries, std::vector<Interval>& rows) {
  rows.clear();
  for (const Piece& keys : item.keys) {
    const std::int64_t end = keys.count_below(item.positions_before(problem.longest_kv()));
    if (end == 0) continue;
    const std::int64_t lo = queries.count_below(keys.position(0) - item.band.upper),
                       hi = queries.count_below(keys.position(end - 1) - item.band.lower + 1);
    if (lo < hi) rows.push_back({lo, hi});
  }
  std::sort(rows.begin(), rows.end(), [](const Interval& a, const Interval& b) { return a.lo < b.lo; });
  std::size_t count = 0;
  for (const Interval& next : rows)
    if (count > 0 && next.lo <= rows[count - 1].hi)
      rows[count - 1].hi = std::max(rows[count - 1].hi, next.hi);
    else
      rows[count++] = next;
  rows.resize(count);
}

// Keys between the first and the last that rows of a stretch see, times the rows.
std::int64_t estimate_cost(const Problem& problem, const WorkItem& item, const Piece& queries, std::int64_t first,
                           std::int64_t rows) {
  std::int64_t keys = 0;
  for (const Piece& piece : item.keys)
    keys += item.visible(queries, first + rows - 1, piece, problem.longest_kv()).hi -
            item.visible(queries, first, piece, problem.longest_kv()).lo;
  return keys * rows;
}

struct Attend {
  const Tiles& tiles;
  const Tiles& any;  // for blocks that `tiles` do not take
  const Problem& problem;
  const ForwardStep& step;
  const Threads& threads;  // asked between blocks whether the call is off
  const ForwardScratch& scratch;
  const Running& partials;
  const Unit& unit;
  std::int64_t b;
  std::int64_t head_kv;
  Running running = unit.splits == 1 ? scratch.running : partial(unit.split);

  std::int64_t dim() const { return problem.head_dim; }
  std::int64_t dim_v() const { return problem.head_dim_v; }
  std::int64_t total() const { return unit.rows * problem.group(); }  // rows of all heads, head by head
  std::int64_t head(std::int64_t g) const { return head_kv * problem.group() + g; }
  const WorkItem& item() const { return step.items[static_cast<std::size_t>(unit.item)]; }
  const Piece& queries() const { return item().queries[static_cast<std::size_t>(unit.piece)]; }
  std::int64_t stored() const { return queries().row + unit.first; }
  // Where the first row of head g stands in lse, max and sum.
  std::int64_t state(std::int64_t g) const { return (b * problem.num_heads_q + head(g)) * step.query_rows + stored(); }

  void run() const {
    pack_queries();
    begin();
    if (modifies_tiles(problem))
      for (std::int64_t g = 0; g < problem.group(); ++g)
        modify_rows(problem, step.origin, item(), queries(), unit.first, unit.rows, b, head(g),
                    scratch.modifiers.rows + g * unit.rows);
    const std::span<const Piece> pieces = item().keys;
    std::int64_t before = 0;
    for (std::size_t n = 0; n < pieces.size(); ++n) {
      const Interval part = own_keys(pieces[n], before);
      before += pieces[n].length;
      if (part.empty()) continue;
      Interval next;
      if (n + 1 < pieces.size()) next = own_keys(pieces[n + 1], before);
      if (!next.empty()) next = {pieces[n + 1].row + next.lo, pieces[n + 1].row + next.hi};
      attend_piece(pieces[n], part, next);
    }
    if (unit.splits == 1) end();
  }
  void end() const { step.last ? finish() : keep(); }
  // Keys of a piece that are the unit's. `before`: keys of the item before it.
  Interval own_keys(const Piece& keys, std::int64_t before) const {
    const std::int64_t lo = std::clamp<std::int64_t>(unit.keys.lo - before, 0, keys.length);
    return {lo, std::clamp<std::int64_t>(unit.keys.hi - before, lo, keys.length)};
  }

  // Rows of the q and the out of this unit lie in panels of all its rows, head by head. Whether `tiles` take all of them.
  bool pack_queries() const {
    bool taken = true;
    for (std::int64_t g = 0; g < problem.group(); ++g)
      taken = tiles.pack_left(rows_of(step.q, g, dim(), scratch.q)) && taken;
    return taken || !tiles.ordinary_only();
  }

  void begin() const {
    if (step.first || unit.split > 0) {
      std::fill_n(running.out, total() * padded(dim_v()), 0.0F);
      std::fill_n(running.max, total(), -infinity);
      std::fill_n(running.sum, total(), 0.0F);
      if (problem.num_sinks > 0 && unit.split == 0) begin_with_sinks();
      return;
    }
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      tiles.pack_rows(rows_of(step.running, g, dim_v(), running.out));
      std::copy_n(step.max + state(g), unit.rows, running.max + g * unit.rows);
      std::copy_n(step.sum + state(g), unit.rows, running.sum + g * unit.rows);
    }
  }

  void begin_with_sinks() const {
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      const RowState state = RowState::begin(step.sinks[head(g)]);
      std::fill_n(running.max + g * unit.rows, unit.rows, state.max);
      std::fill_n(running.sum + g * unit.rows, unit.rows, state.sum);
    }
  }

  void keep() const {
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      tiles.unpack_rows({row_of(running.out, g), panel(), unit.rows, dim_v(),
                         step.running.at<float>(b, stored(), head(g)), step.running.seq_stride});
      std::copy_n(running.max + g * unit.rows, unit.rows, step.max + state(g));
      std::copy_n(running.sum + g * unit.rows, unit.rows, step.sum + state(g));
    }
  }

  void finish() const {
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      const float* const sum = running.sum + g * unit.rows;
      tiles.finish({row_of(running.out, g), panel(), unit.rows, dim_v(), sum, step.out.dtype,
                    step.out.bytes_at(b, stored(), head(g)), step.out.seq_stride});
      if (step.lse == nullptr) continue;
      for (std::int64_t i = 0; i < unit.rows; ++i)
        step.lse[state(g) + i] = RowState{running.max[g * unit.rows + i], sum[i]}.lse();
    }
  }

  // Of the first split, once all of them are done.
  void merge() const {
    for (std::int64_t split = 1; split < unit.splits; ++split) absorb(partial(split));
    end();
  }
  void absorb(const Running& other) const {
    for (std::int64_t r = 0; r < total(); ++r) {
      const float largest = std::max(running.max[r], other.max[r]);
      const float mine = shrink(running.max[r], largest), theirs = shrink(other.max[r], largest);
      running.max[r] = largest;
      running.sum[r] = running.sum[r] * mine + other.sum[r] * theirs;
      for (std::int64_t at = r * tiles.columns; at < total() * padded(dim_v()); at += panel())
        for (std::int64_t d = at; d < at + tiles.columns; ++d)
          running.out[d] = running.out[d] * mine + other.out[d] * theirs;
    }
  }

  // To a part of its keys. `next`: stored rows of those that come after it.
  void attend_piece(const Piece& keys, Interval part, Interval next) const {
    std::int64_t begin = keys.length, end = 0;
    find_seen(item(), queries(), unit.first, unit.rows, keys, problem.kv_length(b), scratch.seen);
    for (std::int64_t i = 0; i < unit.rows; ++i) {
      Interval& seen = scratch.seen[i];
      seen = {std::max(seen.lo, part.lo), std::min(seen.hi, part.hi)};
      if (seen.lo >= seen.hi) {
        seen = {};
        continue;
      }
      begin = std::min(begin, seen.lo);
      end = std::max(end, seen.hi);
    }
    const bool few = queries().length * problem.group() <= tiles.few_rows;
    const std::int64_t length = few ? tiles.few_keys : tiles.key_block;
    for (std::int64_t block = begin / length * length; block < end && !threads.cancelled(); block += length) {
      const std::int64_t count = std::min(length, keys.length - block);
      if (!clip(scratch.seen, unit.rows, block, count, scratch.visible)) continue;
      for (std::int64_t g = 1; g < problem.group(); ++g)
        std::copy_n(scratch.visible, unit.rows, scratch.visible + g * unit.rows);
      Modifiers own;
      const Modifiers* modifiers = nullptr;
      if (modifies_tiles(problem)) {
        own = modify_keys(problem, item(), keys, block, count, bias_of(keys.row + block), scratch.modifiers);
        modifiers = &own;
      }
      if (!few) {
        attend_block(keys, block, count, modifiers);
        continue;
      }
      const std::int64_t row = keys.row + block;
      attend_few(row, count, block + count < end ? Interval{row + count, keys.row + end} : next, modifiers);
    }
  }
  const float* bias_of(std::int64_t row) const {
    return problem.has_key_bias ? step.key_bias + b * step.key_rows + row : nullptr;
  }

  void attend_few(std::int64_t row, std::int64_t count, Interval next, const Modifiers* modifiers) const {
    tiles.attend_few({total(), count, dim(), dim_v(), scratch.q, problem.dtype, step.k.bytes_at(b, row, head_kv),
                      step.v.bytes_at(b, row, head_kv), step.k.seq_stride, step.v.seq_stride,
                      step.k.bytes_at(b, next.lo, head_kv), std::min(next.hi - next.lo, tiles.few_keys),
                      scratch.visible, problem.softmax_scale, problem.softcap, running.out, running.max, running.sum,
                      modifiers});
  }

  void attend_block(const Piece& keys, std::int64_t block, std::int64_t count, const Modifiers* modifiers) const {
    const std::int64_t row = keys.row + block;
    const bool k_finite = tiles.pack_columns({problem.dtype, step.k.bytes_at(b, row, head_kv), step.k.seq_stride, count,
                                              dim(), scratch.k, tiles.cells(dim()) * tiles.columns});
    const bool finite = tiles.pack_right({problem.dtype, step.v.bytes_at(b, row, head_kv), step.v.seq_stride, count,
                                          dim_v(), scratch.v, tiles.cells(count) * tiles.columns});
    if (tiles.ordinary_only() && !(k_finite && finite)) {
      const Attend others{any, any, problem, step, threads, scratch, partials, unit, b, head_kv, running};
      others.pack_queries();
      others.attend_block(keys, block, count, modifiers);
      pack_queries();
      return;
    }
    tiles.attend({total(), count, dim(), dim_v(), scratch.q, scratch.k, scratch.v, finite, scratch.visible,
                  problem.softmax_scale, problem.softcap, running.out, running.max, running.sum, modifiers});
  }

  // What a split has: of all splits of all rows before these there may be as many as choose_splits allows.
  Running partial(std::int64_t split) const {
    const std::int64_t lane = b * problem.num_heads_kv + head_kv;
    const std::int64_t before = stored() * problem.batch * problem.num_heads_q * most_splits(problem);
    return partials.behind(problem, before + (lane * unit.splits + split) * total());
  }
  std::int64_t panel() const { return total() * tiles.columns; }
  float* row_of(float* packed, std::int64_t g) const { return packed + g * unit.rows * tiles.columns; }
  PackedRows rows_of(const Tensor& t, std::int64_t g, std::int64_t width, float* to) const {
    return {t.dtype, t.bytes_at(b, stored(), head(g)), t.seq_stride, unit.rows, width, row_of(to, g), panel()};
  }
};

}  // namespace

// Query rows of a unit: as many as share a packed block well, but where there are several threads equal parts for all of them,
// several each where that leaves parts worth packing for. Results do not depend on it.
static std::int64_t choose_unit_rows(const Tiles& tiles, const Problem& problem, std::int64_t query_rows,
                                     std::int64_t longest_piece, int threads) {
  constexpr std::int64_t units_per_thread = 4, least = 112;
  const std::int64_t most = most_unit_rows(tiles, problem, longest_piece);
  if (threads == 1) return most;
  const std::int64_t all = problem.batch * problem.num_heads_kv * query_rows;
  const std::int64_t needed = all / (threads * most) + 1;
  const std::int64_t wanted = std::min(units_per_thread, all * problem.group() / (threads * least));
  return std::clamp<std::int64_t>(all / (threads * std::max(needed, wanted)) + 1, 1, most);
}

void CpuEngine::forward(const Problem& problem, const ForwardStep& step) {
  const Tiles& tiles = tiles_.choose(problem);
  std::int64_t pieces = 0, longest_piece = 0;
  for (const WorkItem& item : step.items)
    for (const Piece& queries : item.queries) {
      longest_piece = std::max(longest_piece, queries.length);
      ++pieces;
    }
  const std::int64_t unit_rows = choose_unit_rows(tiles, problem, step.query_rows, longest_piece, threads_.count());
  const std::int64_t lanes = problem.batch * problem.num_heads_kv;
  Arena shared(static_cast<std::byte*>(step.scratch) + thread_bytes<ForwardScratch>(tiles, problem, longest_piece) *
                                                           static_cast<std::size_t>(threads_.count()));
  const Running partials = take_partials(shared, problem);
  std::vector<Unit> units;
  std::vector<Interval> stretches;  // of one piece
  units.reserve(static_cast<std::size_t>(pieces));
  for (std::size_t i = 0; i < step.items.size(); ++i)
    for (std::size_t n = 0; n < step.items[i].queries.size(); ++n) {
      const WorkItem& item = step.items[i];
      const Piece& queries = item.queries[n];
      const Interval keys = find_keys(problem, item, queries);
      const std::int64_t splits = choose_splits(problem, pieces, keys.hi - keys.lo);
      const std::int64_t most = splits > 1 ? most_unit_rows(tiles, problem, longest_piece) : unit_rows;
      if (step.first || step.last)
        stretches = {{0, queries.length}};
      else
        list_seeing_rows(problem, item, queries, stretches);
      const Cut cut(keys.hi - keys.lo, splits);
      for (const Interval& stretch : stretches) {
        std::int64_t first = stretch.lo;
        for (std::int64_t left = (stretch.hi - first + most - 1) / most; left > 0; --left) {
          const std::int64_t rows = (stretch.hi - first) / left;  // equal parts
          const std::int64_t cost = estimate_cost(problem, item, queries, first, rows) / splits;
          for (std::int32_t split = 0; split < splits; ++split)
            units.push_back({.item = static_cast<std::int32_t>(i),
                             .piece = static_cast<std::int32_t>(n),
                             .first = first,
                             .keys = {keys.lo + cut.begin(split), keys.lo + cut.begin(split + 1)},
                             .rows = static_cast<std::int32_t>(rows),
                             .cost = static_cast<float>(cost),
                             .split = split,
                             .splits = static_cast<std::int32_t>(splits)});
          first += rows;
        }
      }
    }
  // The longest first, so that the threads end together.
  std::sort(units.begin(), units.end(), [&](const Unit& a, const Unit& b) { return a.cost > b.cost; });

  const auto for_each_lane = [&](const Tiles& with, auto&& f) {
    threads_.for_each(static_cast<std::int64_t>(units.size()) * lanes, [&](std::int64_t index, int slot) {
      const Unit& unit = units[static_cast<std::size_t>(index / lanes)];
      const std::int64_t lane = index % lanes;
      const auto scratch = of_thread<ForwardScratch>(step.scratch, slot, tiles, problem, longest_piece);
      f(Attend{with, *tiles_.any, problem, step, threads_, scratch, partials, unit, lane / problem.num_heads_kv,
               lane % problem.num_heads_kv});
    });
  };
  // All queries or none: were it a matter of each unit, results would depend on how units are cut.
  std::atomic<bool> taken{true};
  if (tiles.ordinary_only())
    for_each_lane(tiles, [&](const Attend& attend) {
      if (!attend.pack_queries()) taken = false;
    });
  const Tiles& with = taken ? tiles : *tiles_.any;
  for_each_lane(with, [](const Attend& attend) { attend.run(); });
  std::erase_if(units, [](const Unit& unit) { return unit.splits == 1 || unit.split > 0; });
  for_each_lane(with, [](const Attend& attend) { attend.merge(); });
}

}  // namespace ringattn::cpu
