// Emulated NCCL: joining, matching, groups, and every fault that a test can ask for.
#include <chrono>
#include <thread>

#include "program.h"

namespace ringattn::test {
namespace {

struct Member {
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  Buffer from = nullptr, to = nullptr;  // `from` is filled with 10 + rank
};

ncclResult_t state_of(ncclComm_t comm) {
  ncclResult_t state = ncclNumResults;
  ok(ncclCommGetAsyncError(comm, &state));
  return state;
}
ncclResult_t settle(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) state = state_of(comm);
  return state;
}
// Whether a stream has come to its end after having been asked often enough for any order.
bool ends(cudaStream_t stream) {
  for (int n = 0; n < 1000; ++n)
    if (cudaStreamQuery(stream) == cudaSuccess) return true;
  return false;
}

ncclResult_t join(Member& member, int size, int rank, int device, const ncclUniqueId& id, bool blocking) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking ? 1 : 0;
  ok(cudaSetDevice(device));
  return ncclCommInitRankConfig(&member.comm, size, id, rank, &config);
}

std::vector<Member> make_group(int size, std::uint64_t seed, bool blocking = true) {
  emulation::reset({.devices = size, .seed = seed});
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  std::vector<Member> members(static_cast<std::size_t>(size));
  ok(ncclGroupStart());
  for (int r = 0; r < size; ++r)
    EXPECT_EQ(join(members[static_cast<std::size_t>(r)], size, r, r, id, blocking),
              blocking ? ncclSuccess : ncclInProgress);
  ok(ncclGroupEnd());
  for (int r = 0; r < size; ++r) {
    Member& m = members[static_cast<std::size_t>(r)];
    ok(settle(m.comm));
    m.stream = make_stream(r);
    m.from = make_buffer(r);
    m.to = make_buffer(r, static_cast<std::size_t>(size) * bytes);
    fill(m.stream, "prepare", m.from, static_cast<std::uint32_t>(10 + r));
  }
  return members;
}

ncclResult_t send(Member& m, int peer, std::size_t count = length) {
  return ncclSend(m.from, count, ncclUint32, peer, m.comm, m.stream);
}
ncclResult_t receive(Member& m, int peer, std::size_t count = length) {
  return ncclRecv(m.to, count, ncclUint32, peer, m.comm, m.stream);
}
// Each sends to the other, as one group each.
void exchange(Member& a, Member& b) {
  for (Member* const m : {&a, &b}) {
    ok(ncclGroupStart());
    ok(send(*m, m == &a ? 1 : 0));
    ok(receive(*m, m == &a ? 1 : 0));
    ok(ncclGroupEnd());
  }
}

TEST(Nccl, GroupsProgressTogether) {
  for (int n = 0; n < sample(1000); ++n) {
    auto m = make_group(2, static_cast<std::uint64_t>(n));
    exchange(m[0], m[1]);
    ok(cudaStreamSynchronize(m[0].stream));
    ok(cudaStreamSynchronize(m[1].stream));
    ASSERT_TRUE(holds(m[0].to, 11) && holds(m[1].to, 10));
    expect_no_violations();
    if (HasFailure()) return;
  }
}

TEST(Nccl, CallsOutsideAGroupWaitForEachOther) {
  for (std::uint64_t s = 0; s < 30; ++s) {
    auto m = make_group(2, s);
    for (int r = 0; r < 2; ++r) {  // both send first
      ok(send(m[static_cast<std::size_t>(r)], 1 - r));
      ok(receive(m[static_cast<std::size_t>(r)], 1 - r));
    }
    EXPECT_FALSE(ends(m[0].stream));
    EXPECT_FALSE(ends(m[1].stream));

    m = make_group(2, s);
    ok(send(m[0], 1));
    ok(receive(m[1], 0));
    ok(receive(m[0], 1));
    ok(send(m[1], 0));
    EXPECT_TRUE(ends(m[0].stream));
    EXPECT_TRUE(ends(m[1].stream));
    expect_no_violations();
  }
}

TEST(Nccl, WaitsForItsPeer) {
  auto m = make_group(2, 1);
  ok(send(m[0], 1));
  EXPECT_FALSE(ends(m[0].stream));
  ok(receive(m[1], 0));
  EXPECT_TRUE(ends(m[0].stream));
}

TEST(Nccl, MatchesInTheOrderOfCalls) {
  for (int n = 0; n < sample(1000); ++n) {
    auto m = make_group(2, static_cast<std::uint64_t>(n));
    ok(send(m[0], 1));
    fill(m[0].stream, "second", m[0].from, 99);
    ok(send(m[0], 1));
    ok(receive(m[1], 0));
    ok(ncclRecv(m[1].to + length, length, ncclUint32, 0, m[1].comm, m[1].stream));
    ok(cudaStreamSynchronize(m[1].stream));
    ASSERT_TRUE(holds(m[1].to, 10) && holds(m[1].to + length, 99));
    expect_no_violations();
    if (HasFailure()) return;
  }
}

