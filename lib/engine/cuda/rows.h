// What Engine (engine/engine.h) does to results that layers go on with, and to sinks, on a GPU: each function enqueues one kernel on the
// stream and returns a cudaError_t. Nothing is refused; where there is nothing to do, nothing is enqueued. `num_sms` as in portable.h.
#pragma once

#include <cstdint>

#include "engine/engine.h"

struct CUstream_st;

namespace ringattn::cuda {

// Running results (running.cuh) of rows.
int begin_rows(std::int64_t batch, const RunningRows& rows, Extent extent, const float* sinks, CUstream_st* stream,
               int num_sms = 0);
int add_zero_keys(std::int64_t batch, const RunningRows& rows, Extent extent, std::int64_t count, CUstream_st* stream,
                  int num_sms = 0);
int finish_rows(const Problem& problem, const RunningRows& rows, Extent extent, const Tensor& out, float* lse,
                CUstream_st* stream, int num_sms = 0);

// combined[h] = log-sum-exp of head h's `sinks` [num_heads_q, num_sinks].
int combine_sinks(const Problem& problem, const float* sinks, float* combined, CUstream_st* stream, int num_sms = 0);
// dsinks[h, n] -= sum over b and i of exp(sinks[h, n] - lse[b, h, i]) delta[b, h, i], always in the same order.
int add_sink_gradients(const Problem& problem, const float* sinks, const float* lse, const float* delta,
                       std::int64_t rows, float* dsinks, CUstream_st* stream, int num_sms = 0);

}  // namespace ringattn::cuda
