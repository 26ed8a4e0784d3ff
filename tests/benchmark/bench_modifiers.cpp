// What the engines of this processor keep of their speed where scores and weights are modified: one step over a full mask, one head and one
// thread, with a modifier and without, median of the ratio over alternating pairs.
#include <fmt/format.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>

#include "benchmark/report.h"
#include "core/memory.h"
#include "engine/engine.h"
#include "plan/plan.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

struct Modifier {
  const char* name;
  void (*set)(Problem& problem);
  double bar;
};
constexpr double bar = 0.80, dropout_bar = 0.60;
const Modifier modifiers[] = {
    {"alibi_slopes", [](Problem& p) { p.alibi_slopes = {0.0625F}; }, bar},
    {"key_bias", [](Problem& p) { p.has_key_bias = true; }, bar},
    {"sinks", [](Problem& p) { p.num_sinks = 1; }, bar},
    {"softcap", [](Problem& p) { p.softcap = 30; }, bar},
    {"softcap_reached", [](Problem& p) { p.softcap = 0.25F; }, bar},  // by most scores, and passed
    {"dropout",
     [](Problem& p) {
       p.dropout = {0.1F, 1, 2};
     },
     dropout_bar},
};

Problem plain(std::int64_t tokens, std::int64_t head_dim, DType dtype) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = tokens;
  p.head_dim = p.head_dim_v = head_dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.softmax_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  p.num_chunks = 1;
  p.documents = {{0, tokens, 0, tokens}};
  return p;
}

// A pass over one step, ready to be run again and again.
class Step {
 public:
  Step(Engine& engine, const Problem& problem, Pass pass)
      : engine_(engine),
        problem_(problem),
        plan_(problem, 1, 0, pass),
        work_(plan_.items(plan_.moments().front(), true)) {
    const std::int64_t tokens = problem.seqlen_q, dim = problem.head_dim;
    const auto tensor = [&](std::vector<float>& data, DType dtype) {
      data.resize(static_cast<std::size_t>(tokens * dim));
      for (float& x : data) {
        const auto bits = std::bit_cast<std::uint32_t>(uniform());
        x = std::bit_cast<float>(dtype == DType::bfloat16 ? bits >> 16 | (bits & 0xffff0000U) : bits);  // two alike
      }
      return packed_tensor(data.data(), dtype, tokens, 1, dim);
    };
    for (const auto of_rows : {&Step::max_, &Step::sum_, &Step::bias_})
      (this->*of_rows).assign(tokens_of(tokens), 0.0F);
    lse_.assign(tokens_of(tokens), std::log(static_cast<float>(tokens)));
    forward_.items = backward_.items = work_.items;
    forward_.q = backward_.q = tensor(q_, problem.dtype);
    forward_.k = backward_.k = tensor(k_, problem.dtype);
    forward_.v = backward_.v = tensor(v_, problem.dtype);
    backward_.dout = tensor(dout_, problem.dtype);
    forward_.out = tensor(out_, problem.dtype);
    forward_.query_rows = backward_.query_rows = forward_.key_rows = backward_.key_rows = tokens;
    forward_.lse = max_.data();
    forward_.key_bias = backward_.key_bias = bias_.data();
    forward_.sinks = bias_.data();
    backward_.lse = lse_.data();
    backward_.delta = sum_.data();
    backward_.dq = tensor(dq_, DType::float32);
    backward_.dk = tensor(dk_, DType::float32);
    backward_.dv = tensor(dv_, DType::float32);
    forward_.scratch = backward_.scratch = scratch_.reserve(engine.scratch_bytes(problem, pass, tokens, true));
    run();
  }

