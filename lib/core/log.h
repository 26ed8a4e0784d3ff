// Messages for the host program. Discarded unless a callback asks for them; the text is then made, and not before.
#pragma once

#include <atomic>
#include <string>

#include "core/error.h"

namespace ringattn {

void set_log_callback(ra_log_callback callback, void* user_data, int min_level);

extern std::atomic<int> log_level;  // the lowest level that anybody listens to
void write_log(ra_log_level level, const std::string& message);

template <class... Parts>
void log(ra_log_level level, const Parts&... parts) {
  if (level >= log_level.load(std::memory_order_relaxed)) write_log(level, text(parts...));
}

}  // namespace ringattn
