// Ranks in processes of their own that are killed, stopped or end, in every phase of their life: the others are told who it was, in
// time, live on, form a new group that computes as it should, and leave nothing behind.
//
//   RINGATTN_TEST_CELLS=n   so many cells of the matrix instead of the usual number; RINGATTN_TEST_FULL=1: all
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "fault/rank_process.h"
#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"

namespace ringattn::test {
namespace {

using namespace std::chrono_literals;
using Milliseconds = std::chrono::milliseconds;
using Random = std::mt19937_64;

// ---------------------------------------------------------------- the matrix

enum Phase { joining, idle, in_forward, in_backward, in_decode, destroying };
constexpr std::array phase_names{"join", "idle", "forward", "backward", "decode", "destroy"};
constexpr std::array phases{joining, idle, in_forward, in_backward, in_decode, destroying};

struct Cell {
  int number;
  int world_size, victim;
  Phase phase;
  How how;
  bool is_tcp, is_zombie;

  std::string name() const {
    return concatenate("cell ", number, ": rank ", victim, " of ", world_size, ", ", phase_names[phase], ", ",
                       how_names[how], is_tcp ? ", TCP" : ", ipc", is_zombie ? ", a zombie" : "");
  }
};

std::vector<Cell> all_cells() {
  std::vector<Cell> cells;
  for (const int world_size : {2, 3, 4, 8})
    for (int victim = 0; victim < world_size; ++victim)
      for (const Phase phase : phases)
        for (const How how : {by_kill, by_stop, by_segv, by_exit})
          for (const bool is_tcp : {false, true})
            for (const bool is_zombie : {false, true})
              if (how != by_stop || !is_zombie)  // what is stopped is not over
                cells.push_back({static_cast<int>(cells.size()), world_size, victim, phase, how, is_tcp, is_zombie});
  return cells;
}

// One cell. What went wrong is in `complaints`, and ends it.
class Trial {
 public:
  Trial(const Cell& cell, std::uint64_t seed)
      : cell_(cell), random_(seed * 100'003 + static_cast<unsigned>(cell.number)) {}

  void run() {
    try {
      for (int rank = 0; rank < cell_.world_size; ++rank)
        ranks_.push_back(std::make_unique<RankProcess>(directory_.path()));
      cell_.phase == joining ? kill_while_joining() : kill_later();
      begin_anew();
    } catch (const std::exception& e) {
      complaints.push_back(e.what());
    }
  }

  std::vector<std::string> complaints;
  Nanoseconds longest_untold = 0, longest_destroy = 0;
  int timeouts = 0;  // survivors of a join that found out by that

 private:
  static constexpr std::int64_t join_timeout_ms = 2000;  // of a group that will never be whole

  RankProcess& rank(int r) { return *ranks_[static_cast<std::size_t>(r)]; }
  RankProcess& victim() { return rank(cell_.victim); }
  std::vector<int> survivors() const {
    std::vector<int> all;
    for (int r = 0; r < cell_.world_size; ++r)
      if (r != cell_.victim) all.push_back(r);
    return all;
  }
  int draw(int end) { return static_cast<int>(random_() % static_cast<unsigned>(end)); }
  void pause(int most_ms) { std::this_thread::sleep_for(std::chrono::microseconds(draw(1000 * most_ms + 1))); }

  template <class... Parts>
  [[noreturn]] static void complain(const Parts&... parts) {
    throw std::runtime_error(concatenate(parts...));
  }
  // The next report of that rank, which is one of `what`, "a|b".
  Report expect(int r, const std::string& what) {
    const std::optional<Report> report = rank(r).next(patience);
    if (!report) complain("rank ", r, " does not say ", what, " within ", patience.count(), " ms, or has ended");
    if (("|" + what + "|").find("|" + report->what + "|") == std::string::npos)
      complain("rank ", r, " says ", report->what, ", not ", what, ": ", ra_get_status_name(report->status), " (rank ",
               report->rank, ") ", report->message);
    return *report;
  }
  void tell_join(int r, int as, int world_size, std::int64_t timeout_ms, const std::string& id) {
    rank(r).tell(
        concatenate("join ", as, " ", world_size, " ", timeout_ms, " ", cell_.is_tcp ? "127.0.0.1" : "-", " ", id));
  }

  // Returns when it has happened; the time at which it began to.
  Nanoseconds strike() {
    const Nanoseconds time = now();
    victim().strike(cell_.how);
    if (!victim().wait_until_over(patience)) complain("the victim lives on");
    if (!cell_.is_zombie && cell_.how != by_stop) victim().reap(patience);
    return time;
  }
  void require_in_time(int r, const char* what, Nanoseconds took, Nanoseconds& longest) {
    const bool is_quick = &longest == &longest_untold && cell_.how != by_stop;
    const Milliseconds bar = (is_quick ? 1000ms : 2500ms) * patience_factor;
    longest = std::max(longest, took);
    if (took > Nanoseconds{bar.count()} * 1'000'000)
      complain("rank ", r, " ", what, " after ", took / 1'000'000, " ms; must be ", bar.count(), " at most");
  }
  void require_lost(int r, const Report& report, Nanoseconds since) {
    if (report.status != RA_STATUS_PEER_LOST || report.rank != cell_.victim)
      complain("rank ", r, " got ", ra_get_status_name(report.status), " naming rank ", report.rank, ": ",
               report.message);
    require_in_time(r, "was told", report.time - since, longest_untold);
  }

  // One rank has not come yet, and does when the other is gone.
  void kill_while_joining() {
    const std::vector<int> others = survivors();
    const int latecomer = others[static_cast<std::size_t>(draw(static_cast<int>(others.size())))];
    const std::string id = new_id();
    for (int r = 0; r < cell_.world_size; ++r)
      if (r != latecomer) tell_join(r, r, cell_.world_size, join_timeout_ms, id);
    pause(draw(2) == 0 ? 10 : 300);
    const Nanoseconds time = strike();
    tell_join(latecomer, latecomer, cell_.world_size, join_timeout_ms, id);
    for (const int r : others) {
      const Report report = expect(r, "refused");
      const Nanoseconds since = std::max(time, report.value);
      if (report.status != RA_STATUS_TIMEOUT) {
        require_lost(r, report, since);
        continue;
      }
      ++timeouts;
      const std::int64_t most_ms = join_timeout_ms + 1500 * patience_factor;
      if (report.rank != cell_.victim || report.time - since > most_ms * 1'000'000)
        complain("rank ", r, " after ", (report.time - since) / 1'000'000, " ms: TIMEOUT naming rank ", report.rank,
                 ": ", report.message);
    }
    if (cell_.how == by_stop) {  // else what it has in the temporary directory would rightly stay there
      victim().send(SIGKILL);
      victim().reap(patience);
    }
  }

  void kill_later() {
    const std::string id = new_id();
    const std::vector<int> others = survivors();
    for (int r = 0; r < cell_.world_size; ++r) tell_join(r, r, cell_.world_size, 60'000, id);
    for (int r = 0; r < cell_.world_size; ++r) expect(r, "joined");
    const std::string problem = std::array{"compute", "gather", "traffic"}[static_cast<std::size_t>(draw(3))];
    if (cell_.phase == destroying) {
      kill_while_destroying(others, problem);
      return;
    }
    const std::string command = cell_.phase == idle          ? "idle"
                                : cell_.phase == in_forward  ? "forward " + problem
                                : cell_.phase == in_backward ? "backward " + problem
                                                             : concatenate("decode ", draw(1'000'000));
    for (const auto& process : ranks_) process->tell(command);
    for (int r = 0; r < cell_.world_size; ++r) expect(r, "ready");
    pause(40);
    const Nanoseconds time = strike();
    std::int64_t steps = 0;  // of who got furthest
    for (const int r : others) {
      const Report report = expect(r, "lost");
      require_lost(r, report, time);
      steps = std::max(steps, report.value);
    }
    if (cell_.phase == in_decode)
      for (const int r : others) {
        rank(r).tell(concatenate("catch_up ", steps));
        expect(r, "ready");
      }
    destroy(others, time);
  }

  // Either all are done, or it is killed in its last calls while others may be done and wait for it.
  void kill_while_destroying(const std::vector<int>& others, const std::string& problem) {
    const bool are_done = draw(2) == 0, before = draw(2) == 0;
    const std::string work = concatenate("work ", problem, " ", 1 + draw(2));
    for (const auto& process : ranks_) process->tell(work);
    if (are_done)
      for (int r = 0; r < cell_.world_size; ++r) expect(r, "ready");
    Nanoseconds time = 0;
    if (before) time = strike();
    for (const int r : others) rank(r).tell("destroy");
    if (!before) {
      pause(are_done ? 2 : 40);
      time = strike();
    }
    for (const int r : others) {
      if (!are_done)
        if (const Report report = expect(r, "ready|lost"); report.what == "lost") require_lost(r, report, time);
      const Report report = expect(r, "destroyed");
      require_in_time(r, "had destroyed its context", report.time - std::max(time, report.value), longest_destroy);
    }
  }

  void destroy(const std::vector<int>& group, Nanoseconds time) {
    for (const int r : group) rank(r).tell("destroy");
    for (const int r : group) {
      const Report report = expect(r, "destroyed");
      require_in_time(r, "had destroyed its context", report.time - std::max(time, report.value), longest_destroy);
    }
  }

  void require_right(const std::vector<int>& group) {
    for (const int r : group)
      if (const Report report = expect(r, "right|wrong"); report.what == "wrong")
        complain("rank ", r, " of the new group: ", report.message, " is wrong");
  }

  void begin_anew() {
    const std::vector<int> group = survivors();
    const std::string id = new_id();
    const int world_size = static_cast<int>(group.size()), first = draw(world_size);
    for (int i = 0; i < world_size; ++i)
      tell_join(group[static_cast<std::size_t>((first + i) % world_size)], i, world_size, 60'000, id);
    for (const int r : group) expect(r, "joined");
    // A group of one has no use for directories, and does not look for what others have left.
    if (const std::string left = directory_.contents(); !left.empty() && (world_size > 1 || cell_.phase != joining))
      complain("in the temporary directory:", left);
    const std::string check = concatenate("check ", cell_.number);
    for (const int r : group) rank(r).tell(check);
    require_right(group);
    if (cell_.phase == in_decode) {
      std::ostringstream former;
      for (int i = 0; i < world_size; ++i) former << ' ' << group[static_cast<std::size_t>((first + i) % world_size)];
      for (const int r : group) rank(r).tell("revive" + former.str());
      require_right(group);
    }
    destroy(group, now());
    for (const int r : group) rank(r).tell("end");
    for (const int r : group) {
      if (const Report report = expect(r, "ended"); report.status != 0) complain("rank ", r, " has ", report.message);
      if (const int status = rank(r).reap(patience); status != 0) complain("rank ", r, " ended with ", status);
    }
  }

  const Cell cell_;
  Random random_;
  const TemporaryDirectory directory_;
  std::vector<std::unique_ptr<RankProcess>> ranks_;
};

TEST(Processes, MayDieAtAnyMoment) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  const std::uint64_t seed = test::seed();
  std::vector<Cell> cells = all_cells();
  const std::size_t all = cells.size();
  Random random(seed);
  std::shuffle(cells.begin(), cells.end(), random);
  if (!full() && std::getenv("RINGATTN_TEST_CASE") == nullptr)
    cells.resize(std::min<std::size_t>(all, number_of("RINGATTN_TEST_CELLS", static_cast<unsigned>(sample(300)))));

  struct Row {
    int cells = 0;
    Nanoseconds untold = 0, destroy = 0;
  };
  std::array<std::array<Row, how_names.size()>, phase_names.size()> table;
  int timeouts = 0;
  std::mutex mutex;
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t n; (n = next++) < cells.size();) {
      const Cell& cell = cells[n];
      if (!chosen(cell.number)) continue;
      Trial trial(cell, seed);
      trial.run();
      const std::lock_guard lock(mutex);
      for (const std::string& complaint : trial.complaints)
        ADD_FAILURE() << cell.name() << " (RINGATTN_TEST_CASE=" << cell.number << "): " << complaint;
      Row& row = table[cell.phase][cell.how];
      ++row.cells;
      row.untold = std::max(row.untold, trial.longest_untold);
      row.destroy = std::max(row.destroy, trial.longest_destroy);
      timeouts += trial.timeouts;
    }
  };
  std::vector<std::thread> workers;
  const int at_once = slowness > 1 ? 1 : 6;  // most of the time is spent waiting
  for (int n = 0; n < at_once; ++n) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();

