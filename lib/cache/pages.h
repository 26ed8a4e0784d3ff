// Which pages have the tokens of which sequence: the book of a KV cache (cache.h), without the memory that it is about.
//
//   sequence     a list of pages, and how many tokens they hold; page i has those from i * page_tokens on
//   page         a place in the pool of one rank. Sequences that were forked share pages; a page is free when nobody has it
//
// Every rank has the whole book and does the same things to it in the same order, so that it is the same everywhere: who has a page, and
// whose pool is full, is known without a word. What the ranks have done to it is one number (history), by which they find out if they have
// not. Page i of a sequence goes to rank (base + i) mod P, where base is the sequence's number, or that of the one that it was forked from: long
// sequences are spread evenly, and short ones begin at different ranks.
//
// A page that more than one sequence has is never written to. Who appends to one that is not full gets a copy, on the same rank, so that
// no token ever travels.
//
// In its pool a page lies behind the one that the sequence has there before it, if that is free, else where most is free: keys that lie
// side by side are attended side by side (keys.h).
//
// Everything is refused or done: what throws has changed nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "core/digest.h"
#include "core/error.h"

namespace ringattn {

struct PageId {
  static constexpr std::int32_t lost = -1;  // as a rank: it was on one that is gone

  std::int32_t rank = lost;
  std::int32_t index = 0;  // in the rank's pool
  bool is_lost() const { return rank == lost; }
  friend bool operator==(const PageId&, const PageId&) = default;
};

// How many sequences have each page of one rank.
class Pool {
 public:
  explicit Pool(std::int64_t pages);

  std::int64_t size() const { return std::ssize(uses_); }
  std::int64_t num_free() const { return num_free_; }
  std::int32_t uses(std::int32_t page) const { return uses_[static_cast<std::size_t>(page)]; }

  // A free page, of which there is one: `wanted` if that is, else where a stretch of free ones begins, else the first.
  std::int32_t take(std::int32_t wanted);
  void share(std::int32_t page) { ++uses_[static_cast<std::size_t>(page)]; }
  void release(std::int32_t page);

 private:
  static constexpr std::int32_t word_bits = 64;  // the length of a stretch
  std::int32_t find(std::int32_t wanted) const;
  bool is_free(std::int32_t page) const {
    return 0 <= page && page < size() &&
           (free_[static_cast<std::size_t>(page / word_bits)] >> (page % word_bits) & 1) != 0;
  }

  std::vector<std::int32_t> uses_;
  std::vector<std::uint64_t> free_;  // a bit for each page
  std::int64_t num_free_;
};

struct Sequence {
  std::int64_t base = 0;
  std::int64_t length = 0;
  std::vector<PageId> pages = {};
};

class PageBook {
 public:
  PageBook(int world_size, std::int64_t page_tokens, std::int64_t num_pages);

  int world_size() const { return static_cast<int>(pools_.size()); }
  std::int64_t page_tokens() const { return page_tokens_; }
  const Pool& pool(int rank) const { return pools_[static_cast<std::size_t>(rank)]; }
  const std::map<std::int64_t, Sequence>& sequences() const { return sequences_; }
  std::int64_t history() const { return history_.value(); }

  // Throws if there is no such sequence; `field` is whatever names it.
  template <class... Field>
  const Sequence& sequence(std::int64_t id, const Field&... field) const {
    const auto found = sequences_.find(id);
    require(found != sequences_.end(), field..., " is ", id, "; ",
            0 <= id && id < next_ ? "was freed, and must be one that is there"
                                  : "must come from ra_create_sequence or ra_fork_sequence");
    return found->second;
  }
  // The first token from position `from` on that is on a lost page, or the sequence's length.
  std::int64_t find_lost(const Sequence& sequence, std::int64_t from) const;

  std::int64_t create();
  std::int64_t fork(std::int64_t id);
  void truncate(std::int64_t id, std::int64_t length);
  void free(std::int64_t id);

  // Tokens of a sequence from `position` on: behind its last one, or in the place of lost ones.
  struct Tokens {
    std::int64_t sequence = 0;
    std::int64_t position = 0;
    std::int64_t count = 0;
  };
  // Tokens at the front of a page that are now also those of another, on the same rank.
  struct Copy {
    PageId from, to;
    std::int64_t tokens = 0;
  };
  // Gives tokens of sequences, each another one, their pages. What is returned has to be copied before any of them is written.
  std::vector<Copy> extend(std::span<const Tokens> all);

  // From now on rank r is the one that was former[r], each another one; pages of all others are lost.
  void move(std::span<const std::int32_t> former);

 private:
  Pool& changed(std::int32_t rank) { return pools_[static_cast<std::size_t>(rank)]; }
  Sequence& find(std::int64_t id) { return const_cast<Sequence&>(sequence(id, "sequence")); }
  std::int64_t pages_of(std::int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  std::int32_t rank_of(const Sequence& sequence, std::int64_t page) const {
    return static_cast<std::int32_t>((sequence.base + page) % world_size());
  }
  // For that page of the sequence; there is a free one.
  PageId take(std::int32_t rank, const Sequence& sequence, std::size_t page);
  std::int64_t add(Sequence sequence);
  void require_room(std::span<const Tokens> all) const;
  void release(std::span<const PageId> pages);
  void record(int operation, std::initializer_list<std::int64_t> numbers);

  std::int64_t page_tokens_;
  std::vector<Pool> pools_;  // of each rank
  std::map<std::int64_t, Sequence> sequences_;
  std::int64_t next_ = 0;  // number of the next sequence
  Digest history_;
};

}  // namespace ringattn
