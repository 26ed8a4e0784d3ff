#include "plan/layer.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <ranges>
#include <tuple>
#include <utility>

#include "plan/reach.h"

namespace ringattn {
namespace {

std::int64_t divide_down(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return -divide_down(-a, b); }
std::int64_t modulo(std::int64_t a, std::int64_t b) { return a - divide_down(a, b) * b; }

// ---------------------------------------------------------------- what is kept

// Of the positions from `position` on, `count` side by side, stored from `row` on.
void add_kept_block(std::int64_t position, std::int64_t count, std::int64_t row, const Progression& region,
                    std::int64_t unit, Share& kept) {
  const std::int64_t first = region.first_from(position),
                     end = std::min(region.count, region.first_from(position + count));
  if (first >= end) return;
  kept.add({.document = unit,
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
    kept.add({.document = unit,
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
    kept.add({.document = unit,
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

// ---------------------------------------------------------------- layers

namespace {

// Queries and keys of the whole sequence that may see each other, between diagonals: lower <= key - query <= upper.
struct Rectangle {
  std::int64_t q_begin, q_end, kv_begin, kv_end;
  Band band;
};

// Slices that have all pairs of their rectangles, those that are side by side as one: a prefix that many documents see is one rectangle.
std::vector<MaskSlice> join_full(std::vector<MaskSlice> slices) {
  const auto join = [&](auto MaskSlice::*begin, auto MaskSlice::*end, auto MaskSlice::*other_begin,
                        auto MaskSlice::*other_end) {
    const auto key = [&](const MaskSlice& s) {
      return std::tuple(s.kind, s.*other_begin, s.*other_end, s.*begin, s.*end);
    };
    std::ranges::sort(slices, {}, key);
    std::size_t count = 0;
    for (const MaskSlice& s : slices) {
      MaskSlice* const last = count == 0 ? nullptr : &slices[count - 1];
      if (last != nullptr && s.kind == SliceKind::full && last->kind == s.kind &&
          last->*other_begin == s.*other_begin && last->*other_end == s.*other_end && last->*end == s.*begin)
        last->*end = s.*end;
      else
        slices[count++] = s;
    }
    slices.resize(count);
  };
  std::erase_if(slices, [](const MaskSlice& s) { return s.q_begin >= s.q_end || s.kv_begin >= s.kv_end; });
  join(&MaskSlice::q_begin, &MaskSlice::q_end, &MaskSlice::kv_begin, &MaskSlice::kv_end);
  join(&MaskSlice::kv_begin, &MaskSlice::kv_end, &MaskSlice::q_begin, &MaskSlice::q_end);
  return slices;
}

// Rectangles that share no query and no key, as few lists as come of trying them in turn, where there are many the latest only.
std::vector<std::vector<Rectangle>> find_rectangles(const Problem& p) {
  if (p.slices.empty()) return {{{0, p.seqlen_q, 0, p.seqlen_kv, {}}}};
  constexpr std::ptrdiff_t most_tries = 64;
  struct Group {
    std::map<std::int64_t, std::int64_t> q, kv;  // begin -> end
    std::vector<Rectangle> members;
  };
  const auto is_free = [](const std::map<std::int64_t, std::int64_t>& taken, std::int64_t begin, std::int64_t end) {
    const auto next = taken.lower_bound(begin);
    return (next == taken.end() || next->first >= end) && (next == taken.begin() || std::prev(next)->second <= begin);
  };
  std::vector<Group> groups;
  for (const MaskSlice& s : join_full(p.slices)) {
    Rectangle r{s.q_begin, s.q_end, s.kv_begin, s.kv_end, {}};
    if (s.kind == SliceKind::causal || s.kind == SliceKind::bidirectional_causal) r.band.upper = s.kv_end - s.q_end;
    if (s.kind == SliceKind::inverse_causal || s.kind == SliceKind::bidirectional_causal)
      r.band.lower = s.kv_begin - s.q_begin;
    auto group = std::find_if(
        groups.end() - std::min(most_tries, std::ssize(groups)), groups.end(),
        [&](const Group& g) { return is_free(g.q, s.q_begin, s.q_end) && is_free(g.kv, s.kv_begin, s.kv_end); });
    if (group == groups.end()) group = groups.insert(groups.end(), Group{});
    group->q[s.q_begin] = s.q_end;
    group->kv[s.kv_begin] = s.kv_end;
    group->members.push_back(r);
  }
  std::vector<std::vector<Rectangle>> lists;
  for (Group& group : groups) lists.push_back(std::move(group.members));
  return lists;
}

// Query heads first, first + step, ..., `count` of them, as sets that share heads of K and V evenly.
void add_head_sets(const Problem& p, std::int64_t first, std::int64_t step, std::int64_t count,
                   std::vector<HeadSet>& sets) {
  const std::int64_t group = p.group(), end = first + count * step;
  if (group == 1) {
    sets.push_back({first, step, first, step, count, 1});
    return;
  }
  for (std::int64_t head = first; head < end;) {
    const std::int64_t kv = head / group;
    if (step == 1 && head % group == 0 && end - head >= group) {  // all heads of several
      const std::int64_t whole = (end - head) / group;
      sets.push_back({head, 1, kv, 1, whole, group});
      head += whole * group;
      continue;
    }
    const std::int64_t own = (std::min(end, (kv + 1) * group) - head + step - 1) / step;  // some heads of one
    sets.push_back({head, step, kv, 1, 1, own});
    head += own * step;
  }
}

// The heads that have one phase, for every phase that some head has.
struct Phase {
  std::int64_t number;
  std::vector<HeadSet> heads;
};
std::vector<Phase> find_phases(const Problem& p, std::int64_t dilation) {
  std::vector<Phase> phases;
  const std::int64_t heads = p.num_heads_q;
  if (p.dilation_phase == DilationPhase::interleaved_heads) {
    for (std::int64_t n = 0; n < std::min(dilation, heads); ++n) {
      phases.push_back({n, {}});
      add_head_sets(p, n, dilation, (heads - n + dilation - 1) / dilation, phases.back().heads);
    }
    return phases;
  }
  const std::int64_t block = (heads + dilation - 1) / dilation;
  for (std::int64_t n = 0; n * block < heads; ++n) {
    phases.push_back({n, {}});
    add_head_sets(p, n * block, 1, std::min(block, heads - n * block), phases.back().heads);
  }
  return phases;
}

Band intersect(const Band& a, const Band& b) { return {std::max(a.lower, b.lower), std::min(a.upper, b.upper)}; }

// How many of the positions base, base + spacing, ... stand before `end`.
std::int64_t count_kept(std::int64_t base, std::int64_t end, std::int64_t spacing) {
  return std::max<std::int64_t>(0, divide_up(end - base, spacing));
}

// The segments of a branch that have queries and keys of one document and one rectangle, and what the heads of one phase keep of each.
class Segments {
 public:
  Segments(const Problem& p, std::int64_t document, const Rectangle& r, const Branch& branch, std::int64_t phase)
      : document_(document), spacing_(branch.dilation), phase_(phase), padding_(p.dilation_padding) {
    const Document& d = p.documents[static_cast<std::size_t>(document)];
    kv_length_ = d.kv_length;
    shift_ = p.shift(d);
    q_begin_ = std::max<std::int64_t>(0, r.q_begin - d.q_begin);
    q_end_ = std::min(d.q_length, r.q_end - d.q_begin);
    kv_begin_ = std::max<std::int64_t>(0, r.kv_begin - d.kv_begin);
    kv_end_ = std::min(d.kv_length, r.kv_end - d.kv_begin);
    if (q_begin_ >= q_end_ || kv_begin_ >= kv_end_) return;
    const std::int64_t moved = d.kv_begin - d.q_begin;  // from positions of the sequence to those of the document
    band_ = r.band;
    if (band_.lower != -Band::unbounded) band_.lower -= moved;
    if (band_.upper != Band::unbounded) band_.upper -= moved;
    band_ = intersect(band_, p.band(d));

    // Queries that face no key are with those that face the first one, or the last.
    length_ = std::min(branch.segment_length, d.kv_length);
    const std::int64_t last = (d.kv_length - 1) / length_;
    const auto faced = [&](std::int64_t query) {
      return std::clamp<std::int64_t>(divide_down(query + shift_, length_), 0, last);
    };
    begin_ = std::max(kv_begin_ / length_, faced(q_begin_));
    end_ = std::min((kv_end_ - 1) / length_, faced(q_end_ - 1)) + 1;
    whole_begin_ = std::max({divide_up(kv_begin_, length_), divide_up(q_begin_ + shift_, length_),
                             std::int64_t{q_begin_ + shift_ < 0 ? 1 : 0}});
    whole_end_ = std::min({kv_end_ / length_, divide_down(q_end_ + shift_, length_),
                           q_end_ + shift_ > (last + 1) * length_ ? last : last + 1});
  }

  std::int64_t document() const { return document_; }
  std::int64_t length() const { return length_; }  // tokens of one
  std::int64_t begin() const { return begin_; }    // their numbers
  std::int64_t end() const { return end_; }
  // How many from number n on are alike but for where they are: as many queries as keys face each other, and none is cut off.
  std::int64_t count_alike(std::int64_t n) const {
    return n < whole_begin_ ? 0 : std::max<std::int64_t>(0, whole_end_ - n);
  }
  std::int64_t first_key(std::int64_t n) const { return n * length_; }  // positions of the document
  std::int64_t first_query(std::int64_t n) const { return n * length_ - shift_; }

  Region region(std::int64_t n) const {
    const std::int64_t begin = n * length_, end = begin + length_;
    // The first from `from` on that the phase keeps, counted from where the segment begins.
    const auto first_kept = [&](std::int64_t from) {
      return begin + phase_ + divide_up(from - begin - phase_, spacing_) * spacing_;
    };
    const std::int64_t q_from = n == 0 ? q_begin_ : std::max(q_begin_, begin - shift_),
                       q_to = end >= kv_length_ ? q_end_ : std::min(q_end_, end - shift_);
    Region region;
    region.document = document_;
    region.spacing = spacing_;
    region.kv_base = first_kept(std::max(kv_begin_, begin));
    region.kv_length = count_kept(region.kv_base, std::min(kv_end_, end), spacing_);
    region.q_base = first_kept(q_from + shift_) - shift_;
    region.q_length = count_kept(region.q_base, q_to, spacing_);
    if (padding_ == DilationPadding::zero_keys)
      region.zero_keys = divide_up(length_, spacing_) - count_kept(begin + phase_, std::min(end, kv_length_), spacing_);
    const std::int64_t facing = region.kv_base - region.q_base;  // key - query, of the first ones
    region.shift = (shift_ - facing) / spacing_;
    if (band_.lower != -Band::unbounded) region.band.lower = divide_up(band_.lower - facing, spacing_);
    if (band_.upper != Band::unbounded) region.band.upper = divide_down(band_.upper - facing, spacing_);
    return region;
  }

 private:
  std::int64_t document_, spacing_, phase_;
  DilationPadding padding_;
  std::int64_t kv_length_ = 0, shift_ = 0;
  std::int64_t q_begin_ = 0, q_end_ = 0, kv_begin_ = 0, kv_end_ = 0;
  Band band_;
  std::int64_t length_ = 1;
  std::int64_t begin_ = 0, end_ = 0, whole_begin_ = 0, whole_end_ = 0;
};

// Regions, by the ranks that own any row of them: in each group in the order in which they come.
class Groups {
 public:
  Groups(const Problem& problem, int world_size)
      : world_size_(world_size),
        queries_(problem, Side::query, world_size),
        keys_(problem, Side::key_value, world_size) {}

  void add(const Segments& segments) {
    for (std::int64_t n = segments.begin(); n < segments.end();) {
      const Repetition r = find_repetition(segments, n);
      ++repetitions_;
      for (std::int64_t i = 0; i < r.period; ++i)
        add(segments.region(n + i), {.times = r.times, .distance = r.period * segments.length()});
      n += r.period * r.times;
    }
  }

  // Such that no two of a list share an owner: those of fewer owners first, each in the first list that it fits into.
  std::vector<std::vector<const RegionGroup*>> list_disjoint() const {
    struct List {
      std::vector<bool> taken;
      std::vector<const RegionGroup*> groups;
    };
    std::vector<List> lists;
    for (const auto& [key, open] : groups_) {
      const std::vector<int>& owners = open.group.owners;
      const auto is_taken = [&](const List& l) {
        return std::any_of(owners.begin(), owners.end(), [&](int r) { return l.taken[static_cast<std::size_t>(r)]; });
      };
      auto list = std::find_if_not(lists.begin(), lists.end(), is_taken);
      if (list == lists.end())
        list = lists.insert(lists.end(), List{std::vector<bool>(static_cast<std::size_t>(world_size_)), {}});
      for (const int rank : owners) list->taken[static_cast<std::size_t>(rank)] = true;
      list->groups.push_back(&open.group);
    }
    std::vector<std::vector<const RegionGroup*>> disjoint;
    for (List& list : lists) disjoint.push_back(std::move(list.groups));
    return disjoint;
  }

 private:
  // `period` segments, `times` times: every rank has as many rows of one as of the one a period before it.
  struct Repetition {
    std::int64_t period = 1, times = 1;
  };
  struct OpenGroup {
    RegionGroup group;
    std::int64_t repetition = 0;  // that the last pattern is of
  };

  Repetition find_repetition(const Segments& segments, std::int64_t n) const {
    const std::int64_t count = segments.count_alike(n), length = segments.length(), document = segments.document();
    if (count < 2) return {};
    const std::int64_t of_one_owner = std::min(keys_.count_beside(document, segments.first_key(n)),
                                               queries_.count_beside(document, segments.first_query(n))) /
                                      length;
    if (of_one_owner >= 2) return {1, std::min(of_one_owner, count)};
    if (keys_.turn() == 0) return {};
    const std::int64_t period = keys_.turn() / std::gcd(keys_.turn(), length);
    return period <= count / 2 ? Repetition{period, count / period} : Repetition{};
  }

  // `pattern`: how it is repeated, with others of the same repetition.
  void add(const Region& region, Pattern pattern) {
    if (region.q_length == 0 || (region.kv_length == 0 && region.zero_keys == 0)) return;
    std::vector<int> owners = find_owners(region);
    const std::size_t count = owners.size();
    auto& [group, repetition] = groups_[{count, owners}];
    if (group.owners.empty()) group.owners = std::move(owners);
    const bool goes_on =
        !group.patterns.empty() && (pattern.times == 1 ? group.patterns.back().times == 1 : repetition == repetitions_);
    if (!goes_on) {
      pattern.first_region = std::ssize(group.regions);
      group.patterns.push_back(pattern);
    }
    repetition = repetitions_;
    group.regions.push_back(region);
  }

  std::vector<int> find_owners(const Region& region) const {
    RankSet set(world_size_, 0);
    queries_.add_owners(region.document, region.kept(Side::query), set);
    keys_.add_owners(region.document, region.kept(Side::key_value), set);
    std::vector<int> owners;
    for (int rank = -1; (rank = set.find(rank + 1, true)) < world_size_;) owners.push_back(rank);
    return owners;
  }

  int world_size_;
  Shards queries_, keys_;
  std::map<std::pair<std::size_t, std::vector<int>>, OpenGroup> groups_;  // how many owners, and which
  std::int64_t repetitions_ = 0;
};

}  // namespace

std::vector<Layer> find_layers(const std::shared_ptr<const Problem>& problem, int world_size) {
  const Problem& p = *problem;
  const std::vector<Branch> branches =
      p.branches.empty() ? std::vector<Branch>{{std::max<std::int64_t>(p.seqlen_kv, 1), 1}} : p.branches;
  const std::vector<std::vector<Rectangle>> lists = find_rectangles(p);
  std::vector<Layer> layers;
  for (std::size_t branch = 0; branch < branches.size(); ++branch)
    for (const std::vector<Rectangle>& rectangles : lists)
      for (const Phase& phase : find_phases(p, branches[branch].dilation)) {
        Groups groups(p, world_size);
        for (const Rectangle& r : rectangles) {
          const auto first = std::partition_point(p.documents.begin(), p.documents.end(), [&](const Document& d) {
            return d.q_begin + d.q_length <= r.q_begin;
          });
          for (auto d = first; d != p.documents.end() && d->q_begin < r.q_end; ++d)
            groups.add(Segments(p, d - p.documents.begin(), r, branches[branch], phase.number));
        }
        for (const std::vector<const RegionGroup*>& disjoint : groups.list_disjoint()) {
          const auto regions = std::make_shared<const LayerRegions>(problem, disjoint, world_size);
          for (const HeadSet& heads : phase.heads)
            layers.push_back({static_cast<std::int64_t>(branch), heads, regions});
        }
      }
  return layers;
}

}  // namespace ringattn
