// Whatever ZeroMQ's transport calls fails once: on one rank of a group, in any stage of its life, with any error that the call is
// documented to have (injection.h).
//
//   count   a group lives undisturbed, and the calls of one rank, the victim, are written down
//   fail    for one of them: another group lives, and that call of the victim fails
//
// Then the victim gets an error that says what failed, or a right result where the failure is of no consequence; every other rank a right
// result, or an error that names the victim, at once and not by its time-out. Nothing hangs, nobody ends the process, the next group
// works, and nothing is left behind: memory, descriptors, threads, files.
//
//   RINGATTN_TEST_FULL=1        every call that was counted, with every error
//   RINGATTN_TEST_POINT=NAME    those alone whose names, as messages have them, begin so
#include "fault/injection.h"

#include <gtest/gtest.h>
#include <regex.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "fault/allocation.h"
#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/shard.h"
#include "transport/zeromq.h"
#include "transport/zeromq/libraries.h"
#include "transport/zeromq/private_directory.h"

// libzmq loses a frame where a socket is closed after the first part of a message has been read and not the last.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libzmq.so.5\n"; }

namespace ringattn::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Random = std::mt19937_64;

constexpr int patience_factor = slowness > 1 ? 4 : 1;
constexpr std::chrono::milliseconds at_once = 3000ms * patience_factor;
constexpr std::int64_t timeout_ms = 30'000;

struct Group {
  int world_size, victim;
  bool is_tcp;
  friend auto operator<=>(const Group&, const Group&) = default;
};

// A call that is to fail, and how.
struct Point {
  Group group;
  int function, n, fault;

  const Function& called() const { return functions()[static_cast<std::size_t>(function)]; }
  const Fault& how() const { return called().faults[static_cast<std::size_t>(fault)]; }
  std::string name() const {
    std::ostringstream stream;
    stream << (group.is_tcp ? "tcp:" : "ipc:") << group.victim << '/' << group.world_size << ':' << called().name << ':'
           << fault << ':' << n;
    return stream.str();
  }
};

// What became of one rank.
struct Life {
  std::int32_t status = RA_STATUS_SUCCESS;
  Error error, async;
  bool had_context = false;
  Clock::time_point ended, destroyed;
  std::vector<std::byte> result;
};

struct Lives {
  std::int32_t id_status = RA_STATUS_SUCCESS;
  Error id_error;
  std::vector<Life> ranks;
};

ra_attention_desc problem() {
  ra_attention_desc desc = make_desc(20, 2, 8);
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG;
  return desc;
}

// A whole life of a group. A rank stops at its first error. All calls of the victim belong to `injection`.
Lives live(const Group& group, Injection* injection, std::int64_t patience_ms) {
  Lives lives;
  lives.ranks.resize(static_cast<std::size_t>(group.world_size));
  std::vector<Shard> shards;
  for (int rank = 0; rank < group.world_size; ++rank) shards.emplace_back(problem(), group.world_size, rank);

  ra_unique_id id{};
  const std::string address = new_loopback_address();
  {
    const Armed armed(injection);
    lives.id_status = ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, address.c_str(), &lives.id_error);
  }
  if (lives.id_status != RA_STATUS_SUCCESS) return lives;

  run_threads(group.world_size, [&](std::int32_t rank) {
    const auto i = static_cast<std::size_t>(rank);
    Life& life = lives.ranks[i];
    Shard& shard = shards[i];
    ra_context_config config = make_config(group.world_size, rank, &id);
    config.transport = RA_TRANSPORT_ZEROMQ;
    config.timeout_ms = patience_ms;
    config.bind_address = group.is_tcp ? "127.0.0.1" : nullptr;
    Context context;
    const auto run = [&](Stage stage, auto&& call) {
      if (rank != group.victim || injection == nullptr) return call();
      injection->stage = stage;
      const Armed armed(injection);
      return call();
    };
    run(Stage::create, [&] { context.reset(ra_create_context(&config, &life.error)); });
    life.had_context = context != nullptr;
    life.status = life.error.status;
    if (life.status == RA_STATUS_SUCCESS)
      life.status = run(Stage::forward, [&] { return shard.forward(context.get(), &life.error); });
    if (life.status == RA_STATUS_SUCCESS)
      life.status = run(Stage::backward, [&] { return shard.backward(context.get(), &life.error); });
    life.ended = Clock::now();
    if (life.had_context) run(Stage::idle, [&] { ra_get_async_error(context.get(), &life.async); });
    run(Stage::destroy, [&] { context.reset(); });
    life.destroyed = Clock::now();
    if (life.status == RA_STATUS_SUCCESS)
      for (const Tensor* tensor : {&shard.out, &shard.lse, &shard.dq, &shard.dk, &shard.dv}) {
        const std::vector<std::byte> bytes = tensor->packed();
        life.result.insert(life.result.end(), bytes.begin(), bytes.end());
      }
  });
  return lives;
}

