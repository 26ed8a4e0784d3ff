// Kernels over whole buffers: the same bits as one element after the other gives, in any layout, and nothing beside them touched.
#include "emulation/strided.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

template <class F>
void for_random_shapes(F&& f) {
  Random random(test::seed());
  for (int i = 0; i < test::sample(120); ++i) {
    const test::device::Launches launches(random, true);
    f(random, draw_shape(random), launches);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Elementwise, CopyIsOfAnyLayout) {
  for_random_shapes([](Random& random, const Shape& shape, const test::device::Launches& launches) {
    const DType dtype = draw_dtype(random);
    const Strided from(random, shape, dtype);
    Strided to(random, shape, dtype);
    SCOPED_TRACE(describe(shape, to.tensor));
    Strided expected = to;
    for_each_row(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head) {
      std::memcpy(expected.tensor.bytes_at(b, row, head), from.tensor.bytes_at(b, row, head),
                  static_cast<std::size_t>(shape.extent.dim * size_of(dtype)));
    });
    ASSERT_EQ(copy(shape.batch, from.tensor, to.tensor, shape.extent, nullptr, launches.num_sms()), 0);
    test::device::finish();
    expect_same(to, expected);
  });
}

TEST(Elementwise, RoundIsOnceAndToNearest) {
  for_random_shapes([](Random& random, const Shape& shape, const test::device::Launches& launches) {
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
    ASSERT_EQ(round(shape.batch, from.tensor, to.tensor, shape.extent, accumulate, nullptr, launches.num_sms()), 0);
    test::device::finish();
    expect_same(to, expected);
  });
}

// Terms of any dtypes, and some that are one row again and again.
TEST(Elementwise, SumIsRoundedOnce) {
  for_random_shapes([](Random& random, const Shape& shape, const test::device::Launches& launches) {
    std::vector<Strided> terms;
    std::vector<Tensor> tensors;
    terms.reserve(2);
    for (std::int64_t count = draw(random, 0, 2); count > 0; --count) {
      terms.emplace_back(random, shape, draw_dtype(random));
      if (draw(random, 0, 2) == 0) terms.back().tensor.seq_stride = 0;
      tensors.push_back(terms.back().tensor);
    }
    Strided to(random, shape, draw_dtype(random));
    SCOPED_TRACE(describe(shape, to.tensor));
    const bool accumulate = draw(random, 0, 1) == 1;
    Strided expected = to;
    for_each_element(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) {
      float sum = accumulate ? static_cast<float>(to.get(b, row, head, d)) : 0;
      for (const Strided& term : terms) sum += static_cast<float>(term.get(b, row, head, d));
      expected.set(b, row, head, d, static_cast<double>(sum));
    });
    ASSERT_EQ(sum(shape.batch, tensors, to.tensor, shape.extent, accumulate, nullptr, launches.num_sms()), 0);
    test::device::finish();
    expect_same(to, expected);
  });
}

TEST(Elementwise, ClearTouchesNothingElse) {
  for_random_shapes([](Random& random, const Shape& shape, const test::device::Launches& launches) {
    Strided to(random, shape, draw_dtype(random));
    SCOPED_TRACE(describe(shape, to.tensor));
    Strided expected = to;
    for_each_element(shape, [&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d) {
      expected.set(b, row, head, d, 0);
    });
    ASSERT_EQ(clear(shape.batch, to.tensor, shape.extent, nullptr, launches.num_sms()), 0);
    test::device::finish();
    expect_same(to, expected);
  });
}

TEST(Elementwise, AddIsOfAnyLengthAndAlignment) {
  Random random(test::seed());
  const test::device::Launches launches(random, true);
  for (int i = 0; i < test::sample(60); ++i) {
    const std::int64_t count = draw(random, 0, 3) == 0 ? draw(random, 0, 9) : draw(random, 0, 12'000);
    const Shape shape{1, {1, 1, count}};
    const Strided from(random, shape, DType::float32);
    Strided to(random, shape, DType::float32);
    Strided expected = to;
    for (std::int64_t n = 0; n < count; ++n)
      expected.set(0, 0, 0, n, static_cast<double>(static_cast<float>(to.get(0, 0, 0, n) + from.get(0, 0, 0, n))));
    ASSERT_EQ(add(from.tensor.at<float>(0, 0, 0), to.tensor.at<float>(0, 0, 0), count, nullptr, launches.num_sms()), 0);
    test::device::finish();
    ASSERT_NO_FATAL_FAILURE(expect_same(to, expected)) << count;
  }
}

}  // namespace
}  // namespace ringattn::cuda
