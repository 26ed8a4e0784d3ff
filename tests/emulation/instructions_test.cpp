// Every function of lib/engine/cuda/device against what the PTX ISA says of its instruction, written once more.
#include "instructions.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <set>
#include <vector>

#include "engine/reference/oracle.h"
#include "support/device.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Random;

constexpr float infinity = std::numeric_limits<float>::infinity();

using namespace instructions;
using test::device::Array;
using test::device::finish;

std::size_t at(int i) { return static_cast<std::size_t>(i); }
std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }
float value(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// Any bits, with all kinds of numbers among them.
std::uint32_t any_bits(Random& random) {
  const auto word = static_cast<std::uint32_t>(random());
  switch (draw(random, 1, 8)) {
    case 1:
      return word & 0x807fffff;  // subnormal
    case 2:
      return word & 0xff800000;  // a power of two
    case 3:
      return word | 0x7f800000;  // NaN, or infinity
    case 4:
      return (word & 0xffff0000) | 0x8000;  // halfway for bf16
    case 5:
      return (word & 0x83ffe000) | 0x38001000;  // halfway for f16 and tf32
    case 6:
      return (word & 0x80ffffff) + 0x38000000;  // around the least of f16
    case 7:
      return (word & 0x80003fff) + 0x477fc000;  // around the greatest of f16
    default:
      return word;
  }
}

// ---------------------------------------------------------------- numbers

// Rounds the size of x to multiples of `unit`, halves to even or away from zero.
double rounded(double size, double unit, bool to_even) {
  const double steps = size / unit, down = std::floor(steps), rest = steps - down;
  const bool up = rest > 0.5 || (rest == 0.5 && (!to_even || std::fmod(down, 2) == 1));
  return (down + (up ? 1 : 0)) * unit;
}
// To numbers with so many digits, the least and the greatest of which are given. Above it there is infinity.
double rounded(double x, int digits, double least, double greatest, bool to_even) {
  if (std::isinf(x) || x == 0) return x;
  int exponent = 0;
  (void)std::frexp(x, &exponent);
  const double unit = std::max(std::ldexp(1.0, exponent - digits), least);
  const double size = rounded(std::abs(x), unit, to_even);
  return std::copysign(size > greatest ? infinity : size, x);
}

// What becomes of these pairs.
Array<Numbers> run_numbers(const std::vector<std::array<std::uint32_t, 2>>& pairs, Random& random) {
  Array<std::uint32_t> x(pairs.size()), y(pairs.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    x[i] = pairs[i][0];
    y[i] = pairs[i][1];
  }
  Array<Numbers> out(pairs.size());
  const test::device::Launches launches(random);
  EXPECT_EQ(numbers(x.data(), y.data(), out.data(), static_cast<int>(pairs.size())), 0);
  finish();
  return out;
}
void for_any_numbers(const std::function<void(float x, float y, const Numbers& n)>& expect) {
  Random random(test::seed());
  std::vector<std::array<std::uint32_t, 2>> pairs(100'000);
  for (auto& pair : pairs) pair = {any_bits(random), any_bits(random)};
  const Array<Numbers> out = run_numbers(pairs, random);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    expect(value(pairs[i][0]), value(pairs[i][1]), out[i]);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Instructions, PackRounds) {
  for_any_numbers([](float low, float high, const Numbers& n) {
    for (int half = 0; half < 2; ++half) {
      const float x = half == 0 ? low : high;
      const std::uint32_t b = n.bf16 >> (16 * half) & 0xffff, f = n.f16 >> (16 * half) & 0xffff;
      if (std::isnan(x)) {
        ASSERT_EQ(b, 0x7fffU);
        ASSERT_EQ(f, 0x7fffU);
        continue;
      }
      const double bf16_expected = rounded(x, 8, 0x1p-133, 0x1.fep127, true);
      const double f16_expected = rounded(x, 11, 0x1p-24, 65504, true);
      ASSERT_EQ(static_cast<double>(value(b << 16)), bf16_expected) << x;
      ASSERT_EQ(std::signbit(value(b << 16)), std::signbit(x)) << x;
      const int exponent = f >> 10 & 31, fraction = f & 1023;
      const double f16_size = exponent == 31  ? (fraction == 0 ? infinity : NAN)
                              : exponent == 0 ? std::ldexp(fraction, -24)
                                              : std::ldexp(1024 + fraction, exponent - 25);
      ASSERT_EQ(f >> 15 == 0 ? f16_size : -f16_size, f16_expected) << x;
    }
  });
}

// Every number of 16 bits, in either half of a word.
TEST(Instructions, UnpackIsExact) {
  Random random(test::seed());
  std::vector<std::array<std::uint32_t, 2>> words;
  for (std::uint32_t half = 0; half < 0x10000; ++half) words.push_back({half << 16 | (half ^ 0x1234), 0});
  const Array<Numbers> out = run_numbers(words, random);
  const auto expect = [](float ours, std::uint32_t half, DType dtype) {
    const auto stored = static_cast<std::uint16_t>(half);
    const double expected = reference::decode(&stored, dtype);
    ASSERT_TRUE(std::isnan(expected) ? std::isnan(ours) : static_cast<double>(ours) == expected) << half;
  };
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    expect(out[half].low_bf16, half ^ 0x1234, DType::bfloat16);
    expect(out[half].high_bf16, half, DType::bfloat16);
    expect(out[half].low_f16, half ^ 0x1234, DType::float16);
    expect(out[half].high_f16, half, DType::float16);
  }
}

TEST(Instructions, RoundToTf32) {
  for_any_numbers([](float x, float, const Numbers& n) {
    if (std::isnan(x)) {
      ASSERT_EQ(n.tf32, 0x7fffffffU);
      return;
    }
    ASSERT_EQ(n.tf32 & 0x1fff, 0U);
    ASSERT_EQ(static_cast<double>(value(n.tf32)), rounded(x, 11, 0x1p-136, 0x1.ffcp127, false)) << x;
  });
}

TEST(Instructions, Exp2) {
  Random random(test::seed());
  const auto exp2_of = [&](const std::vector<float>& x) {
    std::vector<std::array<std::uint32_t, 2>> pairs;
    for (const float number : x) pairs.push_back({bits(number), 0});
    std::vector<float> found;
    for (const Numbers& n : run_numbers(pairs, random)) found.push_back(n.exp2);
    return found;
  };
  const std::vector<float> special = exp2_of({-infinity, infinity, 0x1p-127F, -126.5F, 128, NAN, 0, -1, 20});
  EXPECT_EQ(special[0], 0);
  EXPECT_EQ(special[1], infinity);
  EXPECT_EQ(special[2], 1);
  EXPECT_EQ(bits(special[3]), 0U);
  EXPECT_EQ(special[4], infinity);
  EXPECT_TRUE(std::isnan(special[5]));
  EXPECT_EQ(special[6], 1);
  EXPECT_EQ(special[7], 0.5F);
  EXPECT_EQ(special[8], 0x1p20F);
  std::vector<float> x;
  for (float number = -126; number < 128; number += 0.00371F) x.push_back(number);
  const std::vector<float> found = exp2_of(x);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(found[i]) / std::exp2(static_cast<double>(x[i])) - 1));
  std::cout << "exp2: worst relative error 2^" << std::log2(worst) << "\n";
  EXPECT_LE(worst, 0x1p-22);
}

