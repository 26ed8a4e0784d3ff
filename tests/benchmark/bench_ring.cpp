// What the ring costs: P ranks of one thread each against one rank with P threads, on the same machine and problem.
//
//   ratio        median over pairs of (seconds of one rank) / (seconds of the ring); pairs alternate, one rank first
//   seconds      median; of the ring from the moment all ranks are ready until the last has its result
//   CPU ratio    the same for the processor time of the whole program: what other programs do hardly touches it
//   waiting      share of the ranks' time that ra_call_statistics calls wait_seconds
//
// oneTBB starts no more threads than the machine has processors unless told otherwise; the ranks of a ring bring their own.
// So that one rank really has P threads, this program raises that limit.
#include <oneapi/tbb/global_control.h>

#include <barrier>
#include <chrono>
#include <ctime>
#include <memory>
#include <numeric>

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
  int pairs = 0;     // 0: 5, or 3 with --quick
  std::string only;  // rows whose name contains this
};

struct Row {
  std::int32_t world_size;
  ra_mask mask_kind;
  Pass last;

  std::string mask() const { return mask_kind == RA_MASK_CAUSAL ? "causal" : "full"; }
  std::string pass() const { return last == Pass::forward ? "forward" : "forward + backward"; }
  std::string name() const { return fmt::format("{} ranks, {}, {}", world_size, mask(), pass()); }
};

void measure_row(Report& report, Progress& progress, const Row& row, const ra_attention_desc& desc, int pairs) {
  const std::string name = row.name();
  const Pass last = row.last;
  Group one(desc, 1, row.world_size), ring(desc, row.world_size, 1);
  std::vector<double> one_seconds, ring_seconds, ratios, cpu_ratios, waiting;
  for (int pair = 0; pair <= pairs; ++pair) {
    progress.begin_step(fmt::format("{}, pair {} of {}", name, pair, pairs));
    const Measured a = one.measure(last);
    const Measured b = ring.measure(last);
    if (pair == 0) continue;  // threads start, workspaces grow
    one_seconds.push_back(a.seconds);
    ring_seconds.push_back(b.seconds);
    ratios.push_back(a.seconds / b.seconds);
    cpu_ratios.push_back(a.cpu_seconds / b.cpu_seconds);
    waiting.push_back(b.waiting);
  }
  const double gigaflops = ring.flops(last) / 1e9;
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  report.add_row({double(row.world_size), row.mask(), row.pass(), median(one_seconds), median(ring_seconds),
                  gigaflops / median(one_seconds), gigaflops / median(ring_seconds), median(waiting), median(ratios),
                  *least, *most, median(cpu_ratios)});
  report.add_bar(name, median(ratios), ">=", 0.95);
}

void run(Report& report, const Options& options) {
  const std::int64_t tokens = options.tokens > 0 ? options.tokens : report.quick() ? 4096 : 16384;
  const int pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 5;
  const std::vector<std::int32_t> world_sizes = {2, 4};
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                  2 * static_cast<std::size_t>(world_sizes.back()));

  report.note(
      fmt::format("{} tokens x {} head(s) x 64, fp32, zigzag; one rank with P threads, P ranks with one thread each;",
                  fmt::group_digits(tokens), options.heads));
  report.note(
      fmt::format("median of {} alternating pairs after one that does not count; oneTBB's limit raised", pairs));
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
                                                  {"ratio", "ratio", "", "{:.3f}"},
                                                  {"least_ratio", "least", "", "{:.3f}"},
                                                  {"most_ratio", "most", "", "{:.3f}"},
                                                  {"cpu_ratio", "CPU ratio", "", "{:.3f}"}});
  std::vector<Row> rows;
  for (const std::int32_t world_size : world_sizes)
    for (const ra_mask mask : {RA_MASK_CAUSAL, RA_MASK_FULL})
      for (const Pass last : {Pass::forward, Pass::backward}) rows.push_back({world_size, mask, last});
  std::erase_if(rows, [&](const Row& row) { return row.name().find(options.only) == std::string::npos; });
  Progress progress(static_cast<int>(rows.size()) * (pairs + 1));
  for (const Row& row : rows)
    measure_row(report, progress, row, make_desc(tokens, options.heads, row.mask_kind), pairs);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "ring", "Speed of P ranks against one rank with as many threads",
      [&](CLI::App& app) {
        app.add_option("--tokens", options.tokens, "length of the sequence (default 16384, with --quick 4096)");
        app.add_option("--heads", options.heads, "heads of 64")->capture_default_str();
        app.add_option("--pairs", options.pairs, "pairs that count (default 5, with --quick 3)");
        app.add_option("--only", options.only, "rows whose name contains this, such as '2 ranks, full'");
      },
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
