// Bytes that operator new has given out in this program, the library included: allocations.cpp replaces it.
// Counted as malloc rounds them up. From any thread.
#pragma once

#include <cstdint>

namespace ringattn::benchmark {

std::int64_t live_bytes();
std::int64_t peak_bytes();  // most live bytes since the program began or reset_peak()
void reset_peak();

}  // namespace ringattn::benchmark
