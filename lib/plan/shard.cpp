#include "plan/shard.h"

namespace ringattn {
namespace {

Run contiguous_run(std::int64_t length, std::int64_t parts, std::int64_t part) {
  const std::int64_t begin = part_begin(length, parts, part);
  const std::int64_t count = part_begin(length, parts, part + 1) - begin;
  return {.start = begin,
          .block = std::max<std::int64_t>(count, 1),
          .stride = std::max<std::int64_t>(count, 1),
          .length = count};
}

Run striped_run(std::int64_t length, std::int64_t stripe, std::int64_t world_size, std::int64_t rank) {
  stripe = std::min(stripe, std::max<std::int64_t>(length, 1));
  const std::int64_t period = world_size * stripe, start = rank * stripe;
  const std::int64_t count = length / period * stripe + std::clamp<std::int64_t>(length % period - start, 0, stripe);
  return {.start = start, .block = stripe, .stride = period, .length = count};
}

}  // namespace

std::vector<Piece> shard_pieces(const Problem& problem, Side side, int world_size, int rank) {
  std::vector<Piece> pieces;
  std::int64_t row = 0;
  const auto add = [&](std::size_t document, const Run& run) {
    if (run.length == 0) return;
    pieces.push_back(
        {.document = static_cast<std::int64_t>(document), .run = run, .first = 0, .length = run.length, .row = row});
    row += run.length;
  };
  for (std::size_t d = 0; d < problem.documents.size(); ++d) {
    const std::int64_t length = problem.documents[d].length(side);
    switch (problem.sharding) {
      case Sharding::contiguous:
        add(d, contiguous_run(length, world_size, rank));
        break;
      case Sharding::zigzag:
        add(d, contiguous_run(length, 2 * std::int64_t{world_size}, rank));
        add(d, contiguous_run(length, 2 * std::int64_t{world_size}, 2 * std::int64_t{world_size} - 1 - rank));
        break;
      case Sharding::striped:
        add(d, striped_run(length, problem.stripe, world_size, rank));
        break;
    }
  }
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

// The pieces of a document differ by at most one in length, longer ones first; so of its first m tokens in the order of
// dealing, piece i of k has (m + k - 1 - i) / k, rounded down.
std::vector<Piece> deal(std::span<const Piece> shard, std::int64_t begin, std::int64_t end) {
  std::vector<Piece> dealt;
  auto piece =
      std::partition_point(shard.begin(), shard.end(), [&](const Piece& p) { return p.row + p.length <= begin; });
  while (piece != shard.begin() && piece != shard.end() && (piece - 1)->document == piece->document) --piece;
  while (piece != shard.end() && piece->row < end) {
    const auto next = std::find_if(piece, shard.end(), [&](const Piece& p) { return p.document != piece->document; });
    const std::int64_t pieces = next - piece, length = (next - 1)->row + (next - 1)->length - piece->row;
    const std::int64_t from = std::clamp<std::int64_t>(begin - piece->row, 0, length),
                       to = std::clamp<std::int64_t>(end - piece->row, 0, length);
    for (std::int64_t turn = pieces - 1; piece != next; ++piece, --turn) {
      const std::int64_t first = (from + turn) / pieces, last = (to + turn) / pieces;
      if (first == last) continue;
      dealt.push_back(*piece);
      dealt.back().first += first;
      dealt.back().length = last - first;
      dealt.back().row += first;
    }
  }
  return dealt;
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
