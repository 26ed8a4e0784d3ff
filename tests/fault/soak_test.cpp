// Eight ranks in processes of their own that work for long, while every few seconds something befalls one of them: the others are told,
// and all begin anew in the same processes, which do not grow.
//
//   round   join with a new id -> random problems, checked against the oracle -> one rank is killed, stopped, hit by SIGSEGV or exits ->
//           the others are told who -> one that was stopped goes on, and finds out; else a new process comes in its place -> contexts
//           are destroyed, and what each process has is counted
//
// Which process is which rank changes from round to round. After each, a process has as many threads and descriptors as before its first
// context, and hardly more bytes allocated than after its first round. Two of the processes are never worse than stopped, so they are there
// from beginning to end: by them it is judged whether resident memory grows.
//
//   RINGATTN_TEST_SOAK_MINUTES=n   so long, with a round every 5 s (./dev test soak); else a few rounds at once
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fault/rank_process.h"
#include "ringattn/ringattn.h"

namespace ringattn::test {
namespace {

using namespace std::chrono_literals;
using Milliseconds = std::chrono::milliseconds;

constexpr int world_size = 8;
constexpr int staying = 2;  // the first of the processes
constexpr Milliseconds period = 5s;
constexpr std::int64_t most_allocated =
    16384;  // bytes more than after its first round, where not all was done for the first time
constexpr double most_growth =
    2048;  // KiB in the second half of the rounds, of a straight line through what is resident in each:
           // which pages are free when all are done is chance
constexpr int judged_rounds = 100;  // with fewer there is no telling growth from a beginning

// How much a straight line through the values, by least squares, rises from the first to the last.
double rise(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double middle = (n - 1) / 2, mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double above = 0, below = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double x = static_cast<double>(i) - middle;
    above += x * (values[i] - mean);
    below += x * x;
  }
  return above / below * (n - 1);
}

class Soak {
 public:
  explicit Soak(std::uint64_t seed) : random_(seed) {
    for (int i = 0; i < world_size; ++i) processes_.push_back(std::make_unique<RankProcess>(directory_.path()));
    print("round", "minutes", "rank", "how", "told", "sees it", "problems", "files", "threads", "MiB of two",
          "and most");
    print("", "", "", "", "ms", "ms", "", "most", "most", "", "MiB");
  }

