// Forward and backward against fp64 over everything that can be combined.
//
// A case is a choice, one value of every factor, and a problem drawn for it. The list of cases begins with a covering array, in which
// every pair of values of any two factors occurs, and goes on with random choices. Both passes run in every case, so all pairs occur
// with both. The array is made greedily (Cohen et al. 1997, "The AETG System"): a row begins with a pair that is missing, and
// each other factor, in random order, takes the value that adds most missing pairs to those chosen before. Pairs that cannot occur
// (is_refused) are not among the missing, and a choice without one can always be completed, so nothing is skipped or drawn again.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Random;

enum Factor : std::size_t {
  ranks,
  sharding,
  schedule,
  chunks,
  dtype,
  group,
  dims,
  lengths,
  mask,
  window,
  documents,
  padding,
  softcap,
  alibi,
  key_bias,
  sinks,
  dropout,
  slices,
  dilation,
  zero_keys,
  constant_weights,
  factors
};
constexpr std::array world_sizes{1, 2, 3, 4, 5, 8, 16};
enum Schedules { ring, all_gather, all_gather_in_parts, schedules };
constexpr std::array<std::int64_t, 4> chunk_counts{0, 1, 2, 5};
constexpr std::array<std::int64_t, 3> groups{1, 4, 8};
constexpr std::array<std::array<std::int64_t, 2>, 8> head_dims{
    {{1, 1}, {24, 40}, {40, 40}, {64, 64}, {128, 128}, {160, 72}, {192, 128}, {256, 256}}};
enum Lengths { alike, cross, decode, lengths_kinds };
enum Mask { full, causal_top_left, causal_bottom_right, masks };
enum Window { unbounded, left, right, both, windows };
enum Slices { unsliced, slice_kinds = 4 };  // else 1 + SliceKind of one of them
enum Dilation { undilated, blocks_of_heads, interleaved_heads, dilations };

// How many values each factor has.
constexpr std::array<int, factors> values = [] {
  std::array<int, factors> count{};
  count.fill(2);  // off and on
  count[ranks] = static_cast<int>(world_sizes.size());
  count[sharding] = 3;
  count[schedule] = schedules;
  count[chunks] = static_cast<int>(chunk_counts.size());
  count[dtype] = 3;
  count[group] = static_cast<int>(groups.size());
  count[dims] = static_cast<int>(head_dims.size());
  count[lengths] = lengths_kinds;
  count[mask] = masks;
  count[window] = windows;
  count[slices] = 1 + slice_kinds;
  count[dilation] = dilations;
  return count;
}();

constexpr int open = -1;                  // a factor that has no value yet
using Choice = std::array<int, factors>;  // an index into the values of each factor

// Zero keys have a full mask only (api/validate.cpp refuses others), and both are read only where there are branches.
bool is_refused(const Choice& c) {
  return (c[zero_keys] == 1 && (c[mask] > full || c[window] > unbounded || c[slices] > unsliced)) ||
         (c[dilation] == undilated && (c[zero_keys] == 1 || c[constant_weights] == 1));
}

struct Pair {
  std::size_t f, g;  // f < g
  int value, other;
  friend auto operator<=>(const Pair&, const Pair&) = default;
};
Pair pair_of(const Choice& c, std::size_t f, std::size_t g) {
  if (f > g) std::swap(f, g);
  return {f, g, c[f], c[g]};
}

std::set<Pair> allowed_pairs() {
  std::set<Pair> pairs;
  for (std::size_t f = 0; f < factors; ++f)
    for (std::size_t g = f + 1; g < factors; ++g)
      for (int x = 0; x < values[f]; ++x)
        for (int y = 0; y < values[g]; ++y) {
          Choice only;
          only.fill(open);
          only[f] = x;
          only[g] = y;
          if (!is_refused(only)) pairs.insert({f, g, x, y});
        }
  return pairs;
}

// The list of cases, from its beginning. O(sum of the factors' values) pairs are looked up for each case.
class Cases {
 public:
  explicit Cases(std::uint64_t seed) : random_(seed), missing_(allowed_pairs()) {}

  bool cover_all() const { return missing_.empty(); }

