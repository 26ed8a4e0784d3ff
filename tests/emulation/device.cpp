// Emulated kernels run when they are launched: nothing is left to wait for.
#include "support/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <new>
#include <vector>

#include "emulation/execution/execution.h"

namespace ringattn::test::device {
namespace {

constexpr std::byte poison{0xff};
constexpr std::align_val_t alignment{64};

std::map<const std::byte*, std::span<std::byte>>& blocks() {
  static std::map<const std::byte*, std::span<std::byte>> all;
  return all;
}

// Stretches of a block that are in no access, or in none that writes.
template <class F>
void for_each_hidden(std::span<std::byte> block, const std::vector<cuda::Access>& accesses, bool writes_only, F&& f) {
  std::byte* at = block.data();
  std::byte* const end = at + block.size();
  std::vector<std::pair<std::byte*, std::byte*>> seen;
  for (const cuda::Access& access : accesses) {
    auto* const begin = static_cast<std::byte*>(const_cast<void*>(access.data));
    if (begin >= at && begin < end && (access.writes || !writes_only)) seen.emplace_back(begin, begin + access.bytes);
  }
  std::sort(seen.begin(), seen.end());
  for (const auto& [from, to] : seen) {
    if (at < from) f(at, from);
    at = std::max(at, to);
  }
  if (at < end) f(at, end);
}

void run_hidden(const emulation::Launch& launch, const emulation::Options& options) {
  std::vector<std::pair<std::span<std::byte>, std::vector<std::byte>>> kept;
  for (const auto& [data, block] : blocks()) {
    kept.emplace_back(block, std::vector(block.begin(), block.end()));
    for_each_hidden(block, launch.accesses, false, [](std::byte* from, std::byte* to) { std::fill(from, to, poison); });
  }
  emulation::run(launch, options);
  for (const auto& [block, before] : kept) {
    const auto kept_at = [&, begin = block.data()](const std::byte* at) { return before.begin() + (at - begin); };
    for_each_hidden(block, launch.accesses, false, [&](std::byte* from, std::byte* to) {
      EXPECT_TRUE(std::all_of(from, to, [](std::byte b) { return b == poison; }))
          << launch.name << " writes what it has not declared";
      std::copy(kept_at(from), kept_at(to), from);
    });
    for_each_hidden(block, launch.accesses, true, [&](std::byte* from, std::byte* to) {
      EXPECT_TRUE(std::equal(from, to, kept_at(from))) << launch.name << " writes what it has declared to read";
    });
  }
}

}  // namespace

bool is_emulated() { return true; }

Memory::Memory(std::size_t bytes) : bytes_(static_cast<std::byte*>(::operator new(bytes, alignment)), bytes) {
  std::fill(bytes_.begin(), bytes_.end(), poison);
  blocks().emplace(bytes_.data(), bytes_);
}

Memory::~Memory() {
  if (bytes_.data() == nullptr) return;
  blocks().erase(bytes_.data());
  ::operator delete(bytes_.data(), alignment);
}

Launches::Launches(reference::Random& random, bool limited)
    : num_sms_(limited && reference::draw(random, 0, 1) == 0 ? static_cast<int>(reference::draw(random, 1, 5)) : 0) {
  emulation::set_launcher([this, &random](const emulation::Launch& launch) {
    ++counts_[launch.name];
    if (num_sms_ > 0) {
      EXPECT_LE(launch.grid.x * launch.grid.y * launch.grid.z, num_sms_) << launch.name;
    }
    run_hidden(launch, {.seed = random(), .host_threads = static_cast<int>(reference::draw(random, 1, 2))});
    return 0;
  });
}

Launches::~Launches() { emulation::set_launcher({}); }

void finish() {}

}  // namespace ringattn::test::device
