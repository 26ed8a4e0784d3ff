// How fast the engines of this processor are, and what keeps their speed: masks, documents, padding, grouped heads, threads.
//
//   rate       flops of visible pairs a second: 4 for each pair, head and dimension forward, 10 backward
//   of peak    over fused multiply-adds on registers alone, measured beside it, times the threads
//   limit      of few queries: the longer of what reading keys and values alone takes, measured beside it with as many threads,
//              and what their flops take at the peak
//   chosen     by the library, where no engine is asked for
//   ratio      of two rates: the case's and its base's, median over alternating pairs
#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "benchmark/peaks.h"
#include "benchmark/read_rate.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

struct DestroyContext {
  void operator()(ra_context* context) const { ra_destroy_context(context); }
};

// A problem on one rank, ready to be computed again and again.
class Computation {
 public:
  // `engine` empty: the library's choice.
  Computation(const ra_attention_desc& desc, Pass pass, const std::string& engine, std::int32_t threads)
      : desc_(desc), pass_(pass), tensors_(desc, 1, 0, pass) {
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.world_size = 1;
    config.num_threads = threads;
    config.engine = engine.empty() ? nullptr : engine.c_str();
    ra_error error;
    context_.reset(ra_create_context(&config, &error));
    if (context_ == nullptr) check(static_cast<ra_status>(error.status), error);
    ra_memory_requirements needs;
    ra_init_memory_requirements(&needs, sizeof needs);
    check(ra_get_memory_requirements(context_.get(), &desc_, &needs, &error), error);
    flops_ = pass == Pass::forward ? needs.forward_flops : needs.backward_flops;
    run();
  }

  double flops() const { return flops_; }
  const Tensors& tensors() const { return tensors_; }

  // Of one call, as the mean of as many as take `least` seconds.
  double seconds(double least) {
    int calls = 0;
    double seconds = 0;
    for (const auto begin = Clock::now(); seconds < least; ++calls) {
      run();
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    return seconds / calls;
  }

 private:
  void run() {
    pass_ == Pass::forward ? tensors_.forward(context_.get(), desc_) : tensors_.backward(context_.get(), desc_);
  }

  ra_attention_desc desc_;
  Pass pass_;
  Tensors tensors_;
  std::unique_ptr<ra_context, DestroyContext> context_;
  double flops_ = 0;
};

struct Options {
  std::string engine;  // empty: all
  int pairs = 0;       // 0: 7, or 3 with --quick
  std::string only;    // one of the tables below; empty: all
};

std::vector<std::string> engines_of(const Options& options) {
  std::vector<std::string> engines;
  std::istringstream names(read_capabilities().engines);
  for (std::string name; std::getline(names, name, ',');)
    if (options.engine.empty() || name == options.engine) engines.push_back(name);
  if (engines.empty()) throw std::runtime_error("no engine " + options.engine + " on this processor");
  return engines;
}

// Of its fused multiply-adds in floats; 0 where no peak of them is measured.
int lanes_of(const std::string& engine) {
  if (engine == "portable" || engine == "neon") return 0;
  return engine == "avx2" ? 8 : 16;
}
const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }

ra_attention_desc describe(std::int64_t tokens, std::int64_t heads, std::int64_t dim, ra_mask mask = RA_MASK_FULL) {
  ra_attention_desc desc = make_desc(tokens, heads, mask);
  desc.head_dim = dim;
  return desc;
}

// ---------------------------------------------------------------- the choice

