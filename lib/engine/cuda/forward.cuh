// Forward on any GPU with asynchronous copies and tensor cores (sm_80 and newer): online softmax over tiles (Dao et al. 2022,
// "FlashAttention", Algorithm 1; Dao 2023, "FlashAttention-2").
//
//   a block takes a tile of query rows of one head, each of its warps 16 or 32 of them:
//     O, max, sum: what earlier steps have, or nothing yet; in registers, as fragments
//     for each tile of keys that some row sees, in ascending order:
//       V of the tile begins to travel
//       S = Q K^T                            K is there; Q stays in shared memory
//       K of the next tile begins to travel
//       scores, hidden ones -infinity        only where the tile is not seen whole by all rows
//       P = exp2(S - max), sum += P          max, and O and sum with it, changes only where a score is much larger
//       O += P V
//     (O, max, sum) for the next step, or O / sum, rounded, and lse
//
// Two barriers a tile: behind the first K of it is there, and V of the one before done with; behind the second V is there, and K done
// with. All else a warp does alone, and what it does for a row does not depend on the other rows: tiles of keys are counted from the
// item's first key, hidden keys add zeros, and every row has a max of its own.
//
// max is a number that the weights of a row are relative to: where weights are rounded to 16 bits, one near its largest score, which
// follows only when a score is 2^8 times as large, so that most tiles need not scale O; else the largest score.
//
// Registers are what is short: of 32 rows and 64 keys, at head_dim 128, O and S alone are 192 of 255. nvcc 13 spills 144 bytes of a
// thread there (sm_90a), up to 100 at 256, next to none at 64; what seldom changes is in shared memory for that reason.
//
// Modified kernels (modifiers.cuh) are others, so that a problem without modifiers pays nothing for them: a row may begin with a sink,
// what is added to a score is in units of its own before max is looked for, and dropout comes behind the sum.
// What it keeps is made larger where the row ends. Of 128 columns they spill 320 bytes where those without spill 144.
//
// 0 times infinity is not 0, and infinity has no parts: where a tile is hidden from some rows, or numbers are split, and V is not
// finite, those numbers are taken out of shared memory and added to the rows that see them, one by one.
#pragma once

#include "engine/cuda/forward.h"
#include "engine/cuda/modifiers.cuh"
#include "engine/cuda/running.cuh"
#include "engine/cuda/tile.cuh"
#include "plan/problem.h"

namespace ringattn::cuda {
namespace {

template <class T, int Dim, Weights weights, bool modified>
struct ForwardShape {
  static constexpr bool half = sizeof(T) == 2;
  static constexpr bool rounded = half && weights == Weights::rounded;
  static constexpr int warps = 4, threads = warps * warp_size;
  static constexpr int row_tiles = rounded && Dim <= 128 ? 2 : 1;  // of 16 rows, of a warp
  static constexpr int warp_rows = row_tiles * 16, rows = warps * warp_rows;
  static constexpr int keys = rounded && !(modified && Dim > 128) ? 64 : half || Dim <= 128 ? 32 : 16;
  static constexpr float slack = rounded ? 8 : 0;

