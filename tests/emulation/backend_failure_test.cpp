// RA_BACKEND_CUDA when something fails: every call of CUDA and NCCL once, and ranks that are lost, late, aborted or gone. Each time
// there is a typed error, in time and on every rank, and nothing is left behind.
#include <barrier>
#include <chrono>
#include <iostream>
#include <set>
#include <thread>

#include "emulation/backend.h"
#include "emulation/program.h"

namespace ringattn::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t timeout_ms = 150;
constexpr std::chrono::milliseconds in_time{timeout_ms * 20};  // on a busy machine, under a sanitizer

class BackendFailure : public ::testing::TestWithParam<std::int32_t> {};
std::string name_of(const ::testing::TestParamInfo<std::int32_t>& info) {
  return info.param == RA_TRANSPORT_NCCL ? "nccl" : "local";
}
INSTANTIATE_TEST_SUITE_P(All, BackendFailure, ::testing::Values(RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL), name_of);

void expect_nothing_left() {
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

// The life of a group of two, whose n-th call of a function fails. False if there was no such call.
bool fail_one_call(std::int32_t transport, const char* function, int n, int result, const reference::Oracle& oracle) {
  constexpr int size = 2;
  emulation::reset({.devices = size});
  std::vector<Error> errors(size);
  bool came = false;
  {
    std::vector<std::unique_ptr<DeviceShards>> shards;
    std::vector<std::unique_ptr<Streams>> streams;
    for (int rank = 0; rank < size; ++rank) {
      shards.push_back(std::make_unique<DeviceShards>(oracle, size, rank, rank));
      streams.push_back(std::make_unique<Streams>(rank));
      shards.back()->upload(streams.back()->first);
      ok(cudaStreamSynchronize(streams.back()->first));
    }
    emulation::fail_call(function, n, result);
    ra_unique_id id{};
    Error no_id;
    const bool has_id = ra_create_unique_id(&id, transport, nullptr, &no_id) == RA_STATUS_SUCCESS;
    if (!has_id) std::fill(errors.begin(), errors.end(), no_id);
    std::vector<Context> contexts(size);
    if (has_id)
      run_threads(size, [&](std::int32_t rank) {
        const auto i = static_cast<std::size_t>(rank);
        Error& error = errors[i];
        ra_context_config config = make_config(size, rank, &id);
        config.engine = nullptr;
        config.num_threads = 0;
        config.backend = RA_BACKEND_CUDA;
        config.transport = transport;
        config.device = rank;
        config.timeout_ms = timeout_ms;
        contexts[i].reset(ra_create_context(&config, &error));
        if (contexts[i] == nullptr) return;
        for (int call = 0; call < 2; ++call) {
          if (shards[i]->forward(contexts[i].get(), streams[i]->first, &error) != RA_STATUS_SUCCESS) return;
          if (shards[i]->backward(contexts[i].get(), streams[i]->second, &error) != RA_STATUS_SUCCESS) return;
        }
      });
    came = emulation::take_back_failures() == 0;
    for (int rank = 0; rank < size; ++rank) {
      ok(cudaStreamSynchronize(streams[static_cast<std::size_t>(rank)]->first));
      ok(cudaStreamSynchronize(streams[static_cast<std::size_t>(rank)]->second));
    }
    for (std::size_t i = 0; i < size; ++i) {
      if (contexts[i] == nullptr) continue;
      Error seen;
      ra_get_async_error(contexts[i].get(), &seen);
      if (errors[i].status == RA_STATUS_SUCCESS) errors[i] = seen;
      if (seen.status == RA_STATUS_SUCCESS) continue;  // a call that was refused breaks nothing
      const bool is_own = seen.cuda_error != 0 || seen.nccl_result != 0 || seen.status == RA_STATUS_OUT_OF_MEMORY;
      if (is_own && seen.status != RA_STATUS_PEER_LOST) {
        EXPECT_EQ(seen.rank, static_cast<std::int32_t>(i)) << seen;
      }
      if (transport == RA_TRANSPORT_LOCAL) {
        EXPECT_GE(seen.rank, 0) << seen;
      }
      if (errors[i].status == seen.status) {
        EXPECT_EQ(errors[i].rank, seen.rank) << seen;
        EXPECT_EQ(errors[i].cuda_error, seen.cuda_error) << seen;
        EXPECT_EQ(errors[i].nccl_result, seen.nccl_result) << seen;
      }
    }
  }

  // What may fail without harm: it is asked again, made up for by waiting, or it comes as a context goes.
  static const std::set<std::string> may_pass = {"cudaGetDevice",        "cudaSetDevice",  "cudaEventRecord",
                                                 "cudaEventSynchronize", "cudaEventQuery", "ncclCommGetAsyncError"};
  SCOPED_TRACE(std::string(function) + " " + std::to_string(n));
  bool reported = false;
  for (const Error& error : errors) {
    if (!came) {
      EXPECT_EQ(error.status, RA_STATUS_SUCCESS) << error;
    }
    if (error.status == RA_STATUS_SUCCESS) continue;
    const bool is_own = error.cuda_error == result || error.nccl_result == result ||
                        error.status == RA_STATUS_OUT_OF_MEMORY || error.status == RA_STATUS_NOT_SUPPORTED;
    const bool is_others = error.status == RA_STATUS_PEER_LOST || error.status == RA_STATUS_TIMEOUT ||
                           error.status == RA_STATUS_INVALID_STATE;
    EXPECT_TRUE(is_own || is_others) << error << ", cuda_error " << error.cuda_error << ", nccl_result "
                                     << error.nccl_result;
    EXPECT_NE(error.message[0], 0);
    reported = reported || is_own;
  }
  if (came && may_pass.count(function) == 0) {
    EXPECT_TRUE(reported) << errors[0] << "; " << errors[1];
  }
  expect_nothing_left();
  return came;
}

TEST_P(BackendFailure, OfEveryCallIsReported) {
  struct Function {
    const char* name;
    int result;
    bool is_nccl = false;
  };
  static constexpr Function functions[] = {{"cudaDriverGetVersion", cudaErrorUnknown},
                                           {"cudaGetDeviceCount", cudaErrorUnknown},
                                           {"cudaGetDevice", cudaErrorUnknown},
                                           {"cudaSetDevice", cudaErrorUnknown},
                                           {"cudaDeviceGetStreamPriorityRange", cudaErrorUnknown},
                                           {"cudaStreamCreateWithPriority", cudaErrorUnknown},
                                           {"cudaEventCreateWithFlags", cudaErrorUnknown},
                                           {"cudaMalloc", cudaErrorMemoryAllocation},
                                           {"cudaMallocHost", cudaErrorMemoryAllocation},
                                           {"cudaPointerGetAttributes", cudaErrorUnknown},
                                           {"cudaStreamIsCapturing", cudaErrorUnknown},
                                           {"cudaEventRecord", cudaErrorUnknown},
                                           {"cudaStreamWaitEvent", cudaErrorUnknown},
                                           {"cudaMemcpyAsync", cudaErrorUnknown},
                                           {"cudaDeviceCanAccessPeer", cudaErrorUnknown},
                                           {"cudaDeviceEnablePeerAccess", cudaErrorUnknown},
                                           {"cudaEventQuery", cudaErrorUnknown},
                                           {"cudaEventSynchronize", cudaErrorUnknown},
                                           {"forward", cudaErrorLaunchFailure},
                                           {"backward", cudaErrorLaunchFailure},
                                           {"copy", cudaErrorLaunchFailure},
                                           {"round", cudaErrorLaunchFailure},
                                           {"ncclGetUniqueId", ncclSystemError, true},
                                           {"ncclCommInitRankConfig", ncclSystemError, true},
                                           {"ncclCommGetAsyncError", ncclSystemError, true},
                                           {"ncclAllGather", ncclSystemError, true},
                                           {"ncclGroupStart", ncclSystemError, true},
                                           {"ncclSend", ncclSystemError, true},
                                           {"ncclRecv", ncclSystemError, true},
                                           {"ncclGroupEnd", ncclSystemError, true}};
  const reference::Oracle oracle = travelling_oracle(2);
  for (const Function& function : functions) {
    if (function.is_nccl && GetParam() != RA_TRANSPORT_NCCL) continue;
    int failed = 0;
    const Clock::time_point begin = Clock::now();
    // The first, and then ever fewer of those that come.
    for (int n = 1; fail_one_call(GetParam(), function.name, n, function.result, oracle); n += full() ? 1 : 2 * n)
      ++failed;
    std::cout << function.name << ": failed " << failed << " times, "
              << std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count() << " ms\n";
    if (HasFailure()) return;
  }
}

// Runs until something fails: forward passes, each waited for, while break_it may do something on a rank before its second one. How it
// ended on each rank.
std::vector<Error> run_until_failure(std::int32_t transport, Schedule schedule,
                                     const std::function<void(std::int32_t, CudaRanks&)>& break_it) {
  constexpr int size = 3;
  emulation::reset({.devices = size});
  const reference::Oracle oracle = travelling_oracle(size, 1, schedule);
  std::vector<Error> errors(static_cast<std::size_t>(size));
  CudaRanks ranks(size, transport, size, [](ra_context_config& config) { config.timeout_ms = timeout_ms; });
  std::barrier together(size);
  ranks->run([&](std::int32_t rank, ra_context* context) {
    Streams streams(rank);
    DeviceShards shards(oracle, size, rank, rank);
    shards.upload(streams.first);
    Error& error = errors[static_cast<std::size_t>(rank)];
    EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
    ok(cudaStreamSynchronize(streams.first));
    together.arrive_and_wait();
    break_it(rank, ranks);
    for (Clock::time_point begin = Clock::now(); ranks->complete() && Clock::now() - begin < in_time;) {
      const Clock::time_point begun = Clock::now();
      const ra_status status = shards.forward(context, streams.first, &error);
      ok(cudaStreamSynchronize(streams.first));
      EXPECT_LT(Clock::now() - begun, in_time);
      if (status != RA_STATUS_SUCCESS || ra_get_async_error(context, &error) != RA_STATUS_SUCCESS) break;
    }
  });
  for (std::int32_t rank = 0; rank < size; ++rank) {
    if (ranks.operator*()[rank] == nullptr) continue;
    Error again;
    EXPECT_NE(ra_get_async_error((*ranks)[rank], &again), RA_STATUS_SUCCESS);
  }
  return errors;
}

TEST(BackendFailure, ALostRankIsNoticedByAll) {
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather})
    for (const Error& error : run_until_failure(RA_TRANSPORT_NCCL, schedule, [](std::int32_t rank, CudaRanks&) {
           if (rank == 1) emulation::lose_rank(1);
         }))
      EXPECT_TRUE(error.status == RA_STATUS_PEER_LOST || error.status == RA_STATUS_TIMEOUT) << error;
  expect_nothing_left();
}

