// The ranks that share the text: all calls of the library are in this file.
//
// The problem, in the library's words. There are `length` keys, one for each byte but the last, and kScored queries:
//
//   key, value j   byte j, 0 <= j < length
//   query i        byte t = length - kScored + i + 1, the one after the key that query i faces (bottom-right)
//   visible        j <= t - 1 by the causal mask, j >= t - context by window_left = context - 1
//
// so a byte is never visible to its own query.
#pragma once

#include <fmt/format.h>
#include <ringattn/ringattn.h>

#include <algorithm>
#include <string>
#include <vector>

#include "group.hpp"
#include "induction_head.hpp"

inline constexpr int64_t kScored = 2048;

inline ra_attention_desc describe(int64_t length, int64_t context, ra_sharding sharding) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = kScored;
  desc.seqlen_kv = length;
  desc.head_dim = kDim;
  desc.head_dim_v = kAlphabet;
  desc.softmax_scale = kSoftmaxScale;
  desc.sharding = sharding;
  desc.mask = RA_MASK_CAUSAL;
  desc.mask_alignment = RA_MASK_ALIGNMENT_BOTTOM_RIGHT;
  desc.window_left = context - 1;
  desc.num_chunks = 32;  // what travels at once is a fixed part of a shard, so that it shrinks as the ranks multiply
  return desc;
}

/** The byte of the text that query `i` guesses. */
inline int64_t get_target(int64_t length, int64_t i) { return length - kScored + i + 1; }

class Ranks {
 public:
  Ranks(const std::string& text, int64_t length, int32_t world_size, ra_sharding sharding)
      : length_(length), sharding_(sharding), group_(world_size), ranks_(static_cast<size_t>(world_size)) {
    group_.on_every_rank([&](int32_t r, ra_context*) { fill(r, ranks_[static_cast<size_t>(r)], text); });
  }

  /** [kScored, kAlphabet]: the head's distribution over each scored byte. */
  std::vector<float> forward(int64_t context) {
    const ra_attention_desc desc = describe(length_, context, sharding_);
    std::vector<float> whole(static_cast<size_t>(kScored * kAlphabet));
    group_.on_every_rank([&](int32_t r, ra_context* own) {
      Rank& rank = ranks_[static_cast<size_t>(r)];
      ra_error error;
      ra_forward_args args;
      ra_init_forward_args(&args, sizeof args);
      args.q.data = rank.q.data();  // strides stay 0: packed
      args.k.data = rank.k.data();
      args.v.data = rank.v.data();
      args.out.data = rank.out.data();
      check(ra_forward(own, &desc, &args, &error), error);

      // Every rank puts its rows where they belong; no two ranks write the same one.
      ra_sequence_args rows;
      ra_init_sequence_args(&rows, sizeof rows);
      rows.num_heads = 1;
      rows.dim = kAlphabet;
      rows.shard.data = rank.out.data();
      rows.whole.data = whole.data();
      check(ra_join_sequence(&desc, group_.world_size(), r, &rows, &error), error);
    });
    return whole;
  }

  /** Tensors and workspace of the rank that needs most, in bytes. */
  size_t get_memory(int64_t context) const {
    const ra_attention_desc desc = describe(length_, context, sharding_);
    size_t most = 0;
    for (int32_t r = 0; r < group_.world_size(); ++r) {
      ra_error error;
      ra_memory_requirements memory;
      ra_init_memory_requirements(&memory, sizeof memory);
      check(ra_get_memory_requirements(group_.context(r), &desc, &memory, &error), error);
      most = std::max(most, memory.forward_tensors + memory.forward_workspace);
    }
    return most;
  }

 private:
  struct Rank {
    std::vector<float> q, k, v, out;  // this rank's shards
  };

  // A rank makes the tensors of its own tokens only: nobody ever holds those of the whole sequence.
  void fill(int32_t r, Rank& rank, const std::string& text) const {
    const ra_attention_desc desc = describe(length_, length_, sharding_);
    const std::vector<int64_t> queries = get_positions(desc, group_.world_size(), r, RA_SIDE_QUERY);
    const std::vector<int64_t> keys = get_positions(desc, group_.world_size(), r, RA_SIDE_KEY_VALUE);
    rank.q.reserve(queries.size() * kDim);
    rank.k.reserve(keys.size() * kDim);
    rank.v.assign(keys.size() * kAlphabet, 0.0F);
    rank.out.resize(queries.size() * kAlphabet);
    for (const int64_t i : queries) {
      const Feature query = make_feature(text, get_target(length_, i));
      rank.q.insert(rank.q.end(), query.begin(), query.end());
    }
    for (size_t index = 0; index < keys.size(); ++index) {
      const Feature key = make_feature(text, keys[index]);
      rank.k.insert(rank.k.end(), key.begin(), key.end());
      const auto byte = static_cast<size_t>(text[static_cast<size_t>(keys[index])]);
      rank.v[index * kAlphabet + byte] = 1.0F;
    }
  }

  int64_t length_;
  ra_sharding sharding_;
  Group group_;
  std::vector<Rank> ranks_;
};

/** What Ranks::get_memory would say for the longest context, without making the ranks. */
inline size_t estimate_memory(int64_t length, int32_t world_size, ra_sharding sharding) {
  const ra_attention_desc desc = describe(length, length, sharding);
  size_t most = 0;
  for (int32_t r = 0; r < world_size; ++r) {
    ra_error error;
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.rank = r;
    config.world_size = world_size;
    ra_memory_requirements memory;
    ra_init_memory_requirements(&memory, sizeof memory);
    check(ra_estimate_memory(&config, &desc, &memory, &error), error);
    most = std::max(most, memory.forward_tensors + memory.forward_workspace);
  }
  return most;
}
