#include "benchmark/peaks.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

template <class F>
double seconds_of(F&& f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

#if defined(__x86_64__)

// Twelve sums: more than the latency of a fused multiply-add times the units that do them.
#define TWELVE(instruction)                                                                                \
  instruction(0) instruction(1) instruction(2) instruction(3) instruction(4) instruction(5) instruction(6) \
      instruction(7) instruction(8) instruction(9) instruction(10) instruction(11)
#define FMA_512(n) "vfmadd231ps %%zmm15, %%zmm15, %%zmm" #n "\n"
#define FMA_256(n) "vfmadd231ps %%ymm15, %%ymm15, %%ymm" #n "\n"
#define CLOBBERED \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm15", "cc"

[[gnu::target("avx512f")]] static void multiply_add_512(long rounds) {
  asm volatile("vpxord %%zmm15, %%zmm15, %%zmm15\n1:\n" TWELVE(FMA_512) "dec %0\njnz 1b\nvzeroupper"
               : "+r"(rounds)
               :
               : CLOBBERED);
}
[[gnu::target("avx2,fma")]] static void multiply_add_256(long rounds) {
  asm volatile("vpxor %%ymm15, %%ymm15, %%ymm15\n1:\n" TWELVE(FMA_256) "dec %0\njnz 1b\nvzeroupper"
               : "+r"(rounds)
               :
               : CLOBBERED);
}

double ringattn_measure_fma_rate(int lanes) {
  constexpr long rounds = 500'000;
  const double seconds = seconds_of([&] { lanes == 16 ? multiply_add_512(rounds) : multiply_add_256(rounds); });
  return 12.0 * 2.0 * lanes * rounds / seconds;
}

#else

double ringattn_measure_fma_rate(int) { return 0; }

#endif

double ringattn_measure_instruction_rate() {
  constexpr int rounds = 20'000, together = 256;
  const double seconds = seconds_of([&] {
    for (int round = 0; round < rounds; ++round) asm volatile(".rept 256\nnop\n.endr");
  });
  return static_cast<double>(together) * rounds / seconds;
}

double ringattn_measure_read_rate(const float* data, std::size_t count) {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
  Vector sums[8] = {};  // as many as stay in the registers of any processor
  const double seconds = seconds_of([&] {
    for (std::size_t i = 0; i + 32 <= count; i += 32)
      for (std::size_t n = 0; n < 8; ++n) sums[n] += *reinterpret_cast<const Vector*>(data + i + 4 * n);
  });
  asm volatile("" : : "m"(sums));
  return static_cast<double>(count) * sizeof(float) / seconds;
}
