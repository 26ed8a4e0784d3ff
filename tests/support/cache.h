// KV caches of all ranks of a group, or of those that are in this process, that make the same calls, and what a naive model has in them:
// every token's keys and values.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/reference/oracle.h"
#include "ringattn/ringattn.h"
#include "support/oracle_run.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {

inline ra_kv_cache_desc make_cache_desc(std::int64_t num_pages, std::int64_t page_tokens, std::int64_t num_heads_kv,
                                        std::int64_t head_dim) {
  ra_kv_cache_desc desc;
  ra_init_kv_cache_desc(&desc, sizeof desc);
  desc.num_pages = num_pages;
  desc.page_tokens = page_tokens;
  desc.num_heads_kv = num_heads_kv;
  desc.head_dim = head_dim;
  return desc;
}

struct CacheDeleter {
  void operator()(ra_kv_cache* cache) const { ra_destroy_kv_cache(cache); }
};
using Cache = std::unique_ptr<ra_kv_cache, CacheDeleter>;

// One token after the other, [heads, dim], as they are after being stored in their dtype.
struct StoredTokens {
  std::vector<double> k, v;
};

// Ranks of a group: those that are in this process.
struct Members {
  Members(const Ranks& ranks) : world_size(ranks.world_size()) {
    for (std::int32_t rank = 0; rank < world_size; ++rank) here[rank] = ranks[rank];
  }
  Members(std::int32_t world_size, std::int32_t rank, ra_context* context)
      : world_size(world_size), here{{rank, context}} {}

  std::int32_t world_size;
  std::map<std::int32_t, ra_context*> here;
};

class Caches {
 public:
  Caches(Members members, const ra_kv_cache_desc& description) : desc(description), members_(std::move(members)) {
    if (desc.head_dim_v == 0) desc.head_dim_v = desc.head_dim;
    for (const auto& [rank, context] : members_.here) {
      Error error;
      caches_[rank].reset(ra_create_kv_cache(context, &desc, &error));
      EXPECT_NE(caches_[rank], nullptr) << error;
    }
  }

  std::int32_t world_size() const { return members_.world_size; }
  ra_kv_cache* operator[](std::int32_t rank) const { return caches_.at(rank).get(); }

  // f(rank, context, cache) on the ranks of this process, one after the other: for what is local.
  template <class F>
  void each(F&& f) const {
    for (const auto& [rank, context] : members_.here) f(rank, context, (*this)[rank]);
  }
  // The same on a thread for each: for what is collective.
  template <class F>
  void together(F&& f) const {
    std::vector<std::int32_t> ranks;
    for (const auto& [rank, context] : members_.here) ranks.push_back(rank);
    run_threads(static_cast<std::int32_t>(ranks.size()), [&](std::int32_t n) {
      const std::int32_t rank = ranks[static_cast<std::size_t>(n)];
      f(rank, members_.here.at(rank), (*this)[rank]);
    });
  }

  std::int64_t create() {
    std::optional<std::int64_t> id;
    each([&](std::int32_t, ra_context*, ra_kv_cache* cache) {
      Error error;
      const std::int64_t own = ra_create_sequence(cache, &error);
      EXPECT_GE(own, 0) << error;
      EXPECT_EQ(own, id.value_or(own));
      id = own;
    });
    model[*id];
    return *id;
  }
  std::int64_t fork(std::int64_t of) {
    std::int64_t id = -1;
    each([&](std::int32_t, ra_context*, ra_kv_cache* cache) {
      Error error;
      id = ra_fork_sequence(cache, of, &error);
      EXPECT_GE(id, 0) << error;
    });
    model[id] = model[of];
    return id;
  }
  void truncate(std::int64_t id, std::int64_t length) {
    each([&](std::int32_t, ra_context*, ra_kv_cache* cache) {
      Error error;
      EXPECT_EQ(ra_truncate_sequence(cache, id, length, &error), RA_STATUS_SUCCESS) << error;
    });
    model[id].k.resize(static_cast<std::size_t>(length * row_k()));
    model[id].v.resize(static_cast<std::size_t>(length * row_v()));
  }
  void free(std::int64_t id) {
    each([&](std::int32_t, ra_context*, ra_kv_cache* cache) {
      Error error;
      EXPECT_EQ(ra_free_sequence(cache, id, &error), RA_STATUS_SUCCESS) << error;
    });
    model.erase(id);
  }
  std::int64_t length(std::int64_t id) const { return std::ssize(model.at(id).v) / row_v(); }

