// Products: in registers, or on AMX, where those of single rows are in registers too.
#pragma once

#include "engine/cpu/fma/product.h"
#if RA_AMX
#include "engine/cpu/amx/product.h"
#endif

namespace ringattn::cpu {
namespace {

#if !RA_AMX

// Around products of one thread.
inline void begin_products() {}
inline void end_products() {}

template <Left left>
void multiply(const Product& p) {
  multiply_in_registers<left, tile_rows>(p);
}

#endif

template <Left left>
void multiply_row(const Product& p) {
  if constexpr (summands == 1) multiply_in_registers<left, 1>(p);
}

}  // namespace
}  // namespace ringattn::cpu
