// What Engine and Projector (engine/engine.h) do to whole buffers, on a GPU: each function enqueues one kernel on the stream and returns a
// cudaError_t. Nothing is refused; where there is nothing to do, nothing is enqueued.
//
// Tensors are device memory, aligned to their elements, with any strides. Rows of a head go 16 bytes at a time where all of them
// are aligned to that, and element by element where not. `num_sms` as in portable.h.
#pragma once

#include <cstdint>
#include <span>

#include "engine/engine.h"

struct CUstream_st;

namespace ringattn::cuda {

// to = from, of equal dtype.
int copy(std::int64_t batch, const Tensor& from, const Tensor& to, Extent extent, CUstream_st* stream, int num_sms = 0);
// to = round(from), or to = round(to + from); `from` is fp32.
int round(std::int64_t batch, const Tensor& from, const Tensor& to, Extent extent, bool accumulate, CUstream_st* stream,
          int num_sms = 0);
// to = round(sum of at most two terms), or to = round(to + that), of any dtypes. A term whose stride is 0 is the same again and again.
int sum(std::int64_t batch, std::span<const Tensor> terms, const Tensor& to, Extent extent, bool accumulate,
        CUstream_st* stream, int num_sms = 0);
// to = 0 in all of the extent.
int clear(std::int64_t batch, const Tensor& to, Extent extent, CUstream_st* stream, int num_sms = 0);
// to += from, `count` fp32 values.
int add(const float* from, float* to, std::int64_t count, CUstream_st* stream, int num_sms = 0);

}  // namespace ringattn::cuda
