// What the ring costs: P ranks of one thread each against one rank with P threads, on the same machine and problem.
//
//   ratio        median over pairs of (seconds of one rank) / (seconds of the ring); one rank goes first in every other pair
//   seconds      median; of the ring from the moment all ranks are ready until the last has its result
//   CPU ratio    the same for the processor time of the whole program: what other programs do hardly touches it
//   quiet        pairs before, within and after which other programs left the processors alone (quiet.h). Only they count, if
//                there are as many as asked for within the time; or else all do
//   waiting      share of the ranks' time that ra_call_statistics calls wait_seconds
//
// With --schedules instead: the two schedules beside each other where sequences are short, which is what RA_SCHEDULE_AUTO is about.
//
// oneTBB starts no more threads than the machine has processors unless told otherwise; the ranks of a ring bring their own.
// So that one rank really has P threads, this program raises that limit.
#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <ctime>
#include <memory>
#include <numeric>

#include "benchmark/quiet.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"
#include "support/ranks.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

struct Measured {
  double seconds = 0;
  double cpu_seconds = 0;  // of all threads of this program
  double waiting = 0;      // share
};

double read_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

ra_call_statistics read_statistics(const ra_context* context) {
  ra_call_statistics statistics;
  ra_init_call_statistics(&statistics, sizeof statistics);
  ra_error error;
  check(ra_get_call_statistics(context, &statistics, &error), error);
  return statistics;
}

// Ranks with their contexts and tensors, ready to be measured again and again.
class Group {
 public:
  Group(const ra_attention_desc& desc, std::int32_t world_size, std::int32_t threads)
      : desc_(desc),
        ranks_(world_size,
               [&](ra_context_config& config) {
                 config.num_threads = threads;
                 config.timeout_ms = 600'000;
               }),
        tensors_(static_cast<std::size_t>(world_size)) {
    ranks_.run([&](std::int32_t rank, ra_context*) {
      tensors_[static_cast<std::size_t>(rank)] = std::make_unique<Tensors>(desc_, world_size, rank, Pass::backward);
    });
    require_no_failure();
  }

  // Forward, or forward and backward.
  Measured measure(Pass last) {
    const double cpu_begin = read_cpu_seconds();
    Clock::time_point begin;
    std::barrier ready(ranks_.world_size(), [&]() noexcept { begin = Clock::now(); });
    const auto count = static_cast<std::size_t>(ranks_.world_size());
    std::vector<Clock::time_point> end(count);
    std::vector<double> total(count), waiting(count);
    ranks_.run([&](std::int32_t rank, ra_context* context) {
      const auto r = static_cast<std::size_t>(rank);
      const auto add_statistics = [&] {
        const ra_call_statistics statistics = read_statistics(context);
        total[r] += statistics.total_seconds;
        waiting[r] += statistics.wait_seconds;
      };
      ready.arrive_and_wait();
      tensors_[r]->forward(context, desc_);
      add_statistics();
      if (last == Pass::backward) {
        tensors_[r]->backward(context, desc_);
        add_statistics();
      }
      end[r] = Clock::now();
    });
    require_no_failure();
    const auto sum = [](const std::vector<double>& values) {
      return std::accumulate(values.begin(), values.end(), 0.0);
    };
    const Clock::duration longest = *std::max_element(end.begin(), end.end()) - begin;
    return {std::chrono::duration<double>(longest).count(), read_cpu_seconds() - cpu_begin, sum(waiting) / sum(total)};
  }

  // Of all ranks together.
  double flops(Pass last) const {
    double flops = 0;
    for (std::int32_t rank = 0; rank < ranks_.world_size(); ++rank) {
      ra_memory_requirements needs;
      ra_init_memory_requirements(&needs, sizeof needs);
      ra_error error;
      check(ra_get_memory_requirements(ranks_[rank], &desc_, &needs, &error), error);
      flops += needs.forward_flops + (last == Pass::backward ? needs.backward_flops : 0);
    }
    return flops;
  }

 private:
  ra_attention_desc desc_;
  test::Ranks ranks_;
  std::vector<std::unique_ptr<Tensors>> tensors_;
};

struct Options {
  std::int64_t tokens = 0;  // 0: 16,384, or 4,096 with --quick
  std::int64_t heads = 1;
  std::size_t pairs = 0;    // 0: 7, or 3 with --quick
  double most_seconds = 0;  // of a row; 0: 40, or 4 with --quick
  std::string only;         // rows whose name contains this
  bool schedules = false;
};

