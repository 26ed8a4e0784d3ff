// A group is one mutex, one condition variable and the posts of its members. A sender posts where its bytes lie; the
// receiver copies them (copier.h), outside the lock, when it has time (progress) or has to (wait), and marks both posts as
// copied. Where copying is only enqueued, a sender shows its posts when it has made all that there are until its next wait.
//
// Invariant: memory of a rank is touched only while a post of it stands. Posts go in two ways: a wait that succeeds finds all
// of them copied, and abandon(), in which every other way ends, withdraws those that nobody has begun and waits for the rest.
//
// The one process-wide table here is the rendezvous: ranks of a group know nothing of each other but its id.
#include "transport/local.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <random>

#include "core/memory.h"

namespace ringattn {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::minutes forgotten_after{10};  // groups that nobody is in any more, but not all ranks came to

struct Transfer {
  int peer = -1;
  std::uint64_t tag = 0;
  std::byte* data = nullptr;
  std::size_t size = 0;
  Clock::time_point begin{};
  enum { kept, posted, copying, copied, withdrawn } state = posted;  // kept: not for others to see yet
  bool is_over() const { return state == copied || state == withdrawn; }
};

struct Member {
  enum { absent, present, gone } state = absent;
  std::function<void()> on_failure;
  Copier* copier = nullptr;  // while present
  int device = Copier::host;
  Trace* trace = nullptr;
  std::vector<Transfer> sends, receives;
  std::atomic<bool> news{false};                  // something may have become ready to be copied since progress looked
  int waits_for = -1;                             // the rank whose turn it is, while this one waits
  std::int64_t gathers = 0;                       // all_gather calls entered
  std::array<std::vector<std::byte>, 2> records;  // of the last two
};

struct Group {
  explicit Group(int world_size) : members(static_cast<std::size_t>(world_size)) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Member> members;
  Failure failure;
  Clock::time_point left = Clock::now();  // when a member last came or went

  int world_size() const { return static_cast<int>(members.size()); }
  bool everyone_gone() const {
    return std::all_of(members.begin(), members.end(), [](const Member& m) { return m.state == Member::gone; });
  }
  bool anyone_present() const {
    return std::any_of(members.begin(), members.end(), [](const Member& m) { return m.state == Member::present; });
  }

  // With the lock held.
  void fail(const Failure& first) noexcept {
    if (failure.status != RA_STATUS_SUCCESS) return;
    failure = first;
    for (Member& member : members)
      if (member.state == Member::present && member.on_failure) member.on_failure();
    changed.notify_all();
  }
};

// The table of groups that are forming or alive.
struct Rendezvous {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Group>> groups;
  Clock::time_point swept{};  // when those were last looked for that are to be forgotten

  static Rendezvous& instance() {
    static Rendezvous& rendezvous = make_immortal<Rendezvous>();
    return rendezvous;
  }

  std::shared_ptr<Group> find_or_make(const std::string& id, int world_size) {
    const std::lock_guard lock(mutex);
    if (const Clock::time_point now = Clock::now();
        now - swept > forgotten_after / 10) {  // not for every group that comes
      swept = now;
      std::erase_if(groups, [&](const auto& entry) {
        const std::lock_guard group_lock(entry.second->mutex);
        return !entry.second->anyone_present() && now - entry.second->left > forgotten_after;
      });
    }
    std::shared_ptr<Group>& group = groups[id];
    if (group == nullptr) {
      try {
        group = std::make_shared<Group>(world_size);
      } catch (...) {
        groups.erase(id);
        throw;
      }
    }
    return group;
  }

  // Marks a rank as gone for good; the group goes with the last one.
  void leave(const std::string& id, const std::shared_ptr<Group>& group, int rank) noexcept {
    const std::lock_guard lock(mutex);
    const std::lock_guard group_lock(group->mutex);
    group->members[static_cast<std::size_t>(rank)].state = Member::gone;
    group->left = Clock::now();
    group->changed.notify_all();
    if (group->everyone_gone()) {
      const auto entry = groups.find(id);
      if (entry != groups.end() && entry->second == group) groups.erase(entry);
    }
  }

  // The same for a rank that could not come; one that is there already, or was, is left alone.
  void forget_if_absent(const std::string& id, const std::shared_ptr<Group>& group, int rank) noexcept {
    if (rank >= group->world_size()) return;
    {
      const std::lock_guard group_lock(group->mutex);
      if (group->members[static_cast<std::size_t>(rank)].state != Member::absent) return;
    }
    leave(id, group, rank);
  }
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::string id, std::shared_ptr<Group> group, int rank, std::int64_t timeout_ms,
                 std::unique_ptr<Copier> copier)
      : id_(std::move(id)),
        group_(std::move(group)),
        rank_(rank),
        timeout_ms_(timeout_ms),
        copier_(std::move(copier)) {}
  LocalTransport(const LocalTransport&) = delete;
  LocalTransport& operator=(const LocalTransport&) = delete;
  ~LocalTransport() override {
    abandon();
    trace_to(nullptr);
    Rendezvous::instance().leave(id_, group_, rank_);
  }

