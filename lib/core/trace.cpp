#include "core/trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/log.h"

namespace ringattn {
namespace {

constexpr std::size_t much = std::size_t{1} << 16;

// A regular file: whatever else a path may lead to can block, or end the process by SIGPIPE.
int open_file(const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0666);
  require(file >= 0, "trace_path is \"", path, "\", which cannot be written: ", std::strerror(errno));
  struct stat status {};
  if (fstat(file, &status) == 0 && S_ISREG(status.st_mode)) return file;
  close(file);
  fail(RA_STATUS_INVALID_ARGUMENT, "trace_path is \"", path, "\", which is no regular file");
}

}  // namespace

Trace::Trace(const std::string& path, int rank, int world_size)
    : path_(path),
      rank_(rank),
      epoch_(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch() -
                                                                  Clock::now().time_since_epoch())),
      pending_(text("[\n", R"({"ph":"M","pid":)", rank, R"(,"name":"process_name","args":{"name":"rank )", rank, " of ",
                    world_size, "\"}},\n", R"({"ph":"M","pid":)", rank,
                    R"(,"name":"process_sort_index","args":{"sort_index":)", rank, "}}")),
      file_(open_file(path)) {}

Trace::~Trace() {
  append([] { return std::string("\n]\n"); });
  flush();
  if (!is_over_) close(file_);
}

void Trace::end_phase(const char* name, Clock::time_point begin, Clock::time_point end) noexcept {
  append([&] {
    return text(",\n", R"({"ph":"X","pid":)", rank_, R"(,"tid":0,"name":")", name, R"(","ts":)", at(begin),
                R"(,"dur":)", microseconds(end - begin), "}");
  });
  if (--phases_ == 0 || has_much()) flush();
}

void Trace::transfer(bool sends, int peer, std::size_t bytes, Clock::time_point begin) noexcept {
  append([&] {
    const std::string event = text(R"("pid":)", rank_, R"(,"tid":0,"cat":"transfer","id":")", rank_, '.', ++transfers_,
                                   R"(","name":")", sends ? "send to " : "receive from ", peer, R"(","ts":)");
    return text(",\n", R"({"ph":"b",)", event, at(begin), R"(,"args":{"bytes":)", bytes, "}},\n", R"({"ph":"e",)",
                event, at(Clock::now()), "}");
  });
}

template <class F>
void Trace::append(F&& f) noexcept {
  const std::lock_guard lock(mutex_);
  try {
    if (!is_over_) pending_ += f();
  } catch (...) {
    // One event is missing.
  }
}

void Trace::say_end(int why) const noexcept {
  try {
    log(RA_LOG_LEVEL_WARNING, "the trace of rank ", rank_, " ends: ", path_, ": ", std::strerror(why));
  } catch (...) {
    // Then there is no log either.
  }
}

bool Trace::has_much() noexcept {
  const std::lock_guard lock(mutex_);
  return pending_.size() >= much;
}

// Nobody waits for the file who only adds to what is to be written.
void Trace::flush() noexcept {
  std::string events;
  {
    const std::lock_guard lock(mutex_);
    events.swap(pending_);
    if (is_over_) return;
  }
  for (std::size_t written = 0; written < events.size();) {
    const ssize_t count = write(file_, events.data() + written, events.size() - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
    } else if (errno != EINTR) {
      const int why = errno;
      close(file_);
      {
        const std::lock_guard lock(mutex_);
        is_over_ = true;
      }
      return say_end(why);
    }
  }
}

// With three digits behind the point, whatever the host's locale.
std::string Trace::microseconds(std::chrono::nanoseconds time) const {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%lld.%03lld", static_cast<long long>(time.count() / 1000),
                static_cast<long long>(time.count() % 1000));
  return digits;
}

std::string Trace::at(Clock::time_point time) const { return microseconds(time.time_since_epoch() + epoch_); }

}  // namespace ringattn
