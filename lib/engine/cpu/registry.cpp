// Which CPU engines this build has, in the order of preference.
#include <array>
#include <cstring>

#include "engine/cpu/attention.h"

namespace ringattn {
namespace {

using TilesOf = const cpu::Tiles& (*)();
constexpr std::array<TilesOf, 1> engines{cpu::portable_tiles};

}  // namespace

std::string cpu_engine_names() {
  std::string names;
  for (const TilesOf tiles : engines) names.append(names.empty() ? "" : ",").append(tiles().name);
  return names;
}

std::unique_ptr<Engine> make_cpu_engine(const char* name) {
  for (const TilesOf tiles : engines)
    if (name == nullptr || std::strcmp(name, tiles().name) == 0) return std::make_unique<cpu::CpuEngine>(tiles());
  return nullptr;
}

}  // namespace ringattn
