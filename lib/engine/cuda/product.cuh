// Products of tiles by a warp, one algorithm for all types:
//
//   bf16, f16   mma_m16n8k16. What is in memory is exact. Weights, which are fp32, are rounded to the type, or where that is too
//               coarse are the sum of three such numbers, whose products are added one after the other, the smallest first.
//   float32     mma_m16n8k8 in tf32, which has 11 bits: x is the sum of two such numbers, each rounding what the ones before leave, or
//               of three, which leave nothing. Of products of part i and part j those are made that i + j < parts; what is left out
//               is up to 2^-22 of a product, or nothing that counts. Tensor cores truncate
//               their sums, so only those of eight terms are theirs, and are added up elsewhere, to nearest (Ootomo and Yokota 2022,
//               "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance").
//
// Operands are 16 rows (Left) and 16 columns (Right), `depth` deep. A warp's accumulators of 16 rows and 8 columns are a block
// (device/matrix.h). Weights are made of accumulators in place: for mma_m16n8k16 the layouts agree; for mma_m16n8k8 column 2t of a
// block is taken for column t of the operand, and column 2t + 1 for column t + 4, so rows of the other operand are taken alike.
#pragma once

#include "engine/cuda/device/convert.h"
#include "engine/cuda/device/matrix.h"
#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/threads.h"

namespace ringattn::cuda {

// What a product may lose where errors average out, and where they cannot.
enum class Weights { rounded, exact };

// Rows of a matrix in shared memory, without gaps: the 16-byte pieces of row r are stored in the order of their number xor r % 8, so
// that one piece of eight rows, and neighbouring pieces of neighbouring rows, lie in different banks.
template <class T, int Offset, int Rows, int Columns>
struct SharedTile {
  static constexpr int rows = Rows, columns = Columns;
  static constexpr int piece = 16 / static_cast<int>(sizeof(T));  // elements
  static constexpr int pieces = Columns / piece;                  // of a row
  static_assert(pieces % 8 == 0);
  using Element = T;
  using Memory = Shared<T, Offset, Rows * Columns>;
  static constexpr int end = Memory::end;

  __device__ __forceinline__ static int at(int row, int column) {
    return row * Columns + ((column / piece) ^ (row % 8)) * piece + column % piece;
  }
  // `rows` and `columns` further on than an element of the first two pieces of its row; rows are a multiple of 8, columns of two pieces.
  // One exclusive or, where they are known when compiling.
  __device__ __forceinline__ static int moved(int at, int rows, int columns) {
    return (at ^ columns % (8 * piece)) + columns / (8 * piece) * (8 * piece) + rows * Columns;
  }
};

// Four matrices of 8 rows and one piece each: a fragment of 16 rows as they lie, or of 16 columns that lie as rows.
template <class Tile>
__device__ __forceinline__ Words<4> load_rows_of_left(int row, int k) {
  const int lane = lane_index();
  const int at = Tile::at(row + lane % 16, lane / 16 * Tile::piece);
  return ldmatrix_x4(Tile::Memory::address(Tile::moved(at, 0, k)));
}
template <class Tile>
__device__ __forceinline__ Words<4> load_rows_of_right(int n, int k) {
  const int lane = lane_index();
  const int at = Tile::at(lane % 8 + lane / 16 * 8, lane / 8 % 2 * Tile::piece);
  return ldmatrix_x4(Tile::Memory::address(Tile::moved(at, n, k)));
}

template <class T, Weights weights>
struct Product {
  static constexpr int depth = 16;
  static constexpr int blocks = depth / 8;
  static constexpr int parts = weights == Weights::rounded ? 1 : 3;  // of a weight
  // What weights of up to 1 are multiplied by, and with them the product: float16 has few digits below 2^-14.
  static constexpr float weight_scale = std::is_same_v<T, Float16> && weights == Weights::exact ? 4096 : 1;

  struct Left {
    Words<4> a;
  };
  struct Right {
    Words<4> b;
  };
  struct WeightsLeft {
    Words<4> part[parts];
  };

