// A library that is loaded when it is first needed, so that programs that do not need it run without it.
#pragma once

#include <string>
#include <utility>

#include "core/error.h"

namespace ringattn {

class DynamicLibrary {
 public:
  // `file`: a name, searched for as the libraries that this one is linked with are, or a path. Throws NOT_SUPPORTED: what is wrong
  // with the file, or every place that was looked in.
  explicit DynamicLibrary(const std::string& file);
  DynamicLibrary(DynamicLibrary&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), path_(std::move(other.path_)) {}
  DynamicLibrary& operator=(DynamicLibrary&&) = delete;
  ~DynamicLibrary();  // unloads it, unless others use it

  const std::string& path() const { return path_; }  // of the file that was loaded

  // Function is decltype(&function). Throws NOT_SUPPORTED.
  template <class Function>
  Function get(const char* symbol) const {
    return reinterpret_cast<Function>(address(symbol));
  }

 private:
  void* address(const char* symbol) const;

  void* handle_;
  std::string path_;
};

// The file that the environment's `variable` names, or else `file`. Throws NOT_SUPPORTED, with the variable's name.
DynamicLibrary find_library(const char* variable, const char* file);

}  // namespace ringattn
