#include "fault/rank_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/decode.h"
#include "support/ranks.h"

extern char** environ;

namespace ringattn::test {
namespace {

using namespace std::chrono_literals;
using Milliseconds = std::chrono::milliseconds;

// ---------------------------------------------------------------- what a rank computes

// A problem by its name: what takes long in it.
ra_attention_desc describe(const std::string& name) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.num_heads_q = 2;
  desc.head_dim = 64;
  desc.schedule = RA_SCHEDULE_RING;
  if (name == "traffic") {  // each hop takes several pieces of the transport's
    desc.seqlen_q = 64;
    desc.seqlen_kv = 8192;
    desc.head_dim = 128;
  } else {
    desc.seqlen_q = name == "check" ? 203 : 1024;
    desc.mask = RA_MASK_CAUSAL;
    desc.sharding = RA_SHARDING_ZIGZAG;
    if (name == "gather") desc.schedule = RA_SCHEDULE_ALL_GATHER;
  }
  return desc;
}

// One rank's tensors, or the whole problem's: those of one rank of one.
struct Tensors {
  Tensors(const ra_attention_desc& desc, std::int32_t world_size, std::int32_t rank) {
    const auto shard = [&](std::int32_t side) {
      return static_cast<std::size_t>(ra_get_shard_length(&desc, world_size, rank, side, nullptr));
    };
    const std::size_t rows = static_cast<std::size_t>(desc.num_heads_q) * shard(RA_SIDE_QUERY);
    const auto dim = static_cast<std::size_t>(desc.head_dim);
    for (auto* const t : {&q, &out, &dout, &dq}) t->resize(rows * dim);
    for (auto* const t : {&k, &v, &dk, &dv})
      t->resize(static_cast<std::size_t>(desc.num_heads_q) * shard(RA_SIDE_KEY_VALUE) * dim);
    lse.resize(rows);
  }

  void fill(std::uint64_t seed) {
    std::uint64_t state = seed * 4 + 1;
    for (auto* const t : {&q, &k, &v, &dout})
      for (float& x : *t) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x = static_cast<float>(static_cast<double>(state >> 40) / (1 << 24) - 0.5);
      }
  }

  ra_status forward(ra_context* context, const ra_attention_desc& desc, Error& error) {
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q.data = q.data();
    args.k.data = k.data();
    args.v.data = v.data();
    args.out.data = out.data();
    args.lse = lse.data();
    return ra_forward(context, &desc, &args, &error);
  }
  ra_status backward(ra_context* context, const ra_attention_desc& desc, Error& error) {
    ra_backward_args args;
    ra_init_backward_args(&args, sizeof args);
    args.dout.data = dout.data();
    args.q.data = q.data();
    args.k.data = k.data();
    args.v.data = v.data();
    args.out.data = out.data();
    args.lse = lse.data();
    args.dq.data = dq.data();
    args.dk.data = dk.data();
    args.dv.data = dv.data();
    return ra_backward(context, &desc, &args, &error);
  }

  std::vector<float> q, k, v, out, lse, dout, dq, dk, dv;
};

// A cache, and this rank's context, whose ranks do the same: what they do in a step is drawn from its number.
class CachedRank {
 public:
  CachedRank(const Members& members, std::uint64_t seed)
      : seed_(seed), desc_(describe_cache()), caches_(members, desc_) {
    reference::Random random = random_of(-1);
    const std::int64_t a = caches_.create(), b = caches_.create();
    caches_.append(random, {a, b}, {reference::draw(random, 1, most_tokens), reference::draw(random, 1, most_tokens)});
    caches_.fork(a);
  }

  std::int64_t steps() const { return steps_; }
  // Changes the cache. Local.
  void step() {
    reference::Random random = random_of(steps_++);
    std::vector<std::int64_t> ids, counts;
    for (const auto& [id, tokens] : caches_.model) {
      ids.push_back(id);
      counts.push_back(reference::draw(random, 0, 2));
    }
    for (const std::int64_t id : ids)
      if (caches_.length(id) > most_tokens) caches_.truncate(id, reference::draw(random, 1, most_tokens));
    caches_.append(random, ids, counts);
    question_ = draw_question(random, caches_, 2);
  }
  // Of the sequences as they are after the step.
  ra_status decode(std::int32_t rank, ra_context* context, Error& error) const {
    return question_->ask(context, caches_[rank], Decoded(question_->desc, Layout::packed), error);
  }
  void move(const Members& members, const std::vector<std::int32_t>& former) {
    caches_.move(members, former);
    for (const auto& [id, tokens] : caches_.model) caches_.restore(id);
  }
  void check() {
    reference::Random random = random_of(steps_);
    expect_attention(caches_, *question_, random, Layout::packed);
  }

