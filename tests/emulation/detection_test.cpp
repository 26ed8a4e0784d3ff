// What kernels do wrong is found, whatever the order of execution, and by name: every test is a kernel with a fault, and the same
// kernel without it. Lines that the message has to name end in `// <-`.
#include <array>
#include <fstream>
#include <string>
#include <vector>

#include "emulation/execution_test.h"

namespace ringattn::cuda {
namespace {

using emulation::Fault;
using emulation::Wrong;

constexpr int threads = 64;
using Numbers = Shared<int, 0, 64>;
using Rows = Shared<std::uint16_t, 256, 64 * 8>;  // 16 bytes for each thread

int own() { return thread_index(); }

// All is written, long ago.
void begin() {
  Numbers::store(own(), 0);
  Rows::store16(8 * own(), {});
  barrier();
}

// Lines of this file that a message names.
std::vector<int> lines_of(const std::string& message) {
  const std::string before = "detection_test.cpp:";
  std::vector<int> lines;
  for (std::size_t at = 0; (at = message.find(before, at)) != std::string::npos;)
    lines.push_back(std::stoi(message.substr(at += before.size())));
  return lines;
}
bool is_marked(int line) {
  static const std::vector<std::string> source = [] {
    std::vector<std::string> lines;
    std::ifstream file(__FILE__);
    for (std::string text; std::getline(file, text);) lines.push_back(text);
    return lines;
  }();
  return source.at(static_cast<std::size_t>(line) - 1).ends_with("// <-");
}

// kernel(false) is faulty, and kernel(true) is not. The message names so many places, and the kernel, and the seed.
template <class Kernel>
void expect_found(Wrong wrong, std::size_t places, Kernel kernel, int block = threads) {
  const std::uint64_t first = test::seed();
  for (std::uint64_t seed = first; seed < first + static_cast<std::uint64_t>(test::sample(20)); ++seed) {
    ASSERT_NO_THROW(run_block(block, seed, [&] { kernel(true); })) << "seed " << seed;
    try {
      run_block(block, seed, [&] { kernel(false); });
      FAIL() << "not found with seed " << seed;
    } catch (const Fault& fault) {
      const std::string message = fault.what();
      if (seed == first) std::cout << message << "\n";
      ASSERT_EQ(name(fault.wrong), name(wrong)) << message;
      ASSERT_TRUE(message.starts_with("kernel, block 0 0 0, seed " + std::to_string(seed) + ": ")) << message;
      const std::vector<int> lines = lines_of(message);
      ASSERT_EQ(lines.size(), places) << message;
      for (const int line : lines) ASSERT_TRUE(is_marked(line)) << "line " << line << ": " << message;
    }
  }
}

// ---------------------------------------------------------------- shared memory

TEST(Detection, OutOfBoundsOfTheView) {
  expect_found(Wrong::out_of_bounds, 1, [](bool right) {
    const int i = right ? own() : own() + 1;
    Numbers::store(i, 0);  // <-
  });
  expect_found(Wrong::out_of_bounds, 1, [](bool right) {
    begin();
    (void)Rows::load16(right ? 8 * own() : 8 * own() + 8);  // <-
  });
  expect_found(Wrong::out_of_bounds, 1, [](bool right) {
    begin();
    (void)ldmatrix_x4(Rows::address(right ? 8 * own() : 8 * own() - 8));  // <-
  });
}

TEST(Detection, OutOfBoundsOfTheBlock) {
  using Behind = Shared<int, test_shared_bytes, 64>;
  expect_found(Wrong::out_of_bounds, 1, [](bool right) {
    if (!right) Behind::store(0, 0);  // <-
  });
}

TEST(Detection, Misaligned) {
  expect_found(Wrong::misaligned, 1, [](bool right) {
    if (own() < 15) Numbers::store16(4 * own() + (right ? 0 : 2), {});  // <-
  });
}

TEST(Detection, RaceOfWideStores) {
  expect_found(Wrong::race, 2, [](bool right) {
    if (own() < (right ? 16 : 17)) Numbers::store16(4 * (own() % 16), {});  // <-
  });
}

TEST(Detection, MisalignedGlobal) {
  static std::array<Words<4>, 65> memory{};
  const auto at = [](bool right) {
    return reinterpret_cast<std::byte*>(&memory[static_cast<std::size_t>(own())]) + (right ? 0 : 8);
  };
  expect_found(Wrong::misaligned, 1, [&](bool right) {
    (void)load_global16(at(right));  // <-
  });
  expect_found(Wrong::misaligned, 1, [&](bool right) {
    store_global16(at(right), {});  // <-
  });
}

TEST(Detection, Unwritten) {
  expect_found(Wrong::unwritten, 1, [](bool right) {
    if (right || own() != 40) Numbers::store(own(), 1);
    barrier();
    (void)Numbers::load(own());  // <-
  });
}

TEST(Detection, UnwrittenByThisBlock) {
  // The blocks before have written.
  const auto kernel = [](bool right) {
    if (right || block_index().x != 3) Numbers::store(own(), 1);
    (void)Numbers::load(own());
  };
  const auto run = [&](bool right) {
    emulation::run({"kernel", {8, 1, 1}, threads, test_shared_bytes, nullptr, {}, [&] { kernel(right); }},
                   {.seed = test::seed()});
  };
  EXPECT_NO_THROW(run(true));
  EXPECT_THROW(run(false), Fault);
}

TEST(Detection, RaceOfStoreAndLoad) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    Numbers::store(own(), 1);  // <-
    if (right) barrier();
    (void)Numbers::load(63 - own());  // <-
  });
}