  std::vector<std::byte> all_gather(std::span<const std::byte> record) override {
    std::unique_lock lock(group_->mutex);
    Member& me = member(rank_);
    const auto slot = [](std::int64_t round) { return static_cast<std::size_t>(round % 2); };
    me.records[slot(me.gathers)].assign(record.begin(), record.end());
    const std::int64_t round = ++me.gathers;
    group_->changed.notify_all();
    wait_until(lock, [&] {
      for (int r = 0; r < group_->world_size(); ++r)
        if (member(r).gathers < round) return r;
      return -1;
    });
    std::vector<std::byte> all;
    all.reserve(record.size() * group_->members.size());
    for (const Member& m : group_->members) {
      const auto& theirs = m.records[slot(round - 1)];
      all.insert(all.end(), theirs.begin(), theirs.end());
    }
    return all;
  }

  void send(int peer, std::uint64_t tag, std::span<const std::byte> data) override {
    offer();
    const std::lock_guard lock(group_->mutex);
    // The bytes are only read; one Transfer serves both directions.
    member(rank_).sends.push_back({peer, tag, const_cast<std::byte*>(data.data()), data.size(), Clock::now(),
                                   copier_->enqueues() ? Transfer::kept : Transfer::posted});
    if (copier_->enqueues()) {
      keeps_ = true;
      return;
    }
    member(peer).news = true;
    group_->changed.notify_all();
  }

  void receive(int peer, std::uint64_t tag, std::span<std::byte> data) override {
    offer();
    const std::lock_guard lock(group_->mutex);
    member(rank_).receives.push_back({peer, tag, data.data(), data.size(), Clock::now()});
    member(rank_).news = true;
  }

  void progress() override {
    if (copier_->enqueues()) return publish();  // copies need no thread once wait() has enqueued them
    std::atomic<bool>& news = member(rank_).news;
    if (!news.load(std::memory_order_relaxed) || !news.exchange(false)) return;
    std::unique_lock lock(group_->mutex);
    copy_ready(lock);
  }

  void wait() override {
    Member& me = member(rank_);
    try {
      publish();
      std::unique_lock lock(group_->mutex);
      wait_until(lock, [&] {
        copy_ready(lock);
        for (const auto* transfers : {&me.receives, &me.sends})
          for (const Transfer& t : *transfers)
            if (t.state != Transfer::copied) return t.peer;
        return -1;
      });
      if (!me.sends.empty()) copier_->end_sends();
      clear();
    } catch (...) {
      abandon();
      throw;
    }
  }

  void abandon() noexcept override {
    std::unique_lock lock(group_->mutex);
    Member& me = member(rank_);
    for (auto* transfers : {&me.sends, &me.receives}) {
      for (Transfer& t : *transfers)
        if (t.state == Transfer::kept || t.state == Transfer::posted) t.state = Transfer::withdrawn;
      group_->changed.wait(lock, [&] {
        return std::all_of(transfers->begin(), transfers->end(), [](const Transfer& t) { return t.is_over(); });
      });
    }
    if (std::any_of(me.sends.begin(), me.sends.end(), [](const Transfer& t) { return t.state == Transfer::copied; }))
      try {
        copier_->end_sends();
      } catch (const std::exception&) {
        // Nothing can be enqueued any more, and so nothing that would use the memory.
      }
    clear();
  }

  // Copies that are only enqueued end unseen.
  void trace_to(Trace* trace) override {
    const std::lock_guard lock(group_->mutex);
    member(rank_).trace = copier_->enqueues() ? nullptr : trace;
  }

  void fail(const Failure& failure) noexcept override {
    const std::lock_guard lock(group_->mutex);
    group_->fail(failure);
  }

  Failure failure() const noexcept override {
    const std::lock_guard lock(group_->mutex);
    return group_->failure.seen_by(rank_);
  }

  // Blocks until every rank has come.
  void join() {
    std::unique_lock lock(group_->mutex);
    wait_until(lock, [&] {
      for (int r = 0; r < group_->world_size(); ++r)
        if (member(r).state == Member::absent) return r;
      return -1;
    });
    std::vector<int> devices;
    for (const Member& m : group_->members) devices.push_back(m.device);
    lock.unlock();
    for (const int device : devices) copier_->meet(device);
  }

