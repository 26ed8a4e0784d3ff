// Ranks and strangers connect, say something and go, in any order, and a descriptor is whoever's comes next, the lowest first as the system
// has it. Always: no rank is accused, and all that ranks send is taken, in order.
#include "transport/zeromq/connections.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "support/random.h"

namespace ringattn::zeromq {
namespace {

struct Word {
  int from;  // as it says
  std::uint64_t number;
  bool is_authentic;
};

struct Peer {
  int rank;  // -1: a stranger
  int descriptor;
  std::uint64_t cookie;
  bool is_gone = false;
  bool is_nameless = false;  // gone before anybody asked who it is
  std::deque<Word> unread = {};
};

class World {
 public:
  World(int num_ranks, std::uint64_t seed)
      : random_(seed), sent_(static_cast<std::size_t>(num_ranks)), taken_(sent_.size()), peers_of_(sent_.size(), -1) {}

  void step() {
    switch (between(0, 7)) {
      case 0:
        return come(-1);
      case 1: {
        const int rank = any_rank();
        return peers_of_[at(rank)] < 0 ? come(rank) : say(peers_[at(peers_of_[at(rank)])]);
      }
      case 2:
      case 3:
        if (!peers_.empty()) say(peers_[static_cast<std::size_t>(between(0, size() - 1))]);
        return;
      case 4:
        if (!peers_.empty()) go(peers_[static_cast<std::size_t>(between(0, size() - 1))]);
        return;
      default:
        return read();
    }
  }
  // What is sent is read.
  void end() {
    while (read_one()) continue;
    for (std::size_t r = 0; r < sent_.size(); ++r) EXPECT_EQ(taken_[r], sent_[r]) << "of rank " << r;
  }
  int num_taken = 0;

 private:
  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  int size() const { return static_cast<int>(peers_.size()); }
  int between(int least, int most) { return std::uniform_int_distribution(least, most)(random_); }
  int any_rank() { return between(0, static_cast<int>(sent_.size()) - 1); }

  void come(int rank) {
    int descriptor = 5;
    const auto is_taken = [&](const Peer& p) { return !p.is_gone && p.descriptor == descriptor; };
    while (std::ranges::any_of(peers_, is_taken)) ++descriptor;
    if (rank >= 0) peers_of_[at(rank)] = size();
    peers_.push_back({rank, descriptor, ++cookies_});
    if (rank >= 0) say(peers_.back());
  }
  void say(Peer& peer) {
    if (peer.is_gone) return;
    if (peer.rank >= 0) return peer.unread.push_back({peer.rank, sent_[at(peer.rank)]++, true});
    const int from = any_rank();  // whose word he makes up, or repeats
    const std::uint64_t seen = taken_[at(from)];
    const bool repeats = seen > 0 && between(0, 1) == 0;
    const auto number = static_cast<std::uint64_t>(between(0, 20));
    peer.unread.push_back({from, repeats ? number % seen : number, repeats});
  }
  // A rank is there until the first words of all have been read: a group has not formed before.
  void go(Peer& peer) {
    if (peer.rank >= 0 && std::ranges::count(taken_, 0U) > 0) return;
    peer.is_gone = true;
    peer.is_nameless = peer.rank < 0 && between(0, 1) == 0;
  }

  void read() {
    for (int n = between(1, 4); n > 0; --n)
      if (!read_one()) return connections_.note_drained();
  }
  bool read_one() {
    std::vector<Peer*> some;
    for (Peer& peer : peers_)
      if (!peer.unread.empty()) some.push_back(&peer);
    if (some.empty()) return false;
    Peer& peer = *some[static_cast<std::size_t>(between(0, static_cast<int>(some.size()) - 1))];
    const Word word = peer.unread.front();
    peer.unread.pop_front();
    take(peer, word);
    return true;
  }

  // As Links::take does.
  void take(const Peer& peer, const Word& word) {
    const int descriptor = peer.is_nameless ? -1 : peer.descriptor;
    std::uint64_t cookie = 0;
    for (const Peer& other : peers_)
      if (!other.is_gone && other.descriptor == descriptor) cookie = other.cookie;
    const Bringer bringer = connections_.bringer(descriptor, cookie);
    const auto accuse = [&](int rank) { ADD_FAILURE() << "rank " << rank << " is accused, who has done nothing"; };
    if (bringer.rank >= 0 && bringer.rank != word.from) {
      if (bringer.answers) accuse(bringer.rank);
      return;
    }
    const std::uint64_t next = taken_[at(word.from)];
    if (!connections_.may_be_from(word.from, bringer) || (!bringer.is_known && word.number != next)) return;
    if (!word.is_authentic) {
      if (bringer.answers) accuse(word.from);
      return;
    }
    connections_.note(word.from, bringer);
    if (word.number != next) return accuse(word.from);
    ++taken_[at(word.from)];
    ++num_taken;
  }

  std::mt19937_64 random_;
  Connections connections_;
  std::vector<std::uint64_t> sent_, taken_;  // by rank
  std::vector<int> peers_of_;                // by rank; -1: has not come
  std::vector<Peer> peers_;
  std::uint64_t cookies_ = 0;
};

TEST(Connections, AccuseNobodyWronglyAndLoseNothing) {
  const std::uint64_t seed = test::seed();
  int num_taken = 0;
  for (int n = 0; n < test::sample(20'000) && !testing::Test::HasFailure(); ++n) {
    SCOPED_TRACE(testing::Message() << "world " << n);
    World world(1 + n % 4, seed + static_cast<std::uint64_t>(n));
    for (int i = 0; i < 200; ++i) world.step();
    world.end();
    num_taken += world.num_taken;
  }
  EXPECT_GT(num_taken, 100);
}

// A rank answers for what is not authentic as soon as nothing of an earlier owner of its descriptor can be left, and while it has it.
TEST(Connections, AnswerForWhatTheyBring) {
  Connections connections;
  const Bringer first = connections.bringer(7, 100);
  EXPECT_TRUE(first.is_known && first.rank == -1 && !first.answers);
  EXPECT_TRUE(connections.may_be_from(2, first));
  connections.note(2, first);
  const auto expect = [&](int descriptor, std::uint64_t cookie, int rank, bool answers, bool is_known) {
    const Bringer b = connections.bringer(descriptor, cookie);
    EXPECT_EQ(b.rank, rank);
    EXPECT_EQ(b.answers, answers);
    EXPECT_EQ(b.is_known, is_known);
  };
  expect(7, 100, 2, false, true);
  connections.note_drained();
  expect(7, 100, 2, true, true);
  expect(7, 101, -1, false, false);  // another's now
  expect(7, 0, -1, false, false);    // nobody's
  expect(-1, 0, -1, false, false);
  expect(8, 102, -1, false, true);
  EXPECT_FALSE(connections.may_be_from(2, connections.bringer(8, 102)));  // it has connected
  EXPECT_TRUE(connections.may_be_from(1, connections.bringer(8, 102)));
}

}  // namespace
}  // namespace ringattn::zeromq
