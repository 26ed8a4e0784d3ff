// In the place of the NCCL transport where the library is built without CUDA.
#include "core/error.h"
#include "transport/nccl.h"

namespace ringattn {

std::string missing_nccl() { return "this build was made without CUDA (RINGATTN_CUDA=OFF)"; }

std::string make_nccl_id() { fail(RA_STATUS_NOT_SUPPORTED, missing_nccl()); }

bool is_nccl_id(const std::string&) { return false; }

}  // namespace ringattn
