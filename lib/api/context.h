// A rank's membership in its group, and what it computes with.
#pragma once

#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>

#include "api/backend.h"
#include "core/trace.h"
#include "plan/plan.h"
#include "ring/agreement.h"
#include "ring/ring.h"
#include "transport/transport.h"

namespace ringattn::api {

// What a pass did, and the time of the call around it.
struct CallStatistics : Statistics {
  double total_seconds = 0;
};

ra_memory_requirements describe_memory(const Problem &problem, const Rank &rank, const Engine &engine,
                                       std::size_t context_bytes);

}  // namespace ringattn::api

struct ra_context {
  ra_context(const ringattn::api::Rank &r, std::int64_t timeout, std::unique_ptr<ringattn::api::Backend> b,
             std::unique_ptr<ringattn::Trace> t)
      : rank(r), timeout_ms(timeout), backend(std::move(b)), engine(backend->engine()), trace(std::move(t)) {}

  // A process that the host forks has this memory, but none of the threads, and shares sockets with the process that made the
  // context: there it can only be refused.
  void require_own_process() const {
    if (!is_of_this_process())
      ringattn::fail(RA_STATUS_INVALID_STATE, "context was made by process ", process, ", and this is process ",
                     getpid(), ", which was forked from it; must be used in the process that made it");
  }
  bool is_of_this_process() const noexcept { return getpid() == process; }

  // The plan of the last call of this kind serves again as long as the problem stays the same.
  const ringattn::PassPlan &plan(const ringattn::Problem &problem, ringattn::Pass pass);

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
      transport->abandon();  // however a call ends, its memory is the caller's again
      break_group();
      throw;
    }
    ++calls;
    const ringattn::Phase phase(trace.get(), "end");
    transport->end_call();
  }

  // Runs f() for one thread at a time.
  template <class F>
  void alone(F &&f) {
    if (busy.exchange(true)) ringattn::fail(RA_STATUS_INVALID_STATE, "the context is in use by another thread");
    const struct Release {
      std::atomic<bool> &flag;
      ~Release() { flag.store(false); }
    } release{busy};
    f();
  }

  // The same for the whole body of a collective function. Where something fails even before the call is agreed on, other than that the
  // call is refused, the other ranks, who wait for this one, are told.
  template <class F>
  void exclusively(F &&f) {
    alone([&] { tell_of_failures(f); });
  }

  void agree(ringattn::Operation operation, const ringattn::Problem &problem, std::span<const std::int64_t> arguments) {
    if (rank.world_size > 1) ringattn::agree(*transport, {operation, calls, problem, arguments});
  }

  // The context's own workspace, large enough for this pass.
  void *workspace(const ringattn::Problem &problem, ringattn::Pass pass, ra_stream stream) {
    return backend->workspace(ringattn::workspace_bytes(plan(problem, pass), engine), stream);
  }
  ringattn::Statistics forward(const ringattn::Problem &problem, const ringattn::ForwardCall &call) {
    return ringattn::run_forward(plan(problem, ringattn::Pass::forward), {engine, *transport, trace.get()}, call);
  }
  ringattn::Statistics backward(const ringattn::Problem &problem, const ringattn::BackwardCall &call) {
    return ringattn::run_backward(plan(problem, ringattn::Pass::backward), {engine, *transport, trace.get()}, call);
  }

  // Runs f(), which computes, on a stream of the caller's.
  template <class F>
  void on(ra_stream stream, F &&f) {
    backend->begin(stream);
    const struct End {
      ringattn::api::Backend &backend;
      ~End() { backend.end(); }
    } end{*backend};
    f();
  }

  // The collective part of a call that began with `whole_call`: all ranks agree on the operation, the problem and its arguments, then each
  // runs run(). Where ranks cannot ask each other in a capture, they rely on having agreed before.
  template <class F>
  void together(ringattn::Operation operation, const ringattn::Problem &problem,
                std::span<const std::int64_t> arguments, ra_stream stream, const ringattn::Phase &whole_call, F &&run) {
    std::optional<ringattn::Terms> terms;
    if (rank.world_size > 1) terms.emplace(operation, calls, problem, arguments);
    const bool asks = terms && (transport->gathers_in_captures() || !backend->is_captured(stream));
    const bool again = terms && agreed[operation] == terms->digest();
    if (terms && !asks && !again)
      ringattn::fail(RA_STATUS_INVALID_STATE,
                     "stream is being captured, and the ranks have not agreed on this call yet; make it once before");
    collective([&] {
      ringattn::Phase agreement(trace.get(), "agree");
      if (asks) {
        ringattn::agree(*transport, *terms, !again);  // again: there is no hurry
        agreed[operation] = terms->digest();
      }
      const double waited = agreement.end();
      ringattn::api::CallStatistics s;
      on(stream, [&] { s = {run(), 0}; });
      s.wait_seconds += waited;
      s.total_seconds = whole_call.seconds();
      const std::lock_guard lock(statistics_mutex);
      statistics = s;
    });
  }

  const pid_t process = getpid();
  const std::shared_ptr<const void> identity = std::make_shared<const char>();  // unlike that of any context before it
  ringattn::api::Rank rank;
  std::int64_t timeout_ms;
  std::unique_ptr<ringattn::api::Backend> backend;
  ringattn::Engine &engine;                      // the backend's
  const std::unique_ptr<ringattn::Trace> trace;  // may be null; outlives the transport
  std::unique_ptr<ringattn::PassPlan> forward_plan, backward_plan;
  std::int64_t calls = 0;  // collective calls completed: equal on all ranks
  std::atomic<bool> busy{false};
  mutable std::mutex statistics_mutex;
  ringattn::api::CallStatistics statistics;        // of the last call completed
  std::unique_ptr<ringattn::Transport> transport;  // last: leaves the group before anything else goes

 private:
  std::map<ringattn::Operation, std::optional<std::int64_t>> agreed;  // digests of the last terms

  template <class F>
  void tell_of_failures(F &&f) {
    try {
      f();
    } catch (const ringattn::Error &e) {
      const bool is_refusal = e.status == RA_STATUS_INVALID_ARGUMENT || e.status == RA_STATUS_NOT_SUPPORTED ||
                              e.status == RA_STATUS_INVALID_STATE;
      if (!is_refusal) break_group();
      throw;
    } catch (const std::bad_alloc &) {
      break_group();
      throw;
    }
  }

  void break_group() noexcept;  // in a catch block
};

namespace ringattn::api {

// Of a context that has yet to be checked.
inline int rank_of(const ra_context *context) { return context == nullptr ? -1 : context->rank.rank; }

}  // namespace ringattn::api