TEST(Instructions, Functions) {
  for_any_numbers([](float x, float y, const Numbers& n) {
    const auto expect_near = [&](float ours, double expected, double least, const char* name) {
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(ours)) << name << " " << x << " " << y;
      } else if (static_cast<float>(expected) != ours) {
        ASSERT_NEAR(ours, expected, std::max(0x1p-22 * std::abs(expected), least)) << name << " " << x << " " << y;
      }
    };
    expect_near(n.tanh, std::tanh(static_cast<double>(x)), 0x1p-148, "tanh");
    expect_near(n.log, std::log(static_cast<double>(x)), 0x1p-24, "log");
    const float fma = std::fma(x, y, x);
    ASSERT_TRUE(std::isnan(fma) ? std::isnan(n.fma) : n.fma == fma) << x << " " << y;
    const float larger = std::fmax(x, y);
    ASSERT_TRUE(std::isnan(larger) ? std::isnan(n.larger) : n.larger == larger) << x << " " << y;
  });
}

// ---------------------------------------------------------------- threads and lanes

TEST(Instructions, Indices) {
  Random random(test::seed());
  const Array<Indices> out(num_indices);
  const test::device::Launches launches(random);
  ASSERT_EQ(indices(out.data()), 0);
  finish();
  std::set<std::array<int, 4>> seen;
  for (const Indices& i : out) {
    ASSERT_EQ(i.block_size, 96);
    ASSERT_TRUE(i.grid[0] == 3 && i.grid[1] == 2 && i.grid[2] == 4);
    ASSERT_EQ(i.warp * 32 + i.lane, i.thread);
    ASSERT_TRUE(seen.insert({i.thread, i.block[0], i.block[1], i.block[2]}).second);
  }
  EXPECT_EQ(*seen.begin(), (std::array<int, 4>{0, 0, 0, 0}));
  EXPECT_EQ(*seen.rbegin(), (std::array<int, 4>{95, 2, 1, 3}));
}

