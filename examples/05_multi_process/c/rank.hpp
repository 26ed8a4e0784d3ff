// What one rank does: all calls of the library are in this file.
//
// Each element of an input is a function of its token's position, so that every process makes its own part, and none ever has all
// of it. Only so that results can be checked does each process also compute the whole sequence alone, as a group of one rank.
#pragma once

#include <fmt/format.h>
#include <ringattn/ringattn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

inline void check(bool success, const ra_error& error) {
  if (!success) throw std::runtime_error(fmt::format("{}: {}", ra_get_status_name(error.status), error.message));
}
inline void check(ra_status status, const ra_error& error) { check(status == RA_STATUS_SUCCESS, error); }

inline const char* or_null(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

/** `address` is that of rank 0, perhaps with a port; empty: this machine, for ranks that are here too. */
inline std::string make_id(const std::string& address) {
  ra_error error;
  ra_unique_id id;
  check(ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, or_null(address), &error), error);
  return id.text;
}

/** Where a process is in its group. */
struct Place {
  int32_t rank = 0, world_size = 1;
  int64_t timeout_ms = 30000;
  std::string id, bind;
};

inline ra_attention_desc describe(int64_t tokens) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = tokens;
  desc.num_heads_q = 4;
  desc.num_heads_kv = 2;
  desc.head_dim = 64;
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG;  // equal work for all ranks under this mask
  return desc;
}

/** What a rank has computed. */
struct Results {
  std::array<std::vector<float>, 4> of;  // out, dq, dk and dv of its tokens: [tokens, heads, head_dim]
  double milliseconds = 0;               // of a forward and a backward call
};

class Rank {
 public:
  /** Joins the group: returns when all ranks have come. */
  Rank(const Place& place, const ra_attention_desc& desc) : desc_(desc) {
    ra_error error;
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.rank = place.rank;
    config.world_size = place.world_size;
    config.timeout_ms = place.timeout_ms;
    config.transport = RA_TRANSPORT_ZEROMQ;
    config.unique_id = or_null(place.id);
    config.bind_address = or_null(place.bind);
    context_.reset(ra_create_context(&config, &error));
    check(context_ != nullptr, error);

    const int64_t count = ra_get_shard_length(&desc, place.world_size, place.rank, RA_SIDE_QUERY, &error);
    check(count >= 0, error);
    positions_.resize(static_cast<size_t>(count));
    check(
        ra_get_shard_positions(&desc, place.world_size, place.rank, RA_SIDE_QUERY, 0, count, positions_.data(), &error),
        error);
  }

  size_t num_tokens() const { return positions_.size(); }

  /** Collective: forward and backward, so many times. Throws what the library says, as when another process has died. */
  Results compute(int64_t repeats) const {
    const std::array widths = {width(desc_.num_heads_q), width(desc_.num_heads_q), width(desc_.num_heads_kv),
                               width(desc_.num_heads_kv)};
    std::vector<float> q = make_input(0, widths[0]), k = make_input(1, widths[2]), v = make_input(2, widths[3]),
                       dout = make_input(3, widths[0]), lse(num_tokens() * static_cast<size_t>(desc_.num_heads_q));
    Results results;
    for (size_t i = 0; i < widths.size(); ++i) results.of[i].resize(num_tokens() * widths[i]);

    ra_error error;
    ra_forward_args forward;
    ra_init_forward_args(&forward, sizeof forward);
    forward.q.data = q.data();  // strides stay 0: packed
    forward.k.data = k.data();
    forward.v.data = v.data();
    forward.out.data = results.of[0].data();
    forward.lse = lse.data();
    ra_backward_args backward;
    ra_init_backward_args(&backward, sizeof backward);
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.out = forward.out;
    backward.lse = forward.lse;
    backward.dout.data = dout.data();
    backward.dq.data = results.of[1].data();
    backward.dk.data = results.of[2].data();
    backward.dv.data = results.of[3].data();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < repeats; ++i) {
      check(ra_forward(context_.get(), &desc_, &forward, &error), error);
      check(ra_backward(context_.get(), &desc_, &backward, &error), error);
    }
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    results.milliseconds = took.count() / static_cast<double>(repeats);
    return results;
  }

  /** Largest difference of this rank's tokens to those of `whole`, as a part of the largest number of a tensor. */
  double compare(const Results& own, const Results& whole) const {
    double worst = 0;
    for (size_t t = 0; t < own.of.size(); ++t) {
      double largest = 0, difference = 0;
      for (const float x : whole.of[t]) largest = std::max(largest, std::abs(static_cast<double>(x)));
      const size_t width = num_tokens() == 0 ? 0 : own.of[t].size() / num_tokens();
      for (size_t i = 0; i < own.of[t].size(); ++i) {
        const double expected = whole.of[t][static_cast<size_t>(positions_[i / width]) * width + i % width];
        const double apart = std::abs(static_cast<double>(own.of[t][i]) - expected);
        if (!(apart <= difference)) difference = std::isnan(apart) ? INFINITY : apart;
      }
      worst = std::max(worst, difference / largest);
    }
    return worst;
  }

 private:
  struct Destroy {
    void operator()(ra_context* context) const { ra_destroy_context(context); }
  };

  size_t width(int64_t heads) const { return static_cast<size_t>(heads * desc_.head_dim); }

  std::vector<float> make_input(int tensor, size_t width) const {
    std::vector<float> elements;
    elements.reserve(num_tokens() * width);
    for (const int64_t position : positions_)
      for (size_t i = 0; i < width; ++i)
        elements.push_back(static_cast<float>(
            std::sin(0.7 * (tensor + 1) * static_cast<double>(position + 1) + static_cast<double>(i))));
    return elements;
  }

  ra_attention_desc desc_;
  std::unique_ptr<ra_context, Destroy> context_;
  std::vector<int64_t> positions_;
};
