// The projector of the CUDA engines, on a device, emulated or not.
#include "support/projector_machine.h"

#include <map>
#include <optional>

#include "engine/cuda/engine.h"
#include "support/cuda.h"
#include "support/device.h"
#include "support/machine.h"
#include "support/random.h"

namespace ringattn::test {

struct ProjectorMachine::State {
  State() {
    machine.reset(seed());
    stream = make_stream(0);
    queue.emplace(0);
    engine->use(*queue);
    queue->begin(stream);
  }
  ~State() {
    take_back();
    ok(cudaFree(room));
    queue->end();
    engine.reset();
    queue.reset();
    ok(cudaStreamDestroy(stream));
    machine.expect_clean();
  }

  void take_back() {
    ok(cudaStreamSynchronize(stream));
    for (const auto& [data, given] : places) {
      ok(cudaMemcpy(data, given.place, given.bytes, cudaMemcpyDeviceToHost));
      ok(cudaFree(given.place));
    }
    places.clear();
  }

  struct Given {
    void* place;
    std::size_t bytes;
  };
  Machine machine{1};
  cudaStream_t stream = nullptr;
  std::optional<cuda::Queue> queue;
  std::unique_ptr<cuda::CudaEngine> engine = cuda::make_cuda_engine("portable");
  std::map<void*, Given> places;
  void* room = nullptr;
};

ProjectorMachine::ProjectorMachine(int) : state_(std::make_unique<State>()) {}
ProjectorMachine::~ProjectorMachine() = default;

Projector* ProjectorMachine::projector() const { return &state_->engine->projector(); }

void* ProjectorMachine::scratch(std::int64_t rows) {  // the same for any number
  if (state_->room == nullptr) ok(cudaMalloc(&state_->room, projector()->scratch_bytes(rows)));
  return state_->room;
}

void* ProjectorMachine::give(void* data, std::size_t bytes) {
  if (bytes == 0) return nullptr;
  if (const auto given = state_->places.find(data); given != state_->places.end()) return given->second.place;
  void* place = nullptr;
  ok(cudaMalloc(&place, bytes));
  ok(cudaMemcpy(place, data, bytes, cudaMemcpyHostToDevice));
  state_->places.emplace(data, State::Given{place, bytes});
  return place;
}
void ProjectorMachine::take_back() { state_->take_back(); }
bool ProjectorMachine::is_slow() { return device::is_emulated(); }

}  // namespace ringattn::test
