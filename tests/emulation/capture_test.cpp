// The rules of capturing, each by what breaks it, and what a graph does when it is launched.
#include <thread>

#include "program.h"

namespace ringattn::test {
namespace {

cudaStreamCaptureStatus status_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ok(cudaStreamIsCapturing(stream, &status));
  return status;
}

class Capture : public ::testing::Test {
 protected:
  Capture() {
    emulation::reset({.devices = 2, .seed = seed()});
    a = make_stream(0);
    b = make_stream(0);
    c = make_stream(1);
    e = make_event(0);
    f = make_event(0);
    x = make_buffer(0);
    y = make_buffer(0);
    ok(cudaSetDevice(0));
  }
  void begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    ok(cudaStreamBeginCapture(a, mode));
    fill(a, "produce", x, 1);
  }
  cudaError_t end(cudaStream_t stream) {
    const cudaError_t error = cudaStreamEndCapture(stream, &graph);
    EXPECT_EQ(graph != nullptr, error == cudaSuccess);
    return error;
  }
  // A call that is refused and loses the capture.
  void expect_lost(cudaError_t result, cudaError_t expected) {
    EXPECT_EQ(result, expected) << cudaGetErrorName(result);
    EXPECT_EQ(status_of(a), cudaStreamCaptureStatusInvalidated);
    EXPECT_EQ(emulation::submit(a, "more", {}, [] {}), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(end(a), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(status_of(a), cudaStreamCaptureStatusNone);
    fill(a, "as ever", x, 2);
    ok(cudaStreamSynchronize(a));
    EXPECT_TRUE(holds(x, 2));
  }

  cudaStream_t a, b, c;
  cudaEvent_t e, f;
  Buffer x, y;
  cudaGraph_t graph = nullptr;
};

TEST_F(Capture, WritesDownAndDoesNotRun) {
  begin();
  EXPECT_EQ(status_of(a), cudaStreamCaptureStatusActive);
  EXPECT_EQ(status_of(b), cudaStreamCaptureStatusNone);
  unsigned long long id = 0;
  cudaStreamCaptureStatus status;
  ok(cudaStreamGetCaptureInfo(a, &status, &id));
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  EXPECT_NE(id, 0U);
  order(a, b, e);  // b joins
  EXPECT_EQ(status_of(b), cudaStreamCaptureStatusActive);
  add_one(b, "consume", x, y);
  order(b, a, f);
  ok(end(a));
  EXPECT_EQ(status_of(b), cudaStreamCaptureStatusNone);
  ok(cudaStreamSynchronize(a));
  EXPECT_EQ(y[0], 0xffffffffU);
  EXPECT_EQ(cudaEventQuery(e), cudaErrorCapturedEvent) << "its capture is over, its state means nothing";
  EXPECT_EQ(cudaStreamWaitEvent(b, e), cudaErrorCapturedEvent);

  cudaGraphExec_t exec = nullptr;
  ok(cudaGraphInstantiate(&exec, graph));
  ok(cudaGraphDestroy(graph));
  for (int n = 0; n < 3; ++n) {
    ok(cudaGraphLaunch(exec, c));
    ok(cudaStreamSynchronize(c));
    EXPECT_TRUE(holds(y, 2));
  }
  ok(cudaGraphExecDestroy(exec));
}

TEST_F(Capture, LaunchesAreInTheOrderOfTheirStream) {
  for (int n = 0; n < sample(1000); ++n) {
    emulation::reset({.devices = 1, .seed = static_cast<std::uint64_t>(n)});
    const cudaStream_t s = make_stream(0), t = make_stream(0);
    const Buffer z = make_buffer(0);
    const cudaEvent_t event = make_event(0);
    fill(s, "clear", z, 0);
    cudaGraphExec_t exec = nullptr;
    ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    for (int k = 0; k < 3; ++k)
      launch(s, "increment", {reads(z), writes(z)},
             [z] { std::for_each(z, z + length, [](auto& value) { ++value; }); });
    ok(cudaStreamEndCapture(s, &graph));
    ok(cudaGraphInstantiate(&exec, graph));
    ok(cudaGraphLaunch(exec, s));
    ok(cudaEventRecord(event, s));
    ok(cudaStreamWaitEvent(t, event));
    launch(t, "double", {reads(z), writes(z)}, [z] { std::for_each(z, z + length, [](auto& value) { value *= 2; }); });
    ok(cudaGraphLaunch(exec, t));
    ok(cudaStreamSynchronize(t));
    ASSERT_TRUE(holds(z, 9)) << "seed " << n;
    expect_no_violations();
    if (HasFailure()) return;
  }
}

TEST_F(Capture, AFollowerThatDoesNotWaitForALaunchIsCaught) {
  begin();
  ok(end(a));
  cudaGraphExec_t exec = nullptr;
  ok(cudaGraphInstantiate(&exec, graph));
  ok(cudaGraphLaunch(exec, a));
  add_one(b, "consume", x, y);
  const auto found = emulation::violations();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].rule, Rule::unordered);
}

