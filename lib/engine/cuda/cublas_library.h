// cuBLAS's functions. As of NCCL (transport/nccl/library.h) the library is loaded when it is first needed, and tests put an emulation in the
// place of cublas_library.cpp. What is used of its header is declared here: the header comes with the library, half a gigabyte, of which
// nothing else is needed to compile.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ringattn::cuda {

using CublasHandle = struct CublasContext*;

// Numbers of cublas_api.h, and of cudaDataType.
enum class CublasStatus : int {
  success = 0,
  not_initialized = 1,
  alloc_failed = 3,
  invalid_value = 7,
  execution_failed = 13,
  internal_error = 14,
  not_supported = 15
};
enum class CublasOperation : int { none = 0, transpose = 1 };
enum class CublasType : int { float32 = 0, float16 = 2, bfloat16 = 14 };
enum class CublasCompute : int { float32 = 68 };
enum class CublasAlgorithm : int { by_default = -1 };
// Sums that a kernel leaves in parts are added up in what it computes in, even where results have fewer bits.
enum class CublasMath : int { disallow_reduced_precision_reduction = 16 };

// F(result, function, parameters). Matrices are stored column by column.
#define RINGATTN_CUBLAS_FUNCTIONS(F)                                                                                \
  F(const char*, cublasGetStatusName, (CublasStatus status))                                                        \
  F(CublasStatus, cublasCreate_v2, (CublasHandle * handle))                                                         \
  F(CublasStatus, cublasDestroy_v2, (CublasHandle handle))                                                          \
  F(CublasStatus, cublasSetMathMode, (CublasHandle handle, CublasMath math))                                        \
  F(CublasStatus, cublasSetSmCountTarget, (CublasHandle handle, int count))                                         \
  F(CublasStatus, cublasSetStream_v2, (CublasHandle handle, cudaStream_t stream))                                   \
  F(CublasStatus, cublasSetWorkspace_v2, (CublasHandle handle, void* workspace, std::size_t bytes))                 \
  F(CublasStatus, cublasGemmEx_64,                                                                                  \
    (CublasHandle handle, CublasOperation a_operation, CublasOperation b_operation, std::int64_t m, std::int64_t n, \
     std::int64_t k, const void* alpha, const void* a, CublasType a_type, std::int64_t lda, const void* b,          \
     CublasType b_type, std::int64_t ldb, const void* beta, void* c, CublasType c_type, std::int64_t ldc,           \
     CublasCompute compute, CublasAlgorithm algorithm))

struct CublasFunctions {
#define RINGATTN_MEMBER(result, function, parameters) result(*function) parameters;
  RINGATTN_CUBLAS_FUNCTIONS(RINGATTN_MEMBER)
#undef RINGATTN_MEMBER
};

// The file that RINGATTN_CUBLAS_LIBRARY names in the environment, or libcublas.so of the CUDA runtime's major version where the system finds
// it or the program has loaded it; for good, once it was found. Throws NOT_SUPPORTED: where it was looked for, or what it lacks.
const CublasFunctions& cublas_functions();

}  // namespace ringattn::cuda
