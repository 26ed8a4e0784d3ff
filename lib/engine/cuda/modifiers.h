// What changes scores and weights (plan/problem.h), as kernels are told of it. Those of problems where nothing does are other kernels
// (Variant::modified), which are told nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "engine/cuda/access.h"
#include "engine/cuda/item.h"
#include "engine/engine.h"

struct CUstream_st;

namespace ringattn::cuda {

// ALiBi, key bias and dropout.
struct ModifierParameters {
  const float* slopes;    // [heads of the step]; null: none
  const float* key_bias;  // [batch, key_rows]; null: none
  std::int64_t key_rows;
  std::int64_t entry, head, head_step;  // Origin
  std::uint64_t seed, offset;           // of dropout
  std::uint32_t threshold;
  float kept;  // kept_factor
};
struct NoModifiers {};

// What kernels with and without modifiers take in the same place.
template <bool modified>
using WorkFor = std::conditional_t<modified, PlacedWork, Work>;
template <bool modified>
using ModifiersFor = std::conditional_t<modified, ModifierParameters, NoModifiers>;

inline bool has_modifiers(const Problem& p) {
  return !p.alibi_slopes.empty() || p.has_key_bias || p.dropout.probability != 0;
}

// What dropout does not drop is multiplied by it; 0: there is no dropout.
float kept_factor(const Problem& problem);

// Bytes of a step's scratch: for the slopes, which are host memory.
inline std::size_t modifier_bytes(const Problem& p) {
  return p.alibi_slopes.empty() ? 0 : static_cast<std::size_t>(p.num_heads_q) * sizeof(float);
}

// Enqueues what writes the slopes of a step's heads to `scratch`, if there are any; a cudaError_t. Nothing has to stay in host memory.
int store_slopes(const Problem& problem, const Origin& origin, void* scratch, CUstream_st* stream);
// Of a forward or a backward step.
ModifierParameters modifiers_of(const Problem& problem, const Origin& origin, const float* key_bias,
                                std::int64_t key_rows, const void* scratch);

}  // namespace ringattn::cuda
