// What happens to bytes on their way between ranks: flipped bits, cut connections, bytes and frames that are lost, repeated, out of order or
// of another time. Each rank has the result that it would have had anyway, to the bit, or an error that names a rank.
//
// A trial is one group of ranks that are threads of this process, which compute forward and backward through a proxy (support/proxy.h);
// the proxy does one thing to one unit of one connection. Whether that has to be noticed, the trial knows from what it did:
//
//   a piece of data (seal.h) that does not come as it was sent      always: somebody waits for it
//   something more after it, or in between                          if anything comes behind it, or if a piece is to
//   a message of the control plane that is not the next as sent     if a collective call is still to begin, which needs that connection
//
// All else may be harmless: what ZeroMQ tries again, a beat that is lost, what comes when all is done.
//
//   RINGATTN_TEST_FULL=1    20,000 trials, more than half of which have to be noticed
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/error.h"
#include "support/proxy.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Random = std::mt19937_64;

// ---------------------------------------------------------------- a group that computes

struct Case {
  int world_size;
  std::int32_t encryption;
  ra_attention_desc desc;
};

// What one rank writes.
struct Outputs {
  explicit Outputs(const Shard& s)
      : out(same_shape(s.out)),
        lse(same_shape(s.lse)),
        dq(same_shape(s.dq)),
        dk(same_shape(s.dk)),
        dv(same_shape(s.dv)) {}
  Tensor out, lse, dq, dk, dv;

 private:
  static Tensor same_shape(const Tensor& t) { return {t.dtype, t.batch, t.seq, t.heads, t.dim, t.layout}; }
};

// How far a rank came: calls that ended well (0: it has no context; 1: it has joined; 2: forward; 3: backward), and what ended it.
struct Outcome {
  int calls = 0;
  ra_status status = RA_STATUS_SUCCESS;
  int rank = -1;
  std::string message;
  Clock::duration longest_call{}, destroy{};
};

constexpr std::array calls{"ra_create_context", "ra_forward", "ra_backward"};

class Group {
 public:
  Group(const Case& c, const std::vector<Shard>& shards) : case_(c), shards_(shards) {
    for (const Shard& shard : shards) outputs.emplace_back(shard);
    outcomes.resize(shards.size());
  }

  void run(Proxy& proxy, std::int64_t timeout_ms) {
    const ra_unique_id id = make_unique_id(RA_TRANSPORT_ZEROMQ);
    secret_ = std::string(id.text).substr(std::strlen(id.text) - 64);
    run_threads(case_.world_size, [&](std::int32_t rank) {
      ra_context_config config = make_config(case_.world_size, rank, &id);
      config.transport = RA_TRANSPORT_ZEROMQ;
      config.encryption = case_.encryption;
      config.timeout_ms = timeout_ms;
      config.bind_address = "127.0.0.1";  // TCP within a machine, too
      const Proxy::Client client(proxy, rank);
      live(config);
    });
  }

  bool is_last_call() const { return last_calls_ > 0; }  // whether any rank has begun it
  const std::string& secret() const { return secret_; }  // hexadecimal

  std::vector<Outputs> outputs;
  std::vector<Outcome> outcomes;

 private:
  void live(const ra_context_config& config) {
    Outcome& outcome = outcomes[static_cast<std::size_t>(config.rank)];
    const Shard& shard = shards_[static_cast<std::size_t>(config.rank)];
    Outputs& to = outputs[static_cast<std::size_t>(config.rank)];
    Error error;
    Context context;
    const auto call = [&](auto&& f) {
      const auto begin = Clock::now();
      const bool is_good = f();
      outcome.longest_call = std::max(outcome.longest_call, Clock::now() - begin);
      if (is_good) {
        ++outcome.calls;
      } else {
        // A group that broke between two calls: the reason is the same.
        if (error.status == RA_STATUS_INVALID_STATE) ra_get_async_error(context.get(), &error);
        outcome.status = static_cast<ra_status>(error.status);
        outcome.rank = error.rank;
        outcome.message = error.text();
      }
      return is_good;
    };
    const auto create = [&] { return (context = Context(ra_create_context(&config, &error))) != nullptr; };
    const auto forward = [&] {
      ra_forward_args args = shard.forward_args();
      args.out = to.out.view();
      args.lse = lse(to);
      return ra_forward(context.get(), &shard.desc, &args, &error) == RA_STATUS_SUCCESS;
    };
    const auto backward = [&] {
      ++last_calls_;
      ra_backward_args args = shard.backward_args();
      args.out = to.out.view();
      args.lse = lse(to);
      args.dq = to.dq.view();
      args.dk = to.dk.view();
      args.dv = to.dv.view();
      return ra_backward(context.get(), &shard.desc, &args, &error) == RA_STATUS_SUCCESS;
    };
    call(create) && call(forward) && call(backward);
    const auto begin = Clock::now();
    context.reset();
    outcome.destroy = Clock::now() - begin;
  }
  static float* lse(const Outputs& outputs) { return reinterpret_cast<float*>(outputs.lse.bytes.get()); }

