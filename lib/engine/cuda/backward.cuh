// Gradients on any GPU with asynchronous copies and tensor cores (sm_80 and newer), recomputed from lse (Dao et al. 2022,
// "FlashAttention", Algorithm 4). Two kernels that are one: a block has rows of one side of an item, its own, in one head, and walks
// along those of the other side that they see, or that see them.
//
//                own X   own Y   other X  other Y     a block                                  computes
//   queries      q       dout    k        v           of a query head                          dq += scale dS K
//   keys         k       v       q        dout        of a head of keys; its query heads       dk += scale dS Q,  dv += P dout
//                                                     one after the other                      (P and dS are transposed)
//
//   own X and own Y into shared memory
//   for each tile of the other side, of which the next one travels meanwhile where there is room:
//     S = own X (other X)^T     dP = own Y (other Y)^T        16 rows of own a warp; in registers from here on
//     P = exp(score(S) - lse)   dS = P (dP - delta) score'    hidden ones are 0
//     gradient of own X += dS (other X)     gradient of own Y += P (other Y), of keys
//   add to the gradients in memory
//
// A block alone adds to its rows, in an order that depends on the item alone: results are repeatable, and no memory is needed but for
// the gradients themselves. The price is that S and dP are computed twice: 7 products instead of 5. Where the gradients of keys and of
// values would not fit in registers together, two blocks compute one each.
//
// Modified kernels (modifiers.cuh) are others: there score has what is added to it, and with D what dropout multiplies weights by, 0 or
// 1 / (1 - p), dS = P (D dP - delta) score' and the gradient of own Y is of P D. The factor itself comes with the sum.
//
// 0 times infinity is not 0. If a row of the other side has anything that is not finite, so has its column of S or dP, in every warp.
// Where such a tile is hidden from some rows, the last two products are made row by row, for own rows that see them alone, in fp32. So
// they are of TF32 numbers always, whose parts would be infinity minus infinity.
#pragma once

#include "engine/cuda/backward.h"
#include "engine/cuda/modifiers.cuh"
#include "engine/cuda/running.cuh"
#include "engine/cuda/tile.cuh"

namespace ringattn::cuda {
namespace {

constexpr std::uint32_t infinity_bits = 0x7f800000, minus_infinity_bits = 0xff800000;

// Two stages fit in the 99 KB that a block may have on the least of GPUs, but for the widest rows of floats.
template <class T, int Dim, bool modified = false>
struct BackwardShape {
  static constexpr bool half = sizeof(T) == 2;
  static constexpr int warps = half || Dim <= 128 ? 4 : 2, threads = warps * warp_size;
  static constexpr int rows = 16 * warps;                // own
  static constexpr int others = half ? 4096 / Dim : 16;  // a tile of them
  static constexpr int stages = half || Dim <= 128 ? 2 : 1;

  using OwnX = SharedTile<T, 0, rows, Dim>;
  using OwnY = SharedTile<T, OwnX::end, rows, Dim>;
  using OtherX = SharedTile<T, OwnY::end, stages * others, Dim>;
  using OtherY = SharedTile<T, OtherX::end, stages * others, Dim>;
  // Of queries that are the other side: lse, infinity where nothing is seen; delta; and own rows begin .. end - 1 are seen.
  using Lse = Shared<float, OtherY::end, stages * others>;
  using Delta = Shared<float, Lse::end, stages * others>;
  using Begin = Shared<std::int32_t, Delta::end, stages * others>;
  using End = Shared<std::int32_t, Begin::end, stages * others>;
  // ModifiedQuery of each query and ModifiedKey of each key, own ones and others.
  using OwnModified = Shared<Words<4>, End::end, modified ? rows : 0>;
  using OtherModified = Shared<Words<4>, OwnModified::end, modified ? stages * others : 0>;
  static constexpr int shared_bytes = OtherModified::end;
  static_assert(shared_bytes <= 99 * 1024);
};

// Rows of some head in one entry of the batch.
struct HeadRows {
  const View& view;
  std::int64_t b, first, head;
  int there;  // of the tile's; zeros elsewhere
  DType dtype;
  int dim;
  bool aligned;

