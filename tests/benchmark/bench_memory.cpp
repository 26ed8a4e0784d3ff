// What a rank needs in memory, by the library's formula and as measured in two ways, and how that scales with the ranks.
//
//   formula   tensors + workspace + context of ra_get_memory_requirements
//   counted   most bytes alive at one time through operator new: the caller's tensors and all that the library allocates
//   RSS       growth of VmHWM: what the kernel gave the process, stacks and malloc's own needs included
//
// Every measurement has a new process, whose ranks are threads of it; the figures are its total divided by the ranks. The
// process stops twice and is looked at from outside: before its contexts and tensors exist, and when its ranks are done and
// everything is still there. Before the first stop it computes a tiny problem and forgets it, so that pages of code count
// for neither. One thread per rank, fp32. The last table has no such process: planning needs no tensors.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>

#include "benchmark/allocations.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"
#include "support/ranks.h"

namespace ringattn::benchmark {
namespace {

struct Task {
  ra_attention_desc desc;
  std::int32_t world_size = 1;
  Pass pass = Pass::forward;
};

// Bytes per rank, the mean over the ranks.
struct Measured {
  double tensors = 0;
  double workspace = 0;
  double formula = 0;
  double counted = 0;
  double resident = 0;
};

// ---------------------------------------------------------------- the process that is measured

void run_pass(const Task& task, ra_context* context, Tensors& tensors) {
  if (task.pass == Pass::forward)
    tensors.forward(context, task.desc);
  else
    tensors.backward(context, task.desc);  // of made-up out and lse: what it allocates depends on no value
}

void add_formula(const Task& task, const ra_context* context, Measured& measured) {
  ra_memory_requirements needs;
  ra_init_memory_requirements(&needs, sizeof needs);
  ra_error error;
  check(ra_get_memory_requirements(context, &task.desc, &needs, &error), error);
  const bool forward = task.pass == Pass::forward;
  const auto tensors = static_cast<double>(forward ? needs.forward_tensors : needs.backward_tensors);
  const auto workspace = static_cast<double>(forward ? needs.forward_workspace : needs.backward_workspace);
  measured.tensors += tensors / task.world_size;
  measured.workspace += workspace / task.world_size;
  measured.formula += (tensors + workspace + static_cast<double>(needs.context)) / task.world_size;
}

// A datagram each way is a turn.
void take_turn(int channel) {
  char turn = 0;
  if (write(channel, &turn, 1) != 1 || read(channel, &turn, 1) != 1) _exit(3);
}

// All ranks of a task, until `at_end` returns. Bytes of operator new per rank, at most.
double run_ranks(const Task& task, const std::function<void(const test::Ranks&)>& at_end) {
  const std::int64_t before = live_bytes();
  reset_peak();
  const test::Ranks ranks(task.world_size, [](ra_context_config& config) { config.timeout_ms = 600'000; });
  std::vector<std::unique_ptr<Tensors>> tensors(static_cast<std::size_t>(task.world_size));
  ranks.run([&](std::int32_t rank, ra_context* context) {
    auto& mine = tensors[static_cast<std::size_t>(rank)];
    mine = std::make_unique<Tensors>(task.desc, task.world_size, rank, task.pass);
    run_pass(task, context, *mine);
  });
  require_no_failure();
  const std::int64_t peak = peak_bytes();
  at_end(ranks);
  return static_cast<double>(peak - before) / task.world_size;
}

void be_measured(const Task& task, int channel) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Pages of 4 KiB: where the system makes them larger on its own, it would round up the stack of every thread.
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  Task tiny{task.desc, 1, task.pass};
  tiny.desc.seqlen_q = 64;
  tiny.desc.num_documents = 0;
  tiny.desc.document_offsets_q = nullptr;
  run_ranks(tiny, [](const test::Ranks&) {});

  take_turn(channel);
  Measured measured;
  measured.counted = run_ranks(task, [&](const test::Ranks& ranks) {
    take_turn(channel);
    for (std::int32_t rank = 0; rank < task.world_size; ++rank) add_formula(task, ranks[rank], measured);
  });
  if (write(channel, &measured, sizeof measured) != sizeof measured) _exit(3);
}

// ---------------------------------------------------------------- the process that measures

// A line of /proc/PID/status, in bytes.
double read_status(pid_t process, const std::string& name) {
  std::ifstream file(fmt::format("/proc/{}/status", process));
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) return std::stod(line.substr(name.size() + 1)) * 1024;
  }
  throw std::runtime_error(fmt::format("/proc/{}/status has no {}", process, name));
}

Measured measure(const Task& task) {
  std::array<int, 2> channel{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel.data()) != 0) throw std::runtime_error("no socket pair");
  std::fflush(nullptr);
  const pid_t process = fork();  // this process has one thread
  if (process < 0) throw std::runtime_error("cannot fork");
  if (process == 0) {
    close(channel[0]);
    try {
      be_measured(task, channel[1]);
      _exit(0);
    } catch (const std::exception& exception) {
      fmt::print(stderr, "{}\n", exception.what());
      _exit(3);
    }
  }
  close(channel[1]);
  const struct Reaper {
    pid_t process;
    int channel;
    ~Reaper() {
      close(channel);  // ends a process that still waits for its turn
      waitpid(process, nullptr, 0);
    }
  } reaper{process, channel[0]};