  // Throws what is wrong. At its end at least `at_least` has passed.
  void round(Milliseconds at_least) {
    const auto begin = std::chrono::steady_clock::now();
    const How how = next_how();
    const int struck = how == by_stop ? draw(0, world_size) : draw(staying, world_size);
    std::vector<int> ranks(world_size);  // of the processes
    std::iota(ranks.begin(), ranks.end(), 0);
    std::shuffle(ranks.begin(), ranks.end(), random_);
    const int victim = ranks[static_cast<std::size_t>(struck)];

    const std::string id = new_id();
    for (int i = 0; i < world_size; ++i)
      process(i).tell(concatenate("join ", ranks[static_cast<std::size_t>(i)], " ", world_size, " 60000 - ", id));
    for (int i = 0; i < world_size; ++i) expect(i, "joined");
    if (const std::string left = directory_.contents(); !left.empty())
      fail("in the temporary directory:", left);  // of who was killed before
    for (const auto& p : processes_) p->tell(concatenate("soak ", rounds_ * 1'000'000));
    std::vector<std::optional<Report>> reports(world_size);  // of who is lost
    for (int i = 0; i < world_size; ++i)
      if (Report report = expect(i, "ready|lost"); report.what == "lost") reports[static_cast<std::size_t>(i)] = report;

    std::this_thread::sleep_until(begin + at_least);
    std::this_thread::sleep_for(std::chrono::microseconds(draw(0, 40'000)));
    const Nanoseconds time = now();
    process(struck).strike(how);
    if (!process(struck).wait_until_over(patience)) fail("the victim lives on");
    Nanoseconds untold = 0, unseen = 0;
    std::int64_t problems = 0;
    int lost = -1;  // who was silent: it was stopped, or another program took the processors for a second
    for (int i = 0; i < world_size; ++i) {
      if (i == struck) continue;
      const std::optional<Report>& before = reports[static_cast<std::size_t>(i)];
      const Report report = before ? *before : expect(i, "lost");
      if (lost == -1 && report.message.find("silent") != std::string::npos) lost = report.rank;
      if (report.status != RA_STATUS_PEER_LOST || report.rank != (lost == -1 ? victim : lost))
        fail("rank ", ranks[static_cast<std::size_t>(i)], " got ", ra_get_status_name(report.status), " naming rank ",
             report.rank, ", not ", victim, ": ", report.message);
      untold = std::max(untold, report.time - time);
      problems += report.value;
    }
    if (untold > (how == by_stop ? 2'500'000'000 : 1'000'000'000) * patience_factor)
      fail("told after ", untold / 1'000'000, " ms");
    if (how == by_stop) {
      std::this_thread::sleep_for(Milliseconds(draw(0, 500)));
      const Nanoseconds goes_on = now();
      process(struck).send(SIGCONT);
      const std::optional<Report>& before = reports[static_cast<std::size_t>(struck)];
      const Report report = before ? *before : expect(struck, "lost");
      if (report.status != RA_STATUS_PEER_LOST) fail("who was stopped got ", report.status, ": ", report.message);
      unseen = report.time - goes_on;
    } else {
      process(struck).reap(patience);
      processes_[static_cast<std::size_t>(struck)] = std::make_unique<RankProcess>(directory_.path());
      first_bytes_[static_cast<std::size_t>(struck)] = 0;
    }

    for (const auto& p : processes_) p->tell("destroy");
    for (int i = 0; i < world_size; ++i) expect(i, "destroyed");
    count();
    ++rounds_;
    if (lost != -1 && lost != victim) {
      ++starved_rounds_;
      std::cout << "      rank " << lost << " did not get a processor for a second; all others agree\n";
    }
    print(rounds_, minutes(), victim, how_names[how], untold / 1'000'000,
          how == by_stop ? concatenate(unseen / 1'000'000) : "", problems / (world_size - 1), most_files_,
          most_threads_, concatenate(mib(resident_[0].back()), " ", mib(resident_[1].back())), mib(most_resident_));
    all_problems_ += problems / (world_size - 1);
    longest_untold_[how] = std::max(longest_untold_[how], untold);
  }

  // Throws what is wrong with how they have grown, and with what they leave.
  void end() {
    const std::string id = new_id();
    for (int i = 0; i < world_size; ++i) process(i).tell(concatenate("join ", i, " ", world_size, " 60000 - ", id));
    for (int i = 0; i < world_size; ++i) expect(i, "joined");
    for (const auto& p : processes_) p->tell("check 1");
    for (int i = 0; i < world_size; ++i) expect(i, "right");
    for (const auto& p : processes_) p->tell("destroy");
    for (int i = 0; i < world_size; ++i) expect(i, "destroyed");
    for (const auto& p : processes_) p->tell("end");
    for (int i = 0; i < world_size; ++i) {
      if (const Report report = expect(i, "ended"); report.status != 0) fail(report.message, " its first context");
      if (const int status = process(i).reap(patience); status != 0) fail("a process ended with ", status);
    }
    std::cout << rounds_ << " rounds in " << minutes() << " minutes, " << all_problems_
              << " problems; ms until the last was told:";
    for (const How how : {by_kill, by_stop, by_segv, by_exit})
      std::cout << ' ' << how_names[how] << ' ' << longest_untold_[how] / 1'000'000;
    std::cout << '\n';
    if (const std::string left = directory_.contents(); !left.empty()) fail("in the temporary directory:", left);
    if (starved_rounds_ > 0) std::cout << starved_rounds_ << " rounds ended because a rank got no processor\n";
    if (starved_rounds_ > 1 + rounds_ / 20) fail("that says little; something else keeps this machine busy");
    if (rounds_ < judged_rounds) return;
    for (const std::vector<double>& resident : resident_) {
      const double grown = rise({resident.begin() + rounds_ / 2, resident.end()});
      std::cout << "resident: " << mib(resident.front()) << " MiB after the first round, " << mib(resident.back())
                << " after the last; a straight line through the second half rises by " << grown << " KiB\n";
      if (grown > most_growth && slowness == 1) fail("that is too much; must be ", most_growth, " KiB at most");
    }
  }

  double minutes() const {
    return std::round(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count() / 6) / 10;
  }

 private:
  static std::string mib(double kib) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(2) << kib / 1024;
    return text.str();
  }
  template <class... Columns>
  static void print(const Columns&... columns) {
    constexpr int widths[] = {5, 9, 6, 6, 6, 9, 10, 7, 9, 13, 10};
    const int* width = widths;
    ((std::cout << std::setw(*width++) << columns), ...);
    std::cout << std::endl;  // at once: there is one every few seconds
  }
  template <class... Parts>
  [[noreturn]] static void fail(const Parts&... parts) {
    throw std::runtime_error(concatenate(parts...));
  }

  RankProcess& process(int i) { return *processes_[static_cast<std::size_t>(i)]; }
  int draw(int begin, int end) { return begin + static_cast<int>(random_() % static_cast<unsigned>(end - begin)); }
  // Each once in four rounds.
  How next_how() {
    if (rounds_ % 4 == 0) std::shuffle(hows_.begin(), hows_.end(), random_);
    return hows_[static_cast<std::size_t>(rounds_ % 4)];
  }
  // The next report of that process, which is one of `what`, "a|b".
  Report expect(int i, const std::string& what) {
    const std::optional<Report> report = process(i).next(patience);
    if (!report) fail("process ", i, " does not say ", what, " within ", patience.count(), " ms, or has ended");
    if (("|" + what + "|").find("|" + report->what + "|") == std::string::npos)
      fail("process ", i, " says ", report->what, ", not ", what, ": ", ra_get_status_name(report->status), " (rank ",
           report->rank, ") ", report->message);
    return *report;
  }
  void count() {
    for (const auto& p : processes_) p->tell("count");
    most_files_ = most_threads_ = 0;
    most_resident_ = 0;
    for (int i = 0; i < world_size; ++i) {
      const Report report = expect(i, "counted");
      if (report.status != 0) fail("process ", i, " has ", report.message);
      int files = 0, threads = 0;
      std::int64_t bytes = 0;
      std::string word;
      std::istringstream(report.message) >> files >> word >> threads >> word >> bytes;
      std::int64_t& first = first_bytes_[static_cast<std::size_t>(i)];
      if (first == 0) first = bytes;
      if (bytes > first + most_allocated)
        fail("process ", i, " has ", report.message, ", and after its first round ", first);
      most_files_ = std::max(most_files_, files);
      most_threads_ = std::max(most_threads_, threads);
      most_resident_ = std::max(most_resident_, static_cast<double>(report.value));
      if (i < staying) resident_[static_cast<std::size_t>(i)].push_back(static_cast<double>(report.value));
    }
  }

  std::mt19937_64 random_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  const TemporaryDirectory directory_;
  std::vector<std::unique_ptr<RankProcess>> processes_;
  std::array<How, 4> hows_{by_kill, by_stop, by_segv, by_exit};
  int rounds_ = 0, starved_rounds_ = 0, most_files_ = 0, most_threads_ = 0;
  double most_resident_ = 0;  // KiB
  std::int64_t all_problems_ = 0;
  std::array<Nanoseconds, how_names.size()> longest_untold_{};
  std::array<std::int64_t, world_size> first_bytes_{};  // allocated after each process's first round
  std::array<std::vector<double>, staying> resident_;   // KiB after each round
};

TEST(Soak, RanksComeAndGo) {
  if (!has_zeromq()) GTEST_SKIP() << "no ZeroMQ here";
  const char* const value = std::getenv("RINGATTN_TEST_SOAK_MINUTES");
  const double minutes = value == nullptr ? 0 : std::strtod(value, nullptr);
  // What malloc keeps for the next allocation of a size would count as allocated.
  setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0", 1);
  Soak soak(seed());
  try {
    if (minutes > 0)
      while (soak.minutes() < minutes) soak.round(period);
    else
      for (int n = 0; n < (full() ? 20 : 4); ++n) soak.round(0ms);
    soak.end();
  } catch (const std::exception& e) {
    FAIL() << e.what();
  }
}

}  // namespace
}  // namespace ringattn::test
