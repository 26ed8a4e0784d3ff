// What is in a directory, read without memory of ours: std::filesystem ends the process where it gets none for a name.
#pragma once

#include <dirent.h>

#include <string_view>

namespace ringattn {

class Directory {
 public:
  explicit Directory(const char* path) : stream_(opendir(path)) {}  // errno says why, where it is not open
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    if (stream_ != nullptr) closedir(stream_);
  }
  bool is_open() const noexcept { return stream_ != nullptr; }

  // The name of another entry, valid until the next is asked for; null at the end, or where nothing can be read.
  const char* next() noexcept {
    while (const dirent* const entry = stream_ == nullptr ? nullptr : readdir(stream_)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") return entry->d_name;
    }
    return nullptr;
  }

 private:
  DIR* stream_;
};

}  // namespace ringattn
