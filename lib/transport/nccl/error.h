// What NCCL says of a call that failed.
#pragma once

#include "core/error.h"
#include "transport/nccl/library.h"

namespace ringattn::nccl_detail {

inline Error nccl_error(const char* function, ncclResult_t result, ncclComm_t comm) {
  const char* const last = nccl().ncclGetLastError(comm);
  Error error(result == ncclRemoteError ? RA_STATUS_PEER_LOST : RA_STATUS_NCCL_ERROR,
              text(function, ": ", nccl().ncclGetErrorString(result), " (ncclResult_t ", +result, ")",
                   last != nullptr && *last != 0 ? ": " : "", last != nullptr ? last : ""));
  error.nccl_result = result;
  return error;
}

}  // namespace ringattn::nccl_detail
