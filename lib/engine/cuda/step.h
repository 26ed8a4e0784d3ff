// How a step of the ring becomes launches: its items, as kernels take them (item.h), a launch's worth at a time. Host code, pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/cuda/access.h"
#include "engine/cuda/item.h"
#include "engine/engine.h"

namespace ringattn::cuda {

// The item with all its rows and keys; first_tile is 0. Pieces of either side follow one another in storage.
Item make_item(const WorkItem& item);

// Blocks of a launch. One item of one entry never has as many: no device has memory for so many rows.
constexpr std::int64_t most_blocks = (std::int64_t{1} << 31) - 1;

// Calls f with each launch's work, in the order of the items. Tiles are of `tile` queries, or keys, and take `blocks` blocks for an
// entry; an item that has none is left out.
void for_each_work(const Problem& problem, std::span<const WorkItem> items, Side side, std::int64_t tile,
                   std::int64_t blocks, const std::function<void(const Work&)>& f);

// Rows of one side that a work's items have: from the first to the last.
Range rows_of(const Work& work, Side side);

View view_of(const Tensor& tensor);
// Whether every row begins at a multiple of 16 bytes.
bool is_aligned(const Tensor& tensor);

// From the first byte to the last of the rows of some entries, in all heads. `rows` is not empty.
Access access_of(const Tensor& tensor, const Work& work, Range rows, std::int64_t heads, std::int64_t dim, bool writes);
// The same of fp32 values [batch, heads, stored_rows].
Access access_of(const float* values, const Work& work, Range rows, std::int64_t heads, std::int64_t stored_rows,
                 bool writes);

}  // namespace ringattn::cuda
