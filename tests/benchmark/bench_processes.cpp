// What it costs that ranks are processes: P processes of one thread each, over RA_TRANSPORT_ZEROMQ, against one process with P threads,
// forward and backward of the same problem, on the same machine.
//
//   ratio   median over pairs of (seconds of one process) / (seconds of the ring); one goes first in every other pair
//   links   Unix sockets; TCP over loopback, encrypted; the same, authenticated only
//
// And what is left of the ring's speed while other threads compute too, one on each processor: median over pairs of (seconds of the
// quiet ring) / (seconds of the disturbed one). A fair share of each processor is half of it.
//
// A rank is this program again, with its problem in the arguments. It computes once for every byte that it reads from its standard
// input, and answers with one, so that this program sees the ring as a host of it would: from the moment that all are told to begin until the
// last is done.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/peaks.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"

extern char** environ;

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t timeout_ms = 60'000;

struct Problem {
  std::int64_t tokens, heads;
  std::int32_t dtype;
};

ra_attention_desc to_desc(const Problem& p) {
  ra_attention_desc desc = make_desc(p.tokens, p.heads, RA_MASK_CAUSAL);
  desc.head_dim = 128;
  desc.dtype = p.dtype;
  return desc;
}

// ---------------------------------------------------------------- a rank

void serve(char** argument) {
  const auto number = [&] { return std::strtoll(*argument++, nullptr, 10); };
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.rank = static_cast<std::int32_t>(number());
  config.world_size = static_cast<std::int32_t>(number());
  config.num_threads = static_cast<std::int32_t>(number());
  const Problem problem{number(), number(), static_cast<std::int32_t>(number())};
  const bool is_tcp = number() != 0;
  config.encryption = static_cast<std::int32_t>(number());
  config.unique_id = *argument;
  config.transport = RA_TRANSPORT_ZEROMQ;
  config.timeout_ms = timeout_ms;
  if (is_tcp) config.bind_address = "127.0.0.1";
  ra_error error;
  const std::unique_ptr<ra_context, void (*)(ra_context*)> context(ra_create_context(&config, &error),
                                                                   ra_destroy_context);
  if (context == nullptr) check(static_cast<ra_status>(error.status), error);
  const ra_attention_desc desc = to_desc(problem);
  Tensors tensors(desc, config.world_size, config.rank, Pass::backward);
  for (char byte = 0; write(STDOUT_FILENO, &byte, 1) == 1 && read(STDIN_FILENO, &byte, 1) == 1;) {
    tensors.forward(context.get(), desc);
    tensors.backward(context.get(), desc);
  }
}

// ---------------------------------------------------------------- this program's side of them

class Ranks {
 public:
  Ranks(const Problem& p, std::int32_t world_size, std::int32_t threads, bool is_tcp, ra_encryption encryption) {
    ra_unique_id id;
    ra_error error;
    check(ra_create_unique_id(&id, RA_TRANSPORT_ZEROMQ, nullptr, &error), error);
    for (std::int32_t rank = 0; rank < world_size; ++rank)
      start({"rank", std::to_string(rank), std::to_string(world_size), std::to_string(threads),
             std::to_string(p.tokens), std::to_string(p.heads), std::to_string(p.dtype), is_tcp ? "1" : "0",
             std::to_string(static_cast<int>(encryption)), id.text});
    wait();
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  ~Ranks() {  // a rank ends when its input does
    for (const Process& process : processes_) {
      close(process.in);
      close(process.out);
    }
    for (const Process& process : processes_) waitpid(process.id, nullptr, 0);
  }

  double measure() {
    const auto begin = Clock::now();
    for (const Process& process : processes_)
      if (write(process.in, "", 1) != 1) throw std::runtime_error("a rank has ended");
    wait();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

 private:
  struct Process {
    pid_t id;
    int in, out;
  };

  void start(std::vector<std::string> arguments) {
    std::array<int, 2> in, out;
    if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    std::string program = "/proc/self/exe";
    std::vector<char*> pointers{program.data()};
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_t id = -1;
    const int failed = posix_spawn(&id, program.c_str(), &actions, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    processes_.push_back({id, in[1], out[0]});
    if (failed != 0) throw std::runtime_error("posix_spawn failed");
  }

  void wait() const {
    for (const Process& process : processes_) {
      pollfd item{process.out, POLLIN, 0};
      char byte;
      if (poll(&item, 1, 2 * static_cast<int>(timeout_ms)) <= 0 || read(process.out, &byte, 1) != 1)
        throw std::runtime_error("a rank has ended, see above");
    }
  }

  std::vector<Process> processes_;
};

// A thread on each processor that this program may use, which computes as long as this lives.
class ForeignThreads {
 public:
  ForeignThreads() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed)) threads_.emplace_back([this, cpu] { compute(cpu); });
  }
  ForeignThreads(const ForeignThreads&) = delete;
  ForeignThreads& operator=(const ForeignThreads&) = delete;
  ~ForeignThreads() { is_over_ = true; }

 private:
  void compute(std::size_t cpu) const {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    while (!is_over_) ringattn_measure_instruction_rate();
  }

  std::atomic<bool> is_over_{false};
  std::vector<std::jthread> threads_;
};

struct Options {
  std::int64_t ranks = 2;
  std::int64_t tokens = 0;  // 0: 16,384 of float32 and 32,768 of bfloat16, or a quarter with --quick
  std::size_t pairs = 0;    // 0: 7, or 3 with --quick
  std::string only;         // of a row's name; "": all rows
};

