// NCCL between emulated devices.
//
// A *batch* is what one group, or one call outside of any, asks of a communicator; it is one operation, on all the streams that
// its calls name. When it is submitted each of its transfers is paired, first with first, with one of the peer that goes the
// other way. A transfer happens when the batches on both its sides have begun, and a batch is over when all its transfers have
// happened: so calls of a group progress together, and calls outside of one wait for each other as the streams have them.
//
// Non-blocking communicators: a call that starts something returns ncclInProgress, and is submitted, or has joined, only when
// ncclCommGetAsyncError has been asked some more times, drawn from the seed, and says ncclSuccess; until then any other use of
// the communicator is an ncclInvalidArgument. An event recorded too early is so found by the checker.
#include "nccl.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <optional>
#include <tuple>
#include <utility>

#include "machine.h"

using namespace emulation;

namespace {

struct Transfer {
  ncclComm* comm = nullptr;
  OperationPtr operation;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool sends = false;
  bool begun = false;
  bool over = false;
  std::weak_ptr<Transfer> other;  // gone where its rank has aborted
};
using TransferPtr = std::shared_ptr<Transfer>;

struct ById {
  bool operator()(const OperationPtr& a, const OperationPtr& b) const { return a->author->id < b->author->id; }
};

// One direction between two ranks, of calls by pair or of collectives.
struct Channel {
  std::deque<TransferPtr> sends, receives;  // of which one at least is empty
};

// The communicators of one id.
struct Clique {
  std::vector<ncclComm*> members;  // by rank; null before it joins
  int joined = 0;
  int finalized = 0;
  std::map<std::tuple<int, int, bool>, Channel> channels;  // from, to, collective
};

struct Call {
  bool collective = false;
  bool sends = false;
  int peer = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};
struct Batch {
  std::string name;
  std::vector<Call> calls;
  std::vector<Access> accesses;
  std::vector<CUstream_st*> streams;
  std::vector<std::pair<std::byte*, std::pair<const std::byte*, std::size_t>>>
      own;  // to <- from, bytes: a rank's own share
};

}  // namespace

struct ncclComm : std::enable_shared_from_this<ncclComm> {
  int rank = 0;
  int num_ranks = 0;
  int device = 0;
  bool blocking = true;
  std::shared_ptr<Clique> clique;
  ncclResult_t state = ncclSuccess;  // what ncclCommGetAsyncError says
  int polls = 0;                     // as often it still says ncclInProgress
  bool joining = false;
  bool finalizing = false;
  bool aborted = false;
  std::optional<Batch> deferred;  // started, and not submitted yet
  std::string last_error = "";
  std::map<OperationPtr, std::vector<TransferPtr>, ById> open;
};

namespace {

struct Nccl {
  std::vector<std::shared_ptr<ncclComm>> comms;  // also those that are gone
  std::map<std::string, std::shared_ptr<Clique>> cliques;
  std::uint64_t last_id = 0;
  std::set<int> lost;
  std::map<int, std::chrono::milliseconds> delays;
  struct AsyncFailure {
    int rank, left, result;
  };
  std::vector<AsyncFailure> async_failures;
};

Nccl& nccl(Machine& m) {
  if (m.nccl == nullptr) m.nccl = std::make_shared<Nccl>();
  return *static_cast<Nccl*>(m.nccl.get());
}

// The group that the calling thread has open.
struct Group {
  int depth = 0;
  ncclResult_t error = ncclSuccess;
  std::vector<std::pair<ncclComm*, Batch>> batches;
  std::vector<ncclComm*> joining;
};
thread_local Group group;

ncclComm* find(Machine& m, ncclComm_t handle) { return m.live.count(handle) != 0 ? handle : nullptr; }

ncclResult_t fail(ncclComm& comm, ncclResult_t result, std::string text) {
  comm.last_error = std::move(text);
  return result;
}

void transfer(Machine& m, Transfer& send, Transfer& receive) {
  if (send.bytes != receive.bytes)
    m.report(Rule::size_mismatch, send.operation->author->label() + " sends " + std::to_string(send.bytes) +
                                      " bytes to " + receive.operation->author->label() + ", which receives " +
                                      std::to_string(receive.bytes));
  if (send.operation->sound && receive.operation->sound)
    std::memcpy(receive.data, send.data, std::min(send.bytes, receive.bytes));
  for (Transfer* const side : {&send, &receive}) {
    side->over = true;
    auto& open = side->comm->open;
    const auto entry = open.find(side->operation);
    if (entry == open.end() ||
        !std::all_of(entry->second.begin(), entry->second.end(), [](const TransferPtr& t) { return t->over; }))
      continue;
    const OperationPtr operation = entry->first;
    open.erase(entry);
    m.complete(operation);
  }
}

// A batch as an operation, once or by every launch of a graph.
struct BatchExchange final : Exchange {
  std::shared_ptr<ncclComm> comm;
  Batch batch;

