// How bytes get from one rank's memory to another's, where both are in one process.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace ringattn {

// One rank's part in it.
class Copier {
 public:
  virtual ~Copier() = default;

  // Where the rank's memory is: a CUDA device, or the host. All ranks of a group have it on the host, or none has.
  static constexpr int host = -1;
  virtual int device() const { return host; }
  // Once for every rank, before any transfer: it has its memory there.
  virtual void meet([[maybe_unused]] int device) {}

  // Whether copying is only enqueued: what one rank sends to another between two waits is then copied at once, and not before
  // all of it is posted.
  virtual bool enqueues() const { return false; }
  // What this rank sends is there, and where it receives is free, when what has been enqueued so far is over. Before the first of the
  // transfers between two waits is posted.
  virtual void offer() {}
  // This rank has posted all that it sends: from now on others may copy.
  virtual void publish() {}

  struct Piece {
    std::byte* to;
    const std::byte* from;
    std::size_t size;
  };
  // To this rank's memory from that of `sender`, on the receiver's thread. If it throws, the memory is not touched any more.
  virtual void copy(Copier& sender, std::span<const Piece> pieces) = 0;
  // All that this rank sent is copied, and its memory will be used again.
  virtual void end_sends() {}
};

// Copies at once.
std::unique_ptr<Copier> make_host_copier();

}  // namespace ringattn