TEST(Nccl, GathersFromAll) {
  for (int n = 0; n < sample(300); ++n) {
    auto m = make_group(4, static_cast<std::uint64_t>(n), false);
    for (Member& member : m)
      EXPECT_EQ(ncclAllGather(member.from, member.to, length, ncclUint32, member.comm, member.stream), ncclInProgress);
    for (Member& member : m) ok(settle(member.comm));
    for (Member& member : m) ok(cudaStreamSynchronize(member.stream));
    for (Member& member : m)
      for (std::size_t r = 0; r < 4; ++r)
        ASSERT_TRUE(holds(member.to + r * length, static_cast<std::uint32_t>(10 + r)));
    for (Member& member : m) EXPECT_EQ(ncclCommFinalize(member.comm), ncclInProgress);
    for (Member& member : m) ok(settle(member.comm));
    for (Member& member : m) ok(ncclCommDestroy(member.comm));
    expect_no_violations();
    if (HasFailure()) return;
  }
}

TEST(Nccl, IsCheckedLikeAnyOtherWork) {
  auto m = make_group(2, 1);
  const cudaStream_t other = make_stream(1);
  exchange(m[0], m[1]);
  add_one(other, "too early", m[1].to, m[1].from);
  const auto found = emulation::violations();
  ASSERT_EQ(found.size(), 2U) << "reads what is received, writes what is sent";
  EXPECT_NE(found[0].what.find("ncclSend to 0 + ncclRecv from 0"), std::string::npos) << found[0];

  m = make_group(2, 1);
  ok(receive(m[1], 0, 3 * length));
  ASSERT_EQ(emulation::violations().size(), 1U);
  EXPECT_EQ(emulation::violations()[0].rule, Rule::out_of_bounds);
}

TEST(Nccl, ASizeMismatchIsReported) {
  auto m = make_group(2, 1);
  ok(send(m[0], 1, length));
  ok(receive(m[1], 0, length / 2));
  EXPECT_TRUE(ends(m[0].stream) && ends(m[1].stream));
  const auto found = emulation::violations();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].rule, Rule::size_mismatch);
  std::cout << found[0] << '\n';
}

// ---------------------------------------------------------------- joining and what does not block

TEST(Nccl, IsInProgressUntilAllHaveJoined) {
  emulation::reset({.devices = 2});
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  Member a, b;
  EXPECT_EQ(join(a, 2, 0, 0, id, false), ncclInProgress);
  for (int n = 0; n < 100; ++n) EXPECT_EQ(state_of(a.comm), ncclInProgress);
  int rank = -1;
  EXPECT_EQ(ncclCommUserRank(a.comm, &rank), ncclInvalidArgument) << "not before it is ready";
  EXPECT_EQ(join(b, 2, 1, 1, id, false), ncclInProgress);
  ok(settle(a.comm));
  ok(settle(b.comm));
  ok(ncclCommUserRank(b.comm, &rank));
  EXPECT_EQ(rank, 1);
}