  void posted(const OperationPtr& operation) override {
    Machine& m = machine();
    Nccl& state = nccl(m);
    if (const auto delay = state.delays.find(comm->rank); delay != state.delays.end())
      operation->not_before = std::chrono::steady_clock::now() + delay->second;
    for (auto& failure : state.async_failures)
      if (failure.rank == comm->rank && failure.left > 0 && --failure.left == 0) {
        comm->state = static_cast<ncclResult_t>(failure.result);
        comm->last_error = "an asynchronous error of " + operation->author->label();
      }
    std::vector<TransferPtr>& transfers = comm->open[operation];
    for (const Call& call : batch.calls) {
      auto transfer = std::make_shared<Transfer>();
      transfer->comm = comm.get();
      transfer->operation = operation;
      transfer->data = call.data;
      transfer->bytes = call.bytes;
      transfer->sends = call.sends;
      const int from = call.sends ? comm->rank : call.peer, to = call.sends ? call.peer : comm->rank;
      Channel& channel = comm->clique->channels[{from, to, call.collective}];
      auto& others = call.sends ? channel.receives : channel.sends;
      if (others.empty()) {
        (call.sends ? channel.sends : channel.receives).push_back(transfer);
      } else {
        transfer->other = others.front();
        others.front()->other = transfer;
        others.pop_front();
      }
      transfers.push_back(std::move(transfer));
    }
  }

  void begun(const OperationPtr& operation) override {
    Machine& m = machine();
    if (comm->aborted) {
      comm->open.erase(operation);
      return m.complete(operation);
    }
    // Lost or failed, it stays begun for ever.
    if (nccl(m).lost.count(comm->rank) != 0 || (comm->state != ncclSuccess && comm->state != ncclInProgress)) return;
    if (operation->sound)
      for (const auto& [to, from] : batch.own)
        if (to != from.first) std::memcpy(to, from.first, from.second);
    const std::vector<TransferPtr> transfers = comm->open[operation];
    if (transfers.empty()) {
      comm->open.erase(operation);
      return m.complete(operation);
    }
    for (const TransferPtr& t : transfers) t->begun = true;
    for (const TransferPtr& t : transfers)
      if (const TransferPtr other = t->other.lock(); !t->over && other != nullptr && other->begun)
        transfer(m, t->sends ? *t : *other, t->sends ? *other : *t);
  }
};

ncclResult_t submit(Lock& lock, Machine& m, ncclComm& comm, Batch batch) {
  auto exchange = std::make_shared<BatchExchange>();
  exchange->comm = comm.shared_from_this();
  const std::vector<CUstream_st*> streams = batch.streams;
  Work work{batch.name, comm.device, Reach::kernel, batch.accesses, {}, {}};
  exchange->batch = std::move(batch);
  work.exchange = std::move(exchange);
  const cudaError_t error = m.submit(lock, streams, std::move(work));
  if (error == cudaSuccess) return ncclSuccess;
  return fail(comm, ncclUnhandledCudaError, std::string("Cuda failure '") + cudaGetErrorString(error) + '\'');
}

// Starts a batch: at once, or later for a non-blocking communicator.
ncclResult_t start(Lock& lock, Machine& m, ncclComm& comm, Batch batch) {
  if (comm.blocking) return submit(lock, m, comm, std::move(batch));
  comm.deferred = std::move(batch);
  comm.polls = static_cast<int>(m.random() % 4);
  return comm.state = ncclInProgress;
}

// Whether all have joined; then it is known whether they may.
bool is_joined(ncclComm& comm) {
  const Clique& clique = *comm.clique;
  if (clique.joined < comm.num_ranks) return false;
  for (const ncclComm* const member : clique.members)
    if (nccl(machine()).lost.count(member->rank) != 0) return false;
  for (const ncclComm* const other : clique.members)
    if (other != &comm && other->device == comm.device) {
      comm.state = fail(comm, ncclInvalidUsage,
                        "Duplicate GPU detected : rank " + std::to_string(comm.rank) + " and rank " +
                            std::to_string(other->rank) + " both on CUDA device " + std::to_string(comm.device));
      break;
    }
  return true;
}

bool is_quiet(Lock& lock, Machine& m, ncclComm& comm) {
  Tail tail;
  for (const auto& [operation, transfers] : comm.open) tail.operations.push_back(operation);
  return m.poll(lock, tail) && comm.open.empty();
}

// What goes on in the background of a non-blocking communicator.
void advance(Lock& lock, Machine& m, ncclComm& comm) {
  if (comm.state != ncclInProgress) return;
  if (comm.joining) {
    if (!is_joined(comm)) return;
    if (comm.state != ncclInProgress) {  // refused
      comm.joining = false;
      return;
    }
  }
  if (comm.polls-- > 0) return;
  if (comm.deferred) {
    Batch batch = std::move(*comm.deferred);
    comm.deferred.reset();
    const ncclResult_t result = submit(lock, m, comm, std::move(batch));
    if (comm.state == ncclInProgress) comm.state = result;
    return;
  }
  if (comm.finalizing && (!is_quiet(lock, m, comm) || comm.clique->finalized < comm.num_ranks)) return;
  comm.joining = false;
  comm.state = ncclSuccess;
}

// A communicator that may be used now.
ncclResult_t check_ready(ncclComm* comm) {
  if (comm == nullptr) return ncclInvalidArgument;
  if (comm->state == ncclInProgress)
    return fail(*comm, ncclInvalidArgument,
                "Attempt to use communicator before the previous operation returned ncclSuccess");
  return comm->state;
}

// A function of the API: body(lock, machine), unless a test wants it to fail.
template <class F>
ncclResult_t nccl_call(const char* function, F&& body) {
  Lock lock(machine_mutex());
  Machine& m = machine();
  const int injected = m.injected(function);
  return injected != 0 ? static_cast<ncclResult_t>(injected) : body(lock, m);
}

std::size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    case ncclNumTypes:
      break;
  }
  return 0;
}

