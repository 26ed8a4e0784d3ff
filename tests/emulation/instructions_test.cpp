// Every function of lib/engine/cuda/device against what the PTX ISA says of its instruction, written once more.
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <vector>

#include "emulation/execution_test.h"
#include "engine/reference/oracle.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Random;

constexpr float infinity = std::numeric_limits<float>::infinity();

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

TEST(Instructions, PackRounds) {
  Random random(test::seed());
  for (int i = 0; i < 100'000; ++i) {
    const float low = value(any_bits(random)), high = value(any_bits(random));
    const std::uint32_t bf16 = pack<BFloat16>(low, high), f16 = pack<Float16>(low, high);
    for (int half = 0; half < 2; ++half) {
      const float x = half == 0 ? low : high;
      const std::uint32_t b = bf16 >> (16 * half) & 0xffff, f = f16 >> (16 * half) & 0xffff;
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
  }
}

// Every number of 16 bits, in either half of a word.
TEST(Instructions, UnpackIsExact) {
  const auto expect = []<class T>(T x, DType dtype) {
    const double expected = reference::decode(&x, dtype);
    for (const float ours :
         {unpack_low<T>(0x12340000U | x.bits), unpack_high<T>(std::uint32_t{x.bits} << 16 | 0x1234U)})
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(ours) : static_cast<double>(ours) == expected) << x.bits;
  };
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    expect(BFloat16{static_cast<std::uint16_t>(bits)}, DType::bfloat16);
    expect(Float16{static_cast<std::uint16_t>(bits)}, DType::float16);
  }
}

TEST(Instructions, RoundToTf32) {
  Random random(test::seed());
  for (int i = 0; i < 100'000; ++i) {
    const float x = value(any_bits(random));
    const std::uint32_t rounded_bits = round_to_tf32(x);
    if (std::isnan(x)) {
      ASSERT_EQ(rounded_bits, 0x7fffffffU);
      continue;
    }
    ASSERT_EQ(rounded_bits & 0x1fff, 0U);
    ASSERT_EQ(static_cast<double>(value(rounded_bits)), rounded(x, 11, 0x1p-136, 0x1.ffcp127, false)) << x;
  }
}

TEST(Instructions, Exp2) {
  EXPECT_EQ(exp2_approx(-infinity), 0);
  EXPECT_EQ(exp2_approx(infinity), infinity);
  EXPECT_EQ(exp2_approx(0x1p-127F), 1);
  EXPECT_EQ(bits(exp2_approx(-126.5F)), 0U);
  EXPECT_EQ(exp2_approx(128), infinity);
  EXPECT_TRUE(std::isnan(exp2_approx(NAN)));
  for (float x = -126; x < 128; x += 0.0371F)
    ASSERT_NEAR(exp2_approx(x) / std::exp2(static_cast<double>(x)), 1, 0x1p-22) << x;
}

// ---------------------------------------------------------------- threads and lanes

TEST(Instructions, Indices) {
  std::mutex mutex;
  std::set<std::array<int, 4>> seen;
  const auto kernel = [&] {
    const Index block = block_index(), grid = grid_size();
    ASSERT_EQ(block_size(), 96);
    ASSERT_TRUE(grid.x == 3 && grid.y == 2 && grid.z == 4);
    ASSERT_EQ(warp_index() * 32 + lane_index(), thread_index());
    const std::lock_guard lock(mutex);
    ASSERT_TRUE(seen.insert({thread_index(), block.x, block.y, block.z}).second);
  };
  for (const int host_threads : {1, 2}) {
    seen.clear();
    emulation::run({"kernel", {3, 2, 4}, 96, 0, nullptr, {}, kernel}, {.seed = 1, .host_threads = host_threads});
    EXPECT_EQ(seen.size(), 96U * 24);
    EXPECT_EQ(*seen.rbegin(), (std::array<int, 4>{95, 2, 1, 3}));
  }
}

TEST(Instructions, Shuffles) {
  run_block(64, test::seed(), [] {
    const int lane = lane_index(), warp = warp_index();
    const auto held_by = [&](int other) { return 100 * warp + other; };
    for (const int n : {0, 1, 2, 5, 16, 31}) {
      ASSERT_EQ(shuffle_xor(held_by(lane), n), held_by(lane ^ n));
      ASSERT_EQ(shuffle_down(held_by(lane), n), held_by(lane + n < 32 ? lane + n : lane));
      ASSERT_EQ(broadcast(static_cast<float>(held_by(lane)), n), static_cast<float>(held_by(n)));
      ASSERT_EQ(broadcast(held_by(lane), (lane * n) % 32), held_by(lane * n % 32));
      ASSERT_EQ(any_lane(lane == n && warp == 1), warp == 1);
    }
  });
}

