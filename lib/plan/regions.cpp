#include "plan/regions.h"

#include <algorithm>
#include <numeric>
#include <ranges>
#include <utility>

#include "core/divide.h"
#include "plan/reach.h"

namespace ringattn {
namespace {

// ---------------------------------------------------------------- what is kept

// Of the positions from `position` on, `count` side by side, stored from `row` on.
void add_kept_block(std::int64_t position, std::int64_t count, std::int64_t row, const Progression& region,
                    std::int64_t unit, Share& kept) {
  const std::int64_t first = region.first_from(position),
                     end = std::min(region.count, region.first_from(position + count));
  if (first >= end) return;
  kept.add({.unit = unit,
            .run = {.start = first, .block = end - first, .stride = end - first, .length = end - first},
            .first = 0,
            .length = end - first,
            .row = row + region.position(first) - position},
           region.spacing);
}

}  // namespace

// A shard's blocks of positions are single, or `block` of them every `stride`. Of the latter each keeps the same places if the block is
// a multiple of the spacing, and the kept ones are blocks again. Else they are either taken place by place of the block, each of
// which is kept in every so many blocks, or block by block, whichever are fewer.
void add_kept(const Piece& piece, const Progression& region, std::int64_t unit, Share& kept) {
  if (region.count == 0) return;
  const Run& run = piece.run;
  const std::int64_t base = region.start, spacing = region.spacing;
  const std::int64_t end_position = region.position(region.count - 1) + 1;
  const std::int64_t first = std::max(piece.first, run.count_below(base)),
                     end = std::min(piece.first + piece.length, run.count_below(end_position));
  if (first >= end) return;
  const std::int64_t row = piece.row - piece.first;  // of member 0
  if (first / run.block == (end - 1) / run.block)
    return add_kept_block(run.position(first), end - first, row + first, region, unit, kept);
  if (run.block % spacing == 0) {
    const std::int64_t offset = modulo(base - run.start, spacing);
    const auto before = [&](std::int64_t member) { return divide_up(member - offset, spacing); };  // kept ones
    const std::int64_t begin = before(first), count = before(end) - begin;
    kept.add({.unit = unit,
              .run = {.start = divide_down(run.start + offset - base, spacing),
                      .block = run.block / spacing,
                      .stride = run.stride / spacing,
                      .length = before(end)},
              .first = begin,
              .length = count,
              .row = row + offset + begin * spacing},
             spacing);
    return;
  }
  const std::int64_t first_block = first / run.block, end_block = (end - 1) / run.block + 1;
  if (end_block - first_block < run.block) {
    for (std::int64_t block = first_block; block < end_block; ++block) {
      const std::int64_t from = std::max(first, block * run.block), to = std::min(end, (block + 1) * run.block);
      add_kept_block(run.position(from), to - from, row + from, region, unit, kept);
    }
    return;
  }
  const std::int64_t period = spacing / std::gcd(run.stride, spacing);  // of blocks
  for (std::int64_t place = 0; place < run.block; ++place) {
    std::int64_t block = first_block + (first_block * run.block + place < first ? 1 : 0);
    const std::int64_t last = std::min(block + period, end_block);
    const auto position = [&] { return run.start + block * run.stride + place; };
    while (block < last && modulo(position() - base, spacing) != 0) ++block;
    if (block == last || block * run.block + place >= end) continue;
    const std::int64_t count = (end - 1 - (block * run.block + place)) / (period * run.block) + 1;
    kept.add({.unit = unit,
              .run = {.start = (position() - base) / spacing,
                      .block = 1,
                      .stride = run.stride * period / spacing,
                      .length = count},
              .first = 0,
              .length = count,
              .row = row + block * run.block + place},
             period * run.block);
  }
}

// ---------------------------------------------------------------- regions

LayerRegions::LayerRegions(std::shared_ptr<const Problem> problem, const std::vector<const RegionGroup*>& groups,
                           int world_size)
    : problem_(std::move(problem)),
      queries_(*problem_, Side::query, world_size),
      keys_(*problem_, Side::key_value, world_size),
      owners_(static_cast<std::size_t>(world_size)) {
  std::size_t regions = 0, patterns = 1, counts = 0;
  for (const RegionGroup* const group : groups) {
    regions += group->regions.size();
    patterns += group->patterns.size();
    counts += group->owners.size() * (group->regions.size() + 1);
  }
  regions_.reserve(regions);
  patterns_.reserve(patterns);
  for (std::vector<std::int64_t>& before : before_) before.reserve(counts);

  for (const RegionGroup* const group : groups) {
    const Owner owner{std::ssize(patterns_), std::ssize(patterns_) + std::ssize(group->patterns), 0};
    for (const int rank : group->owners) owners_[static_cast<std::size_t>(rank)] = owner;
    for (Pattern p : group->patterns) {
      p.first_region += std::ssize(regions_);
      patterns_.push_back(p);
    }
    regions_.insert(regions_.end(), group->regions.begin(), group->regions.end());
  }
  patterns_.push_back({.first_region = std::ssize(regions_)});
  for (auto next = patterns_.begin() + 1; next != patterns_.end(); ++next) {
    const Pattern& p = *std::prev(next);
    next->first_unit = p.first_unit + p.times * size(p);
  }
  for (const RegionGroup* const group : groups)
    for (const int rank : group->owners) {
      owners_[static_cast<std::size_t>(rank)].first_count = std::ssize(before_[0]);
      for (const Side side : {Side::query, Side::key_value}) count_rows(side, rank);
    }
}

void LayerRegions::count_rows(Side side, int rank) {
  std::vector<std::int64_t>& before = before_[static_cast<std::size_t>(side)];
  std::int64_t rows = 0;
  for (std::int64_t n = owner(rank).first_pattern; n < owner(rank).end_pattern; ++n) {
    std::int64_t of_pattern = 0;
    for (std::int64_t r = pattern(n).first_region; r < pattern(n + 1).first_region; ++r) {
      before.push_back(rows + of_pattern);
      for (const Piece& piece : find_share(side, rank, regions_[static_cast<std::size_t>(r)], 0))
        of_pattern += piece.length;
    }
    rows += pattern(n).times * of_pattern;
  }
  before.push_back(rows);
}

std::int64_t LayerRegions::rows(Side side, int rank) const {
  return owns_any(rank) ? before(side, rank, pattern(owner(rank).end_pattern).first_region) : 0;
}

std::int64_t LayerRegions::longest_piece(Side side, int rank) const {
  std::int64_t longest = 0;
  for (std::int64_t n = owner(rank).first_pattern; n < owner(rank).end_pattern; ++n) {
    const Pattern& p = pattern(n);
    const std::int64_t end = before(side, rank, p.first_region) + rows_of(side, rank, p);
    for (std::int64_t r = p.first_region, last = pattern(n + 1).first_region - 1; r <= last; ++r)
      longest = std::max(longest, (r == last ? end : before(side, rank, r + 1)) - before(side, rank, r));
  }
  return longest;
}

const Pattern& LayerRegions::pattern_of(std::int64_t unit) const {
  return *std::prev(
      std::partition_point(patterns_.begin(), patterns_.end(), [&](const Pattern& p) { return p.first_unit <= unit; }));
}

Region LayerRegions::region(std::int64_t unit) const {
  const Pattern& p = pattern_of(unit);
  const std::int64_t n = unit - p.first_unit, moved = n / size(p) * p.distance;
  Region r = regions_[static_cast<std::size_t>(p.first_region + n % size(p))];
  r.q_base += moved;
  r.kv_base += moved;
  return r;
}

std::int64_t LayerRegions::first_row(Side side, int rank, std::int64_t unit) const {
  if (!owns_any(rank) || unit < pattern(owner(rank).first_pattern).first_unit) return 0;
  if (unit >= pattern(owner(rank).end_pattern).first_unit) return rows(side, rank);
  const Pattern& p = pattern_of(unit);
  const std::int64_t n = unit - p.first_unit;
  return before(side, rank, p.first_region + n % size(p)) + n / size(p) * rows_of(side, rank, p);
}

// The one that has the row: of several that begin with it the last.
std::int64_t LayerRegions::unit_of(Side side, int rank, std::int64_t row) const {
  const auto last_from = [&](std::int64_t first, std::int64_t end, auto&& begins) {
    const std::ranges::iota_view<std::int64_t, std::int64_t> all(first, end);
    return *std::ranges::partition_point(all, [&](std::int64_t n) { return begins(n) <= row; }) - 1;
  };
  const Pattern& p = pattern(last_from(owner(rank).first_pattern, owner(rank).end_pattern,
                                       [&](std::int64_t n) { return before(side, rank, pattern(n).first_region); }));
  const std::int64_t times = (row - before(side, rank, p.first_region)) / rows_of(side, rank, p);
  const std::int64_t region = last_from(p.first_region, p.first_region + size(p), [&](std::int64_t r) {
    return before(side, rank, r) + times * rows_of(side, rank, p);
  });
  return p.first_unit + times * size(p) + region - p.first_region;
}

Domain::Units LayerRegions::units(Side side, int rank, std::int64_t begin, std::int64_t end) const {
  if (begin == end) return {0, 0};
  return {unit_of(side, rank, begin), unit_of(side, rank, end - 1) + 1};
}

Share LayerRegions::find_share(Side side, int rank, const Region& region, std::int64_t unit) const {
  Share kept;
  for (const Piece& piece : of(side).share(rank, region.document)) add_kept(piece, region.kept(side), unit, kept);
  return kept;
}

Share LayerRegions::share(Side side, int rank, std::int64_t unit) const {
  return find_share(side, rank, region(unit), unit);
}

// So much of each piece as of all of them, by halves.
Share LayerRegions::deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const {
  const Share whole = share(side, rank, unit);
  const std::int64_t row = first_row(side, rank, unit);
  std::int64_t all = 0;
  for (const Piece& piece : whole) all += piece.length;
  const std::int64_t from = std::clamp<std::int64_t>(begin - row, 0, all),
                     to = std::clamp<std::int64_t>(end - row, 0, all);
  Share dealt;
  // Of pieces first .. last - 1, `length` rows in all, rows a .. b - 1 in the order of dealing.
  const auto deal_some = [&](const auto& self, std::size_t first, std::size_t last, std::int64_t length, std::int64_t a,
                             std::int64_t b) -> void {
    if (a == b) return;
    if (last - first == 1) {
      SpacedPiece piece = whole[first];
      piece.first += a;
      piece.length = b - a;
      piece.row += a * piece.step;
      return dealt.add(piece);
    }
    const std::size_t middle = first + (last - first) / 2;
    std::int64_t front = 0;
    for (std::size_t i = first; i < middle; ++i) front += whole[i].length;
    const auto of_front = [&](std::int64_t rows) {
      const double part = static_cast<double>(front) * static_cast<double>(rows) / static_cast<double>(length);
      return std::clamp(static_cast<std::int64_t>(part), std::max<std::int64_t>(0, rows - (length - front)),
                        std::min(front, rows));
    };
    self(self, first, middle, front, of_front(a), of_front(b));
    self(self, middle, last, length - front, a - of_front(a), b - of_front(b));
  };
  if (!whole.empty()) deal_some(deal_some, 0, whole.size(), all, from, to);
  return dealt;
}

WorkItem LayerRegions::item(std::int64_t unit) const { return item_of(region(unit)); }

WorkItem LayerRegions::item_of(const Region& r) const {
  const Document& document = problem_->documents[static_cast<std::size_t>(r.document)];
  WorkItem item;
  item.band = r.band;
  item.q_begin = document.q_begin + r.q_base;
  item.kv_begin = document.kv_begin + r.kv_base;
  item.spacing = r.spacing;
  item.shift = r.shift;
  return item;
}

// Of a pattern's units the first may be cut short. Those of the turn behind it are not, and none further on is seen by anybody else:
// their owners are the same, and padding comes nearer.
std::int64_t LayerRegions::add_seeing(int owner, std::int64_t begin, std::int64_t end, std::int64_t kv_length,
                                      RankSet& seeing) const {
  std::int64_t looks = 0;
  const Units held = units(Side::key_value, owner, begin, end);
  for (std::int64_t unit = *held.begin(), next = 0; unit < *held.end(); unit = next) {
    const Pattern& p = pattern_of(unit);
    next = std::min(*held.end(), (&p + 1)->first_unit);
    for (const std::int64_t last = std::min(next, unit + 1 + size(p)); unit < last; ++unit) {
      if (seeing.is_full()) return looks;
      ++looks;
      const Region r = region(unit);
      for (const Piece& keys : deal(Side::key_value, owner, unit, begin, end))
        for (const Positions& queries : find_seeing(item_of(r), r.q_length, keys, kv_length))
          queries_.add_owners(r.document, r.kept(Side::query).part(queries.begin, queries.end), seeing);
    }
  }
  return looks;
}

}  // namespace ringattn
