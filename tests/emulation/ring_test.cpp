// The ring as the library runs it, in small: chunks go round in two buffers while each rank folds what it holds into its own
// result, and in the backward pass a chunk's gradients follow it and come home. Right in every order; and every wait is needed:
// leaving out any one of them is caught.
//
//   step t of rank r: hand on held[t % 2] to the next rank's held[(t + 1) % 2]      own stream, while computing
//                     fold held[t % 2] into out, and into the travelling grad[t % 2]
//                     hand on grad[t % 2]                                            backward only, also after the last step
#include <atomic>
#include <barrier>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "program.h"

namespace ringattn::test {
namespace {

enum class Transport { copies, nccl };
enum class Pass { forward, backward };

struct Rank {
  cudaStream_t compute, transfer,
      homeward;  // chunks, gradients: one stream with NCCL, whose calls are in one order anyway
  cudaEvent_t packed, folded[2], sent[2], returned[2], joined;  // of even and of odd steps
  Buffer source, held[2], grad[2], out, result;
  ncclComm_t comm = nullptr;
};

class Ring {
 public:
  Ring(int size, Transport transport, Pass pass, std::uint64_t seed, bool blocking = true, int removed = -1)
      : size_(size),
        transport_(transport),
        backward_(pass == Pass::backward),
        removed_(removed),
        ranks_(static_cast<std::size_t>(size)) {
    emulation::reset({.devices = size, .seed = seed});
    ncclUniqueId id{};
    if (transport == Transport::nccl) ok(ncclGetUniqueId(&id));
    for (int r = 0; r < size; ++r) {
      Rank& rank = at(r);
      rank.compute = make_stream(r);
      rank.transfer = make_stream(r);
      rank.homeward = transport == Transport::nccl ? rank.transfer : make_stream(r);
      rank.packed = make_event(r);
      rank.joined = make_event(r);
      for (int parity = 0; parity < 2; ++parity) {
        rank.folded[parity] = make_event(r);
        rank.sent[parity] = make_event(r);
        rank.returned[parity] = make_event(r);
        rank.held[parity] = make_buffer(r);
        rank.grad[parity] = make_buffer(r);
      }
      rank.source = make_buffer(r);
      rank.out = make_buffer(r);
      rank.result = make_buffer(r);
      set_source(r, 0);
    }
    if (transport == Transport::copies) return;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocking ? 1 : 0;
    ok(ncclGroupStart());
    for (int r = 0; r < size; ++r) {
      ok(cudaSetDevice(r));
      const ncclResult_t result = ncclCommInitRankConfig(&at(r).comm, size, id, r, &config);
      EXPECT_EQ(result, blocking ? ncclSuccess : ncclInProgress);
    }
    ok(ncclGroupEnd());
    for (int r = 0; r < size; ++r) settle(r);
  }

  int size() const { return size_; }
  int waits() const { return waits_; }
  const std::string& removed_wait() const { return removed_wait_; }
  Rank& at(int r) { return ranks_[static_cast<std::size_t>((r + size_) % size_)]; }

  // What a rank's chunk holds; another in each round.
  static std::uint32_t chunk(int r, int round) { return static_cast<std::uint32_t>(1000 * round + 7 * r + 3); }
  void set_source(int r, int round) {
    const std::vector<std::uint32_t> values(length, chunk(r, round));
    ok(cudaMemcpyAsync(at(r).source, values.data(), bytes, cudaMemcpyHostToDevice, at(r).compute));
  }