 private:
  static constexpr std::int64_t most_tokens = 300;  // of a sequence when a step begins

  reference::Random random_of(std::int64_t step) const {
    return reference::Random(seed_ * 100'003 + static_cast<std::uint64_t>(step));
  }
  ra_kv_cache_desc describe_cache() const {
    reference::Random random = random_of(-2);
    ra_kv_cache_desc desc = draw_cache(random);
    desc.num_pages = 80;  // one rank has room for all
    return desc;
  }

  std::uint64_t seed_;
  ra_kv_cache_desc desc_;
  Caches caches_;
  std::optional<Question> question_;
  std::int64_t steps_ = 0;
};

// ---------------------------------------------------------------- what a process has

std::size_t entries(const char* directory) {
  std::error_code error;
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator(directory, error), std::filesystem::directory_iterator()));
}

struct Census {
  std::size_t files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
  friend bool operator==(const Census&, const Census&) = default;
};

// KiB of this process in memory, but for what malloc could give back.
std::int64_t resident() {
  malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  std::int64_t all = 0, pages = 0;
  file >> all >> pages;
  return pages * sysconf(_SC_PAGESIZE) / 1024;
}

Nanoseconds processor_time() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& t) { return t.tv_sec * 1'000'000'000 + t.tv_usec * 1000; };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

// ---------------------------------------------------------------- a rank

// Where the test reads reports. What else is written to the standard output, as by assertions, is among its errors.
int reports = -1;

void take_reports() {
  reports = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
  if (reports < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) std::_Exit(4);
}

class Rank {
 public:
  void run(const std::string& line) {
    std::istringstream words(line);
    std::string what, problem;
    words >> what;
    if (what == "join") {
      join(words);
    } else if (what == "idle") {
      idle();
    } else if (what == "forward" || what == "backward") {
      words >> problem;
      call(problem, what == "forward");
    } else if (what == "work") {
      int calls = 0;
      words >> problem >> calls;
      work(problem, calls);
    } else if (what == "check") {
      std::uint64_t seed = 0;
      words >> seed;
      const std::string wrong = check(seed);
      say(wrong.empty() ? "right" : "wrong", {}, 0, wrong);
    } else if (what == "decode") {
      std::uint64_t seed = 0;
      words >> seed;
      decode(seed);
    } else if (what == "catch_up") {
      std::int64_t steps = 0;
      words >> steps;
      while (cached_->steps() < steps) cached_->step();
      say("ready", {});
    } else if (what == "revive") {
      revive({std::istream_iterator<std::int32_t>(words), {}});
    } else if (what == "soak") {
      std::int64_t seed = 0;
      words >> seed;
      soak(seed);
    } else if (what == "count") {
      count("counted");
    } else if (what == "rest") {
      std::int64_t ms = 0;
      words >> ms;
      const Nanoseconds before = processor_time();
      std::this_thread::sleep_for(Milliseconds(ms));
      say("rested", {}, (processor_time() - before) / 1000);
    } else if (what == "fork") {
      std::string how;
      words >> how;
      if (how == "sleeper") {
        fork_sleeper();
        return;
      }
      const std::string wrong = how == "local" ? fork_among_threads() : fork_child({this});
      say(wrong.empty() ? "right" : "wrong", {}, 0, wrong);
    } else if (what == "destroy") {
      const Nanoseconds begin = now();
      context_.reset();
      say("destroyed", {}, begin);
    } else if (what == "end") {
      end();
    } else {
      say("unknown", {}, 0, line);
    }
  }

 private:
  struct Outcome {
    int status = 0, rank = -1;
  };

  static void say(const char* what, Outcome outcome, std::int64_t value = 0, std::string message = {},
                  Nanoseconds time = now()) {
    std::replace(message.begin(), message.end(), '\n', ' ');
    std::ostringstream line;
    line << what << ' ' << outcome.status << ' ' << outcome.rank << ' ' << time << ' ' << value << ' ' << message
         << '\n';
    const std::string text = line.str();
    if (write(reports, text.data(), text.size()) != static_cast<ssize_t>(text.size())) std::_Exit(4);
  }

  void join(std::istringstream& words) {
    std::string address, id;
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    words >> config.rank >> config.world_size >> config.timeout_ms >> address >> id;
    rank_ = config.rank;
    world_size_ = config.world_size;
    config.transport = RA_TRANSPORT_ZEROMQ;
    config.num_threads = 1;
    config.unique_id = id.c_str();
    if (address != "-") config.bind_address = address.c_str();
    Error error;
    const Nanoseconds begin = now();
    context_.reset(ra_create_context(&config, &error));
    say(context_ != nullptr ? "joined" : "refused", {error.status, error.rank}, begin, error.text());
  }

  // What a call failed with, or found the group broken with: all words of it must agree.
  void say_lost(const Error& error, std::int64_t value = 0, Nanoseconds time = now()) {
    Error reason;
    ra_get_async_error(context_.get(), &reason);
    std::string message = error.text();
    Outcome outcome{error.status, error.rank};
    if (error.status == RA_STATUS_INVALID_STATE) outcome.status = reason.status;  // it broke between two calls
    if (outcome.status != reason.status || outcome.rank != reason.rank) {
      message = "call: " + message + "; ra_get_async_error: " + reason.text();
      outcome = {RA_STATUS_INTERNAL_ERROR, -1};
    }
    say("lost", outcome, value, message, time);
  }

  void idle() {
    say("ready", {});
    Error error;
    while (ra_get_async_error(context_.get(), &error) == RA_STATUS_SUCCESS) std::this_thread::sleep_for(2ms);
    say_lost(error);
  }

  void call(const std::string& problem, bool is_forward) {
    const ra_attention_desc desc = describe(problem);
    Tensors tensors(desc, world_size_, rank_);
    tensors.fill(static_cast<std::uint64_t>(rank_));
    Error error;
    if (tensors.forward(context_.get(), desc, error) == RA_STATUS_SUCCESS) {
      say("ready", {});
      while ((is_forward ? tensors.forward(context_.get(), desc, error)
                         : tensors.backward(context_.get(), desc, error)) == RA_STATUS_SUCCESS)
        continue;
    }
    say_lost(error);
  }

  void work(const std::string& problem, int calls) {
    const ra_attention_desc desc = describe(problem);
    Tensors tensors(desc, world_size_, rank_);
    tensors.fill(static_cast<std::uint64_t>(rank_));
    Error error;
    for (int n = 0; n < calls; ++n)
      if ((n % 2 == 0 ? tensors.forward(context_.get(), desc, error) : tensors.backward(context_.get(), desc, error)) !=
          RA_STATUS_SUCCESS) {
        say_lost(error);
        return;
      }
    say("ready", {});
  }

  // Small problems of all kinds; and now and then one whose hops take several pieces of the transport's. An oracle takes long, so
  // another thread looks when there is an error.
  void soak(std::int64_t seed) {
    std::atomic<bool> is_over{false};
    Nanoseconds noticed = 0;
    std::thread watch([&] {
      Error error;
      while (!is_over && ra_get_async_error(context_.get(), &error) == RA_STATUS_SUCCESS)
        std::this_thread::sleep_for(2ms);
      noticed = now();
    });
    const ra_attention_desc desc = describe("traffic");
    Tensors tensors(desc, world_size_, rank_);
    tensors.fill(static_cast<std::uint64_t>(rank_));
    Error error;
    ra_status status = RA_STATUS_SUCCESS;
    std::int64_t n = 0;
    for (; status == RA_STATUS_SUCCESS; ++n) {
      if (n == 1) say("ready", {});
      status = ra_run_self_test(context_.get(), 1, seed + n, &error);
      if (n % 16 == 8 && status == RA_STATUS_SUCCESS) status = tensors.forward(context_.get(), desc, error);
      if (n % 16 == 8 && status == RA_STATUS_SUCCESS) status = tensors.backward(context_.get(), desc, error);
    }
    is_over = true;
    watch.join();
    if (status == RA_STATUS_INTERNAL_ERROR)
      say("wrong", {status, error.rank}, n, error.text());
    else
      say_lost(error, n - 1, noticed);
  }

  void decode(std::uint64_t seed) {
    cached_ = std::make_unique<CachedRank>(members(), seed);
    say("ready", {});
    Error error;
    do cached_->step();
    while (cached_->decode(rank_, context_.get(), error) == RA_STATUS_SUCCESS);
    say_lost(error, cached_->steps());
  }

  // What is wrong, assertions have said.
  void revive(const std::vector<std::int32_t>& former) {
    cached_->move(members(), former);
    for (int n = 0; n < 4; ++n) {
      cached_->step();
      cached_->check();
    }
    cached_.reset();
    say(testing::Test::HasFailure() ? "wrong" : "right", {}, 0, "what is in the cache");
  }

  // What is wrong with a result, compared with that of one rank; empty if nothing is.
  std::string check(std::uint64_t seed) {
    const ra_attention_desc desc = describe("check");
    Tensors whole(desc, 1, 0), own(desc, world_size_, rank_), expected(desc, world_size_, rank_);
    whole.fill(seed);
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.num_threads = 1;
    Error error;
    const Context alone(ra_create_context(&config, &error));
    if (alone == nullptr || whole.forward(alone.get(), desc, error) != RA_STATUS_SUCCESS ||
        whole.backward(alone.get(), desc, error) != RA_STATUS_SUCCESS)
      return "one rank: " + error.text();

    const auto split = [&](std::vector<float>& from, std::vector<float>& to, std::int32_t side) {
      ra_sequence_args args;
      ra_init_sequence_args(&args, sizeof args);
      args.side = side;
      args.num_heads = desc.num_heads_q;
      args.dim = desc.head_dim;
      args.whole.data = from.data();
      args.shard.data = to.data();
      if (ra_split_sequence(&desc, world_size_, rank_, &args, &error) != RA_STATUS_SUCCESS)
        throw std::runtime_error(error.text());
    };
    split(whole.q, own.q, RA_SIDE_QUERY);
    split(whole.dout, own.dout, RA_SIDE_QUERY);
    split(whole.k, own.k, RA_SIDE_KEY_VALUE);
    split(whole.v, own.v, RA_SIDE_KEY_VALUE);
    if (own.forward(context_.get(), desc, error) != RA_STATUS_SUCCESS) return "ra_forward: " + error.text();
    if (own.backward(context_.get(), desc, error) != RA_STATUS_SUCCESS) return "ra_backward: " + error.text();

    split(whole.out, expected.out, RA_SIDE_QUERY);
    split(whole.dq, expected.dq, RA_SIDE_QUERY);
    split(whole.dk, expected.dk, RA_SIDE_KEY_VALUE);
    split(whole.dv, expected.dv, RA_SIDE_KEY_VALUE);
    const auto differ = [](const std::vector<float>& a, const std::vector<float>& b) {
      for (std::size_t i = 0; i < a.size(); ++i)
        if (!(std::abs(a[i] - b[i]) <= 1e-5f)) return true;  // all are below 1
      return a.empty();
    };
    if (differ(own.out, expected.out)) return "out";
    if (differ(own.dq, expected.dq)) return "dq";
    if (differ(own.dk, expected.dk)) return "dk";
    return differ(own.dv, expected.dv) ? "dv" : "";
  }

  static std::string fork_child(const std::vector<Rank*>& ranks);
  static std::string fork_among_threads();
  static void fork_sleeper();

  void end() {
    context_.reset();
    count("ended");
  }

  void count(const char* what) {
    Census after;
    // A thread that has been joined may be listed for a moment longer.
    for (int tries = 0; !(after == before_) && tries < 100; ++tries) {
      std::this_thread::sleep_for(10ms);
      after = Census();
    }
    std::ostringstream text;
    text << after.files << " files " << after.threads << " threads " << mallinfo2().uordblks
         << " bytes; before its first context " << before_.files << " and " << before_.threads;
    say(what, {after == before_ ? 0 : 1, -1}, resident(), text.str());
  }

  static Census census_of_loaded() {  // libraries that are loaded for good may keep a file open
    ra_capabilities capabilities;
    ra_init_capabilities(&capabilities, sizeof capabilities);
    ra_get_capabilities(&capabilities, nullptr);
    return {};
  }
  Census before_ = census_of_loaded();
  Members members() const { return {world_size_, rank_, context_.get()}; }

  Context context_;
  std::int32_t rank_ = 0, world_size_ = 1;
  std::unique_ptr<CachedRank> cached_;
};

// What is wrong with what a child of this process can do with these contexts of its parent; empty if nothing is.
std::string Rank::fork_child(const std::vector<Rank*>& ranks) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return "pipe2";
  const pid_t child = fork();
  if (child < 0) return "fork";
  if (child == 0) {
    const auto answer = [&](const std::string& wrong) {
      if (write(ends[1], wrong.data(), wrong.size()) < 0) std::_Exit(5);
      std::_Exit(0);
    };
    alarm(20);  // ends a child that hangs
    const ra_attention_desc desc = describe("check");
    for (Rank* const rank : ranks) {
      ra_context* const context = rank->context_.get();
      Error error;
      const auto expect_refusal = [&](const char* call, ra_status status) {
        if (status != RA_STATUS_INVALID_STATE || error.rank != -1 || error.text().find("forked") == std::string::npos)
          answer(std::string(call) + ": " + ra_get_status_name(status) + ", " + error.text());
      };
      Tensors tensors(desc, rank->world_size_, rank->rank_);
      expect_refusal("ra_forward", tensors.forward(context, desc, error));
      expect_refusal("ra_backward", tensors.backward(context, desc, error));
      expect_refusal("ra_run_self_test", ra_run_self_test(context, 1, 1, &error));
      expect_refusal("ra_abort_context", ra_abort_context(context, &error));
      expect_refusal("ra_get_async_error", ra_get_async_error(context, &error));
      expect_refusal("ra_check_support", ra_check_support(context, &desc, &error));
      ra_context_info info;
      ra_init_context_info(&info, sizeof info);
      expect_refusal("ra_get_context_info", ra_get_context_info(context, &info, &error));
      rank->context_.reset();
    }
    answer("done");
  }
  close(ends[1]);
  std::string said;
  char buffer[1024];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) return "the child ended with " + std::to_string(status) + ", and said " + said;
  return said == "done" ? "" : said;
}