// Adds calls to the open group, or starts them as a batch of their own.
ncclResult_t add(const char* function, ncclComm_t handle, cudaStream_t on, const std::string& name,
                 const std::function<ncclResult_t(ncclComm&, Batch&)>& fill) {
  const ncclResult_t result = nccl_call(function, [&](Lock& lock, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (const ncclResult_t error = check_ready(comm)) return error;
    CUstream_st* const stream = m.stream_of(on);
    if (stream == nullptr || stream->device != comm->device)
      return fail(*comm, ncclUnhandledCudaError, "Cuda failure 'invalid resource handle'");
    Batch alone;
    Batch* batch = &alone;
    if (group.depth > 0) {
      auto entry =
          std::find_if(group.batches.begin(), group.batches.end(), [&](const auto& b) { return b.first == comm; });
      if (entry == group.batches.end()) entry = group.batches.insert(entry, {comm, Batch{}});
      batch = &entry->second;
    }
    if (const ncclResult_t error = fill(*comm, *batch)) return error;
    batch->name += (batch->name.empty() ? "" : " + ") + name;
    if (std::count(batch->streams.begin(), batch->streams.end(), stream) == 0) batch->streams.push_back(stream);
    return group.depth > 0 ? ncclSuccess : start(lock, m, *comm, std::move(alone));
  });
  if (group.depth > 0 && result != ncclSuccess) group.error = result;
  return result;
}

void add_transfer(Batch& batch, Call call) {
  if (call.bytes > 0) batch.accesses.push_back({call.data, call.bytes, !call.sends});
  batch.calls.push_back(call);
}

ncclResult_t leave(Machine& m, ncclComm& comm) {
  m.live.erase(&comm);
  return ncclSuccess;
}

}  // namespace

