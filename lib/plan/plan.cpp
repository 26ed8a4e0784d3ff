#include "plan/plan.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "plan/reach.h"

namespace ringattn {
namespace {

// Rows of a chunk where the caller leaves the number of chunks to us: long enough that a step outweighs its messages,
// short enough that what is in flight stays small beside the shards.
constexpr std::int64_t forward_chunk_rows = 8192;
constexpr std::int64_t backward_chunk_rows = 1024;
constexpr std::int64_t most_chosen_chunks = 1024;

std::int64_t choose_num_chunks(const Problem& problem, int world_size, Pass pass, std::int64_t longest_shard) {
  const std::int64_t most = std::max<std::int64_t>(longest_shard, 1);
  if (pass == Pass::forward && world_size == 1) return 1;  // nothing travels and nothing is held back
  if (problem.num_chunks > 0) return std::min(problem.num_chunks, most);
  const std::int64_t rows = pass == Pass::forward ? forward_chunk_rows : backward_chunk_rows;
  return std::min((most + rows - 1) / rows, most_chosen_chunks);
}

bool item_sees(const WorkItem& item, std::int64_t kv_length) {
  for (const Piece& query : item.queries)
    for (const Piece& key : item.keys)
      if (any_visible(item.band, query, key, kv_length - item.kv_begin)) return true;
  return false;
}

}  // namespace

Plan::Plan(const Problem& problem, int world_size, int rank, Pass pass)
    : problem_(problem), world_size_(world_size), rank_(rank), pass_(pass), kv_length_(problem_.longest_kv()) {
  std::int64_t longest = 0;
  for (int owner = 0; owner < world_size; ++owner) longest = std::max(longest, key_rows(owner));
  num_chunks_ = choose_num_chunks(problem_, world_size, pass, longest);

  std::vector<Reach> reaches(static_cast<std::size_t>(world_size));
  for (std::int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
    for (int owner = 0; owner < world_size; ++owner)
      reaches[static_cast<std::size_t>(owner)] = find_reach(owner, chunk);
    add_tour(chunk, +1, reaches);
    if (std::any_of(reaches.begin(), reaches.end(), [](const Reach& r) { return r.upstream > 0; }))
      add_tour(chunk, -1, reaches);
    moments_.back().finishes_chunk = true;
  }
}

std::int64_t Plan::longest_chunk() const {
  std::int64_t longest = 0;
  for (int owner = 0; owner < world_size_; ++owner) longest = std::max(longest, chunk_rows(owner, 0));
  return longest;
}

std::vector<Piece> Plan::chunk_keys(int owner, std::int64_t chunk) const {
  const Shards all = shards(Side::key_value);
  const std::int64_t begin = chunk_begin(owner, chunk), end = chunk_begin(owner, chunk + 1);
  std::vector<Piece> keys;
  for (const std::int64_t d : all.documents(owner, begin, end))
    for (const Piece& piece : all.deal(owner, d, begin, end)) keys.push_back(piece);
  return keys;
}

std::vector<Stretch> Plan::chunk_stretches(int owner, std::int64_t chunk) const {
  std::vector<Stretch> stretches;
  for (const Piece& piece : chunk_keys(owner, chunk)) {
    if (!stretches.empty() && stretches.back().row + stretches.back().length == piece.row)
      stretches.back().length += piece.length;
    else
      stretches.push_back({piece.row, piece.length});
  }
  return stretches;
}

std::int64_t Plan::chunk_bytes(std::int64_t rows) const {
  return problem_.batch * rows * problem_.num_heads_kv * (problem_.head_dim + problem_.head_dim_v) *
         size_of(problem_.dtype);
}

std::int64_t Plan::gradient_bytes(std::int64_t rows) const {
  return problem_.batch * rows * problem_.num_heads_kv * (problem_.head_dim + problem_.head_dim_v) *
         size_of(DType::float32);
}

RankSet Plan::find_seeing(int owner, std::int64_t chunk) {
  const Shards keys = shards(Side::key_value), queries = shards(Side::query);
  const std::int64_t begin = chunk_begin(owner, chunk), end = chunk_begin(owner, chunk + 1);
  RankSet seeing(world_size_, owner);
  for (const std::int64_t d : keys.documents(owner, begin, end)) {
    if (seeing.is_full()) break;
    ++documents_visited_;
    for (const Piece& piece : keys.deal(owner, d, begin, end))
      if (!seeing.is_full()) add_seeing(problem_, piece, kv_length_, queries, seeing);
  }
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

void Plan::add_tour(std::int64_t chunk, int direction, const std::vector<Reach>& reaches) {
  const auto reach_of = [&](int owner) { return reaches[static_cast<std::size_t>(owner)]; };
  const auto reach = [&](int owner) { return reach_of(owner).in(direction); };
  int longest = 0;
  for (int owner = 0; owner < world_size_; ++owner) longest = std::max(longest, reach(owner));
  const bool gradients = pass_ == Pass::backward;
  const auto count_message = [&](std::int64_t bytes) {
    totals_.hops += 1;
    totals_.hop_bytes += bytes;
  };

  const int last = longest + (gradients && longest > 0 ? 1 : 0);  // one more moment for the last gradients to come home
  for (int time = 0; time <= last; ++time) {
    Moment moment{.chunk = chunk, .direction = direction, .time = time};
    const int held = at_distance(-direction * time);
    const int next = at_distance(-direction * (time + 1));
    const int before = at_distance(-direction * (time - 1));
    const int ahead = at_distance(direction), behind = at_distance(-direction);
    if (time <= reach(held)) {
      moment.holds = held;
      moment.computes = (time > 0 || direction > 0) && reach_of(held).here;
      totals_.steps += moment.computes ? 1 : 0;
      if (time < reach(held)) {
        moment.send_to = ahead;
        count_message(chunk_bytes(chunk_rows(held, chunk)));
      }
      if (gradients && time > 0) moment.gradient_receive_from = behind;
    }
    if (time < reach(next)) {
      moment.receive_from = behind;
      moment.receive_owner = next;
    }
    if (gradients && time > 0 && reach(before) > 0 && time - 1 <= reach(before)) {
      moment.gradient_send_to = time <= reach(before) ? ahead : before;
      moment.gradient_send_owner = before;
      count_message(gradient_bytes(chunk_rows(before, chunk)));
    }
    if (gradients && reach(rank_) > 0 && time - 1 == reach(rank_))
      moment.gradient_home_from = at_distance(direction * reach(rank_));
    moments_.push_back(moment);
  }
}

StepItems Plan::items(const Moment& moment, bool all_rows) const {
  const Shards all_keys = shards(Side::key_value), all_queries = shards(Side::query);
  const std::int64_t begin = chunk_begin(moment.holds, moment.chunk), end = chunk_begin(moment.holds, moment.chunk + 1);
  const Shards::Documents documents = all_rows ? all_queries.documents() : all_keys.documents(moment.holds, begin, end);
  // The items point into the lists of pieces, which must not move. A document has two pieces at most, and a piece a row at least.
  const auto reserve = [&](std::vector<Piece>& pieces, std::int64_t rows) {
    pieces.reserve(static_cast<std::size_t>(std::min(2 * std::ranges::ssize(documents), rows)));
  };
  StepItems step;
  reserve(step.queries, query_rows());
  reserve(step.keys, end - begin);
  std::int64_t row = 0;
  for (const std::int64_t d : documents) {
    const std::size_t first_query = step.queries.size(), first_key = step.keys.size();
    for (const Piece& piece : all_queries.share(rank_, d)) step.queries.push_back(piece);
    for (const Piece& piece : all_keys.deal(moment.holds, d, begin, end)) {
      step.keys.push_back(piece);
      step.keys.back().row = row;
      row += piece.length;
    }
    const Document& document = problem_.documents[static_cast<std::size_t>(d)];
    WorkItem item{problem_.band(document), document.kv_begin, std::span(step.queries).subspan(first_query),
                  std::span(step.keys).subspan(first_key)};
    const bool sees = item_sees(item, kv_length_);
    if (!sees) item.keys = {};
    if (sees || (all_rows && !item.queries.empty())) step.items.push_back(item);
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

double count_visible_pairs(const Problem& problem, int world_size, int rank) {
  const std::int64_t entries = problem.kv_lengths.empty() ? 1 : problem.batch;  // without padding all entries are alike
  const Shards queries(problem, Side::query, world_size);
  double pairs = 0;
  for (const std::int64_t d : queries.documents()) {
    const Document& document = problem.documents[static_cast<std::size_t>(d)];
    for (const Piece& piece : queries.share(rank, d))
      for (std::int64_t b = 0; b < entries; ++b) {
        const VisibleCount visible{problem.band(document),
                                   std::min(document.kv_length, problem.kv_length(b) - document.kv_begin)};
        if (visible.limit > 0) pairs += visible.sum(piece);
      }
  }
  return pairs * static_cast<double>(problem.batch / entries);
}

}  // namespace ringattn
