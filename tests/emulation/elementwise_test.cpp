// Kernels over whole buffers: the same bits as one element after the other gives, in any layout, and nothing beside them touched.
#include "engine/cuda/elementwise.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "emulation/execution/execution.h"
#include "engine/reference/oracle.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Random;

struct Shape {
  std::int64_t batch;
  Extent extent;
};

Shape draw_shape(Random& random) {
  const auto ragged = [&](std::int64_t most) { return draw(random, 0, 15) == 0 ? 0 : draw(random, 1, most); };
  const std::int64_t dims[] = {8, 64, 128, 256, 1000};
  return {ragged(3),
          {ragged(draw(random, 0, 3) == 0 ? 400 : 30), ragged(6),
           draw(random, 0, 1) == 0 ? ragged(90) : dims[draw(random, 0, 4)]}};
}

// Numbers that rounding has something to do with: of any size, and some that are not finite.
double draw_number(Random& random) {
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

int draw_num_sms(Random& random) { return static_cast<int>(draw(random, 0, 1) * draw(random, 1, 5)); }

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
    words.resize(static_cast<std::size_t>((ahead + shape.batch * tensor.batch_stride) * size_of(dtype) / 16 + 2));
    auto* const begin = reinterpret_cast<std::byte*>(words.data());
    for (std::byte* p = begin; p < begin + words.size() * 16; p += size_of(dtype))
      reference::encode(draw_number(random), dtype, p);
    tensor.data = begin + ahead * size_of(dtype);
  }
  Strided(const Strided& other) : shape(other.shape), tensor(other.tensor), words(other.words) {
    tensor.data = reinterpret_cast<std::byte*>(words.data()) + (static_cast<const std::byte*>(other.tensor.data) -
                                                                reinterpret_cast<const std::byte*>(other.words.data()));
  }

  double get(std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) const {
    return reference::decode(tensor.bytes_at(b, row, head) + d * size_of(tensor.dtype), tensor.dtype);
  }
  void set(std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d, double x) {
    reference::encode(x, tensor.dtype, tensor.bytes_at(b, row, head) + d * size_of(tensor.dtype));
  }

  struct alignas(16) Word {
    std::byte bytes[16];
  };
  Shape shape;
  Tensor tensor;
  std::vector<Word> words;
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
void expect_same(const Strided& ours, const Strided& expected) {
  const std::int64_t size = size_of(ours.tensor.dtype);
  const auto* const a = reinterpret_cast<const std::byte*>(ours.words.data());
  const auto* const b = reinterpret_cast<const std::byte*>(expected.words.data());
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(ours.words.size()) * 16; i += size) {
    if (std::memcmp(a + i, b + i, static_cast<std::size_t>(size)) == 0) continue;
    const double x = reference::decode(a + i, ours.tensor.dtype), y = reference::decode(b + i, ours.tensor.dtype);
    ASSERT_TRUE(std::isnan(x) && std::isnan(y)) << "byte " << i << " is " << x << ", should be " << y;
  }
}

std::string describe(const Shape& s, const Tensor& t) {
  return "batch " + std::to_string(s.batch) + ", extent " + std::to_string(s.extent.rows) + " " +
         std::to_string(s.extent.heads) + " " + std::to_string(s.extent.dim) + ", dtype " +
         std::to_string(static_cast<int>(t.dtype)) + ", strides " + std::to_string(t.batch_stride) + " " +
         std::to_string(t.seq_stride) + " " + std::to_string(t.head_stride);
}

DType draw_dtype(Random& random) { return static_cast<DType>(draw(random, 1, 3)); }

void draw_order(Random& random) {
  emulation::set_options({.seed = random(), .host_threads = static_cast<int>(draw(random, 1, 2))});
}

template <class F>
void for_random_shapes(F&& f) {
  Random random(test::seed());
  for (int i = 0; i < test::sample(120); ++i) {
    draw_order(random);
    f(random, draw_shape(random));
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Elementwise, CopyIsOfAnyLayout) {
  for_random_shapes([](Random& random, const Shape& shape) {
    const DType dtype = draw_dtype(random);
    const Strided from(random, shape, dtype);
    Strided to(random, shape, dtype);
    SCOPED_TRACE(describe(shape, to.tensor));
    Strided expected = to;
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      std::memcpy(expected.tensor.bytes_at(b, row, head), from.tensor.bytes_at(b, row, head),
                  static_cast<std::size_t>(shape.extent.dim * size_of(dtype)));
    });
    ASSERT_EQ(copy(shape.batch, from.tensor, to.tensor, shape.extent, nullptr, draw_num_sms(random)), 0);
    expect_same(to, expected);
  });
}

TEST(Elementwise, RoundIsOnceAndToNearest) {
  for_random_shapes([](Random& random, const Shape& shape) {
    const Strided from(random, shape, DType::float32);
    Strided to(random, shape, draw_dtype(random));
    SCOPED_TRACE(describe(shape, to.tensor));
    const bool accumulate = draw(random, 0, 1) == 1;
    Strided expected = to;
    for_each_element(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) {
      const double x = from.get(b, row, head, d);
      expected.set(b, row, head, d,
                   accumulate ? static_cast<double>(static_cast<float>(x + to.get(b, row, head, d))) : x);
    });
    ASSERT_EQ(round(shape.batch, from.tensor, to.tensor, shape.extent, accumulate, nullptr, draw_num_sms(random)), 0);
    expect_same(to, expected);
  });
}

