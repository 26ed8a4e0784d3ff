// Which CPU engines there are, in the order of preference, and which of its tiles an engine takes.
#include <algorithm>
#include <cstring>

#include "engine/cpu/attention.h"
#include "engine/precision.h"

#if defined(__x86_64__) && !defined(RA_EMULATE) && !defined(RA_PORTABLE_ONLY)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ringattn {

namespace {

#if defined(__x86_64__) && !defined(RA_PORTABLE_ONLY)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
bool has_avx512_bf16() {
#ifdef RA_EMULATE
  return has_avx512();
#else
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#endif
}

#ifdef RA_EMULATE
bool has_amx() { return has_avx512_bf16(); }
#else
// The processor has it, the system saves its tiles (XCR0), and lets this process have them: it asks once.
bool may_use_amx() {
  constexpr unsigned osxsave = 1U << 27, amx_bf16 = 1U << 22, amx_tile = 1U << 24, tile_state = 3U << 17;
  constexpr int tile_data = 18;                // number of the state component
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & osxsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & tile_state) == tile_state && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
bool has_amx() {
  static const bool has = has_avx512_bf16() && may_use_amx();
  return has;
}
#endif
#endif

}  // namespace

// Split numbers lose nothing, but their products are made of whole tiles.
const cpu::Tiles& cpu::EngineTiles::choose(const Problem& p) const {
  if (bfloat16 != nullptr && p.dtype == DType::bfloat16 && may_round_weights(p)) return *bfloat16;
  return split != nullptr && p.dtype != DType::float16 && has_many(p) ? *split : *any;
}

std::vector<cpu::EngineTiles> cpu::cpu_engines() {
  std::vector<EngineTiles> engines;
#if defined(RA_PORTABLE_ONLY)
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (has_amx()) engines.push_back({"amx", &avx512_tiles(), &amx_tiles(), &amx_split_tiles()});
  if (has_avx512_bf16()) engines.push_back({"avx512_bf16", &avx512_tiles(), &avx512_bf16_tiles()});
  if (has_avx512()) engines.push_back({"avx512", &avx512_tiles()});
  if (has_avx2()) engines.push_back({"avx2", &avx2_tiles()});
#elif defined(__aarch64__)
  engines.push_back({"neon", &neon_tiles()});
#endif
  engines.push_back({"portable", &portable_tiles()});
  return engines;
}

std::vector<const cpu::Tiles*> cpu::cpu_tiles() {
  std::vector<const Tiles*> all;
  for (const EngineTiles& engine : cpu_engines())
    for (const Tiles* tiles : {engine.bfloat16, engine.split, engine.any})
      if (tiles != nullptr && std::find(all.begin(), all.end(), tiles) == all.end()) all.push_back(tiles);
  return all;
}

std::string cpu_engine_names() {
  std::string names;
  for (const cpu::EngineTiles& engine : cpu::cpu_engines()) names.append(names.empty() ? "" : ",").append(engine.name);
  return names;
}

std::unique_ptr<Engine> make_cpu_engine(const char* name, int num_threads) {
  for (const cpu::EngineTiles& engine : cpu::cpu_engines())
    if (name == nullptr || std::strcmp(name, engine.name) == 0)
      return std::make_unique<cpu::CpuEngine>(engine, num_threads);
  return nullptr;
}

}  // namespace ringattn
