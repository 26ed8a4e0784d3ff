#include "plan/schedule.h"

#include <algorithm>

#include "core/divide.h"
#include "plan/shard.h"

namespace ringattn {
namespace {

// Rows of a chunk where the caller leaves the number of chunks to us: long enough that a step outweighs its messages,
// short enough that what is in flight stays small beside the shards.
constexpr std::int64_t forward_chunk_rows = 8192;
constexpr std::int64_t backward_chunk_rows = 1024;
constexpr std::int64_t most_chosen_chunks = 1024;

std::int64_t largest_divisor(std::int64_t of, std::int64_t most) {
  std::int64_t largest = 1;
  for (std::int64_t d = 1; d <= of / d; ++d)
    if (of % d == 0)
      for (const std::int64_t divisor : {d, of / d})
        if (divisor <= most) largest = std::max(largest, divisor);
  return largest;
}

Cutting cut_for_ring(const Problem& p, int world_size, Pass pass, std::int64_t longest_shard) {
  Cutting cutting{Schedule::ring, 1, p.batch, p.num_heads_kv};
  if (pass == Pass::forward && world_size == 1) return cutting;  // nothing travels and nothing is held back
  const std::int64_t rows = pass == Pass::forward ? forward_chunk_rows : backward_chunk_rows;
  cutting.num_chunks = p.num_chunks > 0 ? std::min(p.num_chunks, longest_shard)
                                        : std::min(divide_up(longest_shard, rows), most_chosen_chunks);
  return cutting;
}

Cutting cut_for_all_gather(const Problem& p, int world_size, Pass pass, std::int64_t longest_shard,
                           std::int64_t bound) {
  const std::int64_t gradients = pass == Pass::backward ? 2 * world_size - 1 : 0;
  const std::int64_t row_bytes =
      (p.head_dim + p.head_dim_v) * (world_size * size_of(p.dtype) + gradients * size_of(DType::float32));
  // A key's bias, once for all heads, and what there may be between it and V in each chunk.
  const std::int64_t bias_bytes = p.has_key_bias ? world_size * size_of(DType::float32) : 0,
                     padding = p.has_key_bias ? world_size * (size_of(DType::float32) - size_of(p.dtype)) : 0;
  const std::int64_t room = bound - padding;
  Cutting cutting{Schedule::all_gather, 1, 1, 1};
  const std::int64_t fitting_rows = std::max<std::int64_t>(room / (row_bytes + bias_bytes), 1);
  cutting.num_chunks = std::min(p.num_chunks > 0 ? p.num_chunks : divide_up(longest_shard, fitting_rows),
                                p.num_chunks > 0 ? longest_shard : most_chosen_chunks);
  const std::int64_t room_of_row = room / divide_up(longest_shard, cutting.num_chunks);
  const std::int64_t heads = (room_of_row - bias_bytes) / row_bytes;
  if (heads < p.num_heads_kv) {
    cutting.heads_kv = largest_divisor(p.num_heads_kv, heads);
  } else {
    cutting.heads_kv = p.num_heads_kv;
    cutting.entries = largest_divisor(p.batch, room_of_row / (p.num_heads_kv * row_bytes + bias_bytes));
  }
  return cutting;
}

}  // namespace

Cutting choose_cutting(const Problem& p, int world_size, Pass pass) {
  const Shards keys(p, Side::key_value, world_size);
  std::int64_t longest_shard = 1;
  for (int rank = 0; rank < world_size; ++rank) longest_shard = std::max(longest_shard, keys.rows(rank));
  return choose_cutting(p, world_size, pass, longest_shard);
}

Cutting choose_cutting(const Problem& p, int world_size, Pass pass, std::int64_t longest_shard) {
  const Cutting ring = cut_for_ring(p, world_size, pass, longest_shard);
  if (p.schedule == Schedule::ring || world_size == 1) return ring;
  const bool is_short = world_size >= 3 && longest_shard <= gathered_rows && p.num_chunks == 0;
  if (p.schedule == Schedule::automatic && !is_short) return ring;
  const std::int64_t asked = p.gather_bytes > 0 ? p.gather_bytes : usual_gather_bytes;
  const std::int64_t bound = p.schedule == Schedule::automatic ? std::min(asked, automatic_gather_bytes) : asked;
  const Cutting gather = cut_for_all_gather(p, world_size, pass, longest_shard, bound);
  const bool at_once = gather == Cutting{Schedule::all_gather, 1, p.batch, p.num_heads_kv};
  return p.schedule == Schedule::all_gather || at_once ? gather : ring;
}

}  // namespace ringattn
