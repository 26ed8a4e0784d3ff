#include "cache/cache.h"

#include <algorithm>
#include <utility>

#include "core/memory.h"

namespace ringattn {
namespace {

struct PoolMemory {
  std::byte *k = nullptr, *v = nullptr;

  static PoolMemory take(Arena& arena, const CacheShape& s) {
    const std::int64_t row = s.num_heads_kv * size_of(s.dtype);
    return {arena.take<std::byte>(s.rows() * row * s.head_dim), arena.take<std::byte>(s.rows() * row * s.head_dim_v)};
  }
};

// Of one entry, head by head.
Tensor head_major(void* data, DType dtype, std::int64_t rows, std::int64_t dim) {
  return {data, dtype, 0, dim, rows * dim};
}

}  // namespace

std::size_t pool_bytes(const CacheShape& shape) {
  Arena arena;
  PoolMemory::take(arena, shape);
  return arena.size();
}

KvCache::KvCache(const CacheShape& shape, int world_size, std::shared_ptr<void> memory)
    : book(world_size, shape.page_tokens, shape.num_pages), shape_(shape), memory_(std::move(memory)) {
  Arena arena(memory_.get());
  const PoolMemory pool = PoolMemory::take(arena, shape);
  k_ = head_major(pool.k, shape.dtype, shape.rows(), shape.head_dim);
  v_ = head_major(pool.v, shape.dtype, shape.rows(), shape.head_dim_v);
}

// To rows of the pool.
void KvCache::copy(Engine& engine, const Tensor& k, const Tensor& v, std::int64_t row, std::int64_t tokens) const {
  const Problem one_entry;
  engine.copy(one_entry, k, k_.from_row(row), {tokens, shape_.num_heads_kv, shape_.head_dim});
  engine.copy(one_entry, v, v_.from_row(row), {tokens, shape_.num_heads_kv, shape_.head_dim_v});
}

void KvCache::append(Engine& engine, int rank, std::span<const PageBook::Tokens> all, const Tensor& k,
                     const Tensor& v) {
  const std::int64_t page_tokens = shape_.page_tokens;
  for (const PageBook::Copy& c : book.extend(all))
    if (c.to.rank == rank)
      copy(engine, k_.from_row(c.from.index * page_tokens), v_.from_row(c.from.index * page_tokens),
           c.to.index * page_tokens, c.tokens);
  for (std::size_t n = 0; n < all.size(); ++n) {
    const auto& [id, position, count] = all[n];
    const Sequence& sequence = book.sequence(id);
    const auto entry = static_cast<std::int64_t>(n);
    for (std::int64_t at = position, end = 0; at < position + count; at = end) {
      end = std::min((at / page_tokens + 1) * page_tokens, position + count);
      const PageId page = sequence.pages[static_cast<std::size_t>(at / page_tokens)];
      if (page.rank == rank)
        copy(engine, k.from(entry, at - position, 0), v.from(entry, at - position, 0),
             page.index * page_tokens + at % page_tokens, end - at);
    }
  }
}

}  // namespace ringattn
