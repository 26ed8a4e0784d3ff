// Products of small matrices by a warp. Every lane holds a fragment of each: with group = lane / 4 and t = lane % 4, and the first
// number of a register in its low half,
//
//   mma_m16n8k16   a[0]  (row group,     columns 2t, 2t + 1)       b[0]  (rows 2t, 2t + 1,         column group)
//                  a[1]  (row group + 8, columns 2t, 2t + 1)       b[1]  (rows 2t + 8, 2t + 9,     column group)
//                  a[2]  (row group,     columns 2t + 8, 2t + 9)
//                  a[3]  (row group + 8, columns 2t + 8, 2t + 9)
//   mma_m16n8k8    a[0]  (row group,     column t)                 b[0]  (row t,                   column group)
//                  a[1]  (row group + 8, column t)                 b[1]  (row t + 4,               column group)
//                  a[2]  (row group,     column t + 4)
//                  a[3]  (row group + 8, column t + 4)
//   both           c[0], c[1]  (row group, columns 2t, 2t + 1)     c[2], c[3]  (row group + 8, columns 2t, 2t + 1)
//
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8".
#pragma once

#include <type_traits>

#include "engine/cuda/device/shared.h"
#include "engine/cuda/device/target.h"

namespace ringattn::cuda {

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: four matrices of 8 rows of 8 16-bit numbers. Lane 8m + r has the address of row r of
// matrix m, aligned to 16 bytes; register m of each lane is (row group, columns 2t, 2t + 1) of matrix m. So rows of A, row by row
// in memory, become a fragment a, and columns of B, each contiguous in memory, a fragment b.
__device__ __forceinline__ Words<4> ldmatrix_x4(SharedAddress row, [[maybe_unused]] Place place = Place::current()) {
  Words<4> r;
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.value)
               : "memory");
#else
  emulation::ldmatrix("ldmatrix_x4", row, r.word, 4, false, place);
#endif
  return r;
}
// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: register m is (rows 2t, 2t + 1, column group) of matrix m. So rows of B, row by
// row in memory, become a fragment b.
__device__ __forceinline__ Words<4> ldmatrix_x4_trans(SharedAddress row,
                                                      [[maybe_unused]] Place place = Place::current()) {
  Words<4> r;
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.value)
               : "memory");
#else
  emulation::ldmatrix("ldmatrix_x4_trans", row, r.word, 4, true, place);
#endif
  return r;
}
// ldmatrix.sync.aligned.m8n8.x2.shared.b16: two matrices, the addresses of lanes 0 .. 15.
__device__ __forceinline__ Words<2> ldmatrix_x2(SharedAddress row, [[maybe_unused]] Place place = Place::current()) {
  Words<2> r;
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.value)
               : "memory");
#else
  emulation::ldmatrix("ldmatrix_x2", row, r.word, 2, false, place);
#endif
  return r;
}
// ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16
__device__ __forceinline__ Words<2> ldmatrix_x2_trans(SharedAddress row,
                                                      [[maybe_unused]] Place place = Place::current()) {
  Words<2> r;
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.value)
               : "memory");
#else
  emulation::ldmatrix("ldmatrix_x2_trans", row, r.word, 2, true, place);
#endif
  return r;
}

// c += a b, in fp32. mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32, with T bf16 or f16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const Words<4>& a, const Words<2>& b,
                                             [[maybe_unused]] Place place = Place::current()) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, BFloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const auto format = std::is_same_v<T, BFloat16> ? emulation::Format::bf16 : emulation::Format::f16;
  emulation::mma_m16n8k16(format, c, a.word, b.word, place);
#endif
}
// c += a b, in fp32. mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: of a and b the low 13 bits are not looked at.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const Words<4>& a, const Words<2>& b,
                                                 [[maybe_unused]] Place place = Place::current()) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma_m16n8k8_tf32(c, a.word, b.word, place);
#endif
}

}  // namespace ringattn::cuda
