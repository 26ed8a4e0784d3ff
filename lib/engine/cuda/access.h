// What a kernel declares of its memory when it is launched: the emulated runtime checks it against all other work in flight.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/engine.h"

namespace ringattn::cuda {

struct Access {
  const void* data = nullptr;
  std::size_t bytes = 0;
  bool writes = false;  // else reads; what is updated in place is declared twice
};

// From a tensor's first element to its last.
inline Access access_of(const Tensor& t, std::int64_t batch, const Extent& extent, bool writes) {
  const std::int64_t last = t.offset(batch - 1, extent.rows - 1, extent.heads - 1) + extent.dim;
  return {t.data, static_cast<std::size_t>(last * size_of(t.dtype)), writes};
}

}  // namespace ringattn::cuda
