// What is asked of caches (cache.h), and what attention by its definition, over all that the model has, answers to it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/reference/oracle.h"
#include "plan/problem.h"
#include "ringattn/ringattn.h"
#include "support/cache.h"
#include "support/oracle_run.h"
#include "support/shard.h"

namespace ringattn::test {

// What a call of ra_decode gives a rank.
struct Decoded {
  Decoded(const ra_attention_desc& d, Layout layout)
      : out(d.out_dtype, d.batch, d.seqlen_q, d.num_heads_q, d.head_dim_v, layout),
        lse(RA_DTYPE_FLOAT32, d.batch, d.seqlen_q, d.num_heads_q, 1, Layout::head_major) {
    ra_init_call_statistics(&statistics, sizeof statistics);
  }
  Tensor out, lse;
  ra_call_statistics statistics{};
};

// Entries of a batch, and the queries that all ranks give for them.
struct Question {
  ra_attention_desc desc;
  std::vector<std::int64_t> ids;
  std::vector<float> slopes, sinks;
  Tensor q;

  // The call of one rank.
  ra_status ask(ra_context* context, ra_kv_cache* cache, const Decoded& to, Error& error) const {
    ra_attention_desc asked = desc;
    if (!slopes.empty()) asked.alibi_slopes = slopes.data();
    ra_decode_args args;
    ra_init_decode_args(&args, sizeof args);
    args.num_sequences = std::ssize(ids);
    args.sequences = ids.data();
    args.q = q.view();
    args.out = to.out.view();
    args.lse = reinterpret_cast<float*>(to.lse.bytes.get());
    args.lse_size = to.lse.size;
    if (!sinks.empty()) args.sinks = sinks.data();
    return ra_decode(context, cache, &asked, &args, &error);
  }
};

// What the ranks of this process get.
inline std::map<std::int32_t, Decoded> decode(const Caches& caches, const Question& question, Layout layout) {
  std::map<std::int32_t, Decoded> all;
  caches.each([&](std::int32_t rank, auto...) { all.emplace(rank, Decoded(question.desc, layout)); });
  caches.together([&](std::int32_t rank, ra_context* context, ra_kv_cache* cache) {
    Decoded& own = all.at(rank);
    Error error;
    EXPECT_EQ(question.ask(context, cache, own, error), RA_STATUS_SUCCESS) << error;
    ra_get_call_statistics(context, &own.statistics, nullptr);
  });
  return all;
}

// Entry `entry` of a question as a problem by itself, with what it attends to.
inline reference::Inputs inputs_of(const Caches& caches, const Question& question, std::size_t entry,
                                   reference::Random& random) {
  const ra_attention_desc& d = question.desc;
  Problem p;
  p.seqlen_q = d.seqlen_q;
  p.seqlen_kv = caches.length(question.ids[entry]);
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.head_dim_v = d.head_dim_v;
  p.dtype = p.grad_dtype = caches.dtype();
  p.out_dtype = static_cast<DType>(d.out_dtype);
  p.causal = d.mask == RA_MASK_CAUSAL;
  p.window_left = d.window_left;
  p.window_right = d.window_right;
  p.softmax_scale = d.softmax_scale != 0 ? d.softmax_scale : 1.0F / std::sqrt(static_cast<float>(d.head_dim));
  p.softcap = d.softcap;
  p.alibi_slopes = question.slopes;
  p.num_sinks = d.num_sinks;
  p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};
  reference::Inputs inputs(p, random);
  inputs.k = caches.model.at(question.ids[entry]).k;
  inputs.v = caches.model.at(question.ids[entry]).v;
  inputs.sinks.assign(question.sinks.begin(), question.sinks.end());
  std::size_t n = 0;
  for (std::int64_t i = 0; i < p.seqlen_q; ++i)
    for (std::int64_t h = 0; h < p.num_heads_q; ++h)
      for (std::int64_t x = 0; x < p.head_dim; ++x)
        inputs.q[n++] = reference::decode(question.q.at(static_cast<std::int64_t>(entry), i, h, x), p.dtype);
  return inputs;
}

// What a rank sends where queries stay: every row of (out, lse) but its own part once, and its part, merged, to all others.
inline std::int64_t bytes_of_merging(const ra_attention_desc& d, int world_size, int rank) {
  const std::int64_t rows = d.batch * d.seqlen_q * d.num_heads_q, own = Cut(rows, world_size).length(rank);
  return (rows - own + (world_size - 1) * own) * (d.head_dim_v + 1) * 4;
}