// What a group gets that nothing disturbs.
std::vector<std::vector<std::byte>> undisturbed(const Group& group) {
  std::vector<std::vector<std::byte>> results;
  for (const Life& life : live(group, nullptr, timeout_ms).ranks) {
    EXPECT_EQ(life.status, RA_STATUS_SUCCESS) << life.error;
    results.push_back(life.result);
  }
  return results;
}

// A piece that cannot be opened is one that was changed on its way: the link is to blame, or, as long as it has shown nothing of whose it
// is, a stranger, whom nobody hears of; then the rank that waits for the piece gives up at the end of its time-out.
bool is_of_opening(const Point& point) {
  const std::string name = point.called().name;
  return name.ends_with("decrypt_detached") || name.ends_with("is_available");
}

struct Verdict {
  bool was_reached = false, was_survived = false;
  Stage stage = Stage::id;
  std::vector<std::string> complaints;
  std::chrono::milliseconds told{0};
};

Verdict judge(const Point& point, const std::vector<std::vector<std::byte>>& expected) {
  Injection injection(point.function, point.n, point.fault);
  const Group& group = point.group;
  const Lives lives = live(group, &injection, is_of_opening(point) ? 1000 * patience_factor : timeout_ms);
  Verdict verdict;
  verdict.was_reached = injection.has_failed();
  verdict.stage = injection.failed_in();
  const auto complain = [&](const auto&... parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    verdict.complaints.push_back(stream.str());
  };
  const bool must_survive = verdict.was_reached ? point.how().is_survived : !is_of_opening(point);
  const auto check_typed = [&](std::int32_t status, const Error& error) {
    const bool is_memory = point.called().name == std::string("operator new");
    if (status != error.status || status < 0 || status > RA_STATUS_INTERNAL_ERROR || status == RA_STATUS_TIMEOUT)
      complain("the victim gets ", error);
    if (error.text().empty() || (error.rank != group.victim && error.rank != -1)) complain("the victim gets ", error);
    if (is_memory && status != RA_STATUS_OUT_OF_MEMORY &&
        status != RA_STATUS_INVALID_STATE)  // from the call after that in which the group broke
      complain("without memory the victim gets ", error);
  };

  if (lives.id_status != RA_STATUS_SUCCESS) {
    if (must_survive) complain("no id is made: ", lives.id_error);
    check_typed(lives.id_status, lives.id_error);
    return verdict;
  }
  const Life& victim = lives.ranks[static_cast<std::size_t>(group.victim)];
  verdict.was_survived = true;
  for (int rank = 0; rank < group.world_size; ++rank) {
    const Life& life = lives.ranks[static_cast<std::size_t>(rank)];
    if (life.destroyed - std::max(life.ended, victim.destroyed) > at_once)
      complain("rank ", rank, " needs ", (life.destroyed - life.ended) / 1ms, " ms to destroy its context");
    if (life.status == RA_STATUS_SUCCESS) {
      if (life.result != expected[static_cast<std::size_t>(rank)]) complain("rank ", rank, " has a wrong result");
      continue;
    }
    verdict.was_survived = false;
    if (must_survive) complain("rank ", rank, " gets ", life.error);
    if (life.had_context && (life.async.status == RA_STATUS_SUCCESS || life.async.rank != life.error.rank))
      complain("ra_get_async_error of rank ", rank, " says ", life.async, " after ", life.error);
    if (is_of_opening(point)) continue;
    if (rank == group.victim) {
      check_typed(life.status, life.error);
      continue;
    }
    if (life.error.rank != group.victim || life.status == RA_STATUS_TIMEOUT || life.error.text().empty())
      complain("rank ", rank, " gets ", life.error, " where the victim gets ", victim.error);
    const auto told = life.ended - victim.ended;
    verdict.told = std::max(verdict.told, std::chrono::ceil<std::chrono::milliseconds>(told));
    if (told > at_once) complain("rank ", rank, " hears of it after ", told / 1ms, " ms: ", life.error);
  }
  return verdict;
}