  // Submits the whole pass for some ranks of this thread; `meet` is called after every step where other threads have the others.
  template <class F>
  void submit(const std::vector<int>& ranks, F&& meet) {
    for (const int r : ranks) {
      Rank& rank = at(r);
      launch(rank.compute, "pack", {reads(rank.source), writes(rank.held[0])},
             [=] { std::copy_n(rank.source, length, rank.held[0]); });
      ok(cudaEventRecord(rank.packed, rank.compute));
    }
    meet();
    for (int t = 0; t < size_; ++t) {
      if (t + 1 < size_) hand_on(ranks, t);
      for (const int r : ranks) fold(r, t);
      if (backward_) hand_back(ranks, t);
      meet();
    }
    if (!backward_) return;
    for (const int r : ranks) {
      Rank& rank = at(r);
      wait(rank.compute, returned_to(r, size_), "the last sum, for its gradients");
      const Buffer from = rank.grad[size_ % 2];
      launch(rank.compute, "finish", {reads(from), writes(rank.result)},
             [=] { std::copy_n(from, length, rank.result); });
    }
  }
  void submit() {
    std::vector<int> all;
    for (int r = 0; r < size_; ++r) all.push_back(r);
    submit(all, [] {});
  }

  bool is_right(int round = 0) {
    for (int r = 0; r < size_; ++r) ok(cudaStreamSynchronize(at(r).compute));
    bool right = true;
    for (int r = 0; r < size_; ++r) {
      std::uint32_t out = 0, gradient = 0;
      for (int t = 0; t < size_; ++t) out = out * 31 + chunk((r - t + size_) % size_, round);
      for (int t = 0; t < size_; ++t)
        gradient = gradient * 17 + chunk(r, round) + static_cast<std::uint32_t>((r + t) % size_) + 1;
      right = right && holds(at(r).out, out) && (!backward_ || holds(at(r).result, gradient));
    }
    return right;
  }

  // All transfers have been waited for by a fold, so nothing is in use any more.
  void release() {
    for (Rank& rank : ranks_) {
      for (const Buffer b :
           {rank.source, rank.held[0], rank.held[1], rank.grad[0], rank.grad[1], rank.out, rank.result})
        ok(cudaFree(b));
      for (const cudaEvent_t e : {rank.packed, rank.joined, rank.folded[0], rank.folded[1], rank.sent[0], rank.sent[1],
                                  rank.returned[0], rank.returned[1]})
        ok(cudaEventDestroy(e));
      ok(cudaStreamDestroy(rank.compute));
      ok(cudaStreamDestroy(rank.transfer));
      if (rank.homeward != rank.transfer) ok(cudaStreamDestroy(rank.homeward));
      if (rank.comm != nullptr) ok(ncclCommDestroy(rank.comm));
    }
    EXPECT_EQ(emulation::live_objects(), std::vector<std::string>{});
  }

 private:
  // Every event wait of the pass. `why`: who waits, for what.
  void wait(cudaStream_t stream, cudaEvent_t event, const char* why) {
    if (waits_++ == removed_) {
      removed_wait_ = why;
      return;
    }
    ok(cudaStreamWaitEvent(stream, event));
  }

  // What brought rank r the chunk, or the gradients, that it has at step t.
  cudaEvent_t brought_to(int r, int t) { return at(transport_ == Transport::nccl ? r : r - 1).sent[(t - 1) % 2]; }
  cudaEvent_t returned_to(int r, int t) { return at(transport_ == Transport::nccl ? r : r - 1).returned[(t - 1) % 2]; }

  void hand_on(const std::vector<int>& ranks, int t) {
    for (const int r : ranks) {
      Rank& rank = at(r);
      if (t == 0) wait(rank.transfer, rank.packed, "a chunk's sending, for its packing");
      if (t == 0) continue;
      if (transport_ == Transport::copies) {
        wait(rank.transfer, brought_to(r, t), "a chunk's sending on, for its arrival");
        wait(rank.transfer, at(r + 1).folded[(t - 1) % 2], "a chunk's sending, for the next rank's use of the buffer");
        wait(rank.transfer, at(r + 1).sent[(t - 1) % 2],
             "a chunk's sending, for the next rank's sending from the buffer");
      } else if (!backward_) {  // else the gradients of the last step, which go first, have waited
        wait(rank.transfer, rank.folded[(t - 1) % 2], "a chunk's arrival, for the use of the buffer");
      }
    }
    exchange(ranks, t, &Rank::held, &Rank::transfer, &Rank::sent);
  }