  __device__ __forceinline__ std::int64_t offset() const {
    return b * view.batch_stride + first * view.seq_stride + head * view.head_stride;
  }
  __device__ __forceinline__ float number(std::int64_t at) const {
    switch (dtype) {
      case DType::bfloat16:
        return number_of(static_cast<const BFloat16*>(view.data)[at]);
      case DType::float16:
        return number_of(static_cast<const Float16*>(view.data)[at]);
      default:
        return static_cast<const float*>(view.data)[at];
    }
  }
};

// What is multiplied: whole steps of either kind of product.
__device__ __forceinline__ int whole_steps(int dim) { return (dim + 15) / 16 * 16; }

// To `rows` rows of the tile, from row `to` on. They are there after cp_async_wait and a barrier.
template <class Tile, int rows, int threads>
__device__ __forceinline__ void copy_head_rows(int to, const HeadRows& from) {
  using T = typename Tile::Element;
  constexpr int size = static_cast<int>(sizeof(T));
  const std::int64_t offset = from.offset();
  const int columns = whole_steps(from.dim);
  const bool travels = from.aligned && (size == 2 || from.dtype == DType::float32);
#pragma unroll 1
  for (int i = thread_index(); i < rows * Tile::pieces; i += threads) {
    const int row = i / Tile::pieces, column = i % Tile::pieces * Tile::piece;
    if (column >= columns) continue;
    const int left = row < from.there ? from.dim - column : 0;
    const int elements = left < 0 ? 0 : left > Tile::piece ? Tile::piece : left;
    const std::int64_t at = offset + row * from.view.seq_stride + column;
    if (travels) {
      const T* const data = static_cast<const T*>(from.view.data);
      cp_async(Tile::Memory::address(Tile::at(to + row, column)), elements > 0 ? data + at : data, elements * size);
      continue;
    }
    Words<4> words{};
    for (int e = 0; e < elements; ++e) {
      if constexpr (size == 4)
        words[e] = bits_of(from.number(at + e));
      else
        words[e / 2] |= element_bits(static_cast<const T*>(from.view.data) + at + e) << (e % 2 * 16);
    }
    Tile::Memory::store16(Tile::at(to + row, column), words);
  }
}

template <bool first, class A, class B>
__device__ __forceinline__ auto& one_of(A& a, B& b) {
  if constexpr (first)
    return a;
  else
    return b;
}

// A warp's part of what its block does: 16 of the own rows. Of these a lane has `group` and group + 8 (`half`), with group = lane / 4,
// and of the tile's other rows 8j + 2t and 8j + 2t + 1.
template <class T, int Dim, Weights weights, bool of_keys, bool modified = false>
struct Backward {
  using Shape = BackwardShape<T, Dim, modified>;
  using P = Product<T, weights>;
  static constexpr bool is_float = sizeof(T) == 4, exact = weights == Weights::exact;
  static constexpr int others = Shape::others, other_blocks = others / 8, dim_blocks = Dim / 8;
  using Scores = float[other_blocks][4];
  using Sums = float[dim_blocks][4];

  __device__ __forceinline__ static int own_row(int half) { return 16 * warp_index() + lane_index() / 4 + 8 * half; }
  __device__ __forceinline__ static int column_of(int j, int h) { return 8 * j + lane_index() % 4 * 2 + h; }

  // As P::multiply, and the same to the bit where left and right change places: queries, keys and delta have but one dP.
  __device__ __forceinline__ static void multiply_alike(float (&c0)[4], float (&c1)[4], const typename P::Left& left,
                                                        const typename P::Right& right) {
    if constexpr (!is_float) {
      P::multiply(c0, c1, left, right);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float even[4] = {}, less[4] = {}, more[4] = {};  // parts of equal size; of left smaller; of left larger
        const auto part_of_right = [&](int n) {
          return Words<2>{{right.part[n][2 * half], right.part[n][2 * half + 1]}};
        };
#pragma unroll
        for (int of_both = P::parts - 1; of_both >= 0; --of_both)  // the smallest first
#pragma unroll
          for (int i = 0; i <= of_both; ++i)
            mma_m16n8k8_tf32(2 * i == of_both  ? even
                             : 2 * i > of_both ? less
                                               : more,
                             left.part[i], part_of_right(of_both - i));
#pragma unroll
        for (int i = 0; i < 4; ++i) (half == 0 ? c0 : c1)[i] += even[i] + (less[i] + more[i]);
      }
    }
  }

