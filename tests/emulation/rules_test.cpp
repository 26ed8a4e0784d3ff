// Every rule of the checker, by a program that breaks it and must be caught whatever order is drawn, and by one that differs as
// little as possible, breaks none, and computes what it should.
#include <cstring>
#include <latch>
#include <memory>
#include <thread>

#include "program.h"

namespace ringattn::test {
namespace {

// Two devices with two streams each, unrelated to each other.
struct World {
  explicit World(std::uint64_t seed) {
    emulation::reset({.devices = 2, .seed = seed});
    for (int device = 0; device < 2; ++device) {
      for (cudaStream_t& s : stream[device]) s = make_stream(device);
      event[device] = make_event(device);
    }
    a = stream[0][0];
    b = stream[0][1];
    e = event[0];
    x = make_buffer(0);
    y = make_buffer(0);
  }
  cudaStream_t stream[2][2];
  cudaEvent_t event[2];
  cudaStream_t a, b;
  cudaEvent_t e;
  Buffer x, y;

  bool result(Buffer buffer, std::uint32_t value) {
    ok(cudaStreamSynchronize(a));
    ok(cudaStreamSynchronize(b));
    return holds(buffer, value);
  }
};

struct Program {
  const char* name;
  Rule rule;
  std::vector<const char*> named;         // what the report of the wrong one names
  bool (*run)(World& world, bool right);  // whether the result is the right one
};

const Program programs[] = {
    {"a read without a wait for the write",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       if (right) order(w.a, w.b, w.e);
       add_one(w.b, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"a write without a wait for the read",
     Rule::unordered,
     {"consume", "overwrite"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       add_one(w.a, "consume", w.x, w.y);
       if (right) order(w.a, w.b, w.e);
       fill(w.b, "overwrite", w.x, 7);
       return w.result(w.y, 2) && holds(w.x, 7);
     }},
    {"a write without a wait for the write",
     Rule::unordered,
     {"first", "second"},
     [](World& w, bool right) {
       fill(w.a, "first", w.x, 1);
       if (right) order(w.a, w.b, w.e);
       fill(w.b, "second", w.x, 2);
       return w.result(w.x, 2);
     }},
    {"one element that two streams write",
     Rule::unordered,
     {"low", "high"},
     [](World& w, bool right) {
       fill(w.a, "low", w.x, 1, length / 2 + (right ? 0 : 1));
       fill(w.b, "high", w.x + length / 2, 2, length / 2);
       ok(cudaStreamSynchronize(w.a));
       ok(cudaStreamSynchronize(w.b));
       return holds(w.x, 1, length / 2) && holds(w.x + length / 2, 2, length / 2);
     }},
    {"an event recorded before the write",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       if (!right) ok(cudaEventRecord(w.e, w.a));
       fill(w.a, "produce", w.x, 1);
       if (right) ok(cudaEventRecord(w.e, w.a));
       ok(cudaStreamWaitEvent(w.b, w.e));
       add_one(w.b, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"a wait for an event before it is recorded",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       if (!right) ok(cudaStreamWaitEvent(w.b, w.e));
       ok(cudaEventRecord(w.e, w.a));
       if (right) ok(cudaStreamWaitEvent(w.b, w.e));
       add_one(w.b, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"an event recorded again before the wait",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       ok(cudaEventRecord(w.e, w.a));
       if (right) ok(cudaStreamWaitEvent(w.b, w.e));
       ok(cudaEventRecord(w.e, w.b));  // which a wait before it does not notice
       if (!right) ok(cudaStreamWaitEvent(w.b, w.e));
       add_one(w.b, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"a wait on the wrong stream",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       order(w.a, right ? w.b : w.stream[1][0], w.e);
       add_one(w.b, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"a stream that does not wait for the null stream",
     Rule::unordered,
     {"produce", "consume"},
     [](World& w, bool right) {
       w.b = make_stream(0, right ? cudaStreamDefault : cudaStreamNonBlocking);
       fill(nullptr, "produce", w.x, 1);
       add_one(w.b, "consume", w.x, w.y);
       fill(nullptr, "overwrite", w.x, 7);
       return w.result(w.y, 2);
     }},
    {"a copy that the consumer does not wait for",
     Rule::unordered,
     {"cudaMemcpyAsync", "consume"},
     [](World& w, bool right) {
       const Buffer far = make_buffer(1);
       fill(w.a, "produce", w.x, 1);
       ok(cudaMemcpyAsync(far, w.x, bytes, cudaMemcpyDeviceToDevice, w.a));
       if (right) order(w.a, w.stream[1][0], w.e);
       const Buffer result = make_buffer(1);
       add_one(w.stream[1][0], "consume", far, result);
       ok(cudaStreamSynchronize(w.stream[1][0]));
       return w.result(result, 2);
     }},
    {"the host reads before it waits",
     Rule::host_too_early,
     {"cudaMemcpyAsync"},
     [](World& w, bool right) {
       const Buffer pinned = make_pinned();
       fill(w.a, "produce", w.x, 1);
       ok(cudaMemcpyAsync(pinned, w.x, bytes, cudaMemcpyDeviceToHost, w.a));
       if (right) ok(cudaStreamSynchronize(w.a));
       return holds(pinned, 1);
     }},
    {"the host reads while an event is not ready",
     Rule::host_too_early,
     {"produce"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1);
       ok(cudaEventRecord(w.e, w.a));
       if (right)
         while (cudaEventQuery(w.e) == cudaErrorNotReady) {
         }
       return holds(w.x, 1);
     }},
    {"the host writes what is still to be copied",
     Rule::host_too_early,
     {"cudaMemcpyAsync"},
     [](World& w, bool right) {
       const Buffer pinned = make_pinned();
       std::fill_n(pinned, length, 1U);
       ok(cudaMemcpyAsync(w.x, pinned, bytes, cudaMemcpyHostToDevice, w.a));
       if (right) ok(cudaStreamSynchronize(w.a));
       emulation::host_write(pinned, bytes);
       std::fill_n(pinned, length, 2U);
       return w.result(w.x, 1);
     }},
    {"a read of what nobody has written",
     Rule::uninitialised,
     {"consume"},
     [](World& w, bool right) {
       fill(w.a, "produce", w.x, 1, right ? length : length - 1);
       add_one(w.a, "consume", w.x, w.y);
       return w.result(w.y, 2);
     }},
    {"a use after free",
     Rule::freed,
     {"late"},
     [](World& w, bool right) {
       const Buffer z = make_buffer(0);
       if (!right) ok(cudaFree(z));
       fill(w.a, "late", z, 1);
       ok(cudaStreamSynchronize(w.a));
       if (right) ok(cudaFree(z));
       return true;
     }},
    {"freed twice",
     Rule::freed,
     {"again"},
     [](World& w, bool right) {
       ok(cudaFree(w.x));
       if (!right) {
         EXPECT_EQ(cudaFree(w.x), cudaErrorInvalidValue);
       }
       return true;
     }},
    {"freed while in use",
     Rule::freed_in_use,
     {"user"},
     [](World& w, bool right) {
       fill(w.a, "user", w.x, 1);
       if (right) ok(cudaStreamSynchronize(w.a));
       ok(cudaFree(w.x));
       return true;
     }},
    {"one element too many",
     Rule::out_of_bounds,
     {"over"},
     [](World& w, bool right) {
       const Buffer z = make_buffer(0);
       fill(w.a, "over", z, 1, right ? length : length + 1);
       ok(cudaStreamSynchronize(w.a));
       return !right || holds(z, 1);
     }},
    {"another device's memory",
     Rule::no_peer_access,
     {"reach"},
     [](World& w, bool right) {
       const Buffer far = make_buffer(1);
       ok(cudaSetDevice(0));
       if (right) ok(cudaDeviceEnablePeerAccess(1, 0));
       fill(w.a, "reach", far, 1);
       return w.result(far, 1);
     }},
    {"the host's memory in a kernel",
     Rule::not_allocated,
     {"stray"},
     [](World& w, bool right) {
       std::vector<std::uint32_t> pageable(length);
       const Buffer memory = right ? make_pinned() : pageable.data();
       fill(w.a, "stray", memory, 1);
       return w.result(memory, 1);
     }},
};

TEST(Rules, BrokenOnesAreCaughtInEveryOrder) {
  const std::uint64_t first = seed();
  for (const Program& program : programs)
    for (int n = 0; n < sample(1000); ++n) {
      World world(first + static_cast<std::uint64_t>(n));
      program.run(world, false);
      const auto found = emulation::violations();
      ASSERT_FALSE(found.empty()) << program.name;
      ASSERT_EQ(found[0].rule, program.rule) << program.name << ": " << found[0];
      for (const char* const name : program.named)
        ASSERT_NE(found[0].what.find(name), std::string::npos)
            << program.name << " does not name " << name << ": " << found[0];
      if (n == 0) std::cout << program.name << "\n  " << found[0] << '\n';
    }
}

TEST(Rules, KeptOnesAreFineInEveryOrder) {
  const std::uint64_t first = seed();
  for (const Program& program : programs)
    for (int n = 0; n < sample(1000); ++n) {
      World world(first + static_cast<std::uint64_t>(n));
      ASSERT_TRUE(program.run(world, true)) << program.name << ", seed " << first + static_cast<std::uint64_t>(n);
      expect_no_violations(program.name);
      if (HasFailure()) return;
    }
}

// What the orders are for: each must show what a checker without declarations would have to find by values.
TEST(Rules, OrdersDifferInWhatTheyShow) {
  int stale[3] = {};
  for (int n = 0; n < 300; ++n) {
    const auto order = static_cast<emulation::Order>(n % 3);
    emulation::reset({.devices = 1, .seed = static_cast<std::uint64_t>(n), .order = order});
    const cudaStream_t a = make_stream(0), b = make_stream(0);
    const Buffer x = make_buffer(0), y = make_buffer(0);
    fill(a, "produce", x, 1);
    ok(cudaStreamSynchronize(a));
    add_one(a, "consume", x, y);
    fill(b, "overwrite", x, 7);
    ok(cudaStreamSynchronize(b));
    ok(cudaStreamSynchronize(a));
    stale[n % 3] += y[0] != 2 ? 1 : 0;
  }
  EXPECT_EQ(stale[0], 0) << "early: a program without waits looks right";
  EXPECT_EQ(stale[1], 100) << "late";
  EXPECT_GT(stale[2], 0) << "random";
  EXPECT_LT(stale[2], 100) << "random";
}

TEST(Runtime, RunsNothingThatNobodyWaitsForInLateOrder) {
  emulation::reset({.order = emulation::Order::late});
  const cudaStream_t a = make_stream(0), b = make_stream(0);
  const Buffer x = make_buffer(0), y = make_buffer(0);
  fill(a, "a", x, 1);
  fill(b, "b", y, 1);
  EXPECT_EQ(cudaStreamQuery(a), cudaErrorNotReady);
  ok(cudaStreamSynchronize(a));
  EXPECT_EQ(x[0], 1U);
  EXPECT_EQ(y[0], 0xffffffffU) << "poison";
  EXPECT_EQ(cudaStreamQuery(a), cudaSuccess);
}

// What another host thread has synchronised with is known when that thread is over, and not because it happened to be earlier.
TEST(Runtime, TakesEveryHostThreadForAParty) {
  for (const bool over : {false, true}) {
    emulation::reset({.devices = 1, .seed = seed()});
    const cudaStream_t a = make_stream(0), b = make_stream(0);
    const Buffer x = make_buffer(0), y = make_buffer(0);
    fill(a, "produce", x, 1);
    std::latch synchronised(1), submitted(1);
    std::thread other([&] {
      ok(cudaStreamSynchronize(a));
      synchronised.count_down();
      if (!over) submitted.wait();
    });
    synchronised.wait();
    if (over) other.join();
    add_one(b, "consume", x, y);
    submitted.count_down();
    if (!over) other.join();
    ok(cudaStreamSynchronize(b));
    EXPECT_EQ(emulation::violations().size(), over ? 0U : 1U);
    EXPECT_TRUE(holds(y, 2));
  }
}

TEST(Runtime, StagesCopiesFromPageableMemoryAndWaitsForThoseToIt) {
  for (std::uint64_t s = 0; s < 30; ++s) {
    emulation::reset({.seed = s});
    const cudaStream_t stream = make_stream(0);
    const Buffer x = make_buffer(0);
    std::vector<std::uint32_t> host(length, 5);
    ok(cudaMemcpyAsync(x, host.data(), bytes, cudaMemcpyDefault, stream));
    std::fill(host.begin(), host.end(), 6);
    std::vector<std::uint32_t> back(length);
    ok(cudaMemcpyAsync(back.data(), x, bytes, cudaMemcpyDeviceToHost, stream));
    EXPECT_EQ(back, std::vector<std::uint32_t>(length, 5));
    expect_no_violations();
  }
}

TEST(Runtime, RefusesWhatCudaRefuses) {
  emulation::reset({.devices = 2, .device_bytes = 1 << 20});
  const cudaStream_t on_1 = make_stream(1);
  const cudaEvent_t of_0 = make_event(0);
  EXPECT_EQ(emulation::submit(on_1, "kernel", {}, [] {}), cudaErrorInvalidResourceHandle) << "the thread's device is 0";
  EXPECT_EQ(cudaEventRecord(of_0, on_1), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamWaitEvent(on_1, of_0), cudaSuccess) << "of any device, and never recorded";
  EXPECT_EQ(cudaEventQuery(of_0), cudaSuccess);
  ok(cudaStreamDestroy(on_1));
  EXPECT_EQ(cudaStreamQuery(on_1), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  ok(cudaDeviceEnablePeerAccess(1, 0));
  EXPECT_EQ(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, 2 << 20), cudaErrorMemoryAllocation);
  emulation::fail_call("cudaMalloc", 2, cudaErrorMemoryAllocation);
  ok(cudaMalloc(&data, 4));
  EXPECT_EQ(cudaMalloc(&data, 4), cudaErrorMemoryAllocation);
  EXPECT_EQ(emulation::live_objects(), (std::vector<std::string>{"4 bytes of device 0", "1 events"}));

  int count = 0;
  emulation::reset({.driver_version = 12040});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  emulation::reset({.devices = 0});
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(cudaMalloc(&data, 4), cudaErrorNoDevice);
}

TEST(Runtime, TellsWhosePointerItIs) {
  emulation::reset({.devices = 2});
  const Buffer far = make_buffer(1), pinned = make_pinned();
  std::uint32_t pageable = 0;
  cudaPointerAttributes attributes;
  ok(cudaPointerGetAttributes(&attributes, far + 1));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(attributes.device, 1);
  ok(cudaPointerGetAttributes(&attributes, pinned));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  ok(cudaPointerGetAttributes(&attributes, &pageable));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  ok(cudaFree(far));
  ok(cudaPointerGetAttributes(&attributes, far));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
}

TEST(Runtime, RunsHostFunctionsInTheirStream) {
  for (std::uint64_t s = 0; s < 30; ++s) {
    emulation::reset({.seed = s});
    const cudaStream_t stream = make_stream(0);
    const Buffer x = make_buffer(0);
    struct Seen {
      Buffer x;
      std::uint32_t value;
    } seen{x, 0};
    fill(stream, "produce", x, 3);
    ok(cudaLaunchHostFunc(
        stream, [](void* s) { static_cast<Seen*>(s)->value = *static_cast<Seen*>(s)->x; }, &seen));
    fill(stream, "overwrite", x, 4);
    ok(cudaStreamSynchronize(stream));
    EXPECT_EQ(seen.value, 3U);
    expect_no_violations();
  }
}

}  // namespace
}  // namespace ringattn::test
