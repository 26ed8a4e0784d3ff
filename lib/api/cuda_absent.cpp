// In the place of the CUDA backend where the library is built without it.
#include "api/backend.h"
#include "engine/cuda/availability.h"

namespace ringattn::api {

std::unique_ptr<Backend> make_cuda_backend(const ra_context_config &c, const Rank &) {
  const std::string missing = cuda::availability().missing;
  fail(RA_STATUS_NOT_SUPPORTED, "backend is ", c.backend, " (RA_BACKEND_CUDA); ",
       missing.empty() ? "this build has no CUDA engine yet" : missing);
}

}  // namespace ringattn::api