  // s = own other^T over the first `columns` of both, of 16 own rows and 8 `blocks` others, which begin with row `at`.
  template <class Own, class Other, int blocks>
  __device__ __forceinline__ static void multiply_rows(float (&s)[blocks][4], int at, int columns) {
#pragma unroll
    for (int j = 0; j < blocks; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = 0.0F;
#pragma unroll 2
    for (int k = 0; k < columns; k += P::depth) {
      const typename P::Left left = P::template load_left<Own>(16 * warp_index(), k);
#pragma unroll
      for (int j = 0; j < blocks; j += 2)
        multiply_alike(s[j], s[j + 1], left, P::template load_columns<Other>(at + 8 * j, k));
    }
    if constexpr (is_float) {
      // Of what is not finite, or of products that are too large, parts do not tell what it is.
#pragma unroll
      for (int j = 0; j < blocks; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (is_finite(s[j][i])) continue;
          s[j][i] = 0.0F;
          for (int k = 0; k < columns; ++k)
            s[j][i] = multiply_add(Own::Memory::load(Own::at(own_row(i / 2), k)),
                                   Other::Memory::load(Other::at(at + column_of(j, i % 2), k)), s[j][i]);
        }
    }
  }

  __device__ __forceinline__ static bool are_finite(const Scores& s) {
    bool finite = true;
#pragma unroll
    for (int j = 0; j < other_blocks; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) finite &= is_finite(s[j][i]);
    return finite;
  }

  // Which of a tile's other rows see own row `half` of this lane, or are seen by it.
  struct Sees {
    int at;                         // of keys: where the tile begins
    std::int32_t begin[2], end[2];  // of queries: other rows begin .. end - 1 of the tile

    __device__ __forceinline__ bool operator()(int half, int row) const {
      if constexpr (of_keys)
        return Shape::Begin::load(at + row) <= own_row(half) && own_row(half) < Shape::End::load(at + row);
      else
        return begin[half] <= row && row < end[half];
    }
  };

  // sum += w other, one row of the other side after the other, of the own rows that see it alone.
  struct Terms {
    Sums sum;
    Scores w;
  };
  template <class Other>
  __device__ RA_APART static void add_row_by_row(Terms& terms, int at, int columns, Sees sees) {
    for (int row = 0; row < others; ++row)
      for (int half = 0; half < 2; ++half) {
        const float weight = broadcast(terms.w[row / 8][2 * half + row % 2], lane_index() / 4 * 4 + row % 8 / 2);
        if (!sees(half, row)) continue;
        for (int n = 0; 8 * n < columns; ++n)
          for (int i = 0; i < 2; ++i) {
            float& sum = terms.sum[n][2 * half + i];
            sum = multiply_add(weight, number_of(Other::Memory::load(Other::at(at + row, column_of(n, i)))), sum);
          }
      }
  }

  // sum += w other, over the first `columns` columns of it.
  template <class Other>
  __device__ __forceinline__ static void multiply_weights(Sums& sum, const Scores& w, int at, int columns) {
#pragma unroll
    for (int j = 0; j < other_blocks; j += P::blocks) {
      float of_step[P::blocks][4];
#pragma unroll
      for (int n = 0; n < P::blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) of_step[n][i] = w[j + n][i];
      const typename P::WeightsLeft left = P::make_weights(of_step);
#pragma unroll
      for (int n = 0; n < dim_blocks; n += 2)
        if (8 * n < columns) P::multiply(sum[n], sum[n + 1], left, P::template load_rows<Other>(at + 8 * j, 8 * n));
    }
  }

  // What modifiers do to the scores and weights of a tile, whose other rows begin with row `at`.
  struct Change {
    int at;
    float slope = 0.0F;
    std::int64_t first = 0;              // key of the own or of the other rows
    float ahead[2] = {};                 // of own queries: the key that each faces, from the first on
    float offset[2] = {}, bias[2] = {};  // of own keys
    float kept = 0.0F;                   // ModifierParameters
    std::uint32_t bits[2] = {~0U, ~0U};  // of kept pairs

    template <class Parameters>
    __device__ __forceinline__ Change(const Parameters& p, int at, [[maybe_unused]] std::int32_t query_head) : at(at) {
      if constexpr (modified) {
        if (p.modifiers.slopes != nullptr) slope = p.modifiers.slopes[query_head];
        first = ModifiedKey::of(of_keys ? Shape::OwnModified::load(0) : Shape::OtherModified::load(at)).position;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Words<4> own = Shape::OwnModified::load(own_row(half));
          if constexpr (of_keys) {
            offset[half] = ModifiedKey::of(own).offset;
            bias[half] = ModifiedKey::of(own).bias;
          } else {
            ahead[half] = static_cast<float>(ModifiedQuery::of(own).faced - first);
          }
        }
        kept = p.modifiers.kept;
        if (kept != 0.0F) draw(p.modifiers);
      }
    }
    // Bits of all pairs, of both own rows.
    __device__ __forceinline__ void draw(const ModifierParameters& p) {
      using Own = typename Shape::OwnModified;
      using Other = typename Shape::OtherModified;
      const bool in_fours = of_keys ? are_in_fours<Own>(0, Shape::rows) : are_in_fours<Other>(at, others);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (of_keys)
          bits[half] = kept_of_column<Own, Other, other_blocks>(p, own_row(half), at, in_fours);
        else
          bits[half] =
              kept_of_row<Other, other_blocks>(p, ModifiedQuery::of(Own::load(own_row(half))).dropout, at, in_fours);
      }
    }
    __device__ __forceinline__ bool keeps(int j, int i) const { return (bits[i / 2] >> (2 * j + i % 2) & 1) != 0; }

