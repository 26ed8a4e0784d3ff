// What the library says of itself.
#include <oneapi/tbb/info.h>

#include <array>
#include <cstdio>

#include "api/barrier.h"
#include "api/structs.h"
#include "core/log.h"
#include "engine/cuda/availability.h"
#include "engine/engine.h"
#include "transport/nccl.h"
#include "transport/zeromq.h"

using namespace ringattn;
using namespace ringattn::api;

extern "C" {

const char *ra_get_status_name(int32_t status) {
  static constexpr std::array names{"SUCCESS",       "INVALID_ARGUMENT", "NOT_SUPPORTED", "OUT_OF_MEMORY",
                                    "INVALID_STATE", "TIMEOUT",          "ABORTED",       "PEER_LOST",
                                    "MISMATCH",      "CUDA_ERROR",       "NCCL_ERROR",    "INTERNAL_ERROR"};
  static_assert(names.size() == RA_STATUS_INTERNAL_ERROR + 1);
  return status >= 0 && static_cast<std::size_t>(status) < names.size() ? names[static_cast<std::size_t>(status)]
                                                                        : "UNKNOWN";
}

int32_t ra_get_version(void) { return RA_VERSION_MAJOR * 10000 + RA_VERSION_MINOR * 100 + RA_VERSION_PATCH; }

void ra_init_capabilities(ra_capabilities *capabilities, size_t struct_size) { init(capabilities, struct_size); }

ra_status ra_get_capabilities(ra_capabilities *capabilities, ra_error *error) {
  return guard(error, [&] {
    ra_capabilities c = defaults<ra_capabilities>();
    c.version = ra_get_version();
    const cuda::Availability cuda = cuda::availability();
    c.has_cuda = cuda.missing.empty();
    c.has_zeromq = missing_zeromq().empty();
    c.has_nccl = c.has_cuda != 0 && missing_nccl().empty();
    c.num_devices = cuda.num_devices;
    c.hardware_threads = tbb::info::default_concurrency();
    c.max_head_dim = most_head_dim;
    std::snprintf(c.engines, sizeof c.engines, "%s", cpu_engine_names().c_str());
    write(capabilities, "capabilities", c);
  });
}

void ra_set_log_callback(ra_log_callback callback, void *user_data, int32_t min_level) {
  set_log_callback(callback, user_data, min_level);
}

}  // extern "C"
