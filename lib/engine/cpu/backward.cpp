// Backward on a CPU, recomputed from lse (Dao et al. 2022, "FlashAttention", Algorithm 4) with five products:
//
//   for each stretch of a block or two of keys of the chunk:
//     for each lane in parallel:  every G-th tile of query rows of one item that sees the stretch, in one group of heads
//       for each tile of the lane, and each block of which it sees some:  pack Q, dout, K and V where they are not yet
//         P = exp(score(Q K^T) - lse)    dS = P (dout V^T - delta) score'       the instruction set's own loop (tiles.h)
//         dV += P^T dout    dK += dS^T Q    dQ += dS K
//       (dK and dQ get their softmax_scale when they are unpacked)
//     add up the dK and dV of an item's lanes, in the order of lanes
//
// Deterministic without locks: a tile of dQ belongs to one lane, which meets the keys in ascending order; dK and dV of an
// item belong to its lanes, whose number G is a function of the problem alone, never of the threads. With G = 1, the rule
// when there are many heads or documents, there is nothing to add up. Items of one stretch share neither queries nor keys.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "core/memory.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/scratch.h"

namespace ringattn::cpu {
namespace {

constexpr std::int64_t enough_lanes = 16;  // over all items, batch entries and heads

// Lanes of one item in one group of heads: a power of two, so that few threads share them evenly, and each with tiles enough
// that packing the keys is a small part of its work; with half as many, rather than one lane alone or two.
std::int64_t choose_lanes(const Problem& problem, std::int64_t items, std::int64_t tiles) {
  constexpr std::int64_t tiles_of_a_lane = 8, few_lanes = 4;
  const std::int64_t others = problem.batch * problem.num_heads_kv * std::max<std::int64_t>(items, 1);
  const std::int64_t wanted = (enough_lanes + others - 1) / others,
                     worthwhile = std::max({tiles / tiles_of_a_lane, std::min(tiles / (tiles_of_a_lane / 2), few_lanes),
                                            std::int64_t{1}});
  return static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(std::min(wanted, worthwhile))));
}

// Query rows first .. first + count - 1 of a piece, in one head of a group.
struct QueryTile {
  const Piece* queries;
  std::int64_t first, count, head;

  std::int64_t row() const { return queries->row + first; }
};

// One item's part of a stretch.
struct Cell {
  WorkItem item;                   // its keys cut to the stretch, rows counted from there
  std::vector<QueryTile> tiles{};  // that see some of the keys, in all heads of a group
  std::int64_t lanes = 1;
  std::int64_t first_lane = 0;  // of all lanes of the stretch
  std::int64_t first_row = 0;   // its keys are rows first_row .. first_row + rows - 1 of the stretch
  std::int64_t rows = 0;
  float* partial = nullptr;  // [batch, num_heads_kv, lanes] of dk [rows, head_dim] and dv [rows, head_dim_v]
};

std::int64_t partial_floats(const Problem& p, const Cell& cell) {
  return cell.lanes == 1 ? 0 : p.batch * p.num_heads_kv * cell.lanes * cell.rows * (p.head_dim + p.head_dim_v);
}

// Whether rows of `tile` may see any of keys begin .. end - 1; the keys that rows see ascend.
bool may_see(const WorkItem& item, const QueryTile& tile, const Piece& keys, std::int64_t begin, std::int64_t end,
             std::int64_t kv_length) {
  return item.visible(*tile.queries, tile.first, keys, kv_length).lo < end &&
         item.visible(*tile.queries, tile.first + tile.count - 1, keys, kv_length).hi > begin;
}

std::vector<QueryTile> find_tiles(const Tiles& set, const Problem& problem, const WorkItem& item) {
  std::vector<QueryTile> tiles;
  for (const Piece& queries : item.queries)
    for (std::int64_t g = 0; g < problem.group(); ++g)
      for (std::int64_t first = 0; first < queries.length; first += set.gradient_rows) {
        const QueryTile tile{&queries, first, std::min(set.gradient_rows, queries.length - first), g};
        if (std::any_of(item.keys.begin(), item.keys.end(), [&](const Piece& keys) {
              return may_see(item, tile, keys, 0, keys.length, problem.longest_kv());
            }))
          tiles.push_back(tile);
      }
  return tiles;
}

// Where a lane adds the gradients of the stretch's keys.
struct Target {
  float *dk, *dv;  // of row 0 of the cell
  std::int64_t dk_stride, dv_stride;
};

