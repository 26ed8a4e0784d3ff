#include "emulation/cudnn_fake.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "core/error.h"
#include "emulation.h"
#include "engine/cuda/cudnn.h"
#include "engine/reference/oracle.h"

namespace ringattn::test {
namespace {

std::mutex mutex;
std::string missing, no_plan;
FakeCudnn done;

}  // namespace

void reset_fake_cudnn(const std::string& new_missing, const std::string& new_no_plan) {
  const std::lock_guard lock(mutex);
  missing = new_missing;
  no_plan = new_no_plan;
  done = {};
}
FakeCudnn fake_cudnn() {
  const std::lock_guard lock(mutex);
  return done;
}

}  // namespace ringattn::test

namespace ringattn::cuda {
namespace {

using test::done;
using test::missing;
using test::mutex;
using test::no_plan;

Tensor tensor_of(const void* data, DType dtype, const CudnnShape::Strides& strides) {
  return {const_cast<void*>(data), dtype, strides.batch, strides.seq, strides.head};
}

void attend(const CudnnShape& s, const CudnnTensors& t) {
  const Tensor q = tensor_of(t.q, s.dtype, s.q), k = tensor_of(t.k, s.dtype, s.k), v = tensor_of(t.v, s.dtype, s.v),
               out = tensor_of(t.out, s.out_dtype, s.out);
  std::vector<double> weights(static_cast<std::size_t>(s.keys));
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t head = 0; head < s.num_heads_q; ++head) {
      const std::int64_t head_kv = head / (s.num_heads_q / s.num_heads_kv);
      for (std::int64_t i = 0; i < s.rows; ++i) {
        constexpr double hidden = -std::numeric_limits<double>::infinity();
        double most = hidden, sum = 0;
        for (std::int64_t j = 0; j < s.keys; ++j) {
          double score = hidden;
          if (i + s.lower <= j && j <= i + s.upper) {
            score = 0;
            for (std::int64_t d = 0; d < s.head_dim; ++d)
              score += reference::decode(q.bytes_at(b, i, head) + d * 2, s.dtype) *
                       reference::decode(k.bytes_at(b, j, head_kv) + d * 2, s.dtype);
            score *= static_cast<double>(s.softmax_scale);
          }
          weights[static_cast<std::size_t>(j)] = score;
          most = std::max(most, score);
        }
        for (double& weight : weights) sum += weight = std::exp(weight - most);
        for (std::int64_t d = 0; d < s.head_dim_v; ++d) {
          double x = 0;
          for (std::int64_t j = 0; j < s.keys; ++j)
            x += weights[static_cast<std::size_t>(j)] * reference::decode(v.bytes_at(b, j, head_kv) + d * 2, s.dtype);
          reference::encode(x / sum, s.out_dtype, out.bytes_at(b, i, head) + d * size_of(s.out_dtype));
        }
        if (s.has_lse)
          t.lse[(b * s.num_heads_q + head) * s.lse_head_stride + i] = static_cast<float>(most + std::log(sum));
      }
    }
}

class FakePlan final : public CudnnPlan {
 public:
  explicit FakePlan(const CudnnShape& shape) : s_(shape) {}

  void run(cudaStream_t stream, const CudnnTensors& t) override {
    std::vector<Access> accesses;
    const auto add = [&](const void* data, DType dtype, const CudnnShape::Strides& strides, std::int64_t rows,
                         std::int64_t heads, std::int64_t dim, bool writes) {
      const std::int64_t last = tensor_of(data, dtype, strides).offset(s_.batch - 1, rows - 1, heads - 1) + dim;
      accesses.push_back({data, static_cast<std::size_t>(last * size_of(dtype)), writes});
    };
    add(t.q, s_.dtype, s_.q, s_.rows, s_.num_heads_q, s_.head_dim, false);
    add(t.k, s_.dtype, s_.k, s_.keys, s_.num_heads_kv, s_.head_dim, false);
    add(t.v, s_.dtype, s_.v, s_.keys, s_.num_heads_kv, s_.head_dim_v, false);
    add(t.out, s_.out_dtype, s_.out, s_.rows, s_.num_heads_q, s_.head_dim_v, true);
    if (s_.has_lse)
      accesses.push_back(
          {t.lse,
           static_cast<std::size_t>((s_.batch * s_.num_heads_q - 1) * s_.lse_head_stride + s_.rows) * sizeof(float),
           true});
    accesses.push_back({t.workspace, 256, true});
    for (const void* pointer : {t.q, t.k, t.v, static_cast<const void*>(t.out), static_cast<const void*>(t.lse)})
      if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) fail(RA_STATUS_CUDA_ERROR, "cuDNN: misaligned");
    if (reinterpret_cast<std::uintptr_t>(t.workspace) % 256 != 0) fail(RA_STATUS_CUDA_ERROR, "cuDNN: misaligned");
    check(emulation::submit(stream, "cudnn", accesses, [s = s_, t] { attend(s, t); }), "cudnn");
    const std::lock_guard lock(mutex);
    ++done.runs;
  }

 private:
  const CudnnShape s_;
};

class Fake final : public Cudnn {
 public:
  std::unique_ptr<CudnnPlan> make_plan(const CudnnShape& s, std::size_t most_workspace) override {
    const std::lock_guard lock(mutex);
    // What cudnn-frontend 1.18 refuses.
    const bool has_window = s.lower != -Band::unbounded;
    std::string reason = no_plan;
    if (has_window && s.rows > s.keys) reason = "Sliding window attention is only supported with max_s_q <= max_s_kv.";
    if (has_window && s.lower > 0) reason = "Left bound (Sliding window length) should be greater than zero when set.";
    if (s.upper < 0) reason = "Right bound needs to be larger than or equal to zero";
    if (s.head_dim % 8 != 0 || s.head_dim_v % 8 != 0) reason = "hidden_dim should be multiple of 8";
    if (most_workspace < 256) reason = "No valid execution plans built.";
    if (!reason.empty()) {
      ++done.refused_plans;
      fail(RA_STATUS_NOT_SUPPORTED, "cuDNN: ", reason);
    }
    ++done.plans;
    return std::make_unique<FakePlan>(s);
  }
};

}  // namespace

std::unique_ptr<Cudnn> open_cudnn(const std::string&) {
  const std::lock_guard lock(mutex);
  if (!missing.empty()) fail(RA_STATUS_NOT_SUPPORTED, missing);
  return std::make_unique<Fake>();
}

}  // namespace ringattn::cuda
