#include "emulation/execution/block.h"

#include <cstring>
#include <utility>

namespace emulation {
namespace {

thread_local constinit Thread* current = nullptr;

std::string describe(Place place) {
  const std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}
std::string describe(int thread, const char* what, Place place) {
  return "thread " + std::to_string(thread) + " " + what + " (" + describe(place) + ")";
}
std::string describe(Index i) { return std::to_string(i.x) + " " + std::to_string(i.y) + " " + std::to_string(i.z); }
const char* describe(Shadow::How how) {
  return how == Shadow::How::stored ? "stores" : how == Shadow::How::copied ? "cp_async" : "cp_async, not waited for,";
}
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same(Place a, Place b) {
  return a.line() == b.line() && a.column() == b.column() && same(a.file_name(), b.file_name());
}

}  // namespace

Thread& current_thread() { return *current; }

Thread::Thread(Block& block, int index)
    : block(block),
      index(index),
      fibre(
          [](void* self) {
            Thread& thread = *static_cast<Thread*>(self);
            return thread.block.live(thread);
          },
          this) {}

// ---------------------------------------------------------------- a block from begin to end

Block::Block(const Launch& launch, std::uint64_t seed)
    : launch_(launch),
      seed_(seed),
      random_(seed),
      warps_(static_cast<std::size_t>(launch.threads / 32)),
      memory_(new std::byte[launch.shared_bytes]),
      shadow_(static_cast<std::int64_t>(launch.shared_bytes), launch.threads / 32) {
  for (int index = 0; index < launch.threads; ++index) threads_.emplace_back(*this, index);
}

Block::~Block() {
  ending_ = true;
  for (Thread& thread : threads_) home_.switch_to(thread.fibre);
}

void Block::run(Index index) {
  index_ = index;
  shadow_.begin_block();
  for (Warp& warp : warps_) warp = {.ready = ~0U, .turn = static_cast<int>(random_() % 32)};
  Thread* const before = std::exchange(current, nullptr);
  home_.switch_to(draw_next(static_cast<int>(random_() % warps_.size()))->fibre);
  if (failed())
    for (Thread& thread : threads_)  // unwinds it
      if ((warp_of(thread).left & thread.bit()) == 0) home_.switch_to(thread.fibre);
  current = before;
  if (failed()) std::rethrow_exception(failure_);
}

// A thread of one block after the other.
Fibre* Block::live(Thread& thread) {
  while (!ending_) {
    current = &thread;
    thread.groups.clear();
    if (!failed()) {
      try {
        launch_.kernel();
        if (!thread.copies.empty())
          fail(Wrong::not_waited, describe(thread.index, "ends before its cp_async is there", thread.copies[0].place));
      } catch (const Stop&) {
      } catch (...) {
        failure_ = std::current_exception();
      }
    }
    leave(thread);
  }
  return &home_;
}

void Block::leave(Thread& thread) {
  warp_of(thread).left |= thread.bit();
  Thread* const next = failed() ? nullptr : draw_next(thread.warp());
  if (next == nullptr && !failed() && !all_left()) diagnose();
  thread.fibre.switch_to(next != nullptr ? next->fibre : home_);
}

bool Block::all_left() const {
  return std::all_of(warps_.begin(), warps_.end(), [](const Warp& warp) { return warp.left == ~0U; });
}

// ---------------------------------------------------------------- who goes on

// Of this warp, or else of another. Null if nobody can.
Thread* Block::draw_next(int warp) {
  const int count = static_cast<int>(warps_.size());
  if (warps_[static_cast<std::size_t>(warp)].ready == 0) {
    warp = static_cast<int>((random_() >> 32) * static_cast<std::uint64_t>(count) >> 32);
    for (int tries = 0; warps_[static_cast<std::size_t>(warp)].ready == 0; warp = (warp + 1) % count)
      if (++tries > count) return nullptr;
  }
  Warp& chosen = warps_[static_cast<std::size_t>(warp)];
  const int lane = (std::countr_zero(std::rotr(chosen.ready, chosen.turn)) + chosen.turn) % 32;
  chosen.ready &= ~(1U << lane);
  return &threads_[static_cast<std::size_t>(warp * 32 + lane)];
}

// Until others let it go on.
void Block::suspend(Thread& thread) {
  Thread* const next = draw_next(thread.warp());
  if (next == nullptr) diagnose();
  thread.fibre.switch_to(next != nullptr ? next->fibre : home_);
  current = &thread;
  if (failed()) throw Stop{};
}

// All lanes of the warp can go on, of which this thread may be one.
void Block::resume(int warp, const Thread& running) {
  const std::uint64_t drawn = random_();
  Warp& resumed = warps_[static_cast<std::size_t>(warp)];
  resumed.ready = warp == running.warp() ? ~running.bit() : ~0U;
  resumed.turn = static_cast<int>(drawn % 32);
}

// Whether all lanes are there.
bool Block::meet(Thread& thread, const char* what, void* mine, Place place) {
  Warp& warp = warp_of(thread);
  if (warp.here == 0) {
    warp.what = what;
    warp.place = place;
  } else if (!same(warp.place, place) || !same(warp.what, what)) {
    const int other = thread.warp() * 32 + std::countr_zero(warp.here);
    fail(Wrong::divergence,
         describe(other, warp.what, warp.place) + ", but " + describe(thread.index, what, place) + " of the same warp");
  }
  warp.here |= thread.bit();
  warp.brought[static_cast<std::size_t>(thread.lane())] = mine;
  if (warp.here != ~0U) return false;
  warp.here = 0;
  return true;
}

void Block::barrier(const char* what, int id, int threads, Place place) {
  Thread& thread = current_thread();
  if (id < 0 || id >= static_cast<int>(barriers_.size()) || threads <= 0 || threads % 32 != 0 ||
      threads > launch_.threads)
    fail_here(Wrong::argument, what, place,
              "barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads, in a block of " +
                  std::to_string(launch_.threads));
  std::pair<int, int> mine{id, threads};
  if (!meet(thread, what, &mine, place)) return suspend(thread);
  for (const void* const other : warp_of(thread).brought)
    if (*static_cast<const std::pair<int, int>*>(other) != mine)
      fail_here(Wrong::divergence, what, place, "another lane is at another barrier");

  Barrier& barrier = barriers_[static_cast<std::size_t>(id)];
  if (barrier.warps.empty()) {
    barrier.what = what;
    barrier.threads = threads;
    barrier.place = place;
  } else if (barrier.threads != threads || (id == 0 && !same(barrier.place, place))) {
    fail(Wrong::barrier,
         describe(barrier.warps[0] * 32, barrier.what, barrier.place) + ", but " + describe(thread.index, what, place));
  }
  barrier.warps.push_back(thread.warp());
  if (static_cast<int>(barrier.warps.size()) * 32 < threads) return suspend(thread);
  shadow_.join(barrier.warps);
  for (const int warp : barrier.warps) resume(warp, thread);
  barrier.warps.clear();
}

void Block::warp_barrier(Place place) {
  int nothing = 0;
  together("warp_barrier", nothing, place, [this](const auto&) { shadow_.join({current_thread().warp()}); });
}

// ---------------------------------------------------------------- shared memory

void Block::check(const char* what, SharedAddress at, int bytes, Place place) {
  const auto refuse = [&](Wrong wrong, const std::string& why) {
    fail_here(wrong, what, place, std::to_string(bytes) + " bytes at byte " + std::to_string(at.value) + why);
  };
  if (at.value < at.view || at.value + bytes > at.view_end)
    refuse(Wrong::out_of_bounds,
           " of shared memory, the view being " + std::to_string(at.view) + " .. " + std::to_string(at.view_end));
  if (at.view_end > static_cast<std::int64_t>(launch_.shared_bytes))
    refuse(Wrong::out_of_bounds, " of a view that ends at " + std::to_string(at.view_end) + ", but the block has " +
                                     std::to_string(launch_.shared_bytes) + " bytes of shared memory");
  if ((at.value & (bytes - 1)) != 0) refuse(Wrong::misaligned, " of shared memory, not a multiple");
}

const std::byte* Block::read(SharedAddress from, int bytes, Place place, bool by_warp) {
  check("loads", from, bytes, place);
  const auto thread = static_cast<std::uint16_t>(current->index);
  const int warp = current->warp();
  const std::uint32_t now = shadow_.now(warp);
  const std::int64_t begin = from.value / Shadow::granule, end = (from.value + bytes) / Shadow::granule;
  const Shadow::Write* write = shadow_.write(begin);
  Shadow::Read* read = shadow_.begin_read(warp, begin);
  const Shadow::Write* in_order = nullptr;  // as the next one mostly is, being like it
  for (std::int64_t g = begin; g < end; ++g, ++write, ++read) {
    if (by_warp)
      *read = {place, place, now, thread, static_cast<std::uint16_t>(thread ^ 1U)};
    else if (read->interval != now)
      *read = {place, place, now, thread, Shadow::nobody};
    else if (read->thread != thread)
      *read = {place, read->place, now, thread, read->thread};

    if (in_order != nullptr && write->like(*in_order)) continue;
    if (!shadow_.in_this_block(write->interval)) {
      // It goes on no further; but should another thread write here before long, it is a race of the two.
      if (unwritten_.empty())
        unwritten_ = describe(thread, "loads", place) + ": nobody has written byte " +
                     std::to_string(g * Shadow::granule) + " of shared memory";
      suspend(*current);
    }
    const bool own = write->thread == thread && !by_warp;
    if (write->how == Shadow::How::copying || (!own && !shadow_.precedes(write->thread / 32, write->interval, warp)))
      fail_race(write->thread, describe(write->how), write->place, place, "loads", g);
    in_order = write;
  }
  return memory_.get() + from.value;
}

void Block::check_write(SharedAddress to, int bytes, Place place, bool copying) {
  const auto thread = static_cast<std::uint16_t>(current->index);
  const char* const does = copying ? "cp_async" : "stores";
  const int warp = current->warp(), warps = static_cast<int>(warps_.size());
  const std::int64_t begin = to.value / Shadow::granule, end = (to.value + bytes) / Shadow::granule;
  for (int u = 0; u < warps; ++u) {
    if (shadow_.all_reads_precede(u, warp)) continue;
    const Shadow::Read* read = shadow_.read(u, begin);
    const Shadow::Read* in_order = nullptr;
    for (std::int64_t g = begin; g < end; ++g, ++read) {
      if (in_order != nullptr && read->like(*in_order)) continue;
      in_order = read;
      if (!shadow_.in_this_block(read->interval) || shadow_.precedes(u, read->interval, warp)) continue;
      if (read->thread != thread) fail_race(read->thread, "loads", read->place, place, does, g);
      if (read->other != Shadow::nobody) fail_race(read->other, "loads", read->other_place, place, does, g);
    }
  }
  const Shadow::Write now{place, shadow_.now(warp), thread, copying ? Shadow::How::copying : Shadow::How::stored};
  Shadow::Write* write = shadow_.write(begin);
  for (std::int64_t g = begin; g < end; ++g, ++write) {
    if (shadow_.in_this_block(write->interval) &&
        (write->how == Shadow::How::copying ||
         (write->thread != thread && !shadow_.precedes(write->thread / 32, write->interval, warp))))
      fail_race(write->thread, describe(write->how), write->place, place, does, g);
    *write = now;
  }
}

std::byte* Block::write(SharedAddress to, int bytes, Place place) {
  check("stores", to, bytes, place);
  check_write(to, bytes, place, false);
  return memory_.get() + to.value;
}

void Block::begin_copy(SharedAddress to, const void* from, int bytes, Place place) {
  check("cp_async", to, 16, place);
  if (bytes < 0 || bytes > 16) fail_here(Wrong::argument, "cp_async", place, std::to_string(bytes) + " bytes");
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    fail_here(Wrong::misaligned, "cp_async", place, "the source is not aligned to 16 bytes");
  if (bytes > 0) std::memcpy(read_through_.data(), from, static_cast<std::size_t>(bytes));
  check_write(to, 16, place, true);
  current->copies.push_back({to.value, from, bytes, place});
  ++current->uncommitted;
}

// The oldest ones.
void Block::end_copies(Thread& thread, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const Copy& copy = thread.copies[i];
    std::byte* const to = memory_.get() + copy.to;
    std::memset(to, 0, 16);
    if (copy.bytes > 0) std::memcpy(to, copy.from, static_cast<std::size_t>(copy.bytes));
    Shadow::Write* const write = shadow_.write(copy.to / Shadow::granule);
    for (int g = 0; g < 16 / Shadow::granule; ++g) {
      write[g].how = Shadow::How::copied;
      write[g].interval = shadow_.now(thread.warp());
    }
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(count));
}

