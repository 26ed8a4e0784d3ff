// A directory of this user's alone, for as long as this exists, and what crashed processes have left of theirs.
#pragma once

#include <string>

namespace ringattn::zeromq {

class PrivateDirectory {
 public:
  // In TMPDIR, or /tmp where that is too long for the name of a socket. Removes directories of this kind whose processes are gone.
  PrivateDirectory();
  PrivateDirectory(const PrivateDirectory&) = delete;
  PrivateDirectory& operator=(const PrivateDirectory&) = delete;
  ~PrivateDirectory();

  const std::string& path() const { return path_; }
  static constexpr const char* socket_name = "data";  // of the one file in it that is not its own
  // The same on processes that see the same directories: of one machine, or of containers that share this one.
  static std::string machine();

 private:
  explicit PrivateDirectory(std::string name);  // makes it, of a name that ends in XXXXXX

  std::string path_;
  int lock_ = -1;  // held as long as the process lives
};

}  // namespace ringattn::zeromq
