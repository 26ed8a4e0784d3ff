// Groups of ranks in virtual time, over a network of this test's own: thousands of lives of a group, each repeatable by its seed
// (RINGATTN_TEST_SEED) and its number (RINGATTN_TEST_CASE).
//
// A process has a Membership and a script: it joins, makes calls that gather records and pass data to each other, and leaves.
// Frames take 0 .. 100 ms, in order on each connection. Connections are cut (what is under way is lost, both ends hear of it), or
// silent (nobody hears of anything); processes are killed, or stopped, for good or for a while, in which what arrives piles up.
#include "transport/zeromq/membership.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "support/random.h"

namespace {

// After so many allocations of this thread one fails, and all that follow it, until it is set again; never if negative.
thread_local int allocations_left = -1;
thread_local bool allocation_failed = false;

}  // namespace

// Not in line: the compiler must not see malloc and free without the operators around them.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (allocations_left == 0) {
    allocation_failed = true;
    throw std::bad_alloc();
  }
  if (allocations_left > 0) --allocations_left;
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace ringattn::zeromq {
namespace {

using Time = std::int64_t;  // milliseconds
using Bytes = std::vector<std::byte>;

constexpr Time longest_delay = 100, beat_jitter = 20, longest_beat = Membership::beat_ms + beat_jitter;
constexpr Time latest_start = 1000;  // of a process
constexpr Time never = std::int64_t{1} << 40;
// From a rank's last sign of life to the hub's verdict, and from there to all others.
constexpr Time longest_silence = longest_delay + (Membership::silent_beats + 1) * longest_beat;

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t between(std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(last - first + 1));
  }
  int below(int n) { return static_cast<int>(between(0, n - 1)); }
  bool chance(int percent) { return below(100) < percent; }

 private:
  std::mt19937_64 engine_;
};

struct Step {
  enum { compute, compute_until, begin_gather, end_gather, send, receive, end_call } what;
  std::int64_t value = 0;  // milliseconds, the time, bytes of the record, the other rank
};

Bytes record_of(int rank, std::int64_t round, std::int64_t size) {
  Bytes record(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < record.size(); ++i)
    record[i] = static_cast<std::byte>(std::size_t{31} * static_cast<std::size_t>(rank) +
                                       static_cast<std::size_t>(7 * round) + i);
  return record;
}

struct Process {
  explicit Process(const Hello& hello) : rank(hello.rank), membership(hello, Session{std::byte{42}}) {}

  int rank;
  Membership membership;
  std::vector<Step> script;
  Time start = 0;
  Time timeout_ms = 60'000, join_timeout_ms = 60'000;

  enum { absent, alive, gone } state = absent;
  bool is_paused = false;
  std::deque<std::function<void()>> backlog;  // while it is

  // Where it is in the script.
  bool has_joined = false;
  std::size_t step = 0;
  Time step_ends = never;    // of compute
  std::int64_t begun = 0;    // gathers
  std::map<int, int> inbox;  // messages that are here, by sender
  std::vector<Bytes> gathered;
  bool waits = false;
  Time deadline = never;  // of the present wait
  bool gave_up = false;

  Time failed_at = never, left_at = never;
};

class World {
 public:
  explicit World(std::uint64_t seed) : random(seed) {}

  Random random;
  Time now = 0;
  std::vector<std::unique_ptr<Process>> processes;  // the first is the hub
  // What becomes of a frame that process p sends: other frames, in its place.
  std::function<std::vector<Membership::Frame>(Process&, Membership::Frame)> tamper;

  Process& add(const Hello& hello) {
    processes.push_back(std::make_unique<Process>(hello));
    wires_.emplace_back();
    Process& p = *processes.back();
    p.start = random.between(0, latest_start);
    return p;
  }
  Process& process(int rank) { return *processes[static_cast<std::size_t>(rank)]; }

  void at(Time when, std::function<void()> what) { events_.emplace(std::max(when, now), std::move(what)); }

  // To the end of all processes; says whether it came to that.
  bool run() {
    for (std::size_t i = 0; i < processes.size(); ++i) at(processes[i]->start, [this, i] { start(i); });
    while (!events_.empty() && now < 200'000) {
      const auto next = events_.begin();
      now = next->first;
      const auto what = std::move(next->second);
      events_.erase(next);
      what();
    }
    return events_.empty();
  }

  // ---- Faults.

  void kill(Process& victim) { close(index_of(victim)); }

  void cut(Process& spoke) {
    const std::size_t i = index_of(spoke);
    Wire& wire = wires_[i];
    if (spoke.state != Process::alive || process(0).state == Process::absent || wire.is_cut) return;
    wire.is_cut = true;
    ++wire.epoch;
    at(now + delay(), [this, i] { deliver(i, [this, i] { processes[i]->membership.on_disconnect(0); }); });
    at(now + delay(),
       [this, i] { deliver(0, [this, i] { process(0).membership.on_disconnect(processes[i]->rank); }); });
  }

  void silence(Process& victim) {
    for (std::size_t i = 1; i < wires_.size(); ++i)
      if (processes[i].get() == &victim || victim.rank == 0) wires_[i].is_silent = true;
  }

  void pause(Process& victim, Time duration) {
    victim.is_paused = true;
    if (duration < never)
      at(now + duration, [this, &victim] {
        victim.is_paused = false;
        for (auto backlog = std::exchange(victim.backlog, {}); !backlog.empty(); backlog.pop_front()) backlog.front()();
      });
  }

  // What the process does next; whenever something may have changed for it.
  void advance(std::size_t i) {
    Process& p = *processes[i];
    if (p.state == Process::alive) {
      go_on(i, p);
      flush(i);
    }
  }

 private:
  struct Wire {  // between a spoke and the hub
    bool is_cut = false, is_silent = false;
    bool is_known = false;  // to the hub, by a frame
    int epoch = 0;
    Time last[2] = {0, 0};  // arrival at the spoke, at the hub
  };

  std::size_t index_of(const Process& process) const {
    std::size_t i = 0;
    while (processes[i].get() != &process) ++i;
    return i;
  }

  Time delay() { return random.between(0, longest_delay); }

  void start(std::size_t i) {
    Process& p = *processes[i];
    if (p.state != Process::absent) return;
    p.state = Process::alive;
    p.deadline = now + p.join_timeout_ms;
    expire_at(i, p.deadline);
    p.membership.begin();
    beat(i);
    advance(i);
  }

  void beat(std::size_t i) {
    at(now + Membership::beat_ms + random.between(0, beat_jitter), [this, i] {
      const auto tick = [this, i] {
        processes[i]->membership.on_beat();
        beat(i);
      };
      Process& p = *processes[i];
      if (p.is_paused && random.chance(50))  // who is late for everything may begin with anything
        p.backlog.push_front([this, i, tick] { deliver(i, tick); });
      else
        deliver(i, tick);
    });
  }

  template <class F>
  void deliver(std::size_t i, F&& f) {
    Process& p = *processes[i];
    if (p.state != Process::alive) return;
    if (p.is_paused) {
      p.backlog.push_back([this, i, f] { deliver(i, f); });
    } else {
      f();
      advance(i);
    }
  }

  // In order after all that is under way there; to where the other may not have begun to listen.
  void transmit(std::size_t spoke, bool to_hub, std::function<void()> what) {
    Wire& wire = wires_[spoke];
    if (wire.is_cut) return;
    const std::size_t to = to_hub ? 0 : spoke;
    Time& last = wire.last[to_hub ? 1 : 0];
    last = std::max(last, std::max(now, processes[to]->start) + delay());
    at(last, [this, spoke, to, epoch = wire.epoch, what = std::move(what)] {
      if (wires_[spoke].epoch == epoch && !wires_[spoke].is_silent) deliver(to, what);
    });
  }

  void flush(std::size_t i) {
    Process& p = *processes[i];
    for (Membership::Frame& whole : p.membership.take_frames()) {
      std::vector<Membership::Frame> frames;
      if (tamper)
        frames = tamper(p, std::move(whole));
      else
        frames.push_back(std::move(whole));
      for (Membership::Frame& frame : frames) send(i, std::move(frame));
    }
  }

