// A block makes a 64 x 64 tile of c, each of its four warps a quarter of it:
//
//   for each 32 columns of a and rows of b:     copied while the ones before are multiplied, into the other of two buffers
//     fragments of a and b from shared memory (ldmatrix), 16 rows or columns each
//     c += a b (mma), in registers
//   c through shared memory, so that rows are stored 16 bytes at a time
//
// Rows in shared memory are 8 elements longer than they need be, so that eight of them do not lie in the same banks.
#include "engine/cuda/device/copy.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/matrix.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
#include "product.h"

namespace ringattn::cuda {
namespace {

constexpr int threads = 128, tile = 64, tile_k = 32, row_a = tile_k + 8, row_b = tile + 8, row_c = tile + 4;
using A = Shared<BFloat16, 0, 2 * tile * row_a>;
using B = Shared<BFloat16, A::end, 2 * tile_k * row_b>;
using C = Shared<float, 0, tile * row_c>;  // when A and B are done with
constexpr int shared_bytes = C::end > B::end ? C::end : B::end;

// A tile of rows x columns to `to`, zeros where the matrix has ended.
template <class Tile>
__device__ __forceinline__ void copy_tile(const BFloat16* from, int stride, int rows_left, int columns_left, int rows,
                                          int columns, int to, int row) {
  for (int i = thread_index(); i < rows * columns / 8; i += threads) {
    const int r = i / (columns / 8), c = i % (columns / 8) * 8;
    const int there = r < rows_left ? columns_left - c : 0, elements = there < 0 ? 0 : there > 8 ? 8 : there;
    cp_async(Tile::address(to + r * row + c), elements > 0 ? from + r * stride + c : from, elements * 2);
  }
}

__global__ void __launch_bounds__(threads) product_kernel(const __grid_constant__ Product p) {
  const int m0 = block_index().x * tile, n0 = block_index().y * tile;
  const int warp_m = warp_index() / 2 * 32, warp_n = warp_index() % 2 * 32, lane = lane_index();
  const auto copy = [&](int k0) {
    const int buffer = k0 / tile_k % 2;
    copy_tile<A>(p.a + m0 * p.a_stride + k0, p.a_stride, p.m - m0, p.k - k0, tile, tile_k, buffer * tile * row_a,
                 row_a);
    copy_tile<B>(p.b + k0 * p.b_stride + n0, p.b_stride, p.k - k0, p.n - n0, tile_k, tile, buffer * tile_k * row_b,
                 row_b);
  };

  float c[2][4][4] = {};  // 16 rows and 8 columns each
  copy(0);
  cp_async_commit();
  for (int k0 = 0; k0 < p.k; k0 += tile_k) {
    if (k0 + tile_k < p.k) copy(k0 + tile_k);
    if (p.without != Without::commit) cp_async_commit();
    if (p.without != Without::wait) cp_async_wait<1>();
    if (p.without != Without::barrier_behind_copy) barrier();

    const int a0 = k0 / tile_k % 2 * tile * row_a, b0 = k0 / tile_k % 2 * tile_k * row_b;
    for (int k = 0; k < tile_k; k += 16) {
      Words<4> a[2], b[2];  // of b, 16 columns each
      for (int i = 0; i < 2; ++i)
        a[i] = ldmatrix_x4(A::address(a0 + (warp_m + 16 * i + lane % 16) * row_a + k + lane / 16 * 8));
      for (int i = 0; i < 2; ++i)
        b[i] = ldmatrix_x4_trans(B::address(b0 + (k + lane % 16) * row_b + warp_n + 16 * i + lane / 16 * 8));
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
          mma_m16n8k16<BFloat16>(c[i][j], a[i], {{b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}});
    }
    if (p.without != Without::barrier_before_copy) barrier();
  }

  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int half = 0; half < 2; ++half) {
        const int row = warp_m + 16 * i + 8 * half + lane / 4, column = warp_n + 8 * j + lane % 4 * 2;
        C::store(row * row_c + column, c[i][j][2 * half]);
        C::store(row * row_c + column + 1, c[i][j][2 * half + 1]);
      }
  if (p.without != Without::barrier_in_epilogue) barrier();
  for (int i = thread_index(); i < tile * tile / 4; i += threads) {
    const int row = i / (tile / 4), column = i % (tile / 4) * 4;
    if (m0 + row < p.m && n0 + column < p.n)
      store_global16(p.c + (m0 + row) * p.c_stride + n0 + column, C::load16(row * row_c + column));
  }
}

}  // namespace

int multiply(const Product& p, CUstream_st* stream) {
  const auto bytes = [](int rows, int columns, int stride, std::size_t element) {
    return static_cast<std::size_t>((rows - 1) * stride + columns) * element;
  };
  const Access accesses[] = {{p.a, bytes(p.m, p.k, p.a_stride, sizeof *p.a), false},
                             {p.b, bytes(p.k, p.n, p.b_stride, sizeof *p.b), false},
                             {p.c, bytes(p.m, p.n, p.c_stride, sizeof *p.c), true}};
  const LaunchConfig config{.name = "product",
                            .grid = {(p.m + tile - 1) / tile, (p.n + tile - 1) / tile, 1},
                            .threads = threads,
                            .shared_bytes = shared_bytes,
                            .stream = stream};
  return launch(config, accesses, product_kernel, p);
}

}  // namespace ringattn::cuda
