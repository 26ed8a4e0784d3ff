// A rank in a process of its own, which a test may stop or kill: this program once more, started with --rank, told by lines what to do
// and answering by lines what became of it (rank_process.cpp).
//
//   join RANK WORLD TIMEOUT_MS ADDRESS ID      joined | refused       ADDRESS: bind_address, - for NULL
//   idle | forward PROBLEM | backward PROBLEM  ready, then lost       asks for errors, or calls, until there is one
//   work PROBLEM CALLS                         ready | lost           so many calls
//   check SEED                                 right | wrong          a problem whose result one rank computes too
//   rest MS                                    rested                 in which nobody asks for anything
//   fork                                       right | wrong          whether a forked child can do nothing with the context
//   fork local                                 right | wrong          the same with ranks that are threads of this process
//   fork sleeper                               forked                 a child that has all that this process has open, and does nothing
//   destroy                                    destroyed
//   exit                                       nothing                exit(3), from another thread, whatever is in progress
//   end                                        ended                  status 0 if the process has no more threads or files than before
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace ringattn::test {

using Nanoseconds = std::int64_t;  // of CLOCK_MONOTONIC, which processes share
Nanoseconds now();

struct Report {
  std::string what;
  int status = 0, rank = -1;  // of an ra_error
  Nanoseconds time = 0;       // when it was noticed
  std::int64_t value = 0;  // of joined, refused and destroyed: when that began; of rested: processor time, microseconds
  std::string message;
};

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

// What a process started with --rank does: returns its exit status.
int run_rank();

}  // namespace ringattn::test