  void send(std::size_t i, Membership::Frame frame) {
    const int from = processes[i]->rank;
    for (std::size_t spoke = 1; spoke < processes.size(); ++spoke)
      if (i == 0 ? processes[spoke]->rank == frame.to && wires_[spoke].is_known : spoke == i)
        transmit(spoke, i != 0, [this, spoke, is_to_hub = i != 0, from, bytes = frame.bytes] {
          if (is_to_hub) wires_[spoke].is_known = true;
          processes[is_to_hub ? 0 : spoke]->membership.on_frame(from, bytes);
        });
  }

  void close(std::size_t i) {
    Process& p = *processes[i];
    if (p.state == Process::gone) return;
    const bool was_alive = p.state == Process::alive;
    p.state = Process::gone;
    p.backlog.clear();
    if (!was_alive) return;
    for (std::size_t spoke = 1; spoke < processes.size(); ++spoke)
      if ((i == 0 && processes[spoke]->state == Process::alive) || spoke == i)
        transmit(spoke, i != 0,
                 [this, to = i == 0 ? spoke : 0, rank = p.rank] { processes[to]->membership.on_disconnect(rank); });
  }

  void expire_at(std::size_t i, Time deadline) {
    at(deadline, [this, i, deadline] {
      deliver(i, [this, i, deadline] {
        Process& p = *processes[i];
        if (p.deadline != deadline || p.gave_up || p.membership.failure().status != RA_STATUS_SUCCESS) return;
        p.gave_up = true;
        int blocker = Membership::nobody;
        if (p.has_joined && p.step < p.script.size())
          blocker =
              p.script[p.step].what == Step::receive ? static_cast<int>(p.script[p.step].value) : Membership::whoever;
        if (!p.has_joined || p.step < p.script.size())
          p.membership.on_timeout(blocker, p.has_joined ? p.timeout_ms : p.join_timeout_ms);
      });
    });
  }

  void wait(std::size_t i, Process& p, int blocker) {
    if (std::exchange(p.waits, true)) return;
    p.membership.set_waits_for(blocker);
    p.deadline = now + p.timeout_ms;
    expire_at(i, p.deadline);
  }

  void end_step(Process& p) {
    p.membership.set_waits_for(Membership::nobody);
    p.waits = false;
    p.deadline = p.step_ends = never;
    ++p.step;
  }

  void go_on(std::size_t i, Process& p) {
    Membership& m = p.membership;
    while (p.left_at == never) {
      if (m.failure().status != RA_STATUS_SUCCESS) {
        if (p.failed_at != never) return;
        p.failed_at = now;
        at(now + random.between(1500, 2500), [this, i] {
          deliver(i, [this, i] {
            processes[i]->membership.leave();
            flush(i);
            close(i);
          });
        });
        return;
      }
      if (p.gave_up && p.step < p.script.size()) return;
      if (!p.has_joined) {
        if (!m.is_whole()) return;
        p.has_joined = true;
        p.deadline = never;
      }
      if (p.step == p.script.size()) {
        wait(i, p, Membership::nobody);
        if (!m.may_leave() && !p.gave_up) return;
        m.leave();
        p.left_at = now;
        at(now + random.between(0, 50), [this, i] { deliver(i, [this, i] { close(i); }); });
        return;
      }
      const Step& step = p.script[p.step];
      switch (step.what) {
        case Step::compute:
        case Step::compute_until:
          if (p.step_ends == never) {
            p.step_ends = step.what == Step::compute ? now + step.value : step.value;
            at(p.step_ends, [this, i] { deliver(i, [] {}); });
          }
          if (now < p.step_ends) return;
          break;
        case Step::begin_gather:
          m.gather(record_of(p.rank, p.begun++, step.value));
          break;
        case Step::end_gather: {
          const auto round = static_cast<std::int64_t>(p.gathered.size());
          const Bytes* const all = m.records(round);
          if (all == nullptr) {
            if (const int r = m.left_before(round); r >= 0) {
              m.fail({RA_STATUS_PEER_LOST, r, text("rank ", r, " left while rank ", p.rank, " waited for it")});
              continue;
            }
            return wait(i, p, Membership::whoever);
          }
          p.gathered.push_back(*all);
          break;
        }
        case Step::send: {
          const auto to = static_cast<std::size_t>(step.value);
          at(now + delay(),
             [this, to, from = p.rank] { deliver(to, [this, to, from] { ++processes[to]->inbox[from]; }); });
          break;
        }
        case Step::receive:
          if (p.inbox[static_cast<int>(step.value)] == 0) return wait(i, p, static_cast<int>(step.value));
          --p.inbox[static_cast<int>(step.value)];
          break;
        case Step::end_call:
          m.end_call();
          break;
      }
      end_step(p);
    }
  }

  std::multimap<Time, std::function<void()>> events_;  // those of one moment in the order in which they were planned
  std::vector<Wire> wires_;
};

Hello hello_of(int world_size, int rank) {
  Hello hello;
  hello.library = ra_get_version();
  hello.world_size = world_size;
  hello.rank = rank;
  hello.address = text("tcp://10.0.0.", rank, ":4000");
  hello.machine = text("machine ", rank / 2);
  return hello;
}

// Ranks that make some calls together, each with gathers and data that goes around a ring.
void add_group(World& world, int world_size) {
  Random& random = world.random;
  for (int r = 0; r < world_size; ++r) world.add(hello_of(world_size, r));
  for (std::int64_t calls = random.between(0, 5); calls > 0; --calls) {
    const int gathers = random.below(4);  // 3: two that begin together
    const std::int64_t size = random.between(0, 40);
    const bool has_ring = random.chance(60);
    for (int r = 0; r < world_size; ++r) {
      auto& script = world.process(r).script;
      const auto compute = [&] { script.push_back({Step::compute, random.between(0, 300)}); };
      compute();
      for (int n = 0; n < gathers; ++n) {
        script.push_back({Step::begin_gather, size + n});
        if (gathers == 3 && n == 0) continue;
        script.push_back({Step::end_gather});
        if (gathers == 3 && n == 1) script.push_back({Step::end_gather});
      }
      if (has_ring && world_size > 1) {
        script.push_back({Step::send, (r + 1) % world_size});
        compute();
        script.push_back({Step::receive, (r + world_size - 1) % world_size});
      }
      script.push_back({Step::end_call});
    }
  }
  for (int r = 0; r < world_size; ++r)
    world.process(r).script.push_back({Step::compute, random.between(0, random.chance(30) ? 2000 : 100)});
}

// Every gather brought all the ranks that are through with it the same.
void expect_equal_gathers(World& world) {
  for (const auto& p : world.processes)
    for (std::size_t round = 0; round < p->gathered.size(); ++round)
      for (const auto& other : world.processes)
        ASSERT_TRUE(round >= other->gathered.size() || p->gathered[round] == other->gathered[round])
            << "round " << round << ", ranks " << p->rank << " and " << other->rank;
}

// The same, and they are what was given.
void expect_right_gathers(World& world) {
  for (const auto& p : world.processes) {
    std::size_t round = 0;
    for (const Step& step : p->script) {
      if (step.what != Step::begin_gather) continue;
      if (round == p->gathered.size()) break;
      Bytes all;
      for (const auto& other : world.processes) {
        const Bytes record = record_of(other->rank, static_cast<std::int64_t>(round), step.value);
        all.insert(all.end(), record.begin(), record.end());
      }
      ASSERT_EQ(p->gathered[round], all) << "round " << round << " on rank " << p->rank;
      ++round;
    }
  }
}

std::string show(const Process& p) {
  const Failure& f = p.membership.failure();
  return text("rank ", p.rank, p.membership.is_whole() ? " (whole)" : "", " failed at ",
              p.failed_at == never ? -1 : p.failed_at, ", left at ", p.left_at == never ? -1 : p.left_at, ", ",
              ra_get_status_name(f.status), ", rank ", f.rank, ": ", f.message, "\n");
}

std::string show(const World& world) {
  std::string all;
  for (const auto& p : world.processes) all += show(*p);
  return all;
}

// Calls body(world) for random worlds.
template <class F>
void for_random_worlds(int cases, F&& body) {
  const std::uint64_t seed = test::seed();
  cases = test::sample(cases);
  for (int n = 0; n < cases && !testing::Test::HasFailure(); ++n) {
    if (!test::chosen(n)) continue;
    World world(seed * 1'000'003 + static_cast<std::uint64_t>(n));
    SCOPED_TRACE(text("case ", n, " (RINGATTN_TEST_CASE)"));
    body(world);
    if (testing::Test::HasFailure()) std::cout << show(world);
  }
}