  using Q = SharedTile<T, 0, rows, Dim>;
  using K = SharedTile<T, Q::end, keys, Dim>;
  using V = SharedTile<T, K::end, keys, Dim>;
  using Seen = Shared<Words<4>, V::end, rows>;         // Range of each row's keys, as they are counted in the block
  using Spoilt = Shared<std::uint32_t, Seen::end, 4>;  // whether V is, as each warp knows it
  using Own = Shared<Words<4>, Spoilt::end, warps>;    // Walk::Tiles of each warp, which has no registers to spare
  using Queries = Shared<Words<4>, Own::end, modified ? rows : 0>;   // ModifiedQuery of each row
  using Keys = Shared<Words<4>, Queries::end, modified ? keys : 0>;  // ModifiedKey of each key of a tile
  static constexpr int shared_bytes = Keys::end;
  static_assert(shared_bytes <= 99 * 1024);  // of the least of GPUs
};

// Which rows of which head a block has.
struct Unit {
  std::int32_t entry;  // of the launch's
  std::int64_t b;
  std::int32_t head, head_kv;
  std::int32_t tile;
};
// Heads of a group side by side, since they share keys; of an item the last rows first, since they mostly see the most keys.
template <class Parameters>
__device__ __forceinline__ Unit unit_of(const Parameters& p, std::int32_t index) {
  Unit unit;
  const std::int32_t g = index % p.group;
  index /= p.group;
  unit.tile = p.work.num_tiles - 1 - index % p.work.num_tiles;
  index /= p.work.num_tiles;
  unit.head_kv = index % p.num_heads_kv;
  unit.head = unit.head_kv * p.group + g;
  unit.entry = index / p.num_heads_kv;
  unit.b = p.work.first_entry + unit.entry;
  return unit;
}

__device__ __forceinline__ Words<4> words_of(Range range) {
  return {{static_cast<std::uint32_t>(range.begin), static_cast<std::uint32_t>(range.begin >> 32),
           static_cast<std::uint32_t>(range.end), static_cast<std::uint32_t>(range.end >> 32)}};
}
__device__ __forceinline__ Range range_of(const Words<4>& words) {
  return {static_cast<std::int64_t>(words[0] | std::uint64_t{words[1]} << 32),
          static_cast<std::int64_t>(words[2] | std::uint64_t{words[3]} << 32)};
}

__device__ __forceinline__ Words<4> words_of(const Walk::Tiles& tiles) {
  return {{static_cast<std::uint32_t>(tiles.begin), static_cast<std::uint32_t>(tiles.end),
           static_cast<std::uint32_t>(tiles.full_begin), static_cast<std::uint32_t>(tiles.full_end)}};
}
__device__ __forceinline__ Walk::Tiles tiles_of(const Words<4>& words) {
  return {static_cast<std::int32_t>(words[0]), static_cast<std::int32_t>(words[1]), static_cast<std::int32_t>(words[2]),
          static_cast<std::int32_t>(words[3])};
}

// Two neighbours in a row, of which the first is element `column`.
__device__ __forceinline__ void store_two(float* row, int column, int dim, float x, float y, bool pairs) {
  if (pairs && column < dim) {
    *reinterpret_cast<Words<2>*>(row + column) = {{bits_of(x), bits_of(y)}};
    return;
  }
  if (column < dim) row[column] = x;
  if (column + 1 < dim) row[column + 1] = y;
}
template <class T>
__device__ __forceinline__ void store_two(T* row, int column, int dim, float x, float y, bool pairs) {
  const std::uint32_t packed = pack<T>(x, y);
  if (pairs && column < dim) {
    *reinterpret_cast<Words<1>*>(row + column) = {{packed}};
    return;
  }
  if (column < dim) row[column].bits = static_cast<std::uint16_t>(packed);
  if (column + 1 < dim) row[column + 1].bits = static_cast<std::uint16_t>(packed >> 16);
}

// What a warp has of its rows. Of 16 rows a lane has columns 2 t and 2 t + 1 of every eight, of the rows group and group + 8 (`half`),
// with group = lane / 4 and t = lane % 4: four lanes share a row.
template <class T, int Dim, Weights weights, bool modified>
struct Forward {
  using Shape = ForwardShape<T, Dim, weights, modified>;
  using Parameters = ForwardParameters<modified>;
  using P = Product<T, weights>;
  using Q = typename Shape::Q;
  using K = typename Shape::K;
  using V = typename Shape::V;
  static constexpr int row_tiles = Shape::row_tiles, threads = Shape::threads, keys = Shape::keys;
  static constexpr int key_blocks = keys / 8, dim_blocks = Dim / 8;

  float out[row_tiles][dim_blocks][4];
  float max[row_tiles][2], sum[row_tiles][2];  // sum: this lane's part of it

  // Of the block's rows.
  __device__ __forceinline__ static int row_of(int m, int half) {
    return (warp_index() * row_tiles + m) * 16 + lane_index() / 4 + half * 8;
  }
  __device__ __forceinline__ static int column_of(int block) { return block * 8 + lane_index() % 4 * 2; }

