// What a layer of multi-head attention does beside products and attention, on a GPU (engine/projector.h): each function enqueues one kernel
// on the stream and returns a cudaError_t, or no kernel where there is nothing to do. `num_sms` as in portable.h.
//
// Sums over rows are made in shares, which depend on the number of rows alone, each in fp64; and these are added in their order.
#pragma once

#include <cstdint>
#include <span>

#include "engine/projector.h"

struct CUstream_st;

namespace ringattn::cuda {

// As Projector's. The pieces' rows follow on each other.
int store_positions(std::span<const Piece> pieces, std::int64_t* positions, CUstream_st* stream, int num_sms = 0);
int style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows, CUstream_st* stream,
                int num_sms = 0);
// `shares`: where there is a norm [num_head_shares, dim], of its gradient; or null.
int differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient, std::int64_t rows,
                        double* shares, CUstream_st* stream, int num_sms = 0);
// `shares`: [num_row_shares, columns].
int share_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, double* shares, CUstream_st* stream,
               int num_sms = 0);
// to = sum of so many shares, [columns], or to += that.
int add_shares(const double* shares, std::int64_t count, std::int64_t columns, float* to, bool accumulate,
               CUstream_st* stream, int num_sms = 0);

constexpr std::int64_t most_head_shares = 1024, most_row_shares = 256;
std::int64_t num_head_shares(std::int64_t rows);
std::int64_t num_row_shares(std::int64_t rows);

}  // namespace ringattn::cuda
