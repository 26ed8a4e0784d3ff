// What one rank does and when, as a file in the Trace Event Format that Perfetto and chrome://tracing read: a JSON array of events,
// times in microseconds of the system's clock, so that the ranks of one machine share them. The rank is the "process". On its one
// thread are its calls, and inside each of them the phases that it consists of; what it sends and receives meanwhile are asynchronous
// events, each from when it was begun to when it was over.
// Source: "Trace Event Format", Google 2016.
//
// Events are written to the file when a call has ended, or when there are many. What cannot be written ends the trace and is said in
// the log: no call fails for it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

namespace ringattn {

class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  // Makes the file, or empties it. Throws INVALID_ARGUMENT.
  Trace(const std::string& path, int rank, int world_size);
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;
  ~Trace();

  // From any thread. It ends now.
  void transfer(bool sends, int peer, std::size_t bytes, Clock::time_point begin) noexcept;

 private:
  template <class F>
  void append(F&& f) noexcept;
  void flush() noexcept;  // only by whoever has the phases
  bool has_much() noexcept;
  void say_end(int why) const noexcept;
  std::string microseconds(std::chrono::nanoseconds time) const;
  std::string at(Clock::time_point time) const;

  friend class Phase;
  void end_phase(const char* name, Clock::time_point begin, Clock::time_point end) noexcept;

  const std::string path_;
  const int rank_;
  const std::chrono::nanoseconds epoch_;  // of Clock, by the system's
  int phases_ = 0;                        // that have begun and not ended
  std::mutex mutex_;
  std::string pending_;  // guarded by mutex_, with what follows
  std::int64_t transfers_ = 0;
  bool is_over_ = false;
  const int file_;  // until it is over
};

// A call, or a phase of one, from now on. One thread at a time has those of a trace, one inside another.
class Phase {
 public:
  Phase(Trace* trace, const char* name) : trace_(trace), name_(name) {
    if (trace_ != nullptr) ++trace_->phases_;
  }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
  ~Phase() {
    if (!has_ended_) end();
  }
  double seconds() const { return std::chrono::duration<double>(Trace::Clock::now() - begin_).count(); }
  // Returns its seconds.
  double end() noexcept {
    const auto now = Trace::Clock::now();
    if (trace_ != nullptr) trace_->end_phase(name_, begin_, now);
    has_ended_ = true;
    return std::chrono::duration<double>(now - begin_).count();
  }

 private:
  Trace* trace_;
  const char* name_;
  const Trace::Clock::time_point begin_ = Trace::Clock::now();
  bool has_ended_ = false;
};

}  // namespace ringattn
