#include "emulation/cublas_fake.h"

#include <vector>

#include "core/error.h"
#include "engine/cuda/cublas_library.h"
#include "engine/reference/oracle.h"
#include "machine.h"

namespace ringattn::cuda {

// As cuBLAS does, it has some memory of its own on the device.
struct CublasContext {
  int device = 0;
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

}  // namespace ringattn::cuda

namespace ringattn::test {
namespace {

using namespace ringattn::cuda;

std::string missing;

// What a test wants this call to fail with.
CublasStatus injected(const char* function) {
  const emulation::Lock lock(emulation::machine_mutex());
  return static_cast<CublasStatus>(emulation::machine().injected(function));
}

const char* cublasGetStatusName(CublasStatus status) {
  switch (status) {
    case CublasStatus::success:
      return "CUBLAS_STATUS_SUCCESS";
    case CublasStatus::not_initialized:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CublasStatus::alloc_failed:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CublasStatus::invalid_value:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CublasStatus::execution_failed:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CublasStatus::internal_error:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CublasStatus::not_supported:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "?";
}

CublasStatus cublasCreate_v2(CublasHandle* handle) {
  if (const CublasStatus status = injected("cublasCreate"); status != CublasStatus::success) return status;
  auto created = std::make_unique<CublasContext>();
  if (cudaGetDevice(&created->device) != cudaSuccess) return CublasStatus::not_initialized;
  if (cudaMalloc(&created->memory, 64) != cudaSuccess) return CublasStatus::alloc_failed;
  *handle = created.release();
  return CublasStatus::success;
}
CublasStatus cublasDestroy_v2(CublasHandle handle) {
  cudaFree(handle->memory);
  delete handle;
  return injected("cublasDestroy");
}
CublasStatus cublasSetMathMode(CublasHandle, CublasMath) { return injected("cublasSetMathMode"); }
CublasStatus cublasSetSmCountTarget(CublasHandle, int count) {
  return count < 1 ? CublasStatus::invalid_value : injected("cublasSetSmCountTarget");
}
CublasStatus cublasSetStream_v2(CublasHandle handle, cudaStream_t stream) {
  handle->stream = stream;
  handle->workspace = nullptr;
  return injected("cublasSetStream");
}
CublasStatus cublasSetWorkspace_v2(CublasHandle handle, void* workspace, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) return CublasStatus::invalid_value;
  handle->workspace = workspace;
  handle->workspace_bytes = bytes;
  return injected("cublasSetWorkspace");
}

DType dtype_of(CublasType type) {
  switch (type) {
    case CublasType::bfloat16:
      return DType::bfloat16;
    case CublasType::float16:
      return DType::float16;
    default:
      return DType::float32;
  }
}

// A matrix as cuBLAS has it, column by column.
struct Columns {
  void* data;
  DType dtype;
  std::int64_t stride;

  void* at(std::int64_t row, std::int64_t column) const {
    return static_cast<std::byte*>(data) + (column * stride + row) * size_of(dtype);
  }
  float get(std::int64_t row, std::int64_t column) const {
    return static_cast<float>(reference::decode(at(row, column), dtype));
  }
  Access access(std::int64_t rows, std::int64_t columns, bool writes) const {
    return {data, static_cast<std::size_t>(((columns - 1) * stride + rows) * size_of(dtype)), writes};
  }
};

CublasStatus cublasGemmEx_64(CublasHandle handle, CublasOperation a_operation, CublasOperation b_operation,
                             std::int64_t m, std::int64_t n, std::int64_t k, const void* alpha, const void* a_data,
                             CublasType a_type, std::int64_t lda, const void* b_data, CublasType b_type,
                             std::int64_t ldb, const void* beta, void* c_data, CublasType c_type, std::int64_t ldc,
                             CublasCompute compute, CublasAlgorithm) {
  if (const CublasStatus status = injected("cublasGemmEx"); status != CublasStatus::success) return status;
  const bool a_turned = a_operation == CublasOperation::transpose, b_turned = b_operation == CublasOperation::transpose;
  if (m < 0 || n < 0 || k < 0 || lda < std::max<std::int64_t>(1, a_turned ? k : m) ||
      ldb < std::max<std::int64_t>(1, b_turned ? n : k) || ldc < std::max<std::int64_t>(1, m))
    return CublasStatus::invalid_value;
  if (a_type != b_type || (c_type != a_type && c_type != CublasType::float32) || compute != CublasCompute::float32)
    return CublasStatus::not_supported;
  if (handle->workspace == nullptr || handle->device != emulation::current_device())
    return CublasStatus::internal_error;
  if (m == 0 || n == 0) return CublasStatus::success;
  const float factor = *static_cast<const float*>(alpha), kept = *static_cast<const float*>(beta);
  const Columns a{const_cast<void*>(a_data), dtype_of(a_type), lda},
      b{const_cast<void*>(b_data), dtype_of(b_type), ldb}, c{c_data, dtype_of(c_type), ldc};
  std::vector<Access> accesses{{handle->workspace, handle->workspace_bytes, true}, c.access(m, n, true)};
  if (kept != 0) accesses.push_back(c.access(m, n, false));
  if (k > 0) {
    accesses.push_back(a_turned ? a.access(k, m, false) : a.access(m, k, false));
    accesses.push_back(b_turned ? b.access(n, k, false) : b.access(k, n, false));
  }
  const cudaError_t error = emulation::submit(handle->stream, "gemm", accesses, [=] {
    std::vector<float> left(static_cast<std::size_t>(m * k)), right(static_cast<std::size_t>(k * n));
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t l = 0; l < k; ++l)
        left[static_cast<std::size_t>(i * k + l)] = a_turned ? a.get(l, i) : a.get(i, l);
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t l = 0; l < k; ++l)
        right[static_cast<std::size_t>(j * k + l)] = b_turned ? b.get(j, l) : b.get(l, j);
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t i = 0; i < m; ++i) {
        const float *const x = left.data() + i * k, *const y = right.data() + j * k;
        float sum = 0;
        for (std::int64_t l = 0; l < k; ++l) sum += x[l] * y[l];
        sum *= factor;
        if (kept != 0) sum += kept * c.get(i, j);
        reference::encode(static_cast<double>(sum), c.dtype, c.at(i, j));
      }
  });
  return error == cudaSuccess ? CublasStatus::success : CublasStatus::execution_failed;
}

}  // namespace

void set_fake_cublas(const std::string& new_missing) { missing = new_missing; }

}  // namespace ringattn::test

namespace ringattn::cuda {

const CublasFunctions& cublas_functions() {
  if (!test::missing.empty()) fail(RA_STATUS_NOT_SUPPORTED, test::missing);
#define RINGATTN_ADDRESS(result, function, parameters) test::function,
  static constexpr CublasFunctions table{RINGATTN_CUBLAS_FUNCTIONS(RINGATTN_ADDRESS)};
#undef RINGATTN_ADDRESS
  return table;
}

}  // namespace ringattn::cuda