  Choice next() {
    Choice choice;
    choice.fill(open);
    if (!missing_.empty()) {
      const Pair& first =
          *std::next(missing_.begin(), draw(random_, 0, static_cast<std::int64_t>(missing_.size()) - 1));
      choice[first.f] = first.value;
      choice[first.g] = first.other;
    }
    std::array<std::size_t, factors> order;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    for (const std::size_t f : order)
      if (choice[f] == open) choose(choice, f);
    for (std::size_t f = 0; f < factors; ++f)
      for (std::size_t g = f + 1; g < factors; ++g) missing_.erase(pair_of(choice, f, g));
    return choice;
  }

 private:
  // By chance among the values that are equally good.
  void choose(Choice& choice, std::size_t f) {
    int& value = choice[f];
    std::vector<int> best;
    std::size_t most = 0;
    for (int x = 0; x < values[f]; ++x) {
      value = x;
      if (is_refused(choice)) continue;
      std::size_t gain = 0;
      for (std::size_t g = 0; g < factors; ++g)
        if (g != f && choice[g] != open) gain += missing_.count(pair_of(choice, f, g));
      if (gain > most) best.clear();
      most = std::max(most, gain);
      if (gain == most) best.push_back(x);
    }
    value = best[static_cast<std::size_t>(draw(random_, 0, static_cast<std::int64_t>(best.size()) - 1))];
  }

  Random random_;
  std::set<Pair> missing_;
};

// How long sequences may be: as long as the oracle has no more than so many products to add up, between two lengths.
struct Size {
  std::int64_t products, shortest, longest;
};
constexpr Size one_block{1 << 20, 20, 100}, several_blocks{1 << 25, 500, 900};

Problem make_problem(const Choice& c, Random& random, const Size& size) {
  Problem p;
  const auto [head_dim, head_dim_v] = head_dims[static_cast<std::size_t>(c[dims])];
  p.head_dim = head_dim;
  p.head_dim_v = head_dim_v;
  // In parts there is more than one of either.
  p.batch = c[schedule] == all_gather_in_parts ? draw(random, 2, 3) : draw(random, 0, 3) == 0 ? 2 : 1;
  p.num_heads_kv = c[schedule] == all_gather_in_parts || draw(random, 0, 3) == 0 ? 2 : 1;
  p.num_heads_q = p.num_heads_kv * groups[static_cast<std::size_t>(c[group])];
  p.dtype = static_cast<DType>(c[dtype] + 1);
  p.out_dtype = draw(random, 0, 4) == 0 ? DType::float32 : p.dtype;
  p.grad_dtype = draw(random, 0, 4) == 0 ? DType::float32 : p.dtype;
  p.sharding = static_cast<Sharding>(c[sharding]);
  if (p.sharding == Sharding::striped) p.stripe = draw(random, 1, 9);
  p.schedule = c[schedule] == ring ? Schedule::ring : Schedule::all_gather;
  if (c[schedule] == all_gather_in_parts) p.gather_bytes = draw(random, 0, 1) == 0 ? 1 : 1 << draw(random, 8, 16);
  p.num_chunks = chunk_counts[static_cast<std::size_t>(c[chunks])];
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(p.head_dim));

  const std::int64_t products = p.batch * p.num_heads_q * (p.head_dim + p.head_dim_v);
  const auto longest =
      std::clamp(static_cast<std::int64_t>(std::sqrt(size.products / products)), size.shortest, size.longest);
  const auto draw_length = [&] {
    return draw(random, 0, 19) == 0 ? draw(random, 0, 3) : draw(random, longest / 4, longest);
  };
  p.seqlen_q = c[lengths] == decode ? 1 : draw_length();
  p.seqlen_kv = c[lengths] == alike ? p.seqlen_q : draw_length();
  p.documents = reference::draw_documents(random, p, c[documents] == 0 ? 1 : draw(random, 2, 6));
  if (c[padding] != 0)
    for (std::int64_t b = 0; b < p.batch; ++b) p.kv_lengths.push_back(draw(random, 0, p.seqlen_kv));

  p.causal = c[mask] != full;
  p.bottom_right = c[mask] == full ? draw(random, 0, 1) == 1 : c[mask] == causal_bottom_right;
  if (c[window] == left || c[window] == both) p.window_left = draw(random, 0, longest / 3);
  if (c[window] == right || c[window] == both) p.window_right = draw(random, 0, longest / 3);
  if (c[slices] != unsliced) {
    p.slices = reference::draw_slices(random, p);
    p.slices[draw(random, 0, static_cast<std::int64_t>(p.slices.size()) - 1)].kind =
        static_cast<SliceKind>(c[slices] - 1);
  }
  if (c[dilation] != undilated) {
    p.branches = reference::draw_branches(random, p);
    p.dilation_phase =
        c[dilation] == blocks_of_heads ? DilationPhase::blocks_of_heads : DilationPhase::interleaved_heads;
    p.dilation_padding = static_cast<DilationPadding>(c[zero_keys]);
    p.dilation_gradient = static_cast<DilationGradient>(c[constant_weights]);
  }

  if (c[softcap] != 0) p.softcap = static_cast<float>(draw(random, 1, 30));
  if (c[alibi] != 0) p.alibi_slopes = reference::draw_slopes(random, p);
  p.has_key_bias = c[key_bias] != 0;
  if (c[sinks] != 0) p.num_sinks = draw(random, 1, 3);
  if (c[dropout] != 0) p.dropout = reference::draw_dropout(random);
  return p;
}

