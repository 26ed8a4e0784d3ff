// RA_BACKEND_CUDA with two engines, its own kernels and an emulated cuDNN: which of them runs is a pure function with reasons, and
// whatever runs, results are right.
#include <algorithm>
#include <iostream>
#include <limits>
#include <mutex>

#include "emulation/backend.h"
#include "emulation/cudnn_fake.h"
#include "emulation/kernel_launcher.h"
#include "emulation/program.h"

namespace ringattn::test {
namespace {

// What cuDNN takes, with few tokens.
Problem draw_cudnn(reference::Random& random) {
  Problem p = reference::draw_problem(random, {.batch = 2, .seqlen = 96, .num_heads_kv = 2, .group = 2, .head_dim = 8});
  p.seqlen_q = reference::draw(random, 32, 96);
  p.seqlen_kv = reference::draw(random, 0, 2) == 0 ? reference::draw(random, 32, 96) : p.seqlen_q;
  p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};
  p.kv_lengths.clear();
  p.softcap = 0;
  p.head_dim = 8 * reference::draw(random, 4, 9);
  p.head_dim_v = 8 * reference::draw(random, 4, 9);
  p.softmax_scale = 0.2F;
  p.dtype = p.out_dtype = p.grad_dtype = reference::draw(random, 0, 1) == 0 ? DType::bfloat16 : DType::float16;
  if (reference::draw(random, 0, 3) > 0) p.stripe = 1;
  return p;
}
Problem simple(std::int64_t seqlen, std::int64_t dim) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = seqlen;
  p.documents = {{0, seqlen, 0, seqlen}};
  p.num_heads_q = 2;
  p.head_dim = p.head_dim_v = dim;
  p.dtype = p.out_dtype = p.grad_dtype = DType::bfloat16;
  p.causal = true;
  p.softmax_scale = 0.2F;
  return p;
}

ConfigTweak by_name(const char* engine) {
  return [engine](ra_context_config& config) { config.engine = engine; };
}

// Messages from now on, while it exists.
class Log {
 public:
  Log() { ra_set_log_callback(take, this, RA_LOG_LEVEL_DEBUG); }
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;
  ~Log() { ra_set_log_callback(nullptr, nullptr, 0); }
  int count(const std::string& part) const {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(std::count_if(messages_.begin(), messages_.end(),
                                          [&](const std::string& m) { return m.find(part) != std::string::npos; }));
  }

 private:
  static void take(std::int32_t, const char* message, void* log) {
    const std::lock_guard lock(static_cast<Log*>(log)->mutex_);
    static_cast<Log*>(log)->messages_.emplace_back(message);
  }
  mutable std::mutex mutex_;
  std::vector<std::string> messages_;
};

// One pass of the problem on so many ranks, one a device.
Results run(const reference::Oracle& oracle, std::int32_t transport, int world_size, const ConfigTweak& tweak,
            int calls = 1) {
  Results results = results_for(oracle);
  CudaRanks ranks(world_size, transport, world_size, tweak);
  ranks->run([&](std::int32_t rank, ra_context* context) {
    Streams streams(rank);
    DeviceShards shards(oracle, world_size, rank, rank);
    shards.upload(streams.first);
    Error error;
    for (int n = 0; n < calls; ++n) {
      EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(shards.backward(context, streams.second, &error), RA_STATUS_SUCCESS) << error;
    }
    shards.download(results, streams.second);
  });
  return results;
}

std::string support(const Problem& p, const char* engine) {
  CudaRanks ranks(1, RA_TRANSPORT_LOCAL, 1, by_name(engine));
  const Description description(p);
  Error error;
  EXPECT_EQ(ra_check_support((*ranks)[0], &description.desc, &error), RA_STATUS_SUCCESS) << error;
  return error.text();
}
std::string engine_name(const char* engine) {
  CudaRanks ranks(1, RA_TRANSPORT_LOCAL, 1, by_name(engine));
  ra_context_info info;
  ra_init_context_info(&info, sizeof info);
  Error error;
  EXPECT_EQ(ra_get_context_info((*ranks)[0], &info, &error), RA_STATUS_SUCCESS) << error;
  return info.engine;
}

