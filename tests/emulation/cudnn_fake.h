// In the place of cuDNN: plans that compute on the CPU what cuDNN is documented to, enqueued on emulated devices with the memory that they
// touch. Like cuDNN's kernels they multiply the weights of hidden keys, which are 0, with V.
#pragma once

#include <cstdint>
#include <string>

namespace ringattn::test {

// From now on open_cudnn refuses with the one reason, and make_plan with the other, if it is not empty.
void reset_fake_cudnn(const std::string& missing = "", const std::string& no_plan = "");

// What was done since.
struct FakeCudnn {
  int plans = 0, refused_plans = 0, runs = 0;
};
FakeCudnn fake_cudnn();

}  // namespace ringattn::test
