#include "transport/zeromq/private_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string_view>
#include <utility>

#include "core/directory.h"
#include "core/error.h"
#include "core/log.h"

namespace ringattn::zeromq {
namespace {

constexpr std::time_t making_s = 10;  // that a directory has no lock, at most, unless its process ended meanwhile
constexpr const char *lock_name = "lock", *unfinished_lock_name = "lock-to-be";
constexpr std::size_t longest_root = 60;  // of the 107 characters that the name of a socket may have

std::string root() {
  const char* const chosen = std::getenv("TMPDIR");
  return chosen != nullptr && *chosen == '/' && std::strlen(chosen) <= longest_root ? chosen : "/tmp";
}

std::string prefix() { return text("ringattn-", getuid(), "-"); }

// An open file that is locked, or -1 if there is none or somebody else has it. The lock goes with the process.
int lock_file(const std::string& path, int flags = 0) {
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
  if (file < 0) return -1;
  if (flock(file, LOCK_EX | LOCK_NB) == 0) return file;
  close(file);
  return -1;
}

// With the files in it; it has nothing else.
void remove_directory(const std::string& path) noexcept {
  for (const char* const name : {lock_name, unfinished_lock_name, PrivateDirectory::socket_name}) {
    char file[PATH_MAX];
    std::snprintf(file, sizeof file, "%s/%s", path.c_str(), name);
    unlink(file);
  }
  rmdir(path.c_str());
}

void remove_leftovers(const std::string& where) {
  Directory all(where.c_str());
  const std::string of_this_kind = prefix();
  while (const char* const name = all.next()) {
    if (!std::string_view(name).starts_with(of_this_kind)) continue;
    const std::string path = where + "/" + name;
    struct stat status {};
    if (lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != getuid()) continue;
    const std::string file = path + "/" + lock_name;
    const int lock = lock_file(file);
    const bool is_unfinished = lock < 0 && access(file.c_str(), F_OK) != 0 && errno == ENOENT;
    if (lock < 0 && !(is_unfinished && std::time(nullptr) - status.st_mtime > making_s)) continue;
    remove_directory(path);
    if (lock >= 0) close(lock);
  }
}

}  // namespace

PrivateDirectory::PrivateDirectory(std::string name) : path_(std::move(name)) {
  if (mkdtemp(path_.data()) == nullptr)  // for this user alone
    fail(RA_STATUS_INTERNAL_ERROR, "cannot make a directory ", path_, ": ", std::strerror(errno));
}

PrivateDirectory::PrivateDirectory() : PrivateDirectory(root() + "/" + prefix() + "XXXXXX") {
  remove_leftovers(root());
  // The lock has its name once it is locked, so that nobody takes this for a leftover meanwhile.
  const std::string lock = path_ + "/" + lock_name, unnamed = path_ + "/" + unfinished_lock_name;
  lock_ = lock_file(unnamed, O_CREAT);
  if (lock_ < 0 || std::rename(unnamed.c_str(), lock.c_str()) != 0)
    log(RA_LOG_LEVEL_DEBUG, "cannot lock ", path_, ": ", std::strerror(errno), "; if this process dies, it stays");
}

PrivateDirectory::~PrivateDirectory() {
  remove_directory(path_);
  if (lock_ >= 0) close(lock_);
}

std::string PrivateDirectory::machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat status {};
  if (boot.empty() || stat(root().c_str(), &status) != 0) return {};
  return text(boot.substr(0, 18), ":", status.st_dev, ":", status.st_ino, ":", getuid());
}

}  // namespace ringattn::zeromq
