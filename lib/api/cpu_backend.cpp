// Host memory, a CPU engine, and calls that return when their results are complete.
#include <cstring>

#include "api/backend.h"
#include "api/group.h"
#include "core/log.h"
#include "core/memory.h"
#include "transport/local.h"

namespace ringattn::api {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

  Engine &engine() override { return *engine_; }
  int device() const override { return 0; }

  Join open(const ra_context_config &c, const Rank &rank, std::int64_t timeout_ms) override {
    require(c.device == 0, "device is ", c.device, "; must be 0 with RA_BACKEND_CPU");
    require(c.num_sms == 0, "num_sms is ", c.num_sms, "; must be 0 with RA_BACKEND_CPU");
    log(RA_LOG_LEVEL_DEBUG, "rank ", rank.rank, " of ", rank.world_size, ": engine ", engine_->name(), ", ",
        rank.num_threads, " threads");
    if (rank.num_threads < c.num_threads)
      log(RA_LOG_LEVEL_WARNING, "num_threads is ", c.num_threads, "; ", rank.num_threads,
          " is all that oneTBB allows this process");
    const auto cancel = [engine = engine_.get()] { engine->cancel(); };
    if (rank.transport == RA_TRANSPORT_ZEROMQ) {
      const ZeromqGroup group = to_zeromq_group(c);
      if (!group.id.empty()) return [group, timeout_ms, cancel] { return join_zeromq(group, timeout_ms, cancel); };
    }
    const std::string id =
        rank.transport == RA_TRANSPORT_LOCAL ? to_local_id(c) : make_local_id();  // of a group of one
    return [id, rank, timeout_ms, cancel] { return join_local(id, rank.world_size, rank.rank, timeout_ms, cancel); };
  }

  void check(const Ranges &, ra_stream stream) override {
    require(stream == nullptr, "stream is ", static_cast<const void *>(stream), "; must be NULL with RA_BACKEND_CPU");
  }
  bool is_captured(ra_stream) override { return false; }
  void *workspace(std::size_t size, ra_stream) override { return workspace_.reserve(size); }
  std::shared_ptr<void> allocate(std::size_t size) override {
    const auto block = std::make_shared<Block>();
    return {block, block->reserve(size)};
  }
  void copy(void *to, const void *from, std::size_t size) override {
    if (size > 0) std::memcpy(to, from, size);
  }
  void begin(ra_stream) override {}
  void end() noexcept override {}

 private:
  std::unique_ptr<Engine> engine_;
  Block workspace_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const ra_context_config &c, const Rank &rank) {
  require_here(c.transport);
  if (c.transport == RA_TRANSPORT_NCCL)
    fail(RA_STATUS_NOT_SUPPORTED, "transport is ", c.transport,
         " (RA_TRANSPORT_NCCL); needs RA_BACKEND_CUDA = ", +RA_BACKEND_CUDA);
  std::unique_ptr<Engine> engine = make_cpu_engine(c.engine, rank.num_threads);
  if (engine == nullptr)
    fail(RA_STATUS_NOT_SUPPORTED, "engine is \"", c.engine, "\"; this build has on this machine: ", cpu_engine_names());
  return std::make_unique<CpuBackend>(std::move(engine));
}

}  // namespace ringattn::api
