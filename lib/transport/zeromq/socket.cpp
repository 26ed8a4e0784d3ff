#include "transport/zeromq/socket.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <mutex>

#include "core/directory.h"
#include "core/memory.h"

namespace ringattn::zeromq {

namespace {

// Descriptors are the process's, and so is what has been promised of them. What is claimed is opened bit by bit, and is in use then, too: it
// is counted on top of what was in use when there was no claim yet, or when one was last given back.
struct Claims {
  std::mutex mutex;
  std::int64_t used_before = 0, claimed = 0;
};
Claims& claims() {
  static Claims& all = make_immortal<Claims>();
  return all;
}

// 0 where the system does not say.
std::int64_t descriptors_in_use() {
  Directory open("/proc/self/fd");
  if (!open.is_open() && errno != ENOENT && errno != EACCES) fail_with("opendir", "/proc/self/fd", errno);
  std::int64_t used = 0;
  while (open.next() != nullptr) ++used;
  return std::max<std::int64_t>(used - 1, 0);  // its own
}

}  // namespace

DescriptorClaim::DescriptorClaim(int count) : count_(count) {
  Claims& all = claims();
  const std::lock_guard lock(all.mutex);
  const std::int64_t used = descriptors_in_use();
  if (all.claimed == 0) all.used_before = used;
  const std::int64_t taken = std::max(used, all.used_before + all.claimed);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const auto most = static_cast<std::int64_t>(limit.rlim_cur);
    if (most - taken < count + spare)
      fail(RA_STATUS_OUT_OF_MEMORY, "this process may open ", most,
           " files (ulimit -n), and has, or is about to have, ", std::min(taken, most), "; a rank of this group needs ",
           count + spare, " more");
  }
  all.claimed += count;
}

DescriptorClaim::~DescriptorClaim() {
  Claims& all = claims();
  const std::lock_guard lock(all.mutex);
  all.claimed -= count_;
  if (all.claimed == 0) return;
  try {
    all.used_before = descriptors_in_use();
  } catch (...) {
    // Then it was more before.
  }
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
