// The innermost tiles: all that differs from one instruction set to another.
//
// An instruction set supplies one table of functions; forward.cpp and backward.cpp are written once above it. Matrices in scratch memory
// are fp32, row major, with rows padded to a multiple of `padding` floats, and what pads them is finite.
#pragma once

#include <cstdint>

#include "plan/problem.h"

namespace ringattn::cpu {

// Floats that a padded row is a multiple of: the widest register tile of any instruction set.
constexpr std::int64_t padding = 32;
constexpr std::int64_t padded(std::int64_t n) { return (n + padding - 1) / padding * padding; }

// C[m x n] = A[m x k] B[k x n], or C += A B. A is read at a[i * a_row + p * a_col], so it may be a transpose. n is rounded up
// to a whole register tile: B and C must have padded rows. Every C element is summed over p in ascending order, in spans of a
// length that divides `padding`: each span by itself, then added to the sum of those before. So rounding errors grow with the
// number of spans rather than terms, and the result does not depend on m and n, nor on how k is cut at multiples of `padding`.
struct Product {
  std::int64_t m, n, k;
  const float* a;
  std::int64_t a_row, a_col;
  const float* b;
  std::int64_t ldb;
  float* c;
  std::int64_t ldc;
  bool accumulate;
};

// Keys of a tile that one row sees: lo <= j < hi.
struct Visible {
  std::int32_t lo, hi;
};

struct SoftmaxTile {
  std::int64_t rows, columns;  // columns: those to fill with weights, a multiple of `padding`
  float* scores;               // [rows, ld]: products of q and k on entry, weights on return, 0 where not visible
  std::int64_t ld;
  const Visible* visible;  // one per row
  float scale, softcap;
  float* max;  // running, one per row
  float* sum;
  float* factor;  // by which earlier results of the row shrink; one per row, written
};

struct GradientTile {
  std::int64_t rows, columns;
  float* scores;   // [rows, ld]: products of q and k on entry, weights on return
  float* dscores;  // [rows, ld]: products of dout and v on entry, gradients of q.k on return
  std::int64_t ld;
  const Visible* visible;
  float scale, softcap;
  const float* lse;  // one per row
  const float* delta;
};

struct Tiles {
  const char* name;
  void (*multiply)(const Product& product);
  void (*softmax)(const SoftmaxTile& tile);
  void (*gradient)(const GradientTile& tile);
  // rows x dim of any dtype, `stride` elements apart, to fp32 rows `ld` apart, padded with zeros. Whether all are finite.
  bool (*load)(DType dtype, const void* from, std::int64_t stride, std::int64_t rows, std::int64_t dim, float* to,
               std::int64_t ld);
  // to[c][r] = from[r][c]; pads rows of `to` with zeros from `rows` to `ld`.
  void (*transpose)(const float* from, std::int64_t ldf, std::int64_t rows, std::int64_t dim, float* to,
                    std::int64_t ld);
  // row *= factor, each row with its own.
  void (*scale)(float* rows, std::int64_t ld, std::int64_t count, std::int64_t dim, const float* factor);
  // to = from or to += from, one dense row; `to` is rounded to dtype once.
  void (*store)(DType dtype, const float* from, std::int64_t dim, void* to, bool accumulate);
  // out[r] = dot(a row, b row), summed as multiply sums.
  void (*dot_rows)(const float* a, const float* b, std::int64_t ld, std::int64_t rows, std::int64_t dim, float* out);
};

const Tiles& portable_tiles();

}  // namespace ringattn::cpu