// Cases n < count for which wanted(n, choice); it may change the choice.
template <class F>
void sweep(int count, F&& wanted, const Size& size = one_block) {
  const std::uint64_t seed = test::seed();
  Cases cases(seed);
  std::array<std::unique_ptr<test::Ranks>, world_sizes.size()> all_ranks;
  int done = 0;
  for (int n = 0; n < count; ++n) {
    Choice choice = cases.next();
    if (!wanted(n, choice) || !test::chosen(n)) continue;
    Random random(seed * 1'000'003 + static_cast<std::uint64_t>(n));
    const reference::Oracle oracle(make_problem(choice, random, size), random);
    const auto of = static_cast<std::size_t>(choice[ranks]);
    if (all_ranks[of] == nullptr) all_ranks[of] = std::make_unique<test::Ranks>(world_sizes[of]);
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << world_sizes[of] << " ranks");
    test::expect_within(test::run_on(*all_ranks[of], oracle), oracle);
    if (::testing::Test::HasFailure() && !test::full()) return;
    ++done;
  }
  std::cout << done << " cases\n";
}

constexpr int sampled_cases = 800, parts = 8;

// Found by what is_refused says of whole choices alone.
TEST(Cases, BeginWithEveryPairThatIsNotRefused) {
  std::set<Pair> pairs = allowed_pairs(), seen;
  Cases cases(test::seed());
  int n = 0;
  for (; !cases.cover_all() && n < sampled_cases; ++n) {
    const Choice choice = cases.next();
    for (std::size_t f = 0; f < factors; ++f) {
      ASSERT_GE(choice[f], 0);
      ASSERT_LT(choice[f], values[f]);
      for (std::size_t g = f + 1; g < factors; ++g) seen.insert(pair_of(choice, f, g));
    }
    ASSERT_FALSE(is_refused(choice));
  }
  EXPECT_EQ(seen, pairs);
  std::cout << n << " cases cover " << pairs.size() << " pairs\n";
}

TEST(Sweep, Sample) {
  sweep(test::sample(sampled_cases), [](int, const Choice&) { return true; });
}

// Engines take keys in blocks of a few hundred.
TEST(Sweep, SeveralBlocksOfKeys) {
  const auto smaller = [](int, Choice& choice) {
    choice[ranks] = choice[ranks] % 4;
    choice[group] = 0;
    choice[dims] = 1 + choice[dims] % 3;
    return true;
  };
  sweep(test::sample(test::full() ? 160 : 16), smaller, several_blocks);
}

// A branch's own output is fp32, and so of another type than dout.
TEST(Sweep, ConstantWeightsInBfloat16) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 40;
  p.head_dim = p.head_dim_v = 40;
  p.dtype = p.out_dtype = p.grad_dtype = DType::bfloat16;
  p.documents = {{0, 40, 0, 40}};
  p.branches = {{10, 1}, {40, 2}};
  p.dilation_gradient = DilationGradient::constant_weights;
  Random random(test::seed());
  const reference::Oracle oracle(p, random);
  test::expect_within(test::run_on(test::Ranks(2), oracle), oracle);
}

// What the sample leaves out.
class SlowSweep : public ::testing::TestWithParam<int> {};
TEST_P(SlowSweep, Part) {
  const int all_cases = test::full() ? 12'800 : 3'200;
  sweep(all_cases, [](int n, const Choice&) { return n % parts == GetParam() && n >= sampled_cases; });
}
INSTANTIATE_TEST_SUITE_P(All, SlowSweep, ::testing::Range(0, parts));

}  // namespace
}  // namespace ringattn
