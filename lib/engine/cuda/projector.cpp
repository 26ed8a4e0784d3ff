// cuBLAS multiplies matrices of one dtype and sums in fp32. What it can do in one call it does:
//
//   `to` is fp32                                          begin with the bias, if there is one; add term by term
//   `to` has 16 bits, and so have the operands of its     the same, rounded at the end: so long as the bias, or what `to` holds, is all
//   one term                                              that the term is added to
//
// Otherwise `to` is cut into tiles, whose terms are summed in fp32 in scratch and then rounded; and where the operands of a term differ in
// dtype they become fp32, block by block of the depth. How it is cut depends on sizes alone, and cuBLAS gives the same bits for the same
// call on the same GPU where it has one workspace of its own, as it has here.
#include "engine/cuda/projector.h"

#include <algorithm>
#include <array>

#include "core/memory.h"
#include "engine/cuda/elementwise.h"
#include "engine/cuda/projection.h"

namespace ringattn::cuda {
namespace {

constexpr std::int64_t tile_size = 2048;  // rows, columns and depth
constexpr std::size_t workspace_alignment = 256;

constexpr std::size_t mib = std::size_t{1} << 20;
// What NVIDIA recommends.
std::size_t workspace_for(Capability capability) { return (capability >= 90 ? 32 : 4) * mib; }

CublasType type_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return CublasType::bfloat16;
    case DType::float16:
      return CublasType::float16;
    default:
      return CublasType::float32;
  }
}

Tensor rows_of(const Matrix& m) { return {m.data, m.dtype, 0, m.stride, 0}; }
Tensor row_again_and_again(const Matrix& m) { return {m.data, m.dtype, 0, 0, 0}; }

bool is_of_one_dtype(const Term& term) { return term.left.dtype == term.right.dtype; }

// Whether cuBLAS's results are what `to` is to hold.
bool is_direct(const Product& p) {
  if (p.to.dtype == DType::float32) return true;
  if (p.terms.size() != 1 || p.terms[0].left.dtype != p.to.dtype || !is_of_one_dtype(p.terms[0])) return false;
  return p.bias.data == nullptr || (p.bias.dtype == p.to.dtype && !p.accumulate);
}

// The device is the calling thread's where it can be, as it has to be for what comes with cuBLAS's objects.
class OnDeviceIfPossible {
 public:
  explicit OnDeviceIfPossible(int device) noexcept {
    if (cudaGetDevice(&before_) == cudaSuccess) cudaSetDevice(device);
  }
  OnDeviceIfPossible(const OnDeviceIfPossible&) = delete;
  OnDeviceIfPossible& operator=(const OnDeviceIfPossible&) = delete;
  ~OnDeviceIfPossible() {
    cudaSetDevice(before_);
    cudaGetLastError();
  }

 private:
  int before_ = 0;
};

void enqueued(int error, const char* kernel) { cuda::check(static_cast<cudaError_t>(error), kernel); }

}  // namespace

struct CudaProjector::Room {
  static constexpr std::int64_t block = tile_size * tile_size, most_shares = 3 * block / 2;

  std::byte* workspace = nullptr;
  float *tile = nullptr, *left = nullptr, *right = nullptr;  // of `block` numbers each
  double* shares = nullptr;  // in the place of these three, most_shares of them: parts of sums

  static Room take(Arena& arena, std::size_t workspace_bytes) {
    Room room;
    room.workspace = arena.take<std::byte>(static_cast<std::int64_t>(workspace_bytes + workspace_alignment));
    float* const blocks = arena.take<float>(3 * block);
    if (blocks == nullptr) return room;
    const std::uintptr_t misaligned = reinterpret_cast<std::uintptr_t>(room.workspace) % workspace_alignment;
    if (misaligned != 0) room.workspace += workspace_alignment - misaligned;
    room.tile = blocks;
    room.left = blocks + block;
    room.right = blocks + 2 * block;
    static_assert(sizeof(double) == 2 * sizeof(float) && most_head_shares * most_head_dim <= most_shares);
    room.shares = reinterpret_cast<double*>(blocks);
    return room;
  }
};

