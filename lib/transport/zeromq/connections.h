// Who may have brought a piece, as far as the TCP connection tells that it came by.
//
// Anybody can connect, so a connection is a rank's only once it has brought what is authentic; and a rank connects once. It is known by its
// descriptor, which the system gives to whoever connects next when its owner has gone:
//
//   a stranger's before    what he sent may be read after the rank's first words. So a rank does not answer for what is not authentic
//                          until all that had come by then has been read: nothing authentic could be seen before the rank connected.
//   a stranger's after     the socket has another cookie than the rank's, and nobody answers. What the rank had sent before it went
//                          may still be read: it is authentic and the next.
//
// Pure: descriptors and cookies are numbers here.
#pragma once

#include <cstdint>
#include <vector>

namespace ringattn::zeromq {

struct Bringer {
  int rank = -1;         // whose connection it is; -1: nobody's yet, or that cannot be known
  bool answers = false;  // for what is not authentic
  bool is_known = true;  // else what is authentic is taken where it is the next, and dropped otherwise
  int descriptor = -1;
  std::uint64_t cookie = 0;
};

class Connections {
 public:
  // `descriptor`: of the connection that a piece came by; -1: it was gone before it could be asked for. `cookie`: of the socket that has
  // that descriptor now; 0 where there is none.
  Bringer bringer(int descriptor, std::uint64_t cookie) const;
  // Whether a piece that says it is from `rank` may be: by that rank's connection, or by one that is nobody's while the rank has none.
  bool may_be_from(int rank, const Bringer& bringer) const;
  // What it brought was authentic, and from `rank`.
  void note(int rank, const Bringer& bringer);
  // All that had come until now has been read.
  void note_drained();

 private:
  struct Connection {
    int descriptor, rank;
    std::uint64_t cookie;
    bool is_alone = false;  // nothing that an earlier owner of the descriptor sent is still to be read
  };
  std::vector<Connection> all_;
};

}  // namespace ringattn::zeromq