struct Lane {
  const Tiles& tiles;
  const Tiles& any;  // for blocks that `tiles` do not take
  const Problem& problem;
  const BackwardStep& step;
  const Threads& threads;  // asked between blocks and tiles whether the call is off
  const BackwardScratch& scratch;
  const Cell& cell;
  const Target& target;
  std::int64_t stretch_begin;
  std::int64_t b, head_kv, number;

  std::int64_t dim() const { return problem.head_dim; }
  std::int64_t dim_v() const { return problem.head_dim_v; }

  // Keys first .. first + count - 1 of a piece, packed when the first tile sees some of them.
  struct Block {
    const Piece* keys;
    std::int64_t first, count;
    std::int64_t room;  // rows of scratch before it
    bool begun = false, packed = false, finite = true;
  };

  struct Tile : QueryTile {
    bool begun = false, packed = false, finite = true;
  };

  void run() const {
    std::vector<Block> blocks;
    std::int64_t room = 0;
    for (const Piece& keys : cell.item.keys)
      for (std::int64_t first = 0; first < keys.length; first += tiles.key_block) {
        blocks.push_back({&keys, first, std::min(tiles.key_block, keys.length - first), room});
        room += padded(blocks.back().count);
      }
    for (std::size_t n = static_cast<std::size_t>(number); n < cell.tiles.size() && !threads.cancelled();
         n += static_cast<std::size_t>(cell.lanes)) {
      Tile tile{cell.tiles[n]};
      tile.head += head_kv * problem.group();
      run_tile(blocks, tile);
    }
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
      const Lane others{any, any, problem, step, threads, scratch, cell, target, stretch_begin, b, head_kv, number};
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
                         scratch.dq});
  }

  bool find_visible(const Tile& tile, const Block& block) const {
    const std::int64_t kv_length = problem.kv_length(b);
    if (!may_see(cell.item, tile, *block.keys, block.first, block.first + block.count, kv_length)) return false;
    for (std::int64_t i = 0; i < tile.count; ++i)
      scratch.seen[i] = cell.item.visible(*tile.queries, tile.first + i, *block.keys, kv_length);
    return clip(scratch.seen, tile.count, block.first, block.count, scratch.visible);
  }

  void pack_keys(Block& block) const {
    const std::int64_t row = stretch_begin + block.keys->row + block.first, count = block.count, room = block.room;
    const bool k_finite =
        tiles.pack_right(rows_of(step.k, row, head_kv, count, dim(), scratch.k + tiles.cells(room) * padded(dim()),
                                 tiles.cells(count) * tiles.columns));
    tiles.pack_columns(rows_of(step.k, row, head_kv, count, dim(), scratch.k_columns + room * tiles.cells(dim()),
                               tiles.cells(dim()) * tiles.columns));
    const bool v_finite = tiles.pack_columns(rows_of(step.v, row, head_kv, count, dim_v(),
                                                     scratch.v_columns + room * tiles.cells(dim_v()),
                                                     tiles.cells(dim_v()) * tiles.columns));
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
    tile.packed = true;
    tile.finite = q_finite && dout_finite;
  }

  void add_gradients(const Block& block) const {
    const std::int64_t row = block.keys->row + block.first - cell.first_row, panel = block.count * tiles.columns;
    tiles.unpack_rows({scratch.dk + block.room * padded(dim()), panel, block.count, dim(),
                       target.dk + row * target.dk_stride, target.dk_stride, true, problem.softmax_scale});
    tiles.unpack_rows({scratch.dv + block.room * padded(dim_v()), panel, block.count, dim_v(),
                       target.dv + row * target.dv_stride, target.dv_stride, true});
  }

  PackedRows rows_of(const Tensor& t, std::int64_t row, std::int64_t head, std::int64_t rows, std::int64_t width,
                     float* to, std::int64_t panel) const {
    return {t.dtype,      static_cast<std::byte*>(t.data) + t.offset(b, row, head) * size_of(t.dtype),
            t.seq_stride, rows,
            width,        to,
            panel};
  }
};

}  // namespace

// Room for the partial gradients of the worst step: one item, since every further item or head needs fewer lanes of each.
static std::int64_t most_partial_floats(const Tiles& tiles, const Problem& p) {
  const std::int64_t lanes = choose_lanes(p, 1, std::numeric_limits<std::int64_t>::max());
  return lanes == 1 ? 0 : p.batch * p.num_heads_kv * lanes * stretch_keys(tiles, p) * (p.head_dim + p.head_dim_v);
}

std::size_t CpuEngine::scratch_bytes(const Problem& problem, Pass pass, int threads) const {
  const Tiles& tiles = tiles_.choose(problem, pass);
  const std::size_t per_thread = pass == Pass::forward ? thread_bytes<ForwardScratch>(tiles, problem)
                                                       : thread_bytes<BackwardScratch>(tiles, problem);
  Arena shared;
  if (pass == Pass::backward) shared.take<float>(most_partial_floats(tiles, problem));
  return per_thread * static_cast<std::size_t>(threads) + shared.size();
}

