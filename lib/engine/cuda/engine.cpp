#include "engine/cuda/engine.h"

#include "engine/cuda/elementwise.h"
#include "engine/cuda/portable.h"

namespace ringattn::cuda {
namespace {

// Our own kernels (portable.h), on GPUs of compute capability 8.0 and newer.
class PortableEngine final : public CudaEngine {
 public:
  const char* name() const override { return "portable"; }

  void use(Queue& queue) override {
    constexpr int oldest = 8;
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, queue.device()), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, queue.device()), "cudaDeviceGetAttribute");
    if (major < oldest)
      fail(RA_STATUS_NOT_SUPPORTED, "device ", queue.device(), " has compute capability ", major, '.', minor,
           "; the portable engine needs ", oldest, ".0 or newer");
    queue_ = &queue;
  }

  std::string refusal(const Problem& problem) const override { return portable_refusal(problem); }
  std::size_t scratch_bytes(const Problem&, Pass, std::int64_t) const override { return 0; }

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
  cudaStream_t stream() const { return queue_->stream(); }
  int num_sms() const { return queue_->num_sms(); }
  static void enqueue(int error, const char* kernel) { check(static_cast<cudaError_t>(error), kernel); }

  Queue* queue_ = nullptr;
};

}  // namespace

std::unique_ptr<CudaEngine> make_cuda_engine(const char* name) {
  if (name != nullptr && *name != 0 && cuda_engine_names() != name) return nullptr;
  return std::make_unique<PortableEngine>();
}
std::string cuda_engine_names() { return "portable"; }

}  // namespace ringattn::cuda