    __device__ __forceinline__ float added(int j, int i) const {
      const Words<4> other = Shape::OtherModified::load(at + column_of(j, i % 2));
      if constexpr (of_keys)
        return added_score(slope, static_cast<float>(ModifiedQuery::of(other).faced - first), offset[i / 2],
                           bias[i / 2]);
      else
        return added_score(slope, ahead[i / 2], ModifiedKey::of(other).offset, ModifiedKey::of(other).bias);
    }
  };

  // lse as differentiate subtracts it: infinity, so that weights are 0, of a row that sees nothing. Where digits matter the difference
  // is made of scores as they are, and only then becomes an exponent of 2.
  static constexpr float units_of_lse = exact || is_float ? 1.0F : log2_of_e;
  __device__ __forceinline__ static float subtracted(float lse) {
    return bits_of(lse) == minus_infinity_bits ? float_of(infinity_bits) : lse * units_of_lse;
  }

  // Products s and dp become P and dS, but for the softmax scale. lse(j, i) and delta(j, i): of element i of block j, lse as subtracted.
  // change: of a tile of modified ones; P comes out as it is after dropout, but for what is kept being made larger.
  template <bool is_capped, class Lse, class Delta>
  __device__ __forceinline__ static void differentiate(Scores& s, Scores& dp, float scale, float softcap, Lse&& lse,
                                                       Delta&& delta, const Change& change) {
    constexpr float units_of_rest = units_of_lse == 1.0F ? log2_of_e : 1.0F;
    const float factor = (is_capped ? softcap : scale) * units_of_lse;
#pragma unroll
    for (int j = 0; j < other_blocks; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float score = s[j][i], slope = 1.0F;
        if constexpr (is_capped) {
          score = hyperbolic_tangent(score * scale / softcap);
          slope = 1.0F - score * score;
        }
        if constexpr (modified)
          s[j][i] =
              exp2_approx((multiply_add(score, factor, change.added(j, i) * units_of_lse) - lse(j, i)) * units_of_rest);
        else
          s[j][i] = exp2_approx(multiply_add(score, factor, -lse(j, i)) * units_of_rest);
        if constexpr (modified) {
          const float weight = s[j][i];
          const bool is_kept = change.keeps(j, i);
          if (change.kept != 0.0F) dp[j][i] = is_kept ? dp[j][i] * change.kept : 0.0F;
          if (!is_kept) s[j][i] = 0.0F;
          dp[j][i] = weight * (dp[j][i] - delta(j, i)) * slope;
        } else {
          dp[j][i] = s[j][i] * (dp[j][i] - delta(j, i)) * slope;
        }
      }
  }

