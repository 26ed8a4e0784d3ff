// What RA_BACKEND_CUDA refuses, and with which words: nothing is enqueued, and the same context then makes a good call.
#include <functional>
#include <sstream>

#include "emulation/backend.h"
#include "emulation/program.h"

namespace ringattn::test {
namespace {

constexpr int devices = 2;

void expect_refused(const Error& error, std::int32_t status, const std::vector<std::string>& parts) {
  EXPECT_EQ(error.status, status) << error;
  for (const std::string& part : parts)
    EXPECT_NE(error.text().find(part), std::string::npos) << part << " in: " << error;
}

// A context of one rank on device 1, with its tensors, and memory where it must not be.
class BackendRefusal : public ::testing::Test {
 protected:
  BackendRefusal() {
    emulation::reset({.devices = devices});
    ra_context_config config = make_config(1, 0);
    config.engine = nullptr;
    config.num_threads = 0;
    config.backend = RA_BACKEND_CUDA;
    config.device = 1;
    Error error;
    context_.reset(ra_create_context(&config, &error));
    EXPECT_NE(context_, nullptr) << error;
    streams_ = std::make_unique<Streams>(1);
    shards_ = std::make_unique<DeviceShards>(oracle_, 1, 0, 1);
    shards_->upload(streams_->first);
    ok(cudaStreamSynchronize(streams_->first));
  }
  ~BackendRefusal() override {
    Error error;
    EXPECT_EQ(shards_->forward(context_.get(), streams_->first, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(shards_->backward(context_.get(), streams_->first, &error), RA_STATUS_SUCCESS) << error;
    ok(cudaStreamSynchronize(streams_->first));
    shards_.reset();
    streams_.reset();
    context_.reset();
    expect_no_violations();
    EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
  }
  template <class F>
  void expect_forward(F&& change, std::int32_t status, const std::vector<std::string>& parts) {
    ra_forward_args args = shards_->forward_args(streams_->first);
    change(args);
    Error error;
    ra_forward(context_.get(), &shards_->desc(), &args, &error);
    expect_refused(error, status, parts);
    EXPECT_EQ(ra_get_async_error(context_.get(), &error), RA_STATUS_SUCCESS) << error;
  }
  template <class F>
  void expect_backward(F&& change, std::int32_t status, const std::vector<std::string>& parts) {
    ra_backward_args args = shards_->backward_args(streams_->first);
    change(args);
    Error error;
    ra_backward(context_.get(), &shards_->desc(), &args, &error);
    expect_refused(error, status, parts);
    EXPECT_EQ(ra_get_async_error(context_.get(), &error), RA_STATUS_SUCCESS) << error;
  }

  const reference::Oracle oracle_ = travelling_oracle(2);
  Context context_;
  std::unique_ptr<Streams> streams_;
  std::unique_ptr<DeviceShards> shards_;
};

TEST_F(BackendRefusal, OfHostMemory) {
  std::vector<float> host(1 << 12);
  expect_forward([&](ra_forward_args& args) { args.q.data = host.data(); }, RA_STATUS_INVALID_ARGUMENT,
                 {"q is ", "host memory; must be memory of device 1"});
  expect_forward([&](ra_forward_args& args) { args.out.data = host.data(); }, RA_STATUS_INVALID_ARGUMENT,
                 {"out is ", "host memory"});
  expect_forward([&](ra_forward_args& args) { args.lse = host.data(); }, RA_STATUS_INVALID_ARGUMENT,
                 {"lse is ", "host memory"});
  expect_backward([&](ra_backward_args& args) { args.dk.data = host.data(); }, RA_STATUS_INVALID_ARGUMENT,
                  {"dk is ", "host memory"});
  void* pinned = nullptr;
  ok(cudaMallocHost(&pinned, 1 << 14));
  expect_forward([&](ra_forward_args& args) { args.v.data = pinned; }, RA_STATUS_INVALID_ARGUMENT,
                 {"v is ", "host memory"});
  ok(cudaFreeHost(pinned));
}

TEST_F(BackendRefusal, OfMemoryOfAnotherDevice) {
  const Buffer other = make_buffer(0, 1 << 14);
  expect_forward([&](ra_forward_args& args) { args.k.data = other; }, RA_STATUS_INVALID_ARGUMENT,
                 {"k is ", "memory of device 0; must be memory of device 1"});
  expect_backward([&](ra_backward_args& args) { args.dq.data = other; }, RA_STATUS_INVALID_ARGUMENT,
                  {"dq is ", "memory of device 0"});
  ra_memory_requirements needs;
  ra_init_memory_requirements(&needs, sizeof needs);
  Error error;
  ASSERT_EQ(ra_get_memory_requirements(context_.get(), &shards_->desc(), &needs, &error), RA_STATUS_SUCCESS) << error;
  const Buffer workspace = make_buffer(0, needs.backward_workspace);
  expect_backward(
      [&](ra_backward_args& args) {
        args.workspace = workspace;
        args.workspace_size = needs.backward_workspace;
      },
      RA_STATUS_INVALID_ARGUMENT, {"workspace is ", "memory of device 0"});
  ok(cudaFree(other));
  ok(cudaFree(workspace));
}

// A tensor that begins in device memory and ends outside of it.
TEST_F(BackendRefusal, OfMemoryThatIsTooShort) {
  const Buffer little = make_buffer(1, 64);
  expect_forward([&](ra_forward_args& args) { args.q.data = little; }, RA_STATUS_INVALID_ARGUMENT,
                 {"q is ", "host memory; must be memory of device 1"});
  ok(cudaFree(little));
}

TEST_F(BackendRefusal, OfAStreamOfAnotherDevice) {
  const Streams others(0);
  expect_forward([&](ra_forward_args& args) { args.stream = others.first; }, RA_STATUS_INVALID_ARGUMENT,
                 {"stream is ", "of another device; must be one of device 1"});
  expect_backward([&](ra_backward_args& args) { args.stream = others.first; }, RA_STATUS_INVALID_ARGUMENT,
                  {"stream is ", "of another device"});
}

TEST_F(BackendRefusal, OfMisalignedTensors) {
  expect_forward([&](ra_forward_args& args) { args.q.data = static_cast<std::byte*>(args.q.data) + 1; },
                 RA_STATUS_INVALID_ARGUMENT, {"q.data is ", "must be aligned to 2 bytes"});
  expect_forward(
      [&](ra_forward_args& args) {
        args.out.batch_stride = 1000;
        args.out.seq_stride = 16;
        args.out.head_stride = 7;
      },
      RA_STATUS_INVALID_ARGUMENT, {"out.head_stride is 7; must be at least 8"});
}

TEST_F(BackendRefusal, OfAFirstCallInACapture) {
  cudaGraph_t graph = nullptr;
  ok(cudaStreamBeginCapture(streams_->first, cudaStreamCaptureModeGlobal));
  expect_forward([](ra_forward_args&) {}, RA_STATUS_INVALID_STATE,
                 {"workspace is NULL", "while stream is being captured", "make the call once before"});
  ok(cudaStreamEndCapture(streams_->first, &graph));
  ok(cudaGraphDestroy(graph));
}

struct BadConfig {
  const char* name;
  emulation::Config machine;
  std::function<void(ra_context_config&)> change;
  std::int32_t status;
  std::vector<std::string> parts;
};
void PrintTo(const BadConfig& config, std::ostream* out) { *out << config.name; }

class BackendConfig : public ::testing::TestWithParam<BadConfig> {};
std::string name_of(const ::testing::TestParamInfo<BadConfig>& info) { return info.param.name; }

ra_unique_id nccl_id() {  // of no group
  ra_unique_id id{};
  std::snprintf(id.text, sizeof id.text, "ringattn-nccl-%0256d", 1);
  return id;
}

INSTANTIATE_TEST_SUITE_P(
    , BackendConfig,
    ::testing::Values(
        BadConfig{"no_driver", {.driver_version = 0}, {}, RA_STATUS_NOT_SUPPORTED, {"RA_BACKEND_CUDA", "libcuda.so.1"}},
        BadConfig{"old_driver",
                  {.driver_version = 11080},
                  {},
                  RA_STATUS_NOT_SUPPORTED,
                  {"is for CUDA 11.8; must be for 13.0 or newer"}},
        BadConfig{"no_device", {.devices = 0}, {}, RA_STATUS_NOT_SUPPORTED, {"no CUDA-capable device"}},
        BadConfig{"device_beyond_the_last",
                  {.devices = 2},
                  [](ra_context_config& c) { c.device = 2; },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"device is 2; must be 0 .. 1"}},
        BadConfig{"negative_device",
                  {},
                  [](ra_context_config& c) { c.device = -1; },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"device is -1; must be 0 .. 0"}},
        BadConfig{"more_multiprocessors_than_there_are",
                  {},
                  [](ra_context_config& c) { c.num_sms = 133; },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"num_sms is 133; must be 0 .. 132"}},
        BadConfig{"negative_multiprocessors",
                  {},
                  [](ra_context_config& c) { c.num_sms = -1; },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"num_sms is -1; must be 0 .. 132"}},
        BadConfig{"unknown_engine",
                  {},
                  [](ra_context_config& c) { c.engine = "avx2"; },
                  RA_STATUS_NOT_SUPPORTED,
                  {"engine is \"avx2\"; this build has with RA_BACKEND_CUDA: "}},
        BadConfig{"zeromq",
                  {},
                  [](ra_context_config& c) { c.transport = RA_TRANSPORT_ZEROMQ; },
                  RA_STATUS_NOT_SUPPORTED,
                  {"RA_TRANSPORT_ZEROMQ"}},
        BadConfig{"nccl_without_id",
                  {},
                  [](ra_context_config& c) {
                    c.transport = RA_TRANSPORT_NCCL;
                    c.world_size = 2;
                  },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"unique_id is NULL while world_size is 2"}},
        BadConfig{
            "nccl_with_another_id",
            {},
            [](ra_context_config& c) {
              c.transport = RA_TRANSPORT_NCCL;
              c.unique_id = "ringattn-nccl-12";
            },
            RA_STATUS_INVALID_ARGUMENT,
            {"unique_id is \"ringattn-nccl-12\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_NCCL"}},
        BadConfig{"local_with_a_communicator",
                  {},
                  [](ra_context_config& c) { c.nccl_comm = &c; },
                  RA_STATUS_INVALID_ARGUMENT,
                  {"nccl_comm is ", "must be NULL with RA_TRANSPORT_LOCAL"}},
        BadConfig{"nccl_on_the_cpu",
                  {},
                  [](ra_context_config& c) {
                    c.backend = RA_BACKEND_CPU;
                    c.transport = RA_TRANSPORT_NCCL;
                  },
                  RA_STATUS_NOT_SUPPORTED,
                  {"transport is 2 (RA_TRANSPORT_NCCL); needs RA_BACKEND_CUDA = 1"}}),
    name_of);