  void fold(int r, int t) {
    Rank& rank = at(r);
    // NCCL's gradients come behind the chunks, in the same stream.
    if (t > 0 && !(transport_ == Transport::nccl && backward_))
      wait(rank.compute, brought_to(r, t), "a fold, for its chunk");
    if (t > 0 && backward_) wait(rank.compute, returned_to(r, t), "a fold, for its chunk's gradients");
    const Buffer held = rank.held[t % 2], grad = rank.grad[t % 2], out = rank.out;
    std::vector<Access> accesses = {reads(held), writes(out)};
    if (t > 0) accesses.push_back(reads(out));
    if (backward_) accesses.push_back(writes(grad));
    if (backward_ && t > 0) accesses.push_back(reads(grad));
    ok(cudaSetDevice(r));
    ok(emulation::submit(rank.compute, "fold", accesses, [=, this] {
      for (std::size_t i = 0; i < length; ++i) {
        out[i] = (t == 0 ? 0 : out[i] * 31) + held[i];
        if (backward_) grad[i] = (t == 0 ? 0 : grad[i] * 17) + held[i] + static_cast<std::uint32_t>(r) + 1;
      }
    }));
    ok(cudaEventRecord(rank.folded[t % 2], rank.compute));
  }

  void hand_back(const std::vector<int>& ranks, int t) {
    for (const int r : ranks) {
      wait(at(r).homeward, at(r).folded[t % 2], "the gradients' sending, for the fold");
      if (t > 0 && transport_ == Transport::copies && size_ > 2)  // of two ranks, the fold has waited for it
        wait(at(r).homeward, at(r + 1).returned[(t - 1) % 2],
             "the gradients' sending, for the next rank's sending from the buffer");
    }
    exchange(ranks, t, &Rank::grad, &Rank::homeward, &Rank::returned);
  }

  // Sends the buffer of this step to the next rank's of the next step, and records the event.
  void exchange(const std::vector<int>& ranks, int t, Buffer (Rank::*buffer)[2], cudaStream_t Rank::*stream,
                cudaEvent_t (Rank::*event)[2]) {
    if (transport_ == Transport::nccl) ok(ncclGroupStart());
    for (const int r : ranks) {
      const Buffer from = (at(r).*buffer)[t % 2];
      if (transport_ == Transport::copies) {
        ok(cudaMemcpyPeerAsync((at(r + 1).*buffer)[(t + 1) % 2], (r + 1) % size_, from, r, bytes, at(r).*stream));
      } else {
        ok(ncclSend(from, length, ncclUint32, (r + 1) % size_, at(r).comm, at(r).*stream));
        ok(ncclRecv((at(r).*buffer)[(t + 1) % 2], length, ncclUint32, (r + size_ - 1) % size_, at(r).comm,
                    at(r).*stream));
      }
    }
    if (transport_ == Transport::nccl) {
      const ncclResult_t result = ncclGroupEnd();
      EXPECT_TRUE(result == ncclSuccess || result == ncclInProgress);
      for (const int r : ranks) settle(r);
    }
    for (const int r : ranks) ok(cudaEventRecord((at(r).*event)[t % 2], at(r).*stream));
  }

  void settle(int r) {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) ok(ncclCommGetAsyncError(at(r).comm, &state));
    ok(state);
  }

