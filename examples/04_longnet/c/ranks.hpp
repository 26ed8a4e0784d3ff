// The ranks that share the text: with group.hpp, every call of the library.
//
// One query, key and value per byte; inputs in bfloat16, output in float32:
//
//   q, k [length, heads, 128]     the same slice for every head of q (RA_STRIDE_REPEAT); k and v have one head, which all share
//   v    [length, 1, 128]         one-hot
//   out  [length, heads, 128]     of each head a distribution, and lse[heads, length], the logarithm of its sum of weights
//
// What the heads saw is put together as parts of one attention are: weighted by exp(lse).
#pragma once

#include <fmt/format.h>
#include <ringattn/ringattn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "group.hpp"
#include "pattern.hpp"

/** What a pass costs, of all ranks together. */
struct Cost {
  double pairs = 0;       // (query, key), of all heads
  double sent_bytes = 0;  // between ranks
  double memory = 0;      // tensors and workspace, bytes
};

/** A head's guess of one byte. */
struct Guess {
  int8_t byte = 0;        // the likeliest
  float probability = 0;  // of the true one
};

class Ranks {
 public:
  Ranks(const std::string& text, int32_t world_size) : text_(text), group_(world_size) {}

  /** A description of the attention; it points into `pattern`. */
  static ra_attention_desc describe(const Pattern& pattern, int64_t length) {
    ra_attention_desc desc;
    ra_init_attention_desc(&desc, sizeof desc);
    desc.seqlen_q = length;
    desc.num_heads_q = pattern.heads();
    desc.num_heads_kv = 1;
    desc.head_dim = kDim;
    desc.head_dim_v = kAlphabet;
    desc.dtype = RA_DTYPE_BFLOAT16;
    desc.out_dtype = RA_DTYPE_FLOAT32;
    desc.softmax_scale = kSoftmaxScale;
    desc.mask = RA_MASK_CAUSAL;
    if (pattern.kind == PatternKind::window) desc.window_left = kWindow - 1;
    if (pattern.kind == PatternKind::longnet) {
      desc.num_branches = static_cast<int32_t>(pattern.dilations.size());
      desc.segment_lengths = pattern.segment_lengths.data();
      desc.dilations = pattern.dilations.data();
    }
    // The work of an exact causal pass is dealt evenly by zigzag. Segments and windows are even already, and shards in one piece cut
    // the fewest of them.
    desc.sharding = pattern.kind == PatternKind::exact ? RA_SHARDING_ZIGZAG : RA_SHARDING_CONTIGUOUS;
    return desc;
  }

  Cost get_cost(const Pattern& pattern, int64_t length) const {
    const ra_attention_desc desc = describe(pattern, length);
    Cost cost;
    for (int32_t r = 0; r < group_.world_size(); ++r) {
      ra_error error;
      ra_memory_requirements needs;
      ra_init_memory_requirements(&needs, sizeof needs);
      check(ra_get_memory_requirements(group_.context(r), &desc, &needs, &error), error);
      cost.pairs += needs.visible_pairs;
      cost.sent_bytes += static_cast<double>(needs.forward_hop_bytes);
      cost.memory += static_cast<double>(needs.forward_tensors + needs.forward_workspace);
    }
    return cost;
  }

  /**
   * Guesses bytes 1 .. length: entry i is of byte i + 1. `seconds` is the time of the attention alone. Rows `sampled` of the
   * heads' distribution go to `samples`.
   */
  std::vector<Guess> guess(const Pattern& pattern, int64_t length, const std::vector<int64_t>& sampled, double& seconds,
                           std::vector<Distribution>& samples) const {
    const ra_attention_desc desc = describe(pattern, length);
    std::vector<Guess> guesses(static_cast<size_t>(length));
    samples.resize(sampled.size());
    std::vector<Shard> shards(static_cast<size_t>(group_.world_size()));
    group_.on_every_rank([&](int32_t r, ra_context*) {
      shards[static_cast<size_t>(r)] = make_shard(pattern, get_positions(desc, group_.world_size(), r, RA_SIDE_QUERY));
    });

    const auto begin = std::chrono::steady_clock::now();
    group_.on_every_rank([&](int32_t r, ra_context* own) { forward(desc, own, shards[static_cast<size_t>(r)]); });
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

    group_.on_every_rank([&](int32_t r, ra_context*) {
      const Shard& shard = shards[static_cast<size_t>(r)];
      for (size_t row = 0; row < shard.positions.size(); ++row) {
        const int64_t i = shard.positions[row];
        const Distribution distribution = combine(shard, row);
        const auto truth = static_cast<size_t>(text_[static_cast<size_t>(i + 1)]);
        guesses[static_cast<size_t>(i)] = {
            static_cast<int8_t>(std::ranges::max_element(distribution) - distribution.begin()),
            static_cast<float>(distribution[truth])};
        const auto at = std::ranges::lower_bound(sampled, i);
        if (at != sampled.end() && *at == i) samples[static_cast<size_t>(at - sampled.begin())] = distribution;
      }
    });
    return guesses;
  }

 private:
  struct Shard {
    std::vector<int64_t> positions;
    std::vector<uint16_t> q, k, v;
    std::vector<float> out, lse;
  };

  Shard make_shard(const Pattern& pattern, std::vector<int64_t> positions) const {
    Shard shard;
    const size_t rows = positions.size(), heads = static_cast<size_t>(pattern.heads());
    shard.q.reserve(rows * kDim);
    shard.k.reserve(rows * kDim);
    shard.v.assign(rows * kAlphabet, 0);
    shard.out.resize(rows * heads * kAlphabet);
    shard.lse.resize(rows * heads);
    for (size_t row = 0; row < rows; ++row) {
      const int64_t i = positions[row];
      std::ranges::transform(make_feature(text_, i + 1), std::back_inserter(shard.q), to_bfloat16);
      std::ranges::transform(make_feature(text_, i), std::back_inserter(shard.k), to_bfloat16);
      shard.v[row * kAlphabet + static_cast<size_t>(text_[static_cast<size_t>(i)])] = to_bfloat16(1.0F);
    }
    shard.positions = std::move(positions);
    return shard;
  }

  static void forward(const ra_attention_desc& desc, ra_context* own, Shard& shard) {
    ra_error error;
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q.data = shard.q.data();
    args.q.seq_stride = kDim;
    args.q.head_stride = RA_STRIDE_REPEAT;
    args.k.data = shard.k.data();  // strides stay 0: packed
    args.v.data = shard.v.data();
    args.out.data = shard.out.data();
    args.lse = shard.lse.data();
    check(ra_forward(own, &desc, &args, &error), error);
  }

  // Of all heads, for one row of a shard.
  static Distribution combine(const Shard& shard, size_t row) {
    const size_t rows = shard.positions.size(), heads = shard.lse.size() / rows;
    double max = -INFINITY, sum = 0.0;
    for (size_t h = 0; h < heads; ++h) max = std::max(max, double{shard.lse[h * rows + row]});
    Distribution all{};
    for (size_t h = 0; h < heads; ++h) {
      const double weight = std::exp(double{shard.lse[h * rows + row]} - max);
      const float* out = shard.out.data() + (row * heads + h) * kAlphabet;
      for (size_t b = 0; b < all.size(); ++b) all[b] += weight * double{out[b]};
      sum += weight;
    }
    for (double& p : all) p /= sum;
    return all;
  }

  const std::string& text_;
  Group group_;
};