class BackendCudnn : public ::testing::Test {
 protected:
  BackendCudnn() {
    emulation::reset({.devices = 4});
    reset_fake_cudnn();
  }
  ~BackendCudnn() override {
    EXPECT_EQ(launcher_.faults(), std::vector<std::string>{});
    EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
  }
  const KernelLauncher launcher_;
};

TEST_F(BackendCudnn, IsRightInARing) {
  const std::uint64_t first = seed();
  reference::Random random(first);
  FakeCudnn done;
  const int cases = full() ? 200 : sample(30);
  for (int n = 0; n < cases; ++n) {
    const int world_size = 1 + (n + 1) % 4;  // of the first ones several, so that few cases say as much
    const std::int32_t transport = reference::draw(random, 0, 1) == 0 ? RA_TRANSPORT_LOCAL : RA_TRANSPORT_NCCL;
    emulation::reset({.devices = 4, .seed = first + static_cast<std::uint64_t>(n)});
    reset_fake_cudnn();
    const reference::Oracle oracle(draw_cudnn(random), random);
    const Results results = run(oracle, transport, world_size, by_name("cudnn"), 2);
    expect_within(results, oracle);
    expect_no_violations();
    const FakeCudnn own = fake_cudnn();
    EXPECT_EQ(own.refused_plans, 0);
    EXPECT_EQ(own.runs % 2, 0);
    EXPECT_GE(own.runs, 2 * own.plans);  // the second call made none
    done.plans += own.plans;
    done.runs += own.runs;
    if (HasFailure()) {
      ADD_FAILURE() << "seed " << first << ", problem " << n << " on " << world_size
                    << " ranks: " << reference::describe(oracle.problem);
      return;
    }
  }
  EXPECT_GT(done.runs, 2 * cases);
  std::cout << cases << " problems, " << done.plans << " plans, " << done.runs << " runs\n";
}

// NaN and infinity reach only the rows that see them, although cuDNN would spread them.
TEST_F(BackendCudnn, DoesNotSpreadWhatIsNotFinite) {
  reference::Random random(seed());
  for (int n = 0; n < sample(12); ++n) {
    const int world_size = static_cast<int>(reference::draw(random, 1, 3));
    Problem p = simple(64, 32);
    p.num_heads_q = 1;
    p.sharding = static_cast<Sharding>(reference::draw(random, 0, 2));
    p.window_left = reference::draw(random, -1, 40);
    reference::Oracle oracle(p, random);
    const std::int64_t token = reference::draw(random, 0, p.seqlen_kv - 1);
    constexpr double values[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()};
    (reference::draw(random, 0, 1) == 0 ? oracle.k : oracle.v)[static_cast<std::size_t>(token * p.head_dim + 3)] =
        values[reference::draw(random, 0, 1)];
    const Results results = run(oracle, RA_TRANSPORT_LOCAL, world_size, by_name("cudnn"));
    for (std::int64_t i = 0; i < p.seqlen_q; ++i)
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
        const auto at = static_cast<std::size_t>(i * p.head_dim_v + d);
        if (reference::sees(p, 0, i, token)) continue;
        ASSERT_NEAR(results.out[at], oracle.out.exact[at], oracle.out.tolerance)
            << "row " << i << " does not see key " << token << ": " << reference::describe(p);
      }
  }
  EXPECT_GT(fake_cudnn().runs, 0);
}

