// Ranks: all of them threads of this process, or this process one of them.
#pragma once

#include <fmt/format.h>
#include <ringattn/ringattn.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
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

/** Which ranks this process is. */
struct Place {
  int32_t world_size = 2;
  int32_t rank = -1;  // -1: all of them are threads of it
  std::string id;     // of the group, where it is one
  int32_t threads = 0;

  int32_t threads_of_rank() const {
    const auto processors = static_cast<int32_t>(std::thread::hardware_concurrency());
    return threads > 0 ? threads : std::max(processors / world_size, 1);
  }
};

/** Calls work(rank, context) for each rank that this process is, all at once. If one throws, the others are let go. */
inline void run_ranks(const Place& place, const std::function<void(int32_t, ra_context*)>& work) {
  ra_error error;
  ra_unique_id id{};
  const bool is_alone = place.rank < 0;
  if (is_alone) check(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), error);
  std::exception_ptr failure;
  std::once_flag failed;
  const auto be = [&](int32_t rank) {
    std::unique_ptr<ra_context, void (*)(ra_context*)> context(nullptr, ra_destroy_context);
    try {
      ra_error own;
      ra_context_config config;
      ra_init_context_config(&config, sizeof config);
      config.rank = rank, config.world_size = place.world_size;
      config.transport = is_alone ? RA_TRANSPORT_LOCAL : RA_TRANSPORT_ZEROMQ;
      config.unique_id = is_alone ? id.text : place.id.c_str();
      config.num_threads = place.threads_of_rank();
      context.reset(ra_create_context(&config, &own));
      check(context != nullptr, own);
      work(rank, context.get());
    } catch (...) {
      std::call_once(failed, [&] { failure = std::current_exception(); });
      if (context != nullptr) ra_abort_context(context.get(), nullptr);
    }
  };
  if (is_alone) {
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < place.world_size; ++rank) threads.emplace_back(be, rank);
  } else {
    be(place.rank);
  }
  if (failure) std::rethrow_exception(failure);
}
