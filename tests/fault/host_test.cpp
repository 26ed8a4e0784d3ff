// The host program survives: what a process is stays as it was when the library is loaded, used and unloaded, and signals that
// interrupt its calls do not matter.
//
// This program is not linked with the library, but loads it when a test wants it, so that there is a before.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cfenv>
#include <clocale>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "ringattn/ringattn.h"

namespace {

class Library {
 public:
  Library() : handle_(dlopen(RINGATTN_LIBRARY, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
  }
  ~Library() { dlclose(handle_); }
  Library(const Library&) = delete;

  template <class Function>
  Function* get(const char* name) const {
    void* const symbol = dlsym(handle_, name);
    if (symbol == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<Function*>(symbol);
  }

 private:
  void* handle_;
};
#define CALL(library, function) (library).get<std::remove_pointer_t<decltype(&function)>>(#function)

// A line for each thing that a library might change.
std::vector<std::string> process_state() {
  std::vector<std::string> lines;
  const auto add = [&](const auto&... parts) {
    std::ostringstream line;
    (line << ... << parts);
    lines.push_back(line.str());
  };
  const auto members = [](const sigset_t& set) {
    std::string text;
    for (int signal = 1; signal < SIGRTMAX; ++signal) text += sigismember(&set, signal) == 1 ? '1' : '0';
    return text;
  };
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) == 0)
      add("signal ", signal, ": handler ", reinterpret_cast<void*>(action.sa_sigaction), " flags ", action.sa_flags,
          " blocks ", members(action.sa_mask));
  }
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  add("blocked signals: ", members(blocked));
  stack_t stack;
  sigaltstack(nullptr, &stack);
  add("stack of signals: ", stack.ss_sp, " ", stack.ss_size);
  for (char** variable = environ; *variable != nullptr; ++variable) add("environment: ", *variable);
  add("locale: ", std::setlocale(LC_ALL, nullptr));
  add("rounding: ", std::fegetround());
  add("folder: ", std::filesystem::current_path());
  const mode_t mask = umask(0);
  umask(mask);
  add("umask: ", mask);
  for (const int limit : {RLIMIT_AS, RLIMIT_CORE, RLIMIT_DATA, RLIMIT_NOFILE, RLIMIT_STACK, RLIMIT_MEMLOCK}) {
    rlimit r;
    getrlimit(static_cast<__rlimit_resource_t>(limit), &r);
    add("limit ", limit, ": ", r.rlim_cur, " of ", r.rlim_max);
  }
  for (const int timer : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    itimerval t;
    getitimer(static_cast<__itimer_which_t>(timer), &t);
    add("timer ", timer, ": ", t.it_interval.tv_sec, " ", t.it_interval.tv_usec);
  }
  return lines;
}

// The lines that are new, and those that are gone.
std::vector<std::string> changes_since(const std::vector<std::string>& before) {
  const std::vector<std::string> now = process_state();
  std::vector<std::string> changes;
  const auto add_missing = [&](const char* what, const std::vector<std::string>& some,
                               const std::vector<std::string>& from) {
    for (const std::string& line : some)
      if (std::ranges::find(from, line) == from.end()) changes.push_back(what + line);
  };
  add_missing("now ", now, before);
  add_missing("no more ", before, now);
  return changes;
}
const std::vector<std::string> none;

