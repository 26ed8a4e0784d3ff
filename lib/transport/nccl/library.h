// NCCL's functions. The library is not linked with NCCL: it is loaded when it is first needed.
//
// Tests put an emulation in its place: a folder with their own nccl.h is searched before NVIDIA's, and instead of nccl/library.cpp a
// file is linked whose nccl() returns a table of the functions that they define:
//
//   #define RINGATTN_ADDRESS(function) ::function,
//   static constexpr Nccl table{RINGATTN_NCCL_FUNCTIONS(RINGATTN_ADDRESS)};
#pragma once

#include <nccl.h>

namespace ringattn {

// All that are called; nccl.h knows their types.
#define RINGATTN_NCCL_FUNCTIONS(F) \
  F(ncclGetVersion)                \
  F(ncclGetErrorString)            \
  F(ncclGetLastError)              \
  F(ncclGetUniqueId)               \
  F(ncclCommInitRankConfig)        \
  F(ncclCommFinalize)              \
  F(ncclCommDestroy)               \
  F(ncclCommAbort)                 \
  F(ncclCommGetAsyncError)         \
  F(ncclCommCount)                 \
  F(ncclCommCuDevice)              \
  F(ncclCommUserRank)              \
  F(ncclSend)                      \
  F(ncclRecv)                      \
  F(ncclAllGather)                 \
  F(ncclGroupStart)                \
  F(ncclGroupEnd)

struct Nccl {
#define RINGATTN_MEMBER(function) decltype(&::function) function;
  RINGATTN_NCCL_FUNCTIONS(RINGATTN_MEMBER)
#undef RINGATTN_MEMBER
};

constexpr int oldest_nccl = NCCL_VERSION(2, 28, 0);
static_assert(NCCL_VERSION_CODE >= oldest_nccl, "nccl.h is older than NCCL 2.28");

// The file that RINGATTN_NCCL_LIBRARY names in the environment, or libnccl.so.2 where the system finds it or the program has loaded
// it; for good, once it was found. Throws NOT_SUPPORTED: where it was looked for, which version was found, or what it lacks.
const Nccl& nccl();

}  // namespace ringattn