 private:
  Member& member(int rank) { return group_->members[static_cast<std::size_t>(rank)]; }

  // Waits until blocking_rank() says that no rank is in the way any more (-1). It may leave the lock for a while, so it comes
  // first: from what is looked at after it until the wait, nothing can change unseen.
  template <class F>
  void wait_until(std::unique_lock<std::mutex>& lock, F&& blocking_rank) {
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms_);
    for (bool late = false;;) {
      const int blocker = blocking_rank();
      if (group_->failure.status != RA_STATUS_SUCCESS) throw group_->failure.seen_by(rank_).to_error();
      member(rank_).waits_for = blocker;
      if (blocker < 0) return;
      if (member(blocker).state == Member::gone) {
        group_->fail(left_while_waited_for(blocker, rank_));
        continue;
      }
      if (late) {
        const int culprit = first_cause(blocker);
        group_->fail(
            {RA_STATUS_TIMEOUT, culprit,
             text("rank ", culprit, " did not come within timeout_ms = ", timeout_ms_, " (rank ", rank_, " waited)")});
        continue;
      }
      late = group_->changed.wait_until(lock, deadline) == std::cv_status::timeout;
    }
  }

  // The rank that all this waiting is for: the end of the chain of those that wait for each other.
  int first_cause(int rank) {
    for (int hops = 0; hops < group_->world_size() && member(rank).waits_for >= 0; ++hops)
      rank = member(rank).waits_for;
    return rank;
  }

  // Takes what has been posted to this rank. Every copy leaves the lock for a while in which more may be posted, so the search
  // begins anew after each.
  void copy_ready(std::unique_lock<std::mutex>& lock) {
    while (copy_one(lock)) continue;
  }

  // Takes what one rank has for this one: a transfer, or all that there are where copying is only enqueued.
  bool copy_one(std::unique_lock<std::mutex>& lock) {
    if (group_->failure.status != RA_STATUS_SUCCESS) return false;
    constexpr std::size_t most = 4;
    std::array<Copier::Piece, most> pieces;
    struct Pair {
      std::size_t send, receive;
    };
    std::array<Pair, most> pairs;
    std::size_t count = 0;
    int sender = -1;
    std::vector<Transfer>& receives = member(rank_).receives;
    for (std::size_t receive = 0; receive < receives.size() && count < (copier_->enqueues() ? most : 1); ++receive) {
      const Transfer& mine = receives[receive];
      if (mine.state != Transfer::posted || (sender >= 0 && mine.peer != sender)) continue;
      const std::vector<Transfer>& posts = member(mine.peer).sends;
      const auto post = std::find_if(posts.begin(), posts.end(), [&](const Transfer& t) {
        return t.peer == rank_ && t.tag == mine.tag && t.state == Transfer::posted;
      });
      if (post == posts.end()) continue;
      if (post->size != mine.size) {
        group_->fail(
            {RA_STATUS_MISMATCH, -1,
             text("rank ", mine.peer, " sends ", post->size, " bytes where rank ", rank_, " expects ", mine.size)});
        return false;
      }
      sender = mine.peer;
      pieces[count] = {mine.data, post->data, mine.size};
      pairs[count++] = {static_cast<std::size_t>(post - posts.begin()), receive};
    }
    if (count == 0) return false;

    const auto mark = [&](auto state) {
      for (std::size_t i = 0; i < count; ++i)
        receives[pairs[i].receive].state = member(sender).sends[pairs[i].send].state = state;
    };
    mark(Transfer::copying);
    Copier& from = *member(sender).copier;
    lock.unlock();
    bool copied = false;
    const auto end = [&] {
      lock.lock();
      mark(copied ? Transfer::copied : Transfer::withdrawn);
      for (std::size_t i = 0; i < count && copied; ++i) {
        trace(rank_, false, receives[pairs[i].receive]);
        trace(sender, true, member(sender).sends[pairs[i].send]);
      }
      group_->changed.notify_all();
    };
    try {
      copier_->copy(from, {pieces.data(), count});
      copied = true;
    } catch (...) {
      end();
      throw;
    }
    end();
    return true;
  }

  void trace(int rank, bool sends, const Transfer& t) {
    if (member(rank).trace != nullptr) member(rank).trace->transfer(sends, t.peer, t.size, t.begin);
  }

  // This rank's memory may be used from here on, as far as what is enqueued leaves it to others.
  void offer() {
    if (is_offered_) return;
    copier_->offer();
    is_offered_ = true;
  }

  // Shows the others what is kept.
  void publish() {
    if (!keeps_) return;
    copier_->publish();
    keeps_ = false;
    const std::lock_guard lock(group_->mutex);
    for (Transfer& t : member(rank_).sends)
      if (t.state == Transfer::kept) t.state = Transfer::posted;
    group_->changed.notify_all();
  }

  void clear() {
    member(rank_).sends.clear();
    member(rank_).receives.clear();
    is_offered_ = keeps_ = false;
  }

  std::string id_;
  std::shared_ptr<Group> group_;
  int rank_;
  std::int64_t timeout_ms_;
  std::unique_ptr<Copier> copier_;
  bool is_offered_ = false;
  bool keeps_ = false;  // transfers
};