  const int size_;
  const Transport transport_;
  const bool backward_;
  const int removed_;
  std::atomic<int> waits_ = 0;  // of all ranks
  std::string removed_wait_;
  std::vector<Rank> ranks_;
};

// A pass on a thread for each rank.
void submit_on_threads(Ring& ring, const std::function<void(int, const std::function<void()>&)>& body) {
  std::barrier together(ring.size());
  std::vector<std::thread> threads;
  for (int r = 0; r < ring.size(); ++r) threads.emplace_back([&, r] { body(r, [&] { together.arrive_and_wait(); }); });
  for (std::thread& thread : threads) thread.join();
}

struct Case {
  Transport transport;
  Pass pass;
  int size;
};
class RingTest : public ::testing::TestWithParam<Case> {};
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.transport == Transport::nccl ? "nccl" : "copies") +
         (info.param.pass == Pass::forward ? "_forward_" : "_backward_") + std::to_string(info.param.size);
}
std::vector<Case> cases(const std::vector<int>& sizes) {
  std::vector<Case> all;
  for (const Transport transport : {Transport::copies, Transport::nccl})
    for (const Pass pass : {Pass::forward, Pass::backward})
      for (const int size : sizes) all.push_back({transport, pass, size});
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, RingTest, ::testing::ValuesIn(cases({2, 3, 4, 8})), name_of);
class RingWaitsTest : public RingTest {};
INSTANTIATE_TEST_SUITE_P(All, RingWaitsTest, ::testing::ValuesIn(cases({2, 3, 4})), name_of);

TEST_P(RingTest, IsRightInEveryOrder) {
  const auto [transport, pass, size] = GetParam();
  const std::uint64_t first = seed();
  for (int n = 0; n < sample(1000); ++n) {
    Ring ring(size, transport, pass, first + static_cast<std::uint64_t>(n));
    ring.submit();
    ASSERT_TRUE(ring.is_right()) << "seed " << first + static_cast<std::uint64_t>(n);
    ring.release();
    expect_no_violations();
    if (HasFailure()) return;
  }
}

// Ranks are threads; with NCCL their communicators do not block.
TEST_P(RingTest, IsRightOnThreads) {
  const auto [transport, pass, size] = GetParam();
  const std::uint64_t first = seed();
  for (int n = 0; n < sample(50); ++n) {
    Ring ring(size, transport, pass, first + static_cast<std::uint64_t>(n), false);
    submit_on_threads(ring, [&](int r, const std::function<void()>& meet) {
      ring.submit({r}, [&] {
        if (GetParam().transport == Transport::copies) meet();
      });
      ok(cudaStreamSynchronize(ring.at(r).compute));
    });
    ASSERT_TRUE(ring.is_right()) << "seed " << first + static_cast<std::uint64_t>(n);
    expect_no_violations();
    if (HasFailure()) return;
  }
}

// Leaves out each wait in turn. The table says how many waits of a kind there are, that each was caught when the program was
// submitted, and in how many orders the result alone would have shown it.
TEST_P(RingWaitsTest, AreAllNeeded) {
  const auto [transport, pass, size] = GetParam();
  const std::uint64_t first = seed();
  Ring whole(size, transport, pass, first);
  whole.submit();
  struct Kind {
    int waits = 0, caught = 0, runs = 0, wrong = 0;
    std::string example;
  };
  std::map<std::string, Kind> kinds;
  const int seeds = sample(10);
  for (int removed = 0; removed < whole.waits(); ++removed) {
    bool always = true;
    std::string wait;
    for (int n = 0; n < seeds; ++n) {
      Ring ring(size, transport, pass, first + static_cast<std::uint64_t>(n), true, removed);
      ring.submit();
      wait = ring.removed_wait();
      Kind& kind = kinds[wait];
      const auto found = emulation::violations();
      const bool caught = !found.empty() && found[0].rule == Rule::unordered;
      EXPECT_TRUE(caught) << "nothing noticed that this does not wait: " << wait;
      always = always && caught;
      if (caught && kind.example.empty()) kind.example = found[0].what;
      kind.runs += 1;
      kind.wrong += ring.is_right() ? 0 : 1;
    }
    kinds[wait].waits += 1;
    kinds[wait].caught += always ? 1 : 0;
  }
  for (const auto& [wait, kind] : kinds) {
    std::cout << "without the wait of " << wait << ": " << kind.caught << " of " << kind.waits
              << " caught at submission with each of " << seeds << " seeds; wrong results in " << kind.wrong << " of "
              << kind.runs << " runs\n    " << kind.example << '\n';
    EXPECT_EQ(kind.caught, kind.waits);
  }
}

