// ra_merge_attention against its formula in double precision, under the tolerance rule: at most twice the error of the same
// formula in float, or of storing the exact result in the tensors' type where that is more.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

constexpr std::int64_t kBatch = 2, kSeqlen = 9, kHeads = 3, kDim = 5;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class Real>
struct Merged {
  Real out;
  Real lse;
};

template <class Real>
Merged<Real> merge(Real a, Real lse_a, Real b, Real lse_b) {
  const Real nothing = -std::numeric_limits<Real>::infinity();
  if (lse_a == nothing && lse_b == nothing) return {0, nothing};
  const Real top = std::max(lse_a, lse_b);
  const Real lse = top + std::log(std::exp(lse_a - top) + std::exp(lse_b - top));
  return {std::exp(lse_a - lse) * a + std::exp(lse_b - lse) * b, lse};
}

double unit_roundoff(std::int32_t dtype) {
  return dtype == RA_DTYPE_FLOAT32 ? 0x1p-24 : dtype == RA_DTYPE_BFLOAT16 ? 0x1p-8 : 0x1p-11;
}

// Row r of a batch entry and head: what each side's lse is. Both ordinary, one far above the other, one or both -infinity.
float lse_of(char side, std::int64_t b, std::int64_t h, std::int64_t s) {
  const auto ordinary = static_cast<float>(4 * hashed_uniform(3, side, b, h, s));
  switch (s) {
    case 0:
      return side == 'a' ? -kInfinity : ordinary;
    case 1:
      return side == 'b' ? -kInfinity : ordinary;
    case 2:
      return -kInfinity;
    case 3:
      return side == 'a' ? 1e4F : -1e4F;
    case 4:
      return side == 'a' ? 3e4F : 3e4F + ordinary;
    case 5:
      return side == 'a' ? -3e38F : 3e38F;
    default:
      return ordinary;
  }
}

enum class Target { other, is_a, is_b };