// The library takes the first engine that the processor has; this is where it is seen whether that is the fastest.
void measure_choice(Report& report, Progress& progress, const std::vector<std::string>& engines, int pairs) {
  report.begin_table("the library's choice, head_dim 128, 1 thread", {{"dtype", "dtype", "", "", 1, 8},
                                                                      {"pass", "pass", "", "", 1, 8},
                                                                      {"engine", "engine", "", "", 1, 11},
                                                                      {"rate", "rate", "GFLOP/s", "{:.1f}", 1e9},
                                                                      {"chosen", "chosen", "GFLOP/s", "{:.1f}", 1e9},
                                                                      {"ratio", "ratio", "", "{:.3f}"}});
  for (const auto& [dtype, name] :
       {std::pair{RA_DTYPE_FLOAT32, "float32"}, {RA_DTYPE_BFLOAT16, "bfloat16"}, {RA_DTYPE_FLOAT16, "float16"}})
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      progress.begin_step(fmt::format("choice, {}, {}", name, name_of(pass)));
      ra_attention_desc desc = describe(report.quick() ? 1024 : 4096, 1, 128);
      desc.dtype = dtype;
      Computation chosen(desc, pass, "", 1);
      double least = INFINITY;
      for (const std::string& engine : engines) {
        Computation other(desc, pass, engine, 1);
        std::vector<double> rates, chosen_rates, ratios;
        for (int pair = 0; pair < pairs; ++pair) {
          rates.push_back(other.flops() / other.seconds(0.1));
          chosen_rates.push_back(chosen.flops() / chosen.seconds(0.1));
          ratios.push_back(chosen_rates.back() / rates.back());
        }
        report.add_row({name, name_of(pass), engine, median(rates), median(chosen_rates), median(ratios)});
        least = std::min(least, median(ratios));
      }
      report.add_bar(fmt::format("choice, {}, {}, over the fastest", name, name_of(pass)), least, ">=", 0.95);
    }
}

// ---------------------------------------------------------------- speed and peak

void measure_peaks(Report& report, Progress& progress, const std::string& engine, int pairs) {
  report.begin_table(engine + ": share of the peak, full mask, one head", {{"tokens", "tokens"},
                                                                           {"head_dim", "head_dim"},
                                                                           {"pass", "pass", "", "", 1, 8},
                                                                           {"threads", "threads"},
                                                                           {"rate", "rate", "GFLOP/s", "{:.1f}", 1e9},
                                                                           {"peak", "peak", "GFLOP/s", "{:.1f}", 1e9},
                                                                           {"share", "of peak", "", "{:.3f}"},
                                                                           {"gain", "over 1", "", "{:.3f}"}});
  const std::int64_t tokens = report.quick() ? 2048 : 8192;
  for (const std::int64_t dim : {64, 128})
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      Computation one(describe(tokens, 1, dim), pass, engine, 1), two(describe(tokens, 1, dim), pass, engine, 2);
      std::vector<double> rates[2], peaks, gains;
      progress.begin_step(fmt::format("{}, head_dim {}, {}", engine, dim, name_of(pass)));
      for (int pair = 0; pair < pairs; ++pair) {
        const double alone = one.seconds(0.1), both = two.seconds(0.1);
        rates[0].push_back(one.flops() / alone);
        rates[1].push_back(two.flops() / both);
        gains.push_back(alone / both);
        peaks.push_back(lanes_of(engine) == 0 ? 0 : ringattn_measure_fma_rate(lanes_of(engine)));
      }
      for (const int threads : {1, 2}) {
        const double rate = median(rates[threads - 1]), peak = threads * median(peaks);
        report.add_row({double(tokens), double(dim), name_of(pass), double(threads), rate, peak,
                        peak == 0 ? NAN : rate / peak, threads == 1 ? 1.0 : median(gains)});
      }
      const std::string name = fmt::format("{}, head_dim {}, {}", engine, dim, name_of(pass));
      const bool forward = pass == Pass::forward;
      if (engine == "avx512")
        report.add_bar(name + ", of peak", median(rates[0]) / median(peaks), ">=", forward ? 0.80 : 0.70);
      if (engine == "avx2")
        report.add_bar(name + ", of peak", median(rates[0]) / median(peaks), ">=", forward ? 0.75 : 0.65);
      report.add_bar(name + ", 2 threads over 1", median(gains), ">=", 1.85);
    }
}

// ---------------------------------------------------------------- what keeps the speed

struct Kept {
  std::string name;
  ra_attention_desc desc, base;
  double bar;
  ra_dtype dtype = RA_DTYPE_FLOAT32;
};

