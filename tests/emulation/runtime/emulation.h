// An emulated CUDA machine: several devices in one process, without a GPU. cuda_runtime.h and nccl.h are its other two faces.
//
// How it works
//   * Device memory is host memory, filled with a poison pattern. A kernel is a host function; launching it, copying, and NCCL's
//     calls submit *operations*, each with the ranges of memory that it reads and writes.
//   * Operations form a graph: an operation comes after what its stream held, and what its stream had waited for, when it was
//     submitted. Nothing else orders them, and they run in an order drawn from a seed to do the most harm: as early as possible
//     (each at its submission), as late as possible (none before somebody waits for it, and then nothing but what that needs), or
//     at random. They run on the threads that submit, wait and query; the function of one may run while another's does.
//   * The *checker* looks at each operation when it is submitted, so that what it says does not depend on the order drawn: every
//     stream counts its operations, and carries a vector of what it has come after on every other stream (a vector clock). An
//     access is a violation if it conflicts with an earlier one that it does not come after. Every host thread is one more
//     party: it comes after what it has synchronised with, or has been told of by a query, and after what threads that are over
//     have, and the one that called reset. The other rules are in the list below.
//   * Graphs: what is submitted to a capturing stream becomes a node. A launch submits every node afresh, and checks it again.
//   * NCCL: a group is one operation. When all before it is over it begins, and when all its transfers have met their
//     counterpart, begun too, it is over: a message is never buffered.
//
// What it cannot show
//   * Accesses that were not declared, other than by wrong results. (Two at once are seen by ThreadSanitizer.)
//   * Ordering between ranks that is by messages alone: a receive is not taken to come after what the sender did before it sent.
//   * That a host thread may rely on what another, which runs on, has synchronised with: that counts as a violation, even where a
//     mutex makes it right.
//   * What the host itself does to pinned memory, except through host_read and host_write.
//   * Time, priorities, and how much fits on a device at once. NCCL's connection set-up, in which its calls may block.
//   * Wherever CUDA leaves a choice this takes one: cudaFree does not wait, pageable memory is staged or waited for.
//
// Everything may be called from any thread, except reset, while which nothing else may run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "engine/cuda/access.h"

namespace emulation {

// ---------------------------------------------------------------- for the code that launches

// Submits a kernel. `function` runs later, on any thread; it must not call CUDA or throw. It is not run at all if an access is
// outside of what is allocated.
cudaError_t submit(cudaStream_t stream, const char* name, std::span<const ringattn::cuda::Access> accesses,
                   std::function<void()> function);

// Says that the host is about to read or write memory that operations may use: pinned memory, or to look at a device's.
void host_read(const void* data, std::size_t bytes);
void host_write(void* data, std::size_t bytes);

// ---------------------------------------------------------------- for tests

enum class Order { early, late, random };

struct Config {
  int devices = 1;
  std::uint64_t seed = 1;
  std::optional<Order> order = std::nullopt;  // else drawn from the seed
  bool peer_access = true;                    // what cudaDeviceCanAccessPeer says
  std::size_t device_bytes = std::size_t{1} << 32;
  int multiprocessors = 132;
  int compute_capability = 90;
  int driver_version = 13000;  // 0: no driver; less than the runtime's: too old
};

// A new machine. What is left of the old one is forgotten, and its handles are invalid.
void reset(const Config& config);

enum class Rule {
  unordered,       // conflicts with an operation that it does not come after
  host_too_early,  // the host touches what an operation has, before it has synchronised with it
  uninitialised,   // reads what nobody has written
  out_of_bounds,   // reaches over the end of an allocation
  not_allocated,   // a kernel or NCCL is given memory that CUDA does not know
  freed,           // uses what has been freed, or frees it again
  freed_in_use,    // frees what an operation that the host has not synchronised with uses
  no_peer_access,  // a kernel touches another device's memory without cudaDeviceEnablePeerAccess
  size_mismatch    // an NCCL send and its receive
};
const char* name(Rule rule);

struct Violation {
  Rule rule;
  std::string what;  // names the operations, the memory, and the seed
};
std::ostream& operator<<(std::ostream& out, const Violation& violation);

// Of all since reset, the first hundred.
std::vector<Violation> violations();

// What has been created and not destroyed or freed since reset: "stream 3 of device 1", "40 bytes of device 0", ...
std::vector<std::string> live_objects();

// The n-th call from now, counting from 1, of the function of this name ("cudaMalloc", "ncclSend"; null: of any) fails with
// `result` and does nothing.
void fail_call(const char* function, int n, int result);
int take_back_failures();  // those of calls that have not come; how many

// A wait is one call of cudaStreamWaitEvent: "stream 3 of device 0 for stream 1 of device 1, wait 2", where streams are counted on their
// device, and waits between these two. This one does nothing.
void leave_out_wait(const std::string& wait);
std::vector<std::string> waits();  // that there have been since reset

// Faults of NCCL. They concern the rank of that number in every communicator.
void lose_rank(int rank);                     // it never takes part in any transfer, or in joining, again
void delay_rank(int rank, int milliseconds);  // each of its operations from now on begins that much later
void fail_async(int rank, int n,
                int result);  // its n-th operation from now, counting from 1, ends in an asynchronous error

}  // namespace emulation