  const auto receive = [&](void* data, std::size_t size) {
    if (read(channel[0], data, size) != static_cast<ssize_t>(size))
      throw std::runtime_error(fmt::format("the process with {} ranks ended before it was measured", task.world_size));
  };
  char turn = 0;
  receive(&turn, 1);
  const double resident_before = read_status(process, "VmRSS");
  if (send(channel[0], &turn, 1, MSG_NOSIGNAL) != 1) throw std::runtime_error("cannot start the process");
  receive(&turn, 1);
  const double resident = (read_status(process, "VmHWM") - resident_before) / task.world_size;
  if (send(channel[0], &turn, 1, MSG_NOSIGNAL) != 1) throw std::runtime_error("cannot end the process");
  Measured measured;
  receive(&measured, sizeof measured);
  measured.resident = resident;
  return measured;
}

// ---------------------------------------------------------------- tables

const std::vector<Column> measured_columns = {
    {"formula_bytes", "formula", "MB", "{:.2f}", megabyte}, {"counted_bytes", "counted", "MB", "{:.2f}", megabyte},
    {"counted_ratio", "counted / formula", "", "{:.3f}"},   {"rss_bytes", "RSS", "MB", "{:.2f}", megabyte},
    {"rss_ratio", "RSS / formula", "", "{:.3f}"},
};

std::vector<Column> columns(std::vector<Column> first, const std::vector<Column>& last) {
  first.insert(first.end(), measured_columns.begin(), measured_columns.end());
  first.insert(first.end(), last.begin(), last.end());
  return first;
}

std::vector<Value> cells(std::vector<Value> first, const Measured& m, const std::vector<Value>& last) {
  for (const double value : {m.formula, m.counted, m.counted / m.formula, m.resident, m.resident / m.formula})
    first.push_back(value);
  first.insert(first.end(), last.begin(), last.end());
  return first;
}

// The promise that holds for each table: the formula is what is needed.
class Worst {
 public:
  void add(const Measured& m) {
    counted_ = std::max(counted_, m.counted / m.formula);
    resident_ = std::max(resident_, m.resident / m.formula);
  }
  void add_bars(Report& report, const std::string& where) const {
    report.add_bar("largest counted / formula, " + where, counted_, "<=", 1.05);
    report.add_bar("largest RSS / formula, " + where, resident_, "<=", 1.05);
  }

 private:
  double counted_ = 0;
  double resident_ = 0;
};

ra_attention_desc make_task_desc(std::int64_t tokens, std::int64_t num_heads, std::int64_t window) {
  ra_attention_desc desc = make_desc(tokens, num_heads, RA_MASK_CAUSAL);
  desc.num_chunks = 32;
  desc.window_left = window - 1;
  if (window > 0) desc.sharding = RA_SHARDING_CONTIGUOUS;
  return desc;
}

// Ring attention reference figures for the shape of the first table.
double reference_bytes(std::int32_t ranks) {
  constexpr std::array<double, 5> megabytes{2096, 1072, 560, 304, 176};  // 1, 2, 4, 8, 16 ranks
  return megabytes[static_cast<std::size_t>(std::log2(ranks))] * megabyte;
}

