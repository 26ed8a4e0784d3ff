// Projectors of CPU engines, which compute in the host's memory.
#include "support/projector_machine.h"

#include "core/memory.h"
#include "engine/engine.h"
#include "support/engine.h"

namespace ringattn::test {

struct ProjectorMachine::State {
  std::unique_ptr<Engine> engine;
  Block block;
};

ProjectorMachine::ProjectorMachine(int threads) : state_(new State{make_cpu_engine(test::engine(), threads), {}}) {}
ProjectorMachine::~ProjectorMachine() = default;

Projector* ProjectorMachine::projector() const {
  return state_->engine == nullptr ? nullptr : &state_->engine->projector();
}
void* ProjectorMachine::scratch(std::int64_t rows) { return state_->block.reserve(projector()->scratch_bytes(rows)); }
void* ProjectorMachine::give(void* data, std::size_t) { return data; }
void ProjectorMachine::take_back() {}
bool ProjectorMachine::is_slow() { return false; }

}  // namespace ringattn::test