TEST(Instructions, Shuffles) {
  Random random(test::seed());
  const Array<Shuffled> out(6 * 64);
  const test::device::Launches launches(random);
  ASSERT_EQ(shuffles(out.data()), 0);
  finish();
  for (std::size_t row = 0; row < 6; ++row)
    for (int thread = 0; thread < 64; ++thread) {
      const int n = shuffle_distances[row], lane = thread % 32, warp = thread / 32;
      const auto held_by = [&](int other) { return 100 * warp + other; };
      const Shuffled& s = out[row * 64 + at(thread)];
      ASSERT_EQ(s.by_xor, held_by(lane ^ n));
      ASSERT_EQ(s.down, held_by(lane + n < 32 ? lane + n : lane));
      ASSERT_EQ(s.broadcast, held_by(n));
      ASSERT_EQ(s.broadcast_own, held_by(lane * n % 32));
      ASSERT_EQ(s.any, warp == 1);
    }
}

TEST(Instructions, BarriersOrder) {
  Random random(test::seed());
  const Array<Ordered> out(128);
  const test::device::Launches launches(random);
  ASSERT_EQ(barriers(out.data()), 0);
  finish();
  for (int own = 0; own < 128; ++own) {
    ASSERT_EQ(out[at(own)].within_warp, own ^ 1);
    ASSERT_EQ(out[at(own)].within_two_warps, own ^ 32);
    ASSERT_EQ(out[at(own)].within_block, 127 - own);
  }
}

// ---------------------------------------------------------------- memory

TEST(Instructions, SharedHoldsWhatIsStored) {
  Random random(test::seed());
  const Array<FromShared> out(32);
  const test::device::Launches launches(random);
  ASSERT_EQ(shared_memory(out.data()), 0);
  finish();
  const auto number = [](int i) { return static_cast<std::uint32_t>(3 * i + 1); };
  const auto pair = [&](int i) { return number(i) | number(i + 1) << 16; };
  for (int lane = 0; lane < 32; ++lane) {
    const FromShared& found = out[at(lane)];
    for (int i = 0; i < 4; ++i) ASSERT_EQ(found.words[i], pair(8 * lane + 2 * i));
    ASSERT_EQ(found.other_view, number(lane));
    for (int i = 0; i < 2; ++i) ASSERT_EQ(found.pair[i], pair(4 * lane + 2 * i));
    ASSERT_EQ(found.stored[0], 4U);
    ASSERT_EQ(found.stored[1], 6U);
    ASSERT_EQ(found.stored[2], 7U);
  }
}

TEST(Instructions, GlobalMovesSixteenBytes) {
  Random random(test::seed());
  const Array<std::uint32_t> from(128), to(4 * 33);
  for (std::uint32_t i = 0; i < 128; ++i) from[i] = i;
  const test::device::Launches launches(random);
  ASSERT_EQ(global16(from.data(), to.data()), 0);
  finish();
  for (std::uint32_t i = 0; i < to.size(); ++i) ASSERT_EQ(to[i], i < 128 ? i : 0xffffffffU);
}