void CpuEngine::backward(const Problem& problem, const BackwardStep& step, Threads& threads) {
  const Tiles& tiles = tiles_.choose(problem, Pass::backward);
  const std::int64_t groups = problem.batch * problem.num_heads_kv;
  auto* const partials =
      reinterpret_cast<float*>(static_cast<std::byte*>(step.scratch) + thread_bytes<BackwardScratch>(tiles, problem) *
                                                                           static_cast<std::size_t>(threads.count()));
  const std::int64_t stretch = stretch_keys(tiles, problem);
  for (std::int64_t begin = 0; begin < step.key_rows; begin += stretch) {
    std::vector<Cell> cells;
    std::vector<std::vector<Piece>> keys;
    for (const WorkItem& item : step.items) {
      std::vector<Piece> cut = cut_rows(item.keys, begin, std::min(begin + stretch, step.key_rows));
      if (cut.empty()) continue;
      Cell cell{.item = item};
      cell.first_row = cut.front().row;
      cell.rows = cut.back().row + cut.back().length - cell.first_row;
      keys.push_back(std::move(cut));
      cell.item.keys = keys.back();  // the pieces stay where they are when `keys` grows
      cell.tiles = find_tiles(tiles, problem, cell.item);
      if (!cell.tiles.empty()) cells.push_back(std::move(cell));
    }
    std::int64_t lanes = 0, floats = 0;
    for (Cell& cell : cells) {
      cell.lanes =
          choose_lanes(problem, static_cast<std::int64_t>(cells.size()), static_cast<std::int64_t>(cell.tiles.size()));
      cell.first_lane = lanes;
      cell.partial = partials + floats;
      lanes += groups * cell.lanes;
      floats += partial_floats(problem, cell);
    }

    const auto cell_of = [&](std::int64_t lane) -> const Cell& {
      return *std::prev(
          std::partition_point(cells.begin(), cells.end(), [&](const Cell& c) { return c.first_lane <= lane; }));
    };
    // dk and dv of one lane: its own partial sums, or the step's where it is the only lane.
    const auto target_of = [&](const Cell& cell, std::int64_t group, std::int64_t number) -> Target {
      if (cell.lanes > 1) {
        float* dk = cell.partial + (group * cell.lanes + number) * cell.rows * (problem.head_dim + problem.head_dim_v);
        return {dk, dk + cell.rows * problem.head_dim, problem.head_dim, problem.head_dim_v};
      }
      const std::int64_t b = group / problem.num_heads_kv, head = group % problem.num_heads_kv;
      return {step.dk.at<float>(b, begin + cell.first_row, head), step.dv.at<float>(b, begin + cell.first_row, head),
              step.dk.seq_stride, step.dv.seq_stride};
    };

    threads.for_each(lanes, [&](std::int64_t index, int slot) {
      const Cell& cell = cell_of(index);
      const std::int64_t group = (index - cell.first_lane) / cell.lanes,
                         number = (index - cell.first_lane) % cell.lanes;
      const Target target = target_of(cell, group, number);
      if (cell.lanes > 1) std::fill_n(target.dk, cell.rows * (problem.head_dim + problem.head_dim_v), 0.0F);
      const auto scratch = of_thread<BackwardScratch>(tiles, problem, step.scratch, slot);
      Lane{tiles,
           *tiles_.any,
           problem,
           step,
           threads,
           scratch,
           cell,
           target,
           begin,
           group / problem.num_heads_kv,
           group % problem.num_heads_kv,
           number}
          .run();
    });

    for (const Cell& cell : cells) {
      if (cell.lanes == 1) continue;
      threads.for_each(groups * cell.rows, [&](std::int64_t index, int) {
        const std::int64_t group = index / cell.rows, row = index % cell.rows;
        const std::int64_t b = group / problem.num_heads_kv, head = group % problem.num_heads_kv;
        for (std::int64_t number = 0; number < cell.lanes; ++number) {
          const Target from = target_of(cell, group, number);
          const std::int64_t to = begin + cell.first_row + row;
          tiles.store(DType::float32, from.dk + row * from.dk_stride, problem.head_dim, step.dk.at<float>(b, to, head),
                      true);
          tiles.store(DType::float32, from.dv + row * from.dv_stride, problem.head_dim_v,
                      step.dv.at<float>(b, to, head), true);
        }
      });
    }
  }
}

}  // namespace ringattn::cpu