  __device__ __forceinline__ static void add_to(const View& to, std::int64_t b, std::int64_t first, std::int64_t head,
                                                int there, int dim, const Sums& sum, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (own_row(half) >= there) continue;
      float* const row = to.at<float>(b, first + own_row(half), head);
#pragma unroll
      for (int n = 0; n < dim_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (column_of(n, i) < dim)
            row[column_of(n, i)] = multiply_add(scale, sum[n][2 * half + i], row[column_of(n, i)]);
    }
  }
};

template <class T, int Dim, Weights weights, bool of_keys, bool modified>
__global__ void __launch_bounds__(BackwardShape<T, Dim, modified>::threads)
    backward(const __grid_constant__ BackwardParameters<modified> p) {
  using Shape = BackwardShape<T, Dim, modified>;
  using Warp = Backward<T, Dim, weights, of_keys, modified>;
  constexpr int others = Shape::others, threads = Shape::threads, stages = Shape::stages;
  constexpr bool apart = of_keys && Dim == 256;  // dk and dv

  // Queries begin with the last ones, which mostly see the most keys, and keys with the first.
  std::int32_t index = p.first_block + block_index().x;
  bool wants_x = true, wants_y = of_keys;
  if constexpr (apart) {
    wants_x = index % 2 == 0;
    wants_y = !wants_x;
    index /= 2;
  }
  const std::int32_t tile = of_keys ? index % p.work.num_tiles : p.work.num_tiles - 1 - index % p.work.num_tiles;
  index /= p.work.num_tiles;
  const std::int32_t heads = of_keys ? p.num_heads_kv : p.num_heads_kv * p.group;
  const std::int32_t head = index % heads, entry = index / heads;
  const std::int32_t first_other_head = of_keys ? head * p.group : head / p.group;
  const std::int64_t b = p.work.first_entry + entry, kv_length = p.work.kv_length(entry);

  const auto& item = p.work.item_of(tile);
  const Members &own = of_keys ? item.keys : item.queries, &other = of_keys ? item.queries : item.keys;
  const std::int64_t first = std::int64_t{tile - item.first_tile} * Shape::rows;
  const int there = static_cast<int>(least(own.count() - first, Shape::rows));
  const auto walk = [&](std::int64_t from, int count) {
    return of_keys ? walk_rows(item, from, count, kv_length) : walk_keys(item, from, count, kv_length);
  };
  const Range tiles = walk(first, there).tiles(others);
  if (tiles.empty()) return;
  const int warp_there = there - 16 * warp_index();
  const Walk warp_walk = warp_there > 0 ? walk(first + 16 * warp_index(), warp_there < 16 ? warp_there : 16) : Walk{};

  const auto state_of = [&](std::int64_t query, std::int32_t query_head) {
    return (b * p.num_heads_kv * p.group + query_head) * p.query_rows + item.queries.row + query;
  };
  const auto is_blind = [](float lse) { return bits_of(lse) == minus_infinity_bits; };

  // Of own queries.
  float own_lse[2] = {}, own_delta[2] = {};
  Range own_seen[2] = {};
  bool own_is_blind = false;
  if constexpr (!of_keys) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = Warp::own_row(half);
      own_lse[half] = float_of(infinity_bits);
      if (row >= there) continue;
      const std::int64_t state = state_of(first + row, head);
      const float lse = p.lse[state];
      own_lse[half] = Warp::subtracted(lse);
      own_delta[half] = p.delta[state];
      if (is_blind(lse))
        own_is_blind = true;
      else
        own_seen[half] = item.keys_of(first + row, kv_length);
    }
  }
  const bool some_are_blind = any_lane(own_is_blind);

  const auto dtype = static_cast<DType>(p.dtype), dout_dtype = static_cast<DType>(p.dout_dtype);
  const auto rows_of_q = [&](std::int64_t row, std::int32_t of_head, int count) {
    return HeadRows{p.q, b, item.queries.row + row, of_head, count, dtype, p.head_dim, p.q_aligned};
  };
  const auto rows_of_dout = [&](std::int64_t row, std::int32_t of_head, int count) {
    return HeadRows{p.dout, b, item.queries.row + row, of_head, count, dout_dtype, p.head_dim_v, p.dout_aligned};
  };
  const auto rows_of_k = [&](std::int64_t row, std::int32_t of_head, int count) {
    return HeadRows{p.k, b, item.keys.row + row, of_head, count, dtype, p.head_dim, p.k_aligned};
  };
  const auto rows_of_v = [&](std::int64_t row, std::int32_t of_head, int count) {
    return HeadRows{p.v, b, item.keys.row + row, of_head, count, dtype, p.head_dim_v, p.v_aligned};
  };
  const auto copy_own = [&] {
    using X = typename Shape::OwnX;
    using Y = typename Shape::OwnY;
    if constexpr (of_keys) {
      copy_head_rows<X, Shape::rows, threads>(0, rows_of_k(first, head, there));
      copy_head_rows<Y, Shape::rows, threads>(0, rows_of_v(first, head, there));
    } else {
      copy_head_rows<X, Shape::rows, threads>(0, rows_of_q(first, head, there));
      copy_head_rows<Y, Shape::rows, threads>(0, rows_of_dout(first, head, there));
    }
    if constexpr (modified)
      for (int r = thread_index(); r < Shape::rows; r += threads)
        Shape::OwnModified::store(r, of_keys ? modified_key(p.modifiers, item, first + r, first, b).words()
                                             : modified_query(p.modifiers, item, first + r, b, head).words());
  };
  const auto copy_other = [&](int at, std::int64_t t, std::int32_t g) {
    using X = typename Shape::OtherX;
    using Y = typename Shape::OtherY;
    const std::int64_t begin = t * others;
    const int count = static_cast<int>(least(other.count() - begin, others));
    const std::int32_t other_head = first_other_head + g;
    if constexpr (of_keys) {
      copy_head_rows<X, others, threads>(at, rows_of_q(begin, other_head, count));
      copy_head_rows<Y, others, threads>(at, rows_of_dout(begin, other_head, count));
      for (int r = thread_index(); r < others; r += threads) {
        float lse = float_of(minus_infinity_bits), delta = 0.0F;
        if (r < count) {
          lse = p.lse[state_of(begin + r, other_head)];
          delta = p.delta[state_of(begin + r, other_head)];
        }
        const Range seen = is_blind(lse) ? Range{0, 0} : item.keys_of(begin + r, kv_length);
        const auto own_row = [&](std::int64_t key) {
          return static_cast<std::int32_t>(largest(0, least(key - first, Shape::rows)));
        };
        Shape::Lse::store(at + r, Warp::subtracted(lse));
        Shape::Delta::store(at + r, delta);
        Shape::Begin::store(at + r, own_row(seen.begin));
        Shape::End::store(at + r, own_row(seen.end));
      }
    } else {
      copy_head_rows<X, others, threads>(at, rows_of_k(begin, other_head, count));
      copy_head_rows<Y, others, threads>(at, rows_of_v(begin, other_head, count));
    }
    if constexpr (modified)
      for (int r = thread_index(); r < others; r += threads)
        Shape::OtherModified::store(at + r, of_keys
                                                ? modified_query(p.modifiers, item, begin + r, b, other_head).words()
                                                : modified_key(p.modifiers, item, begin + r, begin, b).words());
    cp_async_commit();
  };

  float sum_x[Warp::dim_blocks][4] = {};
  float sum_y[of_keys && !apart ? Warp::dim_blocks : 1][4] = {};

  // The tile that begins with row `begin` of the other side, which is row `at` in shared memory.
  const auto add_tile = [&](int at, std::int64_t begin, [[maybe_unused]] std::int32_t query_head) {
    if (begin >= warp_walk.some.end || begin + others <= warp_walk.some.begin) return;
    using OtherX = typename Shape::OtherX;
    using OtherY = typename Shape::OtherY;
    const int columns_x = whole_steps(p.head_dim), columns_y = whole_steps(p.head_dim_v);
    typename Warp::Scores s, dp;
    Warp::template multiply_rows<typename Shape::OwnX, OtherX>(s, at, columns_x);
    Warp::template multiply_rows<typename Shape::OwnY, OtherY>(dp, at, columns_y);

    bool is_masked = some_are_blind || !warp_walk.is_full(begin, begin + others);
    if constexpr (of_keys) {
      bool blind = false;
#pragma unroll
      for (int j = 0; j < Warp::other_blocks; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) blind |= bits_of(Shape::Lse::load(at + Warp::column_of(j, h))) == infinity_bits;
      is_masked = any_lane(blind) || is_masked;
    }
    typename Warp::Sees sees{at, {}, {}};
    bool row_by_row = false;
    if (Warp::is_float || is_masked) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sees.begin[half] = static_cast<std::int32_t>(largest(0, least(own_seen[half].begin - begin, others)));
        sees.end[half] = static_cast<std::int32_t>(largest(0, least(own_seen[half].end - begin, others)));
      }
      row_by_row = any_lane(!Warp::are_finite(s) || !Warp::are_finite(dp));
    }

    const auto lse = [&](int j, int i) {
      return of_keys ? Shape::Lse::load(at + Warp::column_of(j, i % 2)) : own_lse[i / 2];
    };
    const auto delta = [&](int j, int i) {
      return of_keys ? Shape::Delta::load(at + Warp::column_of(j, i % 2)) : own_delta[i / 2];
    };
    const typename Warp::Change change(p, at, query_head);
    if (p.softcap != 0.0F)
      Warp::template differentiate<true>(s, dp, p.scale, p.softcap, lse, delta, change);
    else
      Warp::template differentiate<false>(s, dp, p.scale, p.softcap, lse, delta, change);
    if (is_masked) {
#pragma unroll
      for (int j = 0; j < Warp::other_blocks; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!sees(i / 2, Warp::column_of(j, i % 2))) s[j][i] = dp[j][i] = 0.0F;
    }
    const auto add = [&]<class Other>(Other, typename Warp::Sums& sum, const typename Warp::Scores& w, int columns) {
      if (!row_by_row) return Warp::template multiply_weights<Other>(sum, w, at, columns);
      typename Warp::Terms terms;  // in memory; the sum itself stays in registers
#pragma unroll
      for (int n = 0; n < Warp::dim_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) terms.sum[n][i] = sum[n][i];
#pragma unroll
      for (int j = 0; j < Warp::other_blocks; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) terms.w[j][i] = w[j][i];
      Warp::template add_row_by_row<Other>(terms, at, columns, sees);
#pragma unroll
      for (int n = 0; n < Warp::dim_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] = terms.sum[n][i];
    };
    if constexpr (of_keys) {
      if (wants_y) add(OtherY{}, one_of<apart>(sum_x, sum_y), s, columns_y);
    }
    if (wants_x) add(OtherX{}, sum_x, dp, columns_x);
  };

  copy_own();
  copy_other(0, tiles.begin, 0);
  const std::int32_t groups = of_keys ? p.group : 1;
  std::int32_t g = 0;
  std::int64_t t = tiles.begin;
  int at = 0;