TEST_F(Capture, EveryLaunchIsChecked) {
  begin();
  ok(cudaEventRecord(e, a));
  ok(cudaStreamWaitEvent(b, e));
  fill(a, "overwrite", x, 2);
  add_one(b, "consume", x, y);  // while that goes on
  order(b, a, f);
  ok(end(a));
  cudaGraphExec_t exec = nullptr;
  ok(cudaGraphInstantiate(&exec, graph));
  expect_no_violations("captured, not launched");
  for (std::size_t launches = 1; launches <= 2; ++launches) {
    ok(cudaGraphLaunch(exec, c));
    ok(cudaStreamSynchronize(c));
    ASSERT_EQ(emulation::violations().size(), launches);
    EXPECT_EQ(emulation::violations().back().rule, Rule::unordered);
  }
}

TEST_F(Capture, UnjoinedWorkIsAnError) {
  begin();
  order(a, b, e);
  fill(b, "forked", y, 1);
  EXPECT_EQ(end(a), cudaErrorStreamCaptureUnjoined);
  EXPECT_EQ(status_of(b), cudaStreamCaptureStatusNone);
}

TEST_F(Capture, EndsWhereAndAsItBegan) {
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(end(a), cudaErrorIllegalState);
  begin();
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
  std::thread([&] { EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureWrongThread); }).join();
  EXPECT_EQ(status_of(a), cudaStreamCaptureStatusActive);
  order(a, b, e);
  EXPECT_EQ(end(b), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(end(a), cudaErrorStreamCaptureInvalidated);
  begin(cudaStreamCaptureModeRelaxed);
  std::thread([&] { ok(end(a)); }).join();
}

TEST_F(Capture, MayNotBeWaitedForOrQueried) {
  begin();
  expect_lost(cudaStreamSynchronize(a), cudaErrorStreamCaptureUnsupported);
  begin();
  expect_lost(cudaStreamQuery(a), cudaErrorStreamCaptureUnsupported);
  begin();
  expect_lost(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
  begin();
  ok(cudaEventRecord(e, a));
  expect_lost(cudaEventQuery(e), cudaErrorCapturedEvent);
  begin();
  ok(cudaEventRecord(e, a));
  expect_lost(cudaEventSynchronize(e), cudaErrorCapturedEvent);
}

TEST_F(Capture, MayNotDependOnWhatIsNotCaptured) {
  fill(b, "before", y, 1);
  ok(cudaEventRecord(f, b));
  begin();
  expect_lost(cudaStreamWaitEvent(a, f), cudaErrorStreamCaptureIsolation);
  ok(cudaStreamSynchronize(b));
  begin();
  expect_lost(cudaStreamWaitEvent(a, f), cudaErrorStreamCaptureIsolation);
}

TEST_F(Capture, TwoDoNotMerge) {
  begin();
  ok(cudaStreamBeginCapture(b, cudaStreamCaptureModeGlobal));
  ok(cudaEventRecord(e, a));
  EXPECT_EQ(cudaStreamWaitEvent(b, e), cudaErrorStreamCaptureMerge);
  EXPECT_EQ(end(a), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(end(b), cudaErrorStreamCaptureInvalidated);
}

TEST_F(Capture, TheNullStreamStaysAway) {
  const cudaStream_t blocking = make_stream(0, cudaStreamDefault);
  begin();
  ok(emulation::submit(nullptr, "unrelated", {}, [] {}));  // a does not block with it
  ok(end(a));
  ok(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  EXPECT_EQ(emulation::submit(nullptr, "related", {}, [] {}), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(end(blocking), cudaErrorStreamCaptureInvalidated);
}

// What a capture cannot see is forbidden to the threads that its mode says, of which a watchdog is one: it asks in relaxed mode.
TEST_F(Capture, UnsafeCallsLoseIt) {
  const auto elsewhere = [&](auto&& call) {
    cudaError_t error = cudaSuccess;
    std::thread([&] { error = call(); }).join();
    return error;
  };
  void* data = nullptr;
  const auto allocate = [&] { return cudaMalloc(&data, 4); };
  const auto ask = [&] { return cudaEventQuery(f); };
  const auto ask_relaxed = [&] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    ok(cudaThreadExchangeStreamCaptureMode(&mode));
    const cudaError_t error = cudaEventQuery(f);
    ok(cudaThreadExchangeStreamCaptureMode(&mode));
    EXPECT_EQ(mode, cudaStreamCaptureModeRelaxed);
    return error;
  };
  begin();
  expect_lost(allocate(), cudaErrorStreamCaptureUnsupported);
  begin();
  expect_lost(elsewhere(allocate), cudaErrorStreamCaptureUnsupported);
  begin();
  expect_lost(elsewhere(ask), cudaErrorStreamCaptureUnsupported);
  begin(cudaStreamCaptureModeThreadLocal);
  expect_lost(ask(), cudaErrorStreamCaptureUnsupported);

  begin(cudaStreamCaptureModeThreadLocal);
  ok(elsewhere(ask));
  ok(elsewhere(allocate));
  ok(ask_relaxed());
  ok(end(a));
  begin();
  ok(elsewhere(ask_relaxed));
  ok(ask_relaxed());
  ok(end(a));
  begin(cudaStreamCaptureModeRelaxed);
  ok(allocate());
  ok(end(a));
}

}  // namespace
}  // namespace ringattn::test
