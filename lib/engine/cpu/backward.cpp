// Backward on a CPU, recomputed from lse (Dao et al. 2022, "FlashAttention", Algorithm 4) with five products:
//
//   for each column in parallel, begun in ascending order:   the keys of one item in a stretch of the chunk, in one group of heads
//     pack K and V
//     for each tile of query rows that sees the column, the last first, when the item's earlier columns have passed it:
//       pack Q and dout
//         P = exp(score(Q K^T) - lse)    dS = P (dout V^T - delta) score'       the instruction set's own loop (tiles.h)
//         dV += P^T dout    dK += dS^T Q    dQ += dS K
//     (dK and dQ get their softmax_scale when they are unpacked)
//
// Deterministic without locks: dK and dV of a column belong to one thread, and a tile of dQ meets the columns in ascending
// order. Columns follow one another through the tiles, each a tile behind the one before; the last tile comes first because
// under a causal mask it is seen by all of them. Items share neither queries nor keys, nor do groups, and never wait.
#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/scratch.h"

namespace ringattn::cpu {
namespace {

// Query rows first .. first + count - 1 of a piece, in one head.
struct QueryTile {
  const Piece* queries;
  std::int64_t first, count, head;

  std::int64_t row() const { return queries->row + first; }
};

// Calls f(number, tile) for the tiles of an item, in all heads of a group, the last tile first. Numbers count up from 0.
template <class F>
void for_each_tile_backward(const WorkItem& item, std::int64_t rows, std::int64_t group, F&& f) {
  std::int64_t number = 0;
  for (std::size_t piece = item.queries.size(); piece-- > 0;) {
    const Piece& queries = item.queries[piece];
    for (std::int64_t first = (queries.length + rows - 1) / rows * rows - rows; first >= 0; first -= rows)
      for (std::int64_t g = 0; g < group; ++g)
        f(number++, QueryTile{&queries, first, std::min(rows, queries.length - first), g});
  }
}

// One item's keys in a stretch of the chunk.
struct Column {
  const WorkItem* item;
  std::vector<Piece> keys;
  std::int64_t stretch;
  std::size_t before;  // columns of the same item, which stand before this one
};

// All columns, item by item.
std::vector<Column> find_columns(const BackwardStep& step, std::int64_t stretch_keys) {
  std::vector<Column> columns;
  for (const WorkItem& item : step.items) {
    if (item.keys.empty() || item.queries.empty()) continue;
    const std::int64_t end = item.keys.back().row + item.keys.back().length;
    std::size_t before = 0;
    for (std::int64_t stretch = item.keys.front().row / stretch_keys; stretch * stretch_keys < end; ++stretch) {
      const std::int64_t begin = stretch * stretch_keys;
      std::vector<Piece> keys = cut_rows(item.keys, begin, begin + stretch_keys);
      if (keys.empty()) continue;
      for (Piece& piece : keys) piece.row += begin;
      columns.push_back({&item, std::move(keys), stretch, before++});
    }
  }
  return columns;
}

// How many tiles of its item each column has passed, in each group of heads.
class Progress {
 public:
  Progress(std::size_t columns, std::size_t groups) : groups_(groups), passed_(columns * groups) {}

  void pass(std::size_t column, std::size_t group, std::int64_t number) {
    of(column, group).store(number + 1, std::memory_order_release);
  }
  // Until the columns before this one, as many as `before`, have passed a tile. False if the call is off.
  bool wait(std::size_t column, std::size_t group, std::size_t before, std::int64_t number, const Threads& threads) {
    for (std::size_t c = column - before; c < column; ++c)
      while (of(c, group).load(std::memory_order_acquire) <= number) {
        if (threads.cancelled()) return false;
        std::this_thread::yield();
      }
    return true;
  }

 private:
  std::atomic<std::int64_t>& of(std::size_t column, std::size_t group) { return passed_[column * groups_ + group]; }

  std::size_t groups_;
  std::vector<std::atomic<std::int64_t>> passed_;
};

struct Differentiate {
  const Tiles& tiles;
  const Tiles& any;  // for blocks that `tiles` do not take
  const Problem& problem;
  const BackwardStep& step;
  const Threads& threads;  // asked between blocks and tiles whether the call is off
  const BackwardScratch& scratch;
  const Column& column;
  std::int64_t b, head_kv;

  std::int64_t dim() const { return problem.head_dim; }
  std::int64_t dim_v() const { return problem.head_dim_v; }

  // Keys first .. first + count - 1 of a piece, packed when the first tile sees some of them.
  struct Block {
    const Piece* keys;
    std::int64_t first, count;
    std::int64_t room;  // rows of scratch before it
    bool begun = false, packed = false, finite = true;
    Modifiers modifiers{};
  };

  struct Tile : QueryTile {
    bool begun = false, packed = false, finite = true;
  };