  std::cout
      << cells.size() << " of " << all
      << " cells; of each kind: how many, ms until the last survivor was told, ms of the longest ra_destroy_context\n"
      << std::setw(9) << "";
  for (const char* const how : how_names) std::cout << std::setw(18) << how;
  std::cout << '\n';
  for (const Phase phase : phases) {
    std::cout << std::setw(9) << phase_names[phase];
    for (const Row& row : table[phase])
      std::cout << std::setw(6) << row.cells << std::setw(6) << row.untold / 1'000'000 << std::setw(6)
                << row.destroy / 1'000'000;
    std::cout << '\n';
  }
  std::cout << timeouts << " survivors of a join were told by its time-out, which is not in the table\n";
}

// ---------------------------------------------------------------- a group of processes

class Group {
 public:
  explicit Group(int world_size) {
    for (int r = 0; r < world_size; ++r) ranks_.push_back(std::make_unique<RankProcess>(directory_.path()));
  }
  RankProcess& operator[](int r) { return *ranks_[static_cast<std::size_t>(r)]; }
  int world_size() const { return static_cast<int>(ranks_.size()); }

  // Kills one; those behind it are one less from now on.
  void kill(int r) { ranks_.erase(ranks_.begin() + r); }
  void tell(const std::string& command) {
    for (const auto& rank : ranks_) rank->tell(command);
  }
  // The next report of each, all of this kind; empty, and a failure, if one has another.
  std::vector<Report> expect(const std::string& what) {
    std::vector<Report> reports;
    for (int r = 0; r < world_size(); ++r) {
      const std::optional<Report> report = (*this)[r].next(patience);
      if (!report || report->what != what) {
        ADD_FAILURE() << "rank " << r << " must say " << what << " and says "
                      << (report ? report->what + ": " + report->message : "nothing");
        return {};
      }
      reports.push_back(*report);
    }
    return reports;
  }
  std::vector<Report> join() {
    const std::string id = new_id();
    for (int r = 0; r < world_size(); ++r) (*this)[r].tell(concatenate("join ", r, " ", world_size(), " 60000 - ", id));
    return expect("joined");
  }
  void check(std::uint64_t seed) {
    tell(concatenate("check ", seed));
    expect("right");
  }
  void end() {
    tell("destroy");
    expect("destroyed");
    tell("end");
    for (const Report& report : expect("ended")) EXPECT_EQ(report.status, 0) << report.message;
    for (const auto& rank : ranks_) EXPECT_EQ(rank->reap(patience), 0);
    EXPECT_EQ(directory_.contents(), "");
  }

