// What the tests of projectors run on: a CPU engine's (tests/mha/projector_machine.cpp), or a GPU's, emulated or not
// (tests/emulation/projector_machine.cpp). The same tests are linked with either.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/projector.h"

namespace ringattn::test {

class ProjectorMachine {
 public:
  explicit ProjectorMachine(int threads = 2);  // of a CPU engine
  ProjectorMachine(const ProjectorMachine&) = delete;
  ProjectorMachine& operator=(const ProjectorMachine&) = delete;
  ~ProjectorMachine();

  // Null where this machine has none.
  Projector* projector() const;
  void* scratch(std::int64_t rows);

  // Where the projector finds these elements; what it makes of them is in `elements` after take_back(), and it has them no more.
  template <class T>
  T* give(std::vector<T>& elements) {
    return static_cast<T*>(give(elements.data(), elements.size() * sizeof(T)));
  }
  void take_back();
  // Whether a product of a few hundred rows and columns takes seconds.
  static bool is_slow();

 private:
  void* give(void* data, std::size_t bytes);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ringattn::test
