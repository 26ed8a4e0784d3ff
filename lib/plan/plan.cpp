#include "plan/plan.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace ringattn {
namespace {

bool item_sees(const WorkItem& item, std::int64_t kv_length) {
  for (const Piece& query : item.queries)
    for (const Piece& key : item.keys)
      if (any_visible(item.band, query, key, item.positions_before(kv_length))) return true;
  return false;
}

}  // namespace

Plan::Plan(const Problem& problem, int world_size, int rank, Pass pass)
    : Plan(std::make_shared<const Problem>(problem), nullptr, world_size, rank, pass) {}

Plan::Plan(std::shared_ptr<const Problem> problem, std::shared_ptr<const Domain> domain, int world_size, int rank,
           Pass pass)
    : problem_(std::move(problem)),
      domain_(domain != nullptr ? std::move(domain) : std::make_shared<const WholeDocuments>(problem_, world_size)),
      world_size_(world_size),
      rank_(rank),
      pass_(pass),
      cutting_(choose_cutting(*problem_, world_size, pass, longest_shard())),
      kv_length_(problem_->longest_kv()) {
  for (std::int64_t chunk = 0; chunk < num_chunks(); ++chunk) {
    if (schedule() == Schedule::ring)
      add_tours(chunk);
    else
      add_gathering(chunk);
    moments_.back().finishes_chunk = true;
  }
  // They are kept: without the room that they grew in.
  moments_ = std::vector(moments_);
  transfers_ = std::vector(transfers_);
  additions_ = std::vector(additions_);
  for (std::int64_t* const total : {&totals_.steps, &totals_.hops, &totals_.hop_bytes}) *total *= num_parts();
}

std::int64_t Plan::longest_shard() const {
  std::int64_t longest = 1;
  for (int owner = 0; owner < world_size_; ++owner) longest = std::max(longest, key_rows(owner));
  return longest;
}

std::int64_t Plan::num_parts() const {
  return problem_->batch / part_entries() * (problem_->num_heads_kv / part_heads_kv());
}

Part Plan::part(std::int64_t n) const {
  const std::int64_t of_an_entry = problem_->num_heads_kv / part_heads_kv();
  return {n / of_an_entry * part_entries(), n % of_an_entry * part_heads_kv()};
}

std::int64_t Plan::longest_chunk() const {
  std::int64_t longest = 0;
  for (int owner = 0; owner < world_size_; ++owner) longest = std::max(longest, chunk_rows(owner, 0));
  return longest;
}

std::vector<SpacedPiece> Plan::chunk_keys(int owner, std::int64_t chunk) const {
  const std::int64_t begin = chunk_begin(owner, chunk), end = chunk_begin(owner, chunk + 1);
  std::vector<SpacedPiece> keys;
  for (const std::int64_t unit : domain_->units(Side::key_value, owner, begin, end))
    for (const SpacedPiece& piece : domain_->deal(Side::key_value, owner, unit, begin, end)) keys.push_back(piece);
  return keys;
}

namespace {

void add_stretch(const SpacedPiece& piece, std::vector<Stretch>& stretches) {
  if (!stretches.empty() && stretches.back().step == piece.step &&
      stretches.back().row + stretches.back().length * piece.step == piece.row)
    stretches.back().length += piece.length;
  else
    stretches.push_back({piece.row, piece.length, piece.step});
}

}  // namespace

std::vector<Stretch> Plan::chunk_stretches(int owner, std::int64_t chunk) const {
  std::vector<Stretch> stretches;
  for (const SpacedPiece& piece : chunk_keys(owner, chunk)) add_stretch(piece, stretches);
  return stretches;
}

std::vector<Stretch> Plan::query_stretches() const {
  std::vector<Stretch> stretches;
  for (const std::int64_t unit : domain_->units(Side::query, rank_))
    for (const SpacedPiece& piece : domain_->share(Side::query, rank_, unit)) add_stretch(piece, stretches);
  return stretches;
}

std::int64_t Plan::chunk_bytes(std::int64_t rows) const {
  if (problem_->has_key_bias) return key_bias_offset(rows) + part_entries() * rows * size_of(DType::float32);
  return part_entries() * rows * part_heads_kv() * (problem_->head_dim + problem_->head_dim_v) *
         size_of(problem_->dtype);
}

std::int64_t Plan::key_bias_offset(std::int64_t rows) const {
  constexpr std::int64_t alignment = size_of(DType::float32);
  const std::int64_t keys_and_values =
      part_entries() * rows * part_heads_kv() * (problem_->head_dim + problem_->head_dim_v) * size_of(problem_->dtype);
  return (keys_and_values + alignment - 1) / alignment * alignment;
}

