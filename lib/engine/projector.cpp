#include "engine/projector.h"

#include "core/error.h"
#include "engine/engine.h"

namespace ringattn {

Projector& Engine::projector() {
  fail(RA_STATUS_NOT_SUPPORTED, "engine \"", name(), "\" has no layers of multi-head attention; CPU engines have");
}

}  // namespace ringattn