void measure_known_shape(Report& report, Progress& progress, const std::vector<std::int32_t>& world_sizes) {
  report.begin_table("8,192 tokens x 8 heads x 64, fp32, causal, forward, zigzag, 32 chunks; memory per rank",
                     columns({{"ranks", "ranks"}}, {{"reference_bytes", "reference", "MB", "{:.0f}", megabyte}}));
  Worst worst;
  double largest_world = 0;
  for (const std::int32_t ranks : world_sizes) {
    progress.begin_step(fmt::format("8,192 tokens, {} ranks", ranks));
    const Measured m = measure({make_task_desc(8192, 8, 0), ranks, Pass::forward});
    report.add_row(cells({double(ranks)}, m, {reference_bytes(ranks)}));
    worst.add(m);
    largest_world = std::max(m.counted, m.resident);
  }
  worst.add_bars(report, "8,192 tokens");
  report.add_bar("MB per rank at 16 ranks, 8,192 tokens", largest_world / megabyte, "<", 8);
}

// What is gathered of all ranks is bounded, whatever the number of heads.
void measure_gathering(Report& report, Progress& progress, const std::vector<std::int32_t>& world_sizes) {
  report.begin_table(
      "8,192 tokens x 8 heads x 64, fp32, causal, zigzag, all_gather, gather_bytes 2^22; memory per rank",
      columns({{"pass", "pass", "", "", 1, 8}, {"ranks", "ranks"}}, {}));
  Worst worst;
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const std::int32_t ranks : world_sizes) {
      const std::string name = pass == Pass::forward ? "forward" : "backward";
      progress.begin_step(fmt::format("all_gather, {}, {} ranks", name, ranks));
      ra_attention_desc desc = make_desc(8192, 8, RA_MASK_CAUSAL);
      desc.schedule = RA_SCHEDULE_ALL_GATHER;
      desc.gather_bytes = std::int64_t{1} << 22;
      const Measured m = measure({desc, ranks, pass});
      report.add_row(cells({name, double(ranks)}, m, {}));
      worst.add(m);
    }
  worst.add_bars(report, "all_gather");
}

// Layers are computed one after the other, in the memory of the one that needs most.
void measure_dilation(Report& report, Progress& progress, const std::vector<std::int32_t>& world_sizes) {
  report.begin_table("32,768 tokens x 4 heads x 64, fp32, causal, LongNet's pattern, contiguous; memory per rank",
                     columns({{"pass", "pass", "", "", 1, 8}, {"ranks", "ranks"}}, {}));
  const std::vector<std::int64_t> segment_lengths = {2048, 4096, 8192, 16384, 32768}, dilations = {1, 2, 4, 8, 16};
  Worst worst;
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const std::int32_t ranks : world_sizes) {
      const std::string name = pass == Pass::forward ? "forward" : "backward";
      progress.begin_step(fmt::format("dilated, {}, {} ranks", name, ranks));
      ra_attention_desc desc = make_desc(32768, 4, RA_MASK_CAUSAL);
      desc.sharding = RA_SHARDING_CONTIGUOUS;
      desc.num_branches = static_cast<std::int32_t>(dilations.size());
      desc.segment_lengths = segment_lengths.data();
      desc.dilations = dilations.data();
      const Measured m = measure({desc, ranks, pass});
      report.add_row(cells({name, double(ranks)}, m, {}));
      worst.add(m);
    }
  worst.add_bars(report, "dilated");
}