TEST(Instructions, CopiesAreFilledWithZeros) {
  Random random(test::seed());
  const Array<std::uint32_t> from(128);
  for (std::uint32_t i = 0; i < 128; ++i) from[i] = (i / 4) | (0x10001 * (i % 4 + 1));
  const Array<Copied> out(32);
  const test::device::Launches launches(random);
  ASSERT_EQ(copies(from.data(), out.data()), 0);
  finish();
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 16; ++i) {
      const auto byte = [&](std::uint32_t word) { return word >> (i % 4 * 8) & 0xff; };
      const std::uint32_t whole = byte(from[at(4 * lane + i / 4)]);
      ASSERT_EQ(byte(out[at(lane)].some[i / 4]), i < lane % 17 ? whole : 0U);
      ASSERT_EQ(byte(out[at(lane)].all[i / 4]), whole);
    }
}

// ---------------------------------------------------------------- matrices

// A register of a fragment, as the tables of the PTX ISA have it: number i of a lane stands in this row and column.
struct Cell {
  int row, column;
};
Cell cell_of_a16(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 || (4 <= i && i < 6) ? group : group + 8, thread_in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
Cell cell_of_b16(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0), lane >> 2}; }
Cell cell_of_a8(int lane, int i) {
  const int group = lane >> 2, thread_in_group = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i < 2 ? thread_in_group : thread_in_group + 4};
}
Cell cell_of_b8(int lane, int i) { return {i == 0 ? lane % 4 : lane % 4 + 4, lane >> 2}; }
Cell cell_of_c(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }

// Of one warp: what its lanes hold, and what that means.
struct Matrices {
  double a[16][16], b[16][8], c[16][8];
};
constexpr int terms_of(Product product) { return product == Product::tf32 ? 8 : 16; }

// `digits` of a and b.
Matrices draw_matrices(Random& random, int digits) {
  Matrices m{};
  const auto number = [&] {
    return static_cast<double>(draw(random, -(1 << digits), 1 << digits)) *
           std::ldexp(1.0, static_cast<int>(draw(random, -9, 0)));
  };
  for (auto& row : m.a)
    for (double& x : row) x = number();
  for (auto& row : m.b)
    for (double& x : row) x = number();
  for (auto& row : m.c)
    for (double& x : row) x = static_cast<double>(draw(random, -1000, 1000));
  return m;
}

std::uint32_t half_of(Product product, double x) {
  std::uint16_t half = 0;
  reference::encode(x, product == Product::bf16 ? DType::bfloat16 : DType::float16, &half);
  return half;
}
Fragments fragments_of(Product product, const Matrices& m, int lane) {
  Fragments f{};
  const auto a = [&](Cell cell) { return m.a[cell.row][cell.column]; };
  const auto b = [&](Cell cell) { return m.b[cell.row][cell.column]; };
  if (product == Product::tf32) {
    const auto noise = static_cast<std::uint32_t>(lane * 251);  // in the bits that nobody looks at
    for (int i = 0; i < 4; ++i) f.a[i] = bits(static_cast<float>(a(cell_of_a8(lane, i)))) | noise;
    for (int i = 0; i < 2; ++i) f.b[i] = bits(static_cast<float>(b(cell_of_b8(lane, i)))) | noise;
  } else {
    for (int i = 0; i < 8; ++i) f.a[i / 2] |= half_of(product, a(cell_of_a16(lane, i))) << (i % 2 * 16);
    for (int i = 0; i < 4; ++i) f.b[i / 2] |= half_of(product, b(cell_of_b16(lane, i))) << (i % 2 * 16);
  }
  for (int i = 0; i < 4; ++i) f.c[i] = static_cast<float>(m.c[cell_of_c(lane, i).row][cell_of_c(lane, i).column]);
  return f;
}

// The products as a GPU makes them, in the place of c.
std::vector<Matrices> run_products(Product product, std::vector<Matrices> problems, Random& random) {
  Array<Fragments> fragments(32 * problems.size());
  for (std::size_t n = 0; n < problems.size(); ++n)
    for (int lane = 0; lane < 32; ++lane) fragments[32 * n + at(lane)] = fragments_of(product, problems[n], lane);
  const test::device::Launches launches(random);
  EXPECT_EQ(mma(product, fragments.data(), static_cast<int>(problems.size())), 0);
  finish();
  for (std::size_t n = 0; n < problems.size(); ++n)
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const Cell cell = cell_of_c(lane, i);
        problems[n].c[cell.row][cell.column] = static_cast<double>(fragments[32 * n + at(lane)].c[i]);
      }
  return problems;
}