TEST(Membership, WithoutFaultsAllJoinGatherAndLeave) {
  for_random_worlds(4000, [](World& world) {
    const int world_size = static_cast<int>(world.random.between(1, 8));
    add_group(world, world_size);
    for (std::int64_t n = world.random.between(0, 3); n > 0; --n) {  // others may have the processors for a while
      Process& p = world.process(world.random.below(world_size));
      world.at(n * 1200, [&world, &p] { world.pause(p, world.random.between(0, 600)); });
    }
    ASSERT_TRUE(world.run()) << "hangs";
    for (const auto& p : world.processes) {
      ASSERT_NE(p->left_at, never) << "rank " << p->rank;
      ASSERT_EQ(p->membership.failure().status, RA_STATUS_SUCCESS) << p->membership.failure().message;
      ASSERT_EQ(p->membership.roster().ranks.size(), static_cast<std::size_t>(world_size));
      for (int r = 0; r < world_size; ++r)
        ASSERT_EQ(p->membership.roster().ranks[static_cast<std::size_t>(r)], hello_of(world_size, r));
      ASSERT_EQ(p->membership.roster().session[0], std::byte{42});
      ASSERT_EQ(p->gathered.size(), static_cast<std::size_t>(p->begun));
    }
    expect_right_gathers(world);
  });
}

// Where a rank is killed or stopped, or its connection lost: every other one that is still there soon names it.
TEST(Membership, AllNameTheRankThatIsLost) {
  for_random_worlds(6000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 8));
    add_group(world, world_size);
    constexpr Time join_timeout = 5000;
    for (const auto& p : world.processes) p->join_timeout_ms = join_timeout;
    Process& victim = world.process(random.below(world_size));
    enum { kill, cut, silence, stop, pause };
    const int fault = random.chance(20) && victim.rank != 0
                          ? cut
                          : std::array{kill, silence, stop, pause}[static_cast<std::size_t>(random.below(4))];
    const Time when = std::max(random.between(0, 4000), victim.start);
    bool had_left = false, victim_was_whole = false;
    world.at(when, [&] {
      had_left = victim.left_at != never;
      victim_was_whole = victim.membership.is_whole();
      switch (fault) {
        case kill:
          return world.kill(victim);
        case cut:
          return world.cut(victim);
        case silence:
          return world.silence(victim);
        default:
          return world.pause(victim, fault == stop ? never : random.between(100, 2000));
      }
    });
    ASSERT_TRUE(world.run()) << "hangs";
    SCOPED_TRACE(text("fault ", fault, " of rank ", victim.rank, " at ", when));

    const bool is_quick = fault == kill || fault == cut;
    for (const auto& p : world.processes) {
      const Failure& failure = p->membership.failure();
      const bool failed = p->failed_at != never;
      if (p.get() == &victim) {
        // It lives on where it was only cut off: the hub is lost to it. Who goes on after a pause may hear that all have given it up.
        if (fault == kill || fault == stop) continue;
        if (failed && (fault == pause || victim.rank != 0)) {
          ASSERT_EQ(failure.rank, fault == pause ? victim.rank : 0);
        }
        ASSERT_TRUE(failed || p->left_at != never);
        continue;
      }
      const bool was_here =
          victim_was_whole && p->membership.is_whole();  // else it may be waited for until the time-out
      if (failed) {
        const bool is_right = failure.rank == victim.rank || (fault == silence && victim.rank == 0 && p->rank == 0);
        ASSERT_TRUE(is_right) << "rank " << p->rank;
        ASSERT_TRUE(failure.status == RA_STATUS_PEER_LOST || (failure.status == RA_STATUS_TIMEOUT && !was_here));
      }
      ASSERT_TRUE(failed || p->left_at != never) << "rank " << p->rank << " knows nothing";
      if (had_left || fault == pause || p->membership.has_left(0) || p->left_at != never) continue;
      Time bound = std::max(when, p->start) + longest_delay + (is_quick ? longest_delay : longest_silence);
      if (!was_here) bound = std::max(bound, p->start + join_timeout + longest_silence);
      ASSERT_LE(p->failed_at, bound) << "rank " << p->rank;
    }
    expect_right_gathers(world);
  });
}

TEST(Membership, AllHearOfAFailure) {
  for_random_worlds(3000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 8));
    add_group(world, world_size);
    Process& culprit = world.process(random.below(world_size));
    const auto status = static_cast<ra_status>(random.between(RA_STATUS_INVALID_ARGUMENT, RA_STATUS_INTERNAL_ERROR));
    const Time when = std::max(random.between(0, 4000), culprit.start);
    bool counts = false;
    world.at(when, [&] {
      counts = culprit.left_at == never;
      Failure failure(status, culprit.rank, "it is just so");
      failure.cuda_error = 7;
      culprit.membership.fail(failure);
      culprit.membership.fail({RA_STATUS_ABORTED, culprit.rank, "too late"});
      world.advance(static_cast<std::size_t>(culprit.rank));
    });
    ASSERT_TRUE(world.run()) << "hangs";
    const bool is_of_all = status == RA_STATUS_TIMEOUT || status == RA_STATUS_ABORTED ||
                           status == RA_STATUS_PEER_LOST || status == RA_STATUS_MISMATCH;
    for (const auto& p : world.processes) {
      const Failure& failure = p->membership.failure();
      const Time bound = std::max({when, p->start, world.process(0).start}) + 3 * longest_delay;
      if (p->failed_at == never) {
        ASSERT_NE(p->left_at, never);
        ASSERT_TRUE(!counts || p->left_at <= bound || p->membership.has_left(0)) << "rank " << p->rank;
        continue;
      }
      ASSERT_TRUE(counts);
      ASSERT_EQ(failure.rank, culprit.rank);
      ASSERT_EQ(failure.cuda_error, 7);
      const bool as_it_is = is_of_all || p.get() == &culprit;
      ASSERT_EQ(failure.status, as_it_is ? status : RA_STATUS_PEER_LOST);
      ASSERT_EQ(failure.message, as_it_is ? "it is just so" : text("rank ", culprit.rank, " failed: it is just so"));
      ASSERT_LE(p->failed_at, bound);
    }
    expect_right_gathers(world);
  });
}

// Ranks wait for each other, directly or in a gather, and in the end all for one that computes, or has been stopped.
TEST(Membership, ATimeOutNamesTheEndOfTheChain) {
  for_random_worlds(3000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 8));
    std::vector<int> order;  // who waits, waits for one before it
    for (int r = 0; r < world_size; ++r) {
      world.add(hello_of(world_size, r));
      order.insert(order.begin() + random.below(r + 1), r);
    }
    const int culprit = order[0];
    constexpr Time all_joined = latest_start + 3 * longest_delay;
    constexpr Time begin = 2000;
    Time deadline = never;
    std::vector<int> blockers;  // not who is in the gather: its way on leads to those that are not
    for (const int r : order) {
      Process& p = world.process(r);
      const Time first_wait = random.between(begin, begin + 200);
      p.timeout_ms = random.between(300, 3000);
      p.script.push_back({Step::compute_until, r == culprit ? 20'000 : first_wait});
      if (r != culprit) deadline = std::min(deadline, first_wait + p.timeout_ms);
      if (r != culprit && random.chance(30)) {
        p.script.push_back({Step::begin_gather, 8});
        p.script.push_back({Step::end_gather});
      } else {
        if (r != culprit)
          p.script.push_back(
              {Step::receive, blockers[static_cast<std::size_t>(random.below(static_cast<int>(blockers.size())))]});
        blockers.push_back(r);
      }
    }
    const bool is_stopped = random.chance(30);
    if (is_stopped)
      world.at(random.between(all_joined, begin + 2000),
               [&world, culprit] { world.pause(world.process(culprit), never); });
    ASSERT_TRUE(world.run()) << "hangs";
    SCOPED_TRACE(text("culprit ", culprit, is_stopped ? ", stopped" : "", ", first deadline ", deadline));
    for (const auto& p : world.processes) {
      if (is_stopped && p->rank == culprit) continue;
      const Failure& failure = p->membership.failure();
      ASSERT_EQ(failure.rank, culprit) << failure.message;
      if (is_stopped) {
        ASSERT_TRUE(failure.status == RA_STATUS_TIMEOUT || failure.status == RA_STATUS_PEER_LOST) << failure.message;
        ASSERT_LE(p->failed_at, deadline + 4 * longest_delay + longest_silence);
      } else {
        ASSERT_EQ(failure.status, RA_STATUS_TIMEOUT);
        const std::string message = failure.message;
        ASSERT_TRUE(message.starts_with(text("rank ", culprit, " did not come within timeout_ms = "))) << message;
        ASSERT_GE(p->failed_at, deadline);
        ASSERT_LE(p->failed_at, deadline + 4 * longest_delay);  // to the hub, its question, the answers, the verdict
      }
    }
  });
}

