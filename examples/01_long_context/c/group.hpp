// A group of ranks that are threads of this process; with another transport only the config differs.
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

class Group {
 public:
  explicit Group(int32_t world_size) : contexts_(static_cast<size_t>(world_size)) {
    ra_error error;
    ra_unique_id id;
    check(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), error);
    on_every_rank([&](int32_t rank, ra_context*) { join(rank, id); });
  }

  int32_t world_size() const { return static_cast<int32_t>(contexts_.size()); }
  ra_context* context(int32_t rank) const { return contexts_[static_cast<size_t>(rank)].get(); }

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
          work(static_cast<int32_t>(r), contexts_[r].get());
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

  void join(int32_t rank, const ra_unique_id& id) {
    ra_error error;
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.rank = rank;
    config.world_size = world_size();
    config.unique_id = id.text;
    contexts_[static_cast<size_t>(rank)].reset(ra_create_context(&config, &error));
    check(contexts_[static_cast<size_t>(rank)] != nullptr, error);
  }

  std::vector<std::unique_ptr<ra_context, Destroy>> contexts_;
};
