// Where the kernels of a test run: emulated (tests/emulation/device.cpp), or on a GPU (tests/gpu/device.cpp). The same tests are linked
// with either.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "engine/reference/oracle.h"

namespace ringattn::test::device {

// Not on a GPU, where nobody counts launches or sees what they have declared.
bool is_emulated();

// Memory that the host and kernels see, aligned to 64 bytes; all its bytes are 0xff, of which NaN is made. The host may touch it while
// nothing is launched, and after finish().
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes);
  Memory(Memory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory();

  std::span<std::byte> bytes() const { return bytes_; }
  std::byte* data() const { return bytes_.data(); }

 private:
  std::span<std::byte> bytes_;
};

// The same, as elements.
template <class T>
class Array {
 public:
  explicit Array(std::size_t count) : memory_(count * sizeof(T)), count_(count) {}
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::size_t size() const { return count_; }
  T* begin() const { return data(); }
  T* end() const { return data() + count_; }
  T& operator[](std::size_t i) const { return data()[i]; }

 private:
  Memory memory_;
  std::size_t count_;
};

// While it exists, and there is one at most, emulated kernels run as they are launched, their blocks in orders drawn from `random`. They
// see no byte that they have not declared: meanwhile everything else in Memory is 0xff, and has to be so afterwards. What launches are
// to be limited to is drawn too, if they are: no emulated multiprocessor has room for more than one block here.
class Launches {
 public:
  explicit Launches(reference::Random& random, bool limited = false);
  Launches(const Launches&) = delete;
  Launches& operator=(const Launches&) = delete;
  ~Launches();

  // How many there have been, by the kernels' names; none on a GPU.
  const std::map<std::string, int>& counts() const { return counts_; }
  // Multiprocessors that launches are to be limited to, or 0.
  int num_sms() const { return num_sms_; }

 private:
  int num_sms_;
  std::map<std::string, int> counts_;
};

// Waits until all that has been launched is over. A failure of the test if something went wrong with it.
void finish();

}  // namespace ringattn::test::device
