// Device memory, a CUDA engine, and calls that enqueue their work on the caller's stream.
#include <cstring>

#include "api/backend.h"
#include "api/group.h"
#include "core/log.h"
#include "engine/cuda/availability.h"
#include "engine/cuda/engine.h"
#include "transport/local.h"
#include "transport/local_cuda.h"
#include "transport/nccl.h"

namespace ringattn::api {
namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::unique_ptr<cuda::CudaEngine> engine) : engine_(std::move(engine)) {}
  CudaBackend(const CudaBackend &) = delete;
  CudaBackend &operator=(const CudaBackend &) = delete;
  ~CudaBackend() override {
    if (queue_ == nullptr) return;
    queue_->finish();
    if (queue_->is_abandoned()) {
      engine_.release();
      workspace_.release();
      queue_.release();
      return;
    }
    const cuda::BesideCapture beside;
    copier_.reset();
    engine_.reset();
    workspace_ = {};
    queue_.reset();
  }

  Engine &engine() override { return *engine_; }
  int device() const override { return queue_->device(); }

  Join open(const ra_context_config &c, const Rank &rank, std::int64_t timeout_ms) override {
    const cuda::Availability availability = cuda::availability();
    if (!availability.missing.empty())
      fail(RA_STATUS_NOT_SUPPORTED, "backend is ", c.backend, " (RA_BACKEND_CUDA); ", availability.missing);
    require_here(c.transport);
    if (c.transport == RA_TRANSPORT_ZEROMQ)
      fail(RA_STATUS_NOT_SUPPORTED, "transport is ", c.transport,
           " (RA_TRANSPORT_ZEROMQ); needs RA_BACKEND_CPU = ", +RA_BACKEND_CPU);
    require_range("device", c.device, 0, availability.num_devices - 1);
    const cuda::BesideCapture beside;
    int multiprocessors = 0;
    cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, c.device),
                "cudaDeviceGetAttribute");
    require_range("num_sms", c.num_sms, 0, multiprocessors);
    queue_ = std::make_unique<cuda::Queue>(c.device, c.num_sms);
    engine_->use(*queue_);
    log(RA_LOG_LEVEL_DEBUG, "rank ", rank.rank, " of ", rank.world_size, ": engine ", engine_->name(), ", device ",
        c.device);
    if (c.transport == RA_TRANSPORT_NCCL)
      return [this, group = to_nccl_group(c), timeout_ms] { return join_nccl(group, *queue_, timeout_ms); };
    copier_ = make_cuda_copier(*queue_);
    return [this, id = to_local_id(c), rank, timeout_ms] {
      return join_local(
          id, rank.world_size, rank.rank, timeout_ms, [] {}, std::move(copier_));
    };
  }

  void check(const Ranges &ranges, ra_stream stream) override {
    ranges.for_each([&](const char *name, const void *begin, std::size_t bytes) {
      const std::byte *const last = static_cast<const std::byte *>(begin) + bytes - 1;
      for (const void *const byte : {begin, static_cast<const void *>(last)})
        if (const std::string where = refusal(byte); !where.empty())
          fail(RA_STATUS_INVALID_ARGUMENT, name, " is ", begin, " and ", bytes, " bytes long, of which ", byte, " is ",
               where, "; must be memory of device ", device());
    });
    const std::string reason = queue_->refusal(stream);
    require(reason.empty(), reason);
  }

  bool is_captured(ra_stream stream) override {
    const cuda::OnDevice on(device());
    return cuda::is_capturing(stream);
  }
  void *workspace(std::size_t size, ra_stream stream) override {
    if (size <= workspace_size_) return workspace_.get();
    const cuda::OnDevice on(device());
    if (cuda::is_capturing(stream))
      fail(RA_STATUS_INVALID_STATE, "workspace is NULL and the context's own has ", workspace_size_, " bytes of ", size,
           ", while stream is being captured; make the call once before, or give a workspace");
    queue_->finish();
    const cuda::BesideCapture beside;
    workspace_ = {};
    workspace_size_ = 0;
    workspace_ = cuda::DeviceMemory(size);
    workspace_size_ = size;
    return workspace_.get();
  }

  std::shared_ptr<void> allocate(std::size_t size) override {
    const cuda::OnDevice on(device());
    const auto memory = std::make_shared<cuda::DeviceMemory>(size);
    return {memory, memory->get()};
  }
  void copy(void *to, const void *from, std::size_t size) override {
    const cuda::OnDevice on(device());
    cuda::check(cudaMemcpy(to, from, size, cudaMemcpyDefault), "cudaMemcpy");
  }
  void begin(ra_stream stream) override { queue_->begin(stream); }
  void end() noexcept override { queue_->end(); }

 private:
  // What is wrong with this place, or nothing.
  std::string refusal(const void *byte) const {
    cudaPointerAttributes attributes{};
    cuda::check(cudaPointerGetAttributes(&attributes, byte), "cudaPointerGetAttributes");
    switch (attributes.type) {
      case cudaMemoryTypeDevice:
        return attributes.device == device() ? "" : text("memory of device ", attributes.device);
      case cudaMemoryTypeManaged:
        return "";
      default:
        return "host memory";
    }
  }

  std::unique_ptr<cuda::Queue> queue_;
  std::unique_ptr<cuda::CudaEngine> engine_;
  std::unique_ptr<Copier> copier_;  // until the rank joins
  cuda::DeviceMemory workspace_;
  std::size_t workspace_size_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const ra_context_config &c, const Rank &) {
  std::unique_ptr<cuda::CudaEngine> engine = cuda::make_cuda_engine(c.engine);
  if (engine == nullptr)
    fail(RA_STATUS_NOT_SUPPORTED, "engine is \"", c.engine,
         "\"; this build has with RA_BACKEND_CUDA: ", cuda::cuda_engine_names());
  return std::make_unique<CudaBackend>(std::move(engine));
}

}  // namespace ringattn::api
