// Backward on a CPU, recomputed from lse (Dao et al. 2022, "FlashAttention", Algorithm 4) with five products:
//
//   for each stretch of 512 keys of the chunk:
//     for each lane in parallel:  every G-th tile of 64 query rows of one item, in one group of heads
//       for each block of 128 keys:
//         for each tile of the lane that sees some of it:
//           P = exp(score(Q K^T) - lse)    dS = P (dout V^T - delta) score'
//           dV += P^T dout    dK += dS^T Q    dQ += dS K
//     add up the dK and dV of an item's lanes, in the order of lanes
//
// Deterministic without locks: a tile of dQ belongs to one lane, which meets the keys in ascending order; dK and dV of an
// item belong to its lanes, whose number G is a function of the problem alone, never of the threads. With G = 1, the rule
// when there are many heads or documents, there is nothing to add up. Items of one stretch share neither queries nor keys.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/memory.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/scratch.h"

namespace ringattn::cpu {
namespace {

constexpr std::int64_t stretch = 512;      // keys whose partial gradients are in memory at a time
constexpr std::int64_t enough_lanes = 16;  // over all items, batch entries and heads

// Lanes of one item in one group of heads.
std::int64_t choose_lanes(const Problem& problem, std::int64_t items, std::int64_t tiles) {
  const std::int64_t others = problem.batch * problem.num_heads_kv * std::max<std::int64_t>(items, 1);
  return std::clamp<std::int64_t>((enough_lanes + others - 1) / others, 1, std::max<std::int64_t>(tiles / 4, 1));
}

// One item's part of a stretch.
struct Cell {
  WorkItem item;           // its keys cut to the stretch, rows counted from there
  std::int64_t tiles = 0;  // of query rows, over the heads of a group
  std::int64_t lanes = 1;
  std::int64_t first_lane = 0;  // of all lanes of the stretch
  std::int64_t first_row = 0;   // its keys are rows first_row .. first_row + rows - 1 of the stretch
  std::int64_t rows = 0;
  float* partial = nullptr;  // [batch, num_heads_kv, lanes] of dk [rows, head_dim] and dv [rows, head_dim_v]
};

std::int64_t partial_floats(const Problem& p, const Cell& cell) {
  return cell.lanes == 1 ? 0 : p.batch * p.num_heads_kv * cell.lanes * cell.rows * (p.head_dim + p.head_dim_v);
}

std::int64_t count_tiles(const Problem& problem, const WorkItem& item) {
  std::int64_t tiles = 0;
  for (const Piece& queries : item.queries) tiles += (queries.length + gradient_tile - 1) / gradient_tile;
  return tiles * problem.group();
}

// Where a lane adds the gradients of the stretch's keys.
struct Target {
  float *dk, *dv;  // of row 0 of the cell
  std::int64_t dk_stride, dv_stride;
};

struct Lane {
  const Tiles& tiles;
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

  void run() const {
    for (const Piece& keys : cell.item.keys)
      for (std::int64_t block = 0; block < keys.length && !threads.cancelled(); block += key_block)
        run_block(keys, block, std::min(key_block, keys.length - block));
  }

  void run_block(const Piece& keys, std::int64_t block, std::int64_t count) const {
    bool loaded = false, finite = true;
    std::int64_t tile = 0;
    for (const Piece& queries : cell.item.queries)
      for (std::int64_t g = 0; g < problem.group(); ++g)
        for (std::int64_t first = 0; first < queries.length; first += gradient_tile, ++tile) {
          if (tile % cell.lanes != number || threads.cancelled()) continue;
          const std::int64_t rows = std::min(gradient_tile, queries.length - first);
          const Columns columns = find_columns(queries, first, rows, keys, block, count);
          if (columns.count == 0) continue;
          if (!loaded) finite = load_keys(keys.row + block, count);
          loaded = true;
          run_tile(queries.row + first, rows, head_kv * problem.group() + g, columns, finite);
        }
    if (!loaded) return;
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t row = keys.row + block + j - cell.first_row;
      tiles.store(DType::float32, scratch.dk + j * padded(dim()), dim(), target.dk + row * target.dk_stride, true);
      tiles.store(DType::float32, scratch.dv + j * padded(dim_v()), dim_v(), target.dv + row * target.dv_stride, true);
    }
  }

  Columns find_columns(const Piece& queries, std::int64_t first, std::int64_t rows, const Piece& keys,
                       std::int64_t block, std::int64_t count) const {
    const auto seen = [&](std::int64_t i) { return cell.item.visible(queries, first + i, keys, problem.kv_length(b)); };
    if (seen(0).lo >= block + count || seen(rows - 1).hi <= block) return {};
    for (std::int64_t i = 0; i < rows; ++i) scratch.seen[i] = seen(i);
    return clip(scratch.seen, 0, rows, rows, block, count, scratch.visible);
  }

  bool load_keys(std::int64_t row, std::int64_t count) const {
    const bool k_finite = load(step.k, stretch_begin + row, head_kv, count, dim(), scratch.k);
    const bool v_finite = load(step.v, stretch_begin + row, head_kv, count, dim_v(), scratch.v);
    tiles.transpose(scratch.k, padded(dim()), count, dim(), scratch.k_columns, key_block);
    tiles.transpose(scratch.v, padded(dim_v()), count, dim_v(), scratch.v_columns, key_block);
    std::fill_n(scratch.dk, count * padded(dim()), 0.0F);
    std::fill_n(scratch.dv, count * padded(dim_v()), 0.0F);
    return k_finite && v_finite;
  }