// Cases of the choice: what the engine is told, what it says, and what then runs.
TEST_F(BackendCudnn, IsChosenWithReasons) {
  const auto expect = [](const std::string& said, const std::string& forward) {
    EXPECT_EQ(said.substr(0, said.find("; backward: ")), "forward: " + forward);
    EXPECT_NE(said.find("; backward: portable (not cudnn: its dQ is not deterministic"), std::string::npos) << said;
  };
  const Problem large = simple(1024, 64);
  expect(support(large, nullptr), "cudnn");
  expect(support(large, ""), "cudnn");
  EXPECT_EQ(support(large, "portable"), "portable");
  expect(support(simple(64, 64), nullptr),
         "portable (not cudnn: not taken to be faster for 64 queries and 64 keys; from 512 on)");
  expect(support(simple(64, 64), "cudnn"), "cudnn");
  Problem p = simple(64, 40);
  expect(support(p, nullptr),
         "portable (not cudnn: not taken to be faster on compute capability 9.0 with head_dim 40 and head_dim_v 40)");
  p.dtype = p.out_dtype = DType::float32;
  expect(support(p, "cudnn"), "portable (not cudnn: dtype is float32; it takes 16 bits)");
  p.dtype = DType::bfloat16;
  EXPECT_NE(support(p, "cudnn").find("too coarse for out_dtype"), std::string::npos);
  p = simple(64, 36);
  expect(support(p, "cudnn"), "portable (not cudnn: head_dim is 36; must be a multiple of 8)");
  p = simple(64, 64);
  p.softcap = 2;
  expect(support(p, "cudnn"), "portable (not cudnn: softcap is 2)");
  p = simple(64, 64);
  p.alibi_slopes = {0.5F, 0.25F};
  expect(support(p, "cudnn"), "portable (not cudnn: alibi_slopes is set)");
  p = simple(64, 64);
  p.has_key_bias = true;
  expect(support(p, "cudnn"), "portable (not cudnn: key_bias is set)");
  p = simple(64, 64);
  p.num_sinks = 1;
  expect(support(p, "cudnn"), "portable (not cudnn: sinks is set)");
  p = simple(64, 64);
  p.dropout.probability = 0.5F;
  expect(support(p, "cudnn"), "portable (not cudnn: dropout is 0.5)");
  p = simple(64, 64);
  p.slices = {{0, 64, 0, 64, SliceKind::causal}};
  expect(support(p, "cudnn"), "portable (not cudnn: mask_slices is set)");
  p = simple(64, 64);
  p.branches = {{16, 1}, {32, 2}};
  expect(support(p, "cudnn"), "portable (not cudnn: num_branches is 2)");
  p = simple(64, 64);
  p.kv_lengths = {50};
  expect(support(p, "cudnn"), "portable (not cudnn: kv_lengths is set)");
  p = simple(64, 64);
  p.documents = {{0, 30, 0, 30}, {30, 34, 30, 34}};
  expect(support(p, "cudnn"), "portable (not cudnn: num_documents is 2)");
  p = simple(64, 64);
  p.softmax_scale = -1;
  expect(support(p, "cudnn"), "portable (not cudnn: softmax_scale is -1; must be above 0)");
  EXPECT_EQ(engine_name(nullptr), "cudnn");
  EXPECT_EQ(engine_name("portable"), "portable");
}

TEST_F(BackendCudnn, IsNotLookedForWhereItIsNeverFaster) {
  emulation::reset({.devices = 1, .compute_capability = 86});
  EXPECT_EQ(engine_name(nullptr), "portable");
  EXPECT_EQ(engine_name("cudnn"), "cudnn");
  EXPECT_NE(support(simple(1024, 64), nullptr)
                .find("forward: portable (not cudnn: not taken to be faster on compute capability 8.6)"),
            std::string::npos);
}

TEST_F(BackendCudnn, IsNotThereWithAReason) {
  reset_fake_cudnn("libcudnn.so.9: cannot open; looked in /here, /there");
  const Problem p = simple(1024, 64);
  {
    const Log log;
    const std::string said = support(p, nullptr);
    const std::string reason = "portable (not cudnn: libcudnn.so.9: cannot open; looked in /here, /there)";
    EXPECT_EQ(said, "forward: " + reason + "; backward: " + reason);
    EXPECT_EQ(log.count("not engine cudnn: libcudnn.so.9: cannot open; looked in /here, /there"), 1);
    EXPECT_EQ(engine_name(nullptr), "portable");
  }
  ra_context_config config = make_config(1, 0);
  config.engine = "cudnn";
  config.backend = RA_BACKEND_CUDA;
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_EQ(error.status, RA_STATUS_NOT_SUPPORTED) << error;
  EXPECT_EQ(error.text(),
            "engine is \"cudnn\", which device 0 cannot have: libcudnn.so.9: cannot open; looked in /here, /there");
  config.engine = "amx";
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_NE(error.text().find("this build has with RA_BACKEND_CUDA: cudnn,portable"), std::string::npos) << error;
}