std::int64_t Plan::gradient_bytes(std::int64_t rows) const {
  return part_entries() * rows * part_heads_kv() * (problem_->head_dim + problem_->head_dim_v) *
         size_of(DType::float32);
}

RankSet Plan::find_seeing(int owner, std::int64_t chunk) {
  const std::int64_t begin = chunk_begin(owner, chunk), end = chunk_begin(owner, chunk + 1);
  RankSet seeing(world_size_, owner);
  units_visited_ += domain_->add_seeing(owner, begin, end, kv_length_, seeing);
  return seeing;
}

// Of the ranks at distance 1 .. P - 1 downstream, those that see the chunk; the widest gap between them is left out.
Plan::Reach Plan::find_reach(int owner, std::int64_t chunk) {
  const RankSet seeing = find_seeing(owner, chunk);
  Reach best;
  int widest_gap = 0;
  for (int before = 0, after = 0; after < world_size_; before = seeing.find(after, false) - 1) {
    after = seeing.find(before + 1, true);  // or home
    if (after - before >= widest_gap) {     // the last of equal gaps: a chunk that all see goes once around, one way
      widest_gap = after - before;
      best = {.downstream = before, .upstream = world_size_ - after};
    }
  }
  best.here = seeing.has(at_distance(-owner));
  return best;
}

Moment& Plan::add_moment(std::int64_t chunk) {
  moments_.push_back({.chunk = chunk,
                      .transfers = static_cast<std::uint32_t>(transfers_.size()),
                      .additions = static_cast<std::uint32_t>(additions_.size())});
  return moments_.back();
}

void Plan::add_transfer(const Transfer& transfer, std::int64_t chunk) {
  transfers_.push_back(transfer);
  if (!transfer.sends) return;
  const std::int64_t rows = chunk_rows(transfer.owner, chunk);
  totals_.hops += 1;
  totals_.hop_bytes += transfer.kind == Transfer::gradients ? gradient_bytes(rows) : chunk_bytes(rows);
}

void Plan::add_tours(std::int64_t chunk) {
  std::vector<Reach> reaches(static_cast<std::size_t>(world_size_));
  for (int owner = 0; owner < world_size_; ++owner) reaches[static_cast<std::size_t>(owner)] = find_reach(owner, chunk);
  add_tour(chunk, +1, reaches);
  if (std::any_of(reaches.begin(), reaches.end(), [](const Reach& r) { return r.upstream > 0; }))
    add_tour(chunk, -1, reaches);
}

void Plan::add_tour(std::int64_t chunk, int direction, const std::vector<Reach>& reaches) {
  // What is held and what comes next have a slot each, and so have the gradients of both, beside those at home.
  constexpr int home = 0, arriving = 3;
  const auto chunk_slot = [](int time) { return time % 2; };
  const auto gradient_slot = [](int time) { return time == 0 ? home : 1 + time % 2; };
  chunk_slots_ = world_size_ > 1 ? 2 : packs() ? 1 : 0;
  gradient_slots_ = pass_ == Pass::forward || adds_directly() ? 0 : world_size_ > 1 ? 4 : 1;

  const auto reach_of = [&](int owner) { return reaches[static_cast<std::size_t>(owner)]; };
  const auto reach = [&](int owner) { return reach_of(owner).in(direction); };
  int longest = 0;
  for (int owner = 0; owner < world_size_; ++owner) longest = std::max(longest, reach(owner));
  const bool gradients = pass_ == Pass::backward;
  const int ahead = at_distance(direction), behind = at_distance(-direction);

  const int last = longest + (gradients && longest > 0 ? 1 : 0);  // one more moment for the last gradients to come home
  for (int time = 0; time <= last; ++time) {
    Moment& moment = add_moment(chunk);
    const auto transfer = [&](Transfer::Kind kind, bool sends, int peer, int owner, int slot) {
      add_transfer({kind, sends, peer, owner, slot}, chunk);
    };
    const int held = at_distance(-direction * time);
    const int next = at_distance(-direction * (time + 1));
    const int before = at_distance(-direction * (time - 1));
    moment.begins_chunk = time == 0 && direction > 0;
    if (time <= reach(held)) {
      moment.holds = held;
      moment.slot = chunk_slot(time);
      moment.gradient_slot = gradient_slot(time);
      moment.computes = (time > 0 || direction > 0) && reach_of(held).here;
      moment.packs = time == 0 && packs() && (moment.computes || reach(held) > 0);
      totals_.steps += moment.computes ? 1 : 0;
      if (time < reach(held)) transfer(Transfer::keys_and_values, true, ahead, held, chunk_slot(time));
      if (gradients && time > 0) {
        transfer(Transfer::gradients, false, behind, held, moment.computes ? arriving : gradient_slot(time));
        if (moment.computes) additions_.push_back({arriving, gradient_slot(time), held});
      }
    }
    if (time < reach(next)) transfer(Transfer::keys_and_values, false, behind, next, chunk_slot(time + 1));
    if (gradients && time > 0 && reach(before) > 0 && time - 1 <= reach(before))
      transfer(Transfer::gradients, true, time <= reach(before) ? ahead : before, before, gradient_slot(time - 1));
    if (gradients && reach(rank_) > 0 && time - 1 == reach(rank_))
      transfer(Transfer::gradients, false, at_distance(direction * reach(rank_)), rank_, home);
  }
}

