#include "cache/cache.h"

#include <array>
#include <memory>
#include <set>
#include <vector>

#include "api/barrier.h"
#include "api/context.h"
#include "api/structs.h"
#include "api/validate.h"
#include "cache/decode.h"

using namespace ringattn;
using namespace ringattn::api;

struct ra_kv_cache {
  std::shared_ptr<const void> context;  // whose it is: ra_context::identity
  int rank;                             // in that
  KvCache cache;
};

namespace {

constexpr std::int64_t most_pages = std::int64_t{1} << 24;

template <class Cache>
Cache &checked_cache(Cache *cache) {
  require(cache != nullptr, "cache is NULL; must come from ra_create_kv_cache");
  return *cache;
}

template <class Cache>
auto &checked_book(Cache *cache) {
  return checked_cache(cache).cache.book;
}

void require_backend(const ra_context &c) {
  if (c.rank.backend != RA_BACKEND_CPU)
    fail(RA_STATUS_NOT_SUPPORTED, "the context's backend is ", c.rank.backend,
         "; caches have RA_BACKEND_CPU = ", +RA_BACKEND_CPU);
}

void require_own(const ra_context &c, const ra_kv_cache &cache) {
  require(cache.context == c.identity,
          "cache is of another context; must be of this one, which ra_create_kv_cache or ra_move_kv_cache was given");
}

CacheShape to_shape(const ra_kv_cache_desc &d) {
  constexpr std::int64_t least_page_tokens = 16, most_page_tokens = 256;
  CacheShape shape;
  require_range("page_tokens", d.page_tokens, least_page_tokens, most_page_tokens);
  require_range("num_pages", d.num_pages, 1, most_pages);
  require_range("num_heads_kv", d.num_heads_kv, 1, most_heads);
  require_range("head_dim", d.head_dim, 1, most_head_dim);
  require_range("head_dim_v", d.head_dim_v, 0, most_head_dim);
  require(d.reserved == 0, "reserved is ", d.reserved, "; must be 0");
  shape.page_tokens = d.page_tokens;
  shape.num_pages = d.num_pages;
  shape.num_heads_kv = d.num_heads_kv;
  shape.head_dim = d.head_dim;
  shape.head_dim_v = d.head_dim_v == 0 ? d.head_dim : d.head_dim_v;
  shape.dtype = to_dtype("dtype", d.dtype);
  return shape;
}

// The part of a description that decoding has; the rest is refused.
Problem to_decoding(const ra_attention_desc &d, const CacheShape &cache) {
  Problem p = to_problem(d);
  const auto require_cache = [](const char *field, std::int64_t value, std::int64_t of_cache) {
    require(value == of_cache, field, " is ", value, "; must be ", of_cache, ", as in the cache");
  };
  const auto require_none = [](const char *field, bool is_none, const char *none) {
    require(is_none, field, " is set; must be ", none, " in ra_decode");
  };
  require_cache("num_heads_kv", p.num_heads_kv, cache.num_heads_kv);
  require_cache("head_dim", p.head_dim, cache.head_dim);
  require_cache("head_dim_v", p.head_dim_v, cache.head_dim_v);
  require_cache("dtype", d.dtype, static_cast<std::int32_t>(cache.dtype));
  require(d.seqlen_q >= 1, "seqlen_q is ", d.seqlen_q, "; must be at least 1 in ra_decode");
  require(d.seqlen_kv == -1, "seqlen_kv is ", d.seqlen_kv,
          "; must be -1 in ra_decode, where keys are those of the cache");
  require(d.sharding == RA_SHARDING_CONTIGUOUS, "sharding is ", d.sharding, "; must be ", +RA_SHARDING_CONTIGUOUS,
          " in ra_decode");
  require(p.bottom_right, "mask_alignment is ", d.mask_alignment, "; must be ", +RA_MASK_ALIGNMENT_BOTTOM_RIGHT,
          " in ra_decode");
  require_none("num_documents", d.num_documents == 0, "0");
  require_none("kv_lengths", d.kv_lengths == nullptr, "NULL");
  require_none("has_key_bias", d.has_key_bias == 0, "0");
  require_none("dropout_probability", d.dropout_probability == 0, "0");
  require_none("num_mask_slices", d.num_mask_slices == 0, "0");
  require_none("num_branches", d.num_branches == 0, "0");
  require_none("gather_bytes", d.gather_bytes == 0, "0");
  if (p.schedule == Schedule::automatic || p.schedule == Schedule::pass_q)
    require_none("num_chunks", d.num_chunks == 0, "0, but with RA_SCHEDULE_RING,");
  else if (p.schedule != Schedule::ring)
    fail(RA_STATUS_NOT_SUPPORTED, "schedule is ", d.schedule, "; ra_decode has RA_SCHEDULE_AUTO = ", +RA_SCHEDULE_AUTO,
         ", RA_SCHEDULE_RING = ", +RA_SCHEDULE_RING, " and RA_SCHEDULE_PASS_Q = ", +RA_SCHEDULE_PASS_Q);
  return p;
}

void append(ra_context &c, ra_kv_cache &cache, const ra_append_args *args) {
  const Phase whole_call(c.trace.get(), "append");
  Phase planning(c.trace.get(), "plan");
  const ra_append_args a = read(args, "args");
  const CacheShape &shape = cache.cache.shape();
  const PageBook &book = cache.cache.book;
  require_own(c, cache);
  require_range("num_sequences", a.num_sequences, 1, most_tokens);
  require_range("num_tokens", a.num_tokens, 0, most_tokens);
  require(a.sequences != nullptr, "sequences is NULL; must have ", a.num_sequences, " entries");
  std::vector<PageBook::Tokens> all;
  for (std::int64_t n = 0; n < a.num_sequences; ++n) {
    const Sequence &sequence = book.sequence(a.sequences[n], "sequences[", n, "]");
    const std::int64_t count = a.lengths == nullptr ? a.num_tokens : a.lengths[n];
    require(0 <= count && count <= a.num_tokens, "lengths[", n, "] is ", count,
            "; must be 0 .. num_tokens = ", a.num_tokens);
    all.push_back({a.sequences[n], a.positions == nullptr ? sequence.length : a.positions[n], count});
  }
  Ranges ranges;
  const Tensor k =
      ranges.input("k", a.k, shape.dtype, {a.num_sequences, a.num_tokens, shape.num_heads_kv, shape.head_dim});
  const Tensor v =
      ranges.input("v", a.v, shape.dtype, {a.num_sequences, a.num_tokens, shape.num_heads_kv, shape.head_dim_v});
  c.backend->check(ranges, a.stream);
  planning.end();
  const Phase packing(c.trace.get(), "pack");
  cache.cache.append(c.engine, c.rank.rank, all, k, v);
}

// What is asked for is in the cache. Depends on what agreeing ranks have in common, and so holds on all of them, or on none.
void require_tokens(const PageBook &book, const std::int64_t *sequences, const Problem &p) {
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const std::int64_t id = sequences[n];
    const Sequence &sequence = book.sequence(id, "sequences[", n, "]");
    require(sequence.length >= p.seqlen_q, "sequences[", n, "] is ", id, ", which has ", sequence.length,
            " tokens; must have at least seqlen_q = ", p.seqlen_q);
    if (const std::int64_t lost = book.find_lost(sequence, 0); lost < sequence.length)
      fail(RA_STATUS_INVALID_STATE, "sequences[", n, "] is ", id, ", which has lost tokens, from ", lost,
           " on; must be given them again (ra_append)");
  }
}

