// cuDNN itself, as far as it goes without a GPU: it makes plans for GPUs that are only described, and compiles their kernels. So whatever
// the engine cudnn asks for, cuDNN accepts, and it is seen what it refuses. The driver is a stand-in (CMakeLists.txt).
#include "engine/cuda/cudnn.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/random.h"

namespace {

int major_capability = 9;

}  // namespace

// cudnn-frontend asks the CUDA runtime which GPU there is.
extern "C" cudaError_t __wrap_cudaGetDevice(int* device);
extern "C" cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
extern "C" cudaError_t __wrap_cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  properties->major = major_capability;
  return cudaSuccess;
}

namespace ringattn::cuda {
namespace {

constexpr std::size_t most_workspace = 4096;  // cudnn_engine.cpp

// As cuDNN 9.18 writes and reads them.
std::unique_ptr<Cudnn> cudnn_for(int capability) {
  struct Gpu {
    int capability, multiprocessors, shared_memory;
    const char* name;
  };
  constexpr Gpu gpus[] = {{80, 108, 166912, "NVIDIA A100-SXM4-80GB"},
                          {90, 132, 232448, "NVIDIA H100 80GB HBM3"},
                          {100, 148, 232448, "NVIDIA B200"}};
  for (const Gpu& gpu : gpus)
    if (gpu.capability == capability) {
      major_capability = capability / 10;
      return open_cudnn(text(
          R"({"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"warpSize":32,)",
          R"("maxSharedMemoryPerBlock":49152,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,)",
          R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,)",
          R"("supportCoopLaunch":1,"smClockRateKHz":1980000,"memClockRateKHz":2619000,"l2CacheSize":52428800,)",
          R"("cudaDeviceId":0,"driverVer":13000,"totalGlobalMem":85017493504,"multiProcessorCount":)",
          gpu.multiprocessors, R"(,"maxSharedMemoryPerBlockOptin":)", gpu.shared_memory, R"(,"deviceVer":)",
          capability * 10, R"(,"deviceName":")", gpu.name, "\"}"));
    }
  return nullptr;
}

CudnnShape shape(std::int64_t rows, std::int64_t keys, std::int64_t dim, DType out_dtype = DType::float32) {
  CudnnShape s;
  s.out_dtype = out_dtype;
  s.num_heads_q = 8;
  s.num_heads_kv = 2;
  s.rows = rows;
  s.keys = keys;
  s.head_dim = s.head_dim_v = dim;
  s.softmax_scale = 0.125F;
  const auto packed = [](std::int64_t length, std::int64_t heads, std::int64_t of) {
    return CudnnShape::Strides{length * heads * of, heads * of, of};
  };
  s.q = packed(rows, s.num_heads_q, dim);
  s.k = s.v = packed(keys, s.num_heads_kv, dim);
  s.out = packed(rows, s.num_heads_q, dim);
  s.lse_head_stride = rows;
  return s;
}

std::string refusal(Cudnn& cudnn, const CudnnShape& s) {
  try {
    cudnn.make_plan(s, most_workspace);
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED) << error.message;
    return error.message;
  }
}

class CudnnPlans : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, CudnnPlans, ::testing::Values(80, 90, 100));

