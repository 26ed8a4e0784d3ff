#include "transport/zeromq/socket.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>

#include "core/directory.h"

namespace ringattn::zeromq {

void require_descriptors(int count) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  Directory open("/proc/self/fd");
  if (!open.is_open() && errno != ENOENT && errno != EACCES) fail_with("opendir", "/proc/self/fd", errno);
  std::size_t used = 0;
  while (open.next() != nullptr) ++used;
  const auto spare = static_cast<std::int64_t>(limit.rlim_cur) - static_cast<std::int64_t>(used);
  if (spare < count)
    fail(RA_STATUS_OUT_OF_MEMORY, "this process may open ", limit.rlim_cur, " files (ulimit -n), and has ", used,
         "; a rank of this group needs ", count, " more");
}

Signal::Signal() : descriptor_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (descriptor_ < 0) fail_with("eventfd", {}, errno);
}
Signal::~Signal() { close(descriptor_); }
void Signal::signal() noexcept {
  const std::uint64_t one = 1;
  while (write(descriptor_, &one, sizeof one) < 0 && errno == EINTR) continue;
}
void Signal::clear() noexcept {
  std::uint64_t count;
  [[maybe_unused]] const auto got = read(descriptor_, &count, sizeof count);
}

}  // namespace ringattn::zeromq
