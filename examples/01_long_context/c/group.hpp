// A group of ranks that are threads of this process, or one of which is this process; for either only the config differs.
#pragma once

#include <fmt/format.h>
#include <ringattn/ringattn.h>

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

inline void check(bool success, const ra_error& error) {
  if (!success) throw std::runtime_error(fmt::format("{}: {}", ra_get_status_name(error.status), error.message));
}
inline void check(ra_status status, const ra_error& error) { check(status == RA_STATUS_SUCCESS, error); }

/** Where a rank's tokens are in the whole sequence. */
inline std::vector<int64_t> get_positions(const ra_attention_desc& desc, int32_t world_size, int32_t rank,
                                          ra_side side) {
  ra_error error;
  const int64_t count = ra_get_shard_length(&desc, world_size, rank, side, &error);
  check(count >= 0, error);
  std::vector<int64_t> positions(static_cast<size_t>(count));
  check(ra_get_shard_positions(&desc, world_size, rank, side, 0, count, positions.data(), &error), error);
  return positions;
}

/** What the ranks of a new group find each other by. `address` is that of rank 0, for ranks that are processes; NULL: this machine. */
inline ra_unique_id make_id(ra_transport transport, const char* address = nullptr) {
  ra_error error;
  ra_unique_id id;
  check(ra_create_unique_id(&id, transport, address, &error), error);
  return id;
}

/** The ranks of a group that live in this process: all of them, or one. */
class Group {
 public:
  /** All, with so many threads each (ra_context_config). */
  explicit Group(int32_t world_size, int32_t num_threads = 0) : contexts_(static_cast<size_t>(world_size)) {
    const ra_unique_id id = make_id(RA_TRANSPORT_LOCAL);
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.world_size = world_size;
    config.unique_id = id.text;
    config.num_threads = num_threads;
    join(config);
  }
  /** The one of `config`; the others are in other processes. Returns when all have come. */
  explicit Group(const ra_context_config& config) : first_(config.rank), contexts_(1) { join(config); }

  int32_t world_size() const { return world_size_; }
  ra_context* context(int32_t rank) const { return contexts_[static_cast<size_t>(rank - first_)].get(); }

  // A collective call returns when all ranks have made it, so each rank needs a thread of its own to make it from. If one throws, the
  // others must not wait for its call until their time-out: they are let go. What was thrown first is thrown again, since what the
  // others say comes of it.
  void on_every_rank(const std::function<void(int32_t, ra_context*)>& work) const {
    std::exception_ptr failure;
    std::once_flag failed;
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < contexts_.size(); ++r) {
      threads.emplace_back([&, r] {
        try {
          work(first_ + static_cast<int32_t>(r), contexts_[r].get());
        } catch (...) {
          std::call_once(failed, [&] { failure = std::current_exception(); });
          ra_abort_context(contexts_[r].get(), nullptr);
        }
      });
    }
    for (std::jthread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  struct Destroy {
    void operator()(ra_context* context) const { ra_destroy_context(context); }
  };

  void join(const ra_context_config& group) {
    world_size_ = group.world_size;
    on_every_rank([&](int32_t rank, ra_context*) {
      ra_error error;
      ra_context_config config = group;
      config.rank = rank;
      ra_context* const context = ra_create_context(&config, &error);
      check(context != nullptr, error);
      contexts_[static_cast<size_t>(rank - first_)].reset(context);
    });
  }

  int32_t first_ = 0, world_size_ = 1;
  std::vector<std::unique_ptr<ra_context, Destroy>> contexts_;
};