  __device__ __forceinline__ void begin(const Parameters& p, const Unit& unit, std::int64_t stored, int rows) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half);
        const bool has_more = !p.first && row < rows;
        const std::int64_t state = (unit.b * p.num_heads_kv * p.group + unit.head) * p.query_rows + stored + row;
        RowState before{minus_infinity, 0.0F};
        if (has_more) before = {p.max[state], p.sum[state]};
        if constexpr (modified)
          if (p.first && p.beginning.sinks != nullptr) before = begin_with(p.beginning.sinks[unit.head]);
        max[m][half] = before.max;
        sum[m][half] = lane_index() % 4 == 0 ? before.sum : 0.0F;
        const float* const from = p.running.template at<const float>(unit.b, stored + row, unit.head);
#pragma unroll
        for (int n = 0; n < dim_blocks; ++n) {
          const int column = column_of(n);
          float x = 0, y = 0;
          if (has_more && column < p.head_dim_v) {
            if (p.pairs) {
              const Words<2> two = *reinterpret_cast<const Words<2>*>(from + column);
              x = float_of(two[0]) * P::weight_scale;
              y = float_of(two[1]) * P::weight_scale;
            } else {
              x = from[column] * P::weight_scale;
              if (column + 1 < p.head_dim_v) y = from[column + 1] * P::weight_scale;
            }
          }
          out[m][n][2 * half] = x;
          out[m][n][2 * half + 1] = y;
        }
      }
  }

  __device__ __forceinline__ void end(const Parameters& p, const Unit& unit, std::int64_t stored, int rows) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[m][half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        const int row = row_of(m, half);
        if (row >= rows) continue;
        const std::int64_t state = (unit.b * p.num_heads_kv * p.group + unit.head) * p.query_rows + stored + row;
        const bool is_mine = lane_index() % 4 == 0;
        if (!p.last) {
          if (is_mine) p.max[state] = max[m][half];
          if (is_mine) p.sum[state] = total;
          store<float>(p.running, unit, stored + row, m, half, p.head_dim_v, P::weight_scale, p.pairs);
          continue;
        }
        if (is_mine && p.lse != nullptr) p.lse[state] = log_of(max[m][half], total);
        float divisor = total == 0.0F ? 1.0F : total * P::weight_scale;
        if constexpr (modified) {
          if (p.modifiers.kept != 0.0F) divisor /= p.modifiers.kept;
          if (total == 0.0F) {  // keys that a bias hides may have values that are not finite
#pragma unroll
            for (int n = 0; n < dim_blocks; ++n) out[m][n][2 * half] = out[m][n][2 * half + 1] = 0.0F;
          }
        }
        if (p.out_type == static_cast<std::int32_t>(DType::float32))
          store<float>(p.out, unit, stored + row, m, half, p.head_dim_v, divisor, p.out_pairs);
        else if (p.out_type == static_cast<std::int32_t>(DType::bfloat16))
          store<BFloat16>(p.out, unit, stored + row, m, half, p.head_dim_v, divisor, p.out_pairs);
        else
          store<Float16>(p.out, unit, stored + row, m, half, p.head_dim_v, divisor, p.out_pairs);
      }
  }
  // A multiplication where the result will be rounded more coarsely.
  __device__ __forceinline__ static float divided(float x, float divisor) {
    return sizeof(T) == 2 && weights == Weights::rounded ? x * (1.0F / divisor) : x / divisor;
  }
  template <class To>
  __device__ __forceinline__ void store(const View& to, const Unit& unit, std::int64_t row, int m, int half, int dim,
                                        float divisor, bool pairs) const {
    To* const begin = to.at<To>(unit.b, row, unit.head);
#pragma unroll
    for (int n = 0; n < dim_blocks; ++n)
      store_two(begin, column_of(n), dim, divided(out[m][n][2 * half], divisor),
                divided(out[m][n][2 * half + 1], divisor), pairs);
  }

  float s[row_tiles][key_blocks][4];

  __device__ __forceinline__ void multiply_keys() {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int n = 0; n < key_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0F;
#pragma unroll 4  // 128 bytes of a row
    for (int k = 0; k < Dim; k += P::depth) {
      typename P::Left left[row_tiles];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) left[m] = P::template load_left<Q>((warp_index() * row_tiles + m) * 16, k);
#pragma unroll
      for (int n = 0; n < key_blocks; n += 2) {
        const typename P::Right right = P::template load_columns<K>(n * 8, k);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) P::multiply(s[m][n], s[m][n + 1], left[m], right);
      }
    }
  }

  __device__ __forceinline__ void make_scores(const Parameters& p) {
    if (p.score == Score::scaled) return;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int n = 0; n < key_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float x = s[m][n][i] * p.inner;
          s[m][n][i] = p.score == Score::capped ? hyperbolic_tangent(x) : x;
        }
  }

  // Scores with what is added to them, in units of their own.
  __device__ __forceinline__ void modify_scores(const Parameters& p, float slope) {
    const std::int64_t first = ModifiedKey::of(Shape::Keys::load(0)).position;
    float ahead[row_tiles][2];
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        ahead[m][half] = static_cast<float>(ModifiedQuery::of(Shape::Queries::load(row_of(m, half))).faced - first);
#pragma unroll
    for (int n = 0; n < key_blocks; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const ModifiedKey key = ModifiedKey::of(Shape::Keys::load(column_of(n) + i));
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& score = s[m][n][2 * half + i];
            const float x = score * p.inner;
            score = (p.score == Score::capped ? p.beginning.cap * hyperbolic_tangent(x) : x) +
                    added_score(slope, ahead[m][half], key.offset, key.bias);
          }
      }
  }

  // Of the tile whose first key is number `begin`, as they are counted in the block.
  __device__ __forceinline__ static Range seen_of(int row, std::int64_t begin) {
    const Range seen = range_of(Shape::Seen::load(row));
    return {largest(seen.begin - begin, 0), least(seen.end - begin, keys)};
  }

  __device__ __forceinline__ void hide(std::int64_t begin) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Range seen = seen_of(row_of(m, half), begin);
        const int from = static_cast<int>(least(seen.begin, keys)), to = static_cast<int>(largest(seen.end, 0));
