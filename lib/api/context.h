// A rank's membership in its group, and what it computes with.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <new>

#include "core/memory.h"
#include "core/stopwatch.h"
#include "engine/engine.h"
#include "plan/plan.h"
#include "ring/agreement.h"
#include "ring/ring.h"
#include "transport/transport.h"

namespace ringattn::api {

// A checked ra_context_config, without what only joining needs.
struct Rank {
  int rank = 0;
  int world_size = 1;
  int num_threads = 1;
};
Rank to_rank(const ra_context_config &config);
std::unique_ptr<Engine> to_engine(const ra_context_config &config, const Rank &rank);

// What a pass did, and the time of the call around it.
struct CallStatistics : Statistics {
  double total_seconds = 0;
};

ra_memory_requirements describe_memory(const Problem &problem, const Rank &rank, const Engine &engine,
                                       std::size_t context_bytes);

}  // namespace ringattn::api

struct ra_context {
  ra_context(const ringattn::api::Rank &r, std::int64_t timeout, std::unique_ptr<ringattn::Engine> e)
      : rank(r), timeout_ms(timeout), engine(std::move(e)) {}

  // The plan of the last call of this kind serves again as long as the problem stays the same.
  const ringattn::Plan &plan(const ringattn::Problem &problem, ringattn::Pass pass);

  // Runs what the ranks do together: refuses a broken context, then f(); if f throws, the whole group breaks.
  template <class F>
  void collective(F &&f) {
    const ringattn::Failure failure = transport->failure();
    if (failure.status != RA_STATUS_SUCCESS)
      throw ringattn::Error(
          RA_STATUS_INVALID_STATE,
          ringattn::text("the context failed earlier with ", ra_get_status_name(failure.status), ": ", failure.message),
          failure.rank);
    try {
      f();
    } catch (...) {
      break_group();
      throw;
    }
    ++calls;
  }

  // Runs f(), the whole body of a collective function, for one thread at a time. Where memory runs out even before the call
  // is agreed on, the other ranks, who wait for this one, are told.
  template <class F>
  void exclusively(F &&f) {
    if (busy.exchange(true)) ringattn::fail(RA_STATUS_INVALID_STATE, "the context is in use by another thread");
    const struct Release {
      std::atomic<bool> &flag;
      ~Release() { flag.store(false); }
    } release{busy};
    try {
      f();
    } catch (const std::bad_alloc &) {
      break_group();
      throw;
    }
  }

  void agree(ringattn::Operation operation, const ringattn::Problem &problem, std::int64_t a = 0, std::int64_t b = 0) {
    if (rank.world_size > 1) ringattn::agree(*transport, operation, calls, problem, a, b);
  }
  ringattn::Statistics forward(const ringattn::Problem &problem, ringattn::ForwardCall call);
  ringattn::Statistics backward(const ringattn::Problem &problem, ringattn::BackwardCall call);

  // The collective part of a call that began with `whole_call`: all ranks agree on it, then each runs pass().
  template <class F>
  void together(ringattn::Operation operation, const ringattn::Problem &problem, const ringattn::Stopwatch &whole_call,
                F &&pass) {
    collective([&] {
      const ringattn::Stopwatch agreement;
      agree(operation, problem);
      const double waited = agreement.seconds();
      ringattn::api::CallStatistics s{pass()};
      s.wait_seconds += waited;
      s.total_seconds = whole_call.seconds();
      const std::lock_guard lock(statistics_mutex);
      statistics = s;
    });
  }

  ringattn::api::Rank rank;
  std::int64_t timeout_ms;
  std::unique_ptr<ringattn::Engine> engine;
  std::unique_ptr<ringattn::Plan> forward_plan, backward_plan;
  ringattn::Block workspace;  // where the caller gives none
  std::int64_t calls = 0;     // collective calls completed: equal on all ranks
  std::atomic<bool> busy{false};
  mutable std::mutex statistics_mutex;
  ringattn::api::CallStatistics statistics;        // of the last call completed
  std::unique_ptr<ringattn::Transport> transport;  // last: leaves the group before anything else goes

 private:
  void break_group() noexcept;  // in a catch block
};

namespace ringattn::api {

// Of a context that has yet to be checked.
inline int rank_of(const ra_context *context) { return context == nullptr ? -1 : context->rank.rank; }

}  // namespace ringattn::api