  // `wait(number)`: until the tile is this column's; false if the call is off. `pass(number)`: it has done with it.
  template <class Wait, class Done>
  void run(Wait&& wait, Done&& pass) const {
    std::vector<Block> blocks;
    std::int64_t room = 0;
    for (const Piece& keys : column.keys)
      for (std::int64_t first = 0; first < keys.length; first += tiles.key_block) {
        blocks.push_back({&keys, first, std::min(tiles.key_block, keys.length - first), room});
        room += padded(blocks.back().count);
      }
    for_each_tile_backward(*column.item, tiles.gradient_rows, problem.group(),
                           [&](std::int64_t number, const QueryTile& rows) {
                             Tile tile{rows};
                             const auto seen = [&](const Block& block) { return may_see(tile, block); };
                             if (std::none_of(blocks.begin(), blocks.end(), seen) || !wait(number)) return;
                             tile.head += head_kv * problem.group();
                             run_tile(blocks, tile);
                             pass(number);
                           });
    for (const Block& block : blocks)
      if (block.begun) add_gradients(block);
  }

  void run_tile(std::vector<Block>& blocks, Tile& tile) const {
    for (Block& block : blocks) {
      if (threads.cancelled()) return;
      if (!find_visible(tile, block)) continue;
      begin(block, tile);
      if (!block.packed) pack_keys(block);
      if (!tile.packed) pack_rows(tile);
      if (!tiles.ordinary_only() || (block.finite && tile.finite)) {
        differentiate(block, tile);
        continue;
      }
      const Differentiate others{any, any, problem, step, threads, scratch, column, b, head_kv};
      others.pack_keys(block);
      others.pack_rows(tile);
      others.differentiate(block, tile);
      for (Block& spoilt : blocks) spoilt.packed = false;
      tile.packed = false;
    }
    if (tile.begun)
      tiles.unpack_rows({scratch.dq, tile.count * tiles.columns, tile.count, dim(),
                         step.dq.at<float>(b, tile.row(), tile.head), step.dq.seq_stride, true, problem.softmax_scale});
  }

  void begin(Block& block, Tile& tile) const {
    if (!block.begun) {
      std::fill_n(scratch.dk + block.room * padded(dim()), block.count * padded(dim()), 0.0F);
      std::fill_n(scratch.dv + block.room * padded(dim_v()), block.count * padded(dim_v()), 0.0F);
    }
    if (!tile.begun) std::fill_n(scratch.dq, tile.count * padded(dim()), 0.0F);
    block.begun = tile.begun = true;
  }

  void differentiate(const Block& block, const Tile& tile) const {
    const std::int64_t state = (b * problem.num_heads_q + tile.head) * step.query_rows + tile.row();
    const std::int64_t room = block.room;
    tiles.differentiate({tile.count,
                         block.count,
                         dim(),
                         dim_v(),
                         scratch.q,
                         scratch.dout,
                         scratch.q_right,
                         scratch.dout_right,
                         scratch.k + tiles.cells(room) * padded(dim()),
                         scratch.k_columns + room * tiles.cells(dim()),
                         scratch.v_columns + room * tiles.cells(dim_v()),
                         block.finite && tile.finite,
                         scratch.visible,
                         problem.softmax_scale,
                         problem.softcap,
                         step.lse + state,
                         step.delta + state,
                         scratch.scores,
                         scratch.dk + room * padded(dim()),
                         scratch.dv + room * padded(dim_v()),
                         scratch.dq,
                         modifies_tiles(problem) ? &block.modifiers : nullptr});
  }

  // The keys that rows see ascend.
  bool may_see(const QueryTile& tile, const Block& block) const {
    const std::int64_t kv_length = problem.kv_length(b);
    return column.item->visible(*tile.queries, tile.first, *block.keys, kv_length).lo < block.first + block.count &&
           column.item->visible(*tile.queries, tile.first + tile.count - 1, *block.keys, kv_length).hi > block.first;
  }

  bool find_visible(const Tile& tile, const Block& block) const {
    if (!may_see(tile, block)) return false;
    find_seen(*column.item, *tile.queries, tile.first, tile.count, *block.keys, problem.kv_length(b), scratch.seen);
    return clip(scratch.seen, tile.count, block.first, block.count, scratch.visible);
  }

  void pack_keys(Block& block) const {
    const std::int64_t row = block.keys->row + block.first, count = block.count, room = block.room;
    const bool k_finite =
        tiles.pack_right(rows_of(step.k, row, head_kv, count, dim(), scratch.k + tiles.cells(room) * padded(dim()),
                                 tiles.cells(count) * tiles.columns));
    tiles.pack_columns(rows_of(step.k, row, head_kv, count, dim(), scratch.k_columns + room * tiles.cells(dim()),
                               tiles.cells(dim()) * tiles.columns));
    const bool v_finite = tiles.pack_columns(rows_of(step.v, row, head_kv, count, dim_v(),
                                                     scratch.v_columns + room * tiles.cells(dim_v()),
                                                     tiles.cells(dim_v()) * tiles.columns));
    if (modifies_tiles(problem))
      block.modifiers = modify_keys(problem, *column.item, *block.keys, block.first, count,
                                    problem.has_key_bias ? step.key_bias + b * step.key_rows + row : nullptr,
                                    scratch.modifiers, room);
    block.packed = true;
    block.finite = k_finite && v_finite;
  }