 private:
  const TemporaryDirectory directory_;
  std::vector<std::unique_ptr<RankProcess>> ranks_;
};

// What a host does with fork() is its own affair, as long as the child leaves the context to the parent.
TEST(Processes, ForkedChildrenLeaveTheContextAlone) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  Group group(3);
  group.join();
  group.check(1);
  for (int n = 0; n < 3; ++n) {
    group.tell("fork");
    group.expect("right");
    group.check(static_cast<std::uint64_t>(2 + n));
  }
  group.end();
}

TEST(Processes, ForkedChildrenLeaveContextsOfThreadsAlone) {
  Group group(1);
  group.tell("fork local");
  group.expect("right");
}

// What two ranks had of a cache is lost at once, and the other two go on with the rest.
TEST(Processes, GoOnWithTheCacheOfTwoOfFour) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  Random random(seed());
  Nanoseconds longest = 0;
  for (int n = 0; n < (full() ? 24 : 6); ++n) {
    std::vector<int> ranks{0, 1, 2, 3};
    std::shuffle(ranks.begin(), ranks.end(), random);
    const auto [low, high] = std::minmax(ranks[0], ranks[1]);
    SCOPED_TRACE(concatenate("round ", n, ", ranks ", low, " and ", high));
    std::sort(ranks.begin() + 2, ranks.end());
    Group group(4);
    group.join();
    group.tell(concatenate("decode ", random() % 1'000'000));
    ASSERT_FALSE(group.expect("ready").empty());
    std::this_thread::sleep_for(Milliseconds(random() % 40));
    const Nanoseconds time = now();
    group.kill(high);
    group.kill(low);
    const std::vector<Report> reports = group.expect("lost");
    ASSERT_FALSE(reports.empty());
    std::int64_t steps = 0;
    for (const Report& report : reports) {
      EXPECT_EQ(report.status, RA_STATUS_PEER_LOST) << report.message;
      EXPECT_TRUE(report.rank == low || report.rank == high) << report.message;
      longest = std::max(longest, report.time - time);
      steps = std::max(steps, report.value);
    }
    group.tell(concatenate("catch_up ", steps));
    group.expect("ready");
    group.tell("destroy");
    group.expect("destroyed");
    group.join();
    group.tell(concatenate("revive ", ranks[2], " ", ranks[3]));
    ASSERT_FALSE(group.expect("right").empty());
    group.end();
  }
  std::cout << "at the latest after " << longest / 1'000'000 << " ms\n";
  EXPECT_LE(longest / 1'000'000, 1000 * patience_factor);
}

