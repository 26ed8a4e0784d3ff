// What ranks tell each other beside attention: sums of gradients, and numbers of which all must know all, so that all decide alike.
#pragma once

#include <numeric>
#include <span>
#include <string_view>

#include "group.hpp"

/** FNV-1a: tells whether two ranks, or two runs, have the same bytes. */
inline uint64_t fingerprint(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

template <class... Args>
void require(bool holds, fmt::format_string<Args...> what_is_wrong, Args&&... args) {
  if (!holds) throw std::runtime_error(fmt::format(what_is_wrong, std::forward<Args>(args)...));
}

struct Rank {
  ra_context* context;
  int32_t world_size, rank;

  /** numbers[i] becomes the sum of all ranks' numbers[i], the same bits on every rank. */
  void all_reduce(std::span<float> numbers) const {
    ra_error error;
    ra_reduce_args args;
    ra_init_reduce_args(&args, sizeof args);
    args.data = numbers.data(), args.count = static_cast<int64_t>(numbers.size());
    check(ra_all_reduce(context, &args, &error), error);
  }

  /** Every rank's x, to 48 bits: each writes two floats that add up to its own beside the others' zeros, which changes no bit of them. */
  std::vector<double> gather(double x) const {
    std::vector<float> halves(static_cast<size_t>(2 * world_size));
    halves[2 * rank] = static_cast<float>(x);
    halves[2 * rank + 1] = static_cast<float>(x - halves[2 * rank]);
    all_reduce(halves);
    std::vector<double> all;
    for (size_t i = 0; i < halves.size(); i += 2) all.push_back(double{halves[i]} + double{halves[i + 1]});
    return all;
  }
  double sum(double x) const {
    const std::vector<double> all = gather(x);
    return std::accumulate(all.begin(), all.end(), 0.0);
  }

  /** Throws, on every rank, if some rank has other bytes: what would they compute together? */
  void agree(const std::string& what, const std::string& bytes) const {
    const std::vector<double> all = gather(static_cast<double>(fingerprint(bytes) >> 16));
    for (int32_t other = 1; other < world_size; ++other)
      require(all[other] == all[0], "rank {} and rank 0 differ in {}; rank {} has {}", other, what, rank, bytes);
  }
};
