// The data plane: what a rank sends straight to every other, and takes from them, in pieces.
//
// A rank takes pieces on two PULL sockets: one in a directory that only its user may enter, for ranks of this machine, whose pieces are
// just checked; and one on TCP, which anybody can connect to, whose pieces are authenticated (seal.h). To each other rank it has one PUSH
// socket. What these sockets know of whether the other end lives is not asked for: that is the control plane's.
//
//   send      cut into pieces, of which at most `window` are on their way to a rank without its having taken them; so what is in ZeroMQ's
//             queues is bounded, and a transfer is over when the receiver has it
//   receive   a piece goes to its place in the transfer that was posted for it; one that comes before that is kept
//   number    pieces from one rank to another are numbered; one that is not the next means that the link has lost, repeated or
//             reordered something: the group breaks with PEER_LOST, which names the link
//
// What cannot be shown to come from a rank, on a connection that none has used, is dropped: strangers connect, too (connections.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/trace.h"
#include "transport/zeromq/connections.h"
#include "transport/zeromq/frame.h"
#include "transport/zeromq/private_directory.h"
#include "transport/zeromq/seal.h"
#include "transport/zeromq/socket.h"

namespace ringattn::zeromq {

// Where this rank takes data, and the sockets themselves.
class Inlets {
 public:
  // `tcp_host`: the address to listen on, at a port that is free. `is_machine_open`: also on this machine's own.
  Inlets(const Context& context, const std::string& tcp_host, bool is_machine_open);

  const std::string& address() const { return address_; }  // both as Hello has them
  const std::string& machine() const { return machine_; }
  void close_door();  // nobody else is to come by the file system: removes the directory

 private:
  friend class Links;
  Socket tcp_;
  std::unique_ptr<Socket> ipc_;
  std::unique_ptr<PrivateDirectory> directory_;
  std::string address_, machine_;
};

class Links {
 public:
  Links(const Context& context, Inlets& inlets, const Secret& secret, const Roster& roster, int rank, bool encrypts);

  // The rank to or from which the link has not been opened yet, or -1. Moves what can be moved.
  int unopened();

  void begin_operation(std::int64_t number) { operation_ = number; }
  void send(int peer, std::uint64_t tag, std::span<const std::byte> data);
  void receive(int peer, std::uint64_t tag, std::span<std::byte> data);
  void pump();           // moves what can be moved without blocking; throws Error PEER_LOST, MISMATCH
  int blocker() const;   // the rank whose transfer is not over, or -1
  void forget();         // all transfers
  void drop() noexcept;  // and what is still to be sent, when this ends
  bool lacks_room() const { return lacks_room_; }  // what could be sent was not: pump() is to try again
  void trace_to(Trace* trace) { trace_ = trace; }
  bool is_idle() const { return sends_.empty() && receives_.empty(); }

  // To poll for what comes in.
  std::vector<zmq_pollitem_t> items() const;

  static constexpr std::size_t piece_size = std::size_t{1} << 20;
  static constexpr std::uint64_t window = 4;  // pieces
 private:
  struct Send {
    int peer;
    std::uint64_t tag;
    std::span<const std::byte> data;
    Trace::Clock::time_point begin = Trace::Clock::now();
    std::size_t sent = 0;
    bool is_sent = false;    // all of it
    std::uint64_t last = 0;  // then: how many pieces of data had gone to that rank with its last one
  };
  struct Receive {
    int peer;
    std::uint64_t tag;
    std::span<std::byte> data;
    Trace::Clock::time_point begin = Trace::Clock::now();
    std::size_t received = 0;
    bool is_over = false;
  };
  struct Early {
    PieceHeader header;
    std::vector<std::byte> payload;
  };
  struct Link {
    Link(Socket s, Protection p) : socket(std::move(s)), protection(p) {}
    Socket socket;  // to it
    Protection protection;
    LinkKey out{}, in{};
    std::uint64_t number_out = 0, number_in = 0;  // of the next piece, whatever its kind
    std::uint64_t sent = 0, taken = 0;            // pieces of data to it, and those of them that it has taken
    std::uint64_t arrived = 0;                    // pieces of data from it that have been taken here
    bool is_open = false;                         // its first piece has come
    bool owes_opening = true, owes_word = false;
    std::vector<Early> early;
  };

  bool take_from(Socket& socket, bool is_tcp);
  void take(Message& frame, bool is_tcp);
  void place(int from, const PieceHeader& header, std::span<const std::byte> payload);
  Receive* find(int from, std::uint64_t tag);
  void count_in(Link& link, Receive& transfer, std::size_t length);
  void trace_taken(int rank, std::uint64_t before);
  bool put(int to, PieceKind kind, Send* transfer);
  Link& link(int rank) { return *links_[static_cast<std::size_t>(rank)]; }

  Inlets& inlets_;
  int rank_;
  Cipher cipher_;  // that all ranks can do
  std::int64_t operation_ = 0;
  Trace* trace_ = nullptr;
  bool lacks_room_ = false;
  std::vector<std::unique_ptr<Link>> links_;  // by rank; null for this one
  std::vector<Send> sends_;
  std::vector<Receive> receives_;
  Connections connections_;  // by TCP
};

}  // namespace ringattn::zeromq