// Captured once, launched three times. Copies take one capture that spans all ranks, since waiting for an event of another
// capture is not allowed; with NCCL each rank captures for itself.
TEST_P(RingTest, IsRightAsAGraph) {
  const auto [transport, pass, size] = GetParam();
  const std::uint64_t first = seed();
  for (int n = 0; n < sample(50); ++n) {
    Ring ring(size, transport, pass, first + static_cast<std::uint64_t>(n), n % 2 == 0);
    std::vector<cudaGraphExec_t> execs(static_cast<std::size_t>(size));
    const auto instantiate = [&](int r) {
      cudaGraph_t graph = nullptr;
      ok(cudaStreamEndCapture(ring.at(r).compute, &graph));
      ok(cudaGraphInstantiate(&execs[static_cast<std::size_t>(r)], graph));
      ok(cudaGraphDestroy(graph));
    };
    const cudaStream_t origin = ring.at(0).compute;
    if (transport == Transport::nccl) {
      submit_on_threads(ring, [&](int r, const std::function<void()>&) {
        ok(cudaStreamBeginCapture(ring.at(r).compute, cudaStreamCaptureModeThreadLocal));
        ring.submit({r}, [] {});
        instantiate(r);
      });
    } else {
      ok(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
      ok(cudaEventRecord(ring.at(0).joined, origin));
      for (int r = 1; r < size; ++r) ok(cudaStreamWaitEvent(ring.at(r).compute, ring.at(0).joined));
      ring.submit();
      for (int r = 1; r < size; ++r) order(ring.at(r).compute, origin, ring.at(r).joined);
      instantiate(0);
    }
    for (int round = 0; round < 3; ++round) {
      for (int r = 0; r < size; ++r) {
        ring.set_source(r, round);
        if (transport == Transport::copies) {
          ok(cudaStreamSynchronize(ring.at(r).compute));
        } else {
          ok(cudaGraphLaunch(execs[static_cast<std::size_t>(r)], ring.at(r).compute));
        }
      }
      if (transport == Transport::copies) {
        ok(cudaGraphLaunch(execs[0], origin));
        ok(cudaStreamSynchronize(origin));
      }
      ASSERT_TRUE(ring.is_right(round)) << "launch " << round << ", seed " << first + static_cast<std::uint64_t>(n);
    }
    expect_no_violations();
    if (HasFailure()) return;
  }
}

TEST(RingGraph, IsCheckedByEveryLaunch) {
  for (int removed = 0; removed < 20; ++removed) {
    Ring ring(3, Transport::copies, Pass::backward, 1, true, removed);
    const cudaStream_t origin = ring.at(0).compute;
    ok(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
    ok(cudaEventRecord(ring.at(0).joined, origin));
    // So that the capture is whole without the wait, too.
    for (int r = 0; r < 3; ++r)
      for (const cudaStream_t stream : {ring.at(r).compute, ring.at(r).transfer, ring.at(r).homeward})
        ok(cudaStreamWaitEvent(stream, ring.at(0).joined));
    ring.submit();
    for (int r = 0; r < 3; ++r)
      for (const cudaStream_t stream : {ring.at(r).compute, ring.at(r).transfer, ring.at(r).homeward})
        order(stream, origin, ring.at(r).joined);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ok(cudaStreamEndCapture(origin, &graph));
    ok(cudaGraphInstantiate(&exec, graph));
    expect_no_violations("captured, not launched");
    for (std::size_t launches = 1; launches <= 2; ++launches) {
      ok(cudaGraphLaunch(exec, origin));
      ok(cudaStreamSynchronize(origin));
      ASSERT_GE(emulation::violations().size(), launches) << "without the wait of " << ring.removed_wait();
    }
  }
}

}  // namespace
}  // namespace ringattn::test
