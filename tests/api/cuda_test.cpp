// What is said where RA_BACKEND_CUDA or NCCL cannot be used. Each test is a row of its own, with libraries of its own in the folder
// that LD_LIBRARY_PATH names (CMakeLists.txt).
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"

namespace {

using ringattn::test::Context;
using ringattn::test::Error;

const std::string own_folder = std::getenv("LD_LIBRARY_PATH") == nullptr ? "" : std::getenv("LD_LIBRARY_PATH");

void expect_refused(const Error& error, const std::vector<std::string>& parts) {
  EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED) << error;
  EXPECT_EQ(error.cuda_error, 0);
  EXPECT_EQ(error.nccl_result, 0);
  for (const std::string& part : parts)
    EXPECT_NE(error.text().find(part), std::string::npos) << part << " in: " << error;
  std::cout << error << '\n';
}

ra_capabilities capabilities() {
  ra_capabilities c;
  ra_init_capabilities(&c, sizeof c);
  Error error;
  EXPECT_EQ(ra_get_capabilities(&c, &error), RA_STATUS_SUCCESS) << error;
  return c;
}

// Asking for the backend, with either transport that it may have.
void expect_no_cuda(const std::vector<std::string>& parts) {
  for (const ra_transport transport : {RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL}) {
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.backend = RA_BACKEND_CUDA;
    config.transport = transport;
    Error error;
    EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
    expect_refused(error, parts);
  }
  EXPECT_EQ(capabilities().has_cuda, 0);
  EXPECT_EQ(capabilities().has_nccl, 0);
  EXPECT_EQ(capabilities().num_devices, 0);
}

void expect_no_nccl(const std::vector<std::string>& parts) {
  ra_unique_id id{};
  Error error;
  EXPECT_NE(ra_create_unique_id(&id, RA_TRANSPORT_NCCL, nullptr, &error), RA_STATUS_SUCCESS);
  expect_refused(error, parts);

  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.transport = RA_TRANSPORT_NCCL;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  expect_refused(error, parts);
}

// The CPU backend is none the worse.
void expect_cpu() {
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  Error error;
  const Context context(ra_create_context(&config, &error));
  ASSERT_NE(context, nullptr) << error;
  EXPECT_EQ(ra_run_self_test(context.get(), 3, 1, &error), RA_STATUS_SUCCESS) << error;
}

TEST(Cuda, absent) {
  if (capabilities().num_devices > 0) std::exit(77);
  expect_no_cuda({"RA_BACKEND_CUDA", "the NVIDIA driver, libcuda.so.1: ", "looked in " + own_folder + ", ", "/lib",
                  "cache of ldconfig"});
  expect_cpu();
}
TEST(Nccl, absent) {
  setenv("RINGATTN_NCCL_LIBRARY", "/no/such/place/libnccl.so.2", 1);
  expect_no_nccl({"RA_TRANSPORT_NCCL", "/no/such/place/libnccl.so.2: ", "named by RINGATTN_NCCL_LIBRARY"});
}

TEST(Cuda, broken) {
  expect_no_cuda({own_folder + "/libcuda.so.1: file too short"});
  expect_no_nccl({own_folder + "/libnccl.so.2: file too short"});
  expect_cpu();
}

TEST(Cuda, old_driver) { expect_no_cuda({"libcuda.so.1", "is for CUDA 11.8; must be for 1", ".0 or newer"}); }
TEST(Cuda, driver_without_device) { expect_no_cuda({"for CUDA 14.0", "no CUDA-capable device"}); }

TEST(Nccl, old_nccl) { expect_no_nccl({own_folder + "/libnccl.so.2 is NCCL 2.20.5; must be 2.28.0 or newer"}); }
TEST(Nccl, partial_nccl) { expect_no_nccl({own_folder + "/libnccl.so.2 has no function nccl"}); }

// The real one, which was absent at first.
TEST(Nccl, nccl) {
  const std::string file = std::getenv("RINGATTN_NCCL_LIBRARY");
  setenv("RINGATTN_NCCL_LIBRARY", "/no/such/place", 1);
  expect_no_nccl({"/no/such/place"});
  setenv("RINGATTN_NCCL_LIBRARY", file.c_str(), 1);
  ra_unique_id id{};
  Error error;
  EXPECT_EQ(ra_create_unique_id(&id, RA_TRANSPORT_NCCL, nullptr, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(std::string(id.text).substr(0, 14), "ringattn-nccl-");
  EXPECT_EQ(std::string(id.text).size(), 14U + 2 * 128);

  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.transport = RA_TRANSPORT_NCCL;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  expect_refused(error, {"RA_TRANSPORT_NCCL", "needs RA_BACKEND_CUDA"});
}

}  // namespace
