#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/copy.h"
#include "engine/cuda/device/launch.h"
#include "engine/cuda/device/matrix.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"
#include "instructions.h"

namespace ringattn::cuda::instructions {
namespace {

template <class T>
Access reads(const T* data, std::size_t count) {
  return {data, count * sizeof(T), false};
}
template <class T>
Access writes(T* data, std::size_t count) {
  return {data, count * sizeof(T), true};
}
std::size_t of(int n) { return static_cast<std::size_t>(n); }

__global__ void __launch_bounds__(128)
    numbers_kernel(const std::uint32_t* x_bits, const std::uint32_t* y_bits, Numbers* out, int count) {
  const int i = block_index().x * block_size() + thread_index();
  if (i >= count) return;
  const std::uint32_t bits = x_bits[i];
  const float x = float_of(bits), y = float_of(y_bits[i]);
  Numbers& n = out[i];
  n.bf16 = pack<BFloat16>(x, y);
  n.f16 = pack<Float16>(x, y);
  n.low_bf16 = unpack_low<BFloat16>(bits);
  n.high_bf16 = unpack_high<BFloat16>(bits);
  n.low_f16 = unpack_low<Float16>(bits);
  n.high_f16 = unpack_high<Float16>(bits);
  n.tf32 = round_to_tf32(x);
  n.exp2 = exp2_approx(x);
  n.tanh = hyperbolic_tangent(x);
  n.log = natural_logarithm(x);
  n.fma = multiply_add(x, y, x);
  n.larger = larger(x, y);
}

__global__ void __launch_bounds__(96) indices_kernel(Indices* out) {
  const Index block = block_index(), grid = grid_size();
  const int number = (block.z * grid.y + block.y) * grid.x + block.x;
  out[number * block_size() + thread_index()] = {
      thread_index(), lane_index(), warp_index(), block_size(), {block.x, block.y, block.z}, {grid.x, grid.y, grid.z}};
}

__global__ void __launch_bounds__(64) shuffles_kernel(Shuffled* out) {
  const int lane = lane_index(), warp = warp_index(), held = 100 * warp + lane;
  int row = 0;
  for (const int n : {0, 1, 2, 5, 16, 31}) {
    Shuffled& s = out[row++ * 64 + thread_index()];
    s.by_xor = shuffle_xor(held, n);
    s.down = shuffle_down(held, n);
    s.broadcast = static_cast<std::int32_t>(broadcast(static_cast<float>(held), n));
    s.broadcast_own = broadcast(held, lane * n % 32);
    s.any = any_lane(lane == n && warp == 1);
  }
}

__global__ void __launch_bounds__(128) barriers_kernel(Ordered* out) {
  using Buffer = Shared<int, 0, 128>;
  const int own = thread_index();
  Buffer::store(own, own);
  warp_barrier();
  const int within_warp = Buffer::load(own ^ 1);
  barrier(1 + own / 64, 64);  // two barriers of two warps each
  const int within_two_warps = Buffer::load(own ^ 32);
  barrier();
  out[own] = {within_warp, within_two_warps, Buffer::load(127 - own)};
}

__global__ void __launch_bounds__(32) shared_kernel(FromShared* out) {
  using Bytes = Shared<std::uint16_t, 64, 512>;
  using All = Shared<std::uint16_t, 0, 1024>;  // the same memory, and more
  const int lane = lane_index();
  FromShared& found = out[lane];
  for (int i = lane; i < 512; i += 32) Bytes::store(i, static_cast<std::uint16_t>(3 * i + 1));
  barrier();
  const Words<4> words = Bytes::load16(8 * lane);
  for (int i = 0; i < 4; ++i) found.words[i] = words[i];
  found.other_view = All::load(32 + lane);
  const auto pair = Bytes::load_as<Words<2>>(4 * lane);
  for (int i = 0; i < 2; ++i) found.pair[i] = pair[i];
  barrier();
  Bytes::store16(8 * lane, {{1, 2, 3, 4}});
  Bytes::store_as(256 + 2 * lane, Words<1>{{7U << 16 | 6U}});
  barrier();
  found.stored[0] = Bytes::load(8 * 31 + 6);
  found.stored[1] = Bytes::load(256);
  found.stored[2] = Bytes::load(257);
}

__global__ void __launch_bounds__(32) global16_kernel(const std::uint32_t* from, std::uint32_t* to) {
  store_global16(to + 4 * lane_index(), load_global16(from + 4 * lane_index()));
}

__global__ void __launch_bounds__(32) copies_kernel(const std::uint32_t* from, Copied* out) {
  using Buffer = Shared<std::uint16_t, 0, 32 * 8 * 2>;
  const int lane = lane_index();
  cp_async(Buffer::address(8 * lane), from + 4 * lane, lane % 17);
  cp_async_commit();
  cp_async(Buffer::address(256 + 8 * lane), from + 4 * lane);
  cp_async_commit();
  cp_async_wait<1>();
  const Words<4> some = Buffer::load16(8 * lane);
  cp_async_wait<0>();
  const Words<4> all = Buffer::load16(256 + 8 * lane);
  for (int i = 0; i < 4; ++i) {
    out[lane].some[i] = some[i];
    out[lane].all[i] = all[i];
  }
}

template <Product product>
__global__ void __launch_bounds__(32) mma_kernel(Fragments* of_lanes) {
  Fragments& own = of_lanes[block_index().x * 32 + lane_index()];
  Words<4> a;
  Words<2> b;
  float c[4];
  for (int i = 0; i < 4; ++i) a[i] = own.a[i];
  for (int i = 0; i < 2; ++i) b[i] = own.b[i];
  for (int i = 0; i < 4; ++i) c[i] = own.c[i];
  if constexpr (product == Product::bf16)
    mma_m16n8k16<BFloat16>(c, a, b);
  else if constexpr (product == Product::f16)
    mma_m16n8k16<Float16>(c, a, b);
  else
    mma_m16n8k8_tf32(c, a, b);
  for (int i = 0; i < 4; ++i) own.c[i] = c[i];
}

__global__ void __launch_bounds__(32) ldmatrix_kernel(Dealt* out) {
  using Buffer = Shared<std::uint16_t, 0, 4 * 8 * 8>;
  const int lane = lane_index(), matrix = lane / 8, row = lane % 8;
  const int own_row = 8 * (lane * 5 % 32);  // of memory: the (8 matrix + row) * 5 mod 32nd
  for (int i = 0; i < 8; ++i) Buffer::store(own_row + i, static_cast<std::uint16_t>(matrix << 8 | row << 4 | i));
  barrier();
  const SharedAddress own = Buffer::address(own_row);
  const Words<4> x4 = ldmatrix_x4(own), x4_trans = ldmatrix_x4_trans(own);
  const Words<2> x2 = ldmatrix_x2(own), x2_trans = ldmatrix_x2_trans(own);  // those of lanes 16 .. 31 are not looked at
  for (int i = 0; i < 4; ++i) {
    out[lane].x4[i] = x4[i];
    out[lane].x4_trans[i] = x4_trans[i];
  }
  for (int i = 0; i < 2; ++i) {
    out[lane].x2[i] = x2[i];
    out[lane].x2_trans[i] = x2_trans[i];
  }
}

}  // namespace

int numbers(const std::uint32_t* x, const std::uint32_t* y, Numbers* out, int count) {
  const Access accesses[] = {reads(x, of(count)), reads(y, of(count)), writes(out, of(count))};
  return launch({.name = "numbers", .grid = {(count + 127) / 128, 1, 1}, .threads = 128}, accesses, numbers_kernel, x,
                y, out, count);
}

int indices(Indices* out) {
  const Access accesses[] = {writes(out, num_indices)};
  return launch({.name = "indices", .grid = {3, 2, 4}, .threads = 96}, accesses, indices_kernel, out);
}

int shuffles(Shuffled* out) {
  const Access accesses[] = {writes(out, 6 * 64)};
  return launch({.name = "shuffles", .threads = 64}, accesses, shuffles_kernel, out);
}

int barriers(Ordered* out) {
  const Access accesses[] = {writes(out, 128)};
  return launch({.name = "barriers", .threads = 128, .shared_bytes = 512}, accesses, barriers_kernel, out);
}

int shared_memory(FromShared* out) {
  const Access accesses[] = {writes(out, 32)};
  return launch({.name = "shared_memory", .shared_bytes = 2048}, accesses, shared_kernel, out);
}

int global16(const void* from, void* to) {
  const auto* const words = static_cast<const std::uint32_t*>(from);
  auto* const moved = static_cast<std::uint32_t*>(to);
  const Access accesses[] = {reads(words, 128), writes(moved, 128)};
  return launch({.name = "global16"}, accesses, global16_kernel, words, moved);
}

int copies(const void* from, Copied* out) {
  const auto* const words = static_cast<const std::uint32_t*>(from);
  const Access accesses[] = {reads(words, 128), writes(out, 32)};
  return launch({.name = "copies", .shared_bytes = 1024}, accesses, copies_kernel, words, out);
}

int mma(Product product, Fragments* of_lanes, int problems) {
  const Access accesses[] = {writes(of_lanes, of(32 * problems))};
  const auto kernel = product == Product::bf16  ? mma_kernel<Product::bf16>
                      : product == Product::f16 ? mma_kernel<Product::f16>
                                                : mma_kernel<Product::tf32>;
  return launch({.name = "mma", .grid = {problems, 1, 1}}, accesses, kernel, of_lanes);
}

int ldmatrix(Dealt* out) {
  const Access accesses[] = {writes(out, 32)};
  return launch({.name = "ldmatrix", .shared_bytes = 512}, accesses, ldmatrix_kernel, out);
}

}  // namespace ringattn::cuda::instructions
