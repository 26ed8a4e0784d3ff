#include "engine/cuda/engine.h"

#include <algorithm>
#include <memory>
#include <string_view>

#include "core/log.h"
#include "engine/cuda/cudnn_engine.h"
#include "engine/cuda/elementwise.h"
#include "engine/cuda/modifiers.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/projector.h"
#include "engine/cuda/rows.h"

namespace ringattn::cuda {
namespace {

// Our own kernels (portable.h), on GPUs of compute capability 8.0 and newer.
class PortableEngine : public CudaEngine {
 public:
  const char* name() const override { return "portable"; }

  void use(Queue& queue) override {
    constexpr Capability oldest = 80;
    const Capability capability = capability_of(queue.device());
    if (capability < oldest)
      fail(RA_STATUS_NOT_SUPPORTED, "device ", queue.device(), " has compute capability ", dotted(capability),
           "; the portable engine needs ", dotted(oldest), " or newer");
    queue_ = &queue;
  }

  std::string refusal(const Problem& problem) const override { return portable_refusal(problem); }
  std::size_t scratch_bytes(const Problem& p, Pass, std::int64_t, bool) const override { return modifier_bytes(p); }

  void forward(const Problem& p, const ForwardStep& step) override {
    enqueue(portable_forward(p, step, stream(), num_sms()), "forward");
  }
  void backward(const Problem& p, const BackwardStep& step) override {
    enqueue(portable_backward(p, step, stream(), num_sms()), "backward");
  }
  void compute_delta(const Problem& p, const Tensor& dout, const Tensor& out, std::int64_t rows,
                     float* delta) override {
    enqueue(portable_delta(p, dout, out, rows, delta, stream(), num_sms()), "compute_delta");
  }
  void begin_rows(const Problem& p, const RunningRows& rows, Extent extent, const float* sinks) override {
    enqueue(cuda::begin_rows(p.batch, rows, extent, sinks, stream(), num_sms()), "begin_rows");
  }
  void add_zero_keys(const Problem& p, const RunningRows& rows, Extent extent, std::int64_t count) override {
    enqueue(cuda::add_zero_keys(p.batch, rows, extent, count, stream(), num_sms()), "add_zero_keys");
  }
  void finish_rows(const Problem& p, const RunningRows& rows, Extent extent, const Tensor& out, float* lse) override {
    enqueue(cuda::finish_rows(p, rows, extent, out, lse, stream(), num_sms()), "finish_rows");
  }
  void combine_sinks(const Problem& p, const float* sinks, float* combined) override {
    enqueue(cuda::combine_sinks(p, sinks, combined, stream(), num_sms()), "combine_sinks");
  }
  void add_sink_gradients(const Problem& p, const float* sinks, const float* lse, const float* delta, std::int64_t rows,
                          float* dsinks) override {
    enqueue(cuda::add_sink_gradients(p, sinks, lse, delta, rows, dsinks, stream(), num_sms()), "add_sink_gradients");
  }
  void copy(const Problem& p, const Tensor& from, const Tensor& to, Extent extent) override {
    enqueue(cuda::copy(p.batch, from, to, extent, stream(), num_sms()), "copy");
  }
  void round(const Problem& p, const Tensor& from, const Tensor& to, Extent extent, bool accumulate) override {
    enqueue(cuda::round(p.batch, from, to, extent, accumulate, stream(), num_sms()), "round");
  }
  void clear(const Problem& p, const Tensor& to, Extent extent) override {
    enqueue(cuda::clear(p.batch, to, extent, stream(), num_sms()), "clear");
  }
  void add(const float* from, float* to, std::int64_t count) override {
    enqueue(cuda::add(from, to, count, stream(), num_sms()), "add");
  }

 private:
  std::unique_ptr<Projector> make_projector() override { return std::make_unique<CudaProjector>(*queue_); }
  cudaStream_t stream() const { return queue_->stream(); }
  int num_sms() const { return queue_->num_sms(); }
  static void enqueue(int error, const char* kernel) { check(static_cast<cudaError_t>(error), kernel); }

  Queue* queue_ = nullptr;
};

// cuDNN where it can and, unless it is asked for by name, where it is faster; our own kernels for all that it refuses. Nobody else knows
// which of the two has run.
class CudnnOrPortable final : public PortableEngine {
 public:
  explicit CudnnOrPortable(bool is_asked_for)
      : is_asked_for_(is_asked_for),
        cudnn_(is_asked_for ? CudnnEngine::Taken::wherever_possible : CudnnEngine::Taken::where_faster) {}

  const char* name() const override { return missing_.empty() ? "cudnn" : PortableEngine::name(); }

  void use(Queue& queue) override {
    PortableEngine::use(queue);
    missing_ = cudnn_.use(queue);
    if (missing_.empty()) return;
    if (is_asked_for_)
      fail(RA_STATUS_NOT_SUPPORTED, "engine is \"cudnn\", which device ", queue.device(), " cannot have: ", missing_);
    log(RA_LOG_LEVEL_DEBUG, "device ", queue.device(), ": not engine cudnn: ", missing_);
  }

  std::string choice(const Problem& p) const override {
    return text("forward: ", taker(refusal_of_cudnn(p, Pass::forward)),
                "; backward: ", taker(refusal_of_cudnn(p, Pass::backward)));
  }
  std::size_t scratch_bytes(const Problem& p, Pass pass, std::int64_t longest_piece, bool only_step) const override {
    const std::size_t own = PortableEngine::scratch_bytes(p, pass, longest_piece, only_step);
    return missing_.empty() ? std::max(own, cudnn_.scratch_bytes(p, pass, longest_piece, only_step)) : own;
  }

  void forward(const Problem& p, const ForwardStep& step) override {
    std::string reason = refusal_of_cudnn(p, Pass::forward);
    if (reason.empty()) reason = cudnn_.forward(p, step);
    if (!reason.empty()) PortableEngine::forward(p, step);
    say("forward", reason);
  }
  void backward(const Problem& p, const BackwardStep& step) override {
    PortableEngine::backward(p, step);
    say("backward", refusal_of_cudnn(p, Pass::backward));
  }

 private:
  std::string refusal_of_cudnn(const Problem& p, Pass pass) const {
    return missing_.empty() ? cudnn_.refusal(p, pass) : missing_;
  }
  static std::string taker(const std::string& refusal_of_cudnn) {
    return refusal_of_cudnn.empty() ? "cudnn" : text("portable (not cudnn: ", refusal_of_cudnn, ")");
  }
  static void say(const char* pass, const std::string& refusal_of_cudnn) {
    log(RA_LOG_LEVEL_DEBUG, pass, " step: ", taker(refusal_of_cudnn));
  }

  const bool is_asked_for_;
  CudnnEngine cudnn_;
  std::string missing_;  // why there is no cuDNN here
};

}  // namespace

std::unique_ptr<CudaEngine> make_cuda_engine(const char* name) {
  const std::string_view asked_for = name == nullptr ? "" : name;
  if (asked_for == "portable") return std::make_unique<PortableEngine>();
  if (asked_for.empty() || asked_for == "cudnn") return std::make_unique<CudnnOrPortable>(!asked_for.empty());
  return nullptr;
}
std::string cuda_engine_names() { return "cudnn,portable"; }

}  // namespace ringattn::cuda