void Plan::add_gathering(std::int64_t chunk) {
  std::vector<RankSet> seeing;  // of each owner
  int farthest = 0;
  for (int owner = 0; owner < world_size_; ++owner) {
    seeing.push_back(find_seeing(owner, chunk));
    for (int d = farthest + 1; (d = seeing.back().find(d, true)) < world_size_;) farthest = d++;
  }
  const auto sees = [&](int rank, int distance) {  // that one, the chunk of the rank at that distance behind it
    const int owner = ((rank - distance) % world_size_ + world_size_) % world_size_;
    return seeing[static_cast<std::size_t>(owner)].has(distance);
  };
  constexpr int home = 0;
  int foreign = 0;  // chunks here that others own: in the chunk slots behind the own one, and so are their gradients
  Moment& first = add_moment(chunk);
  first.begins_chunk = true;
  first.holds = rank_;
  first.computes = sees(rank_, 0);
  first.packs = first.computes;
  for (int d = 1; d <= farthest; ++d)
    if (sees(at_distance(d), d)) {
      first.packs = true;
      add_transfer({Transfer::keys_and_values, true, at_distance(d), rank_, 0}, chunk);
    }
  for (int d = 1; d <= farthest; ++d)
    if (sees(rank_, d))
      add_transfer({Transfer::keys_and_values, false, at_distance(-d), at_distance(-d), ++foreign}, chunk);
  totals_.steps += foreign + (first.computes ? 1 : 0);
  chunk_slots_ = std::max(chunk_slots_, 1 + foreign);

  for (int d = 1, slot = 0; d <= farthest; ++d) {
    Moment& moment = add_moment(chunk);
    if (!sees(rank_, d)) continue;
    moment.holds = at_distance(-d);
    moment.computes = true;
    moment.slot = moment.gradient_slot = ++slot;
  }
  if (pass_ == Pass::forward) return;
  gradient_slots_ = std::max(gradient_slots_, 1 + foreign);
  if (farthest == 0) return;
  add_moment(chunk);
  for (int d = 1, slot = 0; d <= farthest; ++d)
    if (sees(rank_, d)) add_transfer({Transfer::gradients, true, at_distance(-d), at_distance(-d), ++slot}, chunk);
  int arriving = foreign;
  for (int d = 1; d <= farthest; ++d)
    if (sees(at_distance(d), d)) {
      add_transfer({Transfer::gradients, false, at_distance(d), rank_, ++arriving}, chunk);
      additions_.push_back({arriving, home, rank_});
    }
  gradient_slots_ = std::max(gradient_slots_, 1 + arriving);
}

namespace {

// Units of either, each once, ascending.
template <class F>
void for_each_unit(const Domain::Units& a, const Domain::Units& b, F&& f) {
  const Domain::Units &first = *a.begin() <= *b.begin() ? a : b, &second = &first == &a ? b : a;
  for (const std::int64_t unit : first) f(unit);
  for (std::int64_t unit = std::max(*first.end(), *second.begin()); unit < *second.end(); ++unit) f(unit);
}

}  // namespace

