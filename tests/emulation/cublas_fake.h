// In the place of cuBLAS: products that are computed on the CPU as cuBLAS is documented to, enqueued on emulated devices with the memory
// that they touch. What it is given has to be as cuBLAS demands it.
#pragma once

#include <string>

namespace ringattn::test {

// From now on there is no cuBLAS, for this reason, unless it is empty.
void set_fake_cublas(const std::string& missing = "");

}  // namespace ringattn::test
