#include "plan/shard.h"

#include <iterator>
#include <ranges>

namespace ringattn {

std::int64_t Shards::rows_before_position(int rank, std::int64_t position) const {
  if (problem_.sharding == Sharding::striped) {
    const std::int64_t stripe = problem_.stripe, period = world_size_ * stripe;
    return position / period * stripe + std::clamp<std::int64_t>(position % period - rank * stripe, 0, stripe);
  }
  const Cut cut(position, num_parts());
  const std::int64_t rows = cut.length(rank);
  return problem_.sharding == Sharding::zigzag ? rows + cut.length(num_parts() - 1 - rank) : rows;
}

std::int64_t Shards::document_of(int rank, std::int64_t row) const {
  const auto documents = std::views::iota(std::int64_t{0}, num_documents());
  return *std::ranges::partition_point(documents, [&](std::int64_t d) { return rows_before(rank, d + 1) <= row; });
}

Share Shards::share(int rank, std::int64_t document) const {
  Share share;
  const std::int64_t begin = begin_of(document), end = begin_of(document + 1);
  std::int64_t row = rows_before_position(rank, begin);
  if (problem_.sharding == Sharding::striped) {  // a stretch of the rank's stripes of the whole sequence
    const std::int64_t stripe = problem_.stripe, row_end = rows_before_position(rank, end);
    share.add(
        {.document = document,
         .run = {.start = rank * stripe - begin, .block = stripe, .stride = world_size_ * stripe, .length = row_end},
         .first = row,
         .length = row_end - row,
         .row = row});
    return share;
  }
  const Cut cut(end - begin, num_parts(), begin % num_parts());
  const auto add_part = [&](std::int64_t part) {
    const std::int64_t length = cut.length(part), block = std::max<std::int64_t>(length, 1);
    share.add({.document = document,
               .run = {.start = cut.begin(part), .block = block, .stride = block, .length = length},
               .first = 0,
               .length = length,
               .row = row});
    row += length;
  };
  add_part(rank);
  if (problem_.sharding == Sharding::zigzag) add_part(num_parts() - 1 - rank);
  return share;
}

// Pieces of one document differ by at most one in length. The longer one has the first turn; so of the document's first m
// tokens in the order of dealing, the piece whose turn is number t of k has (m + k - 1 - t) / k, rounded down.
Share Shards::deal(int rank, std::int64_t document, std::int64_t begin, std::int64_t end) const {
  Share dealt;
  const Share whole = share(rank, document);
  if (whole.empty()) return dealt;
  const std::int64_t row = whole[0].row, length = rows_before(rank, document + 1) - row;
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

std::vector<Piece> shard_pieces(const Problem& problem, Side side, int world_size, int rank) {
  const Shards shards(problem, side, world_size);
  std::vector<Piece> pieces;
  for (std::int64_t d = 0; d < shards.num_documents(); ++d)
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

std::vector<Piece> packed(std::vector<Piece> pieces) {
  std::int64_t row = 0;
  for (Piece& piece : pieces) {
    piece.row = row;
    row += piece.length;
  }
  return pieces;
}

std::int64_t row_position(const Problem& problem, Side side, const std::vector<Piece>& pieces, std::int64_t row) {
  const auto piece =
      std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.row + p.length <= row; });
  return problem.documents[static_cast<std::size_t>(piece->document)].begin(side) + piece->position(row - piece->row);
}

}  // namespace ringattn
