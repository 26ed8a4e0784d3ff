#include "api/context.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "api/barrier.h"
#include "api/structs.h"
#include "api/validate.h"
#include "core/log.h"
#include "engine/cuda/availability.h"
#include "transport/local.h"
#include "transport/nccl.h"

using namespace ringattn;
using namespace ringattn::api;

namespace ringattn::api {

static void require_place(const ra_context_config &c) {
  require_range("world_size", c.world_size, 1, most_ranks);
  require_range("rank", c.rank, 0, c.world_size - 1);
}

Rank to_rank(const ra_context_config &c) {
  constexpr int most_threads = 1024;
  require_place(c);
  require_range("num_threads", c.num_threads, 0, most_threads);
  // More would make oneTBB print a warning and start no more threads than it is allowed.
  const int allowed = static_cast<int>(std::min<std::size_t>(
      tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism), most_threads));
  const int share = std::max(1, tbb::info::default_concurrency() / c.world_size);
  return {c.rank, c.world_size, std::min(c.num_threads > 0 ? c.num_threads : share, allowed)};
}

// `transport` is a ra_transport.
static void require_here(std::int32_t transport) {
  if (transport == RA_TRANSPORT_ZEROMQ)
    fail(RA_STATUS_NOT_SUPPORTED, "transport is ", transport,
         " (RA_TRANSPORT_ZEROMQ); this build has RA_TRANSPORT_LOCAL = 0 only");
  if (transport == RA_TRANSPORT_NCCL)
    fail(RA_STATUS_NOT_SUPPORTED, "transport is ", transport, " (RA_TRANSPORT_NCCL); ", missing_nccl());
}

std::unique_ptr<Engine> to_engine(const ra_context_config &c, const Rank &rank) {
  require_range("backend", c.backend, RA_BACKEND_CPU, RA_BACKEND_CUDA);
  require_range("transport", c.transport, RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL);
  if (c.backend != RA_BACKEND_CPU)
    fail(RA_STATUS_NOT_SUPPORTED, "backend is ", c.backend, " (RA_BACKEND_CUDA); ", cuda::availability().missing);
  require_here(c.transport);
  std::unique_ptr<Engine> engine = make_cpu_engine(c.engine, rank.num_threads);
  if (engine == nullptr)
    fail(RA_STATUS_NOT_SUPPORTED, "engine is \"", c.engine, "\"; this build has on this machine: ", cpu_engine_names());
  return engine;
}

}  // namespace ringattn::api

namespace {

constexpr std::int64_t default_timeout_ms = 300'000;

std::int64_t to_timeout(const ra_context_config &c) {
  require_range("timeout_ms", c.timeout_ms, 0, (std::int64_t{1} << 31) - 1);
  return c.timeout_ms == 0 ? default_timeout_ms : c.timeout_ms;
}

// The id of the group, or one of its own for a group of one.
std::string to_group_id(const ra_context_config &c) {
  if (c.unique_id == nullptr) {
    require(c.world_size == 1, "unique_id is NULL while world_size is ", c.world_size,
            "; must come from ra_create_unique_id");
    return make_local_id();
  }
  const std::string id(c.unique_id, strnlen(c.unique_id, sizeof(ra_unique_id::text)));
  require(is_local_id(id), "unique_id is \"", id.substr(0, 64),
          "\"; must be a text made by ra_create_unique_id for RA_TRANSPORT_LOCAL");
  require(is_own_local_id(id), "unique_id is \"", id.substr(0, 64),
          "\"; must be made in this process, whole and unchanged");
  return id;
}

void require_local_fields(const ra_context_config &c) {
  require(c.device == 0, "device is ", c.device, "; must be 0 with RA_BACKEND_CPU");
  require(c.nccl_comm == nullptr, "nccl_comm is ", c.nccl_comm, "; must be NULL with RA_TRANSPORT_LOCAL");
  require(c.bind_address == nullptr, "bind_address is \"", c.bind_address == nullptr ? "" : c.bind_address,
          "\"; must be NULL with RA_TRANSPORT_LOCAL");
}

// A context that has yet to join its group, and what it needs for that.
struct Candidate {
  std::unique_ptr<ra_context> context;
  std::string id;
};

Candidate make_context(const ra_context_config &c) {
  const Rank rank = to_rank(c);
  std::unique_ptr<Engine> engine = to_engine(c, rank);
  const std::int64_t timeout_ms = to_timeout(c);
  require_local_fields(c);
  std::string id = to_group_id(c);
  auto context = std::make_unique<ra_context>(rank, timeout_ms, std::move(engine));
  log(RA_LOG_LEVEL_DEBUG, "rank ", rank.rank, " of ", rank.world_size, ": engine ", context->engine->name(), ", ",
      rank.num_threads, " threads");
  if (rank.num_threads < c.num_threads)
    log(RA_LOG_LEVEL_WARNING, "num_threads is ", c.num_threads, "; ", rank.num_threads,
        " is all that oneTBB allows this process");
  return {std::move(context), std::move(id)};
}

void join(Candidate &candidate) {
  ra_context &context = *candidate.context;
  Engine &engine = *context.engine;
  context.transport = join_local(candidate.id, context.rank.world_size, context.rank.rank, context.timeout_ms,
                                 [&engine] { engine.cancel(); });
}

// In a catch block. Others may be waiting for this rank, which has no context: they are told, if it is clear who they are. That
// breaks the group, for this rank too: they may be gone before it could come with a better config.
void refuse(const ra_context_config &c) noexcept {
  if (c.world_size == 1) return;
  ra_error why;
  clear(&why);
  const ra_status status = report_exception(&why, c.rank);
  try {
    require_place(c);
    refuse_local(to_group_id(c), c.world_size, c.rank, status, why.message);
  } catch (...) {
    // They find out by their time-outs.
  }
}

}  // namespace