namespace emulation {

void lose_rank(int rank) {
  const Lock lock(machine_mutex());
  nccl(machine()).lost.insert(rank);
}
void delay_rank(int rank, int milliseconds) {
  const Lock lock(machine_mutex());
  nccl(machine()).delays[rank] = std::chrono::milliseconds(milliseconds);
}
void fail_async(int rank, int n, int result) {
  const Lock lock(machine_mutex());
  nccl(machine()).async_failures.push_back({rank, n, result});
}

}  // namespace emulation

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  return nccl_call("ncclGetVersion", [&](Lock&, Machine&) {
    if (version == nullptr) return ncclInvalidArgument;
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
  });
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return nccl_call("ncclGetUniqueId", [&](Lock&, Machine& m) {
    if (id == nullptr) return ncclInvalidArgument;
    *id = {};
    std::snprintf(id->internal, sizeof id->internal, "emulated-%llu",
                  static_cast<unsigned long long>(++nccl(m).last_id));
    return ncclSuccess;
  });
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    case ncclNumResults:
      break;
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t handle) {
  const Lock lock(machine_mutex());
  const ncclComm* const comm = find(machine(), handle);
  return comm == nullptr ? "" : comm->last_error.c_str();
}

// ---------------------------------------------------------------- communicators

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int num_ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, num_ranks, id, rank, nullptr);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int num_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  return nccl_call("ncclCommInitRankConfig", [&](Lock& lock, Machine& m) {
    if (handle == nullptr || num_ranks < 1 || rank < 0 || rank >= num_ranks) return ncclInvalidArgument;
    if (config != nullptr && config->magic != NCCL_API_MAGIC) return ncclInvalidArgument;
    const std::string text(id.internal, strnlen(id.internal, sizeof id.internal));
    if (text.empty()) return ncclInvalidArgument;
    if (m.config.devices == 0) return ncclUnhandledCudaError;
    std::shared_ptr<Clique>& clique = nccl(m).cliques[text + '/' + std::to_string(num_ranks)];
    if (clique == nullptr) {
      clique = std::make_shared<Clique>();
      clique->members.resize(static_cast<std::size_t>(num_ranks));
    }
    if (clique->members[static_cast<std::size_t>(rank)] != nullptr) return ncclInvalidUsage;
    nccl(m).comms.push_back(std::make_shared<ncclComm>());
    ncclComm* const comm = *handle = nccl(m).comms.back().get();
    comm->rank = rank;
    comm->num_ranks = num_ranks;
    comm->device = current_device();
    comm->blocking = config == nullptr || config->blocking != 0;
    comm->clique = clique;
    comm->joining = true;
    comm->state = ncclInProgress;
    comm->polls = comm->blocking ? 0 : static_cast<int>(m.random() % 4);
    m.live.insert(comm);
    clique->members[static_cast<std::size_t>(rank)] = comm;
    ++clique->joined;
    m.changed.notify_all();
    if (!comm->blocking) return ncclInProgress;
    if (group.depth > 0) {
      group.joining.push_back(comm);
      return ncclSuccess;
    }
    while (comm->state == ncclInProgress && !comm->aborted) {
      advance(lock, m, *comm);
      if (comm->state == ncclInProgress) m.changed.wait(lock);
    }
    return comm->state;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* result) {
  return nccl_call("ncclCommGetAsyncError", [&](Lock& lock, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (comm == nullptr || result == nullptr) return ncclInvalidArgument;
    advance(lock, m, *comm);
    *result = comm->state;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  return nccl_call("ncclCommFinalize", [&](Lock& lock, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (const ncclResult_t error = check_ready(comm)) return error;
    if (comm->finalizing) return ncclInvalidUsage;
    comm->finalizing = true;
    ++comm->clique->finalized;
    comm->state = ncclInProgress;
    comm->polls = 0;
    m.changed.notify_all();
    if (!comm->blocking) return ncclInProgress;
    while (comm->state == ncclInProgress && !comm->aborted) {
      advance(lock, m, *comm);
      if (comm->state == ncclInProgress) m.changed.wait_for(lock, std::chrono::milliseconds(1));
    }
    return comm->state;
  });
}

// Waits for what the communicator has under way, and so for ever if a peer does not come.
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  return nccl_call("ncclCommDestroy", [&](Lock& lock, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (comm == nullptr) return ncclInvalidArgument;
    while (comm->deferred) advance(lock, m, *comm);
    Tail tail;
    for (const auto& [operation, transfers] : comm->open) tail.operations.push_back(operation);
    m.wait(lock, tail);
    return leave(m, *comm);
  });
}

// Its operations end without having done anything, what they were to receive is poisoned; those of its peers never end.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  return nccl_call("ncclCommAbort", [&](Lock&, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (comm == nullptr) return ncclInvalidArgument;
    comm->aborted = true;
    comm->deferred.reset();
    std::vector<OperationPtr> begun;
    for (const auto& [operation, transfers] : comm->open) {
      for (const TransferPtr& transfer : transfers) {
        if (!transfer->over && !transfer->sends && operation->sound && operation->state == Operation::running)
          std::memset(transfer->data, 0xff, transfer->bytes);
        transfer->begun = false;
      }
      if (operation->state == Operation::running) begun.push_back(operation);
    }
    for (const OperationPtr& operation : begun) {
      comm->open.erase(operation);
      m.complete(operation);
    }
    m.changed.notify_all();
    return leave(m, *comm);
  });
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  return nccl_call("ncclCommCount", [&](Lock&, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (const ncclResult_t error = check_ready(comm)) return error;
    *count = comm->num_ranks;
    return ncclSuccess;
  });
}
ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  return nccl_call("ncclCommCuDevice", [&](Lock&, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (const ncclResult_t error = check_ready(comm)) return error;
    *device = comm->device;
    return ncclSuccess;
  });
}
ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  return nccl_call("ncclCommUserRank", [&](Lock&, Machine& m) {
    ncclComm* const comm = find(m, handle);
    if (const ncclResult_t error = check_ready(comm)) return error;
    *rank = comm->rank;
    return ncclSuccess;
  });
}