#pragma unroll
        for (int n = 0; n < key_blocks; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = column_of(n) + i;
            if (key < from || key >= to) s[m][n][2 * half + i] = minus_infinity;
          }
      }
  }

  // Scores become weights.
  __device__ __forceinline__ void make_weights(float outer) {
    float factor[row_tiles][2];
    bool changes = false;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = minus_infinity;
#pragma unroll
        for (int n = 0; n < key_blocks; ++n) top = larger(top, larger(s[m][n][2 * half], s[m][n][2 * half + 1]));
        top = larger(top, shuffle_xor(top, 1));
        top = larger(top, shuffle_xor(top, 2));
        const float before = max[m][half], here = top * outer;
        factor[m][half] = 1.0F;
        if (here > before + Shape::slack) {  // not if it is not a number
          max[m][half] = here;
          factor[m][half] = exp2_approx(before - here);
          changes = true;
        }
        const float subtracted = max[m][half] == minus_infinity ? 0.0F : max[m][half];
        float total = 0.0F;
#pragma unroll
        for (int n = 0; n < key_blocks; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = s[m][n][2 * half + i];
            x = exp2_approx(multiply_add(x, outer, -subtracted));
            total += x;
          }
        sum[m][half] = multiply_add(sum[m][half], factor[m][half], total);
      }
    if (!any_lane(changes)) return;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int n = 0; n < dim_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n][i] *= factor[m][i / 2];
  }

  // Drops weights. Bits of all pairs first, row by row in a loop that is not unrolled: Philox is long.
  __device__ __forceinline__ void drop(const ModifierParameters& p) {
    constexpr int of_row = 2 * key_blocks;
    const bool in_fours = are_in_fours<typename Shape::Keys>(0, keys);
    std::uint64_t kept = 0;
#pragma unroll 1
    for (int r = 0; r < 2 * row_tiles; ++r) {
      const PhiloxKey query = ModifiedQuery::of(Shape::Queries::load(row_of(r / 2, r % 2))).dropout;
      kept |= std::uint64_t{kept_of_row<typename Shape::Keys, key_blocks>(p, query, 0, in_fours)} << (r * of_row);
    }
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int n = 0; n < key_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if ((kept >> ((2 * m + i / 2) * of_row + 2 * n + i % 2) & 1) == 0) s[m][n][i] = 0.0F;
  }

  // What is not finite in V, to the rows that see it. Seldom called, so not to cost registers: in loops over copies in
  // local memory.
  __device__ __forceinline__ void add_spoilt(std::int64_t begin) {
    float weights_here[row_tiles][key_blocks][4], sums[row_tiles][dim_blocks][4];
    copy(s, weights_here);
    copy(out, sums);
#pragma unroll 1
    for (int key = 0; key < keys; ++key)
#pragma unroll 1
      for (int i = 0; i < 2 * row_tiles; ++i) {
        const int m = i / 2, half = i % 2;
        const float weight =
            broadcast(weights_here[m][key / 8][2 * half + key % 2], lane_index() / 4 * 4 + key % 8 / 2);
        const Range seen = seen_of(row_of(m, half), begin);
        if (key < seen.begin || key >= seen.end) continue;
#pragma unroll 1
        for (int n = 0; n < 2 * dim_blocks; ++n) {
          const float x = number_of(V::Memory::load(V::at(key, column_of(n / 2) + n % 2)));
          float& sum_of_column = sums[m][n / 2][2 * half + n % 2];
          if (!is_finite(x)) sum_of_column = multiply_add(weight, x, sum_of_column);
        }
      }
    copy(sums, out);
  }

  template <int blocks>
  __device__ __forceinline__ static void copy(const float (&from)[row_tiles][blocks][4],
                                              float (&to)[row_tiles][blocks][4]) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m)
