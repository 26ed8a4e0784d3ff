// Forward on a CPU: online softmax over tiles (Dao et al. 2022, "FlashAttention", Algorithm 1).
//
//   for each unit in parallel:  the query rows of one stretch of one piece, in all heads of a group
//     load Q, and the running (O, max, sum) or their beginning
//     for each block of 128 keys that any row sees:
//       load K (transposed) and V once for all rows and heads of the unit
//       for each tile of 32 rows that sees some of it:   S = Q K^T;  P = softmax(S), running;  O = O * factor + P V
//     store the running (O, max, sum), or divide, round and write out and lse
//
// A row's arithmetic does not depend on which rows share its tile or unit: hidden keys add zeros, sums run over keys in
// ascending order, and blocks begin at fixed places of a piece. So results do not depend on threads or on how units are cut.
// 0 * infinity is not 0: a block whose V is not finite is multiplied row by row, over the visible keys only.
#include <algorithm>
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
};

struct Attend {
  const Tiles& tiles;
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
  std::int64_t stored(std::int64_t i) const { return unit.queries->row + unit.first + i; }
  // Where row i of head g stands in lse, max and sum.
  std::int64_t state(std::int64_t g, std::int64_t i) const {
    return (b * problem.num_heads_q + head(g)) * step.query_rows + stored(i);
  }

  void run() const {
    begin();
    for (const Piece& keys : unit.item->keys) attend_piece(keys);
    step.last ? finish() : keep();
  }

  void begin() const {
    for (std::int64_t g = 0; g < problem.group(); ++g)
      tiles.load(problem.dtype, address(step.q, stored(0), head(g)), step.q.seq_stride, unit.rows, dim(),
                 scratch.q + g * unit.rows * padded(dim()), padded(dim()));
    for_each_row([&](std::int64_t g, std::int64_t i, std::int64_t r) {
      float* out = scratch.out + r * padded(dim_v());
      if (step.first) {
        std::fill_n(out, padded(dim_v()), 0.0F);
        scratch.max[r] = -infinity;
        scratch.sum[r] = 0.0F;
      } else {
        std::memcpy(out, step.running.at<float>(b, stored(i), head(g)),
                    static_cast<std::size_t>(dim_v()) * sizeof(float));
        scratch.max[r] = step.max[state(g, i)];
        scratch.sum[r] = step.sum[state(g, i)];
      }
    });
  }

  void keep() const {
    for_each_row([&](std::int64_t g, std::int64_t i, std::int64_t r) {
      std::memcpy(step.running.at<float>(b, stored(i), head(g)), scratch.out + r * padded(dim_v()),
                  static_cast<std::size_t>(dim_v()) * sizeof(float));
      step.max[state(g, i)] = scratch.max[r];
      step.sum[state(g, i)] = scratch.sum[r];
    });
  }

  void finish() const {
    for_each_row([&](std::int64_t g, std::int64_t i, std::int64_t r) {
      const float sum = scratch.sum[r];
      const bool nothing = sum == 0.0F;
      float* out = scratch.out + r * padded(dim_v());
      for (std::int64_t d = 0; d < dim_v(); ++d) out[d] = nothing ? 0.0F : out[d] / sum;
      tiles.store(step.out.dtype, out, dim_v(), address(step.out, stored(i), head(g)), false);
      if (step.lse != nullptr) step.lse[state(g, i)] = nothing ? -infinity : log_sum_exp(scratch.max[r], sum);
    });
  }

  void attend_piece(const Piece& keys) const {
    std::int64_t begin = keys.length, end = 0;
    for (std::int64_t i = 0; i < unit.rows; ++i) {
      const Interval seen = unit.item->visible(*unit.queries, unit.first + i, keys, problem.kv_length(b));
      scratch.seen[i] = seen;
      if (seen.empty()) continue;
      begin = std::min(begin, seen.lo);
      end = std::max(end, seen.hi);
    }
    for (std::int64_t block = begin / key_block * key_block; block < end && !threads.cancelled(); block += key_block)
      attend_block(keys, block, std::min(key_block, keys.length - block));
  }

  void attend_block(const Piece& keys, std::int64_t block, std::int64_t count) const {
    const std::int64_t row = keys.row + block;
    tiles.load(problem.dtype, address(step.k, row, head_kv), step.k.seq_stride, count, dim(), scratch.rows,
               padded(dim()));
    tiles.transpose(scratch.rows, padded(dim()), count, dim(), scratch.k, key_block);
    const bool finite = tiles.load(problem.dtype, address(step.v, row, head_kv), step.v.seq_stride, count, dim_v(),
                                   scratch.v, padded(dim_v()));
    for (std::int64_t r = 0; r < total(); r += query_tile)
      attend_tile(r, std::min(query_tile, total() - r), block, count, finite);
  }

  void attend_tile(std::int64_t r, std::int64_t rows, std::int64_t block, std::int64_t count, bool finite) const {
    const Columns columns = clip(scratch.seen, r % unit.rows, unit.rows, rows, block, count, scratch.visible);
    if (columns.count == 0) return;
    tiles.multiply({rows, padded(columns.count), dim(), scratch.q + r * padded(dim()), padded(dim()), 1,
                    scratch.k + columns.begin, key_block, scratch.scores, key_block, false});
    tiles.softmax({rows, padded(columns.count), scratch.scores, key_block, scratch.visible, problem.softmax_scale,
                   problem.softcap, scratch.max + r, scratch.sum + r, scratch.factor});
    float* out = scratch.out + r * padded(dim_v());
    const float* v = scratch.v + columns.begin * padded(dim_v());
    tiles.scale(out, padded(dim_v()), rows, dim_v(), scratch.factor);
    multiply_weights(tiles,
                     {rows, padded(dim_v()), columns.count, scratch.scores, key_block, 1, v, padded(dim_v()), out,
                      padded(dim_v()), true},
                     scratch.visible, finite);
  }

  std::byte* address(const Tensor& t, std::int64_t row, std::int64_t h) const {
    return static_cast<std::byte*>(t.data) + t.offset(b, row, h) * size_of(t.dtype);
  }

  template <class F>
  void for_each_row(F&& f) const {
    for (std::int64_t g = 0; g < problem.group(); ++g)
      for (std::int64_t i = 0; i < unit.rows; ++i) f(g, i, g * unit.rows + i);
  }
};

}  // namespace

void CpuEngine::forward(const Problem& problem, const ForwardStep& step, Threads& threads) {
  const std::int64_t unit_rows = forward_unit_rows(problem, step.query_rows, threads.count());
  std::vector<Unit> units;
  for (const WorkItem& item : step.items)
    for (const Piece& queries : item.queries)
      for (std::int64_t first = 0; first < queries.length; first += unit_rows)
        units.push_back({&item, &queries, first, std::min(unit_rows, queries.length - first)});

  const std::int64_t lanes = problem.batch * problem.num_heads_kv;
  threads.for_each(static_cast<std::int64_t>(units.size()) * lanes, [&](std::int64_t index, int slot) {
    const std::int64_t lane = index % lanes;
    const ForwardScratch scratch = ForwardScratch::of_thread(problem, step.scratch, slot);
    Attend{tiles_,
           problem,
           step,
           threads,
           scratch,
           units[static_cast<std::size_t>(index / lanes)],
           lane / problem.num_heads_kv,
           lane % problem.num_heads_kv}
        .run();
  });
}

}  // namespace ringattn::cpu
