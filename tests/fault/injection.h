// Calls that fail when a test says so: the functions of libzmq and libsodium, the system calls of lib/transport/zeromq and lib/core, and
// every allocation.
//
// Whatever a call goes through here belongs to an Injection if the thread that makes it does: the test's own threads while they are Armed,
// and those that they start. It counts the calls of each function, and makes one of them, the n-th of one function, fail with one of the
// errors that the function is documented to have. Calls that libzmq, libsodium and the C++ library make themselves are their affair (libzmq
// ends the process where it has no memory).
//
// The libraries' tables are exchanged behind zeromq_library() and sodium_library(); the linker puts __wrap_NAME in the place of each
// system call NAME (CMakeLists.txt), and refuses to link if either the list there or the one here lacks a name of the other.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace ringattn::test {

struct Fault {
  int error;              // an errno, or what the function returns
  bool is_survived;       // the call is only delayed, or tried again, or its failure is of no consequence
  bool is_done = false;   // the call does what it is for all the same
  bool is_first = false;  // of no part of a message but the first, and of no socket that drops what it has no room for
};

struct Function {
  const char* name;
  std::vector<Fault> faults;  // none: it has no way to fail
};

enum class Stage : int { id, create, forward, backward, idle, destroy };
constexpr const char* stage_names[] = {"id", "create", "forward", "backward", "idle", "destroy"};

const std::vector<Function>& functions();  // that can be made to fail, and those of the libraries that cannot
int index_of(std::string_view function);   // in functions(); -1: not there

class Injection {
 public:
  // The n-th call (1, 2, ...) of that function fails with that one of its faults; n = 0: none does. `is_lasting`: and all after it.
  Injection(int function, int n, int fault, bool is_lasting = false);

  struct Call {
    int function;
    int n;
    const void* from;
    Stage stage;
  };
  std::vector<Call> calls() const;  // made so far, but for the one that failed
  bool has_failed() const { return has_failed_; }
  Stage failed_in() const { return failed_in_; }
  std::atomic<Stage> stage{Stage::id};

  // Whether this call fails. Only for what stands in the place of functions.
  const Fault* next(int function, const void* from, bool is_first) noexcept;

 private:
  const int function_, n_, fault_;
  const bool is_lasting_;
  std::atomic<bool> has_failed_{false};
  std::atomic<Stage> failed_in_{Stage::id};
  mutable std::mutex mutex_;
  std::vector<int> counts_;
  std::vector<Call> calls_;
};

// The thread's calls belong to `injection` (null: to none) as long as this exists.
class Armed {
 public:
  explicit Armed(Injection* injection);
  Armed(const Armed&) = delete;
  Armed& operator=(const Armed&) = delete;
  ~Armed();

 private:
  Injection* const before_;
};

}  // namespace ringattn::test