// What a step turns out to be is refused there, and said in the log: each message, and results that are right all the same.
TEST_F(BackendCudnn, LeavesStepsToThePortableEngine) {
  reference::Random random(seed());
  const auto expect = [&](const Problem& p, int world_size, const std::string& message) {
    const Log log;
    const reference::Oracle oracle(p, random);
    expect_within(run(oracle, RA_TRANSPORT_LOCAL, world_size, by_name("cudnn")), oracle);
    EXPECT_GT(log.count("forward step: " + message), 0) << message;
    EXPECT_EQ(log.count("backward step: portable (not cudnn: its dQ"), log.count("backward step: "));
    expect_no_violations();
  };
  expect(simple(64, 32), 1, "cudnn");
  expect(simple(64, 32), 2, "cudnn");
  Problem p = simple(64, 32);
  p.sharding = Sharding::striped;
  p.stripe = 5;
  expect(p, 2, "portable (not cudnn: stripes of 5 tokens are not evenly spaced)");
  p = simple(64, 32);
  p.seqlen_kv = 40;
  p.documents[0].kv_length = 40;
  expect(p, 1, "portable (not cudnn: in a pass of one step 24 queries see no key)");
  p.window_left = 3;
  p.bottom_right = false;
  p.seqlen_kv = 33;
  p.documents[0].kv_length = 33;
  expect(p, 2, "portable (not cudnn: a window of ");
  reset_fake_cudnn("", "No valid execution plans built.");
  expect(simple(64, 32), 2, "portable (not cudnn: cuDNN: No valid execution plans built.)");
  EXPECT_EQ(fake_cudnn().runs, 0);
}