class HostCopier final : public Copier {
 public:
  void copy(Copier&, std::span<const Piece> pieces) override {
    for (const Piece& piece : pieces)
      if (piece.size > 0) std::memcpy(piece.to, piece.from, piece.size);
  }
};

std::string hexadecimal(int words) {
  std::random_device random;
  std::string digits;
  for (int i = 0; i < words; ++i) {
    char word[9];
    std::snprintf(word, sizeof word, "%08x", random());
    digits += word;
  }
  return digits;
}

constexpr const char* id_prefix = "ringattn-local-";
constexpr std::size_t id_digits = 32;

// Tells this process from every other; a child after fork differs by its process number.
std::string own_prefix() {
  static const std::string& token = make_immortal<std::string>(hexadecimal(2));
  return text(id_prefix, getpid(), "-", token, "-");
}

}  // namespace

std::string make_local_id() { return own_prefix() + hexadecimal(4); }

bool is_local_id(const std::string& id) { return id.starts_with(id_prefix); }

bool is_own_local_id(const std::string& id) {
  const std::string prefix = own_prefix();
  return id.starts_with(prefix) && id.size() == prefix.size() + id_digits &&
         id.find_first_not_of("0123456789abcdef", prefix.size()) == std::string::npos;
}

static int to_backend(int device) { return device == Copier::host ? RA_BACKEND_CPU : RA_BACKEND_CUDA; }

std::unique_ptr<Copier> make_host_copier() { return std::make_unique<HostCopier>(); }

std::unique_ptr<Transport> join_local(const std::string& id, int world_size, int rank, std::int64_t timeout_ms,
                                      std::function<void()> on_failure, std::unique_ptr<Copier> copier) {
  const std::shared_ptr<Group> group = Rendezvous::instance().find_or_make(id, world_size);
  std::unique_ptr<LocalTransport> transport;
  try {
    const std::lock_guard lock(group->mutex);
    const auto refuse = [&](const std::string& message) {
      const bool forming = std::any_of(group->members.begin(), group->members.end(),
                                       [](const Member& m) { return m.state == Member::absent; });
      if (forming) group->fail({RA_STATUS_MISMATCH, rank, message});  // a complete group is not to be disturbed
      throw Error(RA_STATUS_MISMATCH, message, rank);
    };
    if (world_size != group->world_size())
      refuse(text("world_size is ", world_size, " on rank ", rank, " but ", group->world_size(),
                  " on the ranks before it"));
    Member& me = group->members[static_cast<std::size_t>(rank)];
    if (me.state != Member::absent)
      refuse(text("rank is ", rank,
                  ", which already joined or was refused; each rank comes once, and a new group needs a new id"));
    for (int r = 0; r < world_size; ++r) {
      const Member& other = group->members[static_cast<std::size_t>(r)];
      if (other.state == Member::present && (other.device == Copier::host) != (copier->device() == Copier::host))
        refuse(text("backend is ", to_backend(copier->device()), " on rank ", rank, " but ", to_backend(other.device),
                    " on rank ", r));
    }
    me.device = copier->device();
    me.copier = copier.get();
    transport = std::make_unique<LocalTransport>(id, group, rank, timeout_ms, std::move(copier));
    me.sends.reserve(4);
    me.receives.reserve(4);
    me.on_failure = std::move(on_failure);
    me.state = Member::present;
    group->left = Clock::now();
    group->changed.notify_all();
  } catch (...) {
    Rendezvous::instance().forget_if_absent(id, group, rank);
    throw;
  }
  transport->join();
  return transport;
}

void refuse_local(const std::string& id, int world_size, int rank, ra_status status, const char* message) noexcept {
  try {
    const std::shared_ptr<Group> group = Rendezvous::instance().find_or_make(id, world_size);
    if (rank >= group->world_size()) return;
    {
      const std::lock_guard lock(group->mutex);
      if (group->members[static_cast<std::size_t>(rank)].state == Member::present) return;  // another's place
      group->fail({status, rank, message});
    }
    Rendezvous::instance().leave(id, group, rank);
  } catch (...) {
    // No memory even for this: the others find out by their time-outs.
  }
}

}  // namespace ringattn
