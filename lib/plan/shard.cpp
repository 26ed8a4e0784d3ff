#include "plan/shard.h"

#include <bit>
#include <numeric>

namespace ringattn {

std::int64_t Cut::part_of(std::int64_t thing) const {
  const std::ranges::iota_view<std::int64_t, std::int64_t> parts(1, parts_);
  return *std::ranges::partition_point(parts, [&](std::int64_t part) { return begin(part) <= thing; }) - 1;
}

void RankSet::add(std::int64_t first, std::int64_t count) {
  const int begin = static_cast<int>((first - origin_ + world_size_) % world_size_);
  const int end = begin + static_cast<int>(std::min<std::int64_t>(count, world_size_));
  add_distances(begin, std::min(end, world_size_));
  add_distances(0, end - world_size_);
  is_full_ = is_full_ || count >= world_size_;
}

void RankSet::add_distances(int begin, int end) {
  for (int next = 0; begin < end; begin = next) {
    const int word = begin / word_bits;
    next = std::min(end, (word + 1) * word_bits);
    words_[static_cast<std::size_t>(word)] |= ~std::uint64_t{0} >> (word_bits - (next - begin)) << begin % word_bits;
  }
}

int RankSet::find(int from, bool member) const {
  for (int next = 0; from < world_size_; from = next) {
    const int word = from / word_bits;
    next = (word + 1) * word_bits;
    const std::uint64_t bits = words_[static_cast<std::size_t>(word)],
                        wanted = (member ? bits : ~bits) >> from % word_bits;
    if (wanted != 0) return std::min(from + std::countr_zero(wanted), world_size_);
  }
  return world_size_;
}

std::int64_t Shards::rows_before(int rank, std::int64_t position) const {
  if (world_size_ == 1) return position;
  if (sharding_ == Sharding::striped) {
    const std::int64_t stripe = problem_.stripe, period = world_size_ * stripe;
    return position / period * stripe + std::clamp<std::int64_t>(position % period - rank * stripe, 0, stripe);
  }
  const Cut cut(position, parts_of_cut());
  const std::int64_t rows = cut.length(rank);
  return sharding_ == Sharding::zigzag ? rows + cut.length(parts_of_cut() - 1 - rank) : rows;
}

std::int64_t Shards::document_of(int rank, std::int64_t row) const {
  return *std::ranges::partition_point(documents(),
                                       [&](std::int64_t d) { return rows_before(rank, begin_of(d + 1)) <= row; });
}

Share Shards::share(int rank, std::int64_t document) const {
  Share share;
  const std::int64_t begin = begin_of(document), end = begin_of(document + 1);
  std::int64_t row = rows_before(rank, begin);
  if (sharding_ == Sharding::striped) {  // a stretch of the rank's stripes of the whole sequence
    const std::int64_t stripe = problem_.stripe, row_end = rows_before(rank, end);
    share.add(
        {.unit = document,
         .run = {.start = rank * stripe - begin, .block = stripe, .stride = world_size_ * stripe, .length = row_end},
         .first = row,
         .length = row_end - row,
         .row = row});
    return share;
  }
  const Cut cut = cut_of(document);
  const auto add_part = [&](std::int64_t part) {
    const std::int64_t length = cut.length(part), block = std::max<std::int64_t>(length, 1);
    share.add({.unit = document,
               .run = {.start = cut.begin(part), .block = block, .stride = block, .length = length},
               .first = 0,
               .length = length,
               .row = row});
    row += length;
  };
  add_part(rank);
  if (sharding_ == Sharding::zigzag) add_part(parts_of_cut() - 1 - rank);
  return share;
}

// Pieces of one document differ by at most one in length. The longer one has the first turn; so of the document's first m
// tokens in the order of dealing, the piece whose turn is number t of k has (m + k - 1 - t) / k, rounded down.
Share Shards::deal(int rank, std::int64_t document, std::int64_t begin, std::int64_t end) const {
  Share dealt;
  const Share whole = share(rank, document);
  if (whole.empty()) return dealt;
  const Piece& back = whole[whole.size() - 1];
  const std::int64_t row = whole[0].row, length = back.row + back.length - row;
  const std::int64_t from = std::clamp<std::int64_t>(begin - row, 0, length),
                     to = std::clamp<std::int64_t>(end - row, 0, length);
  const auto pieces = static_cast<std::int64_t>(whole.size());
  const bool backwards = pieces == 2 && whole[1].length > whole[0].length;
  std::int64_t number = 0;
  for (Piece piece : whole) {
    const std::int64_t turn = backwards ? pieces - 1 - number : number;
    const std::int64_t first = (from + pieces - 1 - turn) / pieces, last = (to + pieces - 1 - turn) / pieces;
    piece.first += first;
    piece.length = last - first;
    piece.row += first;
    dealt.add(piece);
    ++number;
  }
  return dealt;
}

void Shards::add_owners(std::int64_t document, const Progression& tokens, RankSet& owners) const {
  if (tokens.count <= 0) return;
  const std::int64_t last_rank = world_size_ - 1;
  if (sharding_ == Sharding::striped) {
    const std::int64_t origin = begin_of(document);
    const auto stripe_of = [&](std::int64_t n) { return (origin + tokens.position(n)) / problem_.stripe; };
    if (tokens.spacing <= problem_.stripe) {  // no stripe is passed over
      const std::int64_t first = stripe_of(0), last = stripe_of(tokens.count - 1);
      return owners.add(first % world_size_, last - first + 1);
    }
    const std::int64_t repeat = turn() / std::gcd(turn(), tokens.spacing);
    for (std::int64_t n = 0; n < std::min(tokens.count, repeat); ++n) owners.add(stripe_of(n) % world_size_);
    return;
  }
  const Cut cut = cut_of(document);
  const auto add_parts = [&](std::int64_t first, std::int64_t last) {
    if (last > last_rank) {  // zigzag: parts P .. 2 P - 1 belong to ranks P - 1 .. 0
      const std::int64_t mirrored = parts_of_cut() - 1 - last;
      last = first > last_rank ? parts_of_cut() - 1 - first : last_rank;
      first = first > last_rank ? mirrored : std::min(first, mirrored);
    }
    owners.add(first, last - first + 1);
  };
  const auto add_side_by_side = [&](std::int64_t from, std::int64_t to) {
    if (from < to) add_parts(cut.part_of(from), cut.part_of(to - 1));
  };
  const std::int64_t begin = tokens.start, end = tokens.position(tokens.count - 1) + 1;
  if (tokens.spacing == 1 || tokens.spacing <= cut.shortest()) {  // no part is passed over
    add_side_by_side(begin, std::min(end, cut.before_gap()));
    add_side_by_side(std::max(begin, cut.before_gap()), end);
    return;
  }
  for (std::int64_t n = 0; n < tokens.count;) {
    const std::int64_t part = cut.part_of(tokens.position(n));
    add_parts(part, part);
    n = tokens.first_from(cut.begin(part + 1));
  }
}

std::int64_t Shards::count_beside(std::int64_t document, std::int64_t position) const {
  if (sharding_ == Sharding::striped) return problem_.stripe - (begin_of(document) + position) % problem_.stripe;
  const Cut cut = cut_of(document);
  return cut.begin(cut.part_of(position) + 1) - position;
}

std::vector<Piece> shard_pieces(const Problem& problem, Side side, int world_size, int rank) {
  const Shards shards(problem, side, world_size);
  std::vector<Piece> pieces;
  for (const std::int64_t d : shards.documents())
    for (const Piece& piece : shards.share(rank, d)) pieces.push_back(piece);
  return pieces;
}

std::vector<Piece> cut_rows(std::span<const Piece> pieces, std::int64_t begin, std::int64_t end) {
  std::vector<Piece> cut;
  const auto first =
      std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.row + p.length <= begin; });
  for (auto piece = first; piece != pieces.end() && piece->row < end; ++piece) {
    const std::int64_t from = std::max(begin, piece->row), to = std::min(end, piece->row + piece->length);
    if (from >= to) continue;
    cut.push_back(*piece);
    cut.back().first += from - piece->row;
    cut.back().length = to - from;
    cut.back().row = from - begin;
  }
  return cut;
}

std::int64_t row_position(const Problem& problem, Side side, const std::vector<Piece>& pieces, std::int64_t row) {
  const auto piece =
      std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.row + p.length <= row; });
  return problem.documents[static_cast<std::size_t>(piece->unit)].begin(side) + piece->position(row - piece->row);
}

}  // namespace ringattn