  // New tokens of sequences, drawn from a normal distribution. False where there is no room, on all ranks with the same words.
  bool append(reference::Random& random, const std::vector<std::int64_t>& ids,
              const std::vector<std::int64_t>& counts) {
    std::int64_t longest = 0;
    for (const std::int64_t count : counts) longest = std::max(longest, count);
    std::vector<StoredTokens> drawn(ids.size());
    std::normal_distribution<double> normal;
    for (std::size_t n = 0; n < ids.size(); ++n) {
      const auto draw_row = [&](std::vector<double>& to, std::int64_t size) {
        for (std::int64_t i = 0; i < size; ++i) to.push_back(reference::rounded(normal(random), dtype()));
      };
      draw_row(drawn[n].k, counts[n] * row_k());
      draw_row(drawn[n].v, counts[n] * row_v());
    }
    if (!give(ids, counts, longest, drawn, {})) return false;
    for (std::size_t n = 0; n < ids.size(); ++n) {
      StoredTokens& tokens = model[ids[n]];
      tokens.k.insert(tokens.k.end(), drawn[n].k.begin(), drawn[n].k.end());
      tokens.v.insert(tokens.v.end(), drawn[n].v.begin(), drawn[n].v.end());
    }
    return true;
  }

  // Gives lost tokens again, as the model has them, page by page. Returns how many there were.
  std::int64_t restore(std::int64_t id) {
    std::int64_t restored = 0;
    const std::int64_t all = length(id);
    for (std::int64_t at = 0;;) {
      std::optional<std::int64_t> first;
      each([&](std::int32_t, ra_context*, ra_kv_cache* cache) {
        const std::int64_t lost = ra_get_lost_tokens(cache, id, at, nullptr);
        EXPECT_EQ(lost, first.value_or(lost));
        first = lost;
      });
      at = *first;
      if (at < 0 || at >= all) return restored;
      const std::int64_t count = std::min(at / desc.page_tokens * desc.page_tokens + desc.page_tokens, all) - at;
      const StoredTokens& tokens = model[id];
      const auto rows = [&](const std::vector<double>& from, std::int64_t row) {
        return std::vector<double>(from.begin() + at * row, from.begin() + (at + count) * row);
      };
      if (!give({id}, {count}, count, {{rows(tokens.k, row_k()), rows(tokens.v, row_v())}}, {at})) return restored;
      restored += count;
    }
  }

  // From now on they are those of other ranks: each was that one before.
  void move(Members members, const std::vector<std::int32_t>& former) {
    std::map<std::int32_t, Cache> moved;
    for (const auto& [rank, context] : members.here)
      moved[rank] = std::move(caches_.at(former[static_cast<std::size_t>(rank)]));
    caches_ = std::move(moved);
    members_ = std::move(members);
    each([&](std::int32_t, ra_context* context, ra_kv_cache* cache) {
      Error error;
      EXPECT_EQ(ra_move_kv_cache(cache, context, former.data(), &error), RA_STATUS_SUCCESS) << error;
    });
  }

  DType dtype() const { return static_cast<DType>(desc.dtype); }
  std::int64_t row_k() const { return desc.num_heads_kv * desc.head_dim; }
  std::int64_t row_v() const { return desc.num_heads_kv * desc.head_dim_v; }

  ra_kv_cache_desc desc;
  std::map<std::int64_t, StoredTokens> model;

 private:
  bool give(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& counts, std::int64_t longest,
            const std::vector<StoredTokens>& tokens, const std::vector<std::int64_t>& positions) {
    const auto batch = std::ssize(ids);
    Tensor k(desc.dtype, batch, longest, desc.num_heads_kv, desc.head_dim, Layout::padded),
        v(desc.dtype, batch, longest, desc.num_heads_kv, desc.head_dim_v, Layout::padded);
    const auto fill = [&](Tensor& to, std::vector<double> StoredTokens::*from) {
      for (std::size_t n = 0; n < ids.size(); ++n) {
        const double* value = (tokens[n].*from).data();
        for (std::int64_t i = 0; i < counts[n]; ++i)
          for (std::int64_t h = 0; h < to.heads; ++h)
            for (std::int64_t d = 0; d < to.dim; ++d)
              reference::encode(*value++, dtype(), to.at(static_cast<std::int64_t>(n), i, h, d));
      }
    };
    fill(k, &StoredTokens::k);
    fill(v, &StoredTokens::v);
    ra_append_args args;
    ra_init_append_args(&args, sizeof args);
    args.num_sequences = batch;
    args.num_tokens = longest;
    args.sequences = ids.data();
    args.lengths = counts.data();
    if (!positions.empty()) args.positions = positions.data();
    args.k = k.view();
    args.v = v.view();
    std::optional<std::string> refusal;
    each([&](std::int32_t, ra_context* context, ra_kv_cache* cache) {
      Error error;
      const ra_status status = ra_append(context, cache, &args, &error);
      EXPECT_TRUE(status == RA_STATUS_SUCCESS || status == RA_STATUS_OUT_OF_MEMORY) << error;
      EXPECT_EQ(error.text(), refusal.value_or(error.text()));
      refusal = error.text();
    });
    return refusal->empty();
  }

  Members members_;
  std::map<std::int32_t, Cache> caches_;
};

}  // namespace ringattn::test