  // Rows row .. row + 15 of the tile, columns k .. k + depth - 1.
  template <class Tile>
  __device__ __forceinline__ static Left load_left(int row, int k) {
    return {load_rows_of_left<Tile>(row, k)};
  }
  // The transposed tile: its rows n .. n + 15 as columns.
  template <class Tile>
  __device__ __forceinline__ static Right load_columns(int n, int k) {
    return {load_rows_of_right<Tile>(n, k)};
  }
  // Columns n .. n + 15 of the tile's rows k .. k + depth - 1.
  template <class Tile>
  __device__ __forceinline__ static Right load_rows(int k, int n) {
    const int lane = lane_index(), at = Tile::at(lane % 16, lane / 16 * 8);
    return {ldmatrix_x4_trans(Tile::Memory::address(Tile::moved(at, k, n)))};
  }

  __device__ __forceinline__ static WeightsLeft make_weights(const float (&s)[blocks][4]) {
    WeightsLeft left;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low = s[i / 2][i % 2 * 2] * weight_scale, high = s[i / 2][i % 2 * 2 + 1] * weight_scale;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        const std::uint32_t packed = pack<T>(low, high);
        left.part[part][i] = packed;
        low -= unpack_low<T>(packed);
        high -= unpack_high<T>(packed);
      }
    }
    return left;
  }

  __device__ __forceinline__ static void multiply(float (&c0)[4], float (&c1)[4], const Left& left,
                                                  const Right& right) {
    mma_m16n8k16<T>(c0, left.a, {{right.b[0], right.b[1]}});
    mma_m16n8k16<T>(c1, left.a, {{right.b[2], right.b[3]}});
  }
  __device__ __forceinline__ static void multiply(float (&c0)[4], float (&c1)[4], const WeightsLeft& left,
                                                  const Right& right) {
#pragma unroll
    for (int part = parts - 1; part >= 0; --part) multiply(c0, c1, Left{left.part[part]}, right);
  }
};

template <Weights weights>
struct Product<float, weights> {
  static constexpr int depth = 8;
  static constexpr int blocks = depth / 8;
  static constexpr int parts = weights == Weights::rounded ? 2 : 3;  // of a number
  static constexpr float weight_scale = 1;

  struct Split {
    Words<4> part[parts];
    __device__ __forceinline__ void set(int i, float x) {
#pragma unroll
      for (int n = 0; n < parts; ++n) {
        part[n][i] = round_to_tf32(x);
        x -= float_of(part[n][i]);
      }
    }
  };
  using Left = Split;
  using Right = Split;
  using WeightsLeft = Split;

  template <class Tile>
  __device__ __forceinline__ static Left load_left(int row, int k) {
    return split(load_rows_of_left<Tile>(row, k));
  }
  template <class Tile>
  __device__ __forceinline__ static Right load_columns(int n, int k) {
    return split(load_rows_of_right<Tile>(n, k));
  }
  template <class Tile>
  __device__ __forceinline__ static Right load_rows(int k, int n) {
    const int column = lane_index() / 4, row = lane_index() % 4 * 2;
    Right right;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      right.set(i, Tile::Memory::load(Tile::moved(Tile::at(row + i % 2, column), k, n + i / 2 * 8)));
    return right;
  }

  __device__ __forceinline__ static WeightsLeft make_weights(const float (&s)[blocks][4]) {
    WeightsLeft left;
    left.set(0, s[0][0]);
    left.set(1, s[0][2]);
    left.set(2, s[0][1]);
    left.set(3, s[0][3]);
    return left;
  }

  __device__ __forceinline__ static void multiply(float (&c0)[4], float (&c1)[4], const Left& left,
                                                  const Right& right) {
    multiply(c0, left, right, 0);
    multiply(c1, left, right, 2);
  }

 private:
  __device__ __forceinline__ static Split split(const Words<4>& words) {
    Split result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.set(i, float_of(words[i]));
    return result;
  }
  __device__ __forceinline__ static void multiply(float (&c)[4], const Left& left, const Right& right, int n) {
    float sum[4] = {};
#pragma unroll
    for (int of_both = parts - 1; of_both >= 0; --of_both)  // the smallest first
#pragma unroll
      for (int i = 0; i <= of_both; ++i) {
        const Words<4>& b = right.part[of_both - i];
        mma_m16n8k8_tf32(sum, left.part[i], {{b[n], b[n + 1]}});
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += sum[i];
  }
};

}  // namespace ringattn::cuda