// ---------------------------------------------------------------- which calls fail

std::vector<Injection::Call> count(const Group& group) {
  Injection counting(0, 0, 0);
  for (const Life& life : live(group, &counting, timeout_ms).ranks)
    EXPECT_EQ(life.status, RA_STATUS_SUCCESS) << life.error;
  return counting.calls();
}

// All, or: of each place in the code and stage that calls a function its first call, with every fault; and `most` others.
std::vector<Point> points_of(const Group& group, const std::vector<Injection::Call>& calls, std::size_t most,
                             Random& random) {
  std::vector<Point> chosen, others;
  std::set<std::tuple<int, const void*, Stage>> known;
  for (const Injection::Call& call : calls) {
    const bool is_new = known.emplace(call.function, call.from, call.stage).second;
    const auto faults = static_cast<int>(functions()[static_cast<std::size_t>(call.function)].faults.size());
    for (int fault = 0; fault < faults; ++fault)
      (is_new || full() || std::getenv("RINGATTN_TEST_POINT") != nullptr ? chosen : others)
          .push_back({group, call.function, call.n, fault});
  }
  std::shuffle(others.begin(), others.end(), random);
  others.resize(std::min(others.size(), most));
  chosen.insert(chosen.end(), others.begin(), others.end());
  return chosen;
}

// ---------------------------------------------------------------- the folder that ranks have their sockets in

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp");
    setenv("TMPDIR", path_.c_str(), 1);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string contents() const {
    std::string names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_))
      names += " " + entry.path().lexically_relative(path_).string();
    return names;
  }

 private:
  std::string path_ = "/tmp/ra-injection-XXXXXX";
};

// What is in use. Threads that have been joined may be listed for a moment longer.
struct Census {
  std::int64_t files = descriptors(), running = threads(), bytes = live_bytes;

  bool is_at_most(const Census& before) const {
    return files <= before.files && running <= before.running && bytes <= before.bytes;
  }
  static Census settled(const Census& before) {
    Census after;
    for (int tries = 0; !after.is_at_most(before) && tries < 200; ++tries) {
      std::this_thread::sleep_for(10ms);
      after = {};
    }
    return after;
  }
  friend std::ostream& operator<<(std::ostream& stream, const Census& c) {
    return stream << c.files << " descriptors, " << c.running << " threads, " << c.bytes << " bytes";
  }
};

// ---------------------------------------------------------------- the tests

