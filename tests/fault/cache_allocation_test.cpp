// Every allocation of a cache's functions fails once (failing_allocation.h), on one rank: nothing has changed then, the same call succeeds
// as if there had been no other, and nothing is left behind. Where a rank does not call again, its cache is unlike the others', and the
// next ra_decode says so on all of them.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fault/failing_allocation.h"
#include "ringattn/ringattn.h"
#include "support/cache.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kHeads = 2, kDim = 8, kQueries = 3;

// Caches of all ranks. What all of them do, rank `victim` does with every allocation failing once.
class Group {
 public:
  Group(std::int32_t world_size, std::int32_t victim)
      : victim_(victim), ranks_(make_ranks(world_size)), caches_(static_cast<std::size_t>(world_size)) {
    const ra_kv_cache_desc desc = make_cache_desc(20, 16, kHeads, kDim);
    each("ra_create_kv_cache", [&](std::int32_t rank, Error& error) {
      caches_[static_cast<std::size_t>(rank)].reset(ra_create_kv_cache((*ranks_)[rank], &desc, &error));
      return error.status;
    });
  }

  std::int32_t world_size() const { return ranks_->world_size(); }
  ra_kv_cache* cache(std::int32_t rank) const { return caches_[static_cast<std::size_t>(rank)].get(); }

  std::int64_t create() {
    return numbered("ra_create_sequence",
                    [&](std::int32_t rank, Error& error) { return ra_create_sequence(cache(rank), &error); });
  }
  std::int64_t fork(std::int64_t id) {
    return numbered("ra_fork_sequence",
                    [&](std::int32_t rank, Error& error) { return ra_fork_sequence(cache(rank), id, &error); });
  }
  void truncate(std::int64_t id, std::int64_t length) {
    each("ra_truncate_sequence",
         [&](std::int32_t rank, Error& error) { return ra_truncate_sequence(cache(rank), id, length, &error); });
  }
  void free(std::int64_t id) {
    each("ra_free_sequence",
         [&](std::int32_t rank, Error& error) { return ra_free_sequence(cache(rank), id, &error); });
  }
  void append(const std::vector<std::int64_t>& ids, std::int64_t tokens) {
    const Tensor given = values(std::ssize(ids), tokens);
    each("ra_append", [&](std::int32_t rank, Error& error) { return append_on(rank, ids, given, error); });
  }

  struct Outcome {
    ra_status status = RA_STATUS_SUCCESS;
    Error error;
    bool has_failed = false;
    Clock::time_point ended;
    Tensor out;
  };
  // On all ranks, the last queries of these sequences; the n-th allocation of the victim's fails.
  std::vector<Outcome> try_to_decode(const std::vector<std::int64_t>& ids, std::int32_t schedule,
                                     std::int64_t n) const {
    ra_attention_desc desc;
    ra_init_attention_desc(&desc, sizeof desc);
    desc.batch = std::ssize(ids);
    desc.seqlen_q = kQueries;
    desc.num_heads_q = desc.num_heads_kv = kHeads;
    desc.head_dim = desc.head_dim_v = kDim;
    desc.mask = RA_MASK_CAUSAL;
    desc.schedule = schedule;
    const Tensor q = values(desc.batch, kQueries, 7);
    std::vector<Outcome> outcomes(static_cast<std::size_t>(world_size()));
    for (Outcome& outcome : outcomes) outcome.out = Tensor(RA_DTYPE_FLOAT32, desc.batch, kQueries, kHeads, kDim);
    ranks_->run([&](std::int32_t rank, ra_context* context) {
      Outcome& outcome = outcomes[static_cast<std::size_t>(rank)];
      ra_decode_args args;
      ra_init_decode_args(&args, sizeof args);
      args.num_sequences = desc.batch;
      args.sequences = ids.data();
      args.q = q.view();
      args.out = outcome.out.view();
      outcome.status = static_cast<ra_status>(with_failing_allocation(
          rank == victim_ ? n : 0, [&] { return ra_decode(context, cache(rank), &desc, &args, &outcome.error); }));
      outcome.has_failed = has_failed;
      outcome.ended = Clock::now();
    });
    return outcomes;
  }

