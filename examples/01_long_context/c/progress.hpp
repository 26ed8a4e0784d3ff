#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

/** A bar on stderr, drawn anew for each step; without a terminal, a line per step, unless they are `many`. */
class Progress {
 public:
  explicit Progress(int64_t total, bool many = false) : total_(total), many_(many) {}

  void begin(const std::string& step) const {
    if (!terminal_ && many_) return;
    if (!terminal_) return fmt::print(stderr, "{} ...\n", step);
    constexpr int64_t width = 40;
    const std::string bar(static_cast<size_t>(width * done_ / total_), '#');
    fmt::print(stderr, "\r\033[K[{:.<{}}] {:>3} %  {}", bar, width, 100 * done_ / total_, step);
    std::fflush(stderr);
  }

  /** Wipes the bar, so that other output can follow. */
  void end(int64_t amount) {
    done_ += amount;
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  int64_t total_;
  bool many_;
  int64_t done_ = 0;
};
