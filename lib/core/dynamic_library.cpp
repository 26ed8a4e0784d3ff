#include "core/dynamic_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace ringattn {
namespace {

std::string last_error() {
  const char* error = dlerror();
  return error == nullptr ? "no reason is given" : error;
}

// The folders that dlopen looks through for a library that this code asks for, in their order.
std::string search_places() {
  static const char anchor = 0;
  Dl_info own{};
  void* handle = dladdr(&anchor, &own) == 0 ? nullptr : dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) handle = dlopen(nullptr, RTLD_LAZY);  // this is part of the program itself
  std::string places;
  if (Dl_serinfo count{}; handle != nullptr && dlinfo(handle, RTLD_DI_SERINFOSIZE, &count) == 0) {
    const std::unique_ptr<std::max_align_t[]> memory(
        new std::max_align_t[count.dls_size / sizeof(std::max_align_t) + 1]);
    Dl_serinfo* info = ::new (memory.get()) Dl_serinfo(count);
    if (dlinfo(handle, RTLD_DI_SERINFO, info) == 0) {
      const Dl_serpath* folder = info->dls_serpath;
      for (unsigned i = 0; i < info->dls_cnt; ++i) places += text(folder[i].dls_name, ", ");
    }
  }
  if (handle != nullptr) dlclose(handle);
  return places + "the cache of ldconfig";
}

std::string path_of(void* handle, const std::string& file) {
  const link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map->l_name[0] != 0 ? map->l_name : file;
}

}  // namespace

DynamicLibrary::DynamicLibrary(const std::string& file) : handle_(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr) {
    const std::string error = last_error();
    // A reason that begins with the name alone is that no place has it.
    const bool searched = error.rfind(file + ":", 0) == 0 && file.find('/') == std::string::npos;
    fail(RA_STATUS_NOT_SUPPORTED, error, searched ? "; looked in " + search_places() : "");
  }
  path_ = path_of(handle_, file);
}

DynamicLibrary::~DynamicLibrary() {
  if (handle_ != nullptr) dlclose(handle_);
}

void* DynamicLibrary::address(const char* symbol) const {
  void* found = dlsym(handle_, symbol);
  if (found == nullptr) fail(RA_STATUS_NOT_SUPPORTED, path_, " has no function ", symbol);
  return found;
}

DynamicLibrary find_library(const char* variable, const char* file) {
  const char* named = std::getenv(variable);
  const bool is_named = named != nullptr && *named != 0;
  try {
    return DynamicLibrary(is_named ? named : file);
  } catch (const Error& error) {
    throw Error(error.status, is_named ? text(error.message, " (named by ", variable, ")")
                                       : text(error.message, "; ", variable, " may name the file"));
  }
}

}  // namespace ringattn