// Two ranks compute forward and backward, one is refused, one aborts. Gives what they computed.
std::vector<float> use(const Library& library, std::int64_t tokens, int calls) {
  constexpr std::int32_t ranks = 2;
  constexpr std::int64_t dim = 32;
  ra_unique_id id;
  EXPECT_EQ(CALL(library, ra_create_unique_id)(&id, RA_TRANSPORT_LOCAL, nullptr, nullptr), RA_STATUS_SUCCESS);
  std::vector<std::vector<float>> results(ranks);
  std::barrier computed(ranks);  // an abort would end the other's last call
  std::vector<std::thread> threads;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ra_error error;
      ra_context_config config;
      CALL(library, ra_init_context_config)(&config, sizeof config);
      config.rank = rank;
      config.world_size = ranks;
      config.num_threads = 2;
      config.unique_id = id.text;
      ra_context* const context = CALL(library, ra_create_context)(&config, &error);
      ASSERT_NE(context, nullptr) << error.message;
      ra_attention_desc desc;
      CALL(library, ra_init_attention_desc)(&desc, sizeof desc);
      desc.seqlen_q = tokens;
      desc.head_dim = dim;
      desc.mask = RA_MASK_CAUSAL;
      const auto shard =
          static_cast<std::size_t>(CALL(library, ra_get_shard_length)(&desc, ranks, rank, RA_SIDE_QUERY, &error));
      std::vector<float> q(shard * dim), out(q.size()), dq(q.size()), dk(q.size()), dv(q.size()), lse(shard);
      for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = static_cast<float>((i * 7 + static_cast<std::size_t>(rank)) % 13) / 13;

      ra_forward_args forward;
      CALL(library, ra_init_forward_args)(&forward, sizeof forward);
      forward.q.data = forward.k.data = forward.v.data = q.data();
      forward.out.data = out.data();
      forward.lse = lse.data();
      ra_backward_args backward;
      CALL(library, ra_init_backward_args)(&backward, sizeof backward);
      backward.q = backward.k = backward.v = backward.dout = forward.q;
      backward.out = forward.out;
      backward.lse = lse.data();
      backward.dq.data = dq.data();
      backward.dk.data = dk.data();
      backward.dv.data = dv.data();
      for (int call = 0; call < calls; ++call) {
        EXPECT_EQ(CALL(library, ra_forward)(context, &desc, &forward, &error), RA_STATUS_SUCCESS) << error.message;
        EXPECT_EQ(CALL(library, ra_backward)(context, &desc, &backward, &error), RA_STATUS_SUCCESS) << error.message;
      }
      for (const std::vector<float>* part : {&out, &dq, &dk, &dv})
        results[static_cast<std::size_t>(rank)].insert(results[static_cast<std::size_t>(rank)].end(), part->begin(),
                                                       part->end());

      computed.arrive_and_wait();

      desc.head_dim = 0;
      EXPECT_EQ(CALL(library, ra_forward)(context, &desc, &forward, &error), RA_STATUS_INVALID_ARGUMENT);
      desc.head_dim = dim;
      if (rank == 0) {
        EXPECT_EQ(CALL(library, ra_abort_context)(context, &error), RA_STATUS_SUCCESS);
      } else {
        EXPECT_NE(CALL(library, ra_forward)(context, &desc, &forward, &error), RA_STATUS_SUCCESS);
      }
      CALL(library, ra_destroy_context)(context);
    });
  }
  for (std::thread& thread : threads) thread.join();
  results[0].insert(results[0].end(), results[1].begin(), results[1].end());
  return results[0];
}

TEST(Host, IsAsItWasWhenTheLibraryIsLoadedUsedAndUnloaded) {
  const std::vector<std::string> before = process_state();
  for (int repeat = 0; repeat < 3; ++repeat) {
    {
      const Library library;
      EXPECT_EQ(changes_since(before), none) << "after it was loaded";
      use(library, 100, 1);
      EXPECT_EQ(changes_since(before), none) << "after it was used";
    }
    EXPECT_EQ(changes_since(before), none) << "after it was unloaded";
  }
}

// What the test above compares shows what it is there to show.
TEST(Host, StateShowsAChange) {
  std::signal(SIGUSR2, SIG_DFL);  // which sets flags, the first time
  const std::vector<std::string> before = process_state();
  const auto expect_changes = [&](std::size_t count, const auto& change, const auto& undo) {
    change();
    EXPECT_EQ(changes_since(before).size(), count);
    undo();
    EXPECT_EQ(changes_since(before), none);
  };
  struct sigaction action = {}, old;
  action.sa_handler = SIG_IGN;
  expect_changes(
      2, [&] { sigaction(SIGUSR2, &action, &old); }, [&] { sigaction(SIGUSR2, &old, nullptr); });
  expect_changes(
      1, [] { setenv("RINGATTN_HOST_TEST", "1", 1); }, [] { unsetenv("RINGATTN_HOST_TEST"); });
  expect_changes(
      2, [] { std::fesetround(FE_UPWARD); }, [] { std::fesetround(FE_TONEAREST); });
}

// ---------------------------------------------------------------- a profiler

std::atomic<int> profiled{0};

// Samples that a profiler gets while f computes: SIGPROF after each millisecond of processor time, without SA_RESTART, so that
// whatever waits is interrupted.
template <class F>
int profile(F&& f) {
  const auto sample_every = [](int microseconds) {
    const itimerval timer = {{0, microseconds}, {0, microseconds}};
    setitimer(ITIMER_PROF, &timer, nullptr);
  };
  profiled = 0;
  struct sigaction action = {}, before;
  action.sa_handler = [](int) { ++profiled; };
  sigaction(SIGPROF, &action, &before);
  sample_every(1000);
  f();
  sample_every(0);
  sigaction(SIGPROF, &before, nullptr);
  return profiled;
}

void compute() {
  volatile double x = 1;
  for (int i = 0; i < 30'000'000; ++i) x = x * 1.0000001;
}

TEST(Host, ProfilerSeesCallsAndDoesNotDisturbThem) {
  EXPECT_GT(profile(compute), 0);
  {
    const Library library;
    const std::vector<float> quiet = use(library, 600, 20);
    std::vector<float> disturbed;
    EXPECT_GT(profile([&] { disturbed = use(library, 600, 20); }), 0);
    EXPECT_EQ(disturbed.size(), quiet.size());
    EXPECT_EQ(std::memcmp(disturbed.data(), quiet.data(), quiet.size() * sizeof(float)), 0);
  }
  EXPECT_GT(profile(compute), 0);
}

}  // namespace