#pragma unroll 1
  while (g < groups) {
    const std::int64_t begin = t * others;
    const std::int32_t query_head = of_keys ? first_other_head + g : head;
    if (++t == tiles.end) {
      t = tiles.begin;
      ++g;
    }
    const int next = stages == 1 ? 0 : others - at;
    cp_async_wait<0>();
    barrier();
    if (stages > 1 && g < groups) copy_other(next, t, g);
    add_tile(at, begin, query_head);
    if constexpr (stages == 1) {
      barrier();
      if (g < groups) copy_other(next, t, g);
    }
    at = next;
  }

  const std::int64_t row = own.row + first;
  float scale_of_values = 1.0F;
  if constexpr (modified)
    if (p.modifiers.kept != 0.0F) scale_of_values = p.modifiers.kept;
  if constexpr (!of_keys) {
    Warp::add_to(p.dq, b, row, head, there, p.head_dim, sum_x, p.scale);
  } else if constexpr (apart) {
    if (wants_x)
      Warp::add_to(p.dk, b, row, head, there, p.head_dim, sum_x, p.scale);
    else
      Warp::add_to(p.dv, b, row, head, there, p.head_dim_v, sum_x, scale_of_values);
  } else {
    Warp::add_to(p.dk, b, row, head, there, p.head_dim, sum_x, p.scale);
    Warp::add_to(p.dv, b, row, head, there, p.head_dim_v, sum_y, scale_of_values);
  }
}