// ---------------------------------------------------------------- transfers

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add("ncclSend", comm, stream, "ncclSend to " + std::to_string(peer), [&](ncclComm& c, Batch& batch) {
    if (peer < 0 || peer >= c.num_ranks || size_of(type) == 0)
      return fail(c, ncclInvalidArgument, "invalid peer or type");
    auto* const bytes = const_cast<std::byte*>(static_cast<const std::byte*>(data));
    add_transfer(batch, {false, true, peer, bytes, count * size_of(type)});
    return ncclSuccess;
  });
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return add("ncclRecv", comm, stream, "ncclRecv from " + std::to_string(peer), [&](ncclComm& c, Batch& batch) {
    if (peer < 0 || peer >= c.num_ranks || size_of(type) == 0)
      return fail(c, ncclInvalidArgument, "invalid peer or type");
    add_transfer(batch, {false, false, peer, static_cast<std::byte*>(data), count * size_of(type)});
    return ncclSuccess;
  });
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t send_count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return add("ncclAllGather", comm, stream, "ncclAllGather", [&](ncclComm& c, Batch& batch) {
    if (size_of(type) == 0) return fail(c, ncclInvalidArgument, "invalid type");
    const std::size_t bytes = send_count * size_of(type);
    auto* const from = const_cast<std::byte*>(static_cast<const std::byte*>(send));
    auto* const to = static_cast<std::byte*>(receive);
    const auto share = [&](int rank) { return to + static_cast<std::size_t>(rank) * bytes; };
    for (int peer = 0; peer < c.num_ranks; ++peer)
      if (peer != c.rank) {
        batch.calls.push_back({true, true, peer, from, bytes});
        add_transfer(batch, {true, false, peer, share(peer), bytes});
      }
    if (bytes > 0) {
      batch.accesses.push_back({from, bytes, false});
      batch.accesses.push_back({share(c.rank), bytes, true});
      batch.own.push_back({share(c.rank), {from, bytes}});
    }
    return ncclSuccess;
  });
}

ncclResult_t ncclGroupStart(void) {
  return nccl_call("ncclGroupStart", [&](Lock&, Machine&) {
    ++group.depth;
    return ncclSuccess;
  });
}

ncclResult_t ncclGroupEnd(void) {
  const ncclResult_t result = nccl_call("ncclGroupEnd", [&](Lock& lock, Machine& m) {
    if (group.depth == 0) return ncclInvalidUsage;
    if (--group.depth > 0) return ncclSuccess;
    const Group ended = std::exchange(group, {});
    if (ended.error != ncclSuccess) return ended.error;
    ncclResult_t result = ncclSuccess;
    for (ncclComm* const comm : ended.joining) {
      while (comm->state == ncclInProgress) {
        advance(lock, m, *comm);
        if (comm->state == ncclInProgress) m.changed.wait(lock);
      }
      if (comm->state != ncclSuccess) result = comm->state;
    }
    for (const auto& [comm, batch] : ended.batches) {
      if (find(m, comm) == nullptr) return ncclInvalidArgument;
      const ncclResult_t started = start(lock, m, *comm, batch);
      if (started != ncclSuccess) result = started;
    }
    return result;
  });
  if (result != ncclSuccess && result != ncclInProgress) group = {};
  return result;
}

}  // extern "C"