  // Of one run, as the mean of as many as take `least` seconds.
  double seconds(double least) {
    int runs = 0;
    double seconds = 0;
    for (const auto begin = Clock::now(); seconds < least; ++runs) {
      run();
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    return seconds / runs;
  }

 private:
  static std::size_t tokens_of(std::int64_t tokens) { return static_cast<std::size_t>(tokens); }
  float uniform() { return std::uniform_real_distribution<float>(-1, 1)(random_); }
  void run() {
    if (plan_.pass() == Pass::forward) return engine_.forward(problem_, forward_);
    engine_.backward(problem_, backward_);
    if (problem_.num_sinks == 0) return;
    float dsink = 0;
    engine_.add_sink_gradients(problem_, bias_.data(), lse_.data(), sum_.data(), problem_.seqlen_q, &dsink);
  }

  Engine& engine_;
  Problem problem_;
  Plan plan_;
  StepItems work_;
  std::mt19937 random_;
  std::vector<float> q_, k_, v_, out_, dout_, dq_, dk_, dv_, max_, sum_, lse_, bias_;
  Block scratch_;
  ForwardStep forward_;
  BackwardStep backward_;
};

struct Options {
  std::string engine;  // empty: all
  std::string only;    // one modifier; empty: all
  int pairs = 0;       // 0: 5, or 3 with --quick
};

void run(Report& report, const Options& options) {
  std::vector<std::string> engines;
  std::istringstream names(cpu_engine_names());
  for (std::string name; std::getline(names, name, ',');)
    if (options.engine.empty() ? name != "portable" : name == options.engine) engines.push_back(name);
  if (engines.empty()) throw std::runtime_error("no engine " + options.engine + " on this processor");
  const int pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 5;
  const std::int64_t tokens = report.quick() ? 1024 : 4096;
  constexpr double least = 0.1;
  Progress progress(static_cast<int>(engines.size() * 4 * std::size(modifiers)));
  for (const std::string& name : engines) {
    const DType dtype = name == "avx512_bf16" || name == "amx" ? DType::bfloat16 : DType::float32;
    report.begin_table(fmt::format("{}: {} tokens of {}, one head, 1 thread", name, tokens,
                                   dtype == DType::bfloat16 ? "bfloat16" : "float32"),
                       {{"head_dim", "head_dim"},
                        {"pass", "pass", "", "", 1, 8},
                        {"modifier", "modifier", "", "", 1, 15},
                        {"plain", "plain", "ms", "{:.2f}", 1e-3},
                        {"seconds", "time", "ms", "{:.2f}", 1e-3},
                        {"ratio", "ratio", "", "{:.3f}"}});
    const std::unique_ptr<Engine> engine = make_cpu_engine(name.c_str(), 1);
    for (const std::int64_t dim : {64, 128})
      for (const Pass pass : {Pass::forward, Pass::backward})
        for (const Modifier& modifier : modifiers) {
          if (!options.only.empty() && options.only != modifier.name) continue;
          const std::string pass_name = pass == Pass::forward ? "forward" : "backward";
          const std::string row = fmt::format("{}, head_dim {}, {}, {}", name, dim, pass_name, modifier.name);
          progress.begin_step(row);
          const Problem base = plain(tokens, dim, dtype);
          Problem modified = base;
          modifier.set(modified);
          Step without(*engine, base, pass), with(*engine, modified, pass);
          std::vector<double> bases, seconds, ratios;
          for (int pair = 0; pair < pairs; ++pair) {
            bases.push_back(without.seconds(least));
            seconds.push_back(with.seconds(least));
            ratios.push_back(bases.back() / seconds.back());
          }
          report.add_row({double(dim), pass_name, modifier.name, median(bases), median(seconds), median(ratios)});
          report.add_bar(row, median(ratios), ">=", modifier.bar);
        }
  }
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "modifiers", "Speed with ALiBi, key bias, sinks, softcap and dropout, over that without",
      {{"--engine", &options.engine, "one of them; default: all but portable"},
       {"--only", &options.only, "one modifier: alibi_slopes, key_bias, sinks, softcap, softcap_reached, dropout"},
       {"--pairs", &options.pairs, "pairs that count (default 5, with --quick 3)"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
