// Which CPU engines there are, in the order of preference.
#include <cstring>

#include "engine/cpu/attention.h"

namespace ringattn {

std::vector<const cpu::Tiles*> cpu::cpu_tiles() {
  std::vector<const Tiles*> tiles;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    tiles.push_back(&avx512_tiles());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    tiles.push_back(&avx2_tiles());
#elif defined(__aarch64__)
  tiles.push_back(&neon_tiles());
#endif
  tiles.push_back(&portable_tiles());
  return tiles;
}

std::string cpu_engine_names() {
  std::string names;
  for (const cpu::Tiles* tiles : cpu::cpu_tiles()) names.append(names.empty() ? "" : ",").append(tiles->name);
  return names;
}

std::unique_ptr<Engine> make_cpu_engine(const char* name) {
  for (const cpu::Tiles* tiles : cpu::cpu_tiles())
    if (name == nullptr || std::strcmp(name, tiles->name) == 0) return std::make_unique<cpu::CpuEngine>(*tiles);
  return nullptr;
}

}  // namespace ringattn