// The child has the dead rank's sockets open, so that no connection ends.
TEST(Processes, AForkedChildDoesNotHideADeath) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  for (int victim = 0; victim < 3; ++victim) {
    Group group(3);
    group.join();
    group.tell("fork sleeper");
    group.expect("forked");
    for (int r = 0; r < 3; ++r) group[r].tell(r == (victim + 1) % 3 ? "forward compute" : "idle");
    for (int r = 0; r < 3; ++r) {
      if (r == (victim + 1) % 3) continue;  // which waits for the others in its first call
      ASSERT_TRUE(group[r].next(patience).has_value());
    }
    const Nanoseconds time = now();
    group[victim].send(SIGKILL);
    for (int r = 0; r < 3; ++r) {
      if (r == victim) continue;
      const std::optional<Report> report = group[r].next(patience);
      ASSERT_TRUE(report.has_value());
      EXPECT_EQ(report->what, "lost") << report->message;
      EXPECT_EQ(report->status, RA_STATUS_PEER_LOST) << report->message;
      EXPECT_EQ(report->rank, victim) << report->message;
      EXPECT_LE((report->time - time) / 1'000'000, 2500 * patience_factor) << "ms, rank " << r;
    }
  }
}

// It has been silent for so long that the others have given it up; when it goes on it is told so, that is: who was lost is itself.
TEST(Processes, WhoWasStoppedFindsOutWhenItGoesOn) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  Nanoseconds longest = 0;
  const std::array commands{"idle", "forward compute", "forward traffic", "backward gather"};
  Group group(3);
  for (int n = 0; n < (full() ? 24 : 6); ++n) {
    const int victim = n % 3;
    const char* const command = commands[static_cast<std::size_t>(n / 3 * 2 + victim) % commands.size()];
    const bool are_gone = n % 2 == 0;  // the others have destroyed their contexts meanwhile
    SCOPED_TRACE(concatenate("rank ", victim, ", ", command, are_gone ? ", the others are gone" : ""));
    ASSERT_FALSE(group.join().empty());
    group.tell(command);
    ASSERT_FALSE(group.expect("ready").empty());
    group[victim].strike(by_stop);
    for (int r = 0; r < 3; ++r) {
      if (r == victim) continue;
      const std::optional<Report> report = group[r].next(patience);
      ASSERT_TRUE(report && report->what == "lost");
      EXPECT_EQ(report->rank, victim) << report->message;
    }
    const auto destroy = [&](bool victims) {
      for (int r = 0; r < 3; ++r)
        if ((r == victim) == victims) group[r].tell("destroy");
      for (int r = 0; r < 3; ++r) {
        if ((r == victim) != victims) continue;
        const std::optional<Report> report = group[r].next(patience);
        ASSERT_TRUE(report && report->what == "destroyed");
      }
    };
    if (are_gone) destroy(false);
    const Nanoseconds time = now();
    group[victim].send(SIGCONT);
    const std::optional<Report> report = group[victim].next(patience);
    ASSERT_TRUE(report && report->what == "lost");
    EXPECT_EQ(report->status, RA_STATUS_PEER_LOST) << report->message;
    EXPECT_EQ(report->rank, victim) << report->message;
    longest = std::max(longest, report->time - time);
    if (!are_gone) destroy(false);
    destroy(true);
  }
  std::cout << "at the latest after " << longest / 1'000'000 << " ms\n";
  EXPECT_LE(longest / 1'000'000, 1000 * patience_factor);
  group.join();
  group.check(1);
  group.end();
}

