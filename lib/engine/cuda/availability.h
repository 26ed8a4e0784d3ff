// Whether RA_BACKEND_CUDA can be used on this machine, and if not, why.
#pragma once

#include <string>

namespace ringattn::cuda {

struct Availability {
  int num_devices = 0;
  std::string missing;  // "libcuda.so.1: cannot open ...; looked in ..."; empty if all is there
};

// Asked anew with every call, but for what the CUDA runtime remembers of the driver.
Availability availability();

}  // namespace ringattn::cuda