std::string Rank::fork_among_threads() {
  constexpr std::int32_t world_size = 2;
  const ra_unique_id id = make_unique_id(RA_TRANSPORT_LOCAL);
  std::vector<Rank> ranks(world_size);
  std::vector<std::string> wrong(world_size);
  run_threads(world_size, [&](std::int32_t r) {
    Rank& rank = ranks[static_cast<std::size_t>(r)];
    rank.rank_ = r;
    rank.world_size_ = world_size;
    ra_context_config config = make_config(world_size, r, &id);
    config.transport = RA_TRANSPORT_LOCAL;
    rank.context_.reset(ra_create_context(&config, nullptr));
  });
  const auto check_all = [&](std::uint64_t seed) {
    run_threads(world_size, [&](std::int32_t r) {
      const auto i = static_cast<std::size_t>(r);
      if (wrong[i].empty()) wrong[i] = ranks[i].check(seed);
    });
  };
  check_all(1);
  const std::string child = fork_child({&ranks[0], &ranks[1]});
  check_all(2);
  return child + wrong[0] + wrong[1];
}

// It ends by itself, later than anybody should need to notice.
void Rank::fork_sleeper() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(15);
    for (;;) pause();
  }
  say("forked", {child < 0 ? 1 : 0});
}

}  // namespace

