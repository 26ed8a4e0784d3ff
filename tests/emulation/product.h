// A kernel as the backend has them, for the tests of the emulation: c = a b on tensor cores, in tiles that are copied ahead.
#pragma once

#include <cstdint>

#include "engine/cuda/device/target.h"

struct CUstream_st;

namespace ringattn::cuda {

// What is left out of the kernel, to see whether that is noticed.
enum class Without { nothing, commit, wait, barrier_behind_copy, barrier_before_copy, barrier_in_epilogue };

// Row by row, each aligned to 16 bytes.
struct Product {
  const BFloat16* a;  // [m, k]
  const BFloat16* b;  // [k, n]
  float* c;           // [m, n], n a multiple of 4
  int m, n, k;
  int a_stride, b_stride, c_stride;  // of rows, in elements; multiples of 8
  Without without;
};
int multiply(const Product& product, CUstream_st* stream);

}  // namespace ringattn::cuda
