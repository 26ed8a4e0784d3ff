// In the place of oneDNN where the library is built without it.
#include "core/error.h"
#include "engine/cpu/onednn.h"

namespace ringattn::cpu {

std::string missing_onednn() { return "this build was made without oneDNN (RINGATTN_ONEDNN=OFF)"; }

const OneDnn& onednn_library() { fail(RA_STATUS_NOT_SUPPORTED, missing_onednn()); }

}  // namespace ringattn::cpu
