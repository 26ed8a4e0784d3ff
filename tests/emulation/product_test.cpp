// A whole kernel: right for any shape, and no longer right in the eyes of the emulation when anything is left out of it.
#include "product.h"

#include <iostream>
#include <vector>

#include "emulation/execution_test.h"
#include "engine/reference/oracle.h"

namespace ringattn::cuda {
namespace {

using emulation::Fault;
using reference::draw;
using reference::Random;

int rounded_up(int n) { return (n + 7) / 8 * 8; }

// Of small whole numbers, so that sums are exact.
struct Matrices {
  Matrices(Random& random, int m, int n, int k)
      : m(m), n(n), k(k), a(elements(m, k)), b(elements(k, n)), c(elements(m, n), -1.0F) {
    for (auto* const matrix : {&a, &b})
      for (BFloat16& x : *matrix) x.bits = emulation::bf16_bits(static_cast<float>(draw(random, -8, 8)));
  }
  // The last row ends where its last element does.
  static std::size_t elements(int rows, int columns) {
    return static_cast<std::size_t>((rows - 1) * rounded_up(columns) + columns);
  }
  float a_at(int i, int j) const {
    return emulation::bf16_value(a[static_cast<std::size_t>(i * rounded_up(k) + j)].bits);
  }
  float b_at(int i, int j) const {
    return emulation::bf16_value(b[static_cast<std::size_t>(i * rounded_up(n) + j)].bits);
  }
  int multiply(Without without = Without::nothing) {
    return cuda::multiply({a.data(), b.data(), c.data(), m, n, k, rounded_up(k), rounded_up(n), rounded_up(n), without},
                          nullptr);
  }
  void expect_product() const {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < rounded_up(n) && (i + 1 < m || j < n); ++j) {
        float sum = 0;
        for (int l = 0; l < k; ++l) sum += j < n ? a_at(i, l) * b_at(l, j) : 0.0F;
        ASSERT_EQ(c[static_cast<std::size_t>(i * rounded_up(n) + j)], j < n ? sum : -1.0F)
            << "row " << i << ", column " << j;
      }
  }
  int m, n, k;
  std::vector<BFloat16> a, b;
  std::vector<float> c;
};

TEST(Product, IsRightForAnyShape) {
  Random random(test::seed());
  for (int i = 0; i < test::sample(60); ++i) {
    const auto size = [&](std::int64_t of) { return static_cast<int>(draw(random, 1, 130) / of * of + of); };
    Matrices matrices(random, size(1), size(4), size(1));
    SCOPED_TRACE(std::to_string(matrices.m) + " x " + std::to_string(matrices.n) + " x " + std::to_string(matrices.k));
    emulation::set_options({.seed = random(), .host_threads = static_cast<int>(draw(random, 1, 2))});
    ASSERT_EQ(matrices.multiply(), 0);
    ASSERT_NO_FATAL_FAILURE(matrices.expect_product());
  }
}

TEST(Product, NothingCanBeLeftOut) {
  Random random(test::seed());
  for (const Without without : {Without::commit, Without::wait, Without::barrier_behind_copy,
                                Without::barrier_before_copy, Without::barrier_in_epilogue})
    for (int i = 0; i < test::sample(40); ++i) {
      Matrices matrices(random, 70, 64, static_cast<int>(draw(random, 33, 130)));
      const std::uint64_t seed = random();
      emulation::set_options({.seed = seed, .host_threads = 1});
      try {
        matrices.multiply(without);
        FAIL() << "not found: " << static_cast<int>(without) << " with seed " << seed << ", k " << matrices.k;
      } catch (const Fault& fault) {
        if (i == 0) std::cout << fault.what() << "\n";
        ASSERT_EQ(std::string(fault.what()).find("product, block "), 0U);
      }
      ASSERT_EQ(matrices.multiply(), 0);
    }
}

// A runtime takes what is launched, with what it reads and writes, and runs it when it likes.
TEST(Product, CanBeRunLater) {
  Random random(test::seed());
  Matrices matrices(random, 5, 8, 7);
  std::vector<emulation::Launch> taken;
  emulation::set_launcher([&](const emulation::Launch& launch) {
    taken.push_back(launch);
    return 7;
  });
  EXPECT_EQ(matrices.multiply(), 7);
  emulation::set_launcher({});
  EXPECT_EQ(matrices.c[0], -1);
  ASSERT_EQ(taken.size(), 1U);
  EXPECT_EQ(taken[0].name, std::string("product"));
  ASSERT_EQ(taken[0].accesses.size(), 3U);
  EXPECT_EQ(taken[0].accesses[2].data, matrices.c.data());
  EXPECT_EQ(taken[0].accesses[2].bytes, matrices.c.size() * sizeof(float));
  EXPECT_TRUE(taken[0].accesses[2].writes);
  emulation::run(taken[0], {.seed = test::seed()});
  matrices.expect_product();
}

}  // namespace
}  // namespace ringattn::cuda
