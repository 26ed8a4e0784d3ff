// A group of Memberships whose hosts do anything in any order, over a network that a member, or whoever has taken one over, may have
// changed: frames arrive, are lost, repeated, changed, or come from nowhere.
//
// Always: the first failure that a rank knows is its last word, is of the enum and names a rank or nobody; a roster has every rank once, and
// never changes; a rank is told of it once; what is sent is bounded, goes to ranks that are there, and ends with the group. At the end, when
// nothing is changed any more and time passes: a failure is known to all that it concerns.
// As long as nothing was changed: nobody finds that a frame means nothing, and all gather the same.
#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "fuzz/input.h"
#include "transport/zeromq/membership.h"

namespace ringattn::zeromq {
namespace {

using fuzz::check;
using fuzz::Input;
using Bytes = std::vector<std::byte>;

constexpr std::size_t longest_frame = 256, longest_record = 300, most_steps = 80;
constexpr auto welcome_kind = static_cast<std::byte>(FrameKind::welcome),
               broken_kind = static_cast<std::byte>(FrameKind::broken);

Hello hello_of(int world_size, int rank) {
  Hello hello;
  hello.library = 100;
  hello.world_size = world_size;
  hello.rank = rank;
  hello.address = "a";
  hello.address += static_cast<char>('0' + rank);
  return hello;
}

struct Process {
  explicit Process(const Hello& hello) : own(hello), membership(hello, Session{std::byte{42}}) {}

  Hello own;
  Membership membership;
  bool has_left = false;
  bool was_whole = false;
  Failure failure;
  Roster roster;
  bool is_done = false;  // has failed or left, and said so
  int welcomes = 0;      // sent to it
};

// Both ways between a spoke and the hub.
struct Wire {
  std::deque<Bytes> to_hub, to_spoke;
  bool hub_heard = false, spoke_heard = false;  // anything
  bool is_cut = false;
};

class World {
 public:
  explicit World(Input& input) : input_(input) {
    const int world_size = 1 + input_.below(5);
    for (int r = 0; r < world_size; ++r) {
      processes_.push_back(std::make_unique<Process>(hello_of(world_size, r)));
      wires_.emplace_back();
    }
    for (int r = 0; r < world_size; ++r) {
      process(r).membership.begin();
      look_at(r, 0);
    }
  }

  void run() {
    if (input_.chance(2)) deliver_all();  // to a group that is whole
    for (std::size_t n = 0; n < most_steps && !input_.is_over(); ++n) step();
    let_time_pass();
  }

 private:
  int world_size() const { return static_cast<int>(processes_.size()); }
  Process& process(int rank) { return *processes_[static_cast<std::size_t>(rank)]; }
  Wire& wire(int spoke) { return wires_[static_cast<std::size_t>(spoke)]; }
  int any_rank() { return input_.below(world_size()); }

  void step() {
    const int what = input_.below(16);
    const int rank = any_rank();
    Membership& m = process(rank).membership;
    switch (what) {
      case 0:
      case 1:
      case 2:
      case 3:
        return deliver(rank, what % 2 == 0);
      case 4:
        return change(rank, input_.chance(2));
      case 5:
        return inject(rank, input_.chance(2));
      case 6:
        m.on_beat();
        break;
      case 7: {
        const int times = 1 + input_.below(8);
        for (int n = 0; n < times; ++n) beat_all();
        return;
      }
      case 8:
        return disconnect(rank);
      case 9: {
        const std::size_t size = static_cast<std::size_t>(input_.below(longest_record));
        m.gather(Bytes(size, static_cast<std::byte>(rank)));
        break;
      }
      case 10: {
        const int blocker = input_.below(world_size() + 3) - 2;
        m.on_timeout(blocker, input_.number<std::int16_t>());
        break;
      }
      case 11:
        m.set_waits_for(input_.below(world_size() + 4) - 3);
        break;
      case 12: {
        const auto status = static_cast<ra_status>(input_.below(RA_STATUS_INTERNAL_ERROR + 1));
        m.fail({status, input_.below(world_size() + 1) - 1, "it is just so"});
        break;
      }
      case 13:
        m.end_call();
        break;
      case 14:
        m.leave();
        process(rank).has_left = true;
        break;
      default:
        return deliver_all();
    }
    look_at(rank, 0);
  }

  // ---- The network.

  bool arrive(int spoke, bool is_to_hub, const Bytes& frame) {
    const int to = is_to_hub ? 0 : spoke;
    if (process(to).has_left || wire(spoke).is_cut) return false;
    (is_to_hub ? wire(spoke).hub_heard : wire(spoke).spoke_heard) = true;
    process(to).membership.on_frame(is_to_hub ? spoke : 0, frame);
    look_at(to, frame.size());
    return true;
  }
  void deliver(int spoke, bool is_to_hub) {
    std::deque<Bytes>& queue = is_to_hub ? wire(spoke).to_hub : wire(spoke).to_spoke;
    if (queue.empty()) return;
    const Bytes frame = std::move(queue.front());
    queue.pop_front();
    arrive(spoke, is_to_hub, frame);
  }
  void deliver_all() {
    for (bool more = true; more;) {
      more = false;
      for (int r = 1; r < world_size(); ++r)
        for (const bool is_to_hub : {true, false})
          for (std::size_t n = (is_to_hub ? wire(r).to_hub : wire(r).to_spoke).size(); n > 0; --n) {
            deliver(r, is_to_hub);
            more = true;
          }
    }
  }