const Plan &ra_context::plan(const Problem &problem, Pass pass) {
  std::unique_ptr<Plan> &kept = pass == Pass::forward ? forward_plan : backward_plan;
  if (kept == nullptr || kept->problem() != problem)
    kept = std::make_unique<Plan>(problem, rank.world_size, rank.rank, pass);
  return *kept;
}

Statistics ra_context::forward(const Problem &problem, ForwardCall call) {
  const Plan &p = plan(problem, Pass::forward);
  if (call.workspace == nullptr) call.workspace = workspace.reserve(workspace_bytes(p, *engine));
  return run_forward(p, {*engine, *transport}, call);
}

Statistics ra_context::backward(const Problem &problem, BackwardCall call) {
  const Plan &p = plan(problem, Pass::backward);
  if (call.workspace == nullptr) call.workspace = workspace.reserve(workspace_bytes(p, *engine));
  return run_backward(p, {*engine, *transport}, call);
}

void ra_context::break_group() noexcept {
  ra_error why;
  clear(&why);
  const ra_status status = report_exception(&why, rank.rank);
  transport->fail(status, why.rank, why.message);
}

extern "C" {

void ra_init_context_config(ra_context_config *config, size_t struct_size) { init(config, struct_size); }

ra_status ra_create_unique_id(ra_unique_id *id, int32_t transport, const char *bind_address, ra_error *error) {
  return guard(error, [&] {
    require(id != nullptr, "id is NULL; must point to a ra_unique_id");
    require_range("transport", transport, RA_TRANSPORT_LOCAL, RA_TRANSPORT_NCCL);
    require_here(transport);
    require(bind_address == nullptr, "bind_address is \"", bind_address == nullptr ? "" : bind_address,
            "\"; must be NULL with RA_TRANSPORT_LOCAL");
    const std::string text = make_local_id();
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
      join(candidate);  // tells the others of every failure but this one
    } catch (const std::bad_alloc &) {
      refuse(c);
      throw;
    }
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
    i.backend = RA_BACKEND_CPU;
    i.transport = RA_TRANSPORT_LOCAL;
    i.num_threads = c.engine->num_threads();
    i.timeout_ms = c.timeout_ms;
    std::snprintf(i.engine, sizeof i.engine, "%s", c.engine->name());
    write(info, "info", i);
  });
}

void ra_destroy_context(ra_context *context) { delete context; }

ra_status ra_abort_context(ra_context *context, ra_error *error) {
  return guard(error, [&] {
    ra_context &c = checked(context);
    c.transport->fail(RA_STATUS_ABORTED, c.rank.rank,
                      text("ra_abort_context was called on rank ", c.rank.rank).c_str());
  });
}

ra_status ra_get_async_error(const ra_context *context, ra_error *error) {
  return guard(error, [&] {
    const Failure failure = checked(context).transport->failure();
    if (failure.status != RA_STATUS_SUCCESS) throw Error(failure.status, failure.message, failure.rank);
  });
}

}  // extern "C"
