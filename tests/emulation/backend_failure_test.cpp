// RA_BACKEND_CUDA when something fails: every call of CUDA and NCCL once, and ranks that are lost, late, aborted or gone. Each time
// there is a typed error, in time and on every rank, and nothing is left behind. Over NCCL with and without a control plane: with one
// every rank names the same rank, long before the time-out.
#include <atomic>
#include <barrier>
#include <chrono>
#include <iostream>
#include <optional>
#include <set>
#include <thread>

#include "emulation/backend.h"
#include "emulation/program.h"
#include "support/proxy.h"

namespace ringattn::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t timeout_ms = 150;
constexpr std::chrono::milliseconds in_time{timeout_ms * 20};  // on a busy machine, under a sanitizer

// How ranks come together.
struct Way {
  const char* name;
  std::int32_t transport;
  bool has_control_plane = false;

  ra_unique_id make_id(Error* error) const {
    ra_unique_id id{};
    const std::string address = new_loopback_address();
    ra_create_unique_id(&id, transport, has_control_plane ? address.c_str() : nullptr, error);
    return id;
  }
  friend std::ostream& operator<<(std::ostream& stream, const Way& way) { return stream << way.name; }
};
constexpr Way local{"local", RA_TRANSPORT_LOCAL}, nccl{"nccl", RA_TRANSPORT_NCCL},
    controlled{"controlled", RA_TRANSPORT_NCCL, true};