CudaProjector::CudaProjector(Queue& queue) : queue_(queue), cublas_(cublas_functions()) {
  const BesideCapture beside;
  const OnDevice on(queue.device());
  workspace_bytes_ = workspace_for(capability_of(queue.device()));
  check(cublas_.cublasCreate_v2(&handle_), "cublasCreate");
  try {
    check(cublas_.cublasSetMathMode(handle_, CublasMath::disallow_reduced_precision_reduction), "cublasSetMathMode");
    if (queue.num_sms() > 0) check(cublas_.cublasSetSmCountTarget(handle_, queue.num_sms()), "cublasSetSmCountTarget");
  } catch (...) {
    cublas_.cublasDestroy_v2(handle_);
    throw;
  }
}

CudaProjector::~CudaProjector() {
  const BesideCapture beside;
  const OnDeviceIfPossible on(queue_.device());
  cublas_.cublasDestroy_v2(handle_);
}

void CudaProjector::check(CublasStatus status, const char* function) const {
  if (status == CublasStatus::success) return;
  const cudaError_t behind = cudaGetLastError();
  Error failure(status == CublasStatus::alloc_failed ? RA_STATUS_OUT_OF_MEMORY : RA_STATUS_CUDA_ERROR,
                text(function, ": ", cublas_.cublasGetStatusName(status),
                     behind == cudaSuccess ? "" : text(" (", cudaGetErrorName(behind), ")")));
  failure.cuda_error = behind == cudaSuccess ? cudaErrorUnknown : behind;
  throw failure;
}

std::size_t CudaProjector::scratch_bytes(std::int64_t) const {
  Arena arena;
  Room::take(arena, workspace_bytes_);
  return arena.size();
}

void CudaProjector::multiply(const Product& p, void* scratch) {
  if (p.rows == 0 || p.columns == 0) return;
  Arena arena(scratch);
  const Room room = Room::take(arena, workspace_bytes_);
  const BesideCapture beside;
  // A new stream takes the workspace away.
  check(cublas_.cublasSetStream_v2(handle_, queue_.stream()), "cublasSetStream");
  check(cublas_.cublasSetWorkspace_v2(handle_, room.workspace, workspace_bytes_), "cublasSetWorkspace");

  const bool direct = is_direct(p), whole = direct && std::ranges::all_of(p.terms, is_of_one_dtype);
  const std::int64_t most_rows = whole ? p.rows : tile_size, most_columns = whole ? p.columns : tile_size;
  for (std::int64_t row = 0; row < p.rows; row += most_rows)
    for (std::int64_t column = 0; column < p.columns; column += most_columns) {
      const std::int64_t rows = std::min(most_rows, p.rows - row), columns = std::min(most_columns, p.columns - column);
      const Matrix to = p.to.from(row, column), tile = direct ? to : Matrix{room.tile, DType::float32, columns};
      const std::array bias{row_again_and_again(p.bias.from(0, column))};
      const std::size_t has_bias = p.bias.data == nullptr ? 0 : 1;

      bool adds = direct && p.accumulate;
      if (direct && has_bias == 1) {
        sum(bias, tile, rows, columns, adds);
        adds = true;
      }
      for (const Term& term : p.terms) {
        const Matrix left = term.left.from(row, 0), right = term.right.from(0, column);
        const std::int64_t most_depth = is_of_one_dtype(term) ? term.depth : tile_size;
        for (std::int64_t k = 0; k < term.depth; k += most_depth) {
          const std::int64_t depth = std::min(most_depth, term.depth - k);
          if (is_of_one_dtype(term))
            multiply({left, right, depth}, tile, rows, columns, adds);
          else
            multiply({widened(left.from(0, k), rows, depth, room.left),
                      widened(right.from(k, 0), depth, columns, room.right), depth},
                     tile, rows, columns, adds);
          adds = true;
        }
      }
      if (!adds) sum({}, tile, rows, columns, false);  // there were no terms
      if (direct) continue;
      const std::array terms{rows_of(tile), bias[0]};
      sum(std::span(terms).first(1 + has_bias), to, rows, columns, p.accumulate);
    }
}

