// Layers with RA_BACKEND_CUDA where something fails: each function of cuBLAS once, in ranks that then break as one; and where there is no cuBLAS,
// or a call is given what it cannot use, which breaks nothing.
#include <iostream>

#include "emulation/cublas_fake.h"
#include "emulation/emulated_machine.h"
#include "emulation/mha.h"
#include "engine/cuda/cublas_library.h"

namespace ringattn::test {
namespace {

constexpr int size = 2;

std::vector<ra_mha_requirements> needed_by_ranks() {
  std::vector<ra_mha_requirements> needed(size);
  CudaRanks ranks(size, RA_TRANSPORT_LOCAL, size);
  ranks->run([&](std::int32_t rank, ra_context* context) {
    MhaShard shard(small_attention(RA_DTYPE_BFLOAT16), full_mha(), size, rank);
    shard.make_room(context);
    needed[static_cast<std::size_t>(rank)] = shard.needed;
  });
  return needed;
}

// A forward and a backward pass of a group in which the n-th call of a function fails, and how that ended on each rank. Nothing if there
// was no such call.
std::vector<Error> fail_one_call(Machine& machine, const char* function, int n, int result) {
  machine.reset(static_cast<std::uint64_t>(n));
  const std::vector<ra_mha_requirements> needed = needed_by_ranks();
  std::vector<Error> errors(size);
  bool came = false;
  {
    CudaRanks ranks(size, RA_TRANSPORT_LOCAL, size, [](ra_context_config& config) { config.num_sms = 2; });
    emulation::fail_call(function, n, result);
    ranks->run([&](std::int32_t rank, ra_context* context) {
      const Streams streams(rank);
      DeviceMha layer(small_attention(RA_DTYPE_BFLOAT16), full_mha(), size, rank, rank);
      layer.make_room(needed[static_cast<std::size_t>(rank)]);
      layer.upload(streams.first);
      Error& error = errors[static_cast<std::size_t>(rank)];
      if (layer.forward(context, streams.first, &error) == RA_STATUS_SUCCESS)
        layer.backward(context, streams.first, &error, true);
      ok(cudaStreamSynchronize(streams.first));
      if (error.status == RA_STATUS_SUCCESS) return;
      Error seen, again;  // the group is broken for good
      const ra_status broken = ra_get_async_error(context, &seen);
      EXPECT_TRUE(broken == error.status || (broken == RA_STATUS_PEER_LOST && error.status == RA_STATUS_INVALID_STATE))
          << error << "; " << seen;
      EXPECT_EQ(layer.forward(context, streams.first, &again), RA_STATUS_INVALID_STATE) << again;
      ok(cudaStreamSynchronize(streams.first));
    });
    came = emulation::take_back_failures() == 0;
  }
  machine.expect_clean();
  if (came) return errors;
  for (const Error& error : errors) EXPECT_EQ(error.status, RA_STATUS_SUCCESS) << error;
  return {};
}

class BackendMhaFailure : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Functions, BackendMhaFailure,
                         ::testing::Values("cublasCreate", "cublasSetMathMode", "cublasSetSmCountTarget",
                                           "cublasSetStream", "cublasSetWorkspace", "cublasGemmEx", "sum",
                                           "style_heads", "store_positions", "differentiate_heads", "share_rows",
                                           "add_shares"),
                         [](const ::testing::TestParamInfo<const char*>& info) { return std::string(info.param); });

// Of cuBLAS, and of our own that are launched.
TEST_P(BackendMhaFailure, OfAFunctionIsReported) {
  Machine machine(2);
  const std::string function = GetParam();
  const bool is_cublas = function.starts_with("cublas");
  int failed = 0;
  for (int n = 1;; n += full() ? 1 : 2 * n * slowness) {
    const std::vector<Error> errors =
        fail_one_call(machine, GetParam(), n,
                      is_cublas ? static_cast<int>(cuda::CublasStatus::execution_failed) : cudaErrorLaunchFailure);
    if (HasFailure()) {
      ADD_FAILURE() << "call " << n;
      return;
    }
    if (errors.empty()) break;
    ++failed;
    int own = 0;
    for (const Error& error : errors) {
      if (error.status == RA_STATUS_PEER_LOST || error.status == RA_STATUS_INVALID_STATE ||
          error.status == RA_STATUS_SUCCESS)
        continue;
      EXPECT_EQ(error.status, RA_STATUS_CUDA_ERROR) << error;
      EXPECT_EQ(error.text().rfind(function + ": ", 0), 0U) << error;
      if (is_cublas) {
        EXPECT_NE(error.text().find("CUBLAS_STATUS_EXECUTION_FAILED"), std::string::npos) << error;
      }
      EXPECT_NE(error.cuda_error, 0);
      ++own;
    }
    EXPECT_EQ(own, 1) << errors[0] << "; " << errors[1];
  }
  std::cout << "failed " << failed << " times\n";
  EXPECT_GE(failed, 1);
}

TEST(BackendMhaRefusal, OfMemoryIsOutOfMemory) {
  Machine machine(2);
  const std::vector<Error> errors =
      fail_one_call(machine, "cublasCreate", 1, static_cast<int>(cuda::CublasStatus::alloc_failed));
  ASSERT_FALSE(errors.empty());
  EXPECT_TRUE(errors[0].status == RA_STATUS_OUT_OF_MEMORY || errors[1].status == RA_STATUS_OUT_OF_MEMORY)
      << errors[0] << "; " << errors[1];
}

// A layer says so, and attention goes on without.
TEST(BackendMhaRefusal, WithoutCublasThereAreNoLayers) {
  Machine machine(1);
  machine.reset(1);
  set_fake_cublas("libcublas.so.13: there is no such file");
  {
    CudaRanks ranks(1, RA_TRANSPORT_LOCAL, 1);
    ranks->run([&](std::int32_t, ra_context* context) {
      const Streams streams(0);
      const DeviceMha layer(small_attention(RA_DTYPE_BFLOAT16), full_mha(), 1, 0, 0);
      Error error;
      ra_mha_requirements needs;
      ra_init_mha_requirements(&needs, sizeof needs);
      EXPECT_EQ(ra_get_mha_requirements(context, &layer.shard.desc, &layer.shard.mha, &needs, &error),
                RA_STATUS_NOT_SUPPORTED);
      EXPECT_EQ(error.text(), "libcublas.so.13: there is no such file");
      layer.upload(streams.first);
      EXPECT_EQ(layer.forward(context, streams.first, &error), RA_STATUS_NOT_SUPPORTED);
      EXPECT_EQ(error.text(), "libcublas.so.13: there is no such file");
      const reference::Oracle oracle = travelling_oracle(1);
      DeviceShards shards(oracle, 1, 0, 0);
      shards.upload(streams.first);
      EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
      ok(cudaStreamSynchronize(streams.first));
    });
  }
  set_fake_cublas();
  machine.expect_clean();
}

TEST(BackendMhaRefusal, OfArgumentsIsRefused) {
  Machine machine(2);
  machine.reset(1);
  {
    CudaRanks ranks(1, RA_TRANSPORT_LOCAL, 1);
    ranks->run([&](std::int32_t, ra_context* context) {
      const Streams streams(0), others(1);
      ok(cudaSetDevice(0));
      DeviceMha layer(small_attention(RA_DTYPE_BFLOAT16), full_mha(), 1, 0, 0);
      if (!layer.make_room(context)) return;
      layer.upload(streams.first);
      const auto expect_refused = [&](const char* says, auto&& change) {
        ra_mha_forward_args a = layer.forward_args(streams.first);
        change(a);
        Error error;
        EXPECT_EQ(ra_mha_forward(context, &layer.shard.desc, &layer.shard.mha, &a, &error), RA_STATUS_INVALID_ARGUMENT);
        EXPECT_NE(error.text().find(says), std::string::npos) << says << " in: " << error;
      };
      const MhaShard& host = layer.shard;
      expect_refused("host memory; must be memory of device 0", [&](auto& a) { a.x = host.x.view(); });
      expect_refused("w_k is ", [&](auto& a) { a.w_k = host.weights[1].view(); });
      expect_refused("out is ", [&](auto& a) { a.out = host.out.view(); });
      expect_refused("activations is ", [&](auto& a) { a.activations = host.activations.bytes.get(); });
      expect_refused("of another device; must be one of device 0", [&](auto& a) { a.stream = others.first; });
      Error error;
      std::vector<float> numbers(8);
      ra_reduce_args args;
      ra_init_reduce_args(&args, sizeof args);
      args.data = numbers.data(), args.count = 8, args.stream = streams.first;
      EXPECT_EQ(ra_all_reduce(context, &args, &error), RA_STATUS_INVALID_ARGUMENT);
      EXPECT_NE(error.text().find("data is "), std::string::npos) << error;
      // And the good call.
      EXPECT_EQ(layer.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
      ok(cudaStreamSynchronize(streams.first));
    });
  }
  machine.expect_clean();
}

}  // namespace
}  // namespace ringattn::test
