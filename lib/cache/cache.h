// A KV cache over the ranks of a context, for decoding: keys and values of sequences that grow, never moved once they are stored.
//
//   pages.h     the book: which page of which rank has which tokens. The same on every rank, without a word between them
//   this file   the book, and one rank's pool: memory of its pages, and what writes there
//   keys.h      what the ranks have of a batch of sequences, as the planner and the engine want it: runs of positions and rows
//   decode.h    attention of a few queries to all of that, by all ranks
//
// A pool is K, [num_heads_kv, num_pages * page_tokens, head_dim], and V behind it: to an engine a tensor like any other, whose rows are
// the tokens of all pages. A page is a piece of rows (plan/shard.h), and so are pages of a sequence that lie side by side. What one head
// has of them lies without gaps, as a thread reads it: no kernel knows of pages.
//
// A token's K and V are given to every rank, and stored by the one that has its page. A page that sequences share is copied, on its rank,
// by the first that appends to it.
//
// The cache knows no other ranks and sends nothing. When its group is gone it still has the book, and its own pages: with the pages of
// the others that are left it goes on in a smaller group (PageBook::move), where what was on lost ranks has to be given again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "cache/pages.h"
#include "engine/engine.h"
#include "plan/problem.h"

namespace ringattn {

struct CacheShape {
  std::int64_t page_tokens = 64;
  std::int64_t num_pages = 1;  // of each rank
  std::int64_t num_heads_kv = 1;
  std::int64_t head_dim = 1;
  std::int64_t head_dim_v = 1;
  DType dtype = DType::float32;

  std::int64_t rows() const { return num_pages * page_tokens; }
};

// Of a rank's pool, whose memory is aligned like memory_alignment.
std::size_t pool_bytes(const CacheShape& shape);

class KvCache {
 public:
  KvCache(const CacheShape& shape, int world_size, std::shared_ptr<void> memory);

  const CacheShape& shape() const { return shape_; }
  // All of the pool, as one entry.
  const Tensor& k() const { return k_; }
  const Tensor& v() const { return v_; }

  // Makes room for tokens and stores those that rank `rank` has: entry n of k and v, from its first row on, has those of all[n].
  void append(Engine& engine, int rank, std::span<const PageBook::Tokens> all, const Tensor& k, const Tensor& v);

  PageBook book;

 private:
  void copy(Engine& engine, const Tensor& k, const Tensor& v, std::int64_t row, std::int64_t tokens) const;

  CacheShape shape_;
  std::shared_ptr<void> memory_;
  Tensor k_, v_;
};

}  // namespace ringattn
