// The engines of the CUDA backend: what they do is enqueued, on the stream of the call in progress.
#pragma once

#include <memory>
#include <string>

#include "engine/cuda/queue.h"
#include "engine/engine.h"

namespace ringattn::cuda {

class CudaEngine : public Engine {
 public:
  // Before anything is enqueued. `queue` outlives it.
  virtual void use(Queue& queue) = 0;

  int num_threads() const override { return 1; }
  // What a GPU has begun it ends; the transport sees to it that nothing is waited for.
  void cancel() override {}
  // `between` comes first: the transport begins what is posted before the computation is enqueued.
  void interleave(const std::function<void()>& f, const std::function<void()>& between) override {
    between();
    f();
  }
};

// `name` null or empty: the fastest of them for each step. Null if there is no such engine. Needs no device.
std::unique_ptr<CudaEngine> make_cuda_engine(const char* name);
// Fastest first, comma-separated.
std::string cuda_engine_names();

}  // namespace ringattn::cuda