// A rank that does not come in time is named by all, be it the hub.
TEST(Membership, ATimeOutOfTheJoinNamesWhoIsAbsent) {
  for_random_worlds(1000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 8));
    std::vector<int> absent;
    for (int r = 0; r < world_size; ++r) {
      Process& p = world.add(hello_of(world_size, r));
      p.join_timeout_ms = 2000;
      if (random.chance(30)) absent.push_back(r);
    }
    if (absent.empty()) absent.push_back(random.below(world_size));
    for (const int r : absent) world.process(r).start = r == 0 ? 50'000 : 5000;
    ASSERT_TRUE(world.run()) << "hangs";
    for (const auto& p : world.processes) {
      const bool comes = std::find(absent.begin(), absent.end(), p->rank) == absent.end();
      if (absent[0] == 0 && p->rank == 0) continue;
      const Failure& failure = p->membership.failure();
      if (!comes && p->membership.failure().rank == 0) continue;  // the hub is gone, too
      ASSERT_EQ(failure.status, RA_STATUS_TIMEOUT);
      ASSERT_EQ(failure.rank, absent[0]) << failure.message;
      if (comes) {
        ASSERT_LE(p->failed_at, p->start + 2000 + 2 * longest_delay);
      }
    }
  });
}

// Frames of one rank that are changed on their way, lost ones that are replaced, and ones from nowhere.
TEST(Membership, NonsenseIsItsSendersFault) {
  for_random_worlds(6000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 8));
    add_group(world, world_size);
    for (const auto& p : world.processes) p->timeout_ms = p->join_timeout_ms = 5000;
    const int culprit = random.below(world_size);
    const int percent = std::array{2, 20, 100}[static_cast<std::size_t>(random.below(3))];
    // What a rank may say of others cannot be told from nonsense: broken, timed_out; of the hub welcome, records and left, too.
    bool speaks_of_others = false;
    world.tamper = [&](Process& p, Membership::Frame frame) {
      std::vector<Membership::Frame> frames{frame};
      if (p.rank != culprit || !random.chance(percent)) return frames;
      Bytes& bytes = frame.bytes;
      switch (random.below(6)) {
        case 0:
          bytes.resize(static_cast<std::size_t>(random.between(0, 60)));
          for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.below(256));
          if (!bytes.empty() && random.chance(80)) bytes[0] = static_cast<std::byte>(random.below(11));
          frames.push_back(frame);
          break;
        case 1:
          bytes.resize(static_cast<std::size_t>(random.below(static_cast<int>(bytes.size()))));
          frames = {frame};
          break;
        case 2:
          bytes.resize(bytes.size() + static_cast<std::size_t>(random.between(1, 9)));
          frames = {frame};
          break;
        case 3:
          frames.push_back(frame);
          break;
        default:
          for (std::int64_t n = random.between(1, 3); n > 0; --n)
            bytes[static_cast<std::size_t>(random.below(static_cast<int>(bytes.size())))] ^=
                static_cast<std::byte>(1 << random.below(8));
          frames = {frame};
      }
      if (!bytes.empty()) {
        const int kind = static_cast<int>(bytes[0]);
        speaks_of_others |= culprit == 0 ? kind == 2 || kind == 5 || kind == 6 || kind == 8 : kind == 6 || kind == 9;
      }
      return frames;
    };
    ASSERT_TRUE(world.run()) << "hangs";
    SCOPED_TRACE(text("culprit ", culprit));
    for (const auto& p : world.processes) {
      const Failure& failure = p->membership.failure();
      ASSERT_TRUE(p->failed_at != never || p->left_at != never);
      if (p->rank == culprit || p->failed_at == never || speaks_of_others) continue;
      ASSERT_TRUE(failure.rank == culprit || (failure.rank == -1 && failure.status == RA_STATUS_MISMATCH))
          << failure.message;
    }
    if (culprit != 0) expect_equal_gathers(world);
  });
}

// Ranks that do not agree, or come twice: every one gets MISMATCH, with both values.
TEST(Membership, DisagreementsAreMismatchesOnAll) {
  for_random_worlds(3000, [](World& world) {
    Random& random = world.random;
    const int world_size = static_cast<int>(random.between(2, 6));
    const int other = random.below(world_size);
    const auto altered = [&](Hello& hello, const std::string& name) {
      if (name == "wire version") return text(hello.wire += 1);
      if (name == "version") return hello.library += 100, std::string("0.2.0");
      if (name == "world_size")  // its own rank it has at least
        return text(hello.world_size += hello.rank > 0 && hello.rank < world_size - 1 && random.chance(50) ? -1 : 2);
      if (name == "backend") return text(hello.backend += 1);
      return text(hello.encryption += 1);
    };
    const std::array<std::string, 5> names{"wire version", "version", "world_size", "backend", "encryption"};
    const std::array<std::string, 5> usual{text(wire_version), "0.1.0", text(world_size), "0", "0"};
    const auto field = static_cast<std::size_t>(random.below(6));
    std::string value;
    for (int r = 0; r < world_size; ++r) {
      Hello hello = hello_of(world_size, r);
      hello.library = 100;
      if (r == other && field < names.size()) value = altered(hello, names[field]);
      world.add(hello).script.push_back({Step::compute, 3000});
    }
    if (field == names.size()) {
      Hello hello = hello_of(world_size, other > 0 ? other : 1);
      hello.library = 100;
      hello.address = "tcp://elsewhere:1";
      world.add(hello).script.push_back({Step::compute, 3000});
    }
    ASSERT_TRUE(world.run()) << "hangs";
    for (const auto& p : world.processes) {
      const Failure& failure = p->membership.failure();
      const std::string message = failure.message;
      ASSERT_EQ(failure.status, RA_STATUS_MISMATCH);
      ASSERT_LE(p->failed_at, latest_start + 2 * longest_delay);
      if (field == names.size()) {
        const int rank = other > 0 ? other : 1;
        ASSERT_EQ(failure.rank, rank);
        ASSERT_TRUE(message.starts_with(text("rank is ", rank, " twice, at "))) << message;
        ASSERT_NE(message.find("tcp://elsewhere:1"), std::string::npos) << message;
        ASSERT_NE(message.find(hello_of(world_size, rank).address), std::string::npos) << message;
      } else {
        const std::string& theirs = other == 0 ? usual[field] : value;
        const std::string& hubs = other == 0 ? value : usual[field];
        ASSERT_TRUE(message.starts_with(text(names[field], " is ", theirs, " on rank "))) << message;
        ASSERT_TRUE(message.ends_with(text(" but ", hubs, " on rank 0"))) << message;
        ASSERT_TRUE(failure.rank == -1 || other == 0 || failure.rank == other);
      }
    }
  });
}

// ---- Without a network: what one Membership does.

// Some ranks, and nothing between them but order.
struct Ranks {
  std::vector<Membership> ranks;

  explicit Ranks(int world_size) {
    for (int r = 0; r < world_size; ++r) ranks.emplace_back(hello_of(world_size, r), Session{});
    for (Membership& m : ranks) m.begin();
    exchange();
  }
  Membership& operator[](int rank) { return ranks[static_cast<std::size_t>(rank)]; }
  // Until none has anything to say.
  void exchange() {
    for (bool more = true; more;) {
      more = false;
      for (int r = 0; r < static_cast<int>(ranks.size()); ++r)
        for (const auto& frame : (*this)[r].take_frames()) {
          (*this)[frame.to].on_frame(r, frame.bytes);
          more = true;
        }
    }
  }
};

