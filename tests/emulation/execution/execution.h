// The execution model of a GPU on the CPU: kernels, compiled as C++ against lib/engine/cuda/device, run here and are watched.
//
// How it works
//   * A block's threads are fibres of one host thread; blocks run one after the other, in an order drawn from the seed, or on two
//     host threads. A fibre runs until it has to wait for others: at a barrier, or at what the lanes of a warp do together. The last
//     lane to come does it for all 32; which lane and which warp go on next is drawn too.
//   * Shared memory has a shadow (shadow.h): for every two bytes who wrote and who read last, where, and in which interval between
//     barriers. Warps carry vector clocks, which barriers join, so what is unordered is found in any order of execution.
//   * cp.async takes effect in the wait that completes it, as late as PTX allows. Until then nobody may touch the destination. The
//     source is read at once too, so that AddressSanitizer sees what reaches too far.
//   * A fault ends the launch: Fault says what is wrong, with the kernel, both threads and both places, and the seed.
//     Rules of this kind are those of enum Wrong.
//   * Global memory is ordinary memory: AddressSanitizer watches its ends, and ThreadSanitizer races between blocks that run on two
//     host threads.
//
// What it cannot show
//   * memory order between blocks, and within a block other than by barriers: there are no atomics, fences or mbarriers here
//   * races within a block in global memory, and what lanes of a warp at one line of different iterations do
//   * speed: bank conflicts, coalescing, occupancy, registers, how many barriers and bytes there are at all
//   * PTX text, or a wrapper whose instruction is another than what is done here; the order and the rounding of an mma's sums,
//     which here are in fp32, term by term in ascending order
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/cuda/access.h"

struct CUstream_st;

namespace emulation {

using Place = std::source_location;

struct Index {
  int x = 1, y = 1, z = 1;
};

// ---------------------------------------------------------------- for tests, and for a runtime

enum class Wrong {
  launch,         // no whole warps, or more threads or shared memory than a block may have
  out_of_bounds,  // of a view, or of the block's shared memory
  misaligned,     // not to the size of what is loaded, stored or copied at once
  unwritten,      // shared memory is read that this block has not written
  race,           // in shared memory: two threads, one of which writes, and no barrier between
  not_waited,     // what cp_async is still copying is touched, or the kernel ends before it is there
  divergence,     // lanes of a warp are at different places, or some have left, where all of them take part
  barrier,        // warps are at different barriers, or some have left
  argument        // a lane, a barrier or a number of bytes that there is not
};
const char* name(Wrong wrong);

struct Fault : std::runtime_error {
  Fault(Wrong wrong, const std::string& what) : std::runtime_error(what), wrong(wrong) {}
  Wrong wrong;
};

struct Launch {
  const char* name = "";
  Index grid;
  int threads = 32;
  std::size_t shared_bytes = 0;
  CUstream_st* stream = nullptr;
  std::vector<ringattn::cuda::Access> accesses;
  std::function<void()> kernel;  // of one thread
};

struct Options {
  std::uint64_t seed = 1;
  int host_threads = 1;
};

// Runs all blocks. Throws the first Fault, or what the kernel has thrown. From any thread, but not from a kernel.
void run(const Launch& launch, const Options& options);

// What launch.h calls: runs the kernel at once, unless set_launcher has given it to somebody else.
int launch(const Launch& launch);
void set_launcher(std::function<int(const Launch&)> launcher);  // empty: at once again
void set_options(const Options& options);                       // of kernels that run at once

// ---------------------------------------------------------------- for the functions of lib/engine/cuda/device, within a kernel

int thread_index();
int block_size();
Index block_index();
Index grid_size();

void barrier(Place place);
void barrier(int id, int threads, Place place);
void warp_barrier(Place place);

std::uint32_t shuffle_bits(const char* what, std::uint32_t value, int from_lane, Place place);
template <class T>
T shuffle(const char* what, T value, int from_lane, Place place) {
  return std::bit_cast<T>(shuffle_bits(what, std::bit_cast<std::uint32_t>(value), from_lane, place));
}
bool any_lane(bool holds, Place place);

// A place in shared memory, in bytes, and the view that it is of.
struct SharedAddress {
  std::int64_t value;
  std::int64_t view, view_end;
};
void load_shared(SharedAddress from, void* to, int bytes, Place place);
void store_shared(SharedAddress to, const void* from, int bytes, Place place);
void load_global(const void* from, void* to, int bytes, Place place);
void store_global(void* to, const void* from, int bytes, Place place);

void cp_async(SharedAddress to, const void* from, int bytes, Place place);
void cp_async_commit();
void cp_async_wait(int latest, Place place);  // all groups but the latest so many

void ldmatrix(const char* what, SharedAddress row, std::uint32_t* to, int matrices, bool transposed, Place place);
enum class Format { bf16, f16 };
void mma_m16n8k16(Format format, float* c, const std::uint32_t* a, const std::uint32_t* b, Place place);
void mma_m16n8k8_tf32(float* c, const std::uint32_t* a, const std::uint32_t* b, Place place);

// ---------------------------------------------------------------- numbers

float bf16_value(std::uint16_t bits);
float f16_value(std::uint16_t bits);
std::uint16_t bf16_bits(float x);  // to nearest even
std::uint16_t f16_bits(float x);
std::uint32_t tf32_bits(float x);  // to nearest, halves away from zero
float exp2_ftz(float x);

}  // namespace emulation