  // What becomes of the next frame there.
  void change(int spoke, bool is_to_hub) {
    std::deque<Bytes>& queue = is_to_hub ? wire(spoke).to_hub : wire(spoke).to_spoke;
    if (queue.empty()) return;
    is_changed_ = true;
    Bytes& frame = queue.front();
    switch (input_.below(6)) {
      case 0:
        return queue.pop_front();
      case 1:
        return queue.push_back(frame);
      case 2:
        if (const std::size_t size = input_.number<std::uint8_t>(); size < frame.size()) frame.resize(size);
        return;
      case 3:
        return frame.resize(frame.size() + 1 + input_.number<std::uint8_t>() % 8U);
      case 4:
        std::swap(queue.front(), queue.back());
        return;
      default:
        for (int n = 1 + input_.below(3); n > 0; --n) {
          const std::size_t at = input_.number<std::uint8_t>();
          if (at < frame.size()) frame[at] = input_.number<std::byte>();
        }
    }
  }

  // A frame from nowhere; at the hub also from a rank that the group does not have.
  void inject(int spoke, bool is_to_hub) {
    is_changed_ = true;
    const std::size_t size = input_.number<std::uint8_t>();
    const Bytes frame = size < 128 ? input_.bytes(size) : likely_frame(is_to_hub);
    if (is_to_hub && input_.chance(4)) {
      const int stranger = input_.below(world_size() + 3) - 1;
      if (stranger > 0 && stranger < world_size()) {
        arrive(stranger, true, frame);
      } else if (!process(0).has_left) {
        process(0).membership.on_frame(stranger, frame);
        look_at(0, frame.size());
      }
    } else if (spoke > 0) {
      arrive(spoke, is_to_hub, frame);
    }
  }

  // One that is laid out as frame.h says, of small numbers.
  Bytes likely_frame(bool is_to_hub) {
    const int kind = 3 + input_.below(7);
    Bytes frame{static_cast<std::byte>(kind)};
    const auto add = [&](std::initializer_list<int> sizes) {
      for (const int size : sizes) {
        const std::int64_t number = input_.below(12) - 3;
        for (int i = 0; i < size; ++i) frame.push_back(static_cast<std::byte>(number >> 8 * i & 0xff));
      }
    };
    switch (kind) {
      case 3:  // beat
        is_to_hub ? add({4, 8, 4}) : add({4, 4});
        break;
      case 4:  // record
      case 5:  // records
        add({8});
        frame.resize(frame.size() + static_cast<std::size_t>(input_.below(16)));
        break;
      case 6:  // broken
        add({4, 4, 4, 4});
        frame.insert(frame.end(), 2, std::byte{0});
        break;
      case 8:  // left
        add({4, 8, 8});
        break;
      case 9:  // timed out
        add({4, 8});
        break;
      default:
        break;
    }
    return frame;
  }

  // Both ends hear of it, after what had arrived.
  void disconnect(int spoke) {
    if (spoke == 0 || wire(spoke).is_cut) return;
    wire(spoke).is_cut = true;
    wire(spoke).to_hub.clear();
    wire(spoke).to_spoke.clear();
    process(0).membership.on_disconnect(spoke);
    look_at(0, 0);
    process(spoke).membership.on_disconnect(0);
    look_at(spoke, 0);
  }

  void beat_all() {
    for (int r = 0; r < world_size(); ++r) {
      if (process(r).has_left) continue;
      process(r).membership.on_beat();
      look_at(r, 0);
    }
  }

  // ---- What must hold.