struct Pair : Ranks {
  Membership &hub = ranks[0], &spoke = ranks[1];
  Pair() : Ranks(2) {}
};

// A frame as frame.h describes it.
struct Frame {
  Bytes bytes;
  explicit Frame(int kind) { number(kind, 1); }
  Frame& number(std::int64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(value >> 8 * i & 0xff));
    return *this;
  }
  Frame& i32(std::int64_t value) { return number(value, 4); }
  Frame& i64(std::int64_t value) { return number(value, 8); }
  Frame& text(const std::string& characters) {
    number(static_cast<std::int64_t>(characters.size()), 2);
    for (const char c : characters) number(c, 1);
    return *this;
  }
  Frame& zeros(std::size_t count) {
    bytes.resize(bytes.size() + count);
    return *this;
  }
  Frame& hello(const Hello& h) {
    i32(h.wire).i32(h.library).i32(h.world_size).i32(h.rank).i32(h.backend).i32(h.encryption).i32(h.cipher);
    return text(h.address).text(h.machine);
  }
};

Frame hello_frame() { return Frame(1); }
Frame welcome_frame() { return Frame(2).zeros(sizeof(Session)); }
Frame beat_of_hub(int absent, int question) { return Frame(3).i32(absent).i32(question); }
Frame beat(int waits_for, std::int64_t calls, int answer) { return Frame(3).i32(waits_for).i64(calls).i32(answer); }
Frame record_frame(std::int64_t round) { return Frame(4).i64(round); }
Frame records_frame(std::int64_t round) { return Frame(5).i64(round); }
Frame broken(int status, int rank, const std::string& message) {
  return Frame(6).i32(status).i32(rank).i32(0).i32(0).text(message);
}
Frame leave() { return Frame(7); }
Frame left(int rank, std::int64_t rounds, std::int64_t calls = 0) { return Frame(8).i32(rank).i64(rounds).i64(calls); }
Frame timed_out(int blocker) { return Frame(9).i32(blocker).i64(1000); }

void expect_nonsense_of(int from, const Failure& failure) {
  EXPECT_EQ(failure.status, RA_STATUS_PEER_LOST);
  EXPECT_EQ(failure.rank, from);
  const std::string message = failure.message;
  EXPECT_TRUE(message.starts_with(text("rank ", from, " sent a frame that means nothing here"))) << message;
}

// What a spoke may and may not say to the hub of three ranks, which has done a round of gather. Of the right ones none breaks it.
TEST(Membership, TheHubKnowsNonsense) {
  const std::string too_long(384, 'x');
  const Frame right[] = {beat(-1, 0, 0),
                         beat(-2, 5, 0),
                         beat(0, 5, 0),
                         beat(2, 1, 77),
                         record_frame(1),
                         leave(),
                         record_frame(1).zeros(Membership::largest_record)};
  for (const Frame& frame : right) {
    SCOPED_TRACE(text("kind ", static_cast<int>(frame.bytes[0]), ", ", frame.bytes.size(), " bytes"));
    const auto group = [] {
      Ranks ranks(3);
      for (Membership& m : ranks.ranks) m.gather({});
      ranks.exchange();
      return ranks;
    };
    Ranks fine = group();
    fine[0].on_frame(1, frame.bytes);
    EXPECT_EQ(fine[0].failure().status, RA_STATUS_SUCCESS) << fine[0].failure().message;
    if (frame.bytes[0] == std::byte{4}) continue;
    for (std::size_t size = 0; size < frame.bytes.size(); ++size) {
      Ranks shorter = group();
      shorter[0].on_frame(1, std::span(frame.bytes).first(size));
      expect_nonsense_of(1, shorter[0].failure());
    }
    Ranks longer = group();
    longer[0].on_frame(1, Frame(frame).zeros(1).bytes);
    expect_nonsense_of(1, longer[0].failure());
  }
  const Frame wrong[] = {beat(Membership::transfers - 1, 0, 0),
                         beat(1, 0, 0),
                         beat(3, 0, 0),
                         record_frame(-1),
                         record_frame(0),
                         record_frame(2),
                         record_frame(1).zeros(Membership::largest_record + 1),
                         broken(0, 1, "x"),
                         broken(12, 1, "x"),
                         broken(7, 3, "x"),
                         broken(7, -2, "x"),
                         broken(7, 1, too_long),
                         timed_out(Membership::transfers - 1),
                         timed_out(1),
                         timed_out(3),
                         timed_out(0).zeros(1),
                         hello_frame(),
                         hello_frame().hello(hello_of(3, 2)),
                         welcome_frame(),
                         records_frame(1),
                         left(2, 1),
                         Frame(0),
                         Frame(10),
                         Frame(255)};
  for (const Frame& frame : wrong) {
    SCOPED_TRACE(text("kind ", static_cast<int>(frame.bytes[0]), ", ", frame.bytes.size(), " bytes"));
    Ranks ranks(3);
    for (Membership& m : ranks.ranks) m.gather({});
    ranks.exchange();
    ranks[0].on_frame(1, frame.bytes);
    expect_nonsense_of(1, ranks[0].failure());
    ranks.exchange();
    expect_nonsense_of(1, ranks[1].failure());
    expect_nonsense_of(1, ranks[2].failure());
  }
  Ranks ahead(3);
  for (int round = 0; round < 3; ++round) ahead[0].on_frame(1, record_frame(round).bytes);
  expect_nonsense_of(1, ahead[0].failure());
  Ranks back(3);
  for (const int calls : {5, 4}) back[0].on_frame(1, beat(-1, calls, 0).bytes);
  expect_nonsense_of(1, back[0].failure());
}

// The same of what comes before all have joined.
TEST(Membership, TheJoiningHubKnowsNonsense) {
  Hello long_address = hello_of(3, 1), strange_address = hello_of(3, 1), strange_machine = hello_of(3, 1);
  long_address.address = std::string(257, 'a');
  strange_address.address = "a\n";
  strange_machine.machine = std::string(1, '\0');
  for (const bool is_here : {false, true}) {
    std::vector<Frame> wrong{record_frame(0), leave()};
    if (!is_here) wrong.insert(wrong.end(), {beat(-1, 0, 0), timed_out(-1)});
    for (const Hello& hello : {long_address, strange_address, strange_machine, hello_of(3, 2)})
      wrong.push_back(hello_frame().hello(hello));
    wrong.push_back(hello_frame().hello(hello_of(3, 1)).zeros(1));
    for (const Frame& frame : wrong) {
      SCOPED_TRACE(text("kind ", static_cast<int>(frame.bytes[0]), ", ", frame.bytes.size(), " bytes"));
      Membership hub(hello_of(3, 0), {});
      hub.begin();
      if (is_here) hub.on_frame(1, hello_frame().hello(hello_of(3, 1)).bytes);
      hub.take_frames();
      hub.on_frame(1, frame.bytes);
      expect_nonsense_of(1, hub.failure());
      const auto answer = hub.take_frames();
      ASSERT_EQ(answer.size(), 1U);
      EXPECT_EQ(answer[0].to, 1);
    }
  }
}

