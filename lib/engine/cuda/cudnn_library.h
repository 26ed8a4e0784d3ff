// cuDNN's functions. As of NCCL (transport/nccl/library.h) only the headers are compiled, and the library is loaded when it is first
// needed.
#pragma once

#include <cudnn.h>

#include <cstddef>
#include <string>

namespace ringattn::cuda {

// All that cudnn-frontend calls for what we use of it.
#define RINGATTN_CUDNN_FUNCTIONS(F) \
  F(cudnnGetVersion)                \
  F(cudnnGetErrorString)            \
  F(cudnnGetLastErrorString)        \
  F(cudnnCreate)                    \
  F(cudnnDestroy)                   \
  F(cudnnSetStream)                 \
  F(cudnnGetStream)                 \
  F(cudnnBackendCreateDescriptor)   \
  F(cudnnBackendDestroyDescriptor)  \
  F(cudnnBackendSetAttribute)       \
  F(cudnnBackendGetAttribute)       \
  F(cudnnBackendFinalize)           \
  F(cudnnBackendExecute)

struct CudnnFunctions {
#define RINGATTN_MEMBER(function) decltype(&::function) function;
  RINGATTN_CUDNN_FUNCTIONS(RINGATTN_MEMBER)
#undef RINGATTN_MEMBER
};

constexpr std::size_t oldest_cudnn = 91800;  // the one that was looked into; older ones are not tried
static_assert(CUDNN_VERSION >= oldest_cudnn, "cudnn.h is older than cuDNN 9.18");

// The file that RINGATTN_CUDNN_LIBRARY names in the environment, or libcudnn.so.9 where the system finds it or the program has loaded
// it; for good, once it was found. Throws NOT_SUPPORTED: where it was looked for, which version was found, or what it lacks.
const CudnnFunctions& cudnn_functions();
// Of what was loaded: "9.18.1".
std::string cudnn_version();

}  // namespace ringattn::cuda
