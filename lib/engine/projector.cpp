#include "engine/projector.h"

#include "core/error.h"
#include "engine/engine.h"

namespace ringattn {

Projector& Engine::projector() {
  const std::lock_guard lock(projector_mutex_);
  if (projector_ == nullptr) projector_ = make_projector();
  return *projector_;
}

std::unique_ptr<Projector> Engine::make_projector() {
  fail(RA_STATUS_NOT_SUPPORTED, "engine \"", name(), "\" has no layers of multi-head attention");
}

}  // namespace ringattn
