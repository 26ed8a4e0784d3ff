// The CUDA engines' projector, over products of cuBLAS: what is asked of it is enqueued, on the stream of the call in progress.
#pragma once

#include "engine/cuda/cublas_library.h"
#include "engine/cuda/queue.h"
#include "engine/engine.h"

namespace ringattn::cuda {

class CudaProjector final : public Projector {
 public:
  // For the queue's device; it outlives this. Throws NOT_SUPPORTED where cuBLAS cannot be had.
  explicit CudaProjector(Queue& queue);
  CudaProjector(const CudaProjector&) = delete;
  CudaProjector& operator=(const CudaProjector&) = delete;
  ~CudaProjector() override;

  std::size_t scratch_bytes(std::int64_t rows) const override;
  void multiply(const Product& product, void* scratch) override;
  void sum_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, float* to, bool accumulate,
                void* scratch) override;
  void store_positions(std::span<const Piece> pieces, std::int64_t* positions) override;
  void style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) override;
  void differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient, std::int64_t rows,
                           float* dnorm, bool accumulate, void* scratch) override;

 private:
  struct Room;  // scratch, laid out

  // to = left right, or to += that, by cuBLAS as they are.
  void multiply(const Term& term, const Matrix& to, std::int64_t rows, std::int64_t columns, bool accumulate);
  // to = sum of terms, which are rows of numbers, or to += that, rounded once.
  void sum(std::span<const Tensor> terms, const Matrix& to, std::int64_t rows, std::int64_t columns, bool accumulate);
  // As they are in fp32, in `room`.
  Matrix widened(const Matrix& matrix, std::int64_t rows, std::int64_t columns, float* room);
  void check(CublasStatus status, const char* function) const;

  Queue& queue_;
  const CublasFunctions& cublas_;
  CublasHandle handle_ = nullptr;
  std::size_t workspace_bytes_ = 0;  // of cuBLAS
};

}  // namespace ringattn::cuda