inline void expect_attention(const Caches& caches, const Question& question, reference::Random& random, Layout layout) {
  const ra_attention_desc& d = question.desc;
  const std::int32_t world_size = caches.world_size();
  const std::map<std::int32_t, Decoded> all = decode(caches, question, layout);
  const Decoded& one = all.begin()->second;
  std::int64_t keys = 0;
  for (const std::int64_t id : question.ids) keys += caches.length(id);
  const bool asks_for_one = d.schedule != RA_SCHEDULE_AUTO && world_size > 1;
  const std::int32_t schedule = asks_for_one ? d.schedule
                                : world_size == 1 || d.batch * d.seqlen_q * d.num_heads_q < 2 * d.num_heads_kv * keys
                                    ? RA_SCHEDULE_PASS_Q
                                    : RA_SCHEDULE_RING;
  for (const auto& [rank, own] : all) {
    EXPECT_TRUE(same_bits(own.out, one.out) && same_bits(own.lse, one.lse)) << "rank " << rank << " differs";
    EXPECT_TRUE(own.out.gaps_untouched());
    EXPECT_EQ(own.statistics.schedule, schedule);
    if (schedule == RA_SCHEDULE_PASS_Q) {
      EXPECT_EQ(own.statistics.hop_bytes, bytes_of_merging(d, world_size, rank));
    }
  }
  for (std::int64_t entry = 0; entry < d.batch; ++entry) {
    const reference::Oracle oracle(inputs_of(caches, question, static_cast<std::size_t>(entry), random), random,
                                   reference::Of::forward);
    SCOPED_TRACE(reference::describe(oracle.problem) + ", entry " + std::to_string(entry) + ", schedule " +
                 std::to_string(schedule) + ", ranks " + std::to_string(world_size));
    std::vector<double> out, lse;
    for (std::int64_t i = 0; i < d.seqlen_q; ++i)
      for (std::int64_t h = 0; h < d.num_heads_q; ++h)
        for (std::int64_t x = 0; x < d.head_dim_v; ++x)
          out.push_back(reference::decode(one.out.at(entry, i, h, x), oracle.problem.out_dtype));
    for (std::int64_t h = 0; h < d.num_heads_q; ++h)
      for (std::int64_t i = 0; i < d.seqlen_q; ++i) lse.push_back(static_cast<double>(one.lse.get(entry, i, h, 0)));
    expect_within("out", out, oracle.out);
    expect_within("lse", lse, oracle.lse);
  }
}

// Anything that can be asked of sequences that have tokens; nothing where none has.
inline std::optional<Question> draw_question(reference::Random& random, const Caches& caches, std::int64_t group) {
  std::vector<std::int64_t> some;
  for (const auto& [id, tokens] : caches.model)
    if (caches.length(id) > 0) some.push_back(id);
  if (some.empty()) return {};
  Question question;
  std::int64_t shortest = 1 << 20;
  for (std::int64_t n = reference::draw(random, 1, 3); n > 0; --n) {
    question.ids.push_back(some[static_cast<std::size_t>(reference::draw(random, 0, std::ssize(some) - 1))]);
    shortest = std::min(shortest, caches.length(question.ids.back()));
  }
  const std::int64_t most = reference::draw(random, 0, 2) == 0 ? 40 : reference::draw(random, 0, 1) == 0 ? 4 : 1;
  ra_attention_desc& d = question.desc;
  ra_init_attention_desc(&d, sizeof d);
  d.batch = std::ssize(question.ids);
  d.seqlen_q = reference::draw(random, 1, std::min(most, shortest));
  d.num_heads_kv = caches.desc.num_heads_kv;
  d.num_heads_q = d.num_heads_kv * group;
  d.head_dim = caches.desc.head_dim;
  d.head_dim_v = caches.desc.head_dim_v;
  d.dtype = caches.desc.dtype;
  d.out_dtype = reference::draw(random, 0, 1) == 0 ? d.dtype : RA_DTYPE_FLOAT32;
  d.mask = reference::draw(random, 0, 3) > 0 ? RA_MASK_CAUSAL : RA_MASK_FULL;
  if (reference::draw(random, 0, 3) == 0) d.window_left = reference::draw(random, 0, 60);
  if (reference::draw(random, 0, 5) == 0) d.window_right = reference::draw(random, 0, 10);
  if (reference::draw(random, 0, 3) == 0) d.softcap = 3;
  if (reference::draw(random, 0, 3) == 0)
    for (std::int64_t h = 0; h < d.num_heads_q; ++h)
      question.slopes.push_back(static_cast<float>(reference::draw(random, -8, 16)) / 32);
  if (reference::draw(random, 0, 3) == 0) {
    d.num_sinks = reference::draw(random, 1, 3);
    for (std::int64_t n = 0; n < d.num_sinks * d.num_heads_q; ++n)
      question.sinks.push_back(
          reference::draw(random, 0, 9) == 0 ? -INFINITY : static_cast<float>(reference::draw(random, -50, 50)) / 16);
  }
  const std::int32_t schedules[] = {RA_SCHEDULE_AUTO, RA_SCHEDULE_AUTO, RA_SCHEDULE_PASS_Q, RA_SCHEDULE_RING};
  d.schedule = schedules[reference::draw(random, 0, 3)];
  if (d.schedule == RA_SCHEDULE_RING && reference::draw(random, 0, 1) == 0)
    d.num_chunks = reference::draw(random, 1, 5);
  question.q = Tensor(d.dtype, d.batch, d.seqlen_q, d.num_heads_q, d.head_dim, Layout::padded);
  std::normal_distribution<double> normal;
  question.q.for_each_element([&](auto b, auto s, auto h, auto x) {
    reference::encode(normal(random), caches.dtype(), question.q.at(b, s, h, x));
  });
  return question;
}

inline ra_kv_cache_desc draw_cache(reference::Random& random) {
  ra_kv_cache_desc desc = make_cache_desc(reference::draw(random, 4, 40), reference::draw(random, 16, 40),
                                          reference::draw(random, 1, 2), reference::draw(random, 1, 40));
  desc.head_dim_v = reference::draw(random, 0, 1) == 0 ? 0 : reference::draw(random, 1, 40);
  desc.dtype = static_cast<std::int32_t>(reference::draw(random, 1, 3));
  return desc;
}

}  // namespace ringattn::test