void measure_scaling(Report& report, Progress& progress, Pass pass, std::int64_t tokens, std::int64_t window,
                     const std::vector<std::int32_t>& world_sizes) {
  const std::string name = pass == Pass::forward ? "forward" : "backward";
  report.begin_table(
      fmt::format("{} tokens x 16 heads x 64, fp32, causal, window {}, {}, contiguous, 32 chunks; memory per rank",
                  fmt::group_digits(tokens), window, name),
      columns({{"ranks", "ranks"}}, {{"efficiency_of_two", "scaling from 2 ranks", "%", "{:.2f}", 0.01},
                                     {"efficiency_of_one", "from 1 rank", "%", "{:.2f}", 0.01}}));
  Worst worst;
  double one = 0, two = 0;  // memory of all ranks together
  for (const std::int32_t ranks : world_sizes) {
    progress.begin_step(fmt::format("{} tokens, {}, {} ranks", fmt::group_digits(tokens), name, ranks));
    const Measured m = measure({make_task_desc(tokens, 16, window), ranks, pass});
    const double all = m.counted * ranks;
    if (ranks == 1) one = all;
    if (ranks == 2) two = all;
    report.add_row(cells({double(ranks)}, m, {two > 0 ? two / all : NAN, one > 0 ? one / all : NAN}));
    worst.add(m);
    if (ranks > 2)
      report.add_bar(fmt::format("{}, memory scaling from 2 to {} ranks", name, ranks), two / all, ">=", 0.97);
  }
  worst.add_bars(report, fmt::format("{} tokens, {}", fmt::group_digits(tokens), name));
}

void measure_lengths(Report& report, Progress& progress, std::int64_t window,
                     const std::vector<std::int64_t>& lengths) {
  report.begin_table(fmt::format("one rank, 1 head x 64, fp32, causal, window {}, forward", window),
                     columns({{"tokens", "tokens"},
                              {"tensors_bytes", "tensors", "MB", "{:.2f}", megabyte},
                              {"workspace_bytes", "workspace", "MB", "{:.2f}", megabyte}},
                             {{"besides_tensors_bytes", "counted - tensors", "MB", "{:.2f}", megabyte}}));
  Worst worst;
  double least = INFINITY, most = 0;
  for (const std::int64_t tokens : lengths) {
    progress.begin_step(fmt::format("{} tokens on one rank", fmt::group_digits(tokens)));
    const Measured m = measure({make_task_desc(tokens, 1, window), 1, Pass::forward});
    least = std::min(least, m.workspace);
    most = std::max(most, m.workspace);
    report.add_row(cells({double(tokens), m.tensors, m.workspace}, m, {m.counted - m.tensors}));
    worst.add(m);
  }
  worst.add_bars(report, "one rank");
  report.add_bar(fmt::format("one rank, largest / least workspace, {} to {} tokens", fmt::group_digits(lengths.front()),
                             fmt::group_digits(lengths.back())),
                 most / least, "<=", 1.05);
}

// `tokens` in documents of like lengths; `offsets` keeps them.
ra_attention_desc make_documents_desc(std::int64_t tokens, std::int64_t documents, std::vector<std::int64_t>& offsets) {
  ra_attention_desc desc = make_desc(tokens, 1, RA_MASK_CAUSAL);
  for (std::int64_t d = 0; d <= documents; ++d) offsets.push_back(tokens * d / documents);
  desc.num_documents = documents;
  desc.document_offsets_q = offsets.data();
  return desc;
}

// The formula leaves out the lists of what is to be computed: what they take for each document.
void measure_documents(Report& report, Progress& progress, Pass pass, const std::vector<std::int64_t>& counts) {
  const std::string name = pass == Pass::forward ? "forward" : "backward";
  report.begin_table(
      fmt::format("32,768 tokens in documents, 1 head x 64, fp32, causal, {}, zigzag, 4 ranks; memory per rank", name),
      {{"documents", "documents"},
       {"formula_bytes", "formula", "MB", "{:.2f}", megabyte},
       {"counted_bytes", "counted", "MB", "{:.2f}", megabyte},
       {"bytes_per_document", "of it, for each document", "bytes", "{:.0f}"}});
  double of_one = 0;
  for (const std::int64_t count : counts) {
    progress.begin_step(fmt::format("{} documents, {}", fmt::group_digits(count), name));
    std::vector<std::int64_t> offsets;
    const Measured m = measure({make_documents_desc(32 << 10, count, offsets), 4, pass});
    if (count == 1) of_one = m.counted - m.formula;
    const double each = (m.counted - m.formula - of_one) / static_cast<double>(count);
    report.add_row({double(count), m.formula, m.counted, count == 1 ? NAN : each});
    if (count > 1) report.add_bar(fmt::format("{}, bytes for each of {} documents", name, count), each, "<", 500);
  }
}

