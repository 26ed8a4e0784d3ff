// What a kernel declares of its memory when it is launched: the emulated runtime checks it against all other work in flight.
#pragma once

#include <cstddef>

namespace ringattn::cuda {

struct Access {
  const void* data = nullptr;
  std::size_t bytes = 0;
  bool writes = false;  // else reads; what is updated in place is declared twice
};

}  // namespace ringattn::cuda
