#include <algorithm>
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
  int world_size;
  int rank;

  std::int64_t rows() const { return Shards(problem, side, world_size).rows(rank); }

  // Calls f(piece, begin of its document in the whole sequence) for the pieces that have any of rows begin .. end - 1.
  template <class F>
  void for_each_piece(std::int64_t begin, std::int64_t end, F &&f) const {
    const Shards shards(problem, side, world_size);
    for (const std::int64_t d : shards.documents(rank, begin, end))
      for (const Piece &piece : shards.share(rank, d))
        f(piece, problem.documents[static_cast<std::size_t>(d)].begin(side));
  }

  // Positions in the whole sequence of rows first .. first + count - 1.
  void get_positions(std::int64_t first, std::int64_t count, std::int64_t *positions) const {
    for_each_piece(first, first + count, [&](const Piece &piece, std::int64_t document_begin) {
      const std::int64_t end = std::min(first + count, piece.row + piece.length);
      for (std::int64_t row = std::max(first, piece.row); row < end; ++row)
        positions[row - first] = document_begin + piece.position(row - piece.row);
    });
  }
};

Shard to_shard(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side) {
  Shard shard{to_problem(read(desc, "desc")), to_side(side), world_size, rank};
  require_range("world_size", world_size, 1, most_ranks);
  require_range("rank", rank, 0, world_size - 1);
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
  const Shape shard_shape{p.batch, shard.rows(), a.num_heads, a.dim};
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
  shard.for_each_piece(0, shard.rows(), [&](const Piece &piece, std::int64_t begin) {
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t i = 0; i < piece.length; ++i)
        for (std::int64_t h = 0; h < a.num_heads; ++h) {
          std::byte *const in_whole = address(whole, b, begin + piece.position(i), h);
          std::byte *const in_shard = address(part, b, piece.row + i, h);
          std::memcpy(split ? in_shard : in_whole, split ? in_whole : in_shard, bytes);
        }
  });
}

}  // namespace

extern "C" {

void ra_init_sequence_args(ra_sequence_args *args, size_t struct_size) { init(args, struct_size); }

int64_t ra_get_shard_length(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                            ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] { return to_shard(desc, world_size, rank, side).rows(); });
}

int64_t ra_get_shard_position(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                              int64_t index, ra_error *error) {
  return guard_value<std::int64_t>(error, -1, [&] {
    const Shard shard = to_shard(desc, world_size, rank, side);
    const std::int64_t length = shard.rows();
    require(0 <= index && index < length, "index is ", index, "; must be 0 .. ", length - 1,
            ", below the shard's length ", length);
    std::int64_t position = 0;
    shard.get_positions(index, 1, &position);
    return position;
  });
}

ra_status ra_get_shard_positions(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                                 int64_t first, int64_t count, int64_t *positions, ra_error *error) {
  return guard(error, [&] {
    const Shard shard = to_shard(desc, world_size, rank, side);
    const std::int64_t length = shard.rows();
    require(0 <= first && first <= length, "first is ", first, "; must be 0 .. ", length, ", the shard's length");
    require(0 <= count && count <= length - first, "count is ", count, "; must be 0 .. ", length - first,
            ", what the shard's length ", length, " leaves from ", first, " on");
    Ranges ranges;
    ranges.output("positions", positions, {}, count * std::int64_t{sizeof *positions}, alignof(std::int64_t), false);
    shard.get_positions(first, count, positions);
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
