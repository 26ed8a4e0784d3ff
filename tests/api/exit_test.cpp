// A program whose globals outlive main: its last calls come after the destructors of everything that main made static, the
// library's own included.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "ringattn/ringattn.h"

namespace {

ra_context* make_context() {
  ra_error error;
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.num_threads = 1;
  ra_context* const context = ra_create_context(&config, &error);
  if (context == nullptr) {
    std::fprintf(stderr, "%s: %s\n", ra_get_status_name(error.status), error.message);
    std::_Exit(1);
  }
  return context;
}

void ignore(std::int32_t, const char*, void*) {}

struct Globals {
  ra_context* context = nullptr;
  ~Globals() {
    ra_destroy_context(context);
    ra_destroy_context(make_context());
    ra_set_log_callback(nullptr, nullptr, RA_LOG_LEVEL_DEBUG);
  }
} globals;

}  // namespace

int main() {
  ra_set_log_callback(ignore, nullptr, RA_LOG_LEVEL_DEBUG);
  globals.context = make_context();
}
