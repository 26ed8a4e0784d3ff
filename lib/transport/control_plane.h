// How ranks in processes of their own come together, and hear of each other's failures, where something else carries their data.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "transport/transport.h"

namespace ringattn {

// All but join() is for any thread.
class ControlPlane {
 public:
  virtual ~ControlPlane() = default;

  // Waits until all ranks have come, and gives all of them what rank 0 brings: as many bytes on each, which bring(bytes) fills there.
  // Throws as ra_create_context does; the caller tells the others, by fail().
  using Bring = std::function<void(std::span<std::byte> bytes)>;
  virtual void join(std::span<std::byte> brought, const Bring& bring) = 0;

  // The first failure that is heard of breaks the group.
  virtual void fail(const Failure& failure) noexcept = 0;
  virtual Failure failure() const noexcept = 0;  // status SUCCESS while it is whole
  // This rank has given up, for that reason: breaks the group, and returns what with. Others may know better whose fault it is: who
  // waits, and who is gone. Asks them, which may take two seconds.
  virtual Failure time_out(const Failure& found) = 0;
  virtual Failure lose_peer(const Failure& found) = 0;

  // What others are told who ask whom all wait for: whether transfers are not over that this rank is ready for.
  virtual void set_waits(bool waits) noexcept = 0;
  virtual bool has_left_undone(int rank) const noexcept = 0;  // without the call that this rank is in
  virtual void end_call() noexcept = 0;  // a collective call is over on this rank, to its last transfer

  // Tells the others that this rank leaves; rank 0 waits until they are done with as many calls. So does the destructor, else.
  virtual void leave() noexcept = 0;
};

}  // namespace ringattn
