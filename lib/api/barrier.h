// The exception barrier: the body of every extern "C" function is one lambda behind it.
#pragma once

#include <cstdio>
#include <cstring>
#include <new>

#include "core/error.h"

namespace ringattn::api {

inline ra_status report(ra_error *error, ra_status status, int rank, const char *message) noexcept {
  if (error != nullptr) {
    error->status = status;
    error->rank = rank;
    std::snprintf(error->message, sizeof error->message, "%s", message);
  }
  return status;
}

inline void clear(ra_error *error) noexcept {
  if (error == nullptr) return;
  std::memset(error, 0, sizeof *error);
  error->rank = -1;
}

// Call in a catch block: the exception in flight as a status. `own_rank`: who failed where the exception does not say, in what all
// ranks do together; else -1.
inline ra_status report_exception(ra_error *error, int own_rank) noexcept {
  try {
    throw;
  } catch (const Error &e) {
    if (error != nullptr) {
      error->cuda_error = e.cuda_error;
      error->nccl_result = e.nccl_result;
    }
    return report(error, e.status, culprit_of(e, own_rank), e.message.c_str());
  } catch (const std::bad_alloc &) {
    return report(error, RA_STATUS_OUT_OF_MEMORY, own_rank, "memory could not be allocated");
  } catch (const std::exception &e) {
    return report(error, RA_STATUS_INTERNAL_ERROR, own_rank, e.what());
  } catch (...) {
    return report(error, RA_STATUS_INTERNAL_ERROR, own_rank, "unknown exception");
  }
}

// Runs f(); what it throws becomes the returned status.
template <class F>
ra_status guard(ra_error *error, int own_rank, F &&f) noexcept {
  clear(error);
  try {
    f();
    return RA_STATUS_SUCCESS;
  } catch (...) {
    return report_exception(error, own_rank);
  }
}
template <class F>
ra_status guard(ra_error *error, F &&f) noexcept {
  return guard(error, -1, f);
}

// The same for functions that return a value: `failed` stands for any exception.
template <class T, class F>
T guard_value(ra_error *error, T failed, F &&f) noexcept {
  T value = failed;
  return guard(error, [&] { value = f(); }) == RA_STATUS_SUCCESS ? value : failed;
}

}  // namespace ringattn::api
