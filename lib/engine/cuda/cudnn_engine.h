// The engine cudnn: forward steps by cuDNN, where it computes exactly what is asked for. What it refuses, another engine does.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/cuda/cudnn.h"
#include "engine/cuda/queue.h"
#include "engine/cuda/rectangle.h"
#include "engine/engine.h"

namespace ringattn::cuda {

constexpr Capability any_capability = 0;

// Why cuDNN cannot run the problem's pass, or empty. Pure.
std::string cudnn_refusal(const Problem& problem, Pass pass);
// Why cuDNN is not taken to be faster for steps of so many queries and keys, or empty. Pure.
std::string cudnn_is_slower(const Problem& problem, Capability capability, std::int64_t rows, std::int64_t keys);
// Whether it is for any problem.
bool cudnn_is_ever_faster(Capability capability);

// A call of cuDNN, and what becomes of its result.
struct CudnnCall {
  WorkItem item;                       // one piece of queries and one of keys, or none
  std::optional<Rectangle> rectangle;  // what the queries see; nothing: the rows only begin or end
  bool first, last;                    // ForwardStep, for these rows
  bool direct;                         // the result is the step's
};
// The calls of a step, or why there are none. Pure.
std::string divide(const ForwardStep& step, std::vector<CudnnCall>& calls);

class CudnnEngine {
 public:
  enum class Taken { where_faster, wherever_possible };
  explicit CudnnEngine(Taken taken) : taken_(taken) {}

  // Loads cuDNN. Empty, or why this device cannot have it. `queue` outlives it.
  std::string use(Queue& queue);
  // Why no step of the problem will run here, or empty. A step that is divided among ranks may still be refused.
  std::string refusal(const Problem& problem, Pass pass) const;
  std::size_t scratch_bytes(const Problem& problem, Pass pass, std::int64_t longest_piece, bool only_step) const;
  // Enqueues the step, or says why not and enqueues nothing.
  std::string forward(const Problem& problem, const ForwardStep& step);

 private:
  struct Kept {
    CudnnShape shape;
    std::unique_ptr<CudnnPlan> plan;
    std::string refusal;
  };
  const Kept& plan_for(const CudnnShape& shape);

  const Taken taken_;
  Queue* queue_ = nullptr;
  Capability capability_ = 0;
  std::unique_ptr<Cudnn> cudnn_;
  std::vector<std::unique_ptr<Kept>> plans_;  // for good: graphs may hold what belongs to them
};

}  // namespace ringattn::cuda
