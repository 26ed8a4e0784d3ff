// An operation waits until all that it comes after is over, is ready until the order drawn picks it, runs, and is over. Picking
// happens when something is submitted (pace), waited for (wait) or asked for (poll), on the thread that does so.
//
// Invariant: all of this is under one lock, which is let go only while a kernel's function runs; so operations that nothing orders
// may run at the same time on two threads, and what one has written is seen by what comes after it on any other.
#include "machine.h"

#include <algorithm>
#include <ostream>
#include <utility>

namespace emulation {
namespace {

const char* const order_names[] = {"early", "late", "random"};

std::unique_ptr<Machine>& instance() {
  static std::unique_ptr<Machine> machine = std::make_unique<Machine>(Config{});
  return machine;
}

// What this thread has synchronised with, on which machine. When the thread is over, all others may have waited for it.
struct Synchronised {
  std::uint64_t machine = 0;
  Clock clock;

  Synchronised() = default;
  Synchronised(const Synchronised&) = delete;
  Synchronised& operator=(const Synchronised&) = delete;
  ~Synchronised() {
    const Lock lock(machine_mutex());
    if (machine == emulation::machine().number) join(emulation::machine().host_before, clock);
  }
};

std::uint64_t machines = 0;

}  // namespace

std::mutex& machine_mutex() {
  static std::mutex mutex;
  return mutex;
}
Machine& machine() { return *instance(); }
void replace_machine(std::unique_ptr<Machine> next) { instance() = std::move(next); }

Machine::Machine(const Config& configuration)
    : config(configuration),
      number(++machines),
      memory(config, [this](Rule rule, const std::string& what) { report(rule, what); }),
      random(config.seed) {
  order_ = config.order ? *config.order : static_cast<Order>(random() % 3);
  for (int device = 0; device < config.devices; ++device) {
    CUstream_st* const stream = new_stream(device, false);
    stream->legacy = true;
    legacy.push_back(stream);
  }
}

Machine::~Machine() {
  for (auto& [id, operation] : unfinished_) {  // what is linked in both directions would keep itself alive
    operation->before.clear();
    operation->after.clear();
    operation->exchange.reset();
  }
}

void Machine::report(Rule rule, const std::string& what) {
  if (violations.size() < 100)
    violations.push_back(
        {rule, what + " [seed " + std::to_string(config.seed) + ", " + order_names[static_cast<int>(order_)] + ']'});
}

int Machine::injected(const char* function) {
  int result = 0;
  for (Failure& failure : failures)
    if ((failure.function.empty() || failure.function == function) && failure.left > 0 && --failure.left == 0)
      result = failure.result;
  return result;
}

std::string Machine::place(const CUstream_st& stream) const {
  const auto number = std::count_if(streams.begin(), streams.begin() + stream.number,
                                    [&](const auto& other) { return other->device == stream.device; });
  return "stream " + std::to_string(number) + " of device " + std::to_string(stream.device);
}

bool Machine::leaves_out(const CUstream_st& stream, const CUevent_st& event) {
  if (event.recorder == nullptr) return false;
  const std::string streams = place(stream) + " for " + place(*event.recorder);
  const std::string wait = streams + ", wait " + std::to_string(++waits_between[streams]);
  waits.push_back(wait);
  return wait == left_out_wait;
}

// ---------------------------------------------------------------- streams

int Machine::new_lane() {
  counts_.push_back(0);
  return lanes_++;
}

CUstream_st* Machine::new_stream(int device, bool blocking) {
  auto stream = std::make_unique<CUstream_st>();
  stream->device = device;
  stream->number = static_cast<int>(streams.size());
  stream->lane = new_lane();
  stream->blocking = blocking;
  streams.push_back(std::move(stream));
  return streams.back().get();
}

void Tail::add(const Tail& other) {
  std::erase_if(operations, [](const OperationPtr& operation) { return operation->state == Operation::over; });
  for (const OperationPtr& operation : other.operations)
    if (operation->state != Operation::over &&
        std::find(operations.begin(), operations.end(), operation) == operations.end())
      operations.push_back(operation);
  join(clock, other.clock);
}

void Machine::order_with_legacy(CUstream_st& stream) {
  if (stream.blocking) stream.tail.add(legacy[static_cast<std::size_t>(stream.device)]->tail);
  if (stream.legacy)
    for (const auto& other : streams)
      if (other->blocking && other->device == stream.device) stream.tail.add(other->tail);
}

cudaError_t Machine::implicit_capture(const CUstream_st& stream) {
  cudaError_t error = cudaSuccess;
  if (stream.legacy)
    for (const CapturePtr& capture : captures)
      for (const CUstream_st* const captured : capture->streams)
        if (captured->blocking && captured->device == stream.device) {
          capture->invalid = true;
          error = cudaErrorStreamCaptureImplicit;
        }
  return error;
}

cudaError_t Machine::submit(Lock& lock, const std::vector<CUstream_st*>& on, Work work) {
  CUstream_st& first = *on.front();
  for (CUstream_st* const stream : on) {
    if (const cudaError_t error = implicit_capture(*stream)) return error;
    if (stream->tail.capture != first.tail.capture) return cudaErrorStreamCaptureIsolation;
  }

  if (const CapturePtr capture = first.tail.capture) {
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    Node node{std::move(work), first.number, {}};
    for (CUstream_st* const stream : on) {
      node.before.insert(node.before.end(), stream->tail.nodes.begin(), stream->tail.nodes.end());
      stream->tail.nodes = {capture->nodes.size()};
    }
    capture->nodes.push_back(std::move(node));
    return cudaSuccess;
  }

  Tail tail;
  for (CUstream_st* const stream : on) {
    order_with_legacy(*stream);
    tail.add(stream->tail);
  }
  enqueue(first.lane, first.number, std::move(work), tail);
  for (CUstream_st* const stream : on) stream->tail = tail;
  pace(lock);
  return cudaSuccess;
}

// ---------------------------------------------------------------- operations

Clock& Machine::host() {
  if (std::this_thread::get_id() == first_thread) return host_before;
  thread_local Synchronised synchronised;
  if (synchronised.machine != number) {
    synchronised.machine = number;
    synchronised.clock.clear();
  }
  join(synchronised.clock, host_before);
  return synchronised.clock;
}

OperationPtr Machine::enqueue(int lane, int stream, Work work, Tail& tail) {
  auto author = std::make_shared<Author>();
  author->name = std::move(work.name);
  author->id = ++submitted_;
  author->lane = lane;
  author->count = ++counts_[static_cast<std::size_t>(lane)];
  author->stream = stream;
  author->device = work.device;

  join(tail.clock, host());
  if (tail.clock.size() < counts_.size()) tail.clock.resize(counts_.size(), 0);
  tail.clock[static_cast<std::size_t>(lane)] = author->count;

  auto operation = std::make_shared<Operation>();
  operation->author = author;
  operation->sound = memory.check(author, work.reach, work.accesses, tail.clock, host_before);
  if (operation->sound) operation->function = std::move(work.function);
  operation->exchange = std::move(work.exchange);
  for (OperationPtr& before : tail.operations)
    if (before->state != Operation::over) {
      ++operation->unfinished;
      before->after.push_back(operation);
      operation->before.push_back(std::move(before));
    }
  unfinished_.emplace(author->id, operation);
  if (operation->unfinished == 0) {
    operation->state = Operation::ready;
    ready_.push_back(operation);
  }
  tail.operations = {operation};
  if (operation->exchange) operation->exchange->posted(operation);
  changed.notify_all();
  return operation;
}

void Machine::complete(const OperationPtr& operation) {
  operation->state = Operation::over;
  operation->function = nullptr;
  operation->exchange.reset();
  operation->before.clear();
  for (const OperationPtr& after : operation->after)
    if (--after->unfinished == 0) {
      after->state = Operation::ready;
      ready_.push_back(after);
    }
  operation->after.clear();
  unfinished_.erase(operation->author->id);
  changed.notify_all();
}

bool Machine::all_over(const std::vector<OperationPtr>& operations) {
  return std::all_of(operations.begin(), operations.end(),
                     [](const OperationPtr& operation) { return operation->state == Operation::over; });
}

// The operation to run next, or null; with targets and in late order preferably one that they wait for.
OperationPtr Machine::choose(const std::vector<OperationPtr>* targets) {
  const Time now = std::chrono::steady_clock::now();
  std::vector<OperationPtr> candidates;
  if (order_ == Order::late && targets != nullptr) {
    ++searches_;
    std::vector<OperationPtr> open = *targets;
    while (!open.empty()) {
      const OperationPtr operation = std::move(open.back());
      open.pop_back();
      if (operation->visit == searches_ || operation->state == Operation::over) continue;
      operation->visit = searches_;
      if (operation->state == Operation::ready && operation->not_before <= now) candidates.push_back(operation);
      open.insert(open.end(), operation->before.begin(), operation->before.end());
    }
  }
  if (candidates.empty())
    for (const OperationPtr& operation : ready_)
      if (operation->not_before <= now) candidates.push_back(operation);
  if (candidates.empty()) return nullptr;
  const auto by_id = [](const OperationPtr& a, const OperationPtr& b) { return a->author->id < b->author->id; };
  if (order_ == Order::early) return *std::min_element(candidates.begin(), candidates.end(), by_id);
  // As often the youngest as any: lets one stream run ahead of the others.
  if (random() % 2 == 0) return *std::max_element(candidates.begin(), candidates.end(), by_id);
  return candidates[random() % candidates.size()];
}

void Machine::run(Lock& lock, const OperationPtr& operation) {
  std::erase(ready_, operation);
  operation->state = Operation::running;
  if (operation->exchange) {
    const std::shared_ptr<Exchange> exchange = operation->exchange;
    return exchange->begun(operation);
  }
  if (operation->function) {
    const std::function<void()> function = std::move(operation->function);
    lock.unlock();
    function();
    lock.lock();
  }
  complete(operation);
}

void Machine::pace(Lock& lock) {
  while (order_ == Order::early || (order_ == Order::random && random() % 2 == 0)) {
    const OperationPtr next = choose(nullptr);
    if (next == nullptr) break;
    run(lock, next);
  }
}

void Machine::wait(Lock& lock, const Tail& tail) {
  const std::vector<OperationPtr> targets = tail.operations;
  const Clock clock = tail.clock;
  while (!all_over(targets)) {
    if (const OperationPtr next = choose(&targets)) {
      run(lock, next);
      continue;
    }
    Time until = Time::max();
    for (const OperationPtr& operation : ready_) until = std::min(until, operation->not_before);
    if (until == Time::max())
      changed.wait(lock);
    else
      changed.wait_until(lock, until);
  }
  join(host(), clock);
}

bool Machine::poll(Lock& lock, const Tail& tail) {
  const std::vector<OperationPtr> targets = tail.operations;
  const Clock clock = tail.clock;
  // Late is not never: every third time something moves.
  const bool moves = order_ == Order::early || (order_ == Order::random ? random() % 2 == 0 : ++polls_ % 3 == 0);
  if (moves && !all_over(targets))
    if (const OperationPtr next = choose(&targets)) run(lock, next);
  if (!all_over(targets)) return false;
  join(host(), clock);
  return true;
}

// ---------------------------------------------------------------- emulation.h

cudaError_t submit(cudaStream_t stream, const char* name, std::span<const Access> accesses,
                   std::function<void()> function) {
  return call(name, [&](Lock& lock, Machine& m) {
    CUstream_st* const on = m.stream_of(stream);
    if (on == nullptr || on->device != current_device()) return cudaErrorInvalidResourceHandle;
    return m.submit(lock, {on},
                    {name, on->device, Reach::kernel, {accesses.begin(), accesses.end()}, std::move(function), {}});
  });
}

void host_read(const void* data, std::size_t bytes) {
  const Lock lock(machine_mutex());
  machine().memory.check_host({data, bytes, false}, machine().host());
}
void host_write(void* data, std::size_t bytes) {
  const Lock lock(machine_mutex());
  machine().memory.check_host({data, bytes, true}, machine().host());
}

void reset(const Config& config) {
  const Lock lock(machine_mutex());
  replace_machine(std::make_unique<Machine>(config));
}

std::vector<Violation> violations() {
  const Lock lock(machine_mutex());
  return machine().violations;
}

void fail_call(const char* function, int n, int result) {
  const Lock lock(machine_mutex());
  machine().failures.push_back({function == nullptr ? "" : function, n, result});
}

int take_back_failures() {
  const Lock lock(machine_mutex());
  return static_cast<int>(
      std::erase_if(machine().failures, [](const Machine::Failure& failure) { return failure.left > 0; }));
}

void leave_out_wait(const std::string& wait) {
  const Lock lock(machine_mutex());
  machine().left_out_wait = wait;
}
std::vector<std::string> waits() {
  const Lock lock(machine_mutex());
  std::vector<std::string> waits = machine().waits;
  std::sort(waits.begin(), waits.end());
  return waits;
}

std::vector<std::string> live_objects() {
  const Lock lock(machine_mutex());
  Machine& m = machine();
  std::vector<std::string> lines;
  m.memory.describe(lines);
  auto others = static_cast<std::ptrdiff_t>(m.live.size());
  for (const auto& stream : m.streams)
    if (m.live.count(stream.get()) != 0) {
      lines.push_back("stream " + std::to_string(stream->number) + " of device " + std::to_string(stream->device));
      --others;
    }
  const auto count = [&](const auto& objects, const char* kind) {
    const auto n =
        std::count_if(objects.begin(), objects.end(), [&](const auto& o) { return m.live.count(o.get()) != 0; });
    if (n > 0) lines.push_back(std::to_string(n) + ' ' + kind);
    others -= n;
  };
  count(m.events, "events");
  count(m.graphs, "graphs");
  count(m.execs, "executable graphs");
  if (others > 0) lines.push_back(std::to_string(others) + " communicators");
  return lines;
}

const char* name(Rule rule) {
  switch (rule) {
    case Rule::unordered:
      return "unordered";
    case Rule::host_too_early:
      return "host_too_early";
    case Rule::uninitialised:
      return "uninitialised";
    case Rule::out_of_bounds:
      return "out_of_bounds";
    case Rule::not_allocated:
      return "not_allocated";
    case Rule::freed:
      return "freed";
    case Rule::freed_in_use:
      return "freed_in_use";
    case Rule::no_peer_access:
      return "no_peer_access";
    case Rule::size_mismatch:
      return "size_mismatch";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, const Violation& violation) {
  return out << name(violation.rule) << ": " << violation.what;
}

}  // namespace emulation