class BackendFailure : public ::testing::TestWithParam<Way> {};
std::string name_of(const ::testing::TestParamInfo<Way>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(All, BackendFailure, ::testing::Values(local, nccl, controlled), name_of);

void expect_nothing_left() {
  expect_no_violations();
  EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
}

// The life of a group of two, whose n-th call of a function fails. False if there was no such call.
bool fail_one_call(const Way& way, const char* function, int n, int result, const reference::Oracle& oracle) {
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
    Error no_id;
    const ra_unique_id id = way.make_id(&no_id);
    const bool has_id = no_id.status == RA_STATUS_SUCCESS;
    if (!has_id) std::fill(errors.begin(), errors.end(), no_id);
    std::vector<Context> contexts(size);
    if (has_id)
      run_threads(size, [&](std::int32_t rank) {
        const auto i = static_cast<std::size_t>(rank);
        Error& error = errors[i];
        ra_context_config config = make_cuda_config(size, rank, &id, way.transport, rank);
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
      if (way.transport == RA_TRANSPORT_LOCAL) {
        EXPECT_GE(seen.rank, 0) << seen;
      }
      if (errors[i].status == seen.status) {
        EXPECT_EQ(errors[i].rank, seen.rank) << seen;
        EXPECT_EQ(errors[i].cuda_error, seen.cuda_error) << seen;
        EXPECT_EQ(errors[i].nccl_result, seen.nccl_result) << seen;
      }
    }
    run_threads(size, [&](std::int32_t rank) { contexts[static_cast<std::size_t>(rank)].reset(); });
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
    if (function.is_nccl && GetParam().transport != RA_TRANSPORT_NCCL) continue;
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
std::vector<Error> run_until_failure(const Way& way, Schedule schedule,
                                     const std::function<void(std::int32_t, CudaRanks&)>& break_it,
                                     const ConfigTweak& tweak = {}) {
  constexpr int size = 3;
  emulation::reset({.devices = size});
  const reference::Oracle oracle = travelling_oracle(size, 1, schedule);
  std::vector<Error> errors(static_cast<std::size_t>(size));
  const ra_unique_id id = way.make_id(nullptr);
  CudaRanks ranks(size, way.transport, size, [&](ra_context_config& config) {
    config.timeout_ms = timeout_ms;
    config.unique_id = id.text;
    if (tweak) tweak(config);
  });
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
      if (status != RA_STATUS_SUCCESS && status != RA_STATUS_INVALID_STATE) break;
      if (ra_get_async_error(context, &error) != RA_STATUS_SUCCESS) break;
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
    for (const Error& error : run_until_failure(nccl, schedule, [](std::int32_t rank, CudaRanks&) {
           if (rank == 1) emulation::lose_rank(1);
         }))
      EXPECT_TRUE(error.status == RA_STATUS_PEER_LOST || error.status == RA_STATUS_TIMEOUT) << error;
  expect_nothing_left();
}

TEST(BackendFailure, AnErrorOfNcclIsNoticedByAll) {
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather}) {
    const std::vector<Error> errors = run_until_failure(nccl, schedule, [](std::int32_t rank, CudaRanks&) {
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
    EXPECT_EQ(errors[1].status, RA_STATUS_ABORTED) << errors[1];
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
    const ra_unique_id id = GetParam().make_id(nullptr);
    CudaRanks ranks(size, GetParam().transport, size, [&](ra_context_config& config) {
      config.timeout_ms = 20'000;
      config.unique_id = id.text;
    });
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
  const ra_unique_id id = GetParam().make_id(nullptr);
  ra_context_config config = make_cuda_config(2, 0, &id, GetParam().transport, 0);
  config.timeout_ms = timeout_ms;
  Error error;
  EXPECT_EQ(Context(ra_create_context(&config, &error)), nullptr);
  EXPECT_EQ(error.status, RA_STATUS_TIMEOUT) << error;
  expect_nothing_left();
}

// ---------------------------------------------------------------- with a control plane

constexpr std::int64_t long_timeout_ms = 20'000;
constexpr std::chrono::milliseconds at_once{3'000};  // a second, on a busy machine, under a sanitizer

void wait_long(ra_context_config& config) { config.timeout_ms = long_timeout_ms; }

void expect_named(const Error& error, ra_status status, int rank) {
  EXPECT_EQ(error.status, status) << error;
  EXPECT_EQ(error.rank, rank) << error;
}

// Both passes, in every order, with an id of either transport.
TEST(ControlPlane, BringsRanksTogether) {
  for (const std::int32_t transport : {RA_TRANSPORT_NCCL, RA_TRANSPORT_ZEROMQ})
    for (const int size : {1, 2, 5}) {
      emulation::reset({.devices = size});
      const reference::Oracle oracle = travelling_oracle(size);
      Results results = results_for(oracle);
      const ra_unique_id id = Way{"", transport, true}.make_id(nullptr);
      {
        CudaRanks ranks(size, RA_TRANSPORT_NCCL, size, [&](ra_context_config& config) { config.unique_id = id.text; });
        run_both_passes(ranks, oracle, results);
      }
      expect_within(results, oracle);
      expect_nothing_left();
    }
}

// A rank whose connection to rank 0 is cut, in its calls or between them, is lost to the others, and rank 0 to it.
TEST(ControlPlane, ARankThatIsGoneIsNamedByAll) {
  for (const bool is_idle : {false, true}) {
    std::atomic<bool> is_cut{false};
    Proxy proxy([&](const Unit& unit) {
      const bool ends = is_cut && unit.stream.is_control() && unit.stream.rank == 1;
      return Passage{ends ? std::string() : unit.bytes, ends};
    });
    const ra_unique_id id = make_unique_id(RA_TRANSPORT_ZEROMQ);  // at the address that the proxy knows
    Clock::time_point begin;
    std::vector<Error> idle(3);
    const auto cut = [&](std::int32_t rank, CudaRanks& ranks) {
      if (rank == 1) {
        begin = Clock::now();
        is_cut = true;
      }
      if (!is_idle) return;
      Error& error = idle[static_cast<std::size_t>(rank)];
      for (const auto from = Clock::now(); Clock::now() - from < at_once; std::this_thread::yield())
        if (ra_get_async_error((*ranks)[rank], &error) != RA_STATUS_SUCCESS) break;
    };
    std::vector<Error> errors = run_until_failure(controlled, Schedule::ring, cut, [&](ra_context_config& config) {
      wait_long(config);
      config.unique_id = id.text;
      thread_local std::optional<Proxy::Client> client;  // of the thread that creates the context
      client.emplace(proxy, config.rank);
    });
    EXPECT_LT(Clock::now() - begin, at_once);
    if (is_idle) errors = idle;
    expect_named(errors[0], RA_STATUS_PEER_LOST, 1);
    expect_named(errors[1], RA_STATUS_PEER_LOST, 0);
    expect_named(errors[2], RA_STATUS_PEER_LOST, 1);
    expect_nothing_left();
  }
}

// NCCL finds that somebody is gone before the control plane does, and does not know whom; or nobody is, as far as that knows.
TEST(ControlPlane, SaysWhomNcclHasLost) {
  for (const bool is_gone : {true, false}) {
    const std::vector<Error> errors = run_until_failure(
        controlled, Schedule::ring,
        [&](std::int32_t rank, CudaRanks& ranks) {
          if (rank == 0) emulation::fail_async(0, 1, ncclRemoteError);
          if (rank != 2 || !is_gone) return;
          std::this_thread::sleep_for(std::chrono::milliseconds(300));
          ra_abort_context((*ranks)[rank], nullptr);
        },
        wait_long);
    for (const Error& error : errors)
      if (is_gone)
        expect_named(error, RA_STATUS_ABORTED, 2);
      else
        expect_named(error, RA_STATUS_PEER_LOST, -1);
    expect_nothing_left();
  }
}

TEST(ControlPlane, AnAbortIsKnownAtOnce) {
  Clock::time_point begin;
  for (const Error& error : run_until_failure(
           controlled, Schedule::ring,
           [&](std::int32_t rank, CudaRanks&ranks) {
             if (rank != 1) return;
             begin = Clock::now();
             ra_abort_context((*ranks)[rank], nullptr);
           },
           wait_long))
    expect_named(error, RA_STATUS_ABORTED, 1);
  EXPECT_LT(Clock::now() - begin, at_once);
  expect_nothing_left();
}

// A rank that does not come to a call is named by those that wait; where NCCL's transfers just do not end, nobody is.
TEST(ControlPlane, ALateRankIsNamedByAll) {
  for (const bool is_late : {true, false}) {
    std::vector<Error> late(3);
    const std::vector<Error> errors =
        run_until_failure(controlled, Schedule::ring, [&](std::int32_t rank, CudaRanks& ranks) {
          if (!is_late && rank == 1) emulation::lose_rank(1);
          if (!is_late || rank != 1) return;
          for (const auto from = Clock::now(); Clock::now() - from < in_time; std::this_thread::yield())
            if (ra_get_async_error((*ranks)[rank], &late[1]) != RA_STATUS_SUCCESS) break;
        });
    for (const std::size_t rank : {0U, 1U, 2U})
      expect_named(is_late && rank == 1 ? late[1] : errors[rank], RA_STATUS_TIMEOUT, is_late ? 1 : -1);
    expect_nothing_left();
  }
}

// Whoever has left is waited for no longer than its last transfers may take.
TEST(ControlPlane, ARankThatLeavesIsALostPeerToThoseThatWaitForIt) {
  constexpr int size = 3;
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather}) {
    emulation::reset({.devices = size});
    const reference::Oracle oracle = travelling_oracle(size, 1, schedule);
    const ra_unique_id id = controlled.make_id(nullptr);
    std::vector<Error> errors(size);
    const Clock::time_point begin = Clock::now();
    run_threads(size, [&](std::int32_t rank) {
      ra_context_config config = make_cuda_config(size, rank, &id, RA_TRANSPORT_NCCL, rank);
      config.timeout_ms = long_timeout_ms;
      Error& error = errors[static_cast<std::size_t>(rank)];
      const Context context(ra_create_context(&config, &error));
      ASSERT_NE(context, nullptr) << error;
      Streams streams(rank);
      DeviceShards shards(oracle, size, rank, rank);
      shards.upload(streams.first);
      ASSERT_EQ(shards.forward(context.get(), streams.first, &error), RA_STATUS_SUCCESS) << error;
      ok(cudaStreamSynchronize(streams.first));
      if (rank == 1) return;
      while (error.status == RA_STATUS_SUCCESS && Clock::now() - begin < in_time) {
        const ra_status status = shards.forward(context.get(), streams.first, &error);
        if (status == RA_STATUS_SUCCESS || status == RA_STATUS_INVALID_STATE) ra_get_async_error(context.get(), &error);
        ok(cudaStreamSynchronize(streams.first));
      }
    });
    for (const std::size_t rank : {0U, 2U}) expect_named(errors[rank], RA_STATUS_PEER_LOST, 1);
    EXPECT_LT(Clock::now() - begin, at_once);
    expect_nothing_left();
  }
}

// What keeps ranks from joining is known to all of them at once, too.
TEST(ControlPlane, ARankThatCannotJoinIsNamedByAll) {
  struct Fault {
    ConfigTweak change;  // of rank 1
    ra_status others;
    int named;
    const char* says;
  };
  const Fault faults[] = {
      {[](ra_context_config& c) { c.num_sms = 1'000'000; }, RA_STATUS_PEER_LOST, 1, "num_sms"},
      {[](ra_context_config& c) { c.device = 99; }, RA_STATUS_PEER_LOST, 1, "device is 99"},
      {[](ra_context_config& c) { c.world_size = 4; }, RA_STATUS_MISMATCH, -1, "world_size"},
      {[](ra_context_config& c) {
         c.backend = RA_BACKEND_CPU;
         c.transport = RA_TRANSPORT_ZEROMQ;
         c.device = 0;
       },
       RA_STATUS_MISMATCH, -1, "backend is"},
  };
  for (const Fault& fault : faults) {
    constexpr int size = 2;
    emulation::reset({.devices = size});
    const ra_unique_id id = controlled.make_id(nullptr);
    std::vector<Error> errors(size);
    const Clock::time_point begin = Clock::now();
    run_threads(size, [&](std::int32_t rank) {
      ra_context_config config = make_cuda_config(size, rank, &id, RA_TRANSPORT_NCCL, rank);
      config.timeout_ms = long_timeout_ms;
      if (rank == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));  // rank 0 listens
        fault.change(config);
      }
      EXPECT_EQ(Context(ra_create_context(&config, &errors[static_cast<std::size_t>(rank)])), nullptr);
    });
    EXPECT_LT(Clock::now() - begin, at_once);
    expect_named(errors[0], fault.others, fault.named);
    EXPECT_NE(errors[0].text().find(fault.says), std::string::npos) << errors[0];
    expect_nothing_left();
  }
}

// A rank that joined and then died before NCCL's own join was over.
TEST(ControlPlane, ARankThatIsGoneBeforeNcclHasJoinedIsNamed) {
  emulation::reset({.devices = 2});
  const ra_unique_id id = make_unique_id(RA_TRANSPORT_ZEROMQ);  // at the address that the proxy knows
  Proxy proxy([&](const Unit& unit) {                           // greetings, a handshake, HELLO, and some beats
    const bool ends = unit.stream.is_control() && unit.number > Unit::greetings + 8;
    return Passage{ends ? std::string() : unit.bytes, ends};
  });
  std::vector<Error> errors(2);
  emulation::lose_rank(1);
  const Clock::time_point begin = Clock::now();
  run_threads(2, [&](std::int32_t rank) {
    ra_context_config config = make_cuda_config(2, rank, &id, RA_TRANSPORT_NCCL, rank);
    config.timeout_ms = long_timeout_ms;
    const Proxy::Client client(proxy, rank);
    EXPECT_EQ(Context(ra_create_context(&config, &errors[static_cast<std::size_t>(rank)])), nullptr);
  });
  EXPECT_LT(Clock::now() - begin, at_once);
  expect_named(errors[0], RA_STATUS_PEER_LOST, 1);
  expect_named(errors[1], RA_STATUS_PEER_LOST, 0);
  expect_nothing_left();
}

}  // namespace
}  // namespace ringattn::test