TEST(Elementwise, ClearTouchesNothingElse) {
  for_random_shapes([](Random& random, const Shape& shape) {
    Strided to(random, shape, draw_dtype(random));
    SCOPED_TRACE(describe(shape, to.tensor));
    Strided expected = to;
    for_each_element(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) {
      expected.set(b, row, head, d, 0);
    });
    ASSERT_EQ(clear(shape.batch, to.tensor, shape.extent, nullptr, draw_num_sms(random)), 0);
    expect_same(to, expected);
  });
}

TEST(Elementwise, AddIsOfAnyLengthAndAlignment) {
  Random random(test::seed());
  for (int i = 0; i < test::sample(60); ++i) {
    draw_order(random);
    const std::int64_t count = draw(random, 0, 3) == 0 ? draw(random, 0, 9) : draw(random, 0, 12'000);
    const Shape shape{1, {1, 1, count}};
    const Strided from(random, shape, DType::float32);
    Strided to(random, shape, DType::float32);
    Strided expected = to;
    for (std::int64_t n = 0; n < count; ++n)
      expected.set(0, 0, 0, n, static_cast<double>(static_cast<float>(to.get(0, 0, 0, n) + from.get(0, 0, 0, n))));
    ASSERT_EQ(add(from.tensor.at<float>(0, 0, 0), to.tensor.at<float>(0, 0, 0), count, nullptr, draw_num_sms(random)),
              0);
    ASSERT_NO_FATAL_FAILURE(expect_same(to, expected)) << count;
  }
}

// Pages that nobody touches take no memory.
struct Sparse {
  explicit Sparse(std::size_t bytes)
      : bytes(bytes),
        data(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { munmap(data, bytes); }
  std::size_t bytes;
  void* data;
};

TEST(Elementwise, StridesMayGoBeyondTwoToTheThirtyOne) {
  constexpr std::int64_t far = (std::int64_t{1} << 31) + 8;
  const Shape shape{2, {2, 2, 16}};
  emulation::set_options({.seed = test::seed(), .host_threads = 1});
  for (const auto& [batch_stride, seq_stride, head_stride] : {std::tuple{far, std::int64_t{32}, std::int64_t{16}},
                                                              {std::int64_t{32}, far, std::int64_t{16}},
                                                              {std::int64_t{32}, std::int64_t{16}, far}}) {
    const std::size_t bytes = static_cast<std::size_t>(far + 100) * sizeof(float);
    const Sparse memory(bytes), others(bytes);
    ASSERT_NE(memory.data, MAP_FAILED);
    ASSERT_NE(others.data, MAP_FAILED);
    const Tensor a{memory.data, DType::float32, batch_stride, seq_stride, head_stride};
    const Tensor b{others.data, DType::float32, batch_stride, seq_stride, head_stride};
    const auto number = [](std::int64_t entry, std::int64_t row, std::int64_t head, std::int64_t d) {
      return static_cast<float>(((entry * 2 + row) * 2 + head) * 16 + d);
    };
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      a.at<float>(e, row, head)[d] = number(e, row, head, d);
    });
    ASSERT_EQ(copy(shape.batch, a, b, shape.extent, nullptr), 0);
    ASSERT_EQ(round(shape.batch, a, b, shape.extent, true, nullptr), 0);
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      ASSERT_EQ(b.at<float>(e, row, head)[d], 2 * number(e, row, head, d));
    });
    ASSERT_EQ(clear(shape.batch, b, shape.extent, nullptr), 0);
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      ASSERT_EQ(b.at<float>(e, row, head)[d], 0);
    });
  }
}

// The runtime is told what is read and written, from the first element to the last and no further.
TEST(Elementwise, AccessesAreDeclared) {
  Random random(test::seed());
  const Shape shape{2, {3, 4, 24}};
  Strided from(random, shape, DType::float32), to(random, shape, DType::float32);
  std::vector<emulation::Launch> taken;
  emulation::set_launcher([&](const emulation::Launch& launch) {
    taken.push_back(launch);
    return 7;
  });
  EXPECT_EQ(copy(2, from.tensor, to.tensor, shape.extent, nullptr), 7);
  EXPECT_EQ(round(2, from.tensor, to.tensor, shape.extent, true, nullptr), 7);
  EXPECT_EQ(round(2, from.tensor, to.tensor, shape.extent, false, nullptr), 7);
  EXPECT_EQ(clear(2, to.tensor, shape.extent, nullptr), 7);
  EXPECT_EQ(copy(0, from.tensor, to.tensor, shape.extent, nullptr), 0);
  emulation::set_launcher({});
  const auto expect = [&](const emulation::Launch& launch, std::initializer_list<std::pair<const Tensor*, bool>> all) {
    ASSERT_EQ(launch.accesses.size(), all.size()) << launch.name;
    std::size_t n = 0;
    for (const auto& [tensor, writes] : all) {
      const Access& access = launch.accesses[n++];
      EXPECT_EQ(access.data, tensor->data) << launch.name;
      EXPECT_EQ(static_cast<const std::byte*>(access.data) + access.bytes, tensor->bytes_at(1, 2, 3) + 24 * 4)
          << launch.name;
      EXPECT_EQ(access.writes, writes) << launch.name;
    }
  };
  ASSERT_EQ(taken.size(), 4U);
  expect(taken[0], {{&from.tensor, false}, {&to.tensor, true}});
  expect(taken[1], {{&from.tensor, false}, {&to.tensor, true}, {&to.tensor, false}});
  expect(taken[2], {{&from.tensor, false}, {&to.tensor, true}});
  expect(taken[3], {{&to.tensor, true}});
}

}  // namespace
}  // namespace ringattn::cuda