  const Case& case_;
  const std::vector<Shard>& shards_;
  std::string secret_;
  std::atomic<int> last_calls_{0};
};

// A case, what its ranks compute when nobody disturbs them, and all that they send then.
struct Baseline {
  explicit Baseline(const Case& c) : of(c) {
    for (int rank = 0; rank < c.world_size; ++rank) shards.emplace_back(c.desc, c.world_size, rank);
    group = std::make_unique<Group>(of, shards);
    {
      Proxy proxy([&](const Unit& unit) {
        streams[unit.stream].push_back(unit);
        return Passage{unit.bytes};
      });
      group->run(proxy, 60'000);
    }
    for (const Outcome& outcome : group->outcomes)
      EXPECT_EQ(outcome.calls, std::ssize(calls)) << ra_get_status_name(outcome.status) << ": " << outcome.message;
  }

  const Case of;
  std::vector<Shard> shards;
  std::unique_ptr<Group> group;
  std::map<Stream, std::vector<Unit>> streams;
};

Case make_case(int world_size, bool encrypts, bool is_large) {
  Case c{world_size, encrypts ? RA_ENCRYPTION_ON : RA_ENCRYPTION_OFF, make_desc(8 * world_size, 2, 8)};
  c.desc.mask = RA_MASK_CAUSAL;
  c.desc.sharding = RA_SHARDING_ZIGZAG;
  c.desc.num_chunks = 2;
  if (is_large) {  // transfers of several pieces
    c.desc.batch = 24;
    c.desc.num_heads_q = 8;
    c.desc.head_dim = 128;
    c.desc.num_chunks = 1;
  }
  return c;
}

// ---------------------------------------------------------------- what is done to a unit

enum Kind {
  flip_bits,
  cut_connection,
  lose_bytes,
  lose_frame,
  repeat_bytes,
  repeat_frame,
  swap_frames,
  replay_own,      // a frame of before in the same stream
  replay_another,  // one of another stream of the group
  replay_earlier,  // the same frame of a group of before
  kinds
};
constexpr std::array kind_names{"flip bits",    "cut connection", "lose bytes", "lose frame",     "repeat bytes",
                                "repeat frame", "swap frames",    "replay own", "replay another", "replay earlier"};

struct Fault {
  Kind kind;
  Stream stream;
  int number;        // of the unit
  bool is_inserted;  // of what is replayed: before the unit, or else in its place
  std::string name() const {
    return text(kind_names[kind], kind >= replay_own ? (is_inserted ? " before" : " for") : " in", " unit ", number,
                stream.forth ? " from" : " to", " rank ", stream.rank, ", its connection ", stream.connection);
  }
};

constexpr int first_piece = Unit::greetings + 1;    // on a connection of data, after READY
constexpr int first_message = Unit::greetings + 2;  // of the control plane, after CURVE's two

Fault draw_fault(Random& random, const Baseline& baseline) {
  const auto below = [&](std::size_t end) { return static_cast<std::size_t>(random() % end); };
  const bool is_control = random() % 3 == 0;
  std::vector<Stream> streams;
  for (const auto& [stream, units] : baseline.streams)
    if (stream.is_control() == is_control)
      streams.insert(streams.end(), stream.forth || is_control ? 8 : 1, stream);  // nothing comes back where data go
  const Stream stream = streams[below(streams.size())];
  const std::size_t end = baseline.streams.at(stream).size();
  const std::size_t begin = std::min<std::size_t>(is_control ? first_message : first_piece, end - 1);
  const std::size_t number = below(4) == 0 ? below(end) : begin + below(end - begin);
  return {static_cast<Kind>(below(kinds)), stream, static_cast<int>(number), below(2) == 0};
}

// Does it, once.
class Bender {
 public:
  Bender(const Fault& fault, const Baseline& baseline, const Group& group, std::uint64_t seed)
      : fault_(fault), baseline_(baseline), group_(group), random_(seed) {}

