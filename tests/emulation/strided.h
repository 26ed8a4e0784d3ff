// Tensors of any layout, for tests of kernels over whole buffers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "engine/cuda/elementwise.h"
#include "engine/reference/oracle.h"
#include "support/device.h"

namespace ringattn::cuda {

using reference::draw;
using reference::Random;

struct Shape {
  std::int64_t batch;
  Extent extent;
};

inline Shape draw_shape(Random& random) {
  const auto ragged = [&](std::int64_t most) { return draw(random, 0, 15) == 0 ? 0 : draw(random, 1, most); };
  const std::int64_t dims[] = {8, 64, 128, 256, 1000};
  return {ragged(3),
          {ragged(draw(random, 0, 3) == 0 ? 400 : 30), ragged(6),
           draw(random, 0, 1) == 0 ? ragged(90) : dims[draw(random, 0, 4)]}};
}

// Numbers that rounding has something to do with: of any size, and some that are not finite.
inline double draw_number(Random& random) {
  switch (draw(random, 0, 40)) {
    case 0:
      return std::numeric_limits<double>::quiet_NaN();
    case 1:
      return -std::numeric_limits<double>::infinity();
    case 2:
      return 0;
    default:
      return std::ldexp(static_cast<double>(draw(random, -(1 << 24), 1 << 24)),
                        static_cast<int>(draw(random, -44, -6)));
  }
}

// A tensor whose dimensions lie in a random order with gaps of a random size, which are as random as the elements.
struct Strided {
  Strided(Random& random, const Shape& shape, DType dtype) : shape(shape) {
    const bool packed = draw(random, 0, 2) == 0, aligned = draw(random, 0, 1) == 0,
               rows_inside = draw(random, 0, 2) == 0;
    const std::int64_t unit = aligned ? 8 : 1;
    const auto padded = [&](std::int64_t n) {
      return packed ? n : (n + unit - 1) / unit * unit + draw(random, 0, 2) * unit;
    };
    const Extent e = shape.extent;
    tensor.dtype = dtype;
    std::int64_t elements = padded(e.dim);
    (rows_inside ? tensor.seq_stride : tensor.head_stride) = elements;
    elements = padded(elements * (rows_inside ? e.rows : e.heads));
    (rows_inside ? tensor.head_stride : tensor.seq_stride) = elements;
    tensor.batch_stride = padded(elements * (rows_inside ? e.heads : e.rows));
    const std::int64_t ahead = 16 / size_of(dtype) + (aligned ? 0 : draw(random, 0, 3));
    memory = test::device::Memory(
        static_cast<std::size_t>(((ahead + shape.batch * tensor.batch_stride) * size_of(dtype) / 16 + 2) * 16));
    std::byte* const begin = memory.data();
    for (std::byte* p = begin; p < begin + memory.bytes().size(); p += size_of(dtype))
      reference::encode(draw_number(random), dtype, p);
    tensor.data = begin + ahead * size_of(dtype);
  }
  Strided(const Strided& other) : shape(other.shape), tensor(other.tensor), memory(other.memory.bytes().size()) {
    std::memcpy(memory.data(), other.memory.data(), other.memory.bytes().size());
    tensor.data = memory.data() + (static_cast<const std::byte*>(other.tensor.data) - other.memory.data());
  }

  double get(std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) const {
    return reference::decode(tensor.bytes_at(b, row, head) + d * size_of(tensor.dtype), tensor.dtype);
  }
  void set(std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d, double x) {
    reference::encode(x, tensor.dtype, tensor.bytes_at(b, row, head) + d * size_of(tensor.dtype));
  }

  Shape shape;
  Tensor tensor;
  test::device::Memory memory;
};

template <class F>
void for_each_row(const Shape& shape, F&& f) {
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t row = 0; row < shape.extent.rows; ++row)
      for (std::int64_t head = 0; head < shape.extent.heads; ++head) f(b, row, head);
}
template <class F>
void for_each_element(const Shape& shape, F&& f) {
  for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
    for (std::int64_t d = 0; d < shape.extent.dim; ++d) f(b, row, head, d);
  });
}

// All of both buffers, gaps included; of NaN there are many.
inline void expect_same(const Strided& ours, const Strided& expected) {
  const std::int64_t size = size_of(ours.tensor.dtype);
  const std::byte *const a = ours.memory.data(), *const b = expected.memory.data();
  for (std::int64_t i = 0; i < std::ssize(ours.memory.bytes()); i += size) {
    if (std::memcmp(a + i, b + i, static_cast<std::size_t>(size)) == 0) continue;
    const double x = reference::decode(a + i, ours.tensor.dtype), y = reference::decode(b + i, ours.tensor.dtype);
    ASSERT_TRUE(std::isnan(x) && std::isnan(y)) << "byte " << i << " is " << x << ", should be " << y;
  }
}

inline std::string describe(const Shape& s, const Tensor& t) {
  return "batch " + std::to_string(s.batch) + ", extent " + std::to_string(s.extent.rows) + " " +
         std::to_string(s.extent.heads) + " " + std::to_string(s.extent.dim) + ", dtype " +
         std::to_string(static_cast<int>(t.dtype)) + ", strides " + std::to_string(t.batch_stride) + " " +
         std::to_string(t.seq_stride) + " " + std::to_string(t.head_stride);
}

inline DType draw_dtype(Random& random) { return static_cast<DType>(draw(random, 1, 3)); }

}  // namespace ringattn::cuda
