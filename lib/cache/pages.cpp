#include "cache/pages.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <set>
#include <utility>

namespace ringattn {

Pool::Pool(std::int64_t pages)
    : uses_(static_cast<std::size_t>(pages)),
      free_(static_cast<std::size_t>((pages + word_bits - 1) / word_bits), ~std::uint64_t{0}),
      num_free_(pages) {
  if (pages % word_bits != 0) free_.back() = (std::uint64_t{1} << pages % word_bits) - 1;
}

std::int32_t Pool::find(std::int32_t wanted) const {
  if (is_free(wanted)) return wanted;
  const auto begin = [&](auto word) { return static_cast<std::int32_t>(word - free_.begin()) * word_bits; };
  const auto stretch = std::find(free_.begin(), free_.end(), ~std::uint64_t{0});
  if (stretch != free_.end()) return begin(stretch);
  const auto some = std::find_if(free_.begin(), free_.end(), [](std::uint64_t word) { return word != 0; });
  return begin(some) + std::countr_zero(*some);
}

std::int32_t Pool::take(std::int32_t wanted) {
  const std::int32_t page = find(wanted);
  free_[static_cast<std::size_t>(page / word_bits)] &= ~(std::uint64_t{1} << page % word_bits);
  uses_[static_cast<std::size_t>(page)] = 1;
  --num_free_;
  return page;
}

void Pool::release(std::int32_t page) {
  if (--uses_[static_cast<std::size_t>(page)] > 0) return;
  free_[static_cast<std::size_t>(page / word_bits)] |= std::uint64_t{1} << page % word_bits;
  ++num_free_;
}

PageBook::PageBook(int world_size, std::int64_t page_tokens, std::int64_t num_pages)
    : page_tokens_(page_tokens), pools_(static_cast<std::size_t>(world_size), Pool(num_pages)) {
  record(0, {world_size, page_tokens, num_pages});
}

void PageBook::record(int operation, std::initializer_list<std::int64_t> numbers) {
  history_.add(operation);
  for (const std::int64_t number : numbers) history_.add(number);
}

std::int64_t PageBook::find_lost(const Sequence& sequence, std::int64_t from) const {
  for (std::int64_t page = from / page_tokens_; page < std::ssize(sequence.pages); ++page)
    if (sequence.pages[static_cast<std::size_t>(page)].is_lost()) return std::max(from, page * page_tokens_);
  return sequence.length;
}

std::int64_t PageBook::add(Sequence sequence) {
  sequences_.emplace_hint(sequences_.end(), next_, std::move(sequence));
  return next_++;
}

std::int64_t PageBook::create() {
  const std::int64_t id = add({.base = next_});
  record(1, {});
  return id;
}

std::int64_t PageBook::fork(std::int64_t id) {
  const std::int64_t other = add(find(id));
  for (const PageId& page : sequences_.find(other)->second.pages)
    if (!page.is_lost()) changed(page.rank).share(page.index);
  record(2, {id});
  return other;
}

void PageBook::release(std::span<const PageId> pages) {
  for (const PageId& page : pages)
    if (!page.is_lost()) changed(page.rank).release(page.index);
}

void PageBook::truncate(std::int64_t id, std::int64_t length) {
  Sequence& s = find(id);
  require(0 <= length && length <= s.length, "length is ", length, "; must be 0 .. ", s.length,
          ", the tokens of sequence ", id);
  const auto kept = static_cast<std::size_t>(pages_of(length));
  release(std::span(s.pages).subspan(kept));
  s.pages.resize(kept);
  s.length = length;
  record(3, {id, length});
}

void PageBook::free(std::int64_t id) {
  release(find(id).pages);
  sequences_.erase(id);
  record(4, {id});
}

PageId PageBook::take(std::int32_t rank, const Sequence& sequence, std::size_t page) {
  const auto turn = static_cast<std::size_t>(world_size());
  const PageId before = page >= turn ? sequence.pages[page - turn] : PageId{};
  return {rank, changed(rank).take(before.rank == rank ? before.index + 1 : -1)};
}

// Says why, if the tokens have no place.
void PageBook::require_room(std::span<const Tokens> all) const {
  std::vector<std::int64_t> needed(pools_.size());                        // pages of each rank
  std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> leaving;  // of a shared page, those who get a copy
  std::set<std::int64_t> seen;
  const std::int64_t all_pages = world_size() * pool(0).size();
  for (std::size_t n = 0; n < all.size(); ++n) {
    const auto& [id, position, count] = all[n];
    const Sequence& s = sequence(id, "sequences[", n, "]");
    require(seen.insert(id).second, "sequences[", n, "] is ", id, ", as one before it; each must be another");
    const bool is_behind = position == s.length;
    require(is_behind || (0 <= position && position < s.length && find_lost(s, position) == position &&
                          position % page_tokens_ == 0),
            "positions[", n, "] is ", position, "; must be ", s.length, ", the tokens of sequence ", id,
            ", or the first token of a page that is lost");
    const std::int64_t end = position + count;
    if (count > 0 && pages_of(end) > all_pages)
      fail(RA_STATUS_OUT_OF_MEMORY, "sequences[", n, "] is ", id, ", which needs ", pages_of(end), " pages for ", end,
           " tokens; all ranks together have ", all_pages);
    if (!is_behind) {
      require(end == s.length || (end < s.length && end % page_tokens_ == 0), "lengths[", n, "] is ", count,
              "; must be all lost tokens of a page from positions[", n, "] = ", position, " on, or of several");
      for (std::int64_t page = position / page_tokens_; page < pages_of(end); ++page)
        require(s.pages[static_cast<std::size_t>(page)].is_lost(), "lengths[", n, "] is ", count,
                "; must not go on to token ", page * page_tokens_, " of sequence ", id, ", which is not lost");
    } else if (const std::int64_t partial = s.length % page_tokens_; count > 0 && partial != 0) {
      const PageId last = s.pages.back();
      if (last.is_lost())
        fail(RA_STATUS_INVALID_STATE, "sequences[", n, "] is ", id, ", whose last ", partial,
             " tokens are lost; must be given again, or cut off, before others are appended");
      std::int32_t& left = leaving[{last.rank, last.index}];
      if (pool(last.rank).uses(last.index) - left > 1) {
        ++left;
        ++needed[static_cast<std::size_t>(last.rank)];
      }
    }
    for (std::int64_t page = pages_of(position); page < pages_of(end); ++page)
      ++needed[static_cast<std::size_t>(rank_of(s, page))];
  }
  for (int rank = 0; rank < world_size(); ++rank) {
    const std::int64_t free = pool(rank).num_free();
    const std::int64_t wanted = needed[static_cast<std::size_t>(rank)];
    if (wanted > free)
      fail(RA_STATUS_OUT_OF_MEMORY, "rank ", rank, " has ", free, " free pages of ", pool(rank).size(), "; ", wanted,
           " are needed");
  }
}

std::vector<PageBook::Copy> PageBook::extend(std::span<const Tokens> all) {
  require_room(all);
  std::vector<Copy> copies;
  copies.reserve(all.size());
  for (const auto& [id, position, count] : all) {
    std::vector<PageId>& pages = find(id).pages;
    const auto needed = static_cast<std::size_t>(pages_of(position + count));
    if (needed > pages.capacity()) pages.reserve(std::max(needed, 2 * pages.capacity()));
  }
  // From here on nothing throws.
  for (const auto& [id, position, count] : all) {
    Sequence& s = find(id);
    record(5, {id, position, count});
    if (const std::int64_t partial = position % page_tokens_; count > 0 && partial != 0) {
      PageId& last = s.pages.back();
      if (pool(last.rank).uses(last.index) > 1) {
        const PageId own = take(last.rank, s, s.pages.size() - 1);
        copies.push_back({last, own, partial});
        changed(last.rank).release(last.index);
        last = own;
      }
    }
    s.length = std::max(s.length, position + count);
    s.pages.resize(static_cast<std::size_t>(pages_of(s.length)));
    for (std::int64_t page = pages_of(position); page < pages_of(position + count); ++page) {
      const auto n = static_cast<std::size_t>(page);
      s.pages[n] = take(rank_of(s, page), s, n);
    }
  }
  return copies;
}

void PageBook::move(std::span<const std::int32_t> former) {
  std::vector<std::int32_t> now(pools_.size(), PageId::lost);  // of each former rank
  std::vector<Pool> kept;
  kept.reserve(former.size());
  for (std::size_t rank = 0; rank < former.size(); ++rank)
    now[static_cast<std::size_t>(former[rank])] = static_cast<std::int32_t>(rank);
  for (const std::int32_t rank : former) kept.push_back(std::move(changed(rank)));
  pools_ = std::move(kept);
  for (auto& [id, sequence] : sequences_)
    for (PageId& page : sequence.pages)
      if (!page.is_lost()) page.rank = now[static_cast<std::size_t>(page.rank)];
  history_.add(6);
  for (const std::int32_t rank : former) history_.add(rank);
}

}  // namespace ringattn
