// Attention by cuDNN, behind an interface that knows nothing of cuDNN: what a plan of it is made for, and what it is run with.
// cudnn_graph.cpp is cuDNN itself, cudnn_absent.cpp says why there is none in this build, and tests put an emulation in its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/cuda/runtime.h"
#include "engine/engine.h"

namespace ringattn::cuda {

// All that the instructions of a call follow from; two equal ones can have one plan. Tensors are [batch, rows or keys, heads, dim].
struct CudnnShape {
  struct Strides {
    std::int64_t batch = 0, seq = 0, head = 0;  // in elements
    friend bool operator==(const Strides&, const Strides&) = default;
  };
  DType dtype = DType::bfloat16, out_dtype = DType::bfloat16;
  std::int64_t batch = 1, num_heads_q = 1, num_heads_kv = 1, head_dim = 8, head_dim_v = 8;
  std::int64_t rows = 1, keys = 1;
  // Row i sees the keys i + lower .. i + upper, which are some of keys 0 .. keys - 1. Unbounded: no limit on that side.
  std::int64_t lower = -Band::unbounded, upper = Band::unbounded;
  float softmax_scale = 1;
  Strides q, k, v, out;
  bool has_lse = true;
  std::int64_t lse_head_stride = 0;  // of [batch, heads, rows]; entries are num_heads_q such strides apart
  friend bool operator==(const CudnnShape&, const CudnnShape&) = default;
};

// Device memory; q, k, v, out and lse aligned to 16 bytes, workspace to 256.
struct CudnnTensors {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* out = nullptr;
  float* lse = nullptr;  // natural logarithm
  void* workspace = nullptr;
};

class CudnnPlan {
 public:
  virtual ~CudnnPlan() = default;
  // Enqueues. Does not wait, nor allocate; may be captured.
  virtual void run(cudaStream_t stream, const CudnnTensors& tensors) = 0;
};

class Cudnn {
 public:
  virtual ~Cudnn() = default;
  // Takes a good part of a second, and memory. Throws NOT_SUPPORTED with cuDNN's reason.
  virtual std::unique_ptr<CudnnPlan> make_plan(const CudnnShape& shape, std::size_t most_workspace) = 0;
};

// For the device that the thread works on, as is all the above; or where properties are given, as cuDNN writes them, for such a device,
// which need not be there, so that plans can be made but not run. Throws NOT_SUPPORTED: which file was not found and where it was
// looked for, or which version it is.
std::unique_ptr<Cudnn> open_cudnn(const std::string& device_properties = {});

}  // namespace ringattn::cuda