// O in fp32 beside lse, under every mask that a rectangle has, and O rounded where it is final.
TEST_P(CudnnPlans, AreMadeOfWhateverTheEngineAsksFor) {
  const std::unique_ptr<Cudnn> cudnn = cudnn_for(GetParam());
  const auto expect = [&](const char* what, const CudnnShape& s) { EXPECT_EQ(refusal(*cudnn, s), "") << what; };
  const auto masked = [](CudnnShape s, std::int64_t lower, std::int64_t upper) {
    s.lower = lower;
    s.upper = upper;
    return s;
  };
  constexpr std::int64_t all = Band::unbounded;
  expect("full", shape(1000, 777, 128));
  expect("causal", masked(shape(1000, 1000, 128), -all, 0));
  expect("beyond the diagonal", masked(shape(512, 2048, 128), -all, 700));
  expect("window", masked(shape(999, 1001, 64), -100, 50));
  expect("a window's end alone", masked(shape(1000, 1000, 64), -100, all));
  expect("causal, rounded", masked(shape(1000, 1000, 128, DType::bfloat16), -all, 0));
  CudnnShape other = shape(600, 640, 64, DType::bfloat16);  // float16 in another layout, into bfloat16, without lse
  other.dtype = DType::float16;
  other.batch = 2;
  other.head_dim_v = 128;
  other.q = {3 * 600 * 8 * 64 + 64, 64, 3 * 600 * 64};
  other.v = {640 * 2 * 128, 2 * 128, 128};
  other.out = {600 * 8 * 128, 8 * 128, 128};
  other.has_lse = false;
  expect("other", other);
}

// Shapes as random as those of the steps of a ring.
TEST(CudnnPlans90, AreMadeOfRandomRectangles) {
  std::mt19937_64 random(test::seed());
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  const std::unique_ptr<Cudnn> cudnn = cudnn_for(90);
  for (int n = 0; n < test::sample(8); ++n) {
    CudnnShape s = shape(draw(1, 3000), draw(1, 3000), 8 * draw(4, 32));
    if (draw(0, 1) == 0) s.upper = draw(0, s.keys - 1);
    if (draw(0, 2) == 0 && s.rows <= s.keys) s.lower = -draw(0, s.rows - 1);
    EXPECT_EQ(refusal(*cudnn, s), "") << s.rows << " rows, " << s.keys << " keys, " << s.lower << " .. " << s.upper
                                      << ", head_dim " << s.head_dim;
  }
}

TEST(CudnnPlans90, AreRefusedWithCudnnsReason) {
  const std::unique_ptr<Cudnn> cudnn = cudnn_for(90);
  const auto expect = [&](const CudnnShape& s, const std::string& part) {
    const std::string reason = refusal(*cudnn, s);
    EXPECT_NE(reason.find(part), std::string::npos) << part << " in: " << reason;
    EXPECT_EQ(reason.substr(0, 7), "cuDNN 9");
    std::cout << reason << '\n';
  };
  expect(shape(512, 512, 36), "hidden_dim should be multiple of 8");
  CudnnShape window = shape(1024, 512, 64);
  window.lower = -10;
  expect(window, "Sliding window attention is only supported with max_s_q <= max_s_kv");
}

// Rows of their own, with libraries of their own in the folder that LD_LIBRARY_PATH names (CMakeLists.txt).
void expect_missing(const std::vector<std::string>& parts) {
  try {
    open_cudnn();
    ADD_FAILURE() << "there is one";
  } catch (const Error& error) {
    EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED);
    for (const std::string& part : parts)
      EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
    std::cout << error.message << '\n';
  }
}
const std::string own_folder = std::getenv("LD_LIBRARY_PATH") == nullptr ? "" : std::getenv("LD_LIBRARY_PATH");

TEST(Library, absent) {
  expect_missing({"libcudnn.so.9: ", "looked in " + own_folder + ", ", "RINGATTN_CUDNN_LIBRARY may name the file"});
  setenv("RINGATTN_CUDNN_LIBRARY", "/no/such/place/libcudnn.so.9", 1);
  expect_missing({"/no/such/place/libcudnn.so.9: ", "named by RINGATTN_CUDNN_LIBRARY"});
}
TEST(Library, old_cudnn) { expect_missing({own_folder + "/libcudnn.so.9 is cuDNN 9.10.2; must be 9.18.0 or newer"}); }
TEST(Library, partial_cudnn) { expect_missing({own_folder + "/libcudnn.so.9 has no function cudnn"}); }

}  // namespace
}  // namespace ringattn::cuda