  Passage operator()(const Unit& unit) {
    const bool is_here = unit.stream == fault_.stream;
    if (is_here && has_struck) {
      is_followed = true;
      return {unit.bytes + std::exchange(held_, {})};
    }
    if (!is_here || unit.number != fault_.number) {
      (is_here ? own_ : others_).push_back(unit.bytes);
      return {unit.bytes};
    }
    has_struck = true;
    is_before_last_call = !group_.is_last_call();
    const Passage passage = strike(unit);
    // Bits 3 to 7 of a frame's flags mean nothing.
    const auto is_equal = [&](std::size_t at) {
      const int difference = passage.bytes[at] ^ unit.bytes[at];
      return (unit.number >= Unit::greetings && at == 0 ? difference & 7 : difference) == 0;
    };
    is_intact = passage.bytes.size() >= unit.bytes.size();
    for (std::size_t at = 0; is_intact && at < unit.bytes.size(); ++at) is_intact = is_equal(at);
    has_more = passage.bytes.size() > unit.bytes.size();
    is_unchanged = is_intact && !has_more && !passage.is_end;
    return passage;
  }

  bool has_struck = false, is_followed = false, is_before_last_call = false;
  bool is_intact = true, has_more = false, is_unchanged = true;
  bool is_command = false;  // what is inserted: ZeroMQ takes no notice of one that it does not expect

 private:
  std::size_t below(std::size_t end) { return static_cast<std::size_t>(random_() % end); }

  Passage strike(const Unit& unit) {
    const std::string& bytes = unit.bytes;
    // Half of all places are in the headers, which are few bytes.
    const std::size_t head = std::min<std::size_t>(bytes.size(), unit.header + 64);
    const std::size_t at = below(below(2) == 0 ? head : bytes.size()), length = 1 + below(bytes.size() - at);
    std::string changed = bytes;
    switch (fault_.kind) {
      case flip_bits:
        for (std::size_t n = 0, count = 1 + below(2); n < count; ++n)
          changed[n == 0 ? at : below(bytes.size())] ^= static_cast<char>(1 << below(8));
        return {changed};
      case cut_connection:
        return {changed.substr(0, at), true};
      case lose_bytes:
        return {changed.erase(at, length)};
      case lose_frame:
        return {};
      case repeat_bytes:
        return {changed.insert(at + length, bytes.substr(at, length))};
      case repeat_frame:
        return {bytes + bytes};
      case swap_frames:
        held_ = bytes;
        return {};
      case replay_own:
        return replay(bytes, own_);
      case replay_another:
        return replay(bytes, others_);
      default:
        return replay(bytes, {baseline_.streams.at(fault_.stream)[static_cast<std::size_t>(fault_.number)].bytes});
    }
  }
  Passage replay(const std::string& bytes, const std::vector<std::string>& recorded) {
    if (recorded.empty()) return {bytes};
    const std::string& again = recorded[below(recorded.size())];
    if (!fault_.is_inserted) return {again};
    is_command = (again[0] & 4) != 0;
    return {again + bytes};
  }