TEST(Detection, RaceOfLoadAndStore) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    (void)Numbers::load(63 - own());  // <-
    if (right) barrier();
    Numbers::store(own(), 2);  // <-
  });
}

TEST(Detection, RaceOfStores) {
  expect_found(Wrong::race, 2, [](bool right) {
    if (right ? own() == 5 : own() % 32 == 5) Numbers::store(0, own());  // <-
  });
}

TEST(Detection, RaceWithinAWarp) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    Numbers::store(own(), 1);  // <-
    if (right) warp_barrier();
    (void)Numbers::load(own() ^ 1);  // <-
  });
}

TEST(Detection, LanesThatMeetAreNotOrdered) {
  expect_found(Wrong::race, 2, [](bool right) {
    Numbers::store(own(), 1);  // <-
    (void)shuffle_xor(1, 1);
    if (right) warp_barrier();
    (void)Numbers::load(own() ^ 1);  // <-
  });
}

TEST(Detection, RaceOfStoreAndLdmatrix) {
  expect_found(Wrong::race, 2, [](bool right) {
    Rows::store16(8 * own(), {});  // <-
    if (right) warp_barrier();
    (void)ldmatrix_x4(Rows::address(8 * own()));  // <-
  });
}

TEST(Detection, BarrierOfOthersOnly) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    Numbers::store(own(), 1);  // <-
    if (right)
      barrier(1, 64);
    else
      barrier(1 + warp_index(), 32);
    (void)Numbers::load(own() ^ 32);  // <-
  });
}

TEST(Detection, OrderIsPassedOn) {
  // From warp 0 to 1, and from there to 2.
  const auto kernel = [](bool right) {
    using One = Shared<int, 0, 1>;
    if (own() == 0) One::store(0, 7);
    if (warp_index() <= 1) barrier(1, 64);
    if (warp_index() >= 1 && right) barrier(2, 64);
    if (own() == 64) {
      ASSERT_EQ(One::load(0), 7);
    }
  };
  const std::uint64_t seed = test::seed();
  for (std::uint64_t s = seed; s < seed + static_cast<std::uint64_t>(test::sample(20)); ++s) {
    EXPECT_NO_THROW(run_block(96, s, [&] { kernel(true); }));
    EXPECT_THROW(run_block(96, s, [&] { kernel(false); }), Fault);
  }
}

// ---------------------------------------------------------------- cp.async

alignas(16) std::array<std::uint16_t, 64 * 8> source{};
const void* from(int thread) { return &source[8 * static_cast<std::size_t>(thread)]; }

TEST(Detection, CopyNotWaitedFor) {
  expect_found(Wrong::not_waited, 2, [](bool right) {
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    cp_async_commit();
    if (right) cp_async_wait<0>();
    (void)Rows::load16(8 * own());  // <-
    cp_async_wait<0>();
  });
}

TEST(Detection, CopyNotCommitted) {
  expect_found(Wrong::not_waited, 2, [](bool right) {
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    if (right) cp_async_commit();
    cp_async_wait<0>();
    (void)Rows::load16(8 * own());  // <-
  });
}

TEST(Detection, CopyWaitedForTooFew) {
  expect_found(Wrong::not_waited, 2, [](bool right) {
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    cp_async_commit();
    if (right) cp_async_commit();
    cp_async_wait<1>();
    (void)Rows::load16(8 * own());  // <-
    cp_async_wait<0>();
  });
}

TEST(Detection, CopyNeverWaitedFor) {
  expect_found(Wrong::not_waited, 1, [](bool right) {
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    cp_async_commit();
    if (right) cp_async_wait<0>();
  });
}

TEST(Detection, CopyReadByAnotherThread) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    cp_async_commit();
    cp_async_wait<0>();
    if (right) barrier();
    (void)Rows::load16(8 * (63 - own()));  // <-
  });
}

TEST(Detection, CopyOverWhatIsRead) {
  expect_found(Wrong::race, 2, [](bool right) {
    begin();
    (void)Rows::load16(8 * (63 - own()));  // <-
    if (right) barrier();
    cp_async(Rows::address(8 * own()), from(own()));  // <-
    cp_async_commit();
    cp_async_wait<0>();
  });
}

TEST(Detection, CopyMisaligned) {
  expect_found(Wrong::misaligned, 1, [](bool right) {
    const auto* const begin = static_cast<const std::byte*>(from(own())) + (right ? 0 : 8);
    cp_async(Rows::address(8 * own()), begin, 8);  // <-
    cp_async_commit();
    cp_async_wait<0>();
  });
}

