// Decoding from a cache over ranks, against attention by its definition over all that a naive model has seen appended.
//
// One property: after whatever calls, decoding the last tokens of a sequence is attention over all of it, within the tolerance rule
// (oracle.h), with the same bits on every rank; and what is sent for it depends on the rows alone, unless keys go around.
#include "cache/decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "support/decode.h"
#include "support/random.h"

namespace ringattn::test {
namespace {

using reference::draw;
using reference::Random;

std::int64_t any_sequence(Random& random, const Caches& caches) {
  auto it = caches.model.begin();
  std::advance(it, draw(random, 0, std::ssize(caches.model) - 1));
  return it->first;
}

ra_kv_cache_statistics statistics_of(const Caches& caches, std::int32_t rank) {
  ra_kv_cache_statistics s;
  ra_init_kv_cache_statistics(&s, sizeof s);
  Error error;
  EXPECT_EQ(ra_get_kv_cache_statistics(caches[rank], &s, &error), RA_STATUS_SUCCESS) << error;
  return s;
}

// What each rank says of itself and of the others, where nothing is lost.
void expect_statistics(const Caches& caches) {
  std::int64_t tokens = 0, least_free = caches.desc.num_pages;
  for (const auto& [id, stored] : caches.model) tokens += caches.length(id);
  for (std::int32_t rank = 0; rank < caches.world_size(); ++rank)
    least_free = std::min(least_free, statistics_of(caches, rank).free_pages);
  for (std::int32_t rank = 0; rank < caches.world_size(); ++rank) {
    const ra_kv_cache_statistics s = statistics_of(caches, rank);
    EXPECT_EQ(s.num_sequences, std::ssize(caches.model));
    EXPECT_EQ(s.num_tokens, tokens);
    EXPECT_EQ(s.used_pages + s.free_pages, caches.desc.num_pages);
    EXPECT_EQ(s.least_free_pages, least_free);
    EXPECT_EQ(s.lost_pages, 0);
  }
}

TEST(Decode, IsAttentionOverAllThatWasAppended) {
  Random random(seed());
  int calls = 0, decodes = 0, refused = 0;
  std::map<std::int32_t, int> schedules;
  const int worlds = sample(40);
  for (int world = 0; world < worlds; ++world) {
    const auto world_size = static_cast<std::int32_t>(1 + world % 4);
    const auto threads = static_cast<std::int32_t>(draw(random, 1, 3));
    Ranks ranks(world_size, [&](ra_context_config& config) { config.num_threads = threads; });
    ASSERT_TRUE(ranks.complete());
    Caches caches(ranks, draw_cache(random));
    const std::int64_t group = draw(random, 1, 4);
    for (int n = 0; n < (full() ? 250 : 60); ++n, ++calls) {
      SCOPED_TRACE("world " + std::to_string(world) + ", call " + std::to_string(n));
      const std::int64_t what = caches.model.empty() ? 0 : draw(random, 0, 11);
      if (what == 0 && caches.model.size() < 8) {
        caches.create();
      } else if (what == 1 && caches.model.size() < 8) {
        caches.fork(any_sequence(random, caches));
      } else if (what == 2) {
        const std::int64_t id = any_sequence(random, caches);
        caches.truncate(id, draw(random, 0, caches.length(id)));
      } else if (what == 3) {
        caches.free(any_sequence(random, caches));
      } else if (what < 8) {
        std::set<std::int64_t> ids;
        for (std::int64_t i = draw(random, 1, 3); i > 0; --i) ids.insert(any_sequence(random, caches));
        std::vector<std::int64_t> counts;
        const std::int64_t most = draw(random, 0, 1) == 0 ? 1 : 120;
        for (std::size_t i = 0; i < ids.size(); ++i) counts.push_back(draw(random, 0, most));
        if (!caches.append(random, {ids.begin(), ids.end()}, counts)) ++refused;
      } else if (const std::optional<Question> question = draw_question(random, caches, group)) {
        expect_attention(caches, *question, random, static_cast<Layout>(draw(random, 0, 2)));
        ++decodes;
      }
      for (const auto& [id, tokens] : caches.model)
        ASSERT_EQ(ra_get_sequence_length(caches[0], id, nullptr), caches.length(id));
      expect_statistics(caches);
      if (HasFailure()) return;
    }
  }
  std::cout << calls << " calls, " << decodes << " of them decode, " << refused << " without room\n";
  EXPECT_GT(decodes, worlds);
}

// The last queries of one sequence, which see all keys where they are alone; they stay where they are.
Question ask_plainly(const Caches& caches, std::int64_t id, std::int64_t queries, std::int64_t heads) {
  Question question;
  question.ids = {id};
  ra_attention_desc& d = question.desc;
  ra_init_attention_desc(&d, sizeof d);
  d.seqlen_q = queries;
  d.num_heads_kv = caches.desc.num_heads_kv;
  d.num_heads_q = heads;
  d.head_dim = caches.desc.head_dim;
  d.head_dim_v = caches.desc.head_dim_v;
  d.out_dtype = RA_DTYPE_FLOAT32;
  d.mask = RA_MASK_CAUSAL;
  d.schedule = RA_SCHEDULE_PASS_Q;
  question.q = Tensor(RA_DTYPE_FLOAT32, 1, queries, heads, d.head_dim);
  question.q.for_each_element([&](auto b, auto s, auto h, auto x) {
    question.q.set(b, s, h, x, static_cast<float>(hashed_uniform(1, b, s, h, x)));
  });
  return question;
}

// What travels does not depend on what the cache holds.
TEST(Decode, SendsRowsOnly) {
  Random random(seed());
  for (const std::int32_t world_size : {1, 2, 3, 4}) {
    Ranks ranks(world_size);
    Caches caches(ranks, make_cache_desc(64, 16, 2, 16));
    const std::int64_t id = caches.create();
    for (const std::int64_t more : {5, 40, 900}) {
      ASSERT_TRUE(caches.append(random, {id}, {more}));
      const Question question = ask_plainly(caches, id, 3, 8);
      std::int64_t sent = 0;
      for (const auto& [rank, own] : decode(caches, question, Layout::packed)) sent += own.statistics.hop_bytes;
      EXPECT_EQ(sent, 2 * (world_size - 1) * 3 * 8 * (16 + 1) * 4);
    }
  }
}

// Bit for bit, what each rank has of a sequence of a page on each is merged in the order of ranks, wherever the sequence begins.
TEST(Decode, MergesInTheOrderOfRanks) {
  constexpr std::int32_t world_size = 4;
  constexpr std::int64_t page_tokens = 16, dim = 8;
  Random random(seed());
  const Ranks alone(1), ranks(world_size);
  Caches caches(ranks, make_cache_desc(8, page_tokens, 1, dim));
  for (std::int64_t first = 0; first < world_size; ++first) {  // the rank that the sequence begins on
    const std::int64_t id = caches.create();
    ASSERT_TRUE(caches.append(random, {id}, {world_size * page_tokens}));
    const Question question = ask_plainly(caches, id, 1, 1);
    const StoredTokens& tokens = caches.model.at(id);
    Tensor merged;
    float merged_lse = 0;
    for (std::int64_t rank = 0; rank < world_size; ++rank) {
      const std::int64_t begin = (rank - first + world_size) % world_size * page_tokens;
      Tensor k(RA_DTYPE_FLOAT32, 1, page_tokens, 1, dim), v(RA_DTYPE_FLOAT32, 1, page_tokens, 1, dim),
          out(RA_DTYPE_FLOAT32, 1, 1, 1, dim);
      k.for_each_element([&](auto, auto i, auto, auto x) {
        const auto at = static_cast<std::size_t>((begin + i) * dim + x);
        k.set(0, i, 0, x, static_cast<float>(tokens.k[at]));
        v.set(0, i, 0, x, static_cast<float>(tokens.v[at]));
      });
      ra_attention_desc desc = question.desc;
      desc.seqlen_kv = page_tokens;
      desc.schedule = RA_SCHEDULE_AUTO;
      float lse = 0;
      ra_forward_args part;
      ra_init_forward_args(&part, sizeof part);
      part.q = question.q.view();
      part.k = k.view();
      part.v = v.view();
      part.out = out.view();
      part.lse = &lse;
      Error error;
      ASSERT_EQ(ra_forward(alone[0], &desc, &part, &error), RA_STATUS_SUCCESS) << error;
      if (rank == 0) {
        merged = std::move(out);
        merged_lse = lse;
        continue;
      }
      ra_merge_args merge;
      ra_init_merge_args(&merge, sizeof merge);
      merge.seqlen = 1;
      merge.head_dim_v = dim;
      merge.out_a = merge.out = merged.view();
      merge.out_b = out.view();
      merge.lse_a = merge.lse = &merged_lse;
      merge.lse_b = &lse;
      ASSERT_EQ(ra_merge_attention(&merge, &error), RA_STATUS_SUCCESS) << error;
    }
    const Decoded decoded = std::move(decode(caches, question, Layout::packed).at(0));
    EXPECT_TRUE(same_bits(decoded.out, merged)) << "first rank " << first;
    EXPECT_EQ(decoded.lse.get(0, 0, 0, 0), merged_lse) << "first rank " << first;
  }
}

// Where keys go around, they come to whoever sees any: of many pages, of which a narrow window leaves each query one or two.
TEST(Decode, BringsPagesToWhoSeesThem) {
  Random random(seed());
  for (const std::int32_t world_size : {2, 3, 4}) {
    const Ranks ranks(world_size);
    Caches caches(ranks, make_cache_desc(40, 16, 1, 8));
    const std::int64_t id = caches.create();
    ASSERT_TRUE(caches.append(random, {id}, {300}));
    for (const std::int64_t window : {0, 3, 20})
      for (const std::int64_t chunks : {1, 3}) {
        Question question = ask_plainly(caches, id, 200, 1);
        question.desc.window_left = window;
        question.desc.schedule = RA_SCHEDULE_RING;
        question.desc.num_chunks = chunks;
        expect_attention(caches, question, random, Layout::packed);
      }
  }
}

// The rule by which keys or queries go around.
TEST(Decode, ChoosesByBytes) {
  Problem p;
  p.num_heads_q = 32;
  p.num_heads_kv = 8;
  EXPECT_EQ(choose_decoding(p, 1, 1, 1), Schedule::pass_q);
  EXPECT_EQ(choose_decoding(p, 1, 2, 4), Schedule::ring);  // 1 / 2 is not below 2 * 8 / 32
  EXPECT_EQ(choose_decoding(p, 1, 3, 4), Schedule::pass_q);
  EXPECT_EQ(choose_decoding(p, 4096, 8192, 2), Schedule::ring);
  EXPECT_EQ(choose_decoding(p, 4095, 8192, 2), Schedule::pass_q);
  p.num_heads_kv = 32;
  EXPECT_EQ(choose_decoding(p, 100, 100, 2), Schedule::pass_q);
  p.schedule = Schedule::ring;
  EXPECT_EQ(choose_decoding(p, 100, 100, 2), Schedule::ring);
  EXPECT_EQ(choose_decoding(p, 100, 100, 1), Schedule::pass_q);
}

// Results do not depend on threads.
TEST(Decode, IsTheSameForAnyThreads) {
  Random random(seed());
  const ra_kv_cache_desc desc = draw_cache(random);
  std::vector<Tensor> results;
  for (const std::int32_t threads : {1, 2, 5}) {
    Random same(7);
    Ranks ranks(2, [&](ra_context_config& config) { config.num_threads = threads; });
    ra_kv_cache_desc large = desc;
    large.num_pages = 200;
    Caches caches(ranks, large);
    const std::int64_t a = caches.create(), b = caches.create();
    ASSERT_TRUE(caches.append(same, {a, b}, {3000, 700}));
    const std::optional<Question> question = draw_question(same, caches, 4);
    ASSERT_TRUE(question.has_value());
    results.push_back(std::move(decode(caches, *question, Layout::packed).at(0).out));
  }
  EXPECT_TRUE(same_bits(results[0], results[1]) && same_bits(results[0], results[2]));
}

// Ranks that have done other things with their caches find out, and say so: also where the call of one of them alone could be refused.
TEST(Decode, NoticesThatCachesDiffer) {
  Random random(seed());
  using Call = std::function<void(ra_kv_cache*, std::int64_t)>;
  const Call differences[] = {
      [](ra_kv_cache* cache, std::int64_t id) { ra_truncate_sequence(cache, id, 19, nullptr); },
      [](ra_kv_cache* cache, std::int64_t id) { ra_truncate_sequence(cache, id, 0, nullptr); },
      [](ra_kv_cache* cache, std::int64_t id) { ra_free_sequence(cache, id, nullptr); },
      [](ra_kv_cache* cache, std::int64_t) { ra_create_sequence(cache, nullptr); },
  };
  for (const Call& differ : differences)
    for (const std::int32_t other : {0, 2}) {
      Ranks ranks(3);
      Caches caches(ranks, make_cache_desc(8, 16, 1, 8));
      const std::int64_t id = caches.create();
      ASSERT_TRUE(caches.append(random, {id}, {20}));
      std::optional<Question> question = draw_question(random, caches, 1);
      ASSERT_TRUE(question.has_value());
      question->desc.seqlen_q = 1;
      expect_attention(caches, *question, random, Layout::packed);
      differ(caches[other], id);
      caches.together([&](std::int32_t, ra_context* context, ra_kv_cache* cache) {
        Error error;
        EXPECT_EQ(question->ask(context, cache, Decoded(question->desc, Layout::packed), error), RA_STATUS_MISMATCH)
            << error;
        EXPECT_EQ(error.rank, other);
        EXPECT_NE(error.text().find("cache"), std::string::npos) << error;
      });
    }
}

// What every rank refuses breaks no group.
TEST(Decode, GoesOnAfterARefusal) {
  Random random(seed());
  Ranks ranks(3);
  Caches caches(ranks, make_cache_desc(8, 16, 1, 8));
  const std::int64_t id = caches.create();
  ASSERT_TRUE(caches.append(random, {id}, {20}));
  for (int n = 0; n < 3; ++n) {
    std::optional<Question> question = draw_question(random, caches, 1);
    ASSERT_TRUE(question.has_value());
    const std::vector<std::int64_t> known = std::exchange(question->ids, std::vector(question->ids.size(), id + 1));
    caches.together([&](std::int32_t, ra_context* context, ra_kv_cache* cache) {
      Error error;
      EXPECT_EQ(question->ask(context, cache, Decoded(question->desc, Layout::packed), error),
                RA_STATUS_INVALID_ARGUMENT)
          << error;
    });
    question->ids = known;
    expect_attention(caches, *question, random, Layout::packed);
  }
}

// A rank goes; the others are told, and go on with what they have in a smaller group.
TEST(Decode, GoesOnWithTheRanksThatAreLeft) {
  Random random(seed());
  for (const std::int32_t gone : {0, 2}) {
    Ranks ranks(4, [](ra_context_config& config) { config.timeout_ms = 20'000; });
    ASSERT_TRUE(ranks.complete());
    ra_kv_cache_desc desc = make_cache_desc(60, 16, 2, 12);
    Caches caches(ranks, desc);
    const std::int64_t a = caches.create(), b = caches.create();
    ASSERT_TRUE(caches.append(random, {a, b}, {500, 75}));
    const std::int64_t c = caches.fork(a);
    const std::optional<Question> question = draw_question(random, caches, 2);
    ASSERT_TRUE(question.has_value());
    caches.together([&](std::int32_t rank, ra_context* context, ra_kv_cache* cache) {
      if (rank == gone) return ranks.destroy(rank);
      Error error;
      const ra_status status = question->ask(context, cache, Decoded(question->desc, Layout::packed), error);
      EXPECT_TRUE(status == RA_STATUS_PEER_LOST || status == RA_STATUS_INVALID_STATE) << error;  // if it came late
      EXPECT_EQ(error.rank, gone);
    });
    for (std::int32_t rank = 0; rank < 4; ++rank) ranks.destroy(rank);

    Ranks fewer(3);
    ASSERT_TRUE(fewer.complete());
    std::vector<std::int32_t> former;
    for (std::int32_t rank = 3; rank >= 0; --rank)
      if (rank != gone) former.push_back(rank);
    caches.move(fewer, former);
    caches.together([&](std::int32_t, ra_context* context, ra_kv_cache* cache) {
      Error error;
      EXPECT_EQ(question->ask(context, cache, Decoded(question->desc, Layout::packed), error), RA_STATUS_INVALID_STATE)
          << error;
      EXPECT_NE(error.text().find("lost"), std::string::npos) << error;
    });
    EXPECT_GT(statistics_of(caches, 0).lost_pages, 0);
    std::int64_t restored = 0;
    for (const std::int64_t id : {a, b, c}) restored += caches.restore(id);
    EXPECT_GT(restored, 200);
    EXPECT_LT(restored, 400);
    const auto go_on = [&] {
      expect_statistics(caches);
      for (int n = 0; n < 6; ++n) {
        ASSERT_TRUE(caches.append(random, {a, b, c}, {n, 1, 20}));
        expect_attention(caches, *draw_question(random, caches, 2), random, Layout::packed);
      }
    };
    go_on();
    const Ranks last(2);  // and once more
    caches.move(last, {2, 0});
    for (const std::int64_t id : {a, b, c}) caches.restore(id);
    go_on();
  }
}

// What is appended when the group is broken, by whoever is a call behind the others, is there for the next one.
TEST(Decode, HasWhatWasAppendedToABrokenGroup) {
  Random random(seed());
  for (const std::int32_t threads : {1, 3}) {
    const auto with_threads = [&](ra_context_config& config) { config.num_threads = threads; };
    Ranks broken(3, with_threads), next(3, with_threads);
    ASSERT_TRUE(broken.complete() && next.complete());
    Caches caches(broken, make_cache_desc(20, 200, 2, 12));
    const std::int64_t id = caches.create();
    ASSERT_TRUE(caches.append(random, {id}, {100}));
    const std::int64_t fork = caches.fork(id);
    ASSERT_EQ(ra_abort_context(broken[0], nullptr), RA_STATUS_SUCCESS);
    ASSERT_TRUE(caches.append(random, {id, fork}, {400, 50}));
    caches.move(next, {0, 1, 2});
    for (int n = 0; n < 4; ++n) expect_attention(caches, *draw_question(random, caches, 2), random, Layout::packed);
  }
}

}  // namespace
}  // namespace ringattn::test
