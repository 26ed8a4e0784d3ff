// Calls captured in CUDA graphs: launched again and again they give what the same calls give, for whatever the inputs then are. And calls
// that are not captured allocate nothing after the first of a shape, and wait for no GPU.
#include <atomic>
#include <barrier>
#include <chrono>
#include <thread>

#include "emulation/backend.h"
#include "support/machine.h"

namespace ringattn::test {
namespace {

constexpr int size = 3;

class BackendGraph : public ::testing::TestWithParam<std::int32_t> {};
std::string name_of(const ::testing::TestParamInfo<std::int32_t>& info) {
  return info.param == RA_TRANSPORT_NCCL ? "nccl" : "local";
}
INSTANTIATE_TEST_SUITE_P(All, BackendGraph, ::testing::Values(RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL), name_of);

void differentiate(const DeviceShards& shards, ra_context* context, cudaStream_t stream) {
  Error error;
  EXPECT_EQ(shards.forward(context, stream, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(shards.backward(context, stream, &error), RA_STATUS_SUCCESS) << error;
}

// With NCCL each rank captures for itself; copies between local ranks are in one capture, which begins and ends in rank 0's stream.
TEST_P(BackendGraph, IsRightEveryTime) {
  const bool is_local = GetParam() == RA_TRANSPORT_LOCAL;
  Machine machine(size);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, GetParam(), size);
  const auto device_of = [&](int rank) { return rank % machine.devices(); };
  const std::uint64_t first = seed();
  for (int n = 0; n < sample(20); ++n) {
    machine.reset(first + static_cast<std::uint64_t>(n));
    const reference::Oracle oracle = travelling_oracle(size, 1, n % 2 == 0 ? Schedule::ring : Schedule::all_gather);
    Results results = results_for(oracle);
    {
      CudaRanks ranks(size, GetParam(), machine.devices());
      std::vector<std::unique_ptr<Streams>> streams;
      std::vector<std::unique_ptr<DeviceShards>> shards;
      std::vector<cudaEvent_t> forked, joined;
      for (int r = 0; r < size; ++r) {
        streams.push_back(std::make_unique<Streams>(device_of(r)));
        shards.push_back(std::make_unique<DeviceShards>(oracle, size, r, device_of(r)));
        forked.push_back(make_event(device_of(r)));
        joined.push_back(make_event(device_of(r)));
      }
      cudaGraphExec_t execs[size] = {};
      const cudaStream_t origin = streams[0]->first;
      const auto end_capture = [&](int r) {
        cudaGraph_t graph = nullptr;
        ok(cudaStreamEndCapture(streams[static_cast<std::size_t>(r)]->first, &graph));
        ok(cudaGraphInstantiate(&execs[r], graph));
        ok(cudaGraphDestroy(graph));
      };
      // Once as it is, which makes the workspace; with other inputs than later.
      ranks->run([&](std::int32_t rank, ra_context* context) {
        const auto r = static_cast<std::size_t>(rank);
        shards[r]->upload_zeros(streams[r]->first);
        differentiate(*shards[r], context, streams[r]->first);
        ok(cudaStreamSynchronize(streams[r]->first));
      });
      if (is_local) {
        ok(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
        ok(cudaEventRecord(forked[0], origin));
        for (int r = 1; r < size; ++r) ok(cudaStreamWaitEvent(streams[static_cast<std::size_t>(r)]->first, forked[0]));
      }
      std::barrier together(size);
      ranks->run([&](std::int32_t rank, ra_context* context) {
        const auto r = static_cast<std::size_t>(rank);
        if (!is_local) {
          together.arrive_and_wait();
          ok(cudaStreamBeginCapture(streams[r]->first, cudaStreamCaptureModeGlobal));
        }
        differentiate(*shards[r], context, streams[r]->first);
        together.arrive_and_wait();  // a capture's end is not disturbed, nor does it disturb
        if (!is_local) end_capture(rank);
      });
      if (is_local) {
        for (int r = 1; r < size; ++r) {
          ok(cudaEventRecord(joined[static_cast<std::size_t>(r)], streams[static_cast<std::size_t>(r)]->first));
          ok(cudaStreamWaitEvent(origin, joined[static_cast<std::size_t>(r)]));
        }
        end_capture(0);
      }
      for (int launch = 0; launch < 3; ++launch) {
        for (std::size_t r = 0; r < size; ++r) {
          shards[r]->upload(streams[r]->first);
          if (is_local)
            ok(cudaStreamSynchronize(streams[r]->first));
          else
            ok(cudaGraphLaunch(execs[r], streams[r]->first));
        }
        if (is_local) {
          ok(cudaGraphLaunch(execs[0], origin));
          ok(cudaStreamSynchronize(origin));
        }
        for (std::size_t r = 0; r < size; ++r) shards[r]->download(results, streams[r]->first);
        expect_within(results, oracle);
      }
      // And once more without a graph.
      ranks->run([&](std::int32_t rank, ra_context* context) {
        const auto r = static_cast<std::size_t>(rank);
        differentiate(*shards[r], context, streams[r]->first);
        shards[r]->download(results, streams[r]->first);
      });
      expect_within(results, oracle);
      for (const cudaGraphExec_t exec : execs)
        if (exec != nullptr) ok(cudaGraphExecDestroy(exec));
      for (int r = 0; r < size; ++r) {
        ok(cudaEventDestroy(forked[static_cast<std::size_t>(r)]));
        ok(cudaEventDestroy(joined[static_cast<std::size_t>(r)]));
      }
    }
    machine.expect_clean();
    if (HasFailure()) return;
  }
}

// What holds a stream up until it is told to go on, or for a few seconds.
struct Gate {
  std::atomic<bool> is_open{false}, has_waited_in_vain{false};
  static void wait(void* gate) {
    auto& g = *static_cast<Gate*>(gate);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (!g.is_open && !g.has_waited_in_vain) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (std::chrono::steady_clock::now() > end) g.has_waited_in_vain = true;
    }
  }
};

// After the first of a shape, calls neither allocate nor wait for a GPU: all return while every stream is held up.
void expect_calls_only_enqueue(std::int32_t transport, Schedule schedule) {
  Machine machine(size);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, size);
  machine.reset_late();
  const reference::Oracle oracle = travelling_oracle(size, 1, schedule);
  Results results = results_for(oracle);
  {
    CudaRanks ranks(size, transport, machine.devices());
    Gate gate;
    std::barrier together(size);
    ranks->run([&](std::int32_t rank, ra_context* context) {
      const int device = rank % machine.devices();
      Streams streams(device);
      DeviceShards shards(oracle, size, rank, device);
      shards.upload(streams.first);
      differentiate(shards, context, streams.first);
      ok(cudaStreamSynchronize(streams.first));
      together.arrive_and_wait();
      if (rank == 0) machine.forbid_allocation();
      ok(cudaLaunchHostFunc(streams.first, Gate::wait, &gate));
      together.arrive_and_wait();
      for (int call = 0; call < 3; ++call) differentiate(shards, context, streams.first);
      together.arrive_and_wait();
      if (rank == 0) machine.expect_no_allocation();
      together.arrive_and_wait();
      gate.is_open = true;
      shards.download(results, streams.first);
    });
    EXPECT_FALSE(gate.has_waited_in_vain);
  }
  expect_within(results, oracle);
  machine.expect_clean();
}

TEST_P(BackendGraph, IsNotNeededForCallsThatOnlyEnqueue) {
  for (const Schedule schedule : {Schedule::ring, Schedule::all_gather})
    expect_calls_only_enqueue(GetParam(), schedule);
}

}  // namespace
}  // namespace ringattn::test
