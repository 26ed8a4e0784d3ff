// Whether ra_estimate_time is right: P ranks of one thread each, over TCP of this machine whose rate the kernel limits, at rates around
// the one at which communication stops hiding. Forward and backward are rows of their own.
//
//   link         bytes per second of every connection (SO_MAX_PACING_RATE)
//   measured     median over calls; of a call, from when all ranks are ready until the last has its result
//   predicted    by the compute rate that a call has where links are not limited, measured in turns with it
//   knee         the rate at which a call takes 1.25 times as long as that, between the two rows around it
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "benchmark/report.h"
#include "benchmark/tensors.h"
#include "support/ranks.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t no_limit = ~std::uint64_t{0};
constexpr double link_seconds = 100e-6;  // of a message between threads of a machine whose processors are busy

// All TCP connections of this program.
void limit_links(std::uint64_t bytes_per_second) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int descriptor = std::stoi(entry.path().filename().string());
    int protocol = 0;
    socklen_t size = sizeof protocol;
    sockaddr_storage peer;
    socklen_t peer_size = sizeof peer;
    if (getsockopt(descriptor, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) != 0 || protocol != IPPROTO_TCP ||
        getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0)
      continue;
    if (setsockopt(descriptor, SOL_SOCKET, SO_MAX_PACING_RATE, &bytes_per_second, sizeof bytes_per_second) != 0)
      throw std::runtime_error("the kernel does not limit the rate of sockets");
  }
}

class Group {
 public:
  Group(const ra_attention_desc& desc, std::int32_t world_size)
      : desc_(desc),
        id_(test::make_unique_id(RA_TRANSPORT_ZEROMQ)),
        ranks_(world_size,
               [&](ra_context_config& config) {
                 config.transport = RA_TRANSPORT_ZEROMQ;
                 config.unique_id = id_.text;
                 config.bind_address = "127.0.0.1";  // by TCP
               }),
        tensors_(static_cast<std::size_t>(world_size)) {
    ranks_.run([&](std::int32_t rank, ra_context*) {
      tensors_[static_cast<std::size_t>(rank)] = std::make_unique<Tensors>(desc_, world_size, rank, Pass::backward);
    });
    require_no_failure();
  }

  double measure(Pass pass) {
    const auto count = static_cast<std::size_t>(ranks_.world_size());
    Clock::time_point begin;
    std::barrier ready(ranks_.world_size(), [&]() noexcept { begin = Clock::now(); });
    std::vector<Clock::time_point> end(count);
    ranks_.run([&](std::int32_t rank, ra_context* context) {
      const auto r = static_cast<std::size_t>(rank);
      ready.arrive_and_wait();
      pass == Pass::forward ? tensors_[r]->forward(context, desc_) : tensors_[r]->backward(context, desc_);
      end[r] = Clock::now();
    });
    require_no_failure();
    return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) - begin).count();
  }

  // Of one rank.
  double flops(Pass pass) const {
    ra_memory_requirements needs;
    ra_init_memory_requirements(&needs, sizeof needs);
    ra_error error;
    check(ra_get_memory_requirements(ranks_[0], &desc_, &needs, &error), error);
    return pass == Pass::forward ? needs.forward_flops : needs.backward_flops;
  }

  double predict(Pass pass, double flops, double link_bytes) const {
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.world_size = ranks_.world_size();
    ra_machine_rates rates;
    ra_init_machine_rates(&rates, sizeof rates);
    rates.forward_flops = rates.backward_flops = flops;
    rates.link_bytes = link_bytes;
    rates.link_seconds = link_seconds;
    ra_time_estimate estimate;
    ra_init_time_estimate(&estimate, sizeof estimate);
    ra_error error;
    check(ra_estimate_time(&config, &desc_, &rates, &estimate, &error), error);
    return pass == Pass::forward ? estimate.forward_seconds : estimate.backward_seconds;
  }

 private:
  ra_attention_desc desc_;
  ra_unique_id id_;
  test::Ranks ranks_;
  std::vector<std::unique_ptr<Tensors>> tensors_;
};