// ra_estimate_memory makes the plans of both passes, as one rank's calls do.
void measure_planning(Report& report, const std::string& what, const ra_attention_desc& desc,
                      const std::vector<std::int32_t>& world_sizes, double most_megabytes) {
  report.begin_table(fmt::format("planning for one rank: {}, forward and backward", what),
                     {{"ranks", "ranks"},
                      {"seconds", "time", "ms", "{:.1f}", 1e-3},
                      {"peak_bytes", "memory", "MB", "{:.2f}", megabyte}});
  for (const std::int32_t ranks : world_sizes) {
    const ra_context_config config = test::make_config(ranks, ranks - 1);
    ra_memory_requirements needs;
    ra_init_memory_requirements(&needs, sizeof needs);
    ra_error error;
    const std::int64_t before = live_bytes();
    reset_peak();
    const auto begin = std::chrono::steady_clock::now();
    check(ra_estimate_memory(&config, &desc, &needs, &error), error);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    const auto bytes = static_cast<double>(peak_bytes() - before);
    report.add_row({double(ranks), time.count(), bytes});
    report.add_bar(fmt::format("MB to plan {} on {} ranks", what, ranks), bytes / megabyte, "<", most_megabytes);
  }
}

// Many documents, and many segments of one: a branch of 32,768 segments, others of wider ones, and one of the whole sequence.
void measure_planning(Report& report, const std::vector<std::int32_t>& world_sizes) {
  std::vector<std::int64_t> offsets;
  measure_planning(report, "1,048,576 tokens in 10,000 documents, causal, zigzag",
                   make_documents_desc(1 << 20, 10'000, offsets), world_sizes, 4);

  constexpr std::int64_t tokens = 64 << 20;
  const std::vector<std::int64_t> segment_lengths = {2048, 4096, 8192, 16384, tokens}, dilations = {1, 2, 4, 8, 16};
  ra_attention_desc desc = make_desc(tokens, 16, RA_MASK_CAUSAL);
  desc.num_branches = static_cast<std::int32_t>(dilations.size());
  desc.segment_lengths = segment_lengths.data();
  desc.dilations = dilations.data();
  for (const auto& [name, sharding] :
       {std::pair("contiguous", RA_SHARDING_CONTIGUOUS), std::pair("zigzag", RA_SHARDING_ZIGZAG)}) {
    desc.sharding = sharding;
    measure_planning(report, fmt::format("LongNet's pattern of 67,108,864 tokens, causal, {}", name), desc, {256}, 12);
  }
}

void run(Report& report) {
  const bool quick = report.quick();
  using Ranks = std::vector<std::int32_t>;
  const Ranks known = quick ? Ranks{16} : Ranks{1, 2, 4, 8, 16};
  const Ranks scaling = quick ? Ranks{2, 16} : Ranks{1, 2, 4, 8, 16};
  const std::vector<std::int64_t> lengths = {8 << 10, 64 << 10, 512 << 10};
  constexpr std::int64_t tokens = 64 << 10;
  const std::int64_t window = quick ? 32 : 256;
  report.note("MB = 2^20 bytes; one thread per rank");
  const Ranks gathering = quick ? Ranks{16} : Ranks{4, 16};
  const std::vector<std::int64_t> documents =
      quick ? std::vector<std::int64_t>{1, 2000} : std::vector<std::int64_t>{1, 500, 2000};
  const Ranks dilated = quick ? Ranks{4} : Ranks{1, 4, 8};
  Progress progress(static_cast<int>(known.size() + 2 * gathering.size() + 2 * dilated.size() + 2 * scaling.size() +
                                     lengths.size() + 2 * documents.size()));
  measure_known_shape(report, progress, known);
  measure_gathering(report, progress, gathering);
  measure_dilation(report, progress, dilated);
  measure_scaling(report, progress, Pass::forward, tokens, window, scaling);
  measure_scaling(report, progress, Pass::backward, tokens, window, scaling);
  measure_lengths(report, progress, window, lengths);
  measure_documents(report, progress, Pass::forward, documents);
  measure_documents(report, progress, Pass::backward, documents);
  measure_planning(report, quick ? Ranks{64} : Ranks{8, 64, 512});
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  return ringattn::benchmark::run_benchmark(argc, argv, "memory", "Memory of a rank: formula, counted and resident", {},
                                            ringattn::benchmark::run);
}
