// The projector against fp64 of the same inputs. Tolerance: what rounding errors of fp32 in the terms of each sum add up to, and one
// rounding of what is stored.
#include "engine/projector.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <iostream>
#include <optional>
#include <vector>

#include "engine/reference/oracle.h"
#include "support/engine.h"
#include "support/projector_machine.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::decode;
using reference::draw;
using reference::encode;
using reference::Random;

double uniform(Random& random) { return static_cast<double>(random() >> 11) * 0x1p-52 - 1; }

// Numbers of a matrix, and of what lies between its rows, which is not to be touched.
struct Stored {
  Stored(Random& random, std::int64_t rows, std::int64_t columns, DType dtype_, bool transposed, std::int64_t gap)
      : lines(transposed ? columns : rows),
        size(transposed ? rows : columns),
        dtype(dtype_),
        stride(size + gap),
        is_transposed(transposed),
        bytes(static_cast<std::size_t>(lines * stride * size_of(dtype))) {
    for (std::int64_t i = 0; i < lines * stride; ++i) encode(uniform(random), dtype, bytes.data() + i * size_of(dtype));
  }
  double at(std::int64_t row, std::int64_t column) const {
    const std::int64_t index = is_transposed ? column * stride + row : row * stride + column;
    return decode(bytes.data() + index * size_of(dtype), dtype);
  }
  // Row by row.
  std::vector<double> numbers() const {
    std::vector<double> all;
    const std::int64_t rows = is_transposed ? size : lines, columns = is_transposed ? lines : size;
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) all.push_back(at(i, j));
    return all;
  }
  // Whether what is between the lines is as it was.
  bool has_gaps_of(const Stored& other) const {
    for (std::int64_t line = 0; line < lines; ++line) {
      const std::int64_t from = (line * stride + size) * size_of(dtype), count = (stride - size) * size_of(dtype);
      if (std::memcmp(bytes.data() + from, other.bytes.data() + from, static_cast<std::size_t>(count)) != 0)
        return false;
    }
    return true;
  }

  std::int64_t lines, size;
  DType dtype;
  std::int64_t stride;
  bool is_transposed;
  std::vector<std::byte> bytes;
};

double roundoff(DType dtype) { return dtype == DType::float32 ? 0x1p-24 : dtype == DType::bfloat16 ? 0x1p-8 : 0x1p-11; }

DType draw_dtype(Random& random) { return static_cast<DType>(draw(random, 1, 3)); }

Matrix given(test::ProjectorMachine& machine, Stored& m) {
  return {machine.give(m.bytes), m.dtype, m.stride, m.is_transposed};
}

class ProjectorTest : public testing::Test {
 protected:
  void SetUp() override {
    if (machine_.projector() == nullptr) GTEST_SKIP() << "this processor has no engine " << test::engine();
  }
  Projector& projector() { return *machine_.projector(); }
  void* scratch(std::int64_t rows) { return machine_.scratch(rows); }
  template <class T>
  T* give(std::vector<T>& elements) {
    return machine_.give(elements);
  }
  Matrix give(Stored& m) { return given(machine_, m); }
  void take_back() { machine_.take_back(); }

 private:
  test::ProjectorMachine machine_;
};

