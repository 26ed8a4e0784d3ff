// The one exception that the library throws on purpose; lib/api turns it into an ra_error.
#pragma once

#include <exception>
#include <locale>
#include <sstream>
#include <string>
#include <utility>

#include "ringattn/ringattn.h"

namespace ringattn {

struct Error : std::exception {
  Error(ra_status status_, std::string message_, int rank_ = -1)
      : status(status_), rank(rank_), message(std::move(message_)) {}
  const char* what() const noexcept override { return message.c_str(); }

  ra_status status;
  int rank;  // that caused the failure, -1 if none did
  std::string message;
  int cuda_error = 0;   // cudaError_t
  int nccl_result = 0;  // ncclResult_t
};

// Who broke the group, where rank `own` has thrown this in what all ranks do together. An error that names nobody is its own, but for
// those that are about several ranks, or about one that is not known.
inline int culprit_of(const Error& error, int own) noexcept {
  switch (error.status) {
    case RA_STATUS_OUT_OF_MEMORY:
    case RA_STATUS_CUDA_ERROR:
    case RA_STATUS_NCCL_ERROR:
    case RA_STATUS_INTERNAL_ERROR:
      return error.rank < 0 ? own : error.rank;
    default:
      return error.rank;
  }
}

// A stream that all texts are written with: numbers look the same whatever locale the program has set.
inline std::ostringstream text_stream() {
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  stream.exceptions(std::ios::badbit);  // else a stream without memory ends its text early and says nothing
  return stream;
}

// text("head_dim is ", 320, "; must be 1 .. 256")
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream = text_stream();
  (stream << ... << parts);
  return std::move(stream).str();
}

template <class... Parts>
[[noreturn]] void fail(ra_status status, const Parts&... parts) {
  throw Error(status, text(parts...));
}

// The same, where rank `culprit` is to blame.
template <class... Parts>
[[noreturn]] void fail_at(ra_status status, int culprit, const Parts&... parts) {
  throw Error(status, text(parts...), culprit);
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(RA_STATUS_INVALID_ARGUMENT, parts...);
}

}  // namespace ringattn