  void pack_rows(Tile& tile) const {
    const auto pack = [&](const Tensor& t, std::int64_t width, float* left, float* right) {
      const auto rows = [&](float* to, std::int64_t panel_rows) {
        return rows_of(t, tile.row(), tile.head, tile.count, width, to, panel_rows * tiles.columns);
      };
      if (right != left) tiles.pack_right(rows(right, tiles.cells(tile.count)));
      return tiles.pack_left(rows(left, tile.count));
    };
    const bool q_finite = pack(step.q, dim(), scratch.q, scratch.q_right),
               dout_finite = pack(step.dout, dim_v(), scratch.dout, scratch.dout_right);
    if (modifies_tiles(problem))
      modify_rows(problem, step.origin, *column.item, *tile.queries, tile.first, tile.count, b, tile.head,
                  scratch.modifiers.rows);
    tile.packed = true;
    tile.finite = q_finite && dout_finite;
  }

  void add_gradients(const Block& block) const {
    const std::int64_t row = block.keys->row + block.first, panel = block.count * tiles.columns;
    tiles.unpack_rows({scratch.dk + block.room * padded(dim()), panel, block.count, dim(),
                       step.dk.at<float>(b, row, head_kv), step.dk.seq_stride, true, problem.softmax_scale});
    tiles.unpack_rows({scratch.dv + block.room * padded(dim_v()), panel, block.count, dim_v(),
                       step.dv.at<float>(b, row, head_kv), step.dv.seq_stride, true});
  }

  PackedRows rows_of(const Tensor& t, std::int64_t row, std::int64_t head, std::int64_t rows, std::int64_t width,
                     float* to, std::int64_t panel) const {
    return {t.dtype, t.bytes_at(b, row, head), t.seq_stride, rows, width, to, panel};
  }
};

}  // namespace

std::size_t CpuEngine::scratch_bytes(const Problem& problem, Pass pass, std::int64_t longest_piece, bool) const {
  const Tiles& tiles = tiles_.choose(problem);
  const std::size_t per_thread = pass == Pass::forward ? thread_bytes<ForwardScratch>(tiles, problem, longest_piece)
                                                       : thread_bytes<BackwardScratch>(tiles, problem);
  Arena shared;
  if (pass == Pass::forward) take_partials(shared, problem);
  return per_thread * static_cast<std::size_t>(threads_.count()) + shared.size();
}

// Keys of a stretch: fewer where there would be work for few threads only, but never so few that packing the tiles would take
// longer than what is done with them. Never a matter of how many threads there are: results depend on it.
static std::int64_t choose_stretch(const Tiles& tiles, const Problem& problem, std::int64_t key_rows) {
  constexpr std::int64_t enough_columns = 4, least_keys = 128;
  const std::int64_t groups = problem.batch * problem.num_heads_kv;
  std::int64_t keys = stretch_keys(tiles, problem);
  while (keys / 2 >= least_keys && (key_rows + keys - 1) / keys * groups < enough_columns) keys /= 2;
  return keys;
}

void CpuEngine::backward(const Problem& problem, const BackwardStep& step) {
  const Tiles& tiles = tiles_.choose(problem);
  const std::vector<Column> columns = find_columns(step, choose_stretch(tiles, problem, step.key_rows));
  std::vector<std::size_t> order(columns.size());  // stretch by stretch, so that neighbours seldom wait for each other
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(columns[a].stretch, a) < std::pair(columns[b].stretch, b);
  });

  const auto groups = static_cast<std::size_t>(problem.batch * problem.num_heads_kv);
  Progress progress(columns.size(), groups);
  threads_.for_each(static_cast<std::int64_t>(order.size() * groups), [&](std::int64_t index, int slot) {
    const std::size_t c = order[static_cast<std::size_t>(index) / groups],
                      group = static_cast<std::size_t>(index) % groups;
    const Column& column = columns[c];
    // However it ends, nobody waits for it any longer.
    const struct Passed {
      Progress& progress;
      std::size_t column, group;
      ~Passed() { progress.pass(column, group, std::numeric_limits<std::int64_t>::max() - 1); }
    } passed{progress, c, group};
    const auto scratch = of_thread<BackwardScratch>(step.scratch, slot, tiles, problem);
    const auto heads = static_cast<std::size_t>(problem.num_heads_kv);
    Differentiate{tiles,
                  *tiles_.any,
                  problem,
                  step,
                  threads_,
                  scratch,
                  column,
                  static_cast<std::int64_t>(group / heads),
                  static_cast<std::int64_t>(group % heads)}
        .run([&](std::int64_t number) { return progress.wait(c, group, column.before, number, threads_); },
             [&](std::int64_t number) { progress.pass(c, group, number); });
  });
}

}  // namespace ringattn::cpu