  // The ranks' results. Whenever an allocation has failed, the caches go on in a new group.
  std::vector<Tensor> decode(const std::vector<std::int64_t>& ids, std::int32_t schedule) {
    for (std::int64_t n = 1; n <= kMostAllocations; ++n) {
      SCOPED_TRACE("ra_decode, allocation " + std::to_string(n));
      const std::string before = victim_ < 0 ? "" : state();
      std::vector<Outcome> outcomes = try_to_decode(ids, schedule, n);
      if (victim_ < 0 || !outcomes[static_cast<std::size_t>(victim_)].has_failed) {
        allocations_ += n - 1;
        std::vector<Tensor> results;
        for (Outcome& outcome : outcomes) {
          EXPECT_EQ(outcome.status, RA_STATUS_SUCCESS) << outcome.error;
          results.push_back(std::move(outcome.out));
        }
        return results;
      }
      for (std::int32_t rank = 0; rank < world_size(); ++rank) {
        const Outcome &outcome = outcomes[static_cast<std::size_t>(rank)],
                      &failed = outcomes[static_cast<std::size_t>(victim_)];
        EXPECT_NE(outcome.status, RA_STATUS_SUCCESS);
        if (rank == victim_) {
          EXPECT_EQ(outcome.status, RA_STATUS_OUT_OF_MEMORY) << outcome.error;
        }
        EXPECT_EQ(outcome.error.rank, victim_) << "rank " << rank << ": " << outcome.error;
        EXPECT_LT(outcome.ended - failed.ended, kAtOnce) << "rank " << rank << ": " << outcome.error;
      }
      EXPECT_EQ(state(), before);
      if (testing::Test::HasFailure()) return {};
      move();
    }
    ADD_FAILURE() << "ra_decode still allocates";
    return {};
  }

  // To a new group of as many.
  void move() {
    ranks_ = make_ranks(world_size());
    std::vector<std::int32_t> former(static_cast<std::size_t>(world_size()));
    std::iota(former.begin(), former.end(), 0);
    each("ra_move_kv_cache", [&](std::int32_t rank, Error& error) {
      return ra_move_kv_cache(cache(rank), (*ranks_)[rank], former.data(), &error);
    });
  }

  // call(rank, error), without another attempt of `victim`, whose n-th allocation fails. False if it has fewer.
  template <class Call>
  bool differ(std::int32_t victim, std::int64_t n, Call&& call) {
    bool differs = false;
    for (std::int32_t rank = 0; rank < world_size(); ++rank) {
      Error error;
      const std::int32_t status = with_failing_allocation(rank == victim ? n : 0, [&] { return call(rank, error); });
      EXPECT_EQ(status, has_failed ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_SUCCESS) << error;
      differs = differs || has_failed;
    }
    return differs;
  }

  static Tensor values(std::int64_t batch, std::int64_t rows, std::uint64_t seed = 1) {
    Tensor tensor(RA_DTYPE_FLOAT32, batch, rows, kHeads, kDim);
    tensor.for_each_element([&](auto b, auto s, auto h, auto d) {
      tensor.set(b, s, h, d, static_cast<float>(hashed_uniform(seed, b, s, h, d)));
    });
    return tensor;
  }
  // As a rank calls them.
  std::int32_t create_on(std::int32_t rank, Error& error) const {
    return status_of(ra_create_sequence(cache(rank), &error), error);
  }
  std::int32_t fork_on(std::int32_t rank, std::int64_t id, Error& error) const {
    return status_of(ra_fork_sequence(cache(rank), id, &error), error);
  }
  std::int32_t append_on(std::int32_t rank, std::span<const std::int64_t> ids, const Tensor& tokens,
                         Error& error) const {
    ra_append_args args;
    ra_init_append_args(&args, sizeof args);
    args.num_sequences = std::ssize(ids);
    args.num_tokens = tokens.seq;
    args.sequences = ids.data();
    args.k = args.v = tokens.view();
    return ra_append((*ranks_)[rank], cache(rank), &args, &error);
  }

  std::int64_t allocations() const { return allocations_; }