Nanoseconds now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

int run_rank() {
  take_reports();
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // also where it is stopped
  std::signal(SIGPIPE, SIG_DFL);     // which the test ignores
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::string> lines;
  bool has_ended = false;
  std::thread reader([&] {  // ends with "end", or when the test has gone
    for (std::string line; std::getline(std::cin, line);) {
      if (line == "exit") std::exit(3);
      const bool is_last = line == "end";
      {
        const std::lock_guard lock(mutex);
        lines.push_back(line);
      }
      changed.notify_all();
      if (!is_last) continue;
      std::unique_lock lock(mutex);  // it is counted among the threads
      changed.wait(lock, [&] { return has_ended; });
      return;
    }
    std::_Exit(0);
  });
  {
    Rank rank;
    for (std::string line; line != "end"; rank.run(line)) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return !lines.empty(); });
      line = lines.front();
      lines.pop_front();
    }
    const std::lock_guard lock(mutex);
    has_ended = true;
  }
  changed.notify_all();
  reader.join();
  return 0;
}

// ---------------------------------------------------------------- what groups of them need

bool has_zeromq() {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  return ra_get_capabilities(&capabilities, nullptr) == RA_STATUS_SUCCESS && capabilities.has_zeromq == 1;
}

std::string new_id() {
  const std::string address = new_loopback_address();
  ra_unique_id id{};
  Error error;
  if (ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, address.c_str(), &error) != RA_STATUS_SUCCESS)
    throw std::runtime_error(error.text());
  return id.text;
}