#pragma unroll
      for (int n = 0; n < blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) to[m][n][i] = from[m][n][i];
  }

  __device__ __forceinline__ void multiply_values() {
#pragma unroll
    for (int k = 0; k < keys; k += P::depth) {
      typename P::WeightsLeft left[row_tiles];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        float weights_of_step[P::blocks][4];
#pragma unroll
        for (int n = 0; n < P::blocks; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) weights_of_step[n][i] = s[m][k / 8 + n][i];
        left[m] = P::make_weights(weights_of_step);
      }
#pragma unroll
      for (int n = 0; n < dim_blocks; n += 2) {
        const typename P::Right right = P::template load_rows<V>(k, n * 8);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) P::multiply(out[m][n], out[m][n + 1], left[m], right);
      }
    }
  }
};

template <class T, int Dim, Weights weights, bool modified>
__global__ void __launch_bounds__(ForwardShape<T, Dim, weights, modified>::threads)
    forward(const __grid_constant__ ForwardParameters<modified> p) {
  using Warp = Forward<T, Dim, weights, modified>;
  using Shape = typename Warp::Shape;
  constexpr int keys = Shape::keys, threads = Shape::threads;
  if (p.only_if != nullptr && *p.only_if == 0) return;
  const Unit unit = unit_of(p, p.first_block + block_index().x);
  const auto& item = p.work.item_of(unit.tile);
  const std::int64_t kv_length = p.work.kv_length(unit.entry);
  const std::int64_t first_row = std::int64_t{unit.tile - item.first_tile} * Shape::rows;
  const std::int64_t stored = item.queries.row + first_row;
  const int rows = static_cast<int>(least(item.queries.count() - first_row, Shape::rows));
  const Walk walk = walk_keys(item, first_row, rows, kv_length);
  if (walk.some.empty() && !p.first && !p.last) return;
  float slope = 0.0F;
  if constexpr (modified)
    if (p.modifiers.slopes != nullptr) slope = p.modifiers.slopes[unit.head];

  // From here on tiles, and keys, are counted from the first tile that is seen. Of the first and the last some keys may not be.
  const std::int64_t origin = walk.some.begin / keys;
  const Walk::Tiles tiles = walk.in_tiles(keys, origin);
  const int first_begin = static_cast<int>(walk.some.begin - origin * keys);
  const int last_end = static_cast<int>(walk.some.end - (origin + tiles.end - 1) * keys);
  const std::int64_t key_row = item.keys.row + origin * keys;
  const auto copy = [&]<class Tile>(Tile, const View& from, int tile, int dim, bool aligned) {
    copy_rows<Tile, threads>({from.at<const T>(unit.b, key_row + std::int64_t{tile} * keys, unit.head_kv),
                              from.seq_stride, tile == 0 ? first_begin : 0, tile + 1 == tiles.end ? last_end : keys,
                              dim, aligned});
    cp_async_commit();
  };
  if (tiles.end > 0) {
    copy_rows<typename Warp::Q, threads>(
        {p.q.template at<const T>(unit.b, stored, unit.head), p.q.seq_stride, 0, rows, p.head_dim, p.q_aligned});
    copy(typename Warp::K{}, p.k, 0, p.head_dim, p.k_aligned);
    for (int i = thread_index(); i < Shape::rows; i += threads) {
      Range seen{0, 0};
      if (i < rows) seen = item.keys_of(first_row + i, kv_length);
      Shape::Seen::store(i, words_of(Range{seen.begin - origin * keys, seen.end - origin * keys}));
      if constexpr (modified)
        Shape::Queries::store(i, modified_query(p.modifiers, item, first_row + i, unit.b, unit.head).words());
    }
    if (lane_index() == 0) {
      const int first = warp_index() * Shape::warp_rows;
      Walk::Tiles own{0, 0, 0, 0};
      if (first < rows)
        own =
            walk_keys(item, first_row + first, least(rows - first, Shape::warp_rows), kv_length).in_tiles(keys, origin);
      Shape::Own::store(warp_index(), words_of(own));
    }
  }

  Warp warp;
  warp.begin(p, unit, stored, rows);
  for (int tile = 0; tile < tiles.end; ++tile) {
    const bool may_be_spoilt = !Shape::rounded || !tiles.is_full(tile);
    cp_async_wait<0>();
    barrier();
    const Walk::Tiles own = tiles_of(Shape::Own::load(warp_index()));
    const bool is_seen = own.has(tile);         // by some of this warp's rows
    const bool is_hidden = !own.is_full(tile);  // from some of them
    copy(typename Warp::V{}, p.v, tile, p.head_dim_v, p.v_aligned);
    if constexpr (modified)
      for (int i = thread_index(); i < keys; i += threads)
        Shape::Keys::store(
            i, modified_key(p.modifiers, item, (origin + tile) * keys + i, (origin + tile) * keys, unit.b).words());
    if (is_seen) warp.multiply_keys();
    cp_async_wait<0>();
    if (may_be_spoilt) {
      const bool spoilt = any_lane(own_is_spoilt<typename Warp::V, threads>());
      if (lane_index() == 0) Shape::Spoilt::store(warp_index(), spoilt ? 1 : 0);
    }
    barrier();
    if (tile + 1 < tiles.end) copy(typename Warp::K{}, p.k, tile + 1, p.head_dim, p.k_aligned);
    if (is_seen) {
      if constexpr (modified)
        warp.modify_scores(p, slope);
      else
        warp.make_scores(p);
      if (is_hidden) warp.hide(std::int64_t{tile} * keys);
      warp.make_weights(p.outer);
      if constexpr (modified)
        if (p.modifiers.kept != 0.0F) warp.drop(p.modifiers);
    }
    if (may_be_spoilt) {
      const Words<4> spoilt = Shape::Spoilt::load16(0);
      if ((spoilt[0] | spoilt[1] | spoilt[2] | spoilt[3]) != 0) {
        if (is_seen) warp.add_spoilt(std::int64_t{tile} * keys);
        barrier();
        clear_own_spoilt<typename Warp::V, threads>();
        barrier();
      }
    }
    if (is_seen) warp.multiply_values();
  }
  warp.end(p, unit, stored, rows);
}

}  // namespace

template <class T, int dim, Weights weights, bool modified>
ForwardKernel<modified> forward_kernel() {
  using Shape = ForwardShape<T, dim, weights, modified>;
  constexpr const char* names[3][2] = {{"forward_f32", "forward_f32_modified"},
                                       {"forward_bf16", "forward_bf16_modified"},
                                       {"forward_f16", "forward_f16_modified"}};
  constexpr int type = std::is_same_v<T, float> ? 0 : std::is_same_v<T, BFloat16> ? 1 : 2;
  return {names[type][modified ? 1 : 0], forward<T, dim, weights, modified>, Shape::rows, Shape::threads,
          Shape::shared_bytes};
}

}  // namespace ringattn::cuda
