// Memory for one call: sizes are added up first, by the same code that later hands out the parts. And memory for good.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "core/error.h"

namespace ringattn {

constexpr std::size_t memory_alignment = 64;  // bytes: a cache line and the widest vector

// Lays parts out one behind the other. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}

  // Room for `count` values of T, aligned; null while measuring or where count is 0.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t offset = size_;
    size_ += (static_cast<std::size_t>(count) * sizeof(T) + memory_alignment - 1) / memory_alignment * memory_alignment;
    return base_ == nullptr || count == 0 ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }
  std::size_t size() const { return size_; }

 private:
  std::byte* base_;
  std::size_t size_ = 0;
};

// An aligned block that only grows.
class Block {
 public:
  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { release(); }

  void* reserve(std::size_t size) {
    if (size > size_) {
      release();
      data_ = ::operator new (size, std::align_val_t{memory_alignment});
      size_ = size;
    }
    return data_;
  }

 private:
  void release() {
    ::operator delete (data_, std::align_val_t{memory_alignment});
    data_ = nullptr;
    size_ = 0;
  }
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Makes what lives as long as the process: a global of the host's may destroy a context, or make another, after main, when a
// static of ours with a destructor would be gone.
//
//   static Table& table = make_immortal<Table>();
template <class T, class... Arguments>
T& make_immortal(Arguments&&... arguments) {
  return *new T(std::forward<Arguments>(arguments)...);
}

}  // namespace ringattn