// What the hub may and may not say to rank 1 of three, after a round of gather, while it waits for the next.
TEST(Membership, ASpokeKnowsNonsense) {
  const auto group = [] {
    Ranks ranks(3);
    for (Membership& m : ranks.ranks) m.gather({});
    ranks.exchange();
    ranks[1].gather(Bytes(2));
    return ranks;
  };
  const Frame right[] = {beat_of_hub(-1, 0), beat_of_hub(-1, 9), records_frame(1).zeros(6), left(0, 1), left(2, 2)};
  for (const Frame& frame : right) {
    SCOPED_TRACE(text("kind ", static_cast<int>(frame.bytes[0]), ", ", frame.bytes.size(), " bytes"));
    Ranks fine = group();
    fine[1].on_frame(0, frame.bytes);
    EXPECT_EQ(fine[1].failure().status, RA_STATUS_SUCCESS) << fine[1].failure().message;
    for (std::size_t size = 0; size < frame.bytes.size(); ++size) {
      Ranks shorter = group();
      shorter[1].on_frame(0, std::span(frame.bytes).first(size));
      expect_nonsense_of(0, shorter[1].failure());
    }
    Ranks longer = group();
    longer[1].on_frame(0, Frame(frame).zeros(1).bytes);
    expect_nonsense_of(0, longer[1].failure());
  }
  Frame welcome = welcome_frame();
  for (int r = 0; r < 3; ++r) welcome.hello(hello_of(3, r));
  const Frame wrong[] = {welcome,
                         beat_of_hub(0, 0),
                         beat_of_hub(3, 0),
                         records_frame(0),
                         records_frame(0).zeros(6),
                         records_frame(2).zeros(6),
                         records_frame(1).zeros(3),
                         left(-1, 1),
                         left(1, 1),
                         left(3, 1),
                         left(2, 0),
                         left(2, 1, -1),
                         broken(0, 0, "x"),
                         broken(12, 0, "x"),
                         broken(7, -2, "x"),
                         hello_frame().hello(hello_of(3, 0)),
                         record_frame(1),
                         leave(),
                         timed_out(-1),
                         Frame(0),
                         Frame(10)};
  for (const Frame& frame : wrong) {
    SCOPED_TRACE(text("kind ", static_cast<int>(frame.bytes[0]), ", ", frame.bytes.size(), " bytes"));
    Ranks ranks = group();
    ranks[1].on_frame(0, frame.bytes);
    expect_nonsense_of(0, ranks[1].failure());
  }
  Ranks twice = group();
  for (int n = 0; n < 2; ++n) twice[1].on_frame(0, left(2, 2).bytes);
  expect_nonsense_of(0, twice[1].failure());
  Ranks unasked(3);
  unasked[1].on_frame(0, records_frame(0).bytes);
  expect_nonsense_of(0, unasked[1].failure());
  // Who has left is not listened to any more, and neither does a third one speak to a spoke.
  Ranks over = group();
  over[1].on_frame(2, Frame(10).bytes);
  over[1].on_frame(0, left(0, 1).bytes);
  over[1].on_frame(0, Frame(10).bytes);
  EXPECT_EQ(over[1].failure().status, RA_STATUS_SUCCESS);
}

TEST(Membership, ASpokeReadsItsWelcome) {
  const auto welcome = [](const std::vector<Hello>& hellos, std::size_t more = 0) {
    Frame frame = welcome_frame();
    for (const Hello& hello : hellos) frame.hello(hello);
    return frame.zeros(more);
  };
  const auto failure_after = [](const Frame& frame) {
    Membership spoke(hello_of(2, 1), {});
    spoke.begin();
    spoke.on_frame(0, frame.bytes);
    EXPECT_EQ(spoke.is_whole(), spoke.failure().status == RA_STATUS_SUCCESS);
    return spoke.failure();
  };
  const Hello hub = hello_of(2, 0), own = hello_of(2, 1);
  EXPECT_EQ(failure_after(welcome({hub, own})).status, RA_STATUS_SUCCESS);
  expect_nonsense_of(0, failure_after(welcome({hub, own}, 1)));
  expect_nonsense_of(0, failure_after(welcome({hub})));
  expect_nonsense_of(0, failure_after(welcome({own, hub})));
  expect_nonsense_of(0, failure_after(welcome({hello_of(3, 0), own})));
  Hello other = own;
  other.address = "tcp://elsewhere:1";
  const Failure twice = failure_after(welcome({hub, other}));
  EXPECT_EQ(twice.status, RA_STATUS_MISMATCH);
  EXPECT_EQ(twice.rank, 1);
  EXPECT_STREQ(twice.message, "rank is 1 twice, at tcp://elsewhere:1 and at tcp://10.0.0.1:4000; each rank comes once");
}

TEST(Membership, AMessageHasNoControlCharacters) {
  Pair pair;
  pair.hub.on_frame(1, broken(RA_STATUS_ABORTED, 1, "one\ntwo\x1b[0m").bytes);
  EXPECT_STREQ(pair.hub.failure().message, "one?two?[0m");
  Pair longest;
  longest.hub.on_frame(1, broken(RA_STATUS_ABORTED, 1, std::string(383, 'x')).bytes);
  EXPECT_EQ(longest.hub.failure().message, std::string(383, 'x'));
}

// A connection that ends before its rank has said hello may have been anybody's.
TEST(Membership, WhoHasNotComeIsNotLost) {
  Membership hub(hello_of(2, 0), {}), spoke(hello_of(2, 1), {});
  hub.begin();
  hub.on_disconnect(1);
  for (int n = 0; n < 10; ++n) hub.on_beat();
  EXPECT_EQ(hub.failure().status, RA_STATUS_SUCCESS);
  spoke.begin();
  for (int n = 0; n < 10; ++n) spoke.on_beat();
  EXPECT_EQ(spoke.failure().status, RA_STATUS_SUCCESS);
  spoke.on_disconnect(0);
  EXPECT_EQ(spoke.failure().status, RA_STATUS_PEER_LOST);
  EXPECT_EQ(spoke.failure().rank, 0);
  EXPECT_STREQ(spoke.failure().message, "the connection to rank 0 is gone");
}

TEST(Membership, LeavingWhileJoiningBreaksTheGroup) {
  for (const int leaver : {0, 1}) {
    Ranks ranks(0);
    for (int r = 0; r < 2; ++r) ranks.ranks.emplace_back(hello_of(3, r), Session{});
    for (Membership& m : ranks.ranks) m.begin();
    ranks.exchange();
    ranks[leaver].leave();
    ranks.exchange();
    const Failure& failure = ranks[1 - leaver].failure();
    EXPECT_EQ(failure.status, RA_STATUS_PEER_LOST);
    EXPECT_EQ(failure.rank, leaver);
    EXPECT_EQ(failure.message, text("rank ", leaver, " left before all ranks had joined"));
  }
}

// Who is alone against two that agree is named, but not one of two.
TEST(Membership, AMismatchNamesWhoIsAlone) {
  for (const bool is_third : {false, true}) {
    Membership hub(hello_of(3, 0), {});
    hub.begin();
    if (is_third) hub.on_frame(1, hello_frame().hello(hello_of(3, 1)).bytes);
    Hello other = hello_of(3, 2);
    other.backend = 1;
    hub.on_frame(2, hello_frame().hello(other).bytes);
    EXPECT_EQ(hub.failure().status, RA_STATUS_MISMATCH);
    EXPECT_EQ(hub.failure().rank, is_third ? 2 : -1);
    EXPECT_STREQ(hub.failure().message, "backend is 1 on rank 2 but 0 on rank 0");
  }
}

// A rank that a forming group has no place for breaks it, and hears why; so does one that comes when it has broken.
TEST(Membership, AFormingGroupBreaksForARankOutsideIt) {
  Membership hub(hello_of(2, 0), {});
  hub.begin();
  hub.on_frame(5, hello_frame().bytes);
  hub.on_frame(5, beat(-1, 0, 0).bytes);
  hub.on_frame(5, hello_frame().hello(hello_of(2, 5)).bytes);
  EXPECT_EQ(hub.failure().status, RA_STATUS_SUCCESS) << "it does not even know what it wants";
  EXPECT_TRUE(hub.take_frames().empty());
  for (const int late : {5, 1}) {
    Membership spoke(hello_of(8, late), {});
    hub.on_frame(late, hello_frame().hello(hello_of(8, late)).bytes);
    EXPECT_EQ(hub.failure().status, RA_STATUS_MISMATCH);
    const auto frames = hub.take_frames();
    ASSERT_EQ(frames.size(), 1U);
    EXPECT_EQ(frames[0].to, late);
    spoke.on_frame(0, frames[0].bytes);
    EXPECT_STREQ(spoke.failure().message, "world_size is 8 on rank 5 but 2 on rank 0");
  }
}

// ---- Time-outs by hand: what random groups rarely meet.

// A rank that does not answer is the end, whomever it waited for when it last spoke.
TEST(Membership, WhoDoesNotAnswerIsTheEndOfTheChain) {
  Ranks ranks(3);
  ranks[0].on_frame(2, beat(0, 0, 0).bytes);
  ranks[1].set_waits_for(2);
  ranks[0].on_timeout(1, 1000);
  for (const auto& frame : ranks[0].take_frames())
    if (frame.to == 1) ranks[1].on_frame(0, frame.bytes);
  for (const auto& frame : ranks[1].take_frames()) ranks[0].on_frame(1, frame.bytes);
  ranks[0].on_beat();
  EXPECT_EQ(ranks[0].failure().status, RA_STATUS_SUCCESS);
  ranks[0].on_beat();
  EXPECT_EQ(ranks[0].failure().status, RA_STATUS_TIMEOUT);
  EXPECT_EQ(ranks[0].failure().rank, 2);
}

