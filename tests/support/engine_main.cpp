// Runs the tests of a program, or reports them as skipped where this machine has no such engine (engine.h).
#include <gtest/gtest.h>

#include <iostream>

#include "engine/engine.h"
#include "support/engine.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  constexpr int skipped = 77;
  if (ringattn::make_cpu_engine(ringattn::test::engine()) == nullptr) {
    std::cout << "no engine " << ringattn::test::engine() << " here; there are " << ringattn::cpu_engine_names()
              << '\n';
    return skipped;
  }
  return RUN_ALL_TESTS();
}