void expect_products(Product product, int digits) {
  Random random(test::seed());
  std::vector<Matrices> problems;
  for (int i = 0; i < 100; ++i) problems.push_back(draw_matrices(random, digits));
  const std::vector<Matrices> results = run_products(product, problems, random);
  const int k = terms_of(product);
  for (std::size_t n = 0; n < problems.size(); ++n)
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        double sum = problems[n].c[row][column], magnitude = std::abs(sum);
        for (int j = 0; j < k; ++j) {
          sum += problems[n].a[row][j] * problems[n].b[j][column];
          magnitude += std::abs(problems[n].a[row][j] * problems[n].b[j][column]);
        }
        // A GPU cuts off what it shifts out where it aligns the terms, one bit more than rounding takes.
        ASSERT_NEAR(results[n].c[row][column], sum, magnitude * (k + 1) * 0x1p-23)
            << "row " << row << ", column " << column;
      }
}

TEST(Instructions, MmaOfBFloat16) { expect_products(Product::bf16, 7); }
TEST(Instructions, MmaOfFloat16) { expect_products(Product::f16, 10); }
TEST(Instructions, MmaOfTf32) { expect_products(Product::tf32, 10); }

// What the backward kernels count on: a sum is the same to the bit, whether its two factors come as a and b or as b and a, and whatever
// stands in other rows and columns. So both passes over the scores have the same ones, and delta the same sum as dP.
TEST(Instructions, MmaSumsAlikeWithOperandsSwapped) {
  Random random(test::seed());
  for (const Product product : {Product::bf16, Product::f16, Product::tf32}) {
    const int k = terms_of(product);
    std::vector<Matrices> plain, swapped;
    for (int i = 0; i < 200; ++i) {
      Matrices m = draw_matrices(random, product == Product::bf16 ? 7 : 10), other = draw_matrices(random, 7);
      for (auto& row : m.a)
        for (double& x : row) x *= std::ldexp(1.0, static_cast<int>(draw(random, -4, 4)));  // so that sums are rounded
      plain.push_back(m);
      for (int first : {0, 8}) {  // rows of a that become columns of b
        for (int row = 0; row < 8; ++row)
          for (int j = 0; j < k; ++j) {
            other.a[row][j] = m.b[j][row];
            other.b[j][row] = m.a[first + row][j];
          }
        for (int row = 0; row < 8; ++row)
          for (int column = 0; column < 8; ++column) other.c[row][column] = m.c[first + column][row];
        swapped.push_back(other);
      }
    }
    const std::vector<Matrices> one = run_products(product, plain, random),
                                two = run_products(product, swapped, random);
    int rounded_sums = 0;
    for (std::size_t n = 0; n < plain.size(); ++n)
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          const double ours = one[n].c[row][column];
          ASSERT_EQ(ours, two[2 * n + at(row / 8)].c[column][row % 8]) << "row " << row << ", column " << column;
          double sum = plain[n].c[row][column];
          for (int j = 0; j < k; ++j) sum += plain[n].a[row][j] * plain[n].b[j][column];
          rounded_sums += ours != sum;
        }
    EXPECT_GT(rounded_sums, 100);  // else nothing was tested
  }
}

TEST(Instructions, LdmatrixDeals8x8Matrices) {
  Random random(test::seed());
  const Array<Dealt> out(32);
  const test::device::Launches launches(random);
  ASSERT_EQ(ldmatrix(out.data()), 0);
  finish();
  const auto number = [](int matrix, int row, int column) {
    return static_cast<std::uint32_t>(matrix << 8 | row << 4 | column);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const Dealt& found = out[at(lane)];
    const int group = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const std::uint32_t plain = number(m, group, 2 * t) | number(m, group, 2 * t + 1) << 16;
      const std::uint32_t transposed = number(m, 2 * t, group) | number(m, 2 * t + 1, group) << 16;
      ASSERT_EQ(found.x4[m], plain);
      ASSERT_EQ(found.x4_trans[m], transposed);
      if (m >= 2) continue;
      ASSERT_EQ(found.x2[m], plain);
      ASSERT_EQ(found.x2_trans[m], transposed);
    }
  }
}

}  // namespace
}  // namespace ringattn::cuda
