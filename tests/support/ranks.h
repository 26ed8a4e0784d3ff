// P ranks as threads of this process.
//
//   for_each_rank(3, [](std::int32_t rank, ra_context* context) { ... });       contexts made, used once, destroyed
//
//   Ranks ranks(3);                                                             contexts that live over several calls
//   ranks.run([&](std::int32_t rank, ra_context* context) { ... });             every rank on a thread of its own
//
// Failures of GoogleTest assertions inside a body count as usual. A context is destroyed only after all ranks have left the
// body, so that a rank that finishes early is not a lost peer to the others.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/engine.h"

namespace ringattn::test {

// An ra_error that starts full of garbage, since the library promises to clear it on entry.
struct Error : ra_error {
  Error() : ra_error{} {
    status = rank = cuda_error = nccl_result = -77;
    for (char& c : message) c = '#';
  }
  std::string text() const { return {message, strnlen_of(message)}; }

  friend std::ostream& operator<<(std::ostream& stream, const Error& error) {
    return stream << ra_get_status_name(error.status) << " (rank " << error.rank << "): " << error.text();
  }

 private:
  template <std::size_t N>
  static std::size_t strnlen_of(const char (&text)[N]) {
    std::size_t n = 0;
    while (n < N && text[n] != '\0') ++n;
    return n;
  }
};

struct ContextDeleter {
  void operator()(ra_context* context) const { ra_destroy_context(context); }
};
using Context = std::unique_ptr<ra_context, ContextDeleter>;

using RankBody = std::function<void(std::int32_t rank, ra_context* context)>;
using ConfigTweak = std::function<void(ra_context_config& config)>;

// The transport under test: that which RINGATTN_TEST_TRANSPORT names, "zeromq", or else the local one. CMake runs some tests with both.
inline std::int32_t transport() {
  const char* const name = std::getenv("RINGATTN_TEST_TRANSPORT");
  return name != nullptr && std::string(name) == "zeromq" ? RA_TRANSPORT_ZEROMQ : RA_TRANSPORT_LOCAL;
}

inline ra_unique_id make_unique_id(std::int32_t of = transport()) {
  ra_unique_id id{};
  Error error;
  EXPECT_EQ(ra_create_unique_id(&id, of, nullptr, &error), RA_STATUS_SUCCESS) << error;
  return id;
}

// An address of loopback that no other group has, so that no two can take each other's port.
inline std::string new_loopback_address() {
  static std::atomic<unsigned> made{0};
  const unsigned n = static_cast<unsigned>(getpid()) * 64 + made++;
  const auto part = [](unsigned x) { return "." + std::to_string(1 + x % 250); };
  return "127" + part(n / 62500) + part(n / 250) + part(n);
}

// The tests' own defaults: one thread a rank, since the ranks already are threads, and a hang that ends within a minute.
// `unique_id` is borrowed until the config has been used.
inline ra_context_config make_config(std::int32_t world_size, std::int32_t rank,
                                     const ra_unique_id* unique_id = nullptr) {
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.world_size = world_size;
  config.rank = rank;
  config.engine = engine();
  config.transport = transport();
  config.num_threads = 1;
  config.timeout_ms = 60'000;
  config.unique_id = unique_id == nullptr ? nullptr : unique_id->text;
  return config;
}

// Calls body(rank) on one new thread per rank and joins them all; an exception is a failure of the test.
inline void run_threads(std::int32_t world_size, const std::function<void(std::int32_t rank)>& body) {
  std::vector<std::thread> threads;
  for (std::int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&body, rank] {
      try {
        body(rank);
      } catch (const std::exception& exception) {
        ADD_FAILURE() << "rank " << rank << " threw " << exception.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class Ranks {
 public:
  explicit Ranks(std::int32_t world_size, const ConfigTweak& tweak = {})
      : contexts_(static_cast<std::size_t>(world_size)) {
    const ra_unique_id id = make_unique_id();
    run_threads(world_size, [&](std::int32_t rank) {
      ra_context_config config = make_config(world_size, rank, &id);
      if (tweak) tweak(config);
      Error error;
      contexts_[static_cast<std::size_t>(rank)].reset(ra_create_context(&config, &error));
      EXPECT_NE((*this)[rank], nullptr) << "rank " << rank << ": " << error;
    });
  }

  std::int32_t world_size() const { return static_cast<std::int32_t>(contexts_.size()); }
  ra_context* operator[](std::int32_t rank) const { return contexts_[static_cast<std::size_t>(rank)].get(); }
  void destroy(std::int32_t rank) { contexts_[static_cast<std::size_t>(rank)].reset(); }

  bool complete() const {
    for (const Context& context : contexts_) {
      if (!context) return false;
    }
    return true;
  }

  // Runs nothing if a context could not be made; the constructor has reported why.
  void run(const RankBody& body) const {
    if (!complete()) return;
    run_threads(world_size(), [&](std::int32_t rank) { body(rank, (*this)[rank]); });
  }

 private:
  std::vector<Context> contexts_;
};

inline void for_each_rank(std::int32_t world_size, const RankBody& body, const ConfigTweak& tweak = {}) {
  Ranks(world_size, tweak).run(body);
}

}  // namespace ringattn::test