TEST_F(BackendCudnn, MemoryIsThatOfTheEstimate) {
  const auto needs = [&](const Problem& p, const char* engine, std::int32_t world_size) {
    const Description description(p);
    ra_memory_requirements estimate, own;
    ra_init_memory_requirements(&estimate, sizeof estimate);
    ra_init_memory_requirements(&own, sizeof own);
    Error error;
    CudaRanks ranks(world_size, RA_TRANSPORT_LOCAL, 1, by_name(engine));
    EXPECT_EQ(ra_get_memory_requirements((*ranks)[0], &description.desc, &own, &error), RA_STATUS_SUCCESS) << error;
    ra_context_config config = make_config(world_size, 0);
    config.backend = RA_BACKEND_CUDA;
    config.engine = engine;
    EXPECT_EQ(ra_estimate_memory(&config, &description.desc, &estimate, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(estimate.forward_workspace, own.forward_workspace);
    EXPECT_EQ(estimate.backward_workspace, own.backward_workspace);
    return own.forward_workspace;
  };
  const Problem large = simple(1024, 64), small = simple(64, 64);
  constexpr std::size_t fixed = 4096 + 256 + 64;
  const auto partial = [](const Problem& p, std::int64_t rows) {
    return static_cast<std::size_t>(rows * p.num_heads_q * (p.head_dim_v + 1)) * sizeof(float);
  };
  EXPECT_EQ(needs(large, nullptr, 1), fixed);
  EXPECT_EQ(needs(large, "portable", 1), 0U);
  EXPECT_EQ(needs(small, nullptr, 1), 0U);
  EXPECT_EQ(needs(small, "cudnn", 1), fixed);
  EXPECT_EQ(needs(small, "cudnn", 2), needs(small, "portable", 2) + fixed + partial(small, 32));
  EXPECT_EQ(needs(large, nullptr, 2), needs(large, "portable", 2) + fixed + partial(large, 512));
}

// For lse where there was none there is no plan yet, and a capture is no time to make one.
TEST_F(BackendCudnn, MakesNoPlansInACapture) {
  reference::Random random(seed());
  const reference::Oracle oracle(simple(64, 32), random);
  {
    CudaRanks ranks(1, RA_TRANSPORT_NCCL, 1, by_name("cudnn"));
    Streams streams(0);
    DeviceShards shards(oracle, 1, 0, 0);
    shards.upload(streams.first);
    Error error;
    ra_forward_args without_lse = shards.forward_args(streams.first);
    without_lse.lse = nullptr;
    EXPECT_EQ(ra_forward((*ranks)[0], &shards.desc(), &without_lse, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(fake_cudnn().plans, 1);
    cudaGraph_t graph = nullptr;
    ok(cudaStreamBeginCapture(streams.first, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(shards.forward((*ranks)[0], streams.first, &error), RA_STATUS_SUCCESS) << error;
    ok(cudaStreamEndCapture(streams.first, &graph));
    ok(cudaGraphDestroy(graph));
    EXPECT_EQ(fake_cudnn().plans, 1);
    ok(cudaStreamSynchronize(streams.first));
  }
  expect_no_violations();
}

// Nothing is kept for a cuDNN that is not there, or that would take all multiprocessors.
TEST_F(BackendCudnn, TakesNoMemoryWhereItIsMissing) {
  const Description description(simple(1024, 64));
  const auto needed = [&](const ConfigTweak& tweak) {
    CudaRanks ranks(2, RA_TRANSPORT_LOCAL, 1, tweak);
    ra_memory_requirements requirements;
    ra_init_memory_requirements(&requirements, sizeof requirements);
    Error error;
    EXPECT_EQ(ra_get_memory_requirements((*ranks)[0], &description.desc, &requirements, &error), RA_STATUS_SUCCESS)
        << error;
    return requirements.forward_workspace;
  };
  const std::size_t portable = needed(by_name("portable"));
  EXPECT_GT(needed(by_name(nullptr)), portable);
  EXPECT_EQ(needed([](ra_context_config& config) {
              config.engine = nullptr;
              config.num_sms = 3;
            }),
            portable);
  reset_fake_cudnn("libcudnn.so.9 is not here");
  EXPECT_EQ(needed(by_name(nullptr)), portable);
}

// A call captured in a graph: the plan is one of before, and what the graph does is right for new inputs.
TEST_F(BackendCudnn, IsCaptured) {
  reference::Random random(seed());
  Problem p = simple(64, 32);
  const reference::Oracle oracle(p, random);
  Results results = results_for(oracle);
  {
    CudaRanks ranks(1, RA_TRANSPORT_NCCL, 1, by_name("cudnn"));
    Streams streams(0);
    DeviceShards shards(oracle, 1, 0, 0);
    Error error;
    const auto call = [&] {
      EXPECT_EQ(shards.forward((*ranks)[0], streams.first, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(shards.backward((*ranks)[0], streams.first, &error), RA_STATUS_SUCCESS) << error;
    };
    shards.upload_zeros(streams.first);
    call();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ok(cudaStreamBeginCapture(streams.first, cudaStreamCaptureModeGlobal));
    call();
    ok(cudaStreamEndCapture(streams.first, &graph));
    ok(cudaGraphInstantiate(&exec, graph));
    EXPECT_EQ(fake_cudnn().plans, 1);
    EXPECT_EQ(fake_cudnn().runs, 2);
    shards.upload(streams.first);
    ok(cudaGraphLaunch(exec, streams.first));
    shards.download(results, streams.first);
    ok(cudaGraphDestroy(graph));
    ok(cudaGraphExecDestroy(exec));
  }
  expect_within(results, oracle);
  expect_no_violations();
}

}  // namespace
}  // namespace ringattn::test