void decode(ra_context &c, const ra_kv_cache &cache, const ra_attention_desc *desc, const ra_decode_args *args) {
  const Phase whole_call(c.trace.get(), "decode");
  Phase planning(c.trace.get(), "plan");
  const ra_attention_desc d = read(desc, "desc");
  const ra_decode_args a = read(args, "args");
  const CacheShape &shape = cache.cache.shape();
  const PageBook &book = cache.cache.book;
  require_own(c, cache);
  const Problem p = to_decoding(d, shape);
  if (const std::string reason = c.engine.refusal(p); !reason.empty()) fail(RA_STATUS_NOT_SUPPORTED, reason);

  require(a.num_sequences == p.batch, "num_sequences is ", a.num_sequences, "; must be batch = ", p.batch);
  require(a.sequences != nullptr, "sequences is NULL; must have ", p.batch, " entries");
  Ranges ranges;
  DecodeCall call;
  call.q = ranges.input("q", a.q, p.dtype, {p.batch, p.seqlen_q, p.num_heads_q, p.head_dim});
  call.out = ranges.output("out", a.out, p.out_dtype, {p.batch, p.seqlen_q, p.num_heads_q, p.head_dim_v});
  ranges.output("lse", a.lse, {"lse_size", a.lse_size}, p.batch * p.num_heads_q * p.seqlen_q * size_of(DType::float32),
                alignof(float), true);
  call.lse = a.lse;
  require(p.num_sinks > 0 || a.sinks == nullptr, "sinks is set while num_sinks is 0; must be NULL");
  ranges.input("sinks", a.sinks, {"sinks_size", a.sinks_size}, p.num_heads_q * p.num_sinks * size_of(DType::float32),
               alignof(float), false);
  call.sinks = a.sinks;
  ranges.require_disjoint();
  c.backend->check(ranges, a.stream);

  Digest whose;
  for (std::int64_t n = 0; n < p.batch; ++n) whose.add(a.sequences[n]);
  const std::array arguments{book.history(), whose.value()};
  try {
    require_tokens(book, a.sequences, p);
  } catch (const Error &) {
    // Where caches differ others may go on, and wait for this rank. They do not if all of them refuse it.
    c.collective([&] { c.agree(Operation::decode, p, arguments); });
    throw;
  }
  const Decoding decoding(p, book, {a.sequences, static_cast<std::size_t>(p.batch)}, c.rank.rank);
  call.workspace = c.backend->workspace(decoding.workspace_bytes(c.engine), a.stream);
  planning.end();
  c.together(Operation::decode, p, arguments, a.stream, whole_call, [&] {
    return decoding.run({c.engine, *c.transport, c.trace.get()}, cache.cache, call);
  });
}

