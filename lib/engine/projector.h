// What a layer of multi-head attention asks of a processor beside attention: products of matrices, and what is done to heads between
// a projection and attention.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "plan/shard.h"

namespace ringattn {

// Rows of numbers, each row dense; or, transposed, columns.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t stride = 0;  // elements from one row, or column, to the next
  bool is_transposed = false;

  Matrix transposed() const { return {data, dtype, stride, !is_transposed}; }
  Matrix from(std::int64_t row, std::int64_t column) const {
    const std::int64_t offset = is_transposed ? column * stride + row : row * stride + column;
    return {data == nullptr ? nullptr : static_cast<std::byte*>(data) + offset * size_of(dtype), dtype, stride,
            is_transposed};
  }
};

// left [rows, depth] times right [depth, columns].
struct Term {
  Matrix left, right;
  std::int64_t depth = 0;
};

// to = sum of terms, + bias to each row; or to += that. Summed in fp32, rounded once. `to` is not transposed.
struct Product {
  std::span<const Term> terms;
  Matrix to;
  std::int64_t rows = 0, columns = 0;
  Matrix bias = {};  // one row; no data: none
  bool accumulate = false;
};

// Pairs of a head's elements that are turned by the position of the token.
struct Rotation {
  std::int64_t elements = 0;    // of each head, from the first on; even; 0: none
  bool is_interleaved = false;  // a pair is (2 i, 2 i + 1), else (i, i + elements / 2)
  double base = 1;              // pair i turns by position * rate(i)

  double rate(std::int64_t pair) const {
    return std::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(elements));
  }
};

// What becomes of each head of q or k, [rows, heads * dim], once it is projected: normalised, if `norm` has data, and turned.
struct HeadStyle {
  std::int64_t heads = 1, dim = 1;
  Matrix norm = {};  // [dim]
  double epsilon = 0;
  Rotation rotation;
  std::span<const std::int64_t> positions;  // of row i: positions[i % size]; memory like that of matrices

  bool changes() const { return norm.data != nullptr || rotation.elements > 0; }
};

// Matrices, and whatever else it is given to compute with, are memory that its engine computes in.
class Projector {
 public:
  virtual ~Projector() = default;

  // Of temporary memory of any of the functions below, aligned like memory_alignment; `rows` are the most that any is given.
  virtual std::size_t scratch_bytes(std::int64_t rows) const = 0;

  virtual void multiply(const Product& product, void* scratch) = 0;
  // to = sum of rows of `from`, [columns]; or to += that.
  virtual void sum_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, float* to, bool accumulate,
                        void* scratch) = 0;
  // positions[piece.row + i] = piece.position(i), for the pieces of a shard.
  virtual void store_positions(std::span<const Piece> pieces, std::int64_t* positions) = 0;
  // `to` may be `from`.
  virtual void style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) = 0;
  // gradient, of what style_heads made of `from`, becomes that of `from`; `from` is read where there is a norm. Unless dnorm is null,
  // that of the norm, [dim], is written to it or added.
  virtual void differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient,
                                   std::int64_t rows, float* dnorm, bool accumulate, void* scratch) = 0;
};

}  // namespace ringattn
