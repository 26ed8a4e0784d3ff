// What the processor could do at most, measured beside what it does.
#pragma once

#include <cstddef>

extern "C" {

// Floating-point operations a second of one thread: independent fused multiply-adds on registers alone, 2 each lane, for a
// millisecond or two. `lanes`: floats of a register, 16 (AVX-512) or 8 (AVX2); the processor must have it. 0 elsewhere.
double ringattn_measure_fma_rate(int lanes);

// Instructions a second of one thread that do nothing, for half a millisecond: fewer where another program has a share of the
// processor or, through its other hyperthread, of the core.
double ringattn_measure_instruction_rate(void);

// Bytes a second that one thread reads, sum after sum, from `count` floats.
double ringattn_measure_read_rate(const float* data, std::size_t count);
}
