// Whether an engine gains from an order of its work that keeps K, V and Q near: (query tile, key tile) pairs of one head, by
//
//   rows      every key tile of a query tile, then the next query tile: each row's running result stays, keys come and go
//   columns   every query tile of a key tile, then the next key tile: the other way round
//   z         Morton's curve: quarter by quarter, and the quarters of a quarter, each from left to right and from top to bottom
//   hilbert   Hilbert's curve: the same, but each pair shares a tile with the one before it
//
// against the library's own pass, which is one step. A tile is a step too, as those of a ring are. In the first three a row meets
// its keys in ascending order, so forward results are bitwise those of one step (tests/engine/order_test.cpp); Hilbert's curve goes
// back and forth, and so rounding of the running sums differs.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "benchmark/report.h"
#include "support/tile_order.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;
using test::TiledHead;
using test::TileOrder;

double seconds_of(const auto& f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void run(Report& report) {
  const std::int64_t tokens = report.quick() ? 4096 : 16384;
  const int rounds = report.quick() ? 3 : 5;
  const std::unique_ptr<Engine> engine = make_cpu_engine(nullptr, 1);
  report.begin_table(
      fmt::format("{}: {} tokens, one head of 128, 1 thread; time of one step / time in tiles of 1,024 x 1,024",
                  engine->name(), fmt::group_digits(tokens)),
      {{"pass", "pass", "", "", 1, 8},
       {"dtype", "dtype", "", "", 1, 8},
       {"mask", "mask", "", "", 1, 6},
       {"seconds", "one step", "s", "{:.2f}"},
       {"rows", "rows", "", "{:.3f}"},
       {"columns", "columns", "", "{:.3f}"},
       {"z", "z", "", "{:.3f}"},
       {"hilbert", "hilbert", "", "{:.3f}"}});
  Progress progress(8);
  double best = 0;
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const DType dtype : {DType::float32, DType::bfloat16})
      for (const bool causal : {false, true}) {
        const std::string pass_name = pass == Pass::forward ? "forward" : "backward";
        const std::string dtype_name = dtype == DType::float32 ? "float32" : "bfloat16";
        progress.begin_step(fmt::format("{}, {}, {}", pass_name, dtype_name, causal ? "causal" : "full"));
        TiledHead head(*engine, tokens, 1024, 128, dtype, causal);
        std::vector<double> whole, ratios[std::size(test::tile_orders)];
        for (int round = 0; round < rounds; ++round) {
          const double one = seconds_of([&] { head.run_whole(pass); });
          whole.push_back(one);
          for (std::size_t n = 0; n < std::size(test::tile_orders); ++n)
            ratios[n].push_back(one / seconds_of([&] { head.run_tiles(pass, test::tile_orders[n]); }));
        }
        report.add_row({pass_name, dtype_name, causal ? "causal" : "full", median(whole), median(ratios[0]),
                        median(ratios[1]), median(ratios[2]), median(ratios[3])});
        for (const auto& r : ratios) best = std::max(best, median(r));
      }
  // Were an order faster than the library's own by more than this measurement scatters, the library should have it.
  report.add_bar("the fastest order of tiles over one step", best, "<=", 1.1);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  return ringattn::benchmark::run_benchmark(
      argc, argv, "tiles", "Orders of (query tile, key tile) work items inside a rank", {}, ringattn::benchmark::run);
}
