// Kernels over whole buffers, as only the emulation shows them: strides over memory that no GPU need have, and what is declared.
#include <sys/mman.h>

#include <vector>

#include "emulation/execution/execution.h"
#include "emulation/strided.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

// Pages that nobody touches take no memory.
struct Sparse {
  explicit Sparse(std::size_t bytes)
      : bytes(bytes),
        data(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { munmap(data, bytes); }
  std::size_t bytes;
  void* data;
};

TEST(Elementwise, StridesMayGoBeyondTwoToTheThirtyOne) {
  constexpr std::int64_t far = (std::int64_t{1} << 31) + 8;
  const Shape shape{2, {2, 2, 16}};
  emulation::set_options({.seed = test::seed(), .host_threads = 1});
  for (const auto& [batch_stride, seq_stride, head_stride] : {std::tuple{far, std::int64_t{32}, std::int64_t{16}},
                                                              {std::int64_t{32}, far, std::int64_t{16}},
                                                              {std::int64_t{32}, std::int64_t{16}, far}}) {
    const std::size_t bytes = static_cast<std::size_t>(far + 100) * sizeof(float);
    const Sparse memory(bytes), others(bytes);
    ASSERT_NE(memory.data, MAP_FAILED);
    ASSERT_NE(others.data, MAP_FAILED);
    const Tensor a{memory.data, DType::float32, batch_stride, seq_stride, head_stride};
    const Tensor b{others.data, DType::float32, batch_stride, seq_stride, head_stride};
    const auto number = [](std::int64_t entry, std::int64_t row, std::int64_t head, std::int64_t d) {
      return static_cast<float>(((entry * 2 + row) * 2 + head) * 16 + d);
    };
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      a.at<float>(e, row, head)[d] = number(e, row, head, d);
    });
    ASSERT_EQ(copy(shape.batch, a, b, shape.extent, nullptr), 0);
    ASSERT_EQ(round(shape.batch, a, b, shape.extent, true, nullptr), 0);
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      ASSERT_EQ(b.at<float>(e, row, head)[d], 2 * number(e, row, head, d));
    });
    ASSERT_EQ(clear(shape.batch, b, shape.extent, nullptr), 0);
    for_each_element(shape, [&](std::int64_t e, std::int64_t row, std::int64_t head, std::int64_t d) {
      ASSERT_EQ(b.at<float>(e, row, head)[d], 0);
    });
  }
}

// The runtime is told what is read and written, from the first element to the last and no further.
TEST(Elementwise, AccessesAreDeclared) {
  Random random(test::seed());
  const Shape shape{2, {3, 4, 24}};
  Strided from(random, shape, DType::float32), to(random, shape, DType::float32);
  std::vector<emulation::Launch> taken;
  emulation::set_launcher([&](const emulation::Launch& launch) {
    taken.push_back(launch);
    return 7;
  });
  EXPECT_EQ(copy(2, from.tensor, to.tensor, shape.extent, nullptr), 7);
  EXPECT_EQ(round(2, from.tensor, to.tensor, shape.extent, true, nullptr), 7);
  EXPECT_EQ(round(2, from.tensor, to.tensor, shape.extent, false, nullptr), 7);
  EXPECT_EQ(clear(2, to.tensor, shape.extent, nullptr), 7);
  EXPECT_EQ(copy(0, from.tensor, to.tensor, shape.extent, nullptr), 0);
  emulation::set_launcher({});
  // Of entries first .. last, with all rows and heads.
  const auto expect_access = [&](const Access& access, const Tensor& tensor, std::int64_t first, std::int64_t last,
                                 bool writes) {
    EXPECT_EQ(access.data, tensor.bytes_at(first, 0, 0));
    EXPECT_EQ(static_cast<const std::byte*>(access.data) + access.bytes, tensor.bytes_at(last, 2, 3) + 24 * 4);
    EXPECT_EQ(access.writes, writes);
  };
  const auto expect = [&](const emulation::Launch& launch, std::initializer_list<std::pair<const Tensor*, bool>> all) {
    SCOPED_TRACE(launch.name);
    ASSERT_EQ(launch.accesses.size(), all.size());
    std::size_t n = 0;
    for (const auto& [tensor, writes] : all) expect_access(launch.accesses[n++], *tensor, 0, 1, writes);
  };
  ASSERT_EQ(taken.size(), 4U);
  const std::vector<Access>& of_copy = taken[0].accesses;  // which reads each entry by itself
  ASSERT_EQ(of_copy.size(), 3U);
  expect_access(of_copy[0], from.tensor, 0, 0, false);
  expect_access(of_copy[1], from.tensor, 1, 1, false);
  expect_access(of_copy[2], to.tensor, 0, 1, true);
  expect(taken[1], {{&from.tensor, false}, {&to.tensor, true}, {&to.tensor, false}});
  expect(taken[2], {{&from.tensor, false}, {&to.tensor, true}});
  expect(taken[3], {{&to.tensor, true}});
}

}  // namespace
}  // namespace ringattn::cuda
