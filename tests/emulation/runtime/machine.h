// Operations, the order that they run in, and what streams, events, captures and graphs hold of them. Behind cuda_runtime.h and
// nccl.h; explained in emulation.h.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "checker.h"
#include "emulation.h"

namespace emulation {

struct Operation;
using OperationPtr = std::shared_ptr<Operation>;
using Lock = std::unique_lock<std::mutex>;
using Time = std::chrono::steady_clock::time_point;

// What ends not by itself but when others have come: NCCL's operations. Both are called with the machine's lock held.
struct Exchange {
  virtual ~Exchange() = default;
  virtual void posted(const OperationPtr& operation) = 0;  // when it is submitted
  virtual void begun(
      const OperationPtr& operation) = 0;  // when all before it is over; ends in Machine::complete, then or later
};

// What is submitted, once or by every launch of a graph.
struct Work {
  std::string name;
  int device = 0;
  Reach reach = Reach::kernel;
  std::vector<Access> accesses;
  std::function<void()> function;
  std::shared_ptr<Exchange> exchange;  // instead of a function
};

struct Operation {
  AuthorPtr author;
  std::function<void()> function;
  std::shared_ptr<Exchange> exchange;
  bool sound = true;  // its accesses may be carried out
  enum { waiting, ready, running, over } state = waiting;
  std::size_t unfinished = 0;  // of `before`
  std::vector<OperationPtr> before, after;
  Time not_before{};
  std::uint64_t visit = 0;  // of the search that has seen it last
};

// A sequence of captured work. A node comes after the nodes of lower number that it names.
struct Node {
  Work work;
  int stream = 0;  // number of the stream that it was captured from
  std::vector<std::size_t> before;
};
struct Capture {
  std::uint64_t id = 0;
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  bool over = false;
  std::vector<CUstream_st*> streams;
  std::vector<Node> nodes;
};
using CapturePtr = std::shared_ptr<Capture>;

// What a stream holds, or what an event recorded of it.
struct Tail {
  std::vector<OperationPtr> operations;  // what the next one comes after
  Clock clock;
  CapturePtr capture;  // if any, the next one becomes a node of it, after these
  std::vector<std::size_t> nodes;

  void add(const Tail& other);  // come after the operations of another, too
};

}  // namespace emulation

struct CUstream_st {
  int device = 0;
  int number = 0;
  int lane = 0;
  bool legacy = false;    // the device's null stream
  bool blocking = false;  // ordered with it
  emulation::Tail tail;
};
struct CUevent_st {
  int device = 0;
  const CUstream_st* recorder = nullptr;  // null before the first record
  emulation::Tail tail;
};
struct CUgraph_st {
  std::vector<emulation::Node> nodes;
};
struct CUgraphExec_st {
  std::vector<emulation::Node> nodes;
  std::map<int, int> lanes;  // of the streams that were captured
  emulation::Tail tail;      // the last launch
};

namespace emulation {

class Machine {
 public:
  explicit Machine(const Config& config);
  ~Machine();

  const Config config;
  const std::uint64_t number;  // of this machine, from 1
  const std::thread::id first_thread = std::this_thread::get_id();
  Memory memory;
  Clock host_before;  // what the thread that made the machine, and threads that are over, have synchronised with
  Clock& host();      // that, and what this thread has
  std::mt19937_64 random;

  // Objects by handle. Destroyed ones are kept until the machine goes, since their handles must stay different from new ones.
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::vector<std::unique_ptr<CUevent_st>> events;
  std::vector<std::unique_ptr<CUgraph_st>> graphs;
  std::vector<std::unique_ptr<CUgraphExec_st>> execs;
  std::vector<CUstream_st*> legacy;  // of each device
  std::set<const void*> live;
  std::vector<CapturePtr> captures;  // under way
  std::uint64_t last_capture = 0;

  int new_lane();
  CUstream_st* new_stream(int device, bool blocking);
  CUstream_st* stream_of(cudaStream_t handle);  // null if it is none

  // Why the null stream cannot be used, if it cannot: it would be ordered with a capturing stream, whose capture is then lost.
  cudaError_t implicit_capture(const CUstream_st& stream);
  // The same for a call that no capture would see and that is unsafe while the calling thread, or any, captures.
  cudaError_t unsafe_in_capture();
  // Submits work to all of `on`, as one operation; to a capture if they are capturing.
  cudaError_t submit(Lock& lock, const std::vector<CUstream_st*>& on, Work work);
  // Submits to a lane, after `tail`, which becomes the new operation.
  OperationPtr enqueue(int lane, int stream, Work work, Tail& tail);
  // Makes a blocking stream and the null stream of its device come after each other.
  void order_with_legacy(CUstream_st& stream);
  // After a submission, what the order drawn wants to run at once.
  void pace(Lock& lock);

  // Waits, running operations, until all are over; or runs a few, and says whether all are. The host then has synchronised.
  void wait(Lock& lock, const Tail& tail);
  bool poll(Lock& lock, const Tail& tail);
  void complete(const OperationPtr& operation);
  std::condition_variable changed;

  void report(Rule rule, const std::string& what);
  std::vector<Violation> violations;

  struct Failure {
    std::string function;  // empty: any
    int left = 0;
    int result = 0;
  };
  std::vector<Failure> failures;
  int injected(const char* function);  // 0, or what this call is to fail with

  std::vector<std::string> waits;
  std::map<std::string, int> waits_between;  // two streams
  std::string left_out_wait;
  bool leaves_out(const CUstream_st& stream, const CUevent_st& event);
  std::string place(const CUstream_st& stream) const;  // "stream 3 of device 0"

  std::shared_ptr<void> nccl;  // what nccl.cpp keeps

 private:
  OperationPtr choose(const std::vector<OperationPtr>* targets);
  void run(Lock& lock, const OperationPtr& operation);
  static bool all_over(const std::vector<OperationPtr>& operations);

  Order order_;
  int lanes_ = 0;
  std::vector<std::uint32_t> counts_;  // operations of each lane
  std::uint64_t submitted_ = 0, searches_ = 0, polls_ = 0;
  std::map<std::uint64_t, OperationPtr> unfinished_;  // by id
  std::vector<OperationPtr> ready_;
};

// The machine there is, and the lock for all of it.
std::mutex& machine_mutex();
Machine& machine();
void replace_machine(std::unique_ptr<Machine> next);

int current_device();                     // of the calling thread
cudaError_t remember(cudaError_t error);  // for cudaGetLastError

// A function of the API: body(lock, machine), unless a test wants it to fail.
template <class F>
cudaError_t call(const char* function, F&& body) {
  Lock lock(machine_mutex());
  Machine& m = machine();
  const int injected = m.injected(function);
  return remember(injected != 0 ? static_cast<cudaError_t>(injected) : body(lock, m));
}

}  // namespace emulation