TEST_F(ProjectorTest, ProductsAreNearFp64) {
  const std::uint64_t seed = test::number_of("RINGATTN_TEST_SEED", 1);
  std::cout << "seed " << seed << '\n';
  Random random(seed);
  const bool is_slow = test::ProjectorMachine::is_slow();
  const int cases = (test::full() ? 2000 : 200 / test::slowness + 20) / (is_slow ? 3 : 1);
  for (int n = 0; n < cases; ++n) {
    const bool is_large = n % 20 == 0 && !is_slow, is_long = n % 20 == 10;  // in all directions; in one
    const std::int64_t most = is_large ? 700 : is_long ? 9 : 70, along = is_long ? draw(random, 0, 2) : 3;
    const std::int64_t rows = draw(random, 1, along == 0 ? 4500 : most),
                       columns = draw(random, 1, along == 1 ? 4500 : most);
    const bool accumulate = draw(random, 0, 1) == 1, has_bias = draw(random, 0, 1) == 1;
    std::vector<Stored> operands;
    std::vector<std::int64_t> depths;
    const std::int64_t count = draw(random, 0, 3);
    for (std::int64_t t = 0; t < count; ++t) {
      depths.push_back(draw(random, t == 0 ? 1 : 0, along == 2 ? 4500 : is_large ? 2100 : is_long ? 9 : 90));
      const DType left = draw_dtype(random), right = draw(random, 0, 3) == 0 ? draw_dtype(random) : left;
      operands.emplace_back(random, rows, depths.back(), left, draw(random, 0, 1) == 1, draw(random, 0, 2));
      operands.emplace_back(random, depths.back(), columns, right, draw(random, 0, 1) == 1, draw(random, 0, 2));
    }
    Stored to(random, rows, columns, draw_dtype(random), false, draw(random, 0, 2));
    Stored bias(random, 1, columns, draw_dtype(random), false, 0);
    const Stored before = to;
    std::vector<Term> terms;
    for (std::size_t t = 0; t < depths.size(); ++t)
      terms.push_back({give(operands[2 * t]), give(operands[2 * t + 1]), depths[t]});
    projector().multiply({terms, give(to), rows, columns, has_bias ? give(bias) : Matrix{}, accumulate}, scratch(rows));
    take_back();

    SCOPED_TRACE(testing::Message() << "case " << n << " of seed " << seed << ": " << rows << " x " << columns << ", "
                                    << terms.size() << " terms");
    ASSERT_TRUE(to.has_gaps_of(before));
    std::vector<std::vector<double>> numbers;
    for (const Stored& operand : operands) numbers.push_back(operand.numbers());
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) {
        double sum = (accumulate ? before.at(i, j) : 0) + (has_bias ? bias.at(0, j) : 0), size = std::abs(sum),
               length = 2;
        for (std::size_t t = 0; t < depths.size(); ++t) {
          const double *const left = numbers[2 * t].data() + i * depths[t], *const right =
                                                                                numbers[2 * t + 1].data() + j;
          for (std::int64_t k = 0; k < depths[t]; ++k) {
            const double term = left[k] * right[k * columns];
            sum += term;
            size += std::abs(term);
          }
          length += static_cast<double>(depths[t]);
        }
        const double tolerance = 0x1p-24 * size * std::sqrt(length) + 1.01 * roundoff(to.dtype) * std::abs(sum) + 1e-7;
        ASSERT_NEAR(to.at(i, j), sum, tolerance) << "row " << i << ", column " << j;
      }
  }
}

// On any number of threads, and again.
TEST(Projector, ProductsAreTheSameAgain) {
  if (test::ProjectorMachine().projector() == nullptr)
    GTEST_SKIP() << "this processor has no engine " << test::engine();
  const std::int64_t rows = test::ProjectorMachine::is_slow() ? 115 : 515, columns = 300, depth = rows + 700;
  for (const DType of_right : {DType::bfloat16, DType::float16}) {
    Random random(7);
    Stored left(random, rows, depth, DType::bfloat16, false, 0), right(random, depth, columns, of_right, true, 0);
    std::optional<std::vector<std::byte>> first;
    for (const int threads : {1, 2, 3, 7, 2}) {
      test::ProjectorMachine machine(threads);
      Stored to(random, rows, columns, DType::float32, false, 0);
      const std::vector<Term> terms{{given(machine, left), given(machine, right), depth}};
      machine.projector()->multiply({terms, given(machine, to), rows, columns}, machine.scratch(rows));
      machine.take_back();
      if (!first) first = to.bytes;
      EXPECT_EQ(to.bytes, *first) << threads << " threads";
    }
  }
}

TEST_F(ProjectorTest, SumsOfRowsAreNearFp64) {
  Random random(3);
  for (const std::int64_t rows : {0, 1, 5, 1000})
    for (const bool accumulate : {false, true}) {
      const std::int64_t columns = 131;
      Stored from(random, rows, columns, DType::float16, false, 3);
      std::vector<float> to(columns, 0.5F);
      projector().sum_rows(give(from), rows, columns, give(to), accumulate, scratch(rows));
      take_back();
      for (std::int64_t j = 0; j < columns; ++j) {
        double sum = accumulate ? 0.5 : 0;
        for (std::int64_t i = 0; i < rows; ++i) sum += from.at(i, j);
        EXPECT_FLOAT_EQ(to[static_cast<std::size_t>(j)], static_cast<float>(sum));
      }
    }
}

