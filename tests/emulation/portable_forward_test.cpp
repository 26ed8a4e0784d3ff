// The portable engine's forward kernels, emulated: right for any problem, on any number of ranks, whatever order blocks run in.
#include <array>
#include <cmath>
#include <iostream>
#include <limits>
#include <set>

#include "emulation/kernels.h"

namespace ringattn::cuda {
namespace {

using reference::Of;
using reference::Oracle;

constexpr std::array<std::array<std::int64_t, 2>, 14> dims{{{64, 64},
                                                            {128, 128},
                                                            {40, 40},
                                                            {1, 1},
                                                            {8, 8},
                                                            {72, 72},
                                                            {96, 96},
                                                            {192, 128},
                                                            {256, 256},
                                                            {64, 128},
                                                            {33, 17},
                                                            {80, 48},
                                                            {5, 250},
                                                            {32, 32}}};

// Any mask, with lengths of a few tiles where head_dim is small.
Problem draw_forward(Random& random) {
  const auto& dim = dims[static_cast<std::size_t>(draw(random, 0, static_cast<std::int64_t>(dims.size()) - 1))];
  const bool wide = std::max(dim[0], dim[1]) > 128;
  Problem p = reference::draw_problem(
      random, {.batch = 2, .seqlen = draw(random, 1, wide ? 70 : 150), .num_heads_kv = 2, .group = wide ? 1 : 2});
  p.head_dim = dim[0];
  p.head_dim_v = dim[1];
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  if (draw(random, 0, 9) == 0) p.softmax_scale *= draw(random, 0, 1) == 0 ? -1.0F : 0.0F;
  return p;
}

TEST(PortableForward, IsWithinTheToleranceOfTheOracle) {
  Random random(test::seed());
  std::map<std::string, int> launches;
  double worst_out = 0, worst_lse = 0;
  const int cases = test::sample(500);
  for (int n = 0; n < cases; ++n) {
    const Problem p = draw_forward(random);
    const Oracle oracle(p, random, Of::forward);
    const int world_size = static_cast<int>(draw(random, 1, 4));
    const auto layout = static_cast<Layout>(draw(random, 0, 3));
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << world_size << " ranks, layout "
                                      << static_cast<int>(layout) << ": " << reference::describe(p));
    const ForwardResult result = run_forward(oracle, world_size, layout, random);
    worst_out = std::max(worst_out, compare("out", result.out, oracle.out));
    worst_lse = std::max(worst_lse, compare("lse", result.lse, oracle.lse));
    if (HasFailure()) return;
    for (const auto& [name, count] : result.launches) launches[name] += count;
  }
  std::cout << cases << " cases; worst error of out " << worst_out << ", of lse " << worst_lse << " of the tolerance\n";
  for (const auto& [name, count] : launches) std::cout << name << ": " << count << " launches\n";
}

}  // namespace
}  // namespace ringattn::cuda