void measure_kept(Report& report, Progress& progress, const std::string& engine, int pairs) {
  report.begin_table(engine + ": rates over those of a full mask or of as many heads, 1 thread",
                     {{"case", "case", "", "", 1, 36},
                      {"pass", "pass", "", "", 1, 8},
                      {"base_rate", "base", "GFLOP/s", "{:.1f}", 1e9},
                      {"rate", "rate", "GFLOP/s", "{:.1f}", 1e9},
                      {"ratio", "ratio", "", "{:.3f}"}});
  const std::int64_t scale = report.quick() ? 4 : 1;
  std::vector<std::int64_t> offsets;
  for (std::int64_t d = 0; d <= 64 / scale; ++d) offsets.push_back(512 * d);
  const std::int64_t padded_to = 6000 / scale;
  const ra_attention_desc full = describe(8192 / scale, 1, 64), heads = describe(4096 / scale, 8, 64);

  ra_attention_desc window = describe(65536 / scale, 1, 64, RA_MASK_CAUSAL),
                    documents = describe(offsets.back(), 1, 64), padding = full, grouped = heads, slices = full;
  window.window_left = 1023;
  documents.num_documents = static_cast<std::int64_t>(offsets.size()) - 1;
  documents.document_offsets_q = offsets.data();
  padding.kv_lengths = &padded_to;
  grouped.num_heads_kv = 1;
  // A prefix that all see, and behind it blocks that are causal.
  const std::int64_t prefix = 2048 / scale, block = 2048 / scale;
  std::vector<std::int64_t> prefix_and_blocks{0, full.seqlen_q, 0, prefix, RA_MASK_SLICE_KIND_FULL};
  for (std::int64_t at = prefix; at < full.seqlen_q; at += block)
    prefix_and_blocks.insert(prefix_and_blocks.end(), {at, at + block, at, at + block, RA_MASK_SLICE_KIND_CAUSAL});
  slices.mask_slices = prefix_and_blocks.data();
  slices.num_mask_slices = static_cast<std::int64_t>(prefix_and_blocks.size() / 5);
  const std::string of_window = fmt::format("window of 1024, {} tokens", window.seqlen_q),
                    of_slices = fmt::format("prefix and {} causal slices", slices.num_mask_slices - 1);
  std::vector<Kept> all = {{"causal", describe(8192 / scale, 1, 64, RA_MASK_CAUSAL), full, 0.93},
                           {of_window, window, full, 0.90},
                           {of_window, window, full, 0.85, RA_DTYPE_BFLOAT16},
                           {of_slices, slices, full, 0.85},
                           {of_slices, slices, full, 0.85, RA_DTYPE_BFLOAT16},
                           {fmt::format("{} documents of 512", 64 / scale), documents, full, 0.90},
                           {fmt::format("{} of {} keys, then padding", padded_to, 8192 / scale), padding, full, 0.90},
                           {"8 query heads to a key head", grouped, heads, 1.0}};
  for (Kept& kept : all) {
    kept.desc.dtype = kept.base.dtype = kept.dtype;
    if (kept.dtype == RA_DTYPE_BFLOAT16) kept.name += ", bfloat16";
  }
  for (const Kept& kept : all)
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      progress.begin_step(fmt::format("{}, {}, {}", engine, kept.name, name_of(pass)));
      Computation of(kept.desc, pass, engine, 1), base(kept.base, pass, engine, 1);
      std::vector<double> rates, bases, ratios;
      for (int pair = 0; pair < pairs; ++pair) {
        bases.push_back(base.flops() / base.seconds(0.1));
        rates.push_back(of.flops() / of.seconds(0.1));
        ratios.push_back(rates.back() / bases.back());
      }
      report.add_row({kept.name, name_of(pass), median(bases), median(rates), median(ratios)});
      report.add_bar(fmt::format("{}, {}, {}", engine, kept.name, name_of(pass)), median(ratios), ">=", kept.bar);
    }
}

// ---------------------------------------------------------------- short calls

void measure_latency(Report& report, Progress& progress, const std::string& engine, int pairs) {
  report.begin_table(engine + ": one short call, 16 tokens x 1 head x 64, 1 thread",
                     {{"pass", "pass", "", "", 1, 8}, {"seconds", "time", "us", "{:.2f}", 1e-6}});
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    progress.begin_step(fmt::format("{}, short call, {}", engine, name_of(pass)));
    Computation call(describe(16, 1, 64), pass, engine, 1);
    std::vector<double> seconds;
    for (int pair = 0; pair < 3 * pairs; ++pair) seconds.push_back(call.seconds(0.01));
    report.add_row({name_of(pass), median(seconds)});
    if (pass == Pass::forward) report.add_bar(engine + ", short call, us", median(seconds) * 1e6, "<=", 5);
  }
}

// ---------------------------------------------------------------- few queries

