// How a step of the ring becomes launches: its items, as kernels take them (item.h), a launch's worth at a time. Host code, pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/cuda/access.h"
#include "engine/cuda/item.h"
#include "engine/engine.h"

namespace ringattn::cuda {

// The item with all its rows and keys; first_tile is 0. Pieces of either side follow one another in storage, and are few enough for
// Members (for_each_turn).
PlacedItem make_item(const WorkItem& item);

// Of a layer (plan/layer.h) an item's side may have any number of pieces: of one that Members cannot be, some are taken at a time. Calls
// f(items) with items whose rows of `side` nothing else in the same turn has, turn after turn; all of them together are `items`.
void for_each_turn(std::span<const WorkItem> items, Side side, const std::function<void(std::span<const WorkItem>)>& f);

// Blocks of a launch. One item of one entry never has as many: no device has memory for so many rows.
constexpr std::int64_t most_blocks = (std::int64_t{1} << 31) - 1;

// Calls f with each launch's work, in the order of the items. Tiles are of `tile` queries, or keys, and take `blocks` blocks for an
// entry; an item that has none is left out. Of Work and PlacedWork, as are the functions below.
template <class W>
void for_each_work(const Problem& problem, std::span<const WorkItem> items, Side side, std::int64_t tile,
                   std::int64_t blocks, const std::function<void(const W&)>& f);

// Rows of one side that a work's items have: from the first to the last.
template <class W>
Range rows_of(const W& work, Side side);

View view_of(const Tensor& tensor);
// Whether every row begins at a multiple of 16 bytes.
bool is_aligned(const Tensor& tensor);

// From the first byte to the last of the rows of some entries, in all heads. `rows` is not empty.
template <class W>
Access access_of(const Tensor& tensor, const W& work, Range rows, std::int64_t heads, std::int64_t dim, bool writes) {
  return access_of(tensor.from(work.first_entry, rows.begin, 0), work.num_entries, {rows.end - rows.begin, heads, dim},
                   writes);
}
// The same of fp32 values [batch, heads, stored_rows].
template <class W>
Access access_of(const float* values, const W& work, Range rows, std::int64_t heads, std::int64_t stored_rows,
                 bool writes) {
  return access_of(row_tensor(values, stored_rows, heads), work, rows, heads, 1, writes);
}

}  // namespace ringattn::cuda
