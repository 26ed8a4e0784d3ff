// Runs the tests of a program, or reports them as skipped where this machine has no such engine (engine.h). An engine that is not
// the library's choice runs a share of what is random (random.h).
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "engine/engine.h"
#include "support/engine.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  constexpr int skipped = 77;
  const char* const engine = ringattn::test::engine();
  const std::string engines = ringattn::cpu_engine_names();
  if (ringattn::make_cpu_engine(engine, 1) == nullptr) {
    std::cout << "no engine " << engine << " here; there are " << engines << '\n';
    return skipped;
  }
  const bool chosen = engine == nullptr || engines.substr(0, engines.find(',')) == engine;
  if (!chosen) setenv("RINGATTN_TEST_BRIEF", "1", 0);
  return RUN_ALL_TESTS();
}
