#include "plan/layer.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

namespace ringattn {
namespace {

std::int64_t divide_down(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return -divide_down(-a, b); }
std::int64_t modulo(std::int64_t a, std::int64_t b) { return a - divide_down(a, b) * b; }

// ---------------------------------------------------------------- what is kept

// Of the positions from `position` on, `count` side by side, stored from `row` on, one every `step`.
void add_kept_block(std::int64_t position, std::int64_t count, std::int64_t row, std::int64_t base,
                    std::int64_t spacing, std::int64_t length, std::int64_t unit, Share& kept) {
  const std::int64_t first = std::max<std::int64_t>(0, divide_up(position - base, spacing)),
                     end = std::min(length, divide_up(position + count - base, spacing));
  if (first >= end) return;
  kept.add({.document = unit,
            .run = {.start = first, .block = end - first, .stride = end - first, .length = end - first},
            .first = 0,
            .length = end - first,
            .row = row + base + first * spacing - position},
           spacing);
}

}  // namespace

// A shard's blocks of positions are single, or `block` of them every `stride`. Of the latter each keeps the same places if the block is
// a multiple of the spacing, and the kept ones are blocks again. Else they are either taken place by place of the block, each of
// which is kept in every so many blocks, or block by block, whichever are fewer.
void add_kept(const Piece& piece, std::int64_t base, std::int64_t spacing, std::int64_t length, std::int64_t unit,
              Share& kept) {
  const Run& run = piece.run;
  const std::int64_t end_position = base + (length - 1) * spacing + 1;
  const std::int64_t first = std::max(piece.first, run.count_below(base)),
                     end = std::min(piece.first + piece.length, run.count_below(end_position));
  if (length == 0 || first >= end) return;
  const std::int64_t row = piece.row - piece.first;  // of member 0
  if (first / run.block == (end - 1) / run.block)
    return add_kept_block(run.position(first), end - first, row + first, base, spacing, length, unit, kept);
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
      add_kept_block(run.position(from), to - from, row + from, base, spacing, length, unit, kept);
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

LayerRegions::LayerRegions(std::shared_ptr<const Problem> problem, std::vector<Region> regions, int world_size)
    : problem_(std::move(problem)),
      regions_(std::move(regions)),
      queries_(*problem_, Side::query, world_size),
      keys_(*problem_, Side::key_value, world_size) {
  for (const Side side : {Side::query, Side::key_value}) {
    std::vector<std::vector<std::int64_t>> before;
    for (int rank = 0; rank < world_size; ++rank) {
      std::vector<std::int64_t> rows{0};
      for (const std::int64_t unit : units()) {
        std::int64_t own = 0;
        for (const Piece& piece : share(side, rank, unit)) own += piece.length;
        rows.push_back(rows.back() + own);
      }
      before.push_back(std::move(rows));
    }
    (side == Side::query ? query_rows_ : key_rows_).before = std::move(before);
  }
}

std::int64_t LayerRegions::longest_piece(Side side, int rank) const {
  std::int64_t longest = 0;
  for (const std::int64_t unit : units())
    longest = std::max(longest, first_row(side, rank, unit + 1) - first_row(side, rank, unit));
  return longest;
}

Domain::Units LayerRegions::units(Side side, int rank, std::int64_t begin, std::int64_t end) const {
  if (begin == end) return {0, 0};
  const std::vector<std::int64_t>& before = of(side).before[static_cast<std::size_t>(rank)];
  const auto unit_of = [&](std::int64_t row) {
    return std::upper_bound(before.begin(), before.end(), row) - before.begin() - 1;
  };
  return {unit_of(begin), unit_of(end - 1) + 1};
}

Share LayerRegions::share(Side side, int rank, std::int64_t unit) const {
  const Region& r = region(unit);
  Share kept;
  for (const Piece& piece : (side == Side::query ? queries_ : keys_).share(rank, r.document))
    add_kept(piece, r.base(side), r.spacing, r.length(side), unit, kept);
  return kept;
}

// So much of each piece as of all of them, by halves.
Share LayerRegions::deal(Side side, int rank, std::int64_t unit, std::int64_t begin, std::int64_t end) const {
  const Share whole = share(side, rank, unit);
  const std::int64_t row = first_row(side, rank, unit), all = first_row(side, rank, unit + 1) - row;
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

WorkItem LayerRegions::item(std::int64_t unit) const {
  const Region& r = region(unit);
  const Document& document = problem_->documents[static_cast<std::size_t>(r.document)];
  WorkItem item;
  item.band = r.band;
  item.q_begin = document.q_begin + r.q_base;
  item.kv_begin = document.kv_begin + r.kv_base;
  item.spacing = r.spacing;
  item.shift = r.shift;
  return item;
}

void LayerRegions::add_seeing(const Piece& keys, std::int64_t kv_length, RankSet& seeing) const {
  const WorkItem unit = item(keys.document);
  for (int rank = 0; rank < world_size(); ++rank)
    for (const Piece& queries : share(Side::query, rank, keys.document))
      if (any_visible(unit.band, queries, keys, unit.positions_before(kv_length))) {
        seeing.add(rank, 1);
        break;
      }
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

// What one phase of a branch keeps of a document and a rectangle, segment by segment.
void add_regions(const Problem& p, std::int64_t number, const Rectangle& r, const Branch& branch, std::int64_t phase,
                 std::vector<Region>& regions) {
  const Document& d = p.documents[static_cast<std::size_t>(number)];
  const std::int64_t q_begin = std::max<std::int64_t>(0, r.q_begin - d.q_begin),
                     q_end = std::min(d.q_length, r.q_end - d.q_begin),
                     kv_begin = std::max<std::int64_t>(0, r.kv_begin - d.kv_begin),
                     kv_end = std::min(d.kv_length, r.kv_end - d.kv_begin);
  if (q_begin >= q_end || kv_begin >= kv_end) return;
  const std::int64_t moved = d.kv_begin - d.q_begin;  // from positions of the sequence to those of the document
  Band band = r.band;
  if (band.lower != -Band::unbounded) band.lower -= moved;
  if (band.upper != Band::unbounded) band.upper -= moved;
  band = intersect(band, p.band(d));

  const std::int64_t shift = p.shift(d), spacing = branch.dilation;
  const std::int64_t segment = std::min(branch.segment_length, d.kv_length);
  for (std::int64_t begin = kv_begin / segment * segment; begin < kv_end; begin += segment) {
    const std::int64_t end = begin + segment;
    // The first from `from` on that the phase keeps, counted from where the segment begins.
    const auto first_kept = [&](std::int64_t from) {
      return begin + phase + divide_up(from - begin - phase, spacing) * spacing;
    };
    // Queries that face no key are with those that face the first one, or the last.
    const std::int64_t q_from = begin == 0 ? q_begin : std::max(q_begin, begin - shift),
                       q_to = end >= d.kv_length ? q_end : std::min(q_end, end - shift);
    Region region;
    region.document = number;
    region.spacing = spacing;
    region.kv_base = first_kept(std::max(kv_begin, begin));
    region.kv_length = count_kept(region.kv_base, std::min(kv_end, end), spacing);
    region.q_base = first_kept(q_from + shift) - shift;
    region.q_length = count_kept(region.q_base, q_to, spacing);
    if (p.dilation_padding == DilationPadding::zero_keys)
      region.zero_keys = divide_up(segment, spacing) - count_kept(begin + phase, std::min(end, d.kv_length), spacing);
    if (region.q_length == 0 || (region.kv_length == 0 && region.zero_keys == 0)) continue;
    const std::int64_t facing = region.kv_base - region.q_base;  // key - query, of the first ones
    region.shift = (shift - facing) / spacing;
    if (band.lower != -Band::unbounded) region.band.lower = divide_up(band.lower - facing, spacing);
    if (band.upper != Band::unbounded) region.band.upper = divide_down(band.upper - facing, spacing);
    regions.push_back(region);
  }
}

// The ranks that have any of a region's queries or keys.
std::vector<int> find_owners(const Problem& p, const Region& region, int world_size) {
  std::vector<int> owners;
  for (int rank = 0; rank < world_size; ++rank) {
    Share kept;
    for (const Side side : {Side::query, Side::key_value})
      for (const Piece& piece : Shards(p, side, world_size).share(rank, region.document))
        add_kept(piece, region.base(side), region.spacing, region.length(side), 0, kept);
    if (!kept.empty()) owners.push_back(rank);
  }
  return owners;
}

// Such that the regions of each part are in the hands of the same ranks, or of others altogether: those of fewer ranks first.
std::vector<std::vector<Region>> part_by_owners(const Problem& p, std::vector<Region> regions, int world_size) {
  if (world_size == 1) return {std::move(regions)};
  std::map<std::pair<std::size_t, std::vector<int>>, std::vector<Region>> by_owners;
  for (const Region& region : regions) {
    std::vector<int> owners = find_owners(p, region, world_size);
    const std::size_t count = owners.size();
    by_owners[{count, std::move(owners)}].push_back(region);
  }
  struct Bin {
    std::vector<bool> taken;
    std::vector<Region> regions;
  };
  std::vector<Bin> bins;
  for (const auto& [owners, own] : by_owners) {
    const auto is_taken = [&, &ranks = owners.second](const Bin& bin) {
      return std::any_of(ranks.begin(), ranks.end(), [&](int r) { return bin.taken[static_cast<std::size_t>(r)]; });
    };
    auto bin = std::find_if_not(bins.begin(), bins.end(), is_taken);
    if (bin == bins.end())
      bin = bins.insert(bins.end(), Bin{std::vector<bool>(static_cast<std::size_t>(world_size)), {}});
    for (const int rank : owners.second) bin->taken[static_cast<std::size_t>(rank)] = true;
    bin->regions.insert(bin->regions.end(), own.begin(), own.end());
  }
  std::vector<std::vector<Region>> parts;
  for (Bin& bin : bins) parts.push_back(std::move(bin.regions));
  return parts;
}

}  // namespace

std::vector<Layer> find_layers(const Problem& p, int world_size) {
  const std::vector<Branch> branches =
      p.branches.empty() ? std::vector<Branch>{{std::max<std::int64_t>(p.seqlen_kv, 1), 1}} : p.branches;
  const std::vector<std::vector<Rectangle>> lists = find_rectangles(p);
  std::vector<Layer> layers;
  for (std::size_t branch = 0; branch < branches.size(); ++branch)
    for (const std::vector<Rectangle>& rectangles : lists)
      for (const Phase& phase : find_phases(p, branches[branch].dilation)) {
        std::vector<Region> regions;
        for (const Rectangle& r : rectangles) {
          const auto first = std::partition_point(p.documents.begin(), p.documents.end(), [&](const Document& d) {
            return d.q_begin + d.q_length <= r.q_begin;
          });
          for (auto d = first; d != p.documents.end() && d->q_begin < r.q_end; ++d)
            add_regions(p, d - p.documents.begin(), r, branches[branch], phase.number, regions);
        }
        for (const std::vector<Region>& part : part_by_owners(p, std::move(regions), world_size))
          for (const HeadSet& heads : phase.heads) layers.push_back({static_cast<std::int64_t>(branch), heads, part});
      }
  return layers;
}

}  // namespace ringattn