struct Heads {
  std::int64_t heads, dim;
  Rotation rotation;
  bool has_norm;
};
constexpr double epsilon = 0.01;

// Of one head, in long double: what becomes of it, and of a gradient of that.
std::vector<long double> styled(const Heads& h, const std::vector<long double>& norm, std::int64_t position,
                                std::vector<long double> head) {
  if (h.has_norm) {
    long double squares = 0;
    for (const long double v : head) squares += v * v;
    const long double scale =
        1 / std::sqrt(squares / static_cast<long double>(h.dim) + static_cast<long double>(epsilon));
    for (std::size_t d = 0; d < head.size(); ++d) head[d] *= norm[d] * scale;
  }
  const std::int64_t pairs = h.rotation.elements / 2;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto a = static_cast<std::size_t>(h.rotation.is_interleaved ? 2 * i : i),
               b = static_cast<std::size_t>(h.rotation.is_interleaved ? 2 * i + 1 : i + pairs);
    const long double angle =
        static_cast<long double>(position) *
        std::pow(static_cast<long double>(h.rotation.base),
                 -static_cast<long double>(2 * i) / static_cast<long double>(h.rotation.elements));
    const long double x = head[a], y = head[b];
    head[a] = x * std::cos(angle) - y * std::sin(angle);
    head[b] = x * std::sin(angle) + y * std::cos(angle);
  }
  return head;
}

std::vector<Heads> kinds_of_heads() {
  return {{3, 8, {8, false, 10000}, false},
          {2, 7, {6, true, 500}, false},
          {1, 256, {256, false, 10000}, true},
          {4, 64, {32, true, 10000}, true},
          {2, 5, {}, true}};
}
std::vector<std::int64_t> positions{0, 1, 63, 64, 65, 4095, 1'000'000, 1'000'001, std::int64_t{1} << 40};

TEST_F(ProjectorTest, PositionsAreThoseOfPieces) {
  Random random(5);
  for (int n = 0; n < 20; ++n) {
    std::vector<Piece> pieces;
    std::int64_t rows = 0;
    for (std::int64_t count = draw(random, 0, n == 0 ? 300 : 5); count > 0; --count) {
      const std::int64_t block = draw(random, 1, 9), first = draw(random, 0, 30), length = draw(random, 1, 40);
      pieces.push_back(
          {0, {draw(random, 0, 1'000'000), block, block + draw(random, 0, 20), first + length}, first, length, rows});
      rows += length;
    }
    std::vector<std::int64_t> stored(static_cast<std::size_t>(rows));
    projector().store_positions(pieces, give(stored));
    take_back();
    for (const Piece& piece : pieces)
      for (std::int64_t i = 0; i < piece.length; ++i)
        ASSERT_EQ(stored[static_cast<std::size_t>(piece.row + i)], piece.position(i)) << "piece at row " << piece.row;
  }
}