// delta, of rows as a block of queries has them: the diagonal of dout out^T. It is summed like dP, so that their difference is 0 where
// a row sees but one key, whose value is its output.
template <class T, int Dim, Weights weights>
__global__ void __launch_bounds__(BackwardShape<T, Dim>::threads) delta(const __grid_constant__ DeltaParameters p) {
  using Shape = BackwardShape<T, Dim>;
  using Warp = Backward<T, Dim, weights, false>;
  std::int32_t index = p.first_block + block_index().x;
  const std::int64_t first = std::int64_t{index % p.num_tiles} * Shape::rows;
  index /= p.num_tiles;
  const std::int32_t head = index % p.num_heads;
  const std::int64_t b = index / p.num_heads;
  const int there = static_cast<int>(least(p.rows - first, Shape::rows));
  copy_head_rows<typename Shape::OwnX, Shape::rows, Shape::threads>(
      0, {p.dout, b, first, head, there, static_cast<DType>(p.dtype), p.head_dim_v, p.dout_aligned});
  copy_head_rows<typename Shape::OwnY, Shape::rows, Shape::threads>(
      0, {p.out, b, first, head, there, static_cast<DType>(p.out_dtype), p.head_dim_v, p.out_aligned});
  cp_async_commit();
  cp_async_wait<0>();
  barrier();
  float products[2][4];
  Warp::template multiply_rows<typename Shape::OwnX, typename Shape::OwnY>(products, 16 * warp_index(),
                                                                           whole_steps(p.head_dim_v));
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = Warp::own_row(half);
      if (16 * warp_index() + Warp::column_of(half, i) == row && row < there)
        p.delta[(b * p.num_heads + head) * p.rows + first + row] = products[half][2 * half + i];
    }
}

}  // namespace

template <class T, int dim, Weights weights>
DeltaKernel delta_kernel() {
  using Shape = BackwardShape<T, dim>;
  return {delta<T, dim, weights>, Shape::rows, Shape::threads, Shape::OwnY::end};
}

template <class T, int dim, Weights weights, bool modified>
BackwardKernel<modified> backward_kernel(Side side) {
  using Shape = BackwardShape<T, dim, modified>;
  const bool of_keys = side == Side::key_value;
  constexpr const char* names[2][2] = {{"backward_queries", "backward_queries_modified"},
                                       {"backward_keys", "backward_keys_modified"}};
  return {names[of_keys ? 1 : 0][modified ? 1 : 0],
          of_keys ? backward<T, dim, weights, true, modified> : backward<T, dim, weights, false, modified>,
          Shape::rows,
          Shape::threads,
          Shape::shared_bytes,
          of_keys && dim == 256 ? 2 : 1};
}

}  // namespace ringattn::cuda
