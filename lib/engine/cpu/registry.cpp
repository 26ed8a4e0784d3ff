// Which CPU engines there are, in the order of preference.
#include <cstring>

#include "engine/cpu/attention.h"

namespace ringattn {

std::vector<const cpu::Tiles*> cpu::cpu_tiles() { return {&portable_tiles()}; }

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
