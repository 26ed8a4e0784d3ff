#include "benchmark/allocations.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> live{0};
std::atomic<std::int64_t> peak{0};

void* counted(void* p) noexcept {
  const auto size = static_cast<std::int64_t>(malloc_usable_size(p));
  const std::int64_t now = live.fetch_add(size, std::memory_order_relaxed) + size;
  std::int64_t seen = peak.load(std::memory_order_relaxed);
  while (now > seen && !peak.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
  return p;
}

void* try_allocate(std::size_t size) noexcept { return counted(std::malloc(std::max<std::size_t>(size, 1))); }

void* try_allocate(std::size_t size, std::align_val_t alignment) noexcept {
  const auto multiple = static_cast<std::size_t>(alignment);
  return counted(std::aligned_alloc(multiple, (std::max<std::size_t>(size, 1) + multiple - 1) / multiple * multiple));
}

template <class... Alignment>
void* allocate(std::size_t size, Alignment... alignment) {
  void* p = try_allocate(size, alignment...);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void release(void* p) noexcept {
  live.fetch_sub(static_cast<std::int64_t>(malloc_usable_size(p)), std::memory_order_relaxed);
  std::free(p);
}

}  // namespace

namespace ringattn::benchmark {

std::int64_t live_bytes() { return live.load(); }
std::int64_t peak_bytes() { return peak.load(); }
void reset_peak() { peak.store(live.load()); }

}  // namespace ringattn::benchmark

using Size = std::size_t;
using Align = std::align_val_t;

void* operator new(Size size) { return allocate(size); }
void* operator new[](Size size) { return allocate(size); }
void* operator new(Size size, Align alignment) { return allocate(size, alignment); }
void* operator new[](Size size, Align alignment) { return allocate(size, alignment); }
void* operator new(Size size, const std::nothrow_t&) noexcept { return try_allocate(size); }
void* operator new[](Size size, const std::nothrow_t&) noexcept { return try_allocate(size); }
void* operator new(Size size, Align alignment, const std::nothrow_t&) noexcept { return try_allocate(size, alignment); }
void* operator new[](Size size, Align alignment, const std::nothrow_t&) noexcept {
  return try_allocate(size, alignment);
}

void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, Size) noexcept { release(p); }
void operator delete[](void* p, Size) noexcept { release(p); }
void operator delete(void* p, Align) noexcept { release(p); }
void operator delete[](void* p, Align) noexcept { release(p); }
void operator delete(void* p, Size, Align) noexcept { release(p); }
void operator delete[](void* p, Size, Align) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete(void* p, Align, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, Align, const std::nothrow_t&) noexcept { release(p); }