TEST(Instructions, BarriersOrder) {
  using Buffer = Shared<int, 0, 128>;
  run_block(128, test::seed(), [] {
    const int own = thread_index();
    Buffer::store(own, own);
    warp_barrier();
    ASSERT_EQ(Buffer::load(own ^ 1), own ^ 1);
    barrier(1 + own / 64, 64);  // two barriers of two warps each
    ASSERT_EQ(Buffer::load(own ^ 32), own ^ 32);
    barrier();
    ASSERT_EQ(Buffer::load(127 - own), 127 - own);
  });
}

// ---------------------------------------------------------------- memory

TEST(Instructions, SharedHoldsWhatIsStored) {
  using Bytes = Shared<std::uint16_t, 64, 512>;  // from byte 64 on
  using All = Shared<std::uint16_t, 0, 1024>;    // the same memory, and more
  run_block(32, test::seed(), [] {
    const int lane = lane_index();
    const auto number = [](int i) { return static_cast<std::uint16_t>(3 * i + 1); };
    for (int i = lane; i < 512; i += 32) Bytes::store(i, number(i));
    barrier();
    const Words<4> words = Bytes::load16(8 * lane);
    for (int i = 0; i < 8; ++i) ASSERT_EQ(words[i / 2] >> (i % 2 * 16) & 0xffff, number(8 * lane + i));
    ASSERT_EQ(All::load(32 + lane), number(lane));
    ASSERT_EQ(Bytes::load_as<Words<2>>(4 * lane)[1], number(4 * lane + 2) | std::uint32_t{number(4 * lane + 3)} << 16);
    barrier();
    Bytes::store16(8 * lane, {{1, 2, 3, 4}});
    Bytes::store_as(256 + 2 * lane, Words<1>{{7U << 16 | 6U}});
    barrier();
    ASSERT_EQ(Bytes::load(8 * 31 + 6), 4);
    ASSERT_EQ(Bytes::load(256), 6);
    ASSERT_EQ(Bytes::load(257), 7);
  });
}

TEST(Instructions, GlobalMovesSixteenBytes) {
  alignas(16) std::array<std::uint32_t, 4 * 33> from{}, to{};
  for (std::uint32_t i = 0; i < from.size(); ++i) from[i] = i;
  run_block(32, test::seed(),
            [&] { store_global16(&to[4 * at(lane_index())], load_global16(&from[4 * at(lane_index())])); });
  for (std::uint32_t i = 0; i < to.size(); ++i) ASSERT_EQ(to[i], i < 128 ? i : 0);
}