// As fast as keys and values can be read, or multiplied where that takes longer.
void measure_few(Report& report, Progress& progress, const std::string& engine, int pairs) {
  const std::int64_t keys = report.quick() ? 16384 : 65536;
  report.begin_table(fmt::format("{}: few queries, {} keys, 8 query heads to a key head, head_dim 128", engine, keys),
                     {{"dtype", "dtype", "", "", 1, 8},
                      {"queries", "queries"},
                      {"threads", "threads"},
                      {"seconds", "time", "ms", "{:.3f}", 1e-3},
                      {"read", "keys", "GB/s", "{:.2f}", 1e9},
                      {"bandwidth", "memory", "GB/s", "{:.2f}", 1e9},
                      {"share", "of it", "", "{:.3f}"},
                      {"rate", "rate", "GFLOP/s", "{:.1f}", 1e9},
                      {"peak", "peak", "GFLOP/s", "{:.1f}", 1e9},
                      {"of_peak", "of peak", "", "{:.3f}"}});
  const int lanes = lanes_of(engine);
  for (const auto& [dtype, name] : {std::pair{RA_DTYPE_FLOAT32, "float32"}, {RA_DTYPE_BFLOAT16, "bfloat16"}})
    for (const std::int32_t threads : {1, 2})
      for (const std::int64_t queries : {1, 4, 16}) {
        const std::string row = fmt::format("{}, {}, {} queries, {} threads", engine, name, queries, threads);
        progress.begin_step(row);
        ra_attention_desc desc = describe(queries, 8, 128);
        desc.dtype = dtype;
        desc.seqlen_kv = keys;
        desc.num_heads_kv = 1;
        Computation call(desc, Pass::forward, engine, threads);
        const Tensors& tensors = call.tensors();
        const double bytes = static_cast<double>(tensors.k().size() + tensors.v().size()), flops = call.flops();
        std::vector<double> seconds, bandwidths, peaks, shares, of_peak;
        for (int pair = 0; pair < 3 * pairs; ++pair) {
          seconds.push_back(call.seconds(0.02));
          bandwidths.push_back(measure_read_rate({tensors.k(), tensors.v()}, threads));
          peaks.push_back(lanes == 0 ? NAN : threads * ringattn_measure_fma_rate(lanes));
          shares.push_back(bytes / bandwidths.back() / seconds.back());
          of_peak.push_back(flops / peaks.back() / seconds.back());
        }
        const double time = median(seconds);
        report.add_row({name, double(queries), double(threads), time, bytes / time, median(bandwidths), median(shares),
                        flops / time, median(peaks), median(of_peak)});
        if (lanes == 0) continue;
        if (median(shares) >= median(of_peak))
          report.add_bar(row + ", of bandwidth", median(shares), ">=", 0.85);
        else
          report.add_bar(row + ", of peak", median(of_peak), ">=", 0.60);
      }
}

void run(Report& report, const Options& options) {
  const std::vector<std::string> engines = engines_of(options);
  const int pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 7;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, 2);
  report.note(fmt::format("float32 where nothing else is said; medians of {} alternating pairs", pairs));
  report.note("few queries: the bar is on the share of what limits them, memory or arithmetic at the peak");
  struct Table {
    const char* name;
    int steps;
    void (*measure)(Report&, Progress&, const std::string& engine, int pairs);
  };
  std::vector<Table> tables = {
      {"peaks", 4, measure_peaks}, {"kept", 16, measure_kept}, {"short", 2, measure_latency}, {"few", 12, measure_few}};
  const auto left_out = [&](const char* name) { return !options.only.empty() && options.only != name; };
  std::erase_if(tables, [&](const Table& table) { return left_out(table.name); });
  const bool choice = options.engine.empty() && !left_out("choice");
  if (tables.empty() && !choice) throw std::runtime_error("no table " + options.only);
  int steps = choice ? 6 : 0;
  for (const Table& table : tables) steps += table.steps * static_cast<int>(engines.size());
  Progress progress(steps);
  if (choice) measure_choice(report, progress, engines, pairs);
  for (const std::string& engine : engines)
    for (const Table& table : tables) table.measure(report, progress, engine, pairs);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "engines", "Speed of the engines of this processor, and what keeps it",
      {{"--engine", &options.engine, "one of them; default: all"},
       {"--pairs", &options.pairs, "pairs that count (default 7, with --quick 3)"},
       {"--only", &options.only, "one table: choice, peaks, kept (masks and heads), short (calls), few (queries)"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
