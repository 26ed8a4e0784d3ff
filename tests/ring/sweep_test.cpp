// Forward and backward against fp64 over everything that can be combined: every pair of values of these factors occurs.
#include <gtest/gtest.h>

#include <array>
#include <set>
#include <tuple>
#include <vector>

#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

constexpr std::array world_sizes{1, 2, 3, 4, 5, 8, 16};
enum class Mask { full, causal_top_left, causal_bottom_right, window, causal_window, documents, padding, cross };
constexpr int masks = 8;
constexpr std::array<std::int64_t, 3> groups{1, 4, 8};
constexpr std::array<std::array<std::int64_t, 2>, 6> dims{
    {{1, 1}, {40, 40}, {64, 64}, {128, 128}, {192, 128}, {256, 256}}};
constexpr int cases = 2'240, parts = 8;

// Indices into the factors: world size, sharding, mask, dtype, group, dims, schedule.
using Choice = std::array<int, 7>;
constexpr Choice choices{static_cast<int>(world_sizes.size()), 3, masks, 3, static_cast<int>(groups.size()),
                         static_cast<int>(dims.size()),        2};

// The schedule is drawn apart: no problem depends on how it is exchanged.
struct Choosing {
  explicit Choosing(std::uint64_t seed) : random(seed), schedules(seed + 1) {}
  Choice draw_choice() {
    Choice choice;
    for (std::size_t f = 0; f < choice.size(); ++f)
      choice[f] = static_cast<int>(draw(f + 1 < choice.size() ? random : schedules, 0, choices[f] - 1));
    return choice;
  }
  Random random, schedules;
};

// With sequences of `longest` tokens at most.
Problem make_problem(const Choice& choice, Random& random, std::int64_t longest) {
  Problem p;
  p.head_dim = dims[static_cast<std::size_t>(choice[5])][0];
  p.head_dim_v = dims[static_cast<std::size_t>(choice[5])][1];
  p.seqlen_q = p.seqlen_kv = draw(random, 1, longest);
  p.batch = draw(random, 0, 3) == 0 ? 2 : 1;
  p.num_heads_kv = draw(random, 0, 3) == 0 ? 2 : 1;
  p.num_heads_q = p.num_heads_kv * groups[static_cast<std::size_t>(choice[4])];
  p.dtype = static_cast<DType>(choice[3] + 1);
  p.out_dtype = draw(random, 0, 4) == 0 ? DType::float32 : p.dtype;
  p.grad_dtype = draw(random, 0, 4) == 0 ? DType::float32 : p.dtype;
  p.sharding = static_cast<Sharding>(choice[1]);
  if (p.sharding == Sharding::striped) p.stripe = draw(random, 1, 9);
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  if (draw(random, 0, 4) == 0) p.softcap = static_cast<float>(draw(random, 2, 30));
  p.num_chunks = draw(random, 0, 3);
  p.schedule = choice[6] == 0 ? Schedule::ring : Schedule::all_gather;
  p.bottom_right = draw(random, 0, 1) == 1;

  std::vector<std::int64_t> cuts_q, cuts_kv;
  switch (static_cast<Mask>(choice[2])) {
    case Mask::full:
      break;
    case Mask::causal_top_left:
    case Mask::causal_bottom_right:
      p.causal = true;
      p.bottom_right = static_cast<Mask>(choice[2]) == Mask::causal_bottom_right;
      if (draw(random, 0, 1) == 0) p.seqlen_kv = draw(random, 1, longest);
      break;
    case Mask::window:
      p.window_left = draw(random, 0, 20);
      p.window_right = draw(random, 0, 20);
      break;
    case Mask::causal_window:
      p.causal = true;
      p.window_left = draw(random, 0, 30);
      break;
    case Mask::documents:
      p.causal = draw(random, 0, 1) == 1;
      for (std::int64_t d = draw(random, 1, 5); d > 0; --d) {
        cuts_q.push_back(draw(random, 0, p.seqlen_q));
        cuts_kv.push_back(draw(random, 0, p.seqlen_kv));
      }
      if (draw(random, 0, 1) == 0) cuts_kv = cuts_q;
      std::sort(cuts_q.begin(), cuts_q.end());
      std::sort(cuts_kv.begin(), cuts_kv.end());
      break;
    case Mask::padding:
      p.causal = draw(random, 0, 1) == 1;
      for (std::int64_t b = 0; b < p.batch; ++b) p.kv_lengths.push_back(draw(random, 0, p.seqlen_kv));
      break;
    case Mask::cross:
      p.seqlen_kv = draw(random, 0, longest);
      break;
  }
  cuts_q.push_back(p.seqlen_q);
  cuts_kv.push_back(p.seqlen_kv);
  std::int64_t q = 0, kv = 0;
  for (std::size_t d = 0; d < cuts_q.size(); ++d) {
    p.documents.push_back({q, cuts_q[d] - q, kv, cuts_kv[d] - kv});
    q = cuts_q[d];
    kv = cuts_kv[d];
  }
  return p;
}