struct Row {
  std::int32_t world_size;
  ra_mask mask_kind;
  Pass last;

  std::string mask() const { return mask_kind == RA_MASK_CAUSAL ? "causal" : "full"; }
  std::string pass() const { return last == Pass::forward ? "forward" : "forward + backward"; }
  std::string name() const { return fmt::format("{} ranks, {}, {}", world_size, mask(), pass()); }
};

struct PairOfRuns {
  Measured one, ring;
  double slowest;  // processor, at its worst

  double ratio() const { return one.seconds / ring.seconds; }
};

PairOfRuns measure_pair(Group& one, Group& ring, Pass last, bool one_first, Quiet& quiet) {
  PairOfRuns pair{};
  const auto measure = [&](bool of_one) { (of_one ? pair.one : pair.ring) = (of_one ? one : ring).measure(last); };
  const double before = quiet.look();
  measure(one_first);
  const double within = quiet.look();
  measure(!one_first);
  pair.slowest = std::min({before, within, quiet.look()});
  return pair;
}

void measure_row(Report& report, Progress& progress, const Row& row, const ra_attention_desc& desc, std::size_t pairs,
                 double most_seconds, Quiet& quiet) {
  const std::string name = row.name();
  const Pass last = row.last;
  Group one(desc, 1, row.world_size), ring(desc, row.world_size, 1);
  std::vector<PairOfRuns> all, counted;
  measure_pair(one, ring, last, true, quiet);  // threads start, workspaces grow
  progress.begin_step(name);
  for (const auto begin = Clock::now(); counted.size() < pairs;) {
    if (all.size() >= pairs && Clock::now() - begin > std::chrono::duration<double>(most_seconds)) break;
    progress.update_step(fmt::format("{}, pair {}, {} of {} quiet", name, all.size() + 1, counted.size(), pairs));
    all.push_back(measure_pair(one, ring, last, all.size() % 2 == 0, quiet));
    counted.clear();
    std::copy_if(all.begin(), all.end(), std::back_inserter(counted),
                 [&](const PairOfRuns& pair) { return quiet.was_quiet(pair.slowest); });
  }
  const std::string quiet_pairs = fmt::format("{} of {}", counted.size(), all.size());
  if (counted.size() < pairs) counted = all;
  const auto of_pairs = [&](auto&& value) {
    std::vector<double> values;
    std::transform(counted.begin(), counted.end(), std::back_inserter(values), value);
    return values;
  };
  const double gigaflops = ring.flops(last) / 1e9;
  const double one_seconds = median(of_pairs([](const PairOfRuns& pair) { return pair.one.seconds; }));
  const double ring_seconds = median(of_pairs([](const PairOfRuns& pair) { return pair.ring.seconds; }));
  const std::vector<double> ratios = of_pairs([](const PairOfRuns& pair) { return pair.ratio(); });
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  report.add_row(
      {double(row.world_size), row.mask(), row.pass(), one_seconds, ring_seconds, gigaflops / one_seconds,
       gigaflops / ring_seconds, median(of_pairs([](const PairOfRuns& pair) { return pair.ring.waiting; })),
       quiet_pairs, median(ratios), *least, *most,
       median(of_pairs([](const PairOfRuns& pair) { return pair.one.cpu_seconds / pair.ring.cpu_seconds; }))});
  report.add_bar(name, median(ratios), ">=", 0.95);
}

