// Forward on a CPU: online softmax over tiles (Dao et al. 2022, "FlashAttention", Algorithm 1).
//
//   for each unit in parallel:  the query rows of one stretch of one piece, in all heads of a group
//     pack Q, and the running (O, max, sum) or their beginning
//     for each block of keys that any row sees:
//       pack K (as columns) and V once for all rows and heads of the unit
//       S = Q K^T;  P = softmax(S), running;  O = O * factor + P V         the instruction set's own loop (tiles.h)
//     unpack the running (O, max, sum), or divide, round and write out and lse
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
#include "engine/cpu/scratch.h"

namespace ringattn::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// log(exp(max) sum), rounded once.
float log_sum_exp(float max, float sum) {
  return static_cast<float>(static_cast<double>(max) + std::log(static_cast<double>(sum)));
}

// Query rows of one item that one thread attends at a time.
struct Unit {
  const WorkItem* item;
  const Piece* queries;
  std::int64_t first;  // within the piece
  std::int64_t rows;
  std::int64_t cost;  // (query, key) pairs, roughly
};

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
  const Unit& unit;
  std::int64_t b;
  std::int64_t head_kv;

  std::int64_t dim() const { return problem.head_dim; }
  std::int64_t dim_v() const { return problem.head_dim_v; }
  std::int64_t total() const { return unit.rows * problem.group(); }  // rows of all heads, head by head
  std::int64_t head(std::int64_t g) const { return head_kv * problem.group() + g; }
  std::int64_t stored() const { return unit.queries->row + unit.first; }
  // Where the first row of head g stands in lse, max and sum.
  std::int64_t state(std::int64_t g) const { return (b * problem.num_heads_q + head(g)) * step.query_rows + stored(); }

  void run() const {
    pack_queries();
    begin();
    for (const Piece& keys : unit.item->keys) attend_piece(keys);
    step.last ? finish() : keep();
  }

  // Rows of the q and the out of this unit lie in panels of all its rows, head by head. Whether `tiles` take all of them.
  bool pack_queries() const {
    bool taken = true;
    for (std::int64_t g = 0; g < problem.group(); ++g)
      taken = tiles.pack_left(rows_of(step.q, g, dim(), scratch.q)) && taken;
    return taken || !tiles.ordinary_only();
  }

  void begin() const {
    if (step.first) {
      std::fill_n(scratch.out, total() * padded(dim_v()), 0.0F);
      std::fill_n(scratch.max, total(), -infinity);
      std::fill_n(scratch.sum, total(), 0.0F);
      return;
    }
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      tiles.pack_rows(rows_of(step.running, g, dim_v(), scratch.out));
      std::copy_n(step.max + state(g), unit.rows, scratch.max + g * unit.rows);
      std::copy_n(step.sum + state(g), unit.rows, scratch.sum + g * unit.rows);
    }
  }

  void keep() const {
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      tiles.unpack_rows({row_of(scratch.out, g), panel(), unit.rows, dim_v(),
                         step.running.at<float>(b, stored(), head(g)), step.running.seq_stride});
      std::copy_n(scratch.max + g * unit.rows, unit.rows, step.max + state(g));
      std::copy_n(scratch.sum + g * unit.rows, unit.rows, step.sum + state(g));
    }
  }

  void finish() const {
    for (std::int64_t g = 0; g < problem.group(); ++g) {
      const float* const sum = scratch.sum + g * unit.rows;
      tiles.finish({row_of(scratch.out, g), panel(), unit.rows, dim_v(), sum, step.out.dtype,
                    address(step.out, stored(), head(g)), step.out.seq_stride});
      if (step.lse == nullptr) continue;
      for (std::int64_t i = 0; i < unit.rows; ++i)
        step.lse[state(g) + i] = sum[i] == 0.0F ? -infinity : log_sum_exp(scratch.max[g * unit.rows + i], sum[i]);
    }
  }

  void attend_piece(const Piece& keys) const {
    std::int64_t begin = keys.length, end = 0;
    find_seen(*unit.item, *unit.queries, unit.first, unit.rows, keys, problem.kv_length(b), scratch.seen);
    for (std::int64_t i = 0; i < unit.rows; ++i) {
      const Interval seen = scratch.seen[i];
      if (seen.empty()) continue;
      begin = std::min(begin, seen.lo);
      end = std::max(end, seen.hi);
    }
    for (std::int64_t block = begin / tiles.key_block * tiles.key_block; block < end && !threads.cancelled();
         block += tiles.key_block)
      attend_block(keys, block, std::min(tiles.key_block, keys.length - block));
  }

  void attend_block(const Piece& keys, std::int64_t block, std::int64_t count) const {
    if (!clip(scratch.seen, unit.rows, block, count, scratch.visible)) return;
    for (std::int64_t g = 1; g < problem.group(); ++g)
      std::copy_n(scratch.visible, unit.rows, scratch.visible + g * unit.rows);
    const std::int64_t row = keys.row + block;
    const bool k_finite = tiles.pack_columns({problem.dtype, address(step.k, row, head_kv), step.k.seq_stride, count,
                                              dim(), scratch.k, tiles.cells(dim()) * tiles.columns});
    const bool finite = tiles.pack_right({problem.dtype, address(step.v, row, head_kv), step.v.seq_stride, count,
                                          dim_v(), scratch.v, tiles.cells(count) * tiles.columns});
    if (tiles.ordinary_only() && !(k_finite && finite)) {
      const Attend others{any, any, problem, step, threads, scratch, unit, b, head_kv};
      others.pack_queries();
      others.attend_block(keys, block, count);
      pack_queries();
      return;
    }
    tiles.attend({total(), count, dim(), dim_v(), scratch.q, scratch.k, scratch.v, finite, scratch.visible,
                  problem.softmax_scale, problem.softcap, scratch.out, scratch.max, scratch.sum});
  }

  std::int64_t panel() const { return total() * tiles.columns; }
  float* row_of(float* packed, std::int64_t g) const { return packed + g * unit.rows * tiles.columns; }
  PackedRows rows_of(const Tensor& t, std::int64_t g, std::int64_t width, float* to) const {
    return {t.dtype, address(t, stored(), head(g)), t.seq_stride, unit.rows, width, row_of(to, g), panel()};
  }

  std::byte* address(const Tensor& t, std::int64_t row, std::int64_t h) const {
    return static_cast<std::byte*>(t.data) + t.offset(b, row, h) * size_of(t.dtype);
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

void CpuEngine::forward(const Problem& problem, const ForwardStep& step, Threads& threads) {
  const Tiles& tiles = tiles_.choose(problem, Pass::forward);
  std::int64_t longest_piece = 0;
  for (const WorkItem& item : step.items)
    for (const Piece& queries : item.queries) longest_piece = std::max(longest_piece, queries.length);
  const std::int64_t unit_rows = choose_unit_rows(tiles, problem, step.query_rows, longest_piece, threads.count());
  std::vector<Unit> units;
  for (const WorkItem& item : step.items)
    for (const Piece& queries : item.queries)
      for (std::int64_t first = 0, left = (queries.length + unit_rows - 1) / unit_rows; left > 0; --left) {
        const std::int64_t rows = (queries.length - first) / left;  // equal parts
        units.push_back({&item, &queries, first, rows, estimate_cost(problem, item, queries, first, rows)});
        first += rows;
      }
  // The longest first, so that the threads end together.
  std::sort(units.begin(), units.end(), [&](const Unit& a, const Unit& b) { return a.cost > b.cost; });

  const std::int64_t lanes = problem.batch * problem.num_heads_kv;
  const auto for_each_unit = [&](const Tiles& with, auto&& f) {
    threads.for_each(static_cast<std::int64_t>(units.size()) * lanes, [&](std::int64_t index, int slot) {
      const std::int64_t lane = index % lanes;
      const auto scratch = of_thread<ForwardScratch>(step.scratch, slot, tiles, problem, longest_piece);
      f(Attend{with, *tiles_.any, problem, step, threads, scratch, units[static_cast<std::size_t>(index / lanes)],
               lane / problem.num_heads_kv, lane % problem.num_heads_kv});
    });
  };
  // All queries or none: were it a matter of each unit, results would depend on how units are cut.
  std::atomic<bool> taken{true};
  if (tiles.ordinary_only())
    for_each_unit(tiles, [&](const Attend& unit) {
      if (!unit.pack_queries()) taken = false;
    });
  for_each_unit(taken ? tiles : *tiles_.any, [](const Attend& unit) { unit.run(); });
}

}  // namespace ringattn::cpu