struct Options {
  std::int64_t ranks = 2;
  std::int64_t tokens = 0;  // 0: 8,192, or 4,096 with --quick
  std::size_t calls = 0;    // 0: 5, or 3 with --quick
};

// Where a line through (rate, slowdown), with rates descending, first reaches `knee_slowdown`: rates between are in proportion.
constexpr double knee_slowdown = 1.25;
std::optional<double> find_knee(const std::vector<double>& rates, const std::vector<double>& slowdowns) {
  for (std::size_t n = 1; n < rates.size(); ++n)
    if (slowdowns[n] >= knee_slowdown && slowdowns[n - 1] < knee_slowdown) {
      const double share = (knee_slowdown - slowdowns[n - 1]) / (slowdowns[n] - slowdowns[n - 1]);
      return rates[n - 1] * std::pow(rates[n] / rates[n - 1], share);
    }
  return std::nullopt;
}

void run(Report& report, const Options& options) {
  const std::int64_t tokens = options.tokens > 0 ? options.tokens : report.quick() ? 4096 : 8192;
  const std::size_t calls = options.calls > 0 ? options.calls : report.quick() ? 3 : 5;
  const auto ranks = static_cast<std::int32_t>(options.ranks);
  report.note(
      fmt::format("{} ranks of one thread; zigzag causal, {} tokens x 8 heads x 64, float32; medians of {} calls",
                  ranks, tokens, calls));
  report.begin_table("predicted and measured", {{"pass", "pass", "", "", 1, 8},
                                                {"link", "link", "MB/s", "{:.1f}"},
                                                {"measured", "measured", "s", "{:.3f}"},
                                                {"predicted", "predicted", "s", "{:.3f}"},
                                                {"ratio", "ratio", "", "{:.3f}"}});
  const ra_attention_desc desc = make_desc(tokens, 8, RA_MASK_CAUSAL);
  Group group(desc, ranks);
  constexpr double steps[] = {4, 2, 1.4, 1, 0.7, 0.5, 0.25};  // of the rate at which communication stops hiding
  Progress progress(static_cast<int>(2 * std::size(steps)));
  double worst = 1;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const std::string name = pass == Pass::forward ? "forward" : "backward";
    limit_links(no_limit);
    group.measure(pass);  // workspaces grow
    const double flops = group.flops(pass), rough = flops / group.measure(pass);
    double knee = 1e12;  // the model's, roughly
    while (group.predict(pass, rough, knee) < 1.1 * group.predict(pass, rough, 1e15)) knee /= 1.1;

    std::vector<double> rates, measured_slowdown, predicted_slowdown;
    for (const double step : steps) {
      const double rate = std::round(knee * step);
      progress.begin_step(fmt::format("{}, {:.1f} MB/s", name, rate * 1e-6));
      std::vector<double> seconds, unlimited;
      for (std::size_t n = 0; n < calls; ++n) {
        limit_links(no_limit);
        unlimited.push_back(group.measure(pass));
        limit_links(static_cast<std::uint64_t>(rate));
        seconds.push_back(group.measure(pass));
      }
      const double own = flops / median(unlimited), predicted = group.predict(pass, own, rate);
      const double ratio = median(seconds) / predicted;
      report.add_row({name, rate * 1e-6, median(seconds), predicted, ratio});
      worst = std::max({worst, ratio, 1 / ratio});
      rates.push_back(rate);
      measured_slowdown.push_back(median(seconds) / median(unlimited));
      predicted_slowdown.push_back(predicted / median(unlimited));
    }
    const std::optional<double> at = find_knee(rates, measured_slowdown),
                                expected = find_knee(rates, predicted_slowdown);
    if (!at || !expected) throw std::runtime_error(name + ": no knee between these rates");
    report.add_bar(name + ", knee measured / predicted", std::max(*at / *expected, *expected / *at), "<=", 1.2);
  }
  report.add_bar("worst ratio of any row", worst, "<=", 1.2);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "estimate", "Times that ra_estimate_time predicts against measured ones, over links of limited rates",
      {{"--ranks", &options.ranks, "ranks (default 2)"},
       {"--tokens", &options.tokens, "length of the sequence (default 8192)"},
       {"--calls", &options.calls, "calls of a row (default 5, with --quick 3)"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