// Should the process end all the same, by what.
std::array<std::array<char, 200>, 24> under_way{};
extern "C" void say_what_was_under_way(int signal) {
  for (const auto& name : under_way)
    if (name[0] != 0) {
      [[maybe_unused]] const auto said = ::write(2, name.data(), std::strlen(name.data())) + ::write(2, "\n", 1);
    }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

// The libraries are loaded by the first that needs them. Each failure is tried in a process of its own, which then tries again.
TEST(FirstUse, ThatFailsIsReportedAndCanBeRepeated) {
#ifdef RINGATTN_THREAD_SANITIZER
  GTEST_SKIP() << "ThreadSanitizer does not let a library be unloaded that its suppressions name";
#endif
  const auto in_child = [](Injection* injection) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("pipe");
    const pid_t child = fork();
    if (child == 0) {
      std::signal(SIGABRT, SIG_DFL);
      ra_unique_id id{};
      Error error, later;
      {
        const Armed armed(injection);
        ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, nullptr, &error);
      }
      const bool works = ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, nullptr, &later) == RA_STATUS_SUCCESS;
      const std::array<int, 4> report{error.status, works, injection->has_failed(),
                                      static_cast<int>(injection->calls().size())};
      const auto calls = injection->calls();
      if (::write(ends[1], report.data(), sizeof report) < 0 ||
          ::write(ends[1], calls.data(), calls.size() * sizeof(Injection::Call)) < 0)
        _exit(2);
      _exit(0);
    }
    close(ends[1]);
    std::array<int, 4> report{-1, 0, 0, 0};
    [[maybe_unused]] auto got = ::read(ends[0], report.data(), sizeof report);
    std::vector<Injection::Call> calls(static_cast<std::size_t>(report[3]));
    got = ::read(ends[0], calls.data(), calls.size() * sizeof(Injection::Call));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    return std::pair{report, calls};
  };
  Injection counting(0, 0, 0);
  const std::vector<Injection::Call> calls = in_child(&counting).second;
  EXPECT_GT(calls.size(), 20u);
  int tried = 0;
  for (const Injection::Call& call : calls) {
    const Function& function = functions()[static_cast<std::size_t>(call.function)];
    for (int fault = 0; fault < static_cast<int>(function.faults.size()); ++fault, ++tried) {
      Injection injection(call.function, call.n, fault);
      const auto report = in_child(&injection).first;
      SCOPED_TRACE(std::string(function.name) + ", call " + std::to_string(call.n));
      EXPECT_GE(report[0], 0);
      EXPECT_LE(report[0], RA_STATUS_INTERNAL_ERROR);
      if (function.name == std::string("operator new")) {
        EXPECT_TRUE(report[0] == RA_STATUS_OUT_OF_MEMORY || report[0] == RA_STATUS_SUCCESS) << report[0];
      }
      EXPECT_TRUE(report[1]) << "nor does it work later";
    }
  }
  std::cout << tried << " failures\n";
}

class Injections : public testing::Test {
 protected:
  void SetUp() override {
    if (!missing_zeromq().empty()) GTEST_SKIP() << missing_zeromq();
    std::signal(SIGABRT, say_what_was_under_way);
  }
};

