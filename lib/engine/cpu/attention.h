// The CPU engines: one tile algorithm over the tiles of an instruction set.
#pragma once

#include <memory>
#include <vector>

#include "core/threads.h"
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
  const Tiles& choose(const Problem& problem) const;
};

class CpuEngine final : public Engine {
 public:
  CpuEngine(const EngineTiles& tiles, int num_threads) : tiles_(tiles), threads_(num_threads) {}

  const char* name() const override { return tiles_.name; }
  int num_threads() const override { return threads_.count(); }
  std::string refusal(const Problem& problem) const override;
  std::size_t scratch_bytes(const Problem& problem, Pass pass, std::int64_t longest_piece, bool) const override;
  void interleave(const std::function<void()>& f, const std::function<void()>& between) override {
    threads_.interleave(f, between);
  }
  void cancel() override { threads_.cancel(); }
  void forward(const Problem& problem, const ForwardStep& step) override;
  void backward(const Problem& problem, const BackwardStep& step) override;
  void compute_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows,
                     float* delta) override;
  void combine_sinks(const Problem& problem, const float* sinks, float* combined) override;
  void add_sink_gradients(const Problem& problem, const float* sinks, const float* lse, const float* delta,
                          std::int64_t rows, float* dsinks) override;
  void copy(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent) override;
  void round(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent, bool accumulate) override;
  void clear(const Problem& problem, const Tensor& to, Extent extent) override;
  void begin_rows(const Problem& problem, const RunningRows& rows, Extent extent, const float* sinks) override;
  void add_zero_keys(const Problem& problem, const RunningRows& rows, Extent extent, std::int64_t count) override;
  void finish_rows(const Problem& problem, const RunningRows& rows, Extent extent, const Tensor& out,
                   float* lse) override;
  void add(const float* from, float* to, std::int64_t count) override;

 private:
  std::unique_ptr<Projector> make_projector() override;

  const EngineTiles tiles_;
  Threads threads_;
};

// Engines that this machine can run, in the order of preference.
std::vector<EngineTiles> cpu_engines();
// All that they compute with.
std::vector<const Tiles*> cpu_tiles();

}  // namespace ringattn::cpu