// Short calls, so each is the median of many, taken in turns.
void measure_schedules(Report& report, const Options& options) {
  constexpr std::int32_t world_size = 4;
  const std::size_t pairs = options.pairs > 0 ? options.pairs : report.quick() ? 50 : 300;
  report.note(
      fmt::format("{} ranks of one thread, {} head(s) x 64, fp32, causal, zigzag; median of {} alternating pairs",
                  world_size, options.heads, pairs));
  report.begin_table("all_gather against the ring", {{"tokens", "tokens per rank"},
                                                     {"pass", "pass", "", "", 1, 18},
                                                     {"ring_seconds", "ring", "us", "{:.0f}", 1e-6},
                                                     {"gather_seconds", "all_gather", "us", "{:.0f}", 1e-6},
                                                     {"ratio", "ring / all_gather", "", "{:.2f}"}});
  const std::vector<std::int64_t> lengths = {16, 64, 128, 256, 512, 1024, 2048};
  Progress progress(static_cast<int>(2 * lengths.size()));
  for (const Pass last : {Pass::forward, Pass::backward})
    for (const std::int64_t length : lengths) {
      ra_attention_desc desc = make_desc(length * world_size, options.heads, RA_MASK_CAUSAL);
      desc.schedule = RA_SCHEDULE_RING;
      Group ring(desc, world_size, 1);
      desc.schedule = RA_SCHEDULE_ALL_GATHER;
      Group gather(desc, world_size, 1);
      std::vector<double> of_ring, of_gather, ratios;
      const std::string pass = last == Pass::forward ? "forward" : "forward + backward";
      progress.begin_step(fmt::format("{} tokens, {}", length, pass));
      const std::size_t count = length > 512 ? std::max<std::size_t>(pairs / 10, 5) : pairs;
      for (std::size_t n = 0; n < count + 2; ++n) {
        const double ring_seconds = ring.measure(last).seconds, gather_seconds = gather.measure(last).seconds;
        if (n < 2) continue;
        of_ring.push_back(ring_seconds);
        of_gather.push_back(gather_seconds);
        ratios.push_back(ring_seconds / gather_seconds);
      }
      report.add_row({double(length), pass, median(of_ring), median(of_gather), median(ratios)});
    }
}

void run(Report& report, const Options& options) {
  if (options.schedules) return measure_schedules(report, options);
  const std::int64_t tokens = options.tokens > 0 ? options.tokens : report.quick() ? 4096 : 16384;
  const std::size_t pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 7;
  const double most_seconds = options.most_seconds > 0 ? options.most_seconds : report.quick() ? 4 : 40;
  const std::vector<std::int32_t> world_sizes = {2, 4};
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                  2 * static_cast<std::size_t>(world_sizes.back()));

  report.note(
      fmt::format("{} tokens x {} head(s) x 64, fp32, zigzag; one rank with P threads, P ranks with one thread each;",
                  fmt::group_digits(tokens), options.heads));
  report.note(fmt::format(
      "median of {} quiet alternating pairs, or of all if there are not as many in {:.0f} s; oneTBB's limit raised",
      pairs, most_seconds));
  if (const std::int32_t processors = read_capabilities().hardware_threads; processors < world_sizes.back())
    report.note(fmt::format("{} threads share {} processors", world_sizes.back(), processors));
  report.begin_table("P ranks against one rank", {{"ranks", "P"},
                                                  {"mask", "mask"},
                                                  {"pass", "pass", "", "", 1, 18},
                                                  {"one_rank_seconds", "one rank", "s", "{:.3f}"},
                                                  {"ring_seconds", "ring", "s", "{:.3f}"},
                                                  {"one_rank_gflops", "one rank", "GFLOP/s", "{:.1f}"},
                                                  {"ring_gflops", "ring", "GFLOP/s", "{:.1f}"},
                                                  {"waiting", "waiting", "%", "{:.1f}", 0.01},
                                                  {"quiet", "quiet"},
                                                  {"ratio", "ratio", "", "{:.3f}"},
                                                  {"least_ratio", "least", "", "{:.3f}"},
                                                  {"most_ratio", "most", "", "{:.3f}"},
                                                  {"cpu_ratio", "CPU ratio", "", "{:.3f}"}});
  std::vector<Row> rows;
  for (const std::int32_t world_size : world_sizes)
    for (const ra_mask mask : {RA_MASK_CAUSAL, RA_MASK_FULL})
      for (const Pass last : {Pass::forward, Pass::backward}) rows.push_back({world_size, mask, last});
  std::erase_if(rows, [&](const Row& row) { return row.name().find(options.only) == std::string::npos; });
  Progress progress(static_cast<int>(rows.size()));
  Quiet quiet;
  for (const Row& row : rows)
    measure_row(report, progress, row, make_desc(tokens, options.heads, row.mask_kind), pairs, most_seconds, quiet);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "ring", "Speed of P ranks against one rank with as many threads",
      {{"--tokens", &options.tokens, "length of the sequence (default 16384, with --quick 4096)"},
       {"--heads", &options.heads, "heads of 64 (default 1)"},
       {"--pairs", &options.pairs, "quiet pairs of a row (default 7, with --quick 3)"},
       {"--seconds", &options.most_seconds, "that a row may wait for them (default 40, with --quick 4)"},
       {"--schedules", &options.schedules, "all_gather against the ring, instead"},
       {"--only", &options.only, "rows whose name contains this, such as '2 ranks, full'"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
