// A proxy between ranks that are threads of this process and reach each other over ZeroMQ on TCP: what they send goes through it, where it
// can be recorded, changed, or cut off.
//
//   Proxy proxy([&](const Unit& unit) { return Passage{unit.bytes}; });   called for all that is sent, in order of each direction
//   ...on each rank's thread:
//   const Proxy::Client client(proxy, rank);                              connections that this thread makes go through the proxy
//
// It knows of ZMTP 3 (RFC 23) what is needed to take a stream apart: a greeting, which comes in three parts, each an answer to the
// other side's, and frames: flags, length, body.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>

#include "transport/zeromq/socket.h"

namespace ringattn::test {

// What is sent in one direction of a connection.
struct Stream {
  int rank = 0;        // that connected
  int connection = 0;  // and how many connections it had made before
  bool forth = true;   // from that rank; else to it
  // Rank 0 is the hub of the control plane, to which the others connect first.
  bool is_control() const { return rank != 0 && connection == 0; }
  friend auto operator<=>(const Stream&, const Stream&) = default;
};

// A part of the greeting, or a frame.
struct Unit {
  Stream stream;
  int number = 0;          // from 0, in this stream
  std::size_t header = 0;  // bytes before the body of a frame
  std::string bytes;

  static constexpr int greetings = 3;
};

// What is sent in the place of a unit, and whether the connection ends with it.
struct Passage {
  std::string bytes;
  bool is_end = false;
};

class Proxy {
 public:
  using Bend = std::function<Passage(const Unit&)>;  // on the proxy's thread

  explicit Proxy(Bend bend);
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;
  ~Proxy();

  // While it lives, the thread that made it connects through the proxy.
  class Client {
   public:
    Client(Proxy& proxy, int rank);
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    ~Client();
  };

  // How often that connection was made: more than once where ZeroMQ has tried again.
  int made(int rank, int connection) const;

 private:
  struct Way;
  struct Link;
  struct Door;

  static int connect_through(void* socket, const char* endpoint);
  std::string open_door(int rank, int connection, const std::string& endpoint);
  void run();
  void accept(Door& door);
  bool move(Way& way, short events);

  const Bend bend_;
  mutable std::mutex mutex_;
  std::list<Door> doors_;  // guarded by mutex_, with ends_
  bool ends_ = false;
  std::list<Link> links_;  // the thread's own
  zeromq::Signal wake_;
  std::thread thread_;
};

}  // namespace ringattn::test
