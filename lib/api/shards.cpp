#include <cstring>

#include "api/barrier.h"
#include "api/structs.h"
#include "api/validate.h"
#include "plan/shard.h"

using namespace ringattn;
using namespace ringattn::api;

namespace {

struct Shard {
  Problem problem;
  Side side;
  std::vector<Piece> pieces;
};

Shard to_shard(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side) {
  Shard shard{to_problem(read(desc, "desc")), to_side(side), {}};
  require_range("world_size", world_size, 1, most_ranks);
  require_range("rank", rank, 0, world_size - 1);
  shard.pieces = shard_pieces(shard.problem, shard.side, world_size, rank);
  return shard;
}

// Copies every token of a shard between its place in the whole sequence and its place in the shard.
void copy_shard(const ra_attention_desc *desc, int32_t world_size, int32_t rank, const ra_sequence_args *args,
                bool split) {
  const ra_sequence_args a = read(args, "args");
  const Shard shard = to_shard(desc, world_size, rank, a.side);
  const Problem &p = shard.problem;
  require_range("num_heads", a.num_heads, 1, most_heads);
  require_range("dim", a.dim, 1, most_copied_dim);
  const DType dtype = to_dtype("dtype", a.dtype, p.dtype);
  const Shape whole_shape{p.batch, p.seqlen(shard.side), a.num_heads, a.dim};
  const Shape shard_shape{p.batch, row_count(shard.pieces), a.num_heads, a.dim};
  Ranges ranges;
  const Tensor whole =
      split ? ranges.input("whole", a.whole, dtype, whole_shape) : ranges.output("whole", a.whole, dtype, whole_shape);
  const Tensor part =
      split ? ranges.output("shard", a.shard, dtype, shard_shape) : ranges.input("shard", a.shard, dtype, shard_shape);
  ranges.require_disjoint();

  const auto bytes = static_cast<std::size_t>(a.dim * size_of(dtype));
  const auto address = [&](const Tensor &t, std::int64_t b, std::int64_t i, std::int64_t h) {
    return static_cast<std::byte *>(t.data) + t.offset(b, i, h) * size_of(dtype);
  };
  for (const Piece &piece : shard.pieces) {
    const std::int64_t begin = p.documents[static_cast<std::size_t>(piece.document)].begin(shard.side);
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t i = 0; i < piece.length; ++i)
        for (std::int64_t h = 0; h < a.num_heads; ++h) {
          std::byte *const in_whole = address(whole, b, begin + piece.position(i), h);
          std::byte *const in_shard = address(part, b, piece.row + i, h);
          std::memcpy(split ? in_shard : in_whole, split ? in_whole : in_shard, bytes);
        }
  }
}

}  // namespace

extern "C" {

void ra_init_sequence_args(ra_sequence_args *args, size_t struct_size) { init(args, struct_size); }

int64_t ra_get_shard_length(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                            ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] { return row_count(to_shard(desc, world_size, rank, side).pieces); });
}

int64_t ra_get_shard_position(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                              int64_t index, ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] {
    const Shard shard = to_shard(desc, world_size, rank, side);
    const std::int64_t length = row_count(shard.pieces);
    require(0 <= index && index < length, "index is ", index, "; must be 0 .. ", length - 1,
            ", below the shard's length ", length);
    return row_position(shard.problem, shard.side, shard.pieces, index);
  });
}

ra_status ra_split_sequence(const ra_attention_desc *desc, int32_t world_size, int32_t rank,
                            const ra_sequence_args *args, ra_error *error) {
  return guard(error, [&] { copy_shard(desc, world_size, rank, args, true); });
}

ra_status ra_join_sequence(const ra_attention_desc *desc, int32_t world_size, int32_t rank,
                           const ra_sequence_args *args, ra_error *error) {
  return guard(error, [&] { copy_shard(desc, world_size, rank, args, false); });
}

}  // extern "C"
