// The CPU engines: one tile algorithm over the tiles of an instruction set.
#pragma once

#include <vector>

#include "engine/cpu/tiles.h"
#include "engine/engine.h"

namespace ringattn::cpu {

// What an engine computes with.
struct EngineTiles {
  const char* name;
  const Tiles* any;                 // for any problem
  const Tiles* bfloat16 = nullptr;  // where weights may be rounded to bfloat16, if there are tiles for that
  const Tiles* split = nullptr;     // where numbers may be split into parts; `any` takes the blocks that these do not

  // By the problem alone: a pure function.
  const Tiles& choose(const Problem& problem, Pass pass) const;
};

class CpuEngine final : public Engine {
 public:
  explicit CpuEngine(const EngineTiles& tiles) : tiles_(tiles) {}

  const char* name() const override { return tiles_.name; }
  std::string refusal(const Problem& problem) const override;
  std::size_t scratch_bytes(const Problem& problem, Pass pass, std::int64_t longest_piece, int threads) const override;
  void forward(const Problem& problem, const ForwardStep& step, Threads& threads) override;
  void backward(const Problem& problem, const BackwardStep& step, Threads& threads) override;
  void compute_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows, float* delta,
                     Threads& threads) override;
  void copy(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent, Threads& threads) override;
  void round(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent, bool accumulate,
             Threads& threads) override;
  void clear(const Problem& problem, const Tensor& to, Extent extent, Threads& threads) override;
  void add(const float* from, float* to, std::int64_t count, Threads& threads) override;

 private:
  const EngineTiles tiles_;
};

// Engines that this machine can run, in the order of preference.
std::vector<EngineTiles> cpu_engines();
// All that they compute with.
std::vector<const Tiles*> cpu_tiles();

}  // namespace ringattn::cpu
