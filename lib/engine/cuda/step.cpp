#include "engine/cuda/step.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace ringattn::cuda {
namespace {

// A piece in one block of its run is a run of one block, from the piece's first member on: so are both of two pieces.
bool is_dense(const Piece& piece) {
  return piece.first / piece.run.block == (piece.first + piece.length - 1) / piece.run.block;
}

// The first of the pieces, as many as Members can be.
std::span<const Piece> take_group(std::span<const Piece> pieces) {
  const auto follows = [](const Piece& a, const Piece& b) { return a.position(a.length - 1) < b.position(0); };
  if (pieces.size() < 2) return pieces;
  const bool two = is_dense(pieces[0]) && is_dense(pieces[1]) && follows(pieces[0], pieces[1]);
  return pieces.first(two ? 2 : 1);
}

Members make_members(std::span<const Piece> pieces) {
  Members members{};
  members.block = members.stride = Band::unbounded;
  if (pieces.empty()) return members;
  members.row = pieces[0].row;
  if (!std::all_of(pieces.begin(), pieces.end(), is_dense)) {
    const Piece& only = pieces[0];
    members.block = only.run.block;
    members.stride = only.run.stride;
    members.part[0] = {only.run.start, only.first, only.length};
    return members;
  }
  for (std::size_t n = 0; n < pieces.size(); ++n) members.part[n] = {pieces[n].position(0), 0, pieces[n].length};
  return members;
}

const Members& members_of(const Item& item, Side side) { return side == Side::query ? item.queries : item.keys; }

}  // namespace

PlacedItem make_item(const WorkItem& item) {
  PlacedItem placed{};
  placed.queries = make_members(item.queries);
  placed.keys = make_members(item.keys);
  placed.lower = item.band.lower;
  placed.upper = item.band.upper;
  placed.kv_begin = item.kv_begin / item.spacing;
  placed.q_begin = item.q_begin;
  placed.first_key = item.kv_begin;
  placed.spacing = item.spacing;
  placed.shift = item.shift;
  return placed;
}

void for_each_turn(std::span<const WorkItem> items, Side side,
                   const std::function<void(std::span<const WorkItem>)>& f) {
  const auto fits = [](std::span<const Piece> pieces) { return take_group(pieces).size() == pieces.size(); };
  if (std::all_of(items.begin(), items.end(),
                  [&](const WorkItem& item) { return fits(item.queries) && fits(item.keys); }))
    return f(items);
  const bool of_queries = side == Side::query;
  std::vector<std::vector<WorkItem>> turns(1);
  for (const WorkItem& item : items) {
    std::span<const Piece> others = of_queries ? item.keys : item.queries;
    for (std::size_t turn = 0; turn == 0 || !others.empty(); ++turn) {
      const std::span<const Piece> group = take_group(others);
      others = others.subspan(group.size());
      if (turn == turns.size()) turns.emplace_back();
      for (std::span<const Piece> own = of_queries ? item.queries : item.keys; !own.empty();) {
        const std::span<const Piece> own_group = take_group(own);
        own = own.subspan(own_group.size());
        WorkItem& part = turns[turn].emplace_back(item);
        part.queries = of_queries ? own_group : group;
        part.keys = of_queries ? group : own_group;
      }
    }
  }
  for (const std::vector<WorkItem>& turn : turns) f(turn);
}

// Padding begins at a position of the whole sequence. What lies before it, in steps of an item's spacing, is the same for all items that
// begin at the same place between two steps: only such are in one launch, if there is any padding.
template <class W>
void for_each_work(const Problem& problem, std::span<const WorkItem> items, Side side, std::int64_t tile,
                   std::int64_t blocks, const std::function<void(const W&)>& f) {
  W work{};
  work.is_padded = problem.kv_lengths.empty() ? 0 : 1;
  std::int64_t spacing = 1, between = 0;
  // The items so far, for all entries.
  const auto end_work = [&] {
    const std::int64_t room = most_blocks / (std::max(work.num_tiles, 1) * blocks);
    const std::int64_t entries =
        std::max<std::int64_t>(work.is_padded ? std::min<std::int64_t>(W::most_entries, room) : room, 1);
    for (std::int64_t first = 0; first < problem.batch && work.num_items > 0; first += entries) {
      work.first_entry = static_cast<std::int32_t>(first);
      work.num_entries = static_cast<std::int32_t>(std::min(entries, problem.batch - first));
      for (std::int64_t n = 0; n < (work.is_padded ? work.num_entries : 1); ++n) {
        const std::int64_t distance = problem.kv_length(first + n) - between;
        work.length[n] = distance <= 0 ? 0 : (distance - 1) / spacing + 1;
      }
      f(work);
    }
    work.num_items = work.num_tiles = 0;
  };
  for (const WorkItem& from : items) {
    const PlacedItem placed = make_item(from);
    const std::int64_t count = members_of(placed, side).count();
    if (count == 0) continue;
    const std::int64_t tiles = (count + tile - 1) / tile;
    const std::int64_t own_between = from.kv_begin % from.spacing;
    const bool counts_alike = !work.is_padded || (spacing == from.spacing && between == own_between);
    if (work.num_items == W::most_items || (work.num_tiles + tiles) * blocks > most_blocks || !counts_alike) end_work();
    if (work.is_padded) {
      spacing = from.spacing;
      between = own_between;
    }
    auto& item = work.item[work.num_items++];
    if constexpr (std::is_same_v<W, Work>)
      item = static_cast<const Item&>(placed);
    else
      item = placed;
    item.first_tile = work.num_tiles;
    work.num_tiles += static_cast<std::int32_t>(tiles);
  }
  end_work();
}

template <class W>
Range rows_of(const W& work, Side side) {
  Range rows{0, 0};
  for (int n = 0; n < work.num_items; ++n) {
    const Members& members = members_of(work.item[n], side);
    if (members.count() == 0) continue;
    const Range own{members.row, members.row + members.count()};
    rows = rows.empty() ? own : Range{std::min(rows.begin, own.begin), std::max(rows.end, own.end)};
  }
  return rows;
}

template void for_each_work(const Problem&, std::span<const WorkItem>, Side, std::int64_t, std::int64_t,
                            const std::function<void(const Work&)>&);
template void for_each_work(const Problem&, std::span<const WorkItem>, Side, std::int64_t, std::int64_t,
                            const std::function<void(const PlacedWork&)>&);
template Range rows_of(const Work&, Side);
template Range rows_of(const PlacedWork&, Side);

View view_of(const Tensor& tensor) { return {tensor.data, tensor.batch_stride, tensor.seq_stride, tensor.head_stride}; }

bool is_aligned(const Tensor& tensor) {
  const std::int64_t size = size_of(tensor.dtype);
  return (static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data)) | tensor.batch_stride * size |
          tensor.seq_stride * size | tensor.head_stride * size) %
             16 ==
         0;
}

}  // namespace ringattn::cuda