TEST_F(Injections, AreSurvivedOrReportedToAll) {
  const TemporaryDirectory directory;
  Random random(seed());
  const char* const only = std::getenv("RINGATTN_TEST_POINT");
  std::vector<Group> groups;
  for (const int world_size : {2, 3})
    for (int victim = 0; victim < world_size; ++victim)
      for (const bool is_tcp : {false, true})
        if (full() || only != nullptr || world_size == 2) groups.push_back({world_size, victim, is_tcp});

  std::map<Group, std::vector<std::vector<std::byte>>> expected;
  std::vector<Point> points;
  for (const Group& group : groups) {
    expected[group] = undisturbed(group);
    const std::vector<Injection::Call> calls = count(group);
    const std::vector<Point> some = points_of(group, calls, 100, random);
    std::cout << (group.is_tcp ? "tcp" : "ipc") << ", rank " << group.victim << " of " << group.world_size << ": "
              << calls.size() << " calls, " << some.size() << " points\n";
    points.insert(points.end(), some.begin(), some.end());
  }
  if (HasFailure()) return;
  std::shuffle(points.begin(), points.end(), random);

  struct Row {
    int tried = 0, reached = 0, survived = 0;
    std::chrono::milliseconds told{0};
  };
  std::map<std::string, Row> table;
  for (const Function& function : functions()) table[function.name];  // allocates nothing later
  std::mutex mutex;
  constexpr std::size_t at_a_time = 400;
  for (std::size_t begin = 0; begin < points.size(); begin += at_a_time) {
    const Census before;
    std::atomic<std::size_t> next{begin};
    const std::size_t end = std::min(begin + at_a_time, points.size());
    const auto work = [&](std::int32_t thread) {
      const auto worker = static_cast<std::size_t>(thread);
      for (std::size_t n; (n = next++) < end;) {
        const Point& point = points[n];
        const std::string name = point.name();
        if (only != nullptr && !name.starts_with(only)) continue;
        name.copy(under_way[worker].data(), under_way[worker].size() - 1);
        under_way[worker][std::min(name.size(), under_way[worker].size() - 1)] = 0;
        const Verdict verdict = judge(point, expected[point.group]);
        under_way[worker][0] = 0;
        const std::lock_guard lock(mutex);
        for (const std::string& complaint : verdict.complaints)
          ADD_FAILURE() << "RINGATTN_TEST_POINT=" << name << " (" << stage_names[static_cast<int>(verdict.stage)]
                        << "): " << complaint;
        Row& row = table[point.called().name];
        ++row.tried;
        row.reached += verdict.was_reached ? 1 : 0;
        row.survived += verdict.was_reached && verdict.was_survived ? 1 : 0;
        row.told = std::max(row.told, verdict.told);
      }
    };
    run_threads(slowness > 1 ? 4 : 16, work);  // most of the time is spent waiting
    undisturbed(groups[0]);
    const Census after = Census::settled(before);
    if (!HasFailure()) {
      EXPECT_TRUE(after.is_at_most(before)) << after << "; before " << before;
    }
    EXPECT_EQ(directory.contents(), "");
  }
  Row sum;
  std::cout
      << "function: calls that were to fail, that did, of which without consequence; ms until all had heard of it\n";
  for (const auto& [name, row] : table) {
    if (row.tried == 0) continue;
    std::cout << name << ": " << row.tried << ", " << row.reached << ", " << row.survived << "; " << row.told.count()
              << '\n';
    sum.tried += row.tried, sum.reached += row.reached, sum.survived += row.survived;
    sum.told = std::max(sum.told, row.told);
  }
  std::cout << "all: " << sum.tried << ", " << sum.reached << ", " << sum.survived << "; " << sum.told.count() << '\n';
}

// A directory that somebody has left behind is there each time, and each call that deals with it fails once.
TEST_F(Injections, OfADirectoryAreSurvivedOrReported) {
  const TemporaryDirectory directory;
  const auto make = [&](Injection* injection) {
    const std::string left = directory.path() + "/ringattn-" + std::to_string(getuid()) + "-left";
    std::filesystem::create_directory(left);
    for (const char* const file : {"/lock", "/data"}) std::ofstream(left + file);
    std::string what;
    {
      const Armed armed(injection);
      try {
        const zeromq::PrivateDirectory made;
      } catch (const std::exception& error) {
        what = error.what();
      }
    }
    return what;
  };
  Injection counting(0, 0, 0);
  EXPECT_EQ(make(&counting), "");
  EXPECT_EQ(directory.contents(), "");
  int tried = 0;
  for (const Injection::Call& call : counting.calls()) {
    const Function& function = functions()[static_cast<std::size_t>(call.function)];
    for (int fault = 0; fault < static_cast<int>(function.faults.size()); ++fault) {
      const Census before;
      Injection injection(call.function, call.n, fault);
      const std::string what = make(&injection);
      const bool failed = injection.has_failed(), threw = !what.empty();
      const std::string name = function.name;
      EXPECT_TRUE(failed) << name << ", call " << call.n;
      EXPECT_EQ(threw, name == "operator new" || name == "mkdtemp") << name << ", call " << call.n << ": " << what;
      const std::string contents = directory.contents();
      const bool is_left = contents.find("-left") != std::string::npos;
      EXPECT_TRUE(contents.empty() || is_left) << name << ", call " << call.n << " leaves" << contents;
      EXPECT_EQ(descriptors(), before.files) << name << ", call " << call.n;
      std::filesystem::remove_all(directory.path());
      std::filesystem::create_directory(directory.path());
      ++tried;
    }
  }
  std::cout << tried << " failures\n";
}

