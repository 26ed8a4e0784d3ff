// The functions of lib/engine/cuda/device, by what the PTX ISA says of their instructions.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "emulation/execution/block.h"

namespace emulation {
namespace {

Block& block() { return current_thread().block; }

}  // namespace

int thread_index() { return current_thread().index; }
int block_size() { return block().launch().threads; }
Index block_index() { return block().index(); }
Index grid_size() { return block().launch().grid; }

void barrier(Place place) { block().barrier("barrier", 0, block_size(), place); }
void barrier(int id, int threads, Place place) {
  if (id == 0) block().fail_here(Wrong::argument, "barrier", place, "barrier 0 is that of the whole block");
  block().barrier("barrier", id, threads, place);
}
void warp_barrier(Place place) { block().warp_barrier(place); }

// ---------------------------------------------------------------- lanes

std::uint32_t shuffle_bits(const char* what, std::uint32_t value, int from_lane, Place place) {
  if (from_lane < 0 || from_lane > 31)
    block().fail_here(Wrong::argument, what, place, "there is no lane " + std::to_string(from_lane));
  struct Lane {
    std::uint32_t value;
    int from;
    std::uint32_t result;
  } mine{value, from_lane, 0};
  block().together(what, mine, place, [](const auto& lanes) {
    for (Lane* const lane : lanes) lane->result = lanes[static_cast<std::size_t>(lane->from)]->value;
  });
  return mine.result;
}

bool any_lane(bool holds, Place place) {
  bool mine = holds;
  block().together("any_lane", mine, place, [](const auto& lanes) {
    const bool any = std::any_of(lanes.begin(), lanes.end(), [](const bool* lane) { return *lane; });
    for (bool* const lane : lanes) *lane = any;
  });
  return mine;
}

// ---------------------------------------------------------------- memory

void load_shared(SharedAddress from, void* to, int bytes, Place place) {
  std::memcpy(to, block().read(from, bytes, place, false), static_cast<std::size_t>(bytes));
}
void store_shared(SharedAddress to, const void* from, int bytes, Place place) {
  std::memcpy(block().write(to, bytes, place), from, static_cast<std::size_t>(bytes));
}

static void check_global(const char* does, const void* address, int bytes, Place place) {
  if (reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) != 0)
    block().fail_here(Wrong::misaligned, does, place,
                      "global memory is not aligned to " + std::to_string(bytes) + " bytes");
}
void load_global(const void* from, void* to, int bytes, Place place) {
  check_global("loads", from, bytes, place);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
void store_global(void* to, const void* from, int bytes, Place place) {
  check_global("stores", to, bytes, place);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

void cp_async(SharedAddress to, const void* from, int bytes, Place place) {
  block().begin_copy(to, from, bytes, place);
}
void cp_async_commit() {
  Thread& thread = current_thread();
  thread.groups.push_back(std::exchange(thread.uncommitted, 0));
}
void cp_async_wait(int latest, Place) {
  Thread& thread = current_thread();
  while (thread.groups.size() > static_cast<std::size_t>(latest)) {
    thread.block.end_copies(thread, thread.groups.front());
    thread.groups.erase(thread.groups.begin());
  }
}

// ---------------------------------------------------------------- matrices

void ldmatrix(const char* what, SharedAddress row, std::uint32_t* to, int matrices, bool transposed, Place place) {
  struct Lane {
    SharedAddress row;
    std::uint32_t* to;
  } mine{row, to};
  block().together(what, mine, place, [&](const auto& lanes) {
    for (int m = 0; m < matrices; ++m) {
      std::uint16_t matrix[8][8];
      for (int r = 0; r < 8; ++r)
        std::memcpy(matrix[r], block().read(lanes[static_cast<std::size_t>(8 * m + r)]->row, 16, place, true), 16);
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4, j = lane % 4 * 2;
        const std::uint32_t low = transposed ? matrix[j][i] : matrix[i][j];
        const std::uint32_t high = transposed ? matrix[j + 1][i] : matrix[i][j + 1];
        lanes[static_cast<std::size_t>(lane)]->to[m] = low | high << 16;
      }
    }
  });
}

namespace {

struct Fragments {
  float* c;
  const std::uint32_t *a, *b;
};
using Lanes = std::array<Fragments*, 32>;

using Row = float __attribute__((vector_size(32)));  // 8 numbers

// c[16][8] += a[16][k] b[k][8], spread over the lanes as both instructions have it.
template <int k>
void multiply(const Lanes& lanes, const float (&a)[16][k], const Row (&b)[k]) {
  for (int row = 0; row < 16; ++row) {
    const auto cell = [&](int n) -> float& {
      return lanes[static_cast<std::size_t>(row % 8 * 4 + n / 2)]->c[row / 8 * 2 + n % 2];
    };
    Row c;
    for (int n = 0; n < 8; ++n) c[n] = cell(n);
    for (int i = 0; i < k; ++i) c += a[row][i] * b[i];
    for (int n = 0; n < 8; ++n) cell(n) = c[n];
  }
}

template <class Value>
void multiply_16(const Lanes& lanes, Value value) {
  float a[16][16];
  Row b[16];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& own = *lanes[static_cast<std::size_t>(lane)];
    const int group = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto number = [&](std::uint32_t word) { return value(static_cast<std::uint16_t>(word >> (16 * half))); };
      for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][2 * t + half + i / 2 * 8] = number(own.a[i]);
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][group] = number(own.b[i]);
    }
  }
  multiply<16>(lanes, a, b);
}

}  // namespace