// Nor does anybody wait for the answer of a rank that leaves.
TEST(Membership, WhoLeavesNeedNotAnswer) {
  Ranks ranks(3);
  ranks[0].on_timeout(1, 1000);
  ranks[0].on_frame(1, beat(-1, 0, 1).bytes);
  EXPECT_EQ(ranks[0].failure().status, RA_STATUS_SUCCESS);
  ranks[0].on_frame(2, leave().bytes);
  EXPECT_EQ(ranks[0].failure().status, RA_STATUS_TIMEOUT);
  EXPECT_EQ(ranks[0].failure().rank, 1);
}

// A hub that is there but does not answer is the one that did not come.
TEST(Membership, ASpokeDoesNotWaitForTheVerdictForever) {
  Ranks ranks(3);
  ranks[1].on_timeout(2, 1000);
  for (int n = 1; n <= Membership::silent_beats; ++n) {
    EXPECT_EQ(ranks[1].failure().status, RA_STATUS_SUCCESS);
    ranks[1].on_frame(0, beat_of_hub(-1, 0).bytes);
    ranks[1].on_beat();
  }
  EXPECT_EQ(ranks[1].failure().status, RA_STATUS_TIMEOUT);
  EXPECT_EQ(ranks[1].failure().rank, 0);
}

// Where all came just when it was too late, the last is named; the hub, where that is who gave up.
TEST(Membership, ATimeOutNamesWhoCameLast) {
  for (const int waiter : {1, 2}) {
    Ranks joined(3);
    joined[0].on_frame(waiter, timed_out(-1).bytes);
    EXPECT_EQ(joined[0].failure().status, RA_STATUS_TIMEOUT);
    EXPECT_EQ(joined[0].failure().rank, waiter == 2 ? 0 : 2);
    Ranks gathered(3);
    for (const int r : {2, 0, 1}) {
      gathered[r].gather({});
      gathered.exchange();
    }
    gathered[0].on_frame(waiter, timed_out(Membership::whoever).bytes);
    gathered.exchange();
    EXPECT_EQ(gathered[0].failure().status, RA_STATUS_TIMEOUT);
    EXPECT_EQ(gathered[0].failure().rank, waiter == 1 ? 0 : 1);
  }
}

// Who waits for transfers does not know whose. It is whoever does not wait himself and is not done with that call, but for those that have
// left; nobody is named if there is nobody.
TEST(Membership, ATimeOutOfTransfersNamesWhoDoesNotWait) {
  constexpr int size = 4;
  for (int waiter = 0; waiter < size; ++waiter)
    for (int late = -1; late < size; ++late)
      for (int gone = -1; gone < size; ++gone)
        for (int done = -1; done < size; ++done) {
          if (late == waiter || gone == waiter || done == waiter || gone == 0) continue;
          Ranks ranks(size);
          if (done >= 0) ranks[done].end_call();  // before the others
          for (int r = 0; r < size; ++r)
            if (r != late && r != gone && r != done) ranks[r].set_waits_for(Membership::transfers);
          if (gone >= 0) ranks[gone].leave();
          ranks.exchange();
          for (int r = 0; r < size; ++r)
            if (r != gone) {
              EXPECT_EQ(ranks[r].has_left_undone(gone), gone >= 0 && (gone != done || r == done));
            }
          ranks[waiter].on_timeout(Membership::transfers, 1000);
          ranks.exchange();
          const int named = late >= 0 && late != done && late != gone ? late : gone != done ? gone : -1;
          for (int r = 0; r < size; ++r) {
            if (r == gone) continue;
            EXPECT_EQ(ranks[r].failure().status, RA_STATUS_TIMEOUT);
            EXPECT_EQ(ranks[r].failure().rank, named)
                << "waiter " << waiter << ", late " << late << ", gone " << gone << ", done " << done;
          }
        }
}

TEST(Membership, OneRankIsWholeAtOnce) {
  Membership one(hello_of(1, 0), Session{std::byte{3}});
  EXPECT_FALSE(one.is_whole());
  one.begin();
  EXPECT_TRUE(one.is_whole());
  EXPECT_EQ(one.first_absent(), -1);
  EXPECT_EQ(one.roster().ranks, std::vector{hello_of(1, 0)});
  for (std::int64_t round = 0; round < 3; ++round) {
    one.gather(record_of(0, round, 4));
    ASSERT_NE(one.records(round), nullptr);
    EXPECT_EQ(*one.records(round), record_of(0, round, 4));
    one.end_call();
    one.on_beat();
  }
  EXPECT_TRUE(one.may_leave());
  one.leave();
  EXPECT_TRUE(one.take_frames().empty());
  EXPECT_EQ(one.failure().status, RA_STATUS_SUCCESS);
}

TEST(Membership, SaysWhoIsAbsent) {
  Membership hub(hello_of(4, 0), {}), spoke(hello_of(4, 2), {});
  hub.begin();
  spoke.begin();
  EXPECT_EQ(hub.first_absent(), 1);
  EXPECT_EQ(spoke.first_absent(), 0);
  for (const auto& frame : spoke.take_frames()) hub.on_frame(2, frame.bytes);
  for (const auto& frame : hub.take_frames()) spoke.on_frame(0, frame.bytes);
  EXPECT_EQ(spoke.first_absent(), 1);
  EXPECT_FALSE(spoke.is_whole());
}

// The hub goes when all have done as many calls as it has.
TEST(Membership, TheHubStaysUntilNobodyNeedsIt) {
  Pair pair;
  EXPECT_TRUE(pair.hub.may_leave());
  pair.hub.end_call();
  EXPECT_FALSE(pair.hub.may_leave());
  EXPECT_TRUE(pair.spoke.may_leave());
  pair.spoke.end_call();
  pair.spoke.on_beat();
  pair.exchange();
  EXPECT_TRUE(pair.hub.may_leave());
  pair.hub.end_call();
  EXPECT_FALSE(pair.hub.may_leave());
  pair.spoke.leave();
  pair.exchange();
  EXPECT_TRUE(pair.hub.may_leave());
  EXPECT_TRUE(pair.hub.has_left(1));
}

// Who has left is missed by those only who need a record that it did not send.
TEST(Membership, ARecordOutlivesItsRank) {
  Ranks ranks(3);
  Membership &hub = ranks[0], &first = ranks[1], &second = ranks[2];
  const auto exchange = [&] { ranks.exchange(); };
  first.gather(record_of(1, 0, 3));
  first.leave();
  exchange();
  EXPECT_TRUE(hub.has_left(1) && second.has_left(1));
  EXPECT_EQ(second.left_before(0), -1);
  EXPECT_EQ(second.left_before(1), 1);
  second.gather(record_of(2, 0, 3));
  hub.gather(record_of(0, 0, 3));
  exchange();
  ASSERT_NE(second.records(0), nullptr);
  EXPECT_EQ(hub.left_before(0), -1);
  EXPECT_EQ(hub.left_before(1), 1);
  hub.gather(record_of(0, 1, 3));
  hub.leave();
  hub.on_beat();
  exchange();
  EXPECT_EQ(second.left_before(0), -1);
  EXPECT_EQ(second.left_before(1), 0) << "with the hub all gathers end";
  second.on_disconnect(0);
  for (int n = 0; n < 10; ++n) second.on_beat();
  EXPECT_EQ(second.failure().status, RA_STATUS_SUCCESS);
  second.on_timeout(1, 77);
  EXPECT_EQ(second.failure().status, RA_STATUS_TIMEOUT);
  EXPECT_EQ(second.failure().rank, 1);
  EXPECT_STREQ(second.failure().message, "rank 1 did not come within timeout_ms = 77 (rank 2 waited)");
}