std::int64_t one_block(const Choice& choice) { return dims[static_cast<std::size_t>(choice[5])][0] <= 64 ? 100 : 48; }
std::int64_t several_blocks(const Choice&) { return 800; }

// Cases n of `count` for which wanted(n, choice).
template <class F>
void sweep(int count, F&& wanted, std::int64_t longest(const Choice&) = one_block) {
  const std::uint64_t seed = test::seed();
  Choosing choosing(seed);
  std::array<std::unique_ptr<test::Ranks>, world_sizes.size()> ranks;
  for (int n = 0; n < count; ++n) {
    const Choice choice = choosing.draw_choice();
    const std::int64_t gather_bytes = draw(choosing.schedules, 0, 1) << draw(choosing.schedules, 8, 20);
    if (!wanted(n, choice)) continue;
    Random random(seed * 1'000'003 + static_cast<std::uint64_t>(n));
    Problem problem = make_problem(choice, random, longest(choice));
    if (gather_bytes > 0) problem.gather_bytes = gather_bytes;
    const reference::Oracle oracle(problem, random);
    auto& group = ranks[static_cast<std::size_t>(choice[0])];
    if (group == nullptr) group = std::make_unique<test::Ranks>(world_sizes[static_cast<std::size_t>(choice[0])]);
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << group->world_size() << " ranks");
    test::expect_within(test::run_on(*group, oracle), oracle);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Sweep, CoversEveryPairOfFactors) {
  Choosing choosing(test::seed());
  std::set<std::array<int, 4>> seen;
  for (int n = 0; n < cases; ++n) {
    const Choice choice = choosing.draw_choice();
    for (std::size_t f = 0; f < choice.size(); ++f)
      for (std::size_t g = 0; g < f; ++g) seen.insert({static_cast<int>(f), choice[f], static_cast<int>(g), choice[g]});
  }
  std::size_t pairs = 0;
  for (std::size_t f = 0; f < choices.size(); ++f)
    for (std::size_t g = 0; g < f; ++g) pairs += static_cast<std::size_t>(choices[f] * choices[g]);
  EXPECT_EQ(seen.size(), pairs);
  std::cout << cases << " cases cover " << pairs << " pairs\n";
}

TEST(Sweep, Sample) {
  sweep(test::sample(400), [](int, const Choice&) { return true; });
}

// Of the types that engines have tiles of their own for.
TEST(Sweep, SampleOfOwnTypes) {
  sweep(test::sample(240), [](int, const Choice& choice) {
    return static_cast<DType>(choice[3] + 1) != DType::float16 && dims[static_cast<std::size_t>(choice[5])][0] > 1;
  });
}

// Engines take keys in blocks of a few hundred.
TEST(Sweep, SeveralBlocksOfKeys) {
  const auto wanted = [](int, const Choice& choice) {
    const std::int64_t dim = dims[static_cast<std::size_t>(choice[5])][0];
    return world_sizes[static_cast<std::size_t>(choice[0])] <= 4 && groups[static_cast<std::size_t>(choice[4])] == 1 &&
           (dim == 40 || dim == 64);
  };
  sweep(test::sample(120), wanted, several_blocks);
}

class SlowSweep : public ::testing::TestWithParam<int> {};
TEST_P(SlowSweep, Part) {
  sweep(cases, [](int n, const Choice&) { return n % parts == GetParam(); });
}
INSTANTIATE_TEST_SUITE_P(All, SlowSweep, ::testing::Range(0, parts));

}  // namespace
}  // namespace ringattn
