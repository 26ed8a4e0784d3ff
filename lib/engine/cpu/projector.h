// The CPU's projector, over a library's products of blocks.
#pragma once

#include "core/threads.h"
#include "engine/cpu/onednn.h"
#include "engine/cpu/tiles.h"
#include "engine/projector.h"

namespace ringattn::cpu {

class CpuProjector final : public Projector {
 public:
  // `tiles` load and store numbers of any dtype.
  CpuProjector(const OneDnn& onednn, const Tiles& tiles, Threads& threads)
      : onednn_(onednn), tiles_(tiles), threads_(threads) {}

  std::size_t scratch_bytes(std::int64_t rows) const override;
  void multiply(const Product& product, void* scratch) override;
  void sum_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, float* to, bool accumulate,
                void* scratch) override;
  void store_positions(std::span<const Piece> pieces, std::int64_t* positions) override;
  void style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) override;
  void differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient, std::int64_t rows,
                           float* dnorm, bool accumulate, void* scratch) override;

 private:
  void load(const Matrix& from, std::int64_t row, std::int64_t column, std::int64_t count, float* to) const {
    tiles_.load(from.dtype, from.from(row, column).data, count, to);
  }
  void store(const float* from, const Matrix& to, std::int64_t row, std::int64_t column, std::int64_t count,
             bool accumulate) const {
    tiles_.store(to.dtype, from, count, to.from(row, column).data, accumulate);
  }

  const OneDnn& onednn_;
  const Tiles& tiles_;
  Threads& threads_;
};

}  // namespace ringattn::cpu
