#include "engine/cuda/step.h"

#include <algorithm>
#include <cstddef>

namespace ringattn::cuda {
namespace {

// A piece in one block of its run is a run of one block, from the piece's first member on: so are both of two pieces.
bool is_dense(const Piece& piece) {
  return piece.first / piece.run.block == (piece.first + piece.length - 1) / piece.run.block;
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

Item make_item(const WorkItem& item) {
  return {.queries = make_members(item.queries),
          .keys = make_members(item.keys),
          .lower = item.band.lower,
          .upper = item.band.upper,
          .kv_begin = item.kv_begin,
          .first_tile = 0};
}

void for_each_work(const Problem& problem, std::span<const WorkItem> items, Side side, std::int64_t tile,
                   std::int64_t blocks, const std::function<void(const Work&)>& f) {
  Work work{};
  work.is_padded = problem.kv_lengths.empty() ? 0 : 1;
  // The items so far, for all entries.
  const auto end_work = [&] {
    const std::int64_t room = most_blocks / (std::max(work.num_tiles, 1) * blocks);
    const std::int64_t entries =
        std::max<std::int64_t>(work.is_padded ? std::min<std::int64_t>(Work::most_entries, room) : room, 1);
    for (std::int64_t first = 0; first < problem.batch && work.num_items > 0; first += entries) {
      work.first_entry = static_cast<std::int32_t>(first);
      work.num_entries = static_cast<std::int32_t>(std::min(entries, problem.batch - first));
      for (std::int64_t n = 0; n < (work.is_padded ? work.num_entries : 1); ++n)
        work.length[n] = problem.kv_length(first + n);
      f(work);
    }
    work.num_items = work.num_tiles = 0;
  };
  for (const WorkItem& from : items) {
    Item item = make_item(from);
    const std::int64_t count = members_of(item, side).count();
    if (count == 0) continue;
    const std::int64_t tiles = (count + tile - 1) / tile;
    if (work.num_items == Work::most_items || (work.num_tiles + tiles) * blocks > most_blocks) end_work();
    item.first_tile = work.num_tiles;
    work.item[work.num_items++] = item;
    work.num_tiles += static_cast<std::int32_t>(tiles);
  }
  end_work();
}

Range rows_of(const Work& work, Side side) {
  Range rows{0, 0};
  for (int n = 0; n < work.num_items; ++n) {
    const Members& members = members_of(work.item[n], side);
    if (members.count() == 0) continue;
    const Range own{members.row, members.row + members.count()};
    rows = rows.empty() ? own : Range{std::min(rows.begin, own.begin), std::max(rows.end, own.end)};
  }
  return rows;
}

View view_of(const Tensor& tensor) { return {tensor.data, tensor.batch_stride, tensor.seq_stride, tensor.head_stride}; }

bool is_aligned(const Tensor& tensor) {
  const std::int64_t size = size_of(tensor.dtype);
  return (static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data)) | tensor.batch_stride * size |
          tensor.seq_stride * size | tensor.head_stride * size) %
             16 ==
         0;
}

Access access_of(const Tensor& tensor, const Work& work, Range rows, std::int64_t heads, std::int64_t dim,
                 bool writes) {
  return access_of(tensor.from(work.first_entry, rows.begin, 0), work.num_entries, {rows.end - rows.begin, heads, dim},
                   writes);
}

Access access_of(const float* values, const Work& work, Range rows, std::int64_t heads, std::int64_t stored_rows,
                 bool writes) {
  Tensor tensor = packed_tensor(const_cast<float*>(values), DType::float32, heads, stored_rows, 1);
  tensor.head_stride = stored_rows;
  tensor.seq_stride = 1;
  return access_of(tensor, work, rows, heads, 1, writes);
}

}  // namespace ringattn::cuda
