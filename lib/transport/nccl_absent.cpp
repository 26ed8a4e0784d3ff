// In the place of the NCCL transport where the library is built without CUDA.
#include "transport/nccl.h"

namespace ringattn {

std::string missing_nccl() { return "this build has RA_TRANSPORT_LOCAL = 0 only"; }

}  // namespace ringattn
