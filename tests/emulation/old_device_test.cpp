// Kernels are compiled for devices of some age, and refuse older ones.
#include "emulation/program.h"
#include "support/ranks.h"

namespace ringattn::test {
namespace {

TEST(OldDevice, IsRefused) {
  emulation::reset({.devices = 1, .compute_capability = 75});
  ra_context_config config = make_config(1, 0);
  config.engine = nullptr;
  config.backend = RA_BACKEND_CUDA;
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED) << error;
  EXPECT_NE(error.text().find("device 0 has compute capability 7.5"), std::string::npos) << error;
}

}  // namespace
}  // namespace ringattn::test
