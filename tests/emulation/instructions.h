// Kernels that do nothing but call the functions of lib/engine/cuda/device, for instructions_test.cpp, which knows what comes out.
// Pointers are memory of test::device; each function launches one kernel, and returns a cudaError_t.
#pragma once

#include <cstdint>

namespace ringattn::cuda::instructions {

// Of bits `x` and `y`, as floats, or as the two halves of a word.
struct Numbers {
  std::uint32_t bf16, f16;                       // pack(x, y)
  float low_bf16, high_bf16, low_f16, high_f16;  // unpack_low, unpack_high of x
  std::uint32_t tf32;                            // round_to_tf32(x)
  float exp2, tanh, log;                         // of x
  float fma, larger;                             // multiply_add(x, y, x), larger(x, y)
};
int numbers(const std::uint32_t* x, const std::uint32_t* y, Numbers* out, int count);

// Of every thread of 96, in every block of a grid of 3 x 2 x 4.
struct Indices {
  std::int32_t thread, lane, warp, block_size;
  std::int32_t block[3], grid[3];
};
constexpr int num_indices = 96 * 3 * 2 * 4;
int indices(Indices* out);

// Of 64 threads, each of which holds 100 warp + lane.
struct Shuffled {
  std::int32_t by_xor, down, broadcast, broadcast_own, any;
};
constexpr int shuffle_distances[] = {0, 1, 2, 5, 16, 31};
int shuffles(Shuffled* out);  // [6, 64]

// Of 128 threads: what they load that others have stored, behind each kind of barrier.
struct Ordered {
  std::int32_t within_warp, within_two_warps, within_block;
};
int barriers(Ordered* out);

// Of 32 threads: what they load from shared memory, which holds 3 i + 1 in element i of a view that begins at byte 64; then what they
// load after stores of 1, 2 and 4 words.
struct FromShared {
  std::uint32_t words[4];    // elements 8 lane .. 8 lane + 7
  std::uint32_t other_view;  // element 32 + lane of a view that begins at byte 0
  std::uint32_t pair[2];     // elements 4 lane .. 4 lane + 3
  std::uint32_t stored[3];   // elements 8 * 31 + 6, 256, 257
};
int shared_memory(FromShared* out);

// 32 threads move 16 bytes each.
int global16(const void* from, void* to);

// 32 threads copy 16 bytes each twice: at first only lane % 17 of them, and all of them in a second group.
struct Copied {
  std::uint32_t some[4], all[4];
};
int copies(const void* from, Copied* out);

// One mma of each warp: a block is a problem, with fragments of 32 lanes.
enum class Product { bf16, f16, tf32 };
struct Fragments {
  std::uint32_t a[4], b[2];
  float c[4];
};
int mma(Product product, Fragments* of_lanes, int problems);  // c becomes c + a b

// Row r of matrix m, of eight, has m << 8 | r << 4 | column; of a warp.
struct Dealt {
  std::uint32_t x4[4], x4_trans[4], x2[2], x2_trans[2];
};
int ldmatrix(Dealt* out);

}  // namespace ringattn::cuda::instructions
