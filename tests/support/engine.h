// The engine under test: RINGATTN_TEST_ENGINE, or the machine's fastest. CMake runs the rows that depend on it once for each.
#pragma once

#include <cstdlib>

namespace ringattn::test {

inline const char* engine() {
  const char* name = std::getenv("RINGATTN_TEST_ENGINE");
  return name == nullptr || *name == '\0' ? nullptr : name;
}

}  // namespace ringattn::test