TEST(Merge, IsAttentionOverTheUnion) {
  for (const std::int32_t dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, RA_DTYPE_FLOAT16}) {
    for (const Layout layout : {Layout::packed, Layout::padded, Layout::head_major}) {
      for (const Target target : {Target::other, Target::is_a, Target::is_b}) {
        SCOPED_TRACE(testing::Message() << "dtype " << dtype << ", layout " << static_cast<int>(layout) << ", target "
                                        << static_cast<int>(target));
        Tensor a(dtype, kBatch, kSeqlen, kHeads, kDim, layout), b(dtype, kBatch, kSeqlen, kHeads, kDim, layout);
        Tensor lse_a(RA_DTYPE_FLOAT32, kBatch, kSeqlen, kHeads, 1, Layout::head_major);
        Tensor lse_b(RA_DTYPE_FLOAT32, kBatch, kSeqlen, kHeads, 1, Layout::head_major);
        const auto fill = [](Tensor& out, Tensor& lse, char side) {
          lse.for_each_element([&](auto e, auto s, auto h, auto) { lse.set(e, s, h, 0, lse_of(side, e, h, s)); });
          out.for_each_element([&](auto e, auto s, auto h, auto d) {
            const bool sees_nothing = std::isinf(lse.get(e, s, h, 0));
            out.set(e, s, h, d, sees_nothing ? 0.0F : static_cast<float>(hashed_uniform(4, side, e, s, h, d)));
          });
        };
        fill(a, lse_a, 'a');
        fill(b, lse_b, 'b');

        double error = 0, plain_error = 0, largest = 0, lse_error = 0, plain_lse_error = 0;
        std::vector<Merged<double>> exact;
        a.for_each_element([&](auto e, auto s, auto h, auto d) {
          const float x = a.get(e, s, h, d), y = b.get(e, s, h, d), lx = lse_a.get(e, s, h, 0),
                      ly = lse_b.get(e, s, h, 0);
          const Merged<double> truth = merge<double>(x, lx, y, ly);
          const Merged<float> plain = merge<float>(x, lx, y, ly);
          exact.push_back(truth);
          plain_error = std::max(plain_error, std::fabs(plain.out - truth.out));
          largest = std::max(largest, std::fabs(truth.out));
          if (std::isinf(truth.lse)) return;
          // Relative, since the rows' magnitudes differ.
          plain_lse_error =
              std::max(plain_lse_error, std::fabs(plain.lse - truth.lse) / std::max(1.0, std::fabs(truth.lse)));
        });

        Tensor own_out(dtype, kBatch, kSeqlen, kHeads, kDim, layout);
        Tensor own_lse(RA_DTYPE_FLOAT32, kBatch, kSeqlen, kHeads, 1, Layout::head_major);
        Tensor& out = target == Target::other ? own_out : target == Target::is_a ? a : b;
        Tensor& lse = target == Target::other ? own_lse : target == Target::is_a ? lse_a : lse_b;
        ra_merge_args args;
        ra_init_merge_args(&args, sizeof args);
        args.batch = kBatch;
        args.seqlen = kSeqlen;
        args.num_heads = kHeads;
        args.head_dim_v = kDim;
        args.dtype = dtype;
        args.out_a = a.view();
        args.out_b = b.view();
        args.out = out.view();
        args.lse_a = reinterpret_cast<const float*>(lse_a.bytes.get());
        args.lse_b = reinterpret_cast<const float*>(lse_b.bytes.get());
        args.lse = reinterpret_cast<float*>(lse.bytes.get());
        Error failure;
        ASSERT_EQ(ra_merge_attention(&args, &failure), RA_STATUS_SUCCESS) << failure;

        std::size_t i = 0;
        out.for_each_element([&](auto e, auto s, auto h, auto d) {
          const Merged<double>& truth = exact[i++];
          error = std::max(error, std::fabs(out.get(e, s, h, d) - truth.out));
          if (std::isinf(truth.lse)) {
            EXPECT_EQ(lse.get(e, s, h, 0), -kInfinity);
            EXPECT_EQ(out.get(e, s, h, d), 0.0F);
          } else {
            lse_error =
                std::max(lse_error, std::fabs(lse.get(e, s, h, 0) - truth.lse) / std::max(1.0, std::fabs(truth.lse)));
          }
        });
        EXPECT_LE(error, 2 * std::max(plain_error, unit_roundoff(dtype) * largest));
        EXPECT_LE(lse_error, 2 * std::max(plain_lse_error, 0x1p-24));
        EXPECT_TRUE(out.gaps_untouched());
      }
    }
  }
}