  void run_tile(std::int64_t row, std::int64_t rows, std::int64_t head, const Columns& columns,
                bool keys_finite) const {
    const bool q_finite = load(step.q, row, head, rows, dim(), scratch.q);
    const bool dout_finite = load(step.dout, row, head, rows, dim_v(), scratch.dout);
    const bool finite = keys_finite && q_finite && dout_finite;
    const std::int64_t state = (b * problem.num_heads_q + head) * step.query_rows + row;
    const std::int64_t width = padded(columns.count), d = padded(dim()), d_v = padded(dim_v());

    tiles.multiply({rows, width, dim(), scratch.q, d, 1, scratch.k_columns + columns.begin, key_block, scratch.scores,
                    key_block, false});
    tiles.multiply({rows, width, dim_v(), scratch.dout, d_v, 1, scratch.v_columns + columns.begin, key_block,
                    scratch.dscores, key_block, false});
    tiles.gradient({rows, width, scratch.scores, scratch.dscores, key_block, scratch.visible, problem.softmax_scale,
                    problem.softcap, step.lse + state, step.delta + state});
    multiply_transposed_weights(tiles,
                                {columns.count, d_v, rows, scratch.scores, 1, key_block, scratch.dout, d_v,
                                 scratch.dv + columns.begin * d_v, d_v, true},
                                scratch.visible, finite);
    multiply_transposed_weights(
        tiles,
        {columns.count, d, rows, scratch.dscores, 1, key_block, scratch.q, d, scratch.dk + columns.begin * d, d, true},
        scratch.visible, finite);
    multiply_weights(
        tiles,
        {rows, d, columns.count, scratch.dscores, key_block, 1, scratch.k + columns.begin * d, d, scratch.dq, d, false},
        scratch.visible, finite);
    for (std::int64_t i = 0; i < rows; ++i)
      tiles.store(DType::float32, scratch.dq + i * d, dim(), step.dq.at<float>(b, row + i, head), true);
  }

  bool load(const Tensor& t, std::int64_t row, std::int64_t head, std::int64_t rows, std::int64_t width,
            float* to) const {
    return tiles.load(t.dtype, static_cast<std::byte*>(t.data) + t.offset(b, row, head) * size_of(t.dtype),
                      t.seq_stride, rows, width, to, padded(width));
  }
};

}  // namespace

// Room for the partial gradients of the worst step: one item, since every further item or head needs fewer lanes of each.
static std::int64_t most_partial_floats(const Problem& p) {
  const std::int64_t lanes = choose_lanes(p, 1, std::numeric_limits<std::int64_t>::max());
  return lanes == 1 ? 0 : p.batch * p.num_heads_kv * lanes * stretch * (p.head_dim + p.head_dim_v);
}

std::size_t CpuEngine::scratch_bytes(const Problem& problem, Pass pass, int threads) const {
  const std::size_t per_thread =
      pass == Pass::forward ? ForwardScratch::bytes(problem) : BackwardScratch::bytes(problem);
  Arena shared;
  if (pass == Pass::backward) shared.take<float>(most_partial_floats(problem));
  return per_thread * static_cast<std::size_t>(threads) + shared.size();
}

void CpuEngine::backward(const Problem& problem, const BackwardStep& step, Threads& threads) {
  const std::int64_t groups = problem.batch * problem.num_heads_kv;
  auto* const partials =
      reinterpret_cast<float*>(static_cast<std::byte*>(step.scratch) +
                               BackwardScratch::bytes(problem) * static_cast<std::size_t>(threads.count()));
  for (std::int64_t begin = 0; begin < step.key_rows; begin += stretch) {
    std::vector<Cell> cells;
    std::vector<std::vector<Piece>> keys;
    for (const WorkItem& item : step.items) {
      std::vector<Piece> cut = cut_rows(item.keys, begin, std::min(begin + stretch, step.key_rows));
      if (cut.empty()) continue;
      Cell cell{.item = item};
      cell.first_row = cut.front().row;
      cell.rows = cut.back().row + cut.back().length - cell.first_row;
      cell.tiles = count_tiles(problem, item);
      keys.push_back(std::move(cut));
      cell.item.keys = keys.back();  // the pieces stay where they are when `keys` grows
      cells.push_back(cell);
    }
    std::int64_t lanes = 0, floats = 0;
    for (Cell& cell : cells) {
      cell.lanes = choose_lanes(problem, static_cast<std::int64_t>(cells.size()), cell.tiles);
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
      const BackwardScratch scratch = BackwardScratch::of_thread(problem, step.scratch, slot);
      Lane{tiles_,
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
          tiles_.store(DType::float32, from.dk + row * from.dk_stride, problem.head_dim, step.dk.at<float>(b, to, head),
                       true);
          tiles_.store(DType::float32, from.dv + row * from.dv_stride, problem.head_dim_v,
                       step.dv.at<float>(b, to, head), true);
        }
      });
    }
  }
}

}  // namespace ringattn::cpu
