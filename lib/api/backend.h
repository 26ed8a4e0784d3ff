// What a context does in another way on other hardware: what it computes with, where its memory is, what its calls may be given, and
// what joins it to the other ranks. Nothing outside of a backend asks which one it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "api/validate.h"
#include "engine/engine.h"
#include "transport/transport.h"

namespace ringattn::api {

// A checked ra_context_config, without what only joining needs.
struct Rank {
  int rank = 0;
  int world_size = 1;
  int num_threads = 1;
  std::int32_t backend = RA_BACKEND_CPU;
  std::int32_t transport = RA_TRANSPORT_LOCAL;
};
Rank to_rank(const ra_context_config &config);

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Engine &engine() = 0;
  virtual int device() const = 0;  // as ra_context_info has it; after open()

  // Checks the rest of the config and takes what a context needs of the hardware. What it returns joins the group: it blocks until
  // all ranks have come, and tells them of its failures, but for std::bad_alloc. The backend outlives the transport.
  using Join = std::function<std::unique_ptr<Transport>()>;
  virtual Join open(const ra_context_config &config, const Rank &rank, std::int64_t timeout_ms) = 0;

  // Refuses memory and a stream that a call is given and that this hardware cannot use.
  virtual void check(const Ranges &ranges, ra_stream stream) = 0;
  // Whether a call on that stream is only recorded, for a CUDA graph.
  virtual bool is_captured(ra_stream stream) = 0;
  // The context's own workspace for a call on that stream, of `size` bytes at least; the one given out before is no more.
  virtual void *workspace(std::size_t size, ra_stream stream) = 0;

  // Memory that calls can be given, aligned like memory_alignment, and copies between it and the host's, complete when they return.
  virtual std::shared_ptr<void> allocate(std::size_t size) = 0;
  virtual void copy(void *to, const void *from, std::size_t size) = 0;

  // What engine and transport do between the two is one call of the caller's, on a stream that check() has seen.
  virtual void begin(ra_stream stream) = 0;
  virtual void end() noexcept = 0;
};

// Reads what ra_estimate_memory reads. Throws NOT_SUPPORTED with what is missing.
std::unique_ptr<Backend> make_backend(const ra_context_config &config, const Rank &rank);
std::unique_ptr<Backend> make_cpu_backend(const ra_context_config &config, const Rank &rank);
std::unique_ptr<Backend> make_cuda_backend(const ra_context_config &config, const Rank &rank);

}  // namespace ringattn::api