void move(ra_kv_cache &cache, ra_context &c, const std::int32_t *former_ranks) {
  PageBook &book = cache.cache.book;
  require(former_ranks != nullptr, "former_ranks is NULL; must have ", c.rank.world_size, " entries");
  const std::vector<std::int32_t> former(former_ranks, former_ranks + c.rank.world_size);
  std::set<std::int32_t> seen;
  for (std::size_t rank = 0; rank < former.size(); ++rank) {
    require(0 <= former[rank] && former[rank] < book.world_size(), "former_ranks[", rank, "] is ", former[rank],
            "; must be 0 .. ", book.world_size() - 1);
    require(seen.insert(former[rank]).second, "former_ranks[", rank, "] is ", former[rank],
            ", as one before it; each must be another");
  }
  const std::int32_t own = former[static_cast<std::size_t>(c.rank.rank)];
  require(own == cache.rank, "former_ranks[", c.rank.rank, "] is ", own, "; must be ", cache.rank,
          ", which this rank was when the cache was given to its context");
  book.move(former);
  cache.context = c.identity;
  cache.rank = c.rank.rank;
}

}  // namespace

extern "C" {

void ra_init_kv_cache_desc(ra_kv_cache_desc *desc, size_t struct_size) { init(desc, struct_size); }
void ra_init_append_args(ra_append_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_decode_args(ra_decode_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_kv_cache_statistics(ra_kv_cache_statistics *statistics, size_t struct_size) {
  init(statistics, struct_size);
}

ra_kv_cache *ra_create_kv_cache(ra_context *context, const ra_kv_cache_desc *desc, ra_error *error) {
  return guard_value<ra_kv_cache *>(error, nullptr, [&] {
    ra_context &c = checked(context);
    const CacheShape shape = to_shape(read(desc, "desc"));
    require_backend(c);
    return std::make_unique<ra_kv_cache>(
               ra_kv_cache{c.identity, c.rank.rank,
                           KvCache(shape, c.rank.world_size, c.backend->allocate(pool_bytes(shape)))})
        .release();
  });
}

void ra_destroy_kv_cache(ra_kv_cache *cache) { delete cache; }

int64_t ra_create_sequence(ra_kv_cache *cache, ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] { return checked_book(cache).create(); });
}

int64_t ra_fork_sequence(ra_kv_cache *cache, int64_t sequence, ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] { return checked_book(cache).fork(sequence); });
}

