#include "plan/layer.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/divide.h"

namespace ringattn {
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
    const auto kept_before = [&](std::int64_t base, std::int64_t to) {
      return Progression{base, spacing_}.first_from(to);
    };
    const std::int64_t q_from = n == 0 ? q_begin_ : std::max(q_begin_, begin - shift_),
                       q_to = end >= kv_length_ ? q_end_ : std::min(q_end_, end - shift_);
    Region region;
    region.document = document_;
    region.spacing = spacing_;
    region.kv_base = first_kept(std::max(kv_begin_, begin));
    region.kv_length = kept_before(region.kv_base, std::min(kv_end_, end));
    region.q_base = first_kept(q_from + shift_) - shift_;
    region.q_length = kept_before(region.q_base, q_to);
    if (padding_ == DilationPadding::zero_keys)
      region.zero_keys = divide_up(length_, spacing_) - kept_before(begin + phase_, std::min(end, kv_length_));
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
