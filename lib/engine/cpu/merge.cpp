// lse = log(exp(lse_a) + exp(lse_b)), out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b, a row at a time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/cpu/tiles.h"
#include "engine/engine.h"

namespace ringattn {

void merge_attention(Extent extent, std::int64_t batch, const Partial& a, const Partial& b, const Tensor& out,
                     float* lse) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const cpu::Tiles& tiles = cpu::portable_tiles();  // memory, not arithmetic, is what takes the time
  const std::int64_t dim = extent.dim;
  std::vector<float> row_a(static_cast<std::size_t>(dim)), row_b(row_a.size());
  const auto address = [](const Tensor& t, std::int64_t entry, std::int64_t i, std::int64_t h) {
    return static_cast<std::byte*>(t.data) + t.offset(entry, i, h) * size_of(t.dtype);
  };
  if (extent.rows == 0) return;  // of however many entries and heads
  for (std::int64_t entry = 0; entry < batch; ++entry)
    for (std::int64_t h = 0; h < extent.heads; ++h)
      for (std::int64_t i = 0; i < extent.rows; ++i) {
        const std::int64_t row = (entry * extent.heads + h) * extent.rows + i;
        const bool nothing = a.lse[row] == -infinity && b.lse[row] == -infinity;
        const float larger = std::max(a.lse[row], b.lse[row]);  // may miss a NaN, but then its weight is one
        const float weight_a = nothing ? 0.0F : std::exp(a.lse[row] - larger),
                    weight_b = nothing ? 0.0F : std::exp(b.lse[row] - larger);
        const float sum = weight_a + weight_b;
        tiles.load(a.out.dtype, address(a.out, entry, i, h), dim, row_a.data());
        tiles.load(b.out.dtype, address(b.out, entry, i, h), dim, row_b.data());
        for (std::size_t n = 0; n < row_a.size(); ++n) {
          // A part of weight 0 contributes nothing, whatever it holds.
          const float part_a = weight_a == 0 ? 0.0F : row_a[n] * weight_a,
                      part_b = weight_b == 0 ? 0.0F : row_b[n] * weight_b;
          row_a[n] = nothing ? 0.0F : (part_a + part_b) / sum;
        }
        tiles.store(out.dtype, row_a.data(), dim, address(out, entry, i, h), false);
        lse[row] = nothing ? -infinity : larger + std::log(sum);
      }
}

}  // namespace ringattn
