#include "cache/keys.h"

#include <algorithm>

#include "plan/reach.h"

namespace ringattn {
namespace {

// A page of a unit, with its first so many tokens.
Piece piece_of(std::int64_t unit, std::int64_t position, std::int64_t row, std::int64_t tokens) {
  return {.unit = unit, .run = {position, tokens, tokens, tokens}, .first = 0, .length = tokens, .row = row};
}

// Whether the page behind a piece, of the same unit and rank, goes on with it. Then it is part of it.
bool join(Piece& piece, const Piece& page, std::int64_t page_tokens) {
  if (piece.row + piece.length != page.row || piece.length % page_tokens != 0) return false;
  Run& run = piece.run;
  const std::int64_t distance = page.run.start - run.position(run.length - 1) - 1 + page_tokens;  // from page to page
  if (run.length > page_tokens) {
    if (distance != (run.block > page_tokens ? page_tokens : run.stride)) return false;
  } else {
    run.stride = distance;
  }
  run.length += page.length;
  piece.length = run.length;
  if (distance == page_tokens) run.block = run.stride = run.length;  // no gaps: all is one block
  return true;
}

}  // namespace

Problem make_problem(const Problem& asked, std::span<const std::int64_t> lengths) {
  Problem p = asked;
  p.batch = 1;
  p.seqlen_q = p.seqlen_kv = 0;
  p.documents.clear();
  for (const std::int64_t length : lengths) {
    p.documents.push_back({p.seqlen_q, asked.seqlen_q, p.seqlen_kv, length});
    p.seqlen_q += asked.seqlen_q;
    p.seqlen_kv += length;
  }
  p.sharding = Sharding::zigzag;  // of queries: each rank's see about as many keys
  p.schedule = Schedule::ring;
  return p;
}

CachedKeys::CachedKeys(std::shared_ptr<const Problem> problem, const PageBook& book,
                       std::span<const std::int64_t> sequences)
    : problem_(std::move(problem)),
      documents_(problem_, book.world_size()),
      queries_(*problem_, Side::query, book.world_size()),
      held_(static_cast<std::size_t>(book.world_size())) {
  const std::int64_t page_tokens = book.page_tokens();
  for (std::size_t n = 0; n < sequences.size(); ++n) {
    const Sequence& sequence = book.sequence(sequences[n]);
    for (std::size_t page = 0; page < sequence.pages.size(); ++page) {
      const PageId id = sequence.pages[page];
      Held& held = held_[static_cast<std::size_t>(id.rank)];
      const std::int64_t position = static_cast<std::int64_t>(page) * page_tokens;
      const Piece piece = piece_of(static_cast<std::int64_t>(n), position, id.index * page_tokens,
                                   std::min(page_tokens, sequence.length - position));
      if (held.pieces.size() == held.first.back() || !join(held.pieces.back(), piece, page_tokens))
        held.pieces.push_back(piece);
    }
    for (Held& held : held_) {
      std::int64_t keys = held.before.back();
      for (std::size_t i = held.first.back(); i < held.pieces.size(); ++i) keys += held.pieces[i].length;
      held.first.push_back(held.pieces.size());
      held.before.push_back(keys);
    }
  }
}

std::span<const Piece> CachedKeys::pieces(int rank, std::int64_t unit) const {
  const Held& h = held(rank);
  const auto n = static_cast<std::size_t>(unit);
  return std::span(h.pieces).subspan(h.first[n], h.first[n + 1] - h.first[n]);
}

std::int64_t CachedKeys::longest_piece(Side side, int rank) const {
  if (side == Side::query) return documents_.longest_piece(side, rank);
  std::int64_t longest = 0;
  for (const Piece& piece : held(rank).pieces) longest = std::max(longest, piece.length);
  return longest;
}

Domain::Units CachedKeys::units(Side side, int rank, std::int64_t begin, std::int64_t end) const {
  if (side == Side::query) return documents_.units(side, rank, begin, end);
  if (begin == end) return {0, 0};
  const std::vector<std::int64_t>& before = held(rank).before;
  const auto unit_of = [&](std::int64_t row) {
    return std::upper_bound(before.begin(), before.end(), row) - before.begin() - 1;
  };
  return {unit_of(begin), unit_of(end - 1) + 1};
}

Share CachedKeys::share(Side side, int rank, std::int64_t unit) const {
  if (side == Side::query) return documents_.share(side, rank, unit);
  Share share;
  for (const Piece& piece : pieces(rank, unit)) share.add(piece);
  return share;
}

Share CachedKeys::deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const {
  if (side == Side::query) return documents_.deal(side, rank, unit, begin, end);
  Share share;
  std::int64_t row = first_row(side, rank, unit);
  for (Piece piece : pieces(rank, unit)) {
    const std::int64_t from = std::clamp<std::int64_t>(begin - row, 0, piece.length),
                       to = std::clamp<std::int64_t>(end - row, 0, piece.length);
    row += piece.length;
    piece.first += from;
    piece.row += from;
    piece.length = to - from;
    share.add(piece);
  }
  return share;
}

std::int64_t CachedKeys::add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                                    RankSet& seeing) const {
  std::int64_t looks = 0;
  for (const std::int64_t unit : units(Side::key_value, owner, begin, end)) {
    if (seeing.is_full()) break;
    ++looks;
    const WorkItem item = this->item(unit);
    const std::int64_t queries = problem_->documents[static_cast<std::size_t>(unit)].q_length;
    for (const Piece& keys : deal(Side::key_value, owner, unit, begin, end))
      // Page by page: find_seeing tells who sees several blocks only where queries are in such blocks as well.
      for (std::int64_t at = 0, next = 0; at < keys.length; at = next) {
        next = std::min(keys.length, ((keys.first + at) / keys.run.block + 1) * keys.run.block - keys.first);
        Piece page = keys;
        page.first += at;
        page.length = next - at;
        for (const Positions& seen : find_seeing(item, queries, page, kv_length))
          queries_.add_owners(unit, {seen.begin, 1, seen.end - seen.begin}, seeing);
      }
  }
  return looks;
}

}  // namespace ringattn