ra_status ra_truncate_sequence(ra_kv_cache *cache, int64_t sequence, int64_t length, ra_error *error) {
  return guard(error, [&] { checked_book(cache).truncate(sequence, length); });
}

ra_status ra_free_sequence(ra_kv_cache *cache, int64_t sequence, ra_error *error) {
  return guard(error, [&] { checked_book(cache).free(sequence); });
}

int64_t ra_get_sequence_length(const ra_kv_cache *cache, int64_t sequence, ra_error *error) {
  return guard_value<std::int64_t>(error, -1,
                                   [&] { return checked_book(cache).sequence(sequence, "sequence").length; });
}

int64_t ra_get_lost_tokens(const ra_kv_cache *cache, int64_t sequence, int64_t from, ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] {
    const PageBook &book = checked_book(cache);
    const Sequence &s = book.sequence(sequence, "sequence");
    require_range("from", from, 0, s.length);
    return book.find_lost(s, from);
  });
}

ra_status ra_append(ra_context *context, ra_kv_cache *cache, const ra_append_args *args, ra_error *error) {
  return guard(error, [&] {
    ra_context &c = checked(context);
    ra_kv_cache &to = checked_cache(cache);
    c.alone([&] { append(c, to, args); });
  });
}

ra_status ra_decode(ra_context *context, ra_kv_cache *cache, const ra_attention_desc *desc, const ra_decode_args *args,
                    ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    const ra_kv_cache &of = checked_cache(cache);
    c.exclusively([&] { decode(c, of, desc, args); });
  });
}

ra_status ra_move_kv_cache(ra_kv_cache *cache, ra_context *context, const int32_t *former_ranks, ra_error *error) {
  return guard(error, [&] {
    ra_kv_cache &moved = checked_cache(cache);
    ra_context &c = checked(context);
    require_backend(c);
    move(moved, c, former_ranks);
  });
}

ra_status ra_get_kv_cache_statistics(const ra_kv_cache *cache, ra_kv_cache_statistics *statistics, ra_error *error) {
  return guard(error, [&] {
    const ra_kv_cache &of = checked_cache(cache);
    const PageBook &book = of.cache.book;
    const Pool &own = book.pool(of.rank);
    ra_kv_cache_statistics s = defaults<ra_kv_cache_statistics>();
    s.num_sequences = std::ssize(book.sequences());
    for (const auto &[id, sequence] : book.sequences()) {
      s.num_tokens += sequence.length;
      for (const PageId &page : sequence.pages) s.lost_pages += page.is_lost() ? 1 : 0;
    }
    s.used_pages = own.size() - own.num_free();
    s.free_pages = s.least_free_pages = own.num_free();
    for (int rank = 0; rank < book.world_size(); ++rank)
      s.least_free_pages = std::min(s.least_free_pages, book.pool(rank).num_free());
    s.memory = pool_bytes(of.cache.shape());
    write(statistics, "statistics", s);
  });
}

}  // extern "C"
