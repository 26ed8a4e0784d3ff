#include "transport/nccl.h"

#include "core/error.h"
#include "transport/nccl_library.h"

namespace ringattn {

std::string missing_nccl() {
  try {
    nccl();
    return "this build has no NCCL transport yet";
  } catch (const Error& error) {
    return error.message;
  }
}

}  // namespace ringattn
