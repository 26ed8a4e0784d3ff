// In the place of the CUDA backend where the library is built without it.
#include "engine/cuda/availability.h"

namespace ringattn::cuda {

Availability availability() { return {0, "this build has RA_BACKEND_CPU = 0 only"}; }

}  // namespace ringattn::cuda