  // After something happened at `rank`: a frame of so many bytes, or what its host did.
  void look_at(int rank, std::size_t received) {
    Process& p = process(rank);
    Membership& m = p.membership;
    const Failure& failure = m.failure();
    check(failure.status >= RA_STATUS_SUCCESS && failure.status <= RA_STATUS_INTERNAL_ERROR, "status ", failure.status);
    if (p.failure.status != RA_STATUS_SUCCESS) {
      check(std::memcmp(&p.failure, &failure, sizeof failure) == 0, "the failure of rank ", rank, " has changed from ",
            p.failure.message, " to ", failure.message);
    } else if (failure.status != RA_STATUS_SUCCESS) {
      // A rank that takes the group for a larger one is refused by its number.
      const bool is_of_group = failure.rank < world_size() || failure.status == RA_STATUS_MISMATCH;
      check(failure.rank >= -1 && (rank != 0 || is_of_group), "names ", failure.rank, ": ", failure.message);
      check(std::memchr(failure.message, 0, sizeof failure.message) != nullptr, "a message without an end");
      const std::string message = failure.message;
      check(!message.empty() || is_changed_, "a failure without a word");
      for (const char c : message) check(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f, "control character");
      check(is_changed_ || message.find("means nothing") == std::string::npos, message);
      std::memcpy(&p.failure, &failure, sizeof failure);
    }
    check(m.is_whole() || !p.was_whole, "a group is no longer whole");
    if (m.is_whole() && !p.was_whole) {
      p.was_whole = true;
      p.roster = m.roster();
      check(p.roster.ranks.size() == processes_.size(), "a roster of ", p.roster.ranks.size());
      for (int r = 0; r < world_size(); ++r) {
        const Hello& hello = p.roster.ranks[static_cast<std::size_t>(r)];
        check(hello.rank == r && hello.world_size == world_size(), "rank ", r, " of the roster is ", hello.rank);
        check(is_changed_ || hello == process(r).own, "rank ", r, " of the roster is another");
      }
      check(p.roster.ranks[static_cast<std::size_t>(rank)] == p.own, "rank ", rank, " is another in its own roster");
    }
    if (p.was_whole) check(m.roster().ranks.size() == processes_.size(), "the roster has changed");
    check(m.first_absent() < world_size() && (m.first_absent() >= 0 || m.is_whole() || is_over(p)), "nobody is absent");
    look_at_records(rank);
    send(rank, received);
  }

  bool is_over(const Process& p) const { return p.failure.status != RA_STATUS_SUCCESS || p.has_left; }

  // All have the same where the hub is as it was.
  void look_at_records(int rank) {
    if (rank == 0 || is_changed_) return;
    for (std::int64_t round = 0; round < 4; ++round) {
      const Bytes* const here = process(rank).membership.records(round);
      const Bytes* const there = process(0).membership.records(round);
      check(here == nullptr || there == nullptr || *here == *there, "records of round ", round, " differ");
    }
  }

  // What `rank` has to say.
  void send(int rank, std::size_t received) {
    Process& p = process(rank);
    auto frames = p.membership.take_frames();
    std::size_t bytes = 0;
    for (const auto& frame : frames) bytes += frame.bytes.size();
    const std::size_t ranks = processes_.size();
    check(frames.size() <= 4 * ranks + 2, frames.size(), " frames at once");
    check(bytes <= 4 * ranks * (1024 + received + 2 * ranks * (longest_record + longest_frame)), bytes,
          " bytes at once");
    if (std::exchange(p.is_done, is_over(p)))
      check(rank == 0 ? frames.size() <= 1 : frames.empty(), "rank ", rank, " goes on when it is over");
    for (auto& frame : frames) {
      check(!frame.bytes.empty(), "an empty frame");
      if (rank != 0) {
        check(frame.to == 0, "a spoke sends to ", frame.to);
        if (!wire(rank).is_cut) wire(rank).to_hub.push_back(std::move(frame.bytes));
        continue;
      }
      check(frame.to != 0, "the hub sends to itself");
      if (frame.to < 0 || frame.to >= world_size()) {
        check(is_changed_ && frame.bytes[0] == broken_kind, "a frame of kind ", static_cast<int>(frame.bytes[0]),
              " to rank ", frame.to);
        continue;
      }
      check(wire(frame.to).hub_heard, "sends to rank ", frame.to, ", which it has not heard");
      if (frame.bytes[0] == welcome_kind)
        check(++process(frame.to).welcomes == 1, "rank ", frame.to, " is welcomed twice");
      if (!wire(frame.to).is_cut) wire(frame.to).to_spoke.push_back(std::move(frame.bytes));
    }
  }

  // All that is under way arrives, and then nothing comes but what is said. Whoever has left is silent.
  void let_time_pass() {
    const auto is_quiet = [&](const auto& p) { return is_over(*p); };
    for (int n = 0; n < 2 * (Membership::silent_beats + 2); ++n) {
      deliver_all();
      if (std::ranges::all_of(processes_, is_quiet)) break;
      beat_all();
    }
    deliver_all();
    Process& hub = process(0);
    for (int r = 1; r < world_size(); ++r) {
      Process& spoke = process(r);
      const bool hub_failed = hub.failure.status != RA_STATUS_SUCCESS,
                 failed = spoke.failure.status != RA_STATUS_SUCCESS;
      const bool knows_that_hub_left = spoke.membership.has_left(0), hub_knows = hub.membership.has_left(r);
      if (hub_failed && wire(r).spoke_heard && !knows_that_hub_left)
        check(failed || spoke.has_left, "rank ", r, " does not know: ", hub.failure.message);
      if (failed && wire(r).hub_heard && !hub_knows)
        check(hub_failed || hub.has_left, "rank 0 does not know: ", spoke.failure.message);
    }
  }

  Input& input_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<Wire> wires_;  // by spoke; the first has none
  bool is_changed_ = false;
};

}  // namespace
}  // namespace ringattn::zeromq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ringattn::fuzz::Input input(data, size);
  ringattn::zeromq::World(input).run();
  return 0;
}