class Pattern {  // std::regex does not compile without warnings under AddressSanitizer
 public:
  explicit Pattern(const std::string& of_all) {
    if (regcomp(&expression_, ("^(" + of_all + ")$").c_str(), REG_EXTENDED | REG_NOSUB) != 0)
      throw std::invalid_argument(of_all);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  ~Pattern() { regfree(&expression_); }
  bool matches(const char* name) const { return regexec(&expression_, name, 0, nullptr, 0) == 0; }

 private:
  regex_t expression_;
};

// What the code calls is one of functions(), or cannot fail, or not in a way that is seen: so no new call can be forgotten.
TEST(Calls, AreAllKnown) {
  constexpr const char* harmless =
      "(__)?(mem|str)[a-z]*(_chk)?|bcmp|snprintf|__errno_location|__libc_single_threaded|__cpu_model|sched_yield|"
      "_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|__tls_get_addr|__(cxa|asan|ubsan|tsan|gxx|dynamic)_.*|_Unwind_Resume|"
      "getenv|getuid|time|gai_strerror|freeaddrinfo|inet_pton|inet_ntop|dlerror|dlclose|sigfillset|"
      "pthread_(self|mutex_.*|rwlock_.*|cond_.*|attr_destroy)|ra_get_version";
  constexpr const char* allocation = "_Z(nw|na|dl|da).*";
  constexpr const char* of_the_library = "_Z(N|NK|TV|TS|TI|TT|GVZ)*8ringattn.*";
  constexpr const char* of_threads_cpp =
      "_Z(N|NK|TV|TI|TS)*3tbb.*";  // allocates, and reports that by exceptions: allocation_test.cpp
  // Of the C++ library what only computes, allocates, throws, or takes locks.
  constexpr const char* standard =
      "_Z(N|NK|TV|TS|TI|TT|GV)*S.*|_ZN10__cxxabiv1.*|_Z(TV|TI)N10__cxxabiv1.*|_ZN9__gnu_cxx.*";
  constexpr const char* of_the_system =
      ".*(filesystem|ifstreamIcSt11char_traitsIcEEC|4open|random_device|NSt6thread).*";
  const Pattern is_harmless(std::string(harmless) + "|" + allocation + "|" + of_the_library + "|" + of_threads_cpp);
  const Pattern is_standard(standard), is_of_the_system(of_the_system);

  std::string command = NM " -u";
  int objects = 0;
  std::ifstream list(OBJECTS);
  for (std::string object; std::getline(list, object); ++objects) command += " '" + object + "'";
  EXPECT_GE(objects, 10);
  const std::unique_ptr<FILE, int (*)(FILE*)> nm(popen(command.c_str(), "r"), pclose);
  ASSERT_NE(nm, nullptr);
  std::set<std::string> unknown, known;
  char name[1000];
  for (char line[1200]; std::fgets(line, sizeof line, nm.get()) != nullptr;) {
    if (std::sscanf(line, " %*[Uvw] %999s", name) != 1) continue;
    const bool computes = is_harmless.matches(name) || (is_standard.matches(name) && !is_of_the_system.matches(name));
    if (index_of(name) >= 0)
      known.insert(name);
    else if (!computes)
      unknown.insert(name);
  }
  EXPECT_GE(known.size(), 25u);
  for (const std::string& each : unknown) ADD_FAILURE() << each << " is neither in functions() nor harmless";
}

}  // namespace
}  // namespace ringattn::test