 private:
  static std::unique_ptr<Ranks> make_ranks(std::int32_t world_size) {
    return std::make_unique<Ranks>(world_size, [](ra_context_config& config) { config.timeout_ms = 20'000; });
  }
  static std::int32_t status_of(std::int64_t number, const Error& error) {
    return number < 0 ? error.status : RA_STATUS_SUCCESS;
  }

  // What can be seen of the victim's cache.
  std::string state() const {
    if (cache(victim_) == nullptr) return {};
    ra_kv_cache_statistics s;
    ra_init_kv_cache_statistics(&s, sizeof s);
    EXPECT_EQ(ra_get_kv_cache_statistics(cache(victim_), &s, nullptr), RA_STATUS_SUCCESS);
    std::string text(reinterpret_cast<const char*>(&s), sizeof s);
    for (std::int64_t id = 0; id < 10; ++id)
      text += " " + std::to_string(ra_get_sequence_length(cache(victim_), id, nullptr));
    return text;
  }

  template <class Call>
  void each(const char* name, Call&& call) {
    for (std::int32_t rank = 0; rank < world_size(); ++rank) {
      Error error;
      if (rank != victim_) {
        EXPECT_EQ(call(rank, error), RA_STATUS_SUCCESS) << name << ": " << error;
        continue;
      }
      const std::string before = state();
      allocations_ += fail_each_allocation(
          name, error, [&] { return call(rank, error); }, [&] { EXPECT_EQ(state(), before) << name; });
    }
  }
  // The same for a function that returns a number, which is equal on all ranks.
  template <class Call>
  std::int64_t numbered(const char* name, Call&& call) {
    std::vector<std::int64_t> numbers(caches_.size());
    each(name, [&](std::int32_t rank, Error& error) {
      std::int64_t& number = numbers[static_cast<std::size_t>(rank)];
      number = call(rank, error);
      return status_of(number, error);
    });
    for (const std::int64_t number : numbers) EXPECT_EQ(number, numbers[0]) << name;
    return numbers[0];
  }
  std::int32_t victim_;  // or -1
  std::unique_ptr<Ranks> ranks_;
  std::vector<Cache> caches_;
  std::int64_t allocations_ = 0;
};

// Every function of a cache; returns what rank 0 has at the end, which all of them have.
std::vector<Tensor> live(std::int32_t world_size, std::int32_t victim, std::int64_t& allocations) {
  Group group(world_size, victim);
  const std::int64_t a = group.create(), b = group.create();
  group.append({a, b}, 50);
  const std::int64_t c = group.fork(a);
  group.append({a, b, c}, 20);
  group.truncate(c, 33);
  group.append({c}, 40);
  group.free(b);
  std::vector<Tensor> results;
  for (const std::int32_t schedule : {RA_SCHEDULE_PASS_Q, RA_SCHEDULE_RING}) {
    std::vector<Tensor> all = group.decode({a, c}, schedule);
    for (const Tensor& own : all) EXPECT_TRUE(same_bits(own, all[0]));
    if (!all.empty()) results.push_back(std::move(all[0]));
  }
  allocations = group.allocations();
  return results;
}

class EveryAllocationOfACache : public testing::TestWithParam<std::tuple<std::int32_t, std::int32_t>> {};

TEST_P(EveryAllocationOfACache, FailsOnceWithoutHarm) {
  const auto [world_size, victim] = GetParam();
  std::int64_t allocations = 0;
  const std::vector<Tensor> expected = live(world_size, -1, allocations);
  for (int i = 0; i < 2; ++i) live(world_size, victim, allocations);  // what is made once and kept, by anybody
  const std::int64_t baseline = live_bytes;
  bool is_right = true;
  {
    const std::vector<Tensor> results = live(world_size, victim, allocations);
    is_right = results.size() == expected.size();
    for (std::size_t i = 0; is_right && i < results.size(); ++i) is_right = same_bits(results[i], expected[i]);
  }
  EXPECT_TRUE(is_right);
  if (HasFailure()) return;  // GoogleTest keeps the messages, so bytes cannot be compared any more
  EXPECT_EQ(live_bytes - baseline, 0);
  std::cout << allocations << " allocations\n";
  EXPECT_GT(allocations, 30);
}

INSTANTIATE_TEST_SUITE_P(, EveryAllocationOfACache,
                         testing::Values(std::tuple(1, 0), std::tuple(2, 0), std::tuple(2, 1), std::tuple(3, 1)),
                         [](const auto& info) {
                           return "rank_" + std::to_string(std::get<1>(info.param)) + "_of_" +
                                  std::to_string(std::get<0>(info.param));
                         });

// A rank on which a call has failed, and that goes on without it.
TEST(CachesThatDiffer, AreNoticedOnAllRanks) {
  constexpr std::int32_t world_size = 3, victim = 1;
  const Tensor tokens = Group::values(1, 30);
  using Call = std::function<std::int32_t(const Group& group, std::int32_t rank, std::int64_t id, Error& error)>;
  const Call calls[] = {
      [](auto& group, auto rank, auto, Error& error) { return group.create_on(rank, error); },
      [](auto& group, auto rank, auto id, Error& error) { return group.fork_on(rank, id, error); },
      [&](auto& group, auto rank, auto id, Error& error) {
        return group.append_on(rank, {&id, 1}, tokens, error);
      },
  };
  int noticed = 0;
  for (const Call& call : calls)
    for (const std::int32_t schedule : {RA_SCHEDULE_PASS_Q, RA_SCHEDULE_RING}) {
      bool differs = true;
      for (std::int64_t n = 1; differs; ++n, ++noticed) {
        SCOPED_TRACE("call " + std::to_string(&call - calls) + ", allocation " + std::to_string(n));
        ASSERT_LE(n, kMostAllocations);
        Group group(world_size, -1);
        const std::int64_t a = group.create();
        group.append({a}, 50);
        differs = group.differ(victim, n, [&](std::int32_t rank, Error& error) { return call(group, rank, a, error); });
        const bool is_forked = ra_get_sequence_length(group.cache(0), a + 1, nullptr) > 0;
        const Clock::time_point begin = Clock::now();
        for (const Group::Outcome& outcome : group.try_to_decode({is_forked ? a + 1 : a}, schedule, 0)) {
          EXPECT_EQ(outcome.status, differs ? RA_STATUS_MISMATCH : RA_STATUS_SUCCESS) << outcome.error;
          EXPECT_EQ(outcome.error.rank, differs ? victim : -1) << outcome.error;
          EXPECT_LT(outcome.ended - begin, kAtOnce);
        }
      }
    }
  std::cout << noticed << " differences\n";
  EXPECT_GE(noticed, 6);
}

}  // namespace
}  // namespace ringattn::test