// A machine that sleeps, a debugger: nobody is given up who is silent for a moment only.
TEST(Processes, AShortStopIsNoFault) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  Group group(3);
  group.join();
  for (int victim = 0; victim < 3; ++victim) {
    group.tell("work compute 4");
    group[victim].strike(by_stop);
    std::this_thread::sleep_for(500ms);  // half of what it takes to be given up
    group[victim].send(SIGCONT);
    group.expect("ready");
    group.check(static_cast<std::uint64_t>(victim));
  }
  group.end();
}

// A process may end before it has locked its directory; as long as it may be about to, nobody removes it.
TEST(Processes, RemoveWhatOthersLeft) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  const TemporaryDirectory directory;
  const std::string prefix = concatenate(directory.path(), "/ringattn-", getuid(), "-");
  struct Left {
    const char* name;
    bool has_lock, is_old, stays;
  };
  const Left all[] = {{"killed", true, false, false},
                      {"killed-long-ago", true, true, false},
                      {"begun", false, false, true},
                      {"begun-long-ago", false, true, false}};
  for (const Left& left : all) {
    const std::string path = prefix + left.name;
    std::filesystem::create_directory(path);
    std::ofstream(path + (left.has_lock ? "/lock" : "/lock-to-be"));
    if (left.is_old)
      std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  }
  std::filesystem::create_directory(directory.path() + "/another");
  std::vector<std::unique_ptr<RankProcess>> ranks;
  const std::string id = new_id();
  for (int r = 0; r < 2; ++r) {
    ranks.push_back(std::make_unique<RankProcess>(directory.path()));
    ranks.back()->tell(concatenate("join ", r, " 2 60000 - ", id));
  }
  for (const auto& rank : ranks) {
    const std::optional<Report> report = rank->next(patience);
    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->what, "joined") << report->message;
  }
  for (const Left& left : all) EXPECT_EQ(std::filesystem::exists(prefix + left.name), left.stays) << left.name;
  EXPECT_TRUE(std::filesystem::exists(directory.path() + "/another"));
}