TEST(Membership, RecordsOfARoundHaveOneSize) {
  for (const int alone : {0, 1, 2}) {
    Ranks ranks(3);
    for (int r = 0; r < 3; ++r) ranks[r].gather(record_of(r, 0, r == alone ? 5 : 4));
    ranks.exchange();
    for (const Membership& m : ranks.ranks) {
      EXPECT_EQ(m.failure().status, RA_STATUS_MISMATCH);
      EXPECT_EQ(m.failure().rank, alone);
      EXPECT_EQ(m.failure().message, alone == 0
                                         ? std::string("the record of gather has 5 bytes on rank 0 but 4 on rank 1")
                                         : text("the record of gather has 4 bytes on rank 0 but 5 on rank ", alone));
    }
  }
}

// What this library itself must not do with it.
TEST(Membership, GatherHasLimits) {
  Pair early;
  Membership alone(hello_of(2, 1), {});
  alone.begin();
  alone.gather({});
  EXPECT_EQ(alone.failure().status, RA_STATUS_INTERNAL_ERROR);
  for (int n = 0; n < 2; ++n) early.spoke.gather({});
  EXPECT_EQ(early.spoke.failure().status, RA_STATUS_SUCCESS);
  early.spoke.gather({});
  EXPECT_EQ(early.spoke.failure().status, RA_STATUS_INTERNAL_ERROR);
  EXPECT_STREQ(early.spoke.failure().message, "round 2 of gather begins while round 0 is going on");

  Pair large;
  const Bytes record(Membership::largest_record);
  large.spoke.gather(record);
  large.hub.gather(record);
  large.exchange();
  ASSERT_NE(large.spoke.records(0), nullptr);
  EXPECT_EQ(large.spoke.records(0)->size(), 2 * record.size());
  large.hub.gather(Bytes(record.size() + 1));
  large.exchange();
  EXPECT_EQ(large.hub.failure().status, RA_STATUS_INTERNAL_ERROR);
  EXPECT_EQ(large.spoke.failure().status, RA_STATUS_PEER_LOST);
  EXPECT_STREQ(large.spoke.failure().message, "rank 0 failed: a record of gather has 65537 bytes; at most 65536");
}

// Somebody with the group's secret comes when it is whole, from a rank that it does not have: he is told why, and nobody else.
TEST(Membership, AStrangerDoesNotDisturbAWholeGroup) {
  Pair pair;
  Membership late(hello_of(8, 5), {});
  late.begin();
  for (const auto& frame : late.take_frames()) pair.hub.on_frame(5, frame.bytes);
  for (const auto& frame : pair.hub.take_frames()) {
    ASSERT_EQ(frame.to, 5);
    late.on_frame(0, frame.bytes);
  }
  EXPECT_EQ(late.failure().status, RA_STATUS_MISMATCH);
  EXPECT_STREQ(late.failure().message, "world_size is 8 on rank 5 but 2 on rank 0");
  pair.exchange();
  EXPECT_EQ(pair.hub.failure().status, RA_STATUS_SUCCESS);
  pair.hub.on_frame(5, {});
  pair.hub.on_frame(-1, {});
  pair.hub.on_disconnect(5);
  EXPECT_EQ(pair.hub.failure().status, RA_STATUS_SUCCESS);
  EXPECT_TRUE(pair.hub.take_frames().empty());
}

TEST(Membership, SaysWhatItCannotRead) {
  Pair pair;
  const Bytes frame{std::byte{42}, std::byte{0}, std::byte{0}};
  pair.hub.on_frame(1, frame);
  pair.exchange();
  for (const Membership* m : {&pair.hub, &pair.spoke}) {
    EXPECT_EQ(m->failure().status, RA_STATUS_PEER_LOST);
    EXPECT_EQ(m->failure().rank, 1);
    EXPECT_STREQ(m->failure().message, "rank 1 sent a frame that means nothing here (kind 42, 3 bytes)");
  }
}

// Also of an address that it cannot say itself.
TEST(Membership, RefusesAddressesThatNoFrameHolds) {
  for (const auto& address : {std::string(257, 'a'), std::string("a\nb")}) {
    Hello hello = hello_of(2, 1);
    hello.address = address;
    Membership m(hello, {});
    m.begin();
    EXPECT_EQ(m.failure().status, RA_STATUS_INTERNAL_ERROR);
  }
  Hello hello = hello_of(2, 1);
  hello.address = std::string(256, 'a');
  Membership m(hello, {});
  m.begin();
  EXPECT_EQ(m.failure().status, RA_STATUS_SUCCESS);
}

// A process that was stopped hears all that it missed before it counts again.
TEST(Membership, SilenceIsCountedInOwnBeats) {
  Pair pair;
  for (int n = 0; n < Membership::silent_beats; ++n) pair.hub.on_beat();
  EXPECT_EQ(pair.hub.failure().status, RA_STATUS_SUCCESS);
  pair.spoke.on_beat();
  pair.exchange();
  for (int n = 0; n < Membership::silent_beats; ++n) pair.hub.on_beat();
  EXPECT_EQ(pair.hub.failure().status, RA_STATUS_SUCCESS);
  pair.hub.on_beat();
  EXPECT_EQ(pair.hub.failure().status, RA_STATUS_PEER_LOST);
  EXPECT_STREQ(pair.hub.failure().message, "rank 1 has been silent for 1000 ms");
}

// Where memory ends in the middle of anything, the group breaks, and both know why as soon as there is memory again.
TEST(Membership, WithoutMemoryAGroupBreaks) {
  enum { leaves, times_out, sends_nonsense, fails, all_ends };
  for (int end = 0; end < all_ends; ++end)
    for (int nth = 0;; ++nth) {
      SCOPED_TRACE(text("end ", end, ", allocation ", nth));
      Membership hub(hello_of(2, 0), {}), spoke(hello_of(2, 1), {});
      const Bytes record(100), nonsense(3);
      int left = nth;
      allocation_failed = false;
      const auto act = [&](auto&& action) {  // and all of the action in which it failed goes without
        allocations_left = allocation_failed ? -1 : left;
        action();
        left = std::exchange(allocations_left, -1);
      };
      const auto exchange = [&] {
        for (bool more = true; more;) {
          const auto to_spoke = hub.take_frames();
          for (const auto& frame : to_spoke) act([&] { spoke.on_frame(0, frame.bytes); });
          const auto to_hub = spoke.take_frames();
          for (const auto& frame : to_hub) act([&] { hub.on_frame(1, frame.bytes); });
          more = !to_spoke.empty() || !to_hub.empty();
        }
      };
      try {
        act([&] { hub.begin(); });
        act([&] { spoke.begin(); });
      } catch (const std::bad_alloc&) {
        allocations_left = -1;
        continue;
      }
      exchange();
      if (spoke.is_whole())
        for (Membership* const m : {&spoke, &hub}) act([&] { m->gather(record); });
      exchange();
      for (Membership* const m : {&spoke, &hub}) act([&] { m->on_beat(); });
      exchange();
      const bool had_ended = allocation_failed;
      act([&] {
        if (had_ended) return;
        if (end == leaves) spoke.leave();
        if (end == times_out) spoke.on_timeout(0, 1000);
        if (end == sends_nonsense) hub.on_frame(1, nonsense);
        if (end == fails) hub.fail({RA_STATUS_ABORTED, 0, "enough"});
      });
      exchange();
      for (int n = 0; n < 2; ++n) {
        for (Membership* const m : {&spoke, &hub}) act([&] { m->on_beat(); });
        exchange();
      }
      if (!allocation_failed) break;
      if (spoke.has_left(1) && spoke.failure().status == RA_STATUS_SUCCESS) continue;  // nobody tells it any more
      const Failure &hubs = hub.failure(), &spokes = spoke.failure();
      EXPECT_TRUE(hubs.status != RA_STATUS_SUCCESS && spokes.status != RA_STATUS_SUCCESS);
      // At the end there are two reasons, of which each may meet with its own first.
      const bool is_alone = hubs.rank == spokes.rank &&
                            (hubs.status == RA_STATUS_OUT_OF_MEMORY || spokes.status == RA_STATUS_OUT_OF_MEMORY);
      EXPECT_TRUE(is_alone || !had_ended) << hubs.message << "; " << spokes.message;
      EXPECT_TRUE(hubs.status != RA_STATUS_OUT_OF_MEMORY || hubs.rank == 0);
      EXPECT_TRUE(spokes.status != RA_STATUS_OUT_OF_MEMORY || spokes.rank == 1);
    }
}

}  // namespace
}  // namespace ringattn::zeromq
