// What is allocated, who has touched it, and the rules for touching it.
//
// A *clock* is a vector with an entry for every lane, the number of operations of that lane that one comes after; a lane is a
// stream, or a stream of a graph. An operation is the n-th of its lane, and another comes after it if its clock says n or more
// there. Each allocation keeps the accesses that a later one may still have to be compared with, and which bytes were written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulation.h"

namespace emulation {

using ringattn::cuda::Access;
using Clock = std::vector<std::uint32_t>;

void join(Clock& into, const Clock& other);

// Who touches memory: an operation, for as long as somebody may ask for its name.
struct Author {
  std::string name;
  std::uint64_t id = 0;
  int lane = 0;
  std::uint32_t count = 0;  // it is the count-th of its lane
  int stream = 0;
  int device = 0;

  bool before(const Clock& clock) const {
    return static_cast<std::size_t>(lane) < clock.size() && clock[static_cast<std::size_t>(lane)] >= count;
  }
  std::string label() const;  // "attend" (#17, stream 2 of device 1)
};
using AuthorPtr = std::shared_ptr<const Author>;

// How an operation reaches memory.
enum class Reach {
  kernel,  // its device's, pinned host memory, and that of peers that were enabled
  copy     // any device's, and what CUDA does not know is the host's
};

class Memory {
 public:
  Memory(const Config& config, std::function<void(Rule, const std::string&)> report);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  enum class Kind { device, pinned };
  struct Found {
    const std::byte* begin;
    Kind kind;
    int device;
  };

  void* allocate(Kind kind, int device, std::size_t bytes);  // null if there is no more
  bool free(Kind kind, void* data, const Clock& host);       // false if it is not the beginning of such an allocation
  const Found* find(const void* data) const;                 // what is allocated there now, or null

  bool enable_peer(int device, int peer);  // false if it was
  bool can_reach(int device, int owner) const { return device == owner || peers_[index(device, owner)]; }

  // The rules for an operation's accesses, and for the host's. False if they must not be carried out.
  bool check(const AuthorPtr& author, Reach reach, const std::vector<Access>& accesses, const Clock& clock,
             const Clock& host);
  void check_host(const Access& access, const Clock& host);

  void describe(std::vector<std::string>& lines) const;

 private:
  struct Use {
    std::size_t begin, end;
    bool writes;
    AuthorPtr author;
  };
  struct Block : Found {
    std::size_t bytes = 0;
    bool freed = false;
    std::vector<Use> uses;
    std::map<std::size_t, std::size_t> written;  // begin -> end, disjoint and not touching
  };

  Block* block_of(const void* data);
  std::size_t index(int device, int peer) const { return static_cast<std::size_t>(device * devices_ + peer); }
  std::string place(const Block& block, std::size_t begin, std::size_t end) const;

  int devices_;
  std::vector<std::size_t> left_;  // bytes of each device
  std::vector<bool> peers_;
  std::map<const std::byte*, Block> blocks_;
  std::function<void(Rule, const std::string&)> report_;
};

}  // namespace emulation