StepItems Plan::items(const Moment& moment, bool all_rows) const {
  const std::int64_t begin = chunk_begin(moment.holds, moment.chunk), end = chunk_begin(moment.holds, moment.chunk + 1);
  const Domain::Units held = domain_->units(Side::key_value, moment.holds, begin, end),
                      own = all_rows ? domain_->units(Side::query, rank_) : Domain::Units(0, 0);
  StepItems step;
  const std::size_t most_items = std::max(held.size(), own.size());  // but for units that only one of both has
  const std::size_t pieces = most_items * (problem_->sharding == Sharding::zigzag ? 2 : 1);  // of whole documents
  step.queries.reserve(pieces);
  step.keys.reserve(pieces);
  step.items.reserve(most_items);
  std::int64_t key_row = 0;
  for_each_unit(held, own, [&](std::int64_t unit) {
    const std::size_t first_query = step.queries.size(), first_key = step.keys.size();
    const auto add = [](const Share& share, std::int64_t& row, std::vector<Piece>& pieces) {
      for (const Piece& piece : share) {
        pieces.push_back(piece);
        pieces.back().row = row;
        row += piece.length;
      }
    };
    std::int64_t query_row = domain_->first_row(Side::query, rank_, unit);
    add(domain_->share(Side::query, rank_, unit), query_row, step.queries);
    add(domain_->deal(Side::key_value, moment.holds, unit, begin, end), key_row, step.keys);
    WorkItem item = domain_->item(unit);
    item.queries = std::span(step.queries).subspan(first_query);
    item.keys = std::span(step.keys).subspan(first_key);
    if (!item_sees(item, kv_length_)) {
      step.keys.resize(first_key);
      item.keys = {};
      if (!all_rows) step.queries.resize(first_query);
      if (!all_rows || item.queries.empty()) return;
    }
    step.items.push_back(item);
  });
  // Items have the pieces one after the other, and these have moved as their lists grew.
  std::span<const Piece> queries = step.queries, keys = step.keys;
  const auto take = [](std::span<const Piece>& from, std::span<const Piece>& pieces) {
    pieces = from.first(pieces.size());
    from = from.subspan(pieces.size());
  };
  for (WorkItem& item : step.items) {
    take(queries, item.queries);
    take(keys, item.keys);
  }
  return step;
}

namespace {

// Keys that a query at a position sees: max(0, min(limit, position + upper + 1) - max(0, position + lower)).
struct VisibleCount {
  Band band;
  std::int64_t limit;

  double at(std::int64_t position) const {
    const std::int64_t lo = std::max<std::int64_t>(0, position + band.lower),
                       hi = std::min(limit, position + band.upper + 1);
    return static_cast<double>(std::max<std::int64_t>(0, hi - lo));
  }

  // Sum over the positions first, first + stride, ... of `count` queries: linear between the four places where it bends.
  double sum(std::int64_t first, std::int64_t stride, std::int64_t count) const {
    std::array<std::int64_t, 4> bends{-band.upper - 1, -band.lower, limit - band.upper - 1, limit - band.lower};
    std::sort(bends.begin(), bends.end());
    double sum = 0;
    std::int64_t done = 0;
    const auto add_until = [&](std::int64_t end) {
      if (end <= done) return;
      sum += static_cast<double>(end - done) * (at(first + done * stride) + at(first + (end - 1) * stride)) / 2;
      done = end;
    };
    for (const std::int64_t bend : bends) add_until(bend < first ? 0 : std::min(count, (bend - first) / stride + 1));
    add_until(count);
    return sum;
  }

  // Sum over a piece: block by block, or place by place of the block over all blocks, whichever is fewer sums.
  double sum(const Piece& piece) const {
    const Run& run = piece.run;
    const std::int64_t end = piece.first + piece.length;
    double result = 0;
    if (piece.length / run.block < run.block) {
      for (std::int64_t n = piece.first, next = 0; n < end; n = next) {
        next = std::min(end, (n / run.block + 1) * run.block);
        result += sum(run.position(n), 1, next - n);
      }
    } else {
      for (std::int64_t n = piece.first; n < piece.first + run.block; ++n)
        result += sum(run.position(n), run.stride, (end - n + run.block - 1) / run.block);
    }
    return result;
  }
};

}  // namespace

double count_visible_pairs(const Problem& problem, const Domain& domain, int rank) {
  const std::int64_t entries = problem.kv_lengths.empty() ? 1 : problem.batch;  // without padding all entries are alike
  double pairs = 0;
  for (const std::int64_t unit : domain.units(Side::query, rank)) {
    const WorkItem item = domain.item(unit);
    for (const Piece& piece : domain.share(Side::query, rank, unit))
      for (std::int64_t b = 0; b < entries; ++b) {
        const VisibleCount visible{item.band,
                                   std::min(domain.num_keys(unit), item.positions_before(problem.kv_length(b)))};
        if (visible.limit > 0) pairs += visible.sum(piece);
      }
  }
  return pairs * static_cast<double>(problem.batch / entries);
}

}  // namespace ringattn