TEST(Processes, JoinAtOnce) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  Group group(8);
  for (int n = 0; n < 5; ++n) {
    const std::vector<Report> reports = group.join();
    ASSERT_EQ(reports.size(), 8u);
    Nanoseconds begin = 0, end = 0;
    for (const Report& report : reports) {
      begin = std::max<Nanoseconds>(begin, report.value);
      end = std::max(end, report.time);
    }
    std::cout << "8 ranks have joined " << (end - begin) / 1000 << " us after the last of them began to\n";
    EXPECT_LE((end - begin) / 1'000'000, 1000 * patience_factor);
    group.tell("destroy");
    group.expect("destroyed");
  }
  group.end();
}

TEST(Processes, TakeNextToNothingWhileTheyAreIdle) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  if (slowness > 1) GTEST_SKIP() << "of no interest in a sanitized build";
  Group group(4);
  group.join();
  group.check(1);
  constexpr std::int64_t ms = 5000;
  group.tell(concatenate("rest ", ms));
  for (const Report& report : group.expect("rested")) {
    const double share = static_cast<double>(report.value) / 1000 / ms;
    std::cout << "an idle rank takes " << 100 * share << " % of a core\n";
    EXPECT_LE(share, 0.005);
  }
  group.end();
}

}  // namespace
}  // namespace ringattn::test

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return ringattn::test::run_rank();
  std::signal(SIGPIPE, SIG_IGN);  // of a rank that has ended
  // SIGSEGV is to end a rank also before its main function, and not to be reported by a sanitizer.
  for (const char* const name : {"TSAN_OPTIONS", "ASAN_OPTIONS"}) {
    const char* const options = std::getenv(name);
    setenv(name, (std::string(options == nullptr ? "" : options) + ":handle_segv=0").c_str(), 1);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
