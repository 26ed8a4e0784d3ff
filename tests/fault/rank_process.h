// A rank in a process of its own, which a test may stop or kill: this program once more, started with --rank, told by lines what to do
// and answering by lines what became of it (rank_process.cpp).
//
//   join RANK WORLD TIMEOUT_MS ADDRESS ID      joined | refused       ADDRESS: bind_address, - for NULL
//   idle | forward PROBLEM | backward PROBLEM  ready, then lost       asks for errors, or calls, until there is one
//   work PROBLEM CALLS                         ready | lost           so many calls
//   check SEED                                 right | wrong          a problem whose result one rank computes too
//   decode SEED                                ready, then lost       fills a cache; changes it and decodes, step by step, until then
//   catch_up STEPS                             ready                  does to that cache what others have done that are a step ahead
//   revive FORMER ...                          right | wrong          goes on with that cache, where rank r is the one that was FORMER[r]
//   soak SEED                                  ready, then lost | wrong   random problems, checked, until there is an error
//   count                                      counted                what the process has, without a context
//   rest MS                                    rested                 in which nobody asks for anything
//   fork                                       right | wrong          whether a forked child can do nothing with the context
//   fork local                                 right | wrong          the same with ranks that are threads of this process
//   fork sleeper                               forked                 a child that has all that this process has open, and does nothing
//   destroy                                    destroyed
//   exit                                       nothing                exit(3), from another thread, whatever is in progress
//   end                                        ended                  status 0 if the process has no more threads or files than before
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>

#include "support/random.h"

namespace ringattn::test {

constexpr int patience_factor = slowness > 1 ? 3 : 1;
constexpr std::chrono::milliseconds patience =
    std::chrono::seconds(20) * patience_factor;  // for what takes no time where nothing hangs

using Nanoseconds = std::int64_t;  // of CLOCK_MONOTONIC, which processes share
Nanoseconds now();

struct Report {
  std::string what;
  int status = 0, rank = -1;  // of an ra_error
  Nanoseconds time = 0;       // when it was noticed
  // Of joined, refused and destroyed: when that began; of rested: processor time, microseconds; of counted: resident KiB, and `status`
  // is 0 if there are as many threads and files as before the first context; of the end of soak: problems done; of that of decode:
  // steps begun.
  std::int64_t value = 0;
  std::string message;
};

// What befalls a process.
enum How { by_kill, by_stop, by_segv, by_exit };
inline constexpr std::array how_names{"KILL", "STOP", "SEGV", "exit"};

class RankProcess {
 public:
  explicit RankProcess(const std::string& temporary_directory);  // its TMPDIR
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;
  ~RankProcess();  // kills it if it still lives

  void tell(const std::string& command);
  // Its next report; nothing if none comes in that time, or it has ended.
  std::optional<Report> next(std::chrono::milliseconds within);
  void send(int signal);
  void strike(How how);  // returns at once
  // Waits until it has ended or been stopped; it stays a zombie until it is reaped. False if that takes too long.
  bool wait_until_over(std::chrono::milliseconds within);
  // How it ended, as waitpid says; kills it if that takes too long.
  int reap(std::chrono::milliseconds within);
  pid_t id() const { return id_; }

 private:
  pid_t id_ = -1;
  bool is_reaped_ = false;
  int commands_ = -1, reports_ = -1;
  std::string unread_;
};

bool has_zeromq();

// An id at an address of loopback that no other group has, so that no two can take each other's port.
std::string new_id();

class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }
  // But for what has no lock yet: whose process was killed just then, which the join of a later minute finds.
  std::string contents() const;

 private:
  std::string path_ = "/tmp/ra-processes-XXXXXX";
};

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// What a process started with --rank does: returns its exit status.
int run_rank();

}  // namespace ringattn::test