TEST(BackendFailure, AnErrorOfNcclIsNoticedByAll) {
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather}) {
    const std::vector<Error> errors = run_until_failure(RA_TRANSPORT_NCCL, schedule, [](std::int32_t rank, CudaRanks&) {
      if (rank == 1) emulation::fail_async(1, 3, ncclSystemError);
    });
    EXPECT_EQ(errors[1].status, RA_STATUS_NCCL_ERROR) << errors[1];
    EXPECT_EQ(errors[1].nccl_result, ncclSystemError);
    for (const std::size_t other : {0, 2})
      EXPECT_TRUE(errors[other].status == RA_STATUS_PEER_LOST || errors[other].status == RA_STATUS_TIMEOUT)
          << errors[other];
    expect_nothing_left();
  }
}

TEST(BackendFailure, ALateRankIsWaitedFor) {
  constexpr int size = 3;
  emulation::reset({.devices = size});
  const reference::Oracle oracle = travelling_oracle(size);
  Results results = results_for(oracle);
  {
    CudaRanks ranks(size, RA_TRANSPORT_NCCL, size, [](ra_context_config& config) { config.timeout_ms = 20'000; });
    emulation::delay_rank(2, 20);
    run_both_passes(ranks, oracle, results, [](ra_context* context) {
      Error error;
      EXPECT_EQ(ra_get_async_error(context, &error), RA_STATUS_SUCCESS) << error;
    });
  }
  expect_within(results, oracle);
  expect_nothing_left();
}

TEST_P(BackendFailure, AnAbortEndsAllRanks) {
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather}) {
    const std::vector<Error> errors = run_until_failure(GetParam(), schedule, [](std::int32_t rank, CudaRanks& ranks) {
      if (rank == 1) ra_abort_context((*ranks)[rank], nullptr);
    });
    EXPECT_TRUE(errors[1].status == RA_STATUS_ABORTED || errors[1].status == RA_STATUS_INVALID_STATE) << errors[1];
    for (const Error& error : errors) EXPECT_NE(error.status, RA_STATUS_SUCCESS) << error;
    expect_nothing_left();
  }
}