// ---------------------------------------------------------------- what is wrong

void Block::record(Wrong wrong, const std::string& what) {
  failure_ =
      std::make_exception_ptr(Fault(wrong, std::string(launch_.name) + ", block " + describe(index_) + ", seed " +
                                               std::to_string(seed_) + ": " + name(wrong) + ": " + what));
}

void Block::fail(Wrong wrong, const std::string& what) {
  record(wrong, what);
  throw Stop{};
}

void Block::fail_here(Wrong wrong, const char* does, Place place, const std::string& what) {
  fail(wrong, describe(current->index, does, place) + ": " + what);
}

void Block::fail_race(int other, const char* did, Place there, Place place, const char* does, std::int64_t at) {
  const Shadow::Write& write = *shadow_.write(at);
  const bool copying = shadow_.in_this_block(write.interval) && write.how == Shadow::How::copying;
  fail(copying ? Wrong::not_waited : Wrong::race,
       describe(other, did, there) + " and " + describe(current->index, does, place) + " byte " +
           std::to_string(at * Shadow::granule) + " of shared memory" + (copying ? "" : ", with no barrier between"));
}

// Nobody can go on.
void Block::diagnose() {
  if (!unwritten_.empty()) return record(Wrong::unwritten, unwritten_);
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    const Warp& warp = warps_[w];
    if (warp.here == 0) continue;
    const int first = static_cast<int>(w) * 32;
    return record(Wrong::divergence, describe(first + std::countr_zero(warp.here), warp.what, warp.place) +
                                         ", but thread " + std::to_string(first + std::countr_zero(warp.left)) +
                                         " of the same warp has left the kernel");
  }
  const Barrier* first = nullptr;
  for (const Barrier& barrier : barriers_) {
    if (barrier.warps.empty()) continue;
    if (first != nullptr)
      return record(Wrong::barrier, describe(first->warps[0] * 32, first->what, first->place) + ", but " +
                                        describe(barrier.warps[0] * 32, barrier.what, barrier.place));
    first = &barrier;
  }
  std::string others = ", but there are not as many";
  for (std::size_t w = 0; w < warps_.size(); ++w)
    if (warps_[w].left == ~0U) others = ", but thread " + std::to_string(w * 32) + " has left the kernel";
  record(Wrong::barrier, describe(first->warps[0] * 32, first->what, first->place) + " waits for " +
                             std::to_string(first->threads) + " threads" + others);
}

}  // namespace emulation