void mma_m16n8k16(Format format, float* c, const std::uint32_t* a, const std::uint32_t* b, Place place) {
  Fragments mine{c, a, b};
  block().together("mma_m16n8k16", mine, place, [&](const Lanes& lanes) {
    if (format == Format::bf16)
      multiply_16(lanes, [](std::uint16_t bits) { return bf16_value(bits); });
    else
      multiply_16(lanes, [](std::uint16_t bits) { return f16_value(bits); });
  });
}

void mma_m16n8k8_tf32(float* c, const std::uint32_t* a, const std::uint32_t* b, Place place) {
  Fragments mine{c, a, b};
  block().together("mma_m16n8k8_tf32", mine, place, [](const Lanes& lanes) {
    const auto value = [](std::uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffU); };
    float left[16][8];
    Row right[8];
    for (int lane = 0; lane < 32; ++lane) {
      const Fragments& own = *lanes[static_cast<std::size_t>(lane)];
      for (int i = 0; i < 4; ++i) left[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = value(own.a[i]);
      for (int i = 0; i < 2; ++i) right[lane % 4 + i * 4][lane / 4] = value(own.b[i]);
    }
    multiply<8>(lanes, left, right);
  });
}

// ---------------------------------------------------------------- numbers

float bf16_value(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

float f16_value(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffU, sign = (bits & 0x8000U) << 16;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000U | magnitude << 13);
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F));
}

std::uint16_t bf16_bits(float x) {
  if (std::isnan(x)) return 0x7fff;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t f16_bits(float x) {
  if (std::isnan(x)) return 0x7fff;
  const std::uint32_t sign = std::signbit(x) ? 0x8000 : 0, bits = std::bit_cast<std::uint32_t>(std::abs(x));
  std::uint32_t magnitude = 0x7c00;
  if (std::abs(x) < 0x1p-14F)
    magnitude = static_cast<std::uint32_t>(std::nearbyint(std::abs(x) * 0x1p24F));
  else if (std::abs(x) < 65520)
    magnitude = (bits + 0xfff + (bits >> 13 & 1) - (112U << 23)) >> 13;
  return static_cast<std::uint16_t>(sign | magnitude);
}

std::uint32_t tf32_bits(float x) {
  if (std::isnan(x)) return 0x7fffffff;
  return std::isinf(x) ? std::bit_cast<std::uint32_t>(x) : (std::bit_cast<std::uint32_t>(x) + 0x1000) & ~0x1fffU;
}

float exp2_ftz(float x) {
  constexpr float least = 0x1p-126F;
  if (std::abs(x) < least) return 1;
  const float y = std::exp2(x);
  return y < least ? 0 : y;
}

}  // namespace emulation