TEST_F(ProjectorTest, HeadsAreStyledAsTheDefinitionSays) {
  Random random(11);
  for (const Heads& h : kinds_of_heads())
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      const auto rows = static_cast<std::int64_t>(2 * positions.size()), columns = h.heads * h.dim;
      Stored from(random, rows, columns, dtype, false, 1), to = from, norm(random, 1, h.dim, dtype, false, 0);
      const HeadStyle style{h.heads, h.dim,      h.has_norm ? give(norm) : Matrix{},
                            epsilon, h.rotation, {give(positions), positions.size()}};
      projector().style_heads(style, give(from), give(to), rows);
      Stored in_place = from;
      projector().style_heads(style, give(in_place), give(in_place), rows);
      take_back();
      EXPECT_TRUE(to.has_gaps_of(from));
      EXPECT_EQ(in_place.bytes, to.bytes);
      std::vector<long double> weights;
      for (std::int64_t d = 0; d < h.dim; ++d) weights.push_back(static_cast<long double>(norm.at(0, d)));
      for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t head = 0; head < h.heads; ++head) {
          std::vector<long double> values;
          for (std::int64_t d = 0; d < h.dim; ++d)
            values.push_back(static_cast<long double>(from.at(row, head * h.dim + d)));
          const std::int64_t position = positions[static_cast<std::size_t>(row) % positions.size()];
          const auto expected = styled(h, weights, position, values);
          // The angle is an fp64 number.
          const double angle_error = static_cast<double>(position) * 0x1p-52;
          for (std::int64_t d = 0; d < h.dim; ++d) {
            const auto exact = static_cast<double>(expected[static_cast<std::size_t>(d)]);
            ASSERT_NEAR(to.at(row, head * h.dim + d), exact,
                        4 * (0x1p-24 + angle_error) * 2 + 1.01 * roundoff(dtype) * std::abs(exact) + 1e-7)
                << "dim " << h.dim << ", position " << position << ", element " << d;
          }
        }
    }
}

// The gradient is that of finite differences, of a sum of styled heads with weights.
TEST_F(ProjectorTest, GradientsOfHeadsAreThoseOfFiniteDifferences) {
  Random random(13);
  for (const Heads& h : kinds_of_heads()) {
    const auto rows = static_cast<std::int64_t>(positions.size()), columns = h.heads * h.dim;
    Stored from(random, rows, columns, DType::float32, false, 0),
        gradient(random, rows, columns, DType::float32, false, 2), norm(random, 1, h.dim, DType::float32, false, 0);
    const Stored weights = gradient;
    std::vector<float> dnorm(static_cast<std::size_t>(h.dim), 0.25F);
    const HeadStyle style{h.heads, h.dim,      h.has_norm ? give(norm) : Matrix{},
                          epsilon, h.rotation, {give(positions), positions.size()}};
    projector().differentiate_heads(style, give(from), give(gradient), rows, give(dnorm), true, scratch(rows));
    take_back();
    EXPECT_TRUE(gradient.has_gaps_of(weights));

    std::vector<long double> norms;
    for (std::int64_t d = 0; d < h.dim; ++d) norms.push_back(static_cast<long double>(norm.at(0, d)));
    const auto value = [&](std::int64_t row, std::int64_t head, const std::vector<long double>& x,
                           const std::vector<long double>& norms_) {
      const auto y = styled(h, norms_, positions[static_cast<std::size_t>(row)], x);
      long double sum = 0;
      for (std::int64_t d = 0; d < h.dim; ++d)
        sum += static_cast<long double>(weights.at(row, head * h.dim + d)) * y[static_cast<std::size_t>(d)];
      return sum;
    };
    std::vector<long double> dnorms(static_cast<std::size_t>(h.dim));
    constexpr long double step = 1e-6L;
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t head = 0; head < h.heads; ++head) {
        std::vector<long double> x;
        for (std::int64_t d = 0; d < h.dim; ++d) x.push_back(static_cast<long double>(from.at(row, head * h.dim + d)));
        const auto slope = [&](std::vector<long double>& what, std::size_t d) {
          const long double kept = what[d];
          what[d] = kept + step;
          const long double above = value(row, head, x, norms);
          what[d] = kept - step;
          const long double below = value(row, head, x, norms);
          what[d] = kept;
          return (above - below) / (2 * step);
        };
        for (std::size_t d = 0; d < x.size(); ++d) {
          if (positions[static_cast<std::size_t>(row)] < 1'000'000) {  // where angles are exact enough
            ASSERT_NEAR(gradient.at(row, head * h.dim + static_cast<std::int64_t>(d)), static_cast<double>(slope(x, d)),
                        1e-5)
                << "dim " << h.dim << ", row " << row;
          }
          if (h.has_norm) dnorms[d] += slope(norms, d);
        }
      }
    for (std::size_t d = 0; d < dnorm.size(); ++d) EXPECT_NEAR(dnorm[d], 0.25 + static_cast<double>(dnorms[d]), 2e-3);
  }
}

}  // namespace
}  // namespace ringattn
