// The local transport by itself: what the ring's tests meet only by chance of timing.
#include "transport/local.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "core/threads.h"
#include "support/random.h"

namespace ringattn {
namespace {

constexpr std::int64_t timeout_ms = 20'000;

// Runs body(rank, transport) on a thread for each rank of a new group.
template <class F>
void run_group(int world_size, F&& body) {
  const std::string id = make_local_id();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] {
      const auto transport = join_local(id, world_size, rank, timeout_ms, [] {});
      try {
        body(rank, *transport);
      } catch (const Error& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.message;
        transport->fail({error, rank});
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// What is posted while the receiver computes is copied between two parts of its work, also where it has but one thread.
TEST(Local, CopiesWhatIsPostedWhileItComputes) {
  std::latch begun(1), posted(1);
  run_group(2, [&](int rank, Transport& transport) {
    std::byte message{static_cast<unsigned char>(rank)};
    if (rank == 0) {
      transport.receive(1, 0, {&message, 1});
      Threads threads(1);
      int parts = 0;
      const auto compute = [&] {
        threads.for_each(3, [&](std::int64_t, int) {
          if (parts++ == 0) {
            begun.count_down();
            posted.wait();
          } else {
            EXPECT_EQ(message, std::byte{1}) << "in part " << parts;
          }
        });
      };
      threads.interleave(compute, [&] { transport.progress(); });
    } else {
      begun.wait();
      transport.send(0, 0, {&message, 1});
      posted.count_down();
    }
    transport.wait();
  });
}

// A receiver that is copying one message must see another that is posted meanwhile, whichever it asked for first.
TEST(Local, SeesWhatIsPostedWhileItCopies) {
  constexpr std::size_t large = 4 << 20;
  std::mt19937_64 random(test::seed());
  const int rounds = test::sample(400);
  std::vector<std::chrono::microseconds> delays;
  for (int n = 0; n < rounds; ++n) delays.emplace_back(random() % 2000);
  const auto begin = std::chrono::steady_clock::now();
  std::barrier round_ends(3);
  run_group(3, [&](int rank, Transport& transport) {
    std::array<std::byte, 8> small{};
    std::vector<std::byte> bulk(rank == 1 ? 0 : large);
    for (int n = 0; n < rounds; ++n) {
      const auto tag = static_cast<std::uint64_t>(n);
      if (rank == 0) {
        transport.receive(1, tag, small);
        transport.receive(2, tag, bulk);
      } else if (rank == 1) {
        std::this_thread::sleep_for(delays[static_cast<std::size_t>(n)]);
        transport.send(0, tag, small);
      } else {
        transport.send(0, tag, bulk);
      }
      try {
        transport.wait();
      } catch (...) {
        round_ends.arrive_and_drop();
        throw;
      }
      round_ends.arrive_and_wait();  // not through the transport: any later message would wake the receiver again
    }
  });
  // One that is overlooked is found when the time-out ends the wait.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(timeout_ms));
}

// A failure that comes while a receiver copies ends its wait at once, though nothing will wake it again.
TEST(Local, SeesAFailureThatComesWhileItCopies) {
  constexpr std::size_t large = 4 << 20;
  std::mt19937_64 random(test::seed());
  for (int n = 0; n < test::sample(200); ++n) {
    const std::chrono::microseconds delay(random() % 2000);
    const auto begin = std::chrono::steady_clock::now();
    std::barrier together(
        3);  // all have come before one fails, and none leaves, which wakes the others, until it is noticed
    run_group(3, [&](int rank, Transport& transport) {
      std::array<std::byte, 8> never{};
      std::vector<std::byte> bulk(rank == 2 ? 0 : large);
      together.arrive_and_wait();
      if (rank == 0) {
        transport.receive(1, 0, bulk);
        transport.receive(2, 1, never);
        EXPECT_THROW(transport.wait(), Error);
      } else if (rank == 1) {
        transport.send(0, 0, bulk);
      } else {
        std::this_thread::sleep_for(delay);
        transport.fail({RA_STATUS_OUT_OF_MEMORY, rank, "as planned"});
      }
      together.arrive_and_wait();
    });
    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(timeout_ms));
  }
}

// A rank that goes while another copies from it has its memory to itself when it is gone.
TEST(Local, LeavesOnlyWhenNobodyCopiesFromIt) {
  constexpr std::size_t large = 4 << 20;
  std::mt19937_64 random(test::seed());
  std::vector<std::byte> sent(large), received(large);
  for (int n = 0; n < test::sample(200); ++n) {
    const std::chrono::microseconds delay(random() % 2000);
    const std::string id = make_local_id();
    std::fill(sent.begin(), sent.end(), std::byte{0});
    std::thread sender([&] {
      auto transport = join_local(id, 2, 0, timeout_ms, [] {});
      transport->send(1, 0, sent);
      std::this_thread::sleep_for(delay);
      transport.reset();
      for (std::size_t i = 0; i < large; i += 4096) sent[i] = std::byte{1};  // ahead of any copy
    });
    const auto transport = join_local(id, 2, 1, timeout_ms, [] {});
    std::fill(received.begin(), received.end(), std::byte{0});
    transport->receive(0, 0, received);
    try {
      transport->wait();
    } catch (const Error& error) {
      EXPECT_EQ(error.status, RA_STATUS_PEER_LOST);
    }
    sender.join();
    ASSERT_EQ(std::count(received.begin(), received.end(), std::byte{1}), 0) << "after " << delay.count() << " us";
  }
}

// Every message arrives as it was sent, in any order of posting.
TEST(Local, CarriesManyMessagesBetweenAllPairs) {
  constexpr int world_size = 5, rounds = 60;
  const std::uint64_t seed = test::seed();
  run_group(world_size, [&](int rank, Transport& transport) {
    std::mt19937_64 random(seed + static_cast<std::uint64_t>(rank));
    const auto size = [](int from, int to, int round) {
      return static_cast<std::size_t>((from * 7919 + to * 104729 + round * 31) % 5000);
    };
    const auto value = [](int from, int to, int round) { return static_cast<std::byte>(from * 50 + to * 10 + round); };
    for (int round = 0; round < rounds; ++round) {
      std::vector<std::vector<std::byte>> sent(world_size), received(world_size);
      std::vector<int> order;
      for (int peer = 0; peer < world_size; ++peer)
        if (peer != rank) order.insert(order.end(), {peer, peer + world_size});
      std::shuffle(order.begin(), order.end(), random);
      for (const int post : order) {
        const int peer = post % world_size;
        const auto p = static_cast<std::size_t>(peer);
        if (post < world_size) {
          sent[p].assign(size(rank, peer, round), value(rank, peer, round));
          transport.send(peer, static_cast<std::uint64_t>(round), sent[p]);
        } else {
          received[p].resize(size(peer, rank, round));
          transport.receive(peer, static_cast<std::uint64_t>(round), received[p]);
        }
      }
      if (random() % 2 == 0) transport.progress();
      transport.wait();
      for (int peer = 0; peer < world_size; ++peer)
        for (const std::byte b : received[static_cast<std::size_t>(peer)]) ASSERT_EQ(b, value(peer, rank, round));
    }
  });
}

}  // namespace
}  // namespace ringattn