TEST(Nccl, BlocksUntilAllHaveJoined) {
  emulation::reset({.devices = 3});
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r)
    threads.emplace_back([&, r] {
      Member member;
      ok(join(member, 3, r, r, id, true));
      int count = 0, device = -1;
      ok(ncclCommCount(member.comm, &count));
      ok(ncclCommCuDevice(member.comm, &device));
      EXPECT_EQ(count, 3);
      EXPECT_EQ(device, r);
      ok(ncclCommFinalize(member.comm));
      ok(ncclCommDestroy(member.comm));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(emulation::live_objects().empty());
}

TEST(Nccl, RefusesTwoRanksOnOneDevice) {
  emulation::reset({.devices = 2});
  ncclUniqueId id;
  ok(ncclGetUniqueId(&id));
  Member a, b;
  join(a, 2, 0, 1, id, false);
  join(b, 2, 1, 1, id, false);
  EXPECT_EQ(settle(a.comm), ncclInvalidUsage);
  EXPECT_EQ(settle(b.comm), ncclInvalidUsage);
  EXPECT_STREQ(ncclGetLastError(b.comm), "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1");
  ok(ncclCommAbort(a.comm));
  ok(ncclCommAbort(b.comm));
  EXPECT_EQ(ncclCommAbort(b.comm), ncclInvalidArgument);
}

// A non-blocking group is in its stream only when the communicator says so. What is recorded before comes too early.
TEST(Nccl, AnEventRecordedWhileInProgressIsTooEarly) {
  for (int n = 0; n < sample(100); ++n)
    for (const bool right : {true, false}) {
      auto m = make_group(2, static_cast<std::uint64_t>(n), false);
      EXPECT_EQ(send(m[0], 1), ncclInProgress);
      ok(settle(m[0].comm));
      EXPECT_EQ(receive(m[1], 0), ncclInProgress);
      EXPECT_EQ(receive(m[1], 0), ncclInvalidArgument) << "busy";
      const cudaStream_t other = make_stream(1);
      const cudaEvent_t event = make_event(1);
      if (right) ok(settle(m[1].comm));
      order(m[1].stream, other, event);
      if (!right) ok(settle(m[1].comm));
      add_one(other, "consume", m[1].to, m[1].from);
      ASSERT_EQ(emulation::violations().empty(), right);
    }
}

TEST(Nccl, RefusesAStreamOfAnotherDevice) {
  auto m = make_group(2, 1);
  EXPECT_EQ(ncclSend(m[0].from, length, ncclUint32, 1, m[0].comm, m[1].stream), ncclUnhandledCudaError);
  EXPECT_EQ(ncclSend(m[0].from, length, ncclUint32, 2, m[0].comm, m[0].stream), ncclInvalidArgument);
}

// ---------------------------------------------------------------- faults

TEST(NcclFault, ALostRankLeavesItsPeersWaiting) {
  for (std::uint64_t s = 0; s < 30; ++s) {
    auto m = make_group(2, s);
    emulation::lose_rank(1);
    exchange(m[0], m[1]);
    EXPECT_FALSE(ends(m[0].stream));
    EXPECT_EQ(state_of(m[0].comm), ncclSuccess) << "nothing tells";
    ok(ncclCommAbort(m[0].comm));  // from any thread, as a watchdog does
    EXPECT_TRUE(ends(m[0].stream));
    EXPECT_TRUE(holds(m[0].to, 0xffffffffU)) << "nothing came";
    EXPECT_FALSE(ends(m[1].stream));
    ok(ncclCommAbort(m[1].comm));
    EXPECT_TRUE(ends(m[1].stream));
  }
}

TEST(NcclFault, AnAbortEndsAWaitOfAnotherThread) {
  auto m = make_group(2, 1);
  emulation::lose_rank(1);
  exchange(m[0], m[1]);
  std::thread waits([&] { ok(cudaStreamSynchronize(m[0].stream)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ok(ncclCommAbort(m[0].comm));
  waits.join();
}

TEST(NcclFault, ADelayedRankComesLater) {
  auto m = make_group(2, 1);
  emulation::delay_rank(1, 50);
  const auto begin = std::chrono::steady_clock::now();
  exchange(m[0], m[1]);
  EXPECT_EQ(cudaStreamQuery(m[0].stream), cudaErrorNotReady);
  ok(cudaStreamSynchronize(m[0].stream));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(50));
  EXPECT_TRUE(holds(m[0].to, 11));
}

TEST(NcclFault, AnAsynchronousErrorIsKept) {
  auto m = make_group(2, 1);
  emulation::fail_async(1, 2, ncclRemoteError);
  exchange(m[0], m[1]);
  EXPECT_TRUE(ends(m[0].stream) && ends(m[1].stream));
  exchange(m[0], m[1]);
  EXPECT_EQ(state_of(m[1].comm), ncclRemoteError);
  EXPECT_EQ(state_of(m[0].comm), ncclSuccess);
  EXPECT_FALSE(ends(m[0].stream) || ends(m[1].stream));
  EXPECT_EQ(send(m[1], 0), ncclRemoteError);
  for (Member& member : m) ok(ncclCommAbort(member.comm));
  EXPECT_TRUE(ends(m[0].stream) && ends(m[1].stream));
}

TEST(NcclFault, AnyCallCanFailAndItsGroupWithIt) {
  auto m = make_group(2, 1);
  emulation::fail_call("ncclRecv", 1, ncclSystemError);
  ok(ncclGroupStart());
  ok(send(m[0], 1));
  EXPECT_EQ(receive(m[0], 1), ncclSystemError);
  EXPECT_EQ(ncclGroupEnd(), ncclSystemError);
  emulation::fail_call("ncclGroupEnd", 1, ncclInternalError);
  ok(ncclGroupStart());
  ok(send(m[0], 1));
  EXPECT_EQ(ncclGroupEnd(), ncclInternalError);
  exchange(m[0], m[1]);  // with nothing left of them
  EXPECT_TRUE(ends(m[0].stream) && ends(m[1].stream));
  EXPECT_TRUE(holds(m[0].to, 11) && holds(m[1].to, 10));
}

}  // namespace
}  // namespace ringattn::test
