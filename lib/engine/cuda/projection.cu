// A block takes some rows of heads at a time:
//
//   for each row, and each pair of elements that is turned:   the cosine and sine of its angle, computed in fp64, into shared memory
//   for each head of these rows, a warp:                      a lane has up to four pairs of its elements in registers; RMS normalisation,
//                                                             whose sum is the warp's, and the turn, in place
//
// The angles are the same for all heads, and those of a row are computed once. The way back is the same, from gradients of what was turned:
// with s = 1 / sqrt(mean(x^2) + epsilon) and g the gradient, turned back, dx = s (norm g - s^2 x mean(x norm g)), and dnorm = sum of g s x.
//
// Nobody touches what another thread does, and sums have an order of their own, so results do not depend on the grid.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/divide.h"
#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
#include "engine/cuda/item.h"
#include "engine/cuda/projection.h"
#include "engine/cuda/running.cuh"

namespace ringattn::cuda {
namespace {

constexpr int warps = 8, threads = warps * warp_size;
constexpr int most_pairs = static_cast<int>(most_head_dim) / 2;
constexpr int pairs_of_lane = most_pairs / warp_size;

// Rows of numbers of any dtype.
struct Rows {
  std::byte* data;
  std::int64_t stride;
  DType dtype;
};
__device__ __forceinline__ float load(const Rows& m, std::int64_t row, std::int64_t column) {
  const std::int64_t i = row * m.stride + column;
  switch (m.dtype) {
    case DType::float32:
      return reinterpret_cast<const float*>(m.data)[i];
    case DType::bfloat16:
      return number_of(reinterpret_cast<const BFloat16*>(m.data)[i]);
    default:
      return number_of(reinterpret_cast<const Float16*>(m.data)[i]);
  }
}
__device__ __forceinline__ void store(const Rows& m, std::int64_t row, std::int64_t column, float x) {
  const std::int64_t i = row * m.stride + column;
  switch (m.dtype) {
    case DType::float32:
      return store_number(reinterpret_cast<float*>(m.data) + i, x);
    case DType::bfloat16:
      return store_number(reinterpret_cast<BFloat16*>(m.data) + i, x);
    default:
      return store_number(reinterpret_cast<Float16*>(m.data) + i, x);
  }
}

// Of all lanes' together, in every lane.
__device__ __forceinline__ double sum_of_warp(double x) {
  for (int mask = 1; mask < warp_size; mask *= 2) {
    std::uint32_t half[2];
    std::memcpy(half, &x, sizeof x);
    half[0] = shuffle_xor(half[0], mask);
    half[1] = shuffle_xor(half[1], mask);
    double other;
    std::memcpy(&other, half, sizeof other);
    x += other;
  }
  return x;
}

// ---------------------------------------------------------------- heads

constexpr int rows_at_once = 4;

struct Heads {
  Rows from, to;  // on the way back, to: the gradient
  Rows norm;      // data may be null
  const std::int64_t* positions;
  std::int64_t num_positions, rows;
  std::int32_t num_heads, dim;
  std::int32_t turned;  // pairs of a head
  std::int32_t is_interleaved;
  double epsilon;
  double rate[most_pairs];  // of each pair
};
static_assert(sizeof(Heads) <= 4000);

using Cosines = Shared<float, 0, rows_at_once * most_pairs>;
using Sines = Shared<float, Cosines::end, rows_at_once * most_pairs>;

// Of the rows from `first` on.
__device__ __forceinline__ void find_turns(const Heads& p, std::int64_t first) {
  barrier();  // the turns before are done with
  for (int n = thread_index(); n < rows_at_once * p.turned; n += threads) {
    const int ahead = n / p.turned, pair = n % p.turned;
    if (first + ahead >= p.rows) break;
    const double angle = static_cast<double>(p.positions[(first + ahead) % p.num_positions]) * p.rate[pair];
    double sine, cosine;
    sine_and_cosine(angle, &sine, &cosine);
    Cosines::store(ahead * most_pairs + pair, static_cast<float>(cosine));
    Sines::store(ahead * most_pairs + pair, static_cast<float>(sine));
  }
  barrier();
}

// A pair of a head's elements: those that are turned, and then neighbours, of which the last one may be alone.
struct Elements {
  int a, b;  // b: -1 where there is none
};
__device__ __forceinline__ Elements elements_of(const Heads& p, int pair) {
  if (pair >= p.turned) {
    const int a = 2 * pair;
    return {a, a + 1 < p.dim ? a + 1 : -1};
  }
  return p.is_interleaved != 0 ? Elements{2 * pair, 2 * pair + 1} : Elements{pair, pair + p.turned};
}
// Calls f(i, pair, elements) for the pairs of this lane, of which this is number i.
template <class F>
__device__ __forceinline__ void for_each_pair(const Heads& p, F&& f) {
  for (int i = 0; i < pairs_of_lane; ++i) {
    const int pair = lane_index() + i * warp_size;
    if (2 * pair < p.dim) f(i, pair, elements_of(p, pair));
  }
}

struct Pair {
  float a, b;
};
struct Lane {
  Pair pair[pairs_of_lane];
};
__device__ __forceinline__ Lane load(const Heads& p, const Rows& from, std::int64_t row, std::int64_t first) {
  Lane x{};
  for_each_pair(p, [&](int i, int, Elements at) {
    x.pair[i].a = load(from, row, first + at.a);
    if (at.b >= 0) x.pair[i].b = load(from, row, first + at.b);
  });
  return x;
}
__device__ __forceinline__ void store(const Heads& p, const Rows& to, std::int64_t row, std::int64_t first,
                                      const Lane& x) {
  for_each_pair(p, [&](int i, int, Elements at) {
    store(to, row, first + at.a, x.pair[i].a);
    if (at.b >= 0) store(to, row, first + at.b, x.pair[i].b);
  });
}
// Forwards (1) or back (-1), as the row so many behind the first of the turns is.
__device__ __forceinline__ void turn(const Heads& p, int ahead, float direction, Lane& x) {
  for_each_pair(p, [&](int i, int pair, Elements) {
    if (pair >= p.turned) return;
    const float cosine = Cosines::load(ahead * most_pairs + pair),
                sine = direction * Sines::load(ahead * most_pairs + pair);
    const Pair before = x.pair[i];
    x.pair[i] = {before.a * cosine - before.b * sine, before.a * sine + before.b * cosine};
  });
}
__device__ __forceinline__ double dot(const Lane& x, const Lane& y) {
  double sum = 0;
  for (int i = 0; i < pairs_of_lane; ++i)
    sum += static_cast<double>(x.pair[i].a) * static_cast<double>(y.pair[i].a) +
           static_cast<double>(x.pair[i].b) * static_cast<double>(y.pair[i].b);
  return sum_of_warp(sum);
}
__device__ __forceinline__ float scale_of(const Heads& p, const Lane& x) {
  return static_cast<float>(1 / square_root(dot(x, x) / p.dim + p.epsilon));
}

// Calls f(row, column, ahead) for each head of this warp in the rows first .. first + rows_at_once - 1.
template <class F>
__device__ __forceinline__ void for_each_head(const Heads& p, std::int64_t first, F&& f) {
  const std::int64_t rows = least(rows_at_once, p.rows - first);
  for (std::int64_t n = warp_index(); n < rows * p.num_heads; n += warps) {
    const int ahead = static_cast<int>(n / p.num_heads);
    f(first + ahead, n % p.num_heads * p.dim, ahead);
  }
}

__global__ void __launch_bounds__(threads) style_kernel(const __grid_constant__ Heads p) {
  Lane norm{};
  if (p.norm.data != nullptr) norm = load(p, p.norm, 0, 0);
  const std::int64_t step = std::int64_t{grid_size().x} * rows_at_once;
  for (std::int64_t first = std::int64_t{block_index().x} * rows_at_once; first < p.rows; first += step) {
    find_turns(p, first);
    for_each_head(p, first, [&](std::int64_t row, std::int64_t column, int ahead) {
      Lane x = load(p, p.from, row, column);
      if (p.norm.data != nullptr) {
        const float scale = scale_of(p, x);
        for (int i = 0; i < pairs_of_lane; ++i) {
          x.pair[i].a *= scale * norm.pair[i].a;
          x.pair[i].b *= scale * norm.pair[i].b;
        }
      }
      turn(p, ahead, 1, x);
      store(p, p.to, row, column, x);
    });
  }
}

// Rows of a share, a multiple of what a block takes at a time.
RA_HOST_DEVICE std::int64_t rows_of_head_share(std::int64_t rows) {
  constexpr std::int64_t fewest = 32;
  const std::int64_t even = (rows + most_head_shares - 1) / most_head_shares;
  return largest(fewest, (even + rows_at_once - 1) / rows_at_once * rows_at_once);
}

struct HeadGradients {
  Heads heads;
  double* shares;  // may be null
};
using WarpShares = Shared<double, Sines::end, warps* static_cast<int>(most_head_dim)>;

__global__ void __launch_bounds__(threads) gradient_kernel(const __grid_constant__ HeadGradients p) {
  const Heads& h = p.heads;
  const bool has_norm = h.norm.data != nullptr;
  Lane norm{};
  if (has_norm) norm = load(h, h.norm, 0, 0);
  const std::int64_t of_share = rows_of_head_share(h.rows);
  for (std::int64_t share = block_index().x; share * of_share < h.rows; share += grid_size().x) {
    double sums[pairs_of_lane][2] = {};
    const std::int64_t end = least((share + 1) * of_share, h.rows);
    for (std::int64_t first = share * of_share; first < end; first += rows_at_once) {
      find_turns(h, first);
      for_each_head(h, first, [&](std::int64_t row, std::int64_t column, int ahead) {
        Lane g = load(h, h.to, row, column);
        turn(h, ahead, -1, g);
        if (has_norm) {
          const Lane x = load(h, h.from, row, column);
          const float scale = scale_of(h, x);
          for (int i = 0; i < pairs_of_lane; ++i) {
            sums[i][0] += static_cast<double>(g.pair[i].a * scale * x.pair[i].a);
            sums[i][1] += static_cast<double>(g.pair[i].b * scale * x.pair[i].b);
            g.pair[i].a *= norm.pair[i].a;
            g.pair[i].b *= norm.pair[i].b;
          }
          const float part = scale * scale * static_cast<float>(dot(g, x)) / static_cast<float>(h.dim);
          for (int i = 0; i < pairs_of_lane; ++i) {
            g.pair[i].a = scale * (g.pair[i].a - part * x.pair[i].a);
            g.pair[i].b = scale * (g.pair[i].b - part * x.pair[i].b);
          }
        }
        store(h, h.to, row, column, g);
      });
    }
    if (p.shares == nullptr) continue;
    const int own = warp_index() * static_cast<int>(most_head_dim);
    for_each_pair(h, [&](int i, int, Elements at) {
      WarpShares::store(own + at.a, sums[i][0]);
      if (at.b >= 0) WarpShares::store(own + at.b, sums[i][1]);
    });
    barrier();
    for (int d = thread_index(); d < h.dim; d += threads) {
      double sum = 0;
      for (int warp = 0; warp < warps; ++warp) sum += WarpShares::load(warp * static_cast<int>(most_head_dim) + d);
      p.shares[share * h.dim + d] = sum;
    }
  }
}

// ---------------------------------------------------------------- sums of rows

RA_HOST_DEVICE std::int64_t rows_of_row_share(std::int64_t rows) {
  constexpr std::int64_t fewest = 16;
  return largest(fewest, (rows + most_row_shares - 1) / most_row_shares);
}

struct RowShares {
  Rows from;
  std::int64_t rows, columns;
  double* shares;
};
// A thread takes a column of a share.
__global__ void __launch_bounds__(threads) share_kernel(const __grid_constant__ RowShares p) {
  const std::int64_t across = (p.columns + threads - 1) / threads, of_share = rows_of_row_share(p.rows),
                     count = (p.rows + of_share - 1) / of_share * across;
  for (std::int64_t n = block_index().x; n < count; n += grid_size().x) {
    const std::int64_t share = n / across, column = n % across * threads + thread_index();
    if (column >= p.columns) continue;
    const std::int64_t end = least((share + 1) * of_share, p.rows);
    double sum = 0;
    for (std::int64_t row = share * of_share; row < end; ++row) sum += static_cast<double>(load(p.from, row, column));
    p.shares[share * p.columns + column] = sum;
  }
}

struct Shares {
  const double* shares;
  std::int64_t count, columns;
  float* to;
  bool accumulate;
};
__global__ void __launch_bounds__(threads) add_kernel(const __grid_constant__ Shares p) {
  const std::int64_t step = std::int64_t{grid_size().x} * threads;
  for (std::int64_t column = std::int64_t{block_index().x} * threads + thread_index(); column < p.columns;
       column += step) {
    double sum = p.accumulate ? static_cast<double>(p.to[column]) : 0;
    for (std::int64_t n = 0; n < p.count; ++n) sum += p.shares[n * p.columns + column];
    p.to[column] = static_cast<float>(sum);
  }
}

// ---------------------------------------------------------------- positions

// Pieces travel in the kernel's parameters, as many as there is room for at a time.
struct Pieces {
  static constexpr int most = 60;
  std::int64_t* to;
  std::int64_t end;  // rows piece[0].row .. end - 1
  std::int32_t count;
  Piece piece[most];
};
static_assert(sizeof(Pieces) <= 4000);

__global__ void __launch_bounds__(threads) positions_kernel(const __grid_constant__ Pieces p) {
  const std::int64_t step = std::int64_t{grid_size().x} * threads;
  for (std::int64_t row = p.piece[0].row + std::int64_t{block_index().x} * threads + thread_index(); row < p.end;
       row += step) {
    int begin = 0, end = p.count;  // the piece is one of these
    while (end - begin > 1) {
      const int middle = (begin + end) / 2;
      if (p.piece[middle].row <= row)
        begin = middle;
      else
        end = middle;
    }
    p.to[row] = p.piece[begin].position(row - p.piece[begin].row);
  }
}

// ---------------------------------------------------------------- on the host

constexpr std::int64_t most_grid = (1LL << 31) - 1;

Rows rows_of(const Matrix& m) { return {static_cast<std::byte*>(m.data), m.stride, m.dtype}; }

Access access_of(const Matrix& m, std::int64_t rows, std::int64_t columns, bool writes) {
  return cuda::access_of({m.data, m.dtype, 0, m.stride, 0}, 1, {rows, 1, columns}, writes);
}
template <class T>
Access access_of(const T* data, std::int64_t count, bool writes) {
  return {data, static_cast<std::size_t>(count) * sizeof(T), writes};
}

template <class P>
int enqueue(const char* name, void (*kernel)(P), const P& parameters, std::int64_t blocks,
            std::span<const Access> accesses, CUstream_st* stream, int num_sms, int shared_bytes = 0) {
  const auto shared = static_cast<std::size_t>(shared_bytes);
  const int grid = limit_blocks(std::min(blocks, most_grid), num_sms, kernel, threads, shared);
  return launch({.name = name, .grid = {grid, 1, 1}, .threads = threads, .shared_bytes = shared, .stream = stream},
                accesses, kernel, parameters);
}

Heads heads_of(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) {
  Heads p{};
  p.from = rows_of(from);
  p.to = rows_of(to);
  p.norm = rows_of(style.norm);
  p.positions = style.positions.data();
  p.num_positions = std::ssize(style.positions);
  p.rows = rows;
  p.num_heads = static_cast<std::int32_t>(style.heads);
  p.dim = static_cast<std::int32_t>(style.dim);
  p.turned = static_cast<std::int32_t>(style.rotation.elements / 2);
  p.is_interleaved = style.rotation.is_interleaved ? 1 : 0;
  p.epsilon = style.epsilon;
  for (int pair = 0; pair < p.turned; ++pair) p.rate[pair] = style.rotation.rate(pair);
  return p;
}
std::vector<Access> reads_of(const HeadStyle& style) {
  std::vector<Access> reads;
  if (style.norm.data != nullptr) reads.push_back(access_of(style.norm, 1, style.dim, false));
  if (style.rotation.elements > 0)
    reads.push_back(access_of(style.positions.data(), std::ssize(style.positions), false));
  return reads;
}

}  // namespace

int store_positions(std::span<const Piece> pieces, std::int64_t* positions, CUstream_st* stream, int num_sms) {
  int error = 0;
  while (!pieces.empty() && error == 0) {
    const std::span<const Piece> some = pieces.first(std::min<std::size_t>(pieces.size(), Pieces::most));
    Pieces p{positions, some.back().row + some.back().length, static_cast<std::int32_t>(some.size()), {}};
    std::ranges::copy(some, p.piece);
    const std::int64_t rows = p.end - some.front().row;
    const Access accesses[] = {access_of(positions + some.front().row, rows, true)};
    error = enqueue("store_positions", positions_kernel, p, divide_up(rows, threads), accesses, stream, num_sms);
    pieces = pieces.subspan(some.size());
  }
  return error;
}

int style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows, CUstream_st* stream,
                int num_sms) {
  if (rows == 0) return 0;
  std::vector<Access> accesses = reads_of(style);
  accesses.push_back(access_of(from, rows, style.heads * style.dim, false));
  accesses.push_back(access_of(to, rows, style.heads * style.dim, true));
  return enqueue("style_heads", style_kernel, heads_of(style, from, to, rows), divide_up(rows, rows_at_once), accesses,
                 stream, num_sms, Sines::end);
}

int differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient, std::int64_t rows,
                        double* shares, CUstream_st* stream, int num_sms) {
  if (rows == 0) return 0;
  std::vector<Access> accesses = reads_of(style);
  const std::int64_t columns = style.heads * style.dim, count = num_head_shares(rows);
  if (style.norm.data != nullptr) accesses.push_back(access_of(from, rows, columns, false));
  accesses.push_back(access_of(gradient, rows, columns, false));
  accesses.push_back(access_of(gradient, rows, columns, true));
  if (shares != nullptr) accesses.push_back(access_of(shares, count * style.dim, true));
  return enqueue("differentiate_heads", gradient_kernel, {heads_of(style, from, gradient, rows), shares}, count,
                 accesses, stream, num_sms, WarpShares::end);
}

int share_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, double* shares, CUstream_st* stream,
               int num_sms) {
  if (rows == 0 || columns == 0) return 0;
  const std::int64_t count = num_row_shares(rows);
  const Access accesses[] = {access_of(from, rows, columns, false), access_of(shares, count * columns, true)};
  return enqueue("share_rows", share_kernel, {rows_of(from), rows, columns, shares},
                 count * divide_up(columns, threads), accesses, stream, num_sms);
}

int add_shares(const double* shares, std::int64_t count, std::int64_t columns, float* to, bool accumulate,
               CUstream_st* stream, int num_sms) {
  if (columns == 0) return 0;
  std::vector<Access> accesses{access_of(to, columns, true)};
  if (accumulate) accesses.push_back(access_of(to, columns, false));
  if (count > 0) accesses.push_back(access_of(shares, count * columns, false));
  return enqueue("add_shares", add_kernel, {shares, count, columns, to, accumulate}, divide_up(columns, threads),
                 accesses, stream, num_sms);
}

std::int64_t num_head_shares(std::int64_t rows) { return divide_up(rows, rows_of_head_share(rows)); }
std::int64_t num_row_shares(std::int64_t rows) { return divide_up(rows, rows_of_row_share(rows)); }

}  // namespace ringattn::cuda