  const Fault fault_;
  const Baseline& baseline_;
  const Group& group_;
  Random random_;
  std::string held_;
  std::vector<std::string> own_, others_;  // that have gone by
};

bool must_be_noticed(const Fault& fault, const Bender& bender) {
  const bool is_replay_before = fault.kind >= replay_own && fault.is_inserted;
  if (!fault.stream.is_control()) {
    if (!fault.stream.forth || fault.number < first_piece) return false;
    // Before the first piece a connection is nobody's, and what is no piece is as good as a stranger's.
    if (is_replay_before && (fault.number == first_piece || bender.is_command)) return false;
    // In the last call a rank may have gone before what is more is read. That accuses nobody then (connections.h).
    return !bender.is_intact || (bender.has_more && bender.is_followed && bender.is_before_last_call);
  }
  return fault.number >= first_message && fault.kind != lose_frame && fault.kind != swap_frames &&
         fault.kind != cut_connection && bender.is_before_last_call && !bender.is_intact && !bender.is_command;
}

// ---------------------------------------------------------------- trials

constexpr std::int64_t timeout_ms = slowness > 1 ? 2000 : 400;
// Of a call that ends by its time-out: until the hub has said whose fault that is, and for a loaded machine.
constexpr auto slack = (slowness > 1 ? 30s : 10s) + 1500ms;

struct Tally {
  int noticed = 0, harmless = 0, absent = 0;
};

class Wire : public testing::Test {
 protected:
  void trial(int n, std::uint64_t seed, const Baseline& baseline) {
    Random random(seed * 1'000'003 + static_cast<unsigned>(n));
    const Fault fault = draw_fault(random, baseline);
    Group group(baseline.of, baseline.shards);
    Bender bender(fault, baseline, group, random());
    {
      Proxy proxy([&](const Unit& unit) { return bender(unit); });
      group.run(proxy, timeout_ms);
    }
    bool is_noticed = false;
    std::string all;
    for (int rank = 0; rank < baseline.of.world_size; ++rank) {
      const Outcome& o = group.outcomes[static_cast<std::size_t>(rank)];
      is_noticed |= o.status != RA_STATUS_SUCCESS;
      all += text("\n  rank ", rank, " after ", o.calls, " calls: ", ra_get_status_name(o.status), " (rank ", o.rank,
                  ") ", o.message);
    }
    const std::lock_guard lock(mutex_);
    SCOPED_TRACE(text("trial ", n, " (RINGATTN_TEST_CASE=", n, "), world size ", baseline.of.world_size,
                      ", encryption ", baseline.of.encryption, ": ", fault.name(), all));
    for (int rank = 0; rank < baseline.of.world_size; ++rank) check(rank, baseline, group, fault, bender);
    if (bender.has_struck && must_be_noticed(fault, bender)) {
      ++must_;
      EXPECT_TRUE(is_noticed) << "nobody has noticed";
    }
    Tally& tally = tallies_[fault.kind][fault.stream.is_control() ? 1 : 0];
    ++(!bender.has_struck || bender.is_unchanged ? tally.absent : is_noticed ? tally.noticed : tally.harmless);
  }

  void check(int rank, const Baseline& baseline, const Group& group, const Fault& fault, const Bender& bender) {
    const std::size_t r = static_cast<std::size_t>(rank);
    const Outcome& o = group.outcomes[r];
    EXPECT_LT(o.longest_call, timeout_ms * 1ms + slack) << "rank " << rank;
    EXPECT_LT(o.destroy, timeout_ms * 1ms + slack) << "rank " << rank;
    const Outputs &is = group.outputs[r], &should = baseline.group->outputs[r];
    if (o.calls >= 2) {
      EXPECT_TRUE(same_bits(is.out, should.out) && same_bits(is.lse, should.lse)) << "rank " << rank;
    }
    if (o.calls >= 3) {
      EXPECT_TRUE(same_bits(is.dq, should.dq) && same_bits(is.dk, should.dk) && same_bits(is.dv, should.dv))
          << "rank " << rank;
      return;
    }
    ++statuses_[o.status];
    EXPECT_TRUE(o.status == RA_STATUS_PEER_LOST || o.status == RA_STATUS_TIMEOUT || o.status == RA_STATUS_MISMATCH);
    EXPECT_NE(o.message.find("rank "), std::string::npos);
    EXPECT_LT(o.rank, baseline.of.world_size);
    EXPECT_GE(o.rank, o.status == RA_STATUS_MISMATCH ? -1 : 0);
    // A link is named by the rank that sends; nothing is wrong with those that nobody has touched. But a connection is whose piece it
    // brings first.
    if (o.message.find("the link from rank") != std::string::npos) {
      EXPECT_TRUE(bender.has_struck && !bender.is_unchanged && !fault.stream.is_control());
      EXPECT_TRUE(o.rank == fault.stream.rank || (fault.kind == replay_another && fault.number <= first_piece));
    }
  }

  void report() const {
    std::cout << std::left << std::setw(16) << "" << std::right << std::setw(28) << "data: noticed, harmless"
              << std::setw(28) << "control: noticed, harmless" << std::setw(16) << "did not come" << '\n';
    std::array<Tally, 2> sum;
    const auto line = [](const std::string& name, const std::array<Tally, 2>& row) {
      std::cout << std::left << std::setw(16) << name << std::right << std::setw(19) << row[0].noticed << std::setw(9)
                << row[0].harmless << std::setw(19) << row[1].noticed << std::setw(9) << row[1].harmless
                << std::setw(16) << row[0].absent + row[1].absent << '\n';
    };
    for (const auto& [kind, row] : tallies_) {
      line(kind_names[kind], row);
      for (std::size_t i = 0; i < 2; ++i) {
        sum[i].noticed += row[i].noticed;
        sum[i].harmless += row[i].harmless;
        sum[i].absent += row[i].absent;
      }
    }
    line("together", sum);
    std::cout << must_ << " had to be noticed; ranks were told";
    for (const auto& [status, count] : statuses_) std::cout << ' ' << ra_get_status_name(status) << ' ' << count;
    std::cout << '\n';
  }