TEST(Detection, CopyTakesEffectInTheWait) {
  // As late as it may, so that a kernel that relies on an early one computes something else.
  alignas(16) std::array<std::uint16_t, 8> changing{1};
  run_block(32, test::seed(), [&] {
    if (own() == 0) cp_async(Rows::address(0), changing.data());
    cp_async_commit();
    warp_barrier();
    changing[0] = 2;
    cp_async_wait<0>();
    if (own() == 0) {
      ASSERT_EQ(Rows::load(0), 2);
    }
  });
}

#ifdef __SANITIZE_ADDRESS__
TEST(DetectionDeathTest, CopyReadsTooFar) {
  const auto copy = [](int bytes) {
    const std::vector<std::uint16_t> few(12);
    run_block(32, 1, [&] {
      if (own() < 2) cp_async(Rows::address(8 * own()), few.data() + 8 * own(), own() == 0 ? 16 : bytes);
      cp_async_commit();
      cp_async_wait<0>();
    });
  };
  copy(8);
  EXPECT_DEATH(copy(10), "heap-buffer-overflow");
}
#endif

// ---------------------------------------------------------------- who comes, and who does not

TEST(Detection, LanesAtDifferentPlaces) {
  expect_found(Wrong::divergence, 2, [](bool right) {
    if (right || own() != 9)
      (void)shuffle_xor(1, 1);  // <-
    else
      (void)shuffle_xor(1, 1);  // <-
  });
}

TEST(Detection, LaneThatDoesNotCome) {
  expect_found(Wrong::divergence, 1, [](bool right) {
    float c[4]{};
    if (right || own() != 9) mma_m16n8k16<BFloat16>(c, {}, {});  // <-
  });
}

TEST(Detection, LaneThatLeavesBeforeABarrier) {
  expect_found(Wrong::divergence, 1, [](bool right) {
    if (!right && own() == 9) return;
    barrier();  // <-
  });
}

TEST(Detection, WarpThatLeavesBeforeABarrier) {
  expect_found(Wrong::barrier, 1, [](bool right) {
    if (!right && warp_index() == 1) return;
    barrier();  // <-
  });
}

TEST(Detection, WarpsAtDifferentBarriers) {
  expect_found(Wrong::barrier, 2, [](bool right) {
    if (right || warp_index() == 0)
      barrier();  // <-
    else
      barrier();  // <-
  });
  expect_found(Wrong::barrier, 2, [](bool right) {
    if (right || warp_index() == 0)
      barrier();  // <-
    else
      barrier(1, 64);  // <-
  });
}

TEST(Detection, NamedBarrierOfTooMany) {
  expect_found(Wrong::barrier, 1, [](bool right) {
    if (warp_index() == 0) barrier(1, right ? 32 : 64);  // <-
  });
}

TEST(Detection, NamedBarrierOfDifferentCounts) {
  const auto kernel = [](bool right) {
    barrier(1, right || warp_index() == 0 ? 128 : 64);  // <-
  };
  expect_found(Wrong::barrier, 2, kernel, 128);
}

TEST(Detection, BarrierThatThereIsNot) {
  expect_found(Wrong::argument, 1, [](bool right) {
    barrier(right ? 15 : 16, 64);  // <-
  });
  expect_found(Wrong::argument, 1, [](bool right) {
    if (right)
      barrier(1, 64);
    else
      barrier(1, 40);  // <-
  });
}

TEST(Detection, LaneThatThereIsNot) {
  expect_found(Wrong::argument, 1, [](bool right) {
    (void)broadcast(1, right ? 31 : 32);  // <-
  });
}

TEST(Detection, LaunchThatCannotBe) {
  const auto run = [](int threads, std::size_t bytes, int blocks) {
    emulation::run({"kernel", {blocks, 1, 1}, threads, bytes, nullptr, {}, [] {}}, {});
  };
  EXPECT_NO_THROW(run(1024, 227 * 1024, 1));
  EXPECT_THROW(run(1056, 0, 1), Fault);
  EXPECT_THROW(run(33, 0, 1), Fault);
  EXPECT_THROW(run(32, 228 * 1024, 1), Fault);
  EXPECT_THROW(run(32, 0, 0), Fault);
}

// What a kernel throws itself, as an allocation may, passes; and all other threads are unwound.
TEST(Detection, ExceptionsPass) {
  int begun = 0;
  struct Count {
    explicit Count(int& n) : n(n) { ++n; }
    Count(const Count&) = delete;
    Count& operator=(const Count&) = delete;
    ~Count() { --n; }
    int& n;
  };
  EXPECT_THROW(run_block(threads, test::seed(),
                         [&] {
                           const Count count(begun);
                           barrier();
                           if (own() == 40) throw 1;
                           barrier();
                         }),
               int);
  EXPECT_EQ(begun, 0);
}

}  // namespace
}  // namespace ringattn::cuda