TEST_P(BackendConfig, IsRefused) {
  emulation::reset(GetParam().machine);
  ra_context_config config = make_config(1, 0);
  config.engine = nullptr;
  config.num_threads = 0;
  config.backend = RA_BACKEND_CUDA;
  config.timeout_ms = 200;
  if (GetParam().change) GetParam().change(config);
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  expect_refused(error, GetParam().status, GetParam().parts);
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

// Memory is estimated where there is no driver.
TEST(BackendGroup, EstimatesMemoryWithoutADevice) {
  emulation::reset({.devices = 0, .driver_version = 0});
  ra_context_config config = make_config(4, 1);
  config.engine = nullptr;
  config.backend = RA_BACKEND_CUDA;
  config.device = 3;
  const ra_attention_desc desc = [] {
    ra_attention_desc d;
    ra_init_attention_desc(&d, sizeof d);
    d.seqlen_q = 4096;
    d.head_dim = 64;
    return d;
  }();
  ra_memory_requirements needs;
  ra_init_memory_requirements(&needs, sizeof needs);
  Error error;
  EXPECT_EQ(ra_estimate_memory(&config, &desc, &needs, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_GT(needs.forward_workspace, 0U);
}

TEST(BackendGroup, TwoRanksOnOneDeviceAreRefusedByNccl) {
  emulation::reset({.devices = 2});
  const ra_unique_id id = make_unique_id(RA_TRANSPORT_NCCL);
  run_threads(2, [&](std::int32_t rank) {
    ra_context_config config = make_cuda_config(2, rank, &id, RA_TRANSPORT_NCCL, 1);
    config.timeout_ms = 5000;
    Error error;
    EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
    expect_refused(error, RA_STATUS_NCCL_ERROR, {"Duplicate GPU", "both on CUDA device 1"});
    EXPECT_EQ(error.nccl_result, ncclInvalidUsage);
  });
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

TEST(BackendGroup, RanksOfDifferentBackendsAreAMismatch) {
  emulation::reset({.devices = 1});
  const ra_unique_id id = make_unique_id();
  run_threads(2, [&](std::int32_t rank) {
    ra_context_config config = make_config(2, rank, &id);
    config.engine = nullptr;
    config.timeout_ms = 5000;
    if (rank == 1) {
      config.backend = RA_BACKEND_CUDA;
    }
    Error error;
    EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
    expect_refused(error, RA_STATUS_MISMATCH, {"backend is "});
  });
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

// A communicator that the caller lends: it has to be the rank's, and stays the caller's.
TEST(BackendGroup, ABorrowedCommunicatorHasToFit) {
  constexpr int size = 2;
  emulation::reset({.devices = size});
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  const reference::Oracle oracle = travelling_oracle(size);
  Results results = results_for(oracle);
  run_threads(size, [&](std::int32_t rank) {
    ok(cudaSetDevice(rank));
    ncclComm_t comm = nullptr;
    ok(ncclCommInitRank(&comm, size, id, rank));
    const auto make = [&](const std::function<void(ra_context_config&)>& change, Error& error) {
      ra_context_config config = make_config(size, rank);
      config.engine = nullptr;
      config.backend = RA_BACKEND_CUDA;
      config.transport = RA_TRANSPORT_NCCL;
      config.device = rank;
      config.nccl_comm = comm;
      if (change) change(config);
      return Context(ra_create_context(&config, &error));
    };
    Error error;
    EXPECT_EQ(make([](ra_context_config& c) { c.world_size = 3; }, error), nullptr);
    expect_refused(error, RA_STATUS_INVALID_ARGUMENT, {"nccl_comm has 2 ranks; must have world_size = 3"});
    EXPECT_EQ(make([&](ra_context_config& c) { c.rank = 1 - rank; }, error), nullptr);
    expect_refused(error, RA_STATUS_INVALID_ARGUMENT, {"nccl_comm is of rank ", "; must be of rank = "});
    EXPECT_EQ(make([&](ra_context_config& c) { c.device = 1 - rank; }, error), nullptr);
    expect_refused(error, RA_STATUS_INVALID_ARGUMENT, {"nccl_comm is of device ", "; must be of device = "});
    const ra_unique_id other = nccl_id();
    EXPECT_EQ(make([&](ra_context_config& c) { c.unique_id = other.text; }, error), nullptr);
    expect_refused(error, RA_STATUS_INVALID_ARGUMENT, {"unique_id is set; must be NULL with an nccl_comm"});
    {
      const Context context = make({}, error);
      ASSERT_NE(context, nullptr) << error;
      Streams streams(rank);
      DeviceShards shards(oracle, size, rank, rank);
      shards.upload(streams.first);
      EXPECT_EQ(shards.forward(context.get(), streams.first, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(shards.backward(context.get(), streams.first, &error), RA_STATUS_SUCCESS) << error;
      shards.download(results, streams.first);
    }
    ok(ncclCommDestroy(comm));
  });
  expect_within(results, oracle);
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

}  // namespace
}  // namespace ringattn::test