 private:
  std::mutex mutex_;
  std::map<Kind, std::array<Tally, 2>> tallies_;  // of data, of control
  std::map<ra_status, int> statuses_;
  int must_ = 0;
};

TEST_F(Wire, FaultsAreNoticedOrHarmless) {
  const std::uint64_t seed = test::seed();
  std::vector<std::unique_ptr<Baseline>> baselines;
  for (const bool encrypts : {true, false})
    for (const int world_size : {2, 3})
      for (const bool is_large : {false, true})
        baselines.push_back(std::make_unique<Baseline>(make_case(world_size, encrypts, is_large)));
  if (HasFailure()) return;
  const int trials = full() ? 20'000 : std::max(sample(600), 60);
  std::atomic<int> next{0};
  std::vector<std::thread> workers;
  const int at_once = slowness > 1 ? 8 : 32;  // a third of the trials wait for their time-out
  for (int w = 0; w < at_once; ++w)
    workers.emplace_back([&] {
      for (int n; (n = next++) < trials;) {
        if (!chosen(n)) continue;
        // One in sixteen has several pieces.
        const auto which = static_cast<std::size_t>(n % 4 * 2 + (n % 64 < 4 ? 1 : 0));
        trial(n, seed, *baselines[which]);
      }
    });
  for (std::thread& worker : workers) worker.join();
  report();
}

// ---------------------------------------------------------------- what can be read

// All that is 16 bytes long in it.
std::set<std::string_view> windows(std::string_view bytes) {
  std::set<std::string_view> all;
  for (std::size_t at = 0; at + 16 <= bytes.size(); ++at) all.insert(bytes.substr(at, 16));
  return all;
}

std::string_view view(const Tensor& tensor) { return {reinterpret_cast<const char*>(tensor.bytes.get()), tensor.size}; }

TEST_F(Wire, ShowsNothingOfKeysAndValues) {
  for (const bool encrypts : {true, false})
    for (const int world_size : {2, 3}) {
      const Baseline baseline(make_case(world_size, encrypts, false));
      if (HasFailure()) return;
      std::set<std::string_view> plain, secret;
      for (const Shard& shard : baseline.shards)
        for (const Tensor* tensor : {&shard.k, &shard.v}) plain.merge(windows(view(*tensor)));
      const std::string digits = baseline.group->secret();
      std::string binary;
      for (std::size_t at = 0; at < digits.size(); at += 2)
        binary += static_cast<char>(std::stoi(digits.substr(at, 2), nullptr, 16));
      ASSERT_EQ(binary.size(), 32u);
      for (const std::string& form : {std::cref(digits), std::cref(binary)}) secret.merge(windows(form));

      int seen = 0, data_streams = 0, showing = 0;
      for (const auto& [stream, units] : baseline.streams) {
        std::string all;
        for (const Unit& unit : units) all += unit.bytes;
        bool shows = false;
        for (const std::string_view window : windows(all)) {
          shows |= plain.contains(window);
          EXPECT_FALSE(secret.contains(window)) << "the secret goes over the wire";
        }
        seen += static_cast<int>(all.size());
        data_streams += !stream.is_control() && stream.forth ? 1 : 0;
        showing += shows ? 1 : 0;
        EXPECT_FALSE(shows && (encrypts || stream.is_control() || !stream.forth))
            << "rank " << stream.rank << ", connection " << stream.connection;
      }
      EXPECT_EQ(std::ssize(baseline.streams), 2 * (world_size * (world_size - 1) + world_size - 1));
      EXPECT_EQ(data_streams, world_size * (world_size - 1));
      // A ring: each sends to the next. What this test looks for can be found.
      EXPECT_EQ(showing, encrypts ? 0 : world_size) << seen << " bytes";
    }
}

}  // namespace
}  // namespace ringattn::test
