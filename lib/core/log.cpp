#include "core/log.h"

#include <limits>
#include <mutex>
#include <shared_mutex>

#include "core/memory.h"

namespace ringattn {
namespace {

constexpr int nobody_listens = std::numeric_limits<int>::max();

struct Listener {
  std::shared_mutex mutex;  // shared while the callback runs, exclusive while it is exchanged
  ra_log_callback callback = nullptr;
  void* user_data = nullptr;
};

Listener& listener() {
  static Listener& instance = make_immortal<Listener>();
  return instance;
}

}  // namespace

std::atomic<int> log_level{nobody_listens};

void set_log_callback(ra_log_callback callback, void* user_data, int min_level) {
  Listener& l = listener();
  const std::unique_lock lock(l.mutex);
  l.callback = callback;
  l.user_data = user_data;
  log_level = callback != nullptr ? min_level : nobody_listens;
}

void write_log(ra_log_level level, const std::string& message) {
  Listener& l = listener();
  const std::shared_lock lock(l.mutex);
  if (l.callback != nullptr) l.callback(level, message.c_str(), l.user_data);
}

}  // namespace ringattn
