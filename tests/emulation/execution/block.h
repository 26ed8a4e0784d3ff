// A block while it runs: its threads, which of them can go on, and its shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "emulation/execution/execution.h"
#include "emulation/execution/fibre.h"
#include "emulation/execution/shadow.h"

namespace emulation {

class Random {  // splitmix64
 public:
  using result_type = std::uint64_t;
  explicit Random(std::uint64_t seed) : state_(seed) {}
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }
  result_type operator()() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

class Block;

struct Copy {
  std::int64_t to;
  const void* from;
  int bytes;
  Place place;
};

struct Thread {
  Thread(Block& block, int index);
  int warp() const { return index / 32; }
  int lane() const { return index % 32; }
  std::uint32_t bit() const { return 1U << lane(); }

  Block& block;
  int index;
  std::vector<Copy> copies;         // not there yet, in their order
  std::vector<std::size_t> groups;  // how many of them each group has
  std::size_t uncommitted = 0;
  Fibre fibre;
};

// The one that runs.
Thread& current_thread();

class Block {
 public:
  Block(const Launch& launch, std::uint64_t seed);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  // Throws what has gone wrong.
  void run(Index index);

  const Launch& launch() const { return launch_; }
  Index index() const { return index_; }

  // All lanes of the warp meet here. The last to come calls act(lanes), with a pointer to what each has brought.
  template <class T, class Act>
  void together(const char* what, T& mine, Place place, Act&& act) {
    Thread& thread = current_thread();
    if (!meet(thread, what, &mine, place)) return suspend(thread);
    std::array<T*, 32> lanes;
    for (std::size_t lane = 0; lane < 32; ++lane) lanes[lane] = static_cast<T*>(warp_of(thread).brought[lane]);
    act(lanes);
    resume(thread.warp(), thread);
  }
  void barrier(const char* what, int id, int threads, Place place);
  void warp_barrier(Place place);

  // `by_warp`: by all of its lanes at once, and not only by this thread.
  const std::byte* read(SharedAddress from, int bytes, Place place, bool by_warp);
  std::byte* write(SharedAddress to, int bytes, Place place);
  void begin_copy(SharedAddress to, const void* from, int bytes, Place place);
  void end_copies(Thread& thread, std::size_t count);

  [[noreturn]] void fail(Wrong wrong, const std::string& what);
  // What this thread does at `place`, and what is wrong with it.
  [[noreturn]] void fail_here(Wrong wrong, const char* does, Place place, const std::string& what);

 private:
  friend struct Thread;
  struct Warp {
    std::uint32_t ready = 0;  // lanes that can go on
    int turn = 0;             // which of them is next: the first from here on
    std::uint32_t left = 0;   // the kernel
    std::uint32_t here = 0;   // at a meeting
    const char* what = "";
    Place place{};
    std::array<void*, 32> brought{};
  };
  struct Barrier {
    const char* what = "";
    int threads = 0;
    Place place{};  // of the first to come
    std::vector<int> warps{};
  };
  struct Stop {};  // unwinds a kernel

  Fibre* live(Thread& thread);
  void leave(Thread& thread);
  void suspend(Thread& thread);
  Thread* draw_next(int warp);
  void resume(int warp, const Thread& running);
  bool meet(Thread& thread, const char* what, void* mine, Place place);

  Warp& warp_of(const Thread& thread) { return warps_[static_cast<std::size_t>(thread.warp())]; }
  bool all_left() const;
  void diagnose();
  void record(Wrong wrong, const std::string& what);
  bool failed() const { return failure_ != nullptr; }
  void check(const char* what, SharedAddress at, int bytes, Place place);
  void check_write(SharedAddress to, int bytes, Place place, bool copying);
  // What another thread did, and this one does, of which `at` is a granule.
  [[noreturn]] void fail_race(int other, const char* did, Place there, Place place, const char* does, std::int64_t at);

  const Launch& launch_;
  std::uint64_t seed_;
  Random random_;
  Index index_;
  std::deque<Thread> threads_;
  std::vector<Warp> warps_;
  std::array<Barrier, 16> barriers_;
  std::unique_ptr<std::byte[]> memory_;
  Shadow shadow_;
  Fibre home_;
  bool ending_ = false;
  std::exception_ptr failure_;
  std::string unwritten_;  // what a thread has stopped at
  std::array<std::byte, 16> read_through_{};
};

}  // namespace emulation