TEST(Instructions, CopiesAreFilledWithZeros) {
  using Buffer = Shared<std::uint16_t, 0, 32 * 8 * 2>;
  std::vector<std::array<std::uint32_t, 4>> from(32);  // operator new aligns to 16
  for (std::uint32_t i = 0; i < 32; ++i) from[i] = {i | 0x10001, i | 0x20002, i | 0x30003, i | 0x40004};
  run_block(32, test::seed(), [&] {
    const int lane = lane_index(), bytes = lane % 17;
    cp_async(Buffer::address(8 * lane), &from[at(lane)], bytes);
    cp_async_commit();
    cp_async(Buffer::address(256 + 8 * lane), &from[at(lane)]);
    cp_async_commit();
    cp_async_wait<1>();
    const auto check = [&](int first, int there) {
      const Words<4> words = Buffer::load16(first + 8 * lane);
      for (int i = 0; i < 16; ++i) {
        const std::uint32_t whole = from[at(lane)][at(i / 4)] >> (i % 4 * 8) & 0xff;
        ASSERT_EQ(words[i / 4] >> (i % 4 * 8) & 0xff, i < there ? whole : 0U);
      }
    };
    check(0, bytes);
    cp_async_wait<0>();
    check(256, 16);
  });
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

struct Problem {
  double a[16][16], b[16][8], c[16][8];
};
// `digits` of a and b.
Problem draw_problem(Random& random, int digits) {
  Problem problem;
  const auto number = [&] {
    return static_cast<double>(draw(random, -(1 << digits), 1 << digits)) *
           std::ldexp(1.0, static_cast<int>(draw(random, -9, 0)));
  };
  for (auto& row : problem.a)
    for (double& x : row) x = number();
  for (auto& row : problem.b)
    for (double& x : row) x = number();
  for (auto& row : problem.c)
    for (double& x : row) x = static_cast<double>(draw(random, -1000, 1000));
  return problem;
}
// Of this lane, after c += a b with k terms.
void expect_product(const Problem& problem, int k, int lane, const float (&c)[4]) {
  for (int i = 0; i < 4; ++i) {
    const Cell cell = cell_of_c(lane, i);
    double sum = problem.c[cell.row][cell.column], magnitude = std::abs(sum);
    for (int j = 0; j < k; ++j) {
      sum += problem.a[cell.row][j] * problem.b[j][cell.column];
      magnitude += std::abs(problem.a[cell.row][j] * problem.b[j][cell.column]);
    }
    ASSERT_NEAR(c[i], sum, magnitude * (k + 1) * 0x1p-24) << "lane " << lane << ", number " << i;
  }
}
void take_c(const Problem& problem, int lane, float (&c)[4]) {
  for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(problem.c[cell_of_c(lane, i).row][cell_of_c(lane, i).column]);
}

template <class T>
void expect_mma16(Random& random, int digits) {
  const Problem problem = draw_problem(random, digits);
  run_block(32, random(), [&] {
    const int lane = lane_index();
    const auto a = [&](int i) {
      return static_cast<float>(problem.a[cell_of_a16(lane, i).row][cell_of_a16(lane, i).column]);
    };
    const auto b = [&](int i) {
      return static_cast<float>(problem.b[cell_of_b16(lane, i).row][cell_of_b16(lane, i).column]);
    };
    Words<4> a_words;
    Words<2> b_words;
    for (int i = 0; i < 4; ++i) a_words[i] = pack<T>(a(2 * i), a(2 * i + 1));
    for (int i = 0; i < 2; ++i) b_words[i] = pack<T>(b(2 * i), b(2 * i + 1));
    float c[4];
    take_c(problem, lane, c);
    mma_m16n8k16<T>(c, a_words, b_words);
    expect_product(problem, 16, lane, c);
  });
}

TEST(Instructions, MmaOf16BitNumbers) {
  Random random(test::seed());
  for (int i = 0; i < 100; ++i) {
    expect_mma16<BFloat16>(random, 7);
    expect_mma16<Float16>(random, 10);
  }
}

TEST(Instructions, MmaOfTf32) {
  Random random(test::seed());
  for (int i = 0; i < 100; ++i) {
    const Problem problem = draw_problem(random, 10);
    run_block(32, random(), [&] {
      const int lane = lane_index();
      const auto noise = static_cast<std::uint32_t>(lane * 251);  // in the bits that nobody looks at
      Words<4> a;
      Words<2> b;
      for (int n = 0; n < 4; ++n)
        a[n] =
            round_to_tf32(static_cast<float>(problem.a[cell_of_a8(lane, n).row][cell_of_a8(lane, n).column])) | noise;
      for (int n = 0; n < 2; ++n)
        b[n] =
            round_to_tf32(static_cast<float>(problem.b[cell_of_b8(lane, n).row][cell_of_b8(lane, n).column])) | noise;
      float c[4];
      take_c(problem, lane, c);
      mma_m16n8k8_tf32(c, a, b);
      expect_product(problem, 8, lane, c);
    });
  }
}

TEST(Instructions, LdmatrixDeals8x8Matrices) {
  using Buffer = Shared<std::uint16_t, 0, 4 * 8 * 8>;
  run_block(32, test::seed(), [] {
    const int lane = lane_index();
    const auto number = [](int matrix, int row, int column) {
      return static_cast<std::uint16_t>(matrix << 8 | row << 4 | column);
    };
    // Row r of matrix m is the (8m + r) * 5 mod 32nd of memory.
    const auto row_of = [](int matrix, int row) { return 8 * ((8 * matrix + row) * 5 % 32); };
    for (int i = 0; i < 8; ++i) Buffer::store(row_of(lane / 8, lane % 8) + i, number(lane / 8, lane % 8, i));
    barrier();
    const SharedAddress own = Buffer::address(row_of(lane / 8, lane % 8));
    const SharedAddress first_two = lane < 16 ? own : SharedAddress{-1, 0, 0};  // not looked at
    const Words<4> x4 = ldmatrix_x4(own), x4_trans = ldmatrix_x4_trans(own);
    const Words<2> x2 = ldmatrix_x2(first_two), x2_trans = ldmatrix_x2_trans(first_two);
    const int group = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const std::uint32_t plain = number(m, group, 2 * t) | std::uint32_t{number(m, group, 2 * t + 1)} << 16;
      const std::uint32_t transposed = number(m, 2 * t, group) | std::uint32_t{number(m, 2 * t + 1, group)} << 16;
      ASSERT_EQ(x4[m], plain);
      ASSERT_EQ(x4_trans[m], transposed);
      if (m >= 2) continue;
      ASSERT_EQ(x2[m], plain);
      ASSERT_EQ(x2_trans[m], transposed);
    }
  });
}

}  // namespace
}  // namespace ringattn::cuda