// Ranks that have agreed on a call before do not wait until they have again; they find out none the less.
TEST_P(BackendFailure, AnotherCallThanBeforeIsAMismatchOnAllRanks) {
  constexpr int size = 3;
  emulation::reset({.devices = size});
  const reference::Oracle oracle = travelling_oracle(size);
  {
    CudaRanks ranks(size, GetParam(), size, [](ra_context_config& config) { config.timeout_ms = 20'000; });
    ranks->run([&](std::int32_t rank, ra_context* context) {
      Streams streams(rank);
      DeviceShards shards(oracle, size, rank, rank);
      shards.upload(streams.first);
      Error error;
      EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
      ra_attention_desc desc = shards.desc();
      if (rank == 1) desc.softmax_scale = 2;
      const ra_forward_args args = shards.forward_args(streams.first);
      ra_status status = ra_forward(context, &desc, &args, &error);
      for (const Clock::time_point begin = Clock::now();
           status == RA_STATUS_SUCCESS && Clock::now() - begin < std::chrono::seconds(15);) {
        status = ra_get_async_error(context, &error);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      EXPECT_EQ(status, RA_STATUS_MISMATCH) << error;
      EXPECT_NE(error.text().find("softmax_scale"), std::string::npos) << error;
      EXPECT_EQ(error.rank, 1);
      ok(cudaStreamSynchronize(streams.first));
    });
  }
  expect_nothing_left();
}

// A rank that does not come at all.
TEST_P(BackendFailure, AnAbsentRankIsATimeout) {
  emulation::reset({.devices = 2});
  const ra_unique_id id = make_unique_id(GetParam());
  ra_context_config config = make_config(2, 0, &id);
  config.engine = nullptr;
  config.num_threads = 0;
  config.backend = RA_BACKEND_CUDA;
  config.transport = GetParam();
  config.timeout_ms = timeout_ms;
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_EQ(error.status, RA_STATUS_TIMEOUT) << error;
  expect_nothing_left();
}

}  // namespace
}  // namespace ringattn::test
