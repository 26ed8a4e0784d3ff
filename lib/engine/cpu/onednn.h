// Products of blocks of matrices, by oneDNN: the library is not linked with it, but loads it when a product is first asked for, and
// tests put their own table in the place of onednn.cpp. It computes on the thread that calls it.
#pragma once

#include <cstdint>
#include <string>

#include "engine/projector.h"

namespace ringattn::cpu {

class OneDnn {
 public:
  virtual ~OneDnn() = default;

  // Whether it has instructions for products of bfloat16 that it sums in fp32; of float32 it has.
  virtual bool has_bfloat16() const = 0;
  // to = left [rows, depth] times right [depth, columns], or to += that. `to` is fp32; left and right are fp32, or both bfloat16 where
  // it has that. From any threads.
  virtual void multiply(const Matrix& left, const Matrix& right, const Matrix& to, std::int64_t rows,
                        std::int64_t columns, std::int64_t depth, bool accumulate) const = 0;
};

// The file that RINGATTN_ONEDNN_LIBRARY names in the environment, or libdnnl.so.2 where the system finds it; for good, once it was
// found. Throws NOT_SUPPORTED: where it was looked for, or what it lacks.
const OneDnn& onednn_library();
// Why not; empty if it can be used.
std::string missing_onednn();

}  // namespace ringattn::cpu
