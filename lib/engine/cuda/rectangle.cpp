#include "engine/cuda/rectangle.h"

#include <algorithm>

#include "core/divide.h"
#include "core/error.h"

namespace ringattn::cuda {
namespace {

// Distance from each token of a piece to the next; 0: there is but one.
std::optional<std::int64_t> distance_of(const Piece& piece) {
  if (piece.length <= 1) return 0;
  if (piece.first / piece.run.block == (piece.first + piece.length - 1) / piece.run.block) return 1;
  if (piece.run.block == 1) return piece.run.stride;
  return std::nullopt;
}

}  // namespace

std::string find_rectangle(const Band& band, const Piece& queries, const Piece& keys, std::optional<Rectangle>& found) {
  found.reset();
  if (queries.length == 0 || keys.length == 0) return {};
  const std::optional<std::int64_t> of_queries = distance_of(queries), of_keys = distance_of(keys);
  if (!of_queries || !of_keys) return text("stripes of ", queries.run.block, " tokens are not evenly spaced");
  if (*of_queries != *of_keys && *of_queries != 0 && *of_keys != 0)
    return text("queries stand ", *of_queries, " tokens apart and keys ", *of_keys);
  const std::int64_t distance = std::max<std::int64_t>(std::max(*of_queries, *of_keys), 1);
  const std::int64_t offset = queries.position(0) - keys.position(0);
  const std::int64_t lower = divide_up(band.lower + offset, distance),
                     upper = divide_down(band.upper + offset, distance);
  const std::int64_t first_row = std::max<std::int64_t>(0, -upper),
                     last_row = std::min(queries.length - 1, keys.length - 1 - lower);
  if (lower > upper || first_row > last_row) return {};
  const std::int64_t first_key = std::max<std::int64_t>(0, first_row + lower),
                     last_key = std::min(keys.length - 1, last_row + upper);
  Rectangle r{queries.row + first_row, last_row - first_row + 1, keys.row + first_key, last_key - first_key + 1, {}};
  const std::int64_t moved = first_row - first_key;
  if (upper + moved < r.keys - 1) r.band.upper = upper + moved;
  if (lower + moved > -(r.rows - 1)) r.band.lower = lower + moved;
  found = r;
  return {};
}

}  // namespace ringattn::cuda
