#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

/** A bar on stderr, drawn anew for each step; nothing without a terminal. */
class Progress {
 public:
  explicit Progress(int64_t total) : total_(total) {}

  void draw(int64_t done, const std::string& what) const {
    if (!terminal_) return;
    constexpr int64_t width = 40;
    fmt::print(stderr, "\r\033[K[{:.<{}}] {:>3} %  {}", std::string(static_cast<size_t>(width * done / total_), '#'),
               width, 100 * done / total_, what);
    std::fflush(stderr);
  }
  void wipe() const {
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  int64_t total_;
};