TemporaryDirectory::TemporaryDirectory() {
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp");
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryDirectory::contents() const {
  std::string names;
  for (const auto& entry : std::filesystem::directory_iterator(path_))
    if (std::filesystem::exists(entry.path() / "lock")) names += " " + entry.path().filename().string();
  return names;
}

// ---------------------------------------------------------------- its process

RankProcess::RankProcess(const std::string& temporary_directory) {
  int commands[2], reports[2];
  if (pipe2(commands, O_CLOEXEC) != 0 || pipe2(reports, O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  commands_ = commands[1];
  reports_ = reports[0];
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, commands[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, reports[1], STDOUT_FILENO);
  std::string program = std::filesystem::read_symlink("/proc/self/exe"), flag = "--rank",
              temporary = "TMPDIR=" + temporary_directory;
  std::vector<char*> environment{temporary.data()};
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (std::strncmp(*variable, "TMPDIR=", 7) != 0) environment.push_back(*variable);
  environment.push_back(nullptr);
  char* const arguments[] = {program.data(), flag.data(), nullptr};
  const int error = posix_spawn(&id_, program.c_str(), &actions, nullptr, arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  close(commands[0]);
  close(reports[1]);
  if (error != 0) throw std::runtime_error(std::string("posix_spawn: ") + std::strerror(error));
}

RankProcess::~RankProcess() {
  if (!is_reaped_) {
    send(SIGKILL);
    reap(10s);
  }
  close(commands_);
  close(reports_);
}

void RankProcess::tell(const std::string& command) {
  const std::string line = command + '\n';
  if (write(commands_, line.data(), line.size()) < 0 && errno != EPIPE) throw std::runtime_error(std::strerror(errno));
}

std::optional<Report> RankProcess::next(Milliseconds within) {
  const auto deadline = std::chrono::steady_clock::now() + within;
  for (;;) {
    if (const std::size_t end = unread_.find('\n'); end != std::string::npos) {
      std::istringstream words(unread_.substr(0, end));
      unread_.erase(0, end + 1);
      Report report;
      words >> report.what >> report.status >> report.rank >> report.time >> report.value;
      std::getline(words >> std::ws, report.message);
      return report;
    }
    const auto left = std::chrono::ceil<Milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd item{reports_, POLLIN, 0};
    if (left <= 0 || (poll(&item, 1, static_cast<int>(left)) < 0 && errno != EINTR)) return {};
    if ((item.revents & (POLLIN | POLLHUP)) == 0) continue;
    char buffer[4096];
    const ssize_t n = read(reports_, buffer, sizeof buffer);
    if (n <= 0) return {};
    unread_.append(buffer, static_cast<std::size_t>(n));
  }
}

void RankProcess::send(int signal) {
  if (!is_reaped_) kill(id_, signal);
}

void RankProcess::strike(How how) {
  switch (how) {
    case by_kill:
      return send(SIGKILL);
    case by_stop:
      return send(SIGSTOP);
    case by_segv:
      return send(SIGSEGV);
    case by_exit:
      return tell("exit");
  }
}

bool RankProcess::wait_until_over(Milliseconds within) {
  const auto deadline = std::chrono::steady_clock::now() + within;
  while (std::chrono::steady_clock::now() < deadline) {
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(id_), &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == id_)
      return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

int RankProcess::reap(Milliseconds within) {
  const auto deadline = std::chrono::steady_clock::now() + within;
  int status = 0;
  while (waitpid(id_, &status, WNOHANG) != id_) {
    if (std::chrono::steady_clock::now() > deadline) {
      kill(id_, SIGKILL);
      waitpid(id_, &status, 0);
      break;
    }
    std::this_thread::sleep_for(1ms);
  }
  is_reaped_ = true;
  return status;
}

}  // namespace ringattn::test
