#include "api/context.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "api/barrier.h"
#include "api/group.h"
#include "api/structs.h"
#include "api/validate.h"
#include "core/log.h"

using namespace ringattn;
using namespace ringattn::api;

namespace ringattn::api {

Rank to_rank(const ra_context_config &c) {
  constexpr int most_threads = 1024;
  require_place(c);
  require_range("num_threads", c.num_threads, 0, most_threads);
  // More would make oneTBB print a warning and start no more threads than it is allowed.
  const int allowed = static_cast<int>(std::min<std::size_t>(
      tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism), most_threads));
  const int share = std::max(1, tbb::info::default_concurrency() / c.world_size);
  return {c.rank, c.world_size, std::min(c.num_threads > 0 ? c.num_threads : share, allowed), c.backend, c.transport};
}

std::unique_ptr<Backend> make_backend(const ra_context_config &c, const Rank &rank) {
  require_range("backend", c.backend, RA_BACKEND_CPU, RA_BACKEND_CUDA);
  require_range("transport", c.transport, RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL);
  return c.backend == RA_BACKEND_CUDA ? make_cuda_backend(c, rank) : make_cpu_backend(c, rank);
}

}  // namespace ringattn::api

namespace {

constexpr std::int64_t default_timeout_ms = 300'000;

std::int64_t to_timeout(const ra_context_config &c) {
  require_range("timeout_ms", c.timeout_ms, 0, (std::int64_t{1} << 31) - 1);
  return c.timeout_ms == 0 ? default_timeout_ms : c.timeout_ms;
}

// A context that has yet to join its group, and what does that.
struct Candidate {
  std::unique_ptr<ra_context> context;
  Backend::Join join;
};

Candidate make_context(const ra_context_config &c) {
  const Rank rank = to_rank(c);
  std::unique_ptr<Backend> backend = make_backend(c, rank);
  const std::int64_t timeout_ms = to_timeout(c);
  Backend::Join join = backend->open(c, rank, timeout_ms);
  auto trace = c.trace_path == nullptr ? nullptr : std::make_unique<Trace>(c.trace_path, rank.rank, rank.world_size);
  return {std::make_unique<ra_context>(rank, timeout_ms, std::move(backend), std::move(trace)), std::move(join)};
}

std::unique_ptr<PassPlan> make_plan(const Problem &problem, const Rank &rank, Pass pass) {
  auto plan = std::make_unique<PassPlan>(problem, rank.world_size, rank.rank, pass);
  log(RA_LOG_LEVEL_DEBUG, "rank ", rank.rank, " of ", rank.world_size, ": ",
      pass == Pass::forward ? "forward" : "backward", ", schedule ",
      plan->schedule() == Schedule::ring ? "ring" : "all_gather",
      problem.schedule == Schedule::automatic ? " (auto)" : "", ", ", plan->num_parts(), " part(s), ",
      plan->num_chunks(), " chunk(s)");
  return plan;
}

}  // namespace

const PassPlan &ra_context::plan(const Problem &problem, Pass pass) {
  std::unique_ptr<PassPlan> &kept = pass == Pass::forward ? forward_plan : backward_plan;
  if (kept != nullptr && kept->problem().dropout != problem.dropout)
    kept->set_dropout(problem.dropout);  // a plan is the same whichever weights are dropped
  if (kept == nullptr || kept->problem() != problem) kept = make_plan(problem, rank, pass);
  return *kept;
}

void ra_context::break_group() noexcept {
  ra_error why;
  clear(&why);
  const ra_status status = report_exception(&why, rank.rank);
  Failure failure(status, why.rank, why.message);
  failure.cuda_error = why.cuda_error;
  failure.nccl_result = why.nccl_result;
  transport->fail(failure);
}

extern "C" {

void ra_init_context_config(ra_context_config *config, size_t struct_size) { init(config, struct_size); }

ra_status ra_create_unique_id(ra_unique_id *id, int32_t transport, const char *bind_address, ra_error *error) {
  return guard(error, [&] {
    require(id != nullptr, "id is NULL; must point to a ra_unique_id");
    require_here(transport);
    const std::string text = make_id(transport, bind_address);
    std::memset(id, 0, sizeof *id);
    std::memcpy(id->text, text.data(), std::min(text.size(), sizeof id->text - 1));
  });
}

ra_context *ra_create_context(const ra_context_config *config, ra_error *error) {
  return guard_value<ra_context *>(error, nullptr, [&] {
    const ra_context_config c = read(config, "config");
    Candidate candidate;
    try {
      candidate = make_context(c);
    } catch (...) {
      refuse(c);
      throw;
    }
    try {
      candidate.context->transport = candidate.join();  // tells the others of every failure but this one
    } catch (const std::bad_alloc &) {
      refuse(c);
      throw;
    }
    candidate.context->transport->trace_to(candidate.context->trace.get());
    return candidate.context.release();
  });
}

void ra_init_context_info(ra_context_info *info, size_t struct_size) { init(info, struct_size); }

ra_status ra_get_context_info(const ra_context *context, ra_context_info *info, ra_error *error) {
  return guard(error, [&] {
    const ra_context &c = checked(context);
    ra_context_info i = defaults<ra_context_info>();
    i.rank = c.rank.rank;
    i.world_size = c.rank.world_size;
    i.backend = c.rank.backend;
    i.transport = c.rank.transport;
    i.device = c.backend->device();
    i.num_threads = c.engine.num_threads();
    i.timeout_ms = c.timeout_ms;
    std::snprintf(i.engine, sizeof i.engine, "%s", c.engine.name());
    write(info, "info", i);
  });
}

// In a process that was forked, what the context has belongs to the other one: it is left where it is.
void ra_destroy_context(ra_context *context) {
  if (context != nullptr && context->is_of_this_process()) delete context;
}

ra_status ra_abort_context(ra_context *context, ra_error *error) {
  return guard(error, [&] {
    ra_context &c = checked(context);
    c.transport->fail({RA_STATUS_ABORTED, c.rank.rank, text("ra_abort_context was called on rank ", c.rank.rank)});
  });
}

ra_status ra_get_async_error(const ra_context *context, ra_error *error) {
  return guard(error, [&] {
    const Failure failure = checked(context).transport->failure();
    if (failure.status != RA_STATUS_SUCCESS) throw failure.to_error();
  });
}

}  // extern "C"