// Row by row, as matrices lie here, is column by column of what is transposed: to^T = right^T left^T.
void CudaProjector::multiply(const Term& term, const Matrix& to, std::int64_t rows, std::int64_t columns,
                             bool accumulate) {
  const auto operation = [](const Matrix& m) {
    return m.is_transposed ? CublasOperation::transpose : CublasOperation::none;
  };
  // Of one line alone the stride may be anything.
  const auto stride = [](const Matrix& m, std::int64_t rows_, std::int64_t columns_) {
    return m.is_transposed ? (columns_ > 1 ? m.stride : rows_) : (rows_ > 1 ? m.stride : columns_);
  };
  const float one = 1, zero = 0;
  check(cublas_.cublasGemmEx_64(handle_, operation(term.right), operation(term.left), columns, rows, term.depth, &one,
                                term.right.data, type_of(term.right.dtype), stride(term.right, term.depth, columns),
                                term.left.data, type_of(term.left.dtype), stride(term.left, rows, term.depth),
                                accumulate ? &one : &zero, to.data, type_of(to.dtype), stride(to, rows, columns),
                                CublasCompute::float32, CublasAlgorithm::by_default),
        "cublasGemmEx");
}

void CudaProjector::sum(std::span<const Tensor> terms, const Matrix& to, std::int64_t rows, std::int64_t columns,
                        bool accumulate) {
  enqueued(cuda::sum(1, terms, rows_of(to), {rows, 1, columns}, accumulate, queue_.stream(), queue_.num_sms()), "sum");
}

Matrix CudaProjector::widened(const Matrix& m, std::int64_t rows, std::int64_t columns, float* room) {
  if (m.dtype == DType::float32) return m;
  if (m.is_transposed) std::swap(rows, columns);
  const Matrix wide{room, DType::float32, columns, m.is_transposed};
  const std::array terms{rows_of(m)};
  sum(terms, wide, rows, columns, false);
  return wide;
}

void CudaProjector::sum_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, float* to, bool accumulate,
                             void* scratch) {
  Arena arena(scratch);
  const Room room = Room::take(arena, workspace_bytes_);
  constexpr std::int64_t at_once = Room::most_shares / most_row_shares;
  for (std::int64_t column = 0; column < columns; column += at_once) {
    const std::int64_t count = std::min(at_once, columns - column);
    enqueued(share_rows(from.from(0, column), rows, count, room.shares, queue_.stream(), queue_.num_sms()),
             "share_rows");
    enqueued(add_shares(room.shares, num_row_shares(rows), count, to + column, accumulate, queue_.stream(),
                        queue_.num_sms()),
             "add_shares");
  }
}

void CudaProjector::store_positions(std::span<const Piece> pieces, std::int64_t* positions) {
  enqueued(cuda::store_positions(pieces, positions, queue_.stream(), queue_.num_sms()), "store_positions");
}

void CudaProjector::style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) {
  enqueued(cuda::style_heads(style, from, to, rows, queue_.stream(), queue_.num_sms()), "style_heads");
}

void CudaProjector::differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient,
                                        std::int64_t rows, float* dnorm, bool accumulate, void* scratch) {
  const bool sums = dnorm != nullptr && style.norm.data != nullptr;
  Arena arena(scratch);
  double* const shares = sums ? Room::take(arena, workspace_bytes_).shares : nullptr;
  enqueued(cuda::differentiate_heads(style, from, gradient, rows, shares, queue_.stream(), queue_.num_sms()),
           "differentiate_heads");
  if (sums)
    enqueued(add_shares(shares, num_head_shares(rows), style.dim, dnorm, accumulate, queue_.stream(), queue_.num_sms()),
             "add_shares");
}

}  // namespace ringattn::cuda