// A part that is not a number makes the whole none, whatever the other part is and whichever comes first.
TEST(Merge, KeepsNaN) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const float others[] = {-kInfinity, -3e38F, 0, 3e38F, kInfinity, kNaN};
  for (const float other : others) {
    for (const bool nan_first : {true, false}) {
      const float out_a = nan_first ? kNaN : 1, out_b = nan_first ? 1 : kNaN;
      const float lse_a = nan_first ? kNaN : other, lse_b = nan_first ? other : kNaN;
      float a = out_a, b = out_b, out = 0, lse = 0;
      ra_merge_args args;
      ra_init_merge_args(&args, sizeof args);
      args.seqlen = args.head_dim_v = 1;
      args.out_a.data = &a;
      args.out_b.data = &b;
      args.out.data = &out;
      args.lse_a = &lse_a;
      args.lse_b = &lse_b;
      args.lse = &lse;
      Error error;
      ASSERT_EQ(ra_merge_attention(&args, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_TRUE(std::isnan(out) && std::isnan(lse)) << lse_a << " and " << lse_b << " give " << out << ", " << lse;
      const Merged<double> truth = merge<double>(out_a, lse_a, out_b, lse_b);
      EXPECT_TRUE(std::isnan(truth.out) && std::isnan(truth.lse)) << lse_a << " and " << lse_b;
    }
  }
}

// In place means element by element: the same memory with other strides, or of another tensor, is an overlap.
TEST(Merge, InPlaceWithOtherStridesIsRefused) {
  float a[4] = {1, 2, 3, 4}, b[4] = {}, lse_a[4] = {}, lse_b[4] = {}, lse[4] = {};
  ra_merge_args args;
  ra_init_merge_args(&args, sizeof args);
  args.seqlen = args.num_heads = 2;
  args.head_dim_v = 1;
  args.out_a = {a, 4, 2, 1, sizeof a};
  args.out_b = {b, 0, 0, 0, sizeof b};
  args.out = {a, 4, 1, 2, sizeof a};
  args.lse_a = lse_a;
  args.lse_b = lse_b;
  args.lse = lse;
  Error error;
  EXPECT_EQ(ra_merge_attention(&args, &error), RA_STATUS_INVALID_ARGUMENT) << error;
  EXPECT_NE(error.text().find("out overlaps out_a"), std::string::npos) << error;
  args.out = {lse_a, 4, 2, 1, sizeof lse_a};
  EXPECT_EQ(ra_merge_attention(&args, &error), RA_STATUS_INVALID_ARGUMENT) << error;
  EXPECT_EQ(a[1], 2);
}

// Tensors of random strides at random places of one buffer: where the call is not refused, no element of the output is one of an
// input, unless the output is that input.
TEST(Merge, IsRefusedWhereverAnElementIsShared) {
  std::mt19937_64 random(seed());
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  constexpr std::size_t size = 2048;
  std::vector<float> buffer(size);
  int accepted = 0, crossing = 0;
  for (int n = 0; n < sample(200'000); ++n) {
    ra_merge_args args;
    ra_init_merge_args(&args, sizeof args);
    args.batch = draw(1, 2);
    args.seqlen = draw(1, 3);
    args.num_heads = draw(1, 3);
    args.head_dim_v = draw(1, 3);
    const float lse[18] = {};
    float merged_lse[18];
    args.lse_a = args.lse_b = lse;
    args.lse = merged_lse;
    // Strides that often are multiples of each other, as those of interleaved tensors are.
    const std::int64_t unit = draw(1, 9), middle = unit * draw(1, 6),
                       outer = draw(0, 3) > 0 ? middle * draw(1, 6) : draw(1, 99);
    const auto draw_tensor = [&] {
      std::int64_t strides[3] = {outer, middle, unit};
      if (draw(0, 4) == 0) std::swap(strides[1], strides[2]);
      if (draw(0, 4) == 0) strides[draw(0, 2)] = draw(1, 40);
      return ra_tensor{buffer.data() + draw(0, draw(0, 1) == 0 ? 20 : 200), strides[0], strides[1], strides[2], 0};
    };
    args.out_a = draw_tensor();
    args.out_b = draw_tensor();
    args.out = draw(0, 9) == 0 ? args.out_a : draw_tensor();

    using Places = std::vector<const float*>;
    const auto places = [&](const ra_tensor& t) {
      Places result;
      for (std::int64_t b = 0; b < args.batch; ++b)
        for (std::int64_t s = 0; s < args.seqlen; ++s)
          for (std::int64_t h = 0; h < args.num_heads; ++h)
            for (std::int64_t d = 0; d < args.head_dim_v; ++d)
              result.push_back(static_cast<const float*>(t.data) + b * t.batch_stride + s * t.seq_stride +
                               h * t.head_stride + d);
      return result;
    };
    if (ra_merge_attention(&args, nullptr) != RA_STATUS_SUCCESS) continue;
    ++accepted;
    const Places out = places(args.out);
    const std::set<const float*> written(out.begin(), out.end());
    for (const ra_tensor& input : {args.out_a, args.out_b}) {
      const Places in = places(input);
      if (in == out) continue;
      for (const float* place : in)
        ASSERT_EQ(written.count(place), 0U) << "problem " << n << ": " << place - buffer.data() << " is shared";
      crossing += in.front() < out.back() && out.front() < in.back();
    }
  }
  std::cout << accepted << " accepted, " << crossing << " of their inputs cross the output\n";
  EXPECT_GT(crossing, accepted / 100);
}

TEST(Merge, OfNoRowsIsNothing) {
  ra_merge_args args;
  ra_init_merge_args(&args, sizeof args);
  args.seqlen = 0;
  args.head_dim_v = 4;
  Error error;
  EXPECT_EQ(ra_merge_attention(&args, &error), RA_STATUS_SUCCESS) << error;
  args.batch = std::int64_t{1} << 48;  // however many entries: at once
  EXPECT_EQ(ra_merge_attention(&args, &error), RA_STATUS_SUCCESS) << error;
}

}  // namespace
}  // namespace ringattn::test