struct Way {
  const char* name;
  bool is_tcp;
  ra_encryption encryption;
  double bar;  // 0: none
};
constexpr std::array ways{Way{"Unix sockets", false, RA_ENCRYPTION_ON, 0.93},
                          Way{"TCP, encrypted", true, RA_ENCRYPTION_ON, 0},
                          Way{"TCP, authenticated", true, RA_ENCRYPTION_OFF, 0}};

struct Row {
  ra_dtype dtype;
  const Way* way;
  bool is_disturbed;  // compared with itself, undisturbed; else with one process
  std::string type() const { return dtype == RA_DTYPE_FLOAT32 ? "float32" : "bfloat16"; }
  std::string name() const {
    return fmt::format("{}, {}{}", type(), way->name, is_disturbed ? ", foreign threads" : "");
  }
};

std::vector<Row> rows_of(const Options& options) {
  std::vector<Row> rows;
  for (const ra_dtype dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16})
    for (const Way& way : ways) rows.push_back({dtype, &way, false});
  rows.push_back({RA_DTYPE_FLOAT32, &ways[0], true});
  std::erase_if(rows, [&](const Row& row) { return row.name().find(options.only) == std::string::npos; });
  if (rows.empty()) throw std::runtime_error("no row has \"" + options.only + "\" in its name");
  return rows;
}

void run(Report& report, const Options& options) {
  const std::vector<Row> rows = rows_of(options);
  const auto ranks = static_cast<std::int32_t>(options.ranks);
  const std::size_t pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 7;
  Progress progress(static_cast<int>(rows.size()));
  const auto compare = [&](bool is_disturbed) {
    for (const Row& row : rows) {
      if (row.is_disturbed != is_disturbed) continue;
      progress.begin_step(row.name());
      const std::int64_t usual = (row.dtype == RA_DTYPE_FLOAT32 ? 16384 : 32768) / (report.quick() ? 4 : 1);
      const Problem problem{options.tokens > 0 ? options.tokens : usual, 8, row.dtype};
      Ranks ring(problem, ranks, 1, row.way->is_tcp, row.way->encryption);
      std::unique_ptr<Ranks> one;
      if (!is_disturbed) one = std::make_unique<Ranks>(problem, 1, ranks, false, RA_ENCRYPTION_ON);
      const auto measure_base = [&] { return is_disturbed ? ring.measure() : one->measure(); };
      const auto measure_ring = [&] {
        std::unique_ptr<ForeignThreads> foreign;
        if (is_disturbed) foreign = std::make_unique<ForeignThreads>();
        return ring.measure();
      };
      measure_base();  // workspaces grow
      ring.measure();
      std::vector<double> of_base, of_ring, ratios;
      for (std::size_t n = 0; n < pairs; ++n) {
        if (n % 2 == 0) of_base.push_back(measure_base());
        of_ring.push_back(measure_ring());
        if (n % 2 != 0) of_base.push_back(measure_base());
        ratios.push_back(of_base.back() / of_ring.back());
      }
      const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
      report.add_row({row.type(), double(problem.tokens), row.way->name, median(of_base), median(of_ring),
                      median(ratios), *least, *most});
      const double bar = is_disturbed ? 0.25 : row.way->bar;
      if (bar > 0) report.add_bar(row.name(), median(ratios), ">=", bar);
    }
  };
  const auto begin_table = [&](bool is_disturbed, const char* title, const char* base, const char* ring) {
    if (std::none_of(rows.begin(), rows.end(), [&](const Row& row) { return row.is_disturbed == is_disturbed; }))
      return;
    report.begin_table(title, {{"dtype", "dtype", "", "", 1, 9},
                               {"tokens", "tokens"},
                               {"links", "links", "", "", 1, 18},
                               {std::string(base) + "_seconds", base, "s", "{:.3f}"},
                               {std::string(ring) + "_seconds", ring, "s", "{:.3f}"},
                               {"ratio", "ratio", "", "{:.3f}"},
                               {"least_ratio", "least", "", "{:.3f}"},
                               {"most_ratio", "most", "", "{:.3f}"}});
    compare(is_disturbed);
  };
  report.note(fmt::format(
      "{} processes of one thread against one process of {}; zigzag causal, 8 heads x 128, forward + backward;", ranks,
      ranks));
  report.note(fmt::format("median of {} alternating pairs", pairs));
  begin_table(false, "ranks that are processes", "one", "ring");
  begin_table(true, "the same ring while a foreign thread computes on each processor", "quiet", "disturbed");
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  if (argc == 11 && std::string(argv[1]) == "rank") {
    try {
      ringattn::benchmark::serve(argv + 2);
      return 0;
    } catch (const std::exception& e) {
      fmt::print(stderr, "rank {}: {}\n", argv[2], e.what());
      return 1;
    }
  }
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "processes", "Speed of ranks that are processes against one process with as many threads",
      {{"--ranks", &options.ranks, "processes (default 2)"},
       {"--tokens", &options.tokens, "length of the sequence (default 16384 of float32 and 32768 of bfloat16)"},
       {"--pairs", &options.pairs, "pairs of a row (default 7, with --quick 3)"},
       {"--only", &options.only, "rows whose name has this in it: bfloat16, Unix sockets, foreign"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
