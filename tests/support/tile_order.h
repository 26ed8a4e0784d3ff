// One head's passes on an engine, in one step or tile by tile, in several orders: for the test that says which orders change no bit, and
// for the benchmark that says which are faster.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "engine/engine.h"
#include "plan/problem.h"

namespace ringattn::test {

enum class TileOrder { rows, columns, z, hilbert };
constexpr TileOrder tile_orders[] = {TileOrder::rows, TileOrder::columns, TileOrder::z, TileOrder::hilbert};

struct TilePair {
  std::int64_t query, key;
};

// Where number `n` of 4^levels is on the curve: two bits a level, the outermost first. Hilbert 1891, by turning the square that is left at
// each level; Morton 1966.
inline TilePair curve_at(TileOrder order, std::int64_t n, int levels) {
  std::int64_t x = 0, y = 0;
  for (int level = 0; level < levels; ++level) {
    const std::int64_t side = std::int64_t{1} << level, quarter = n >> (2 * level) & 3;
    std::int64_t right = quarter & 1, down = quarter >> 1;
    if (order == TileOrder::hilbert) {
      right = quarter >> 1;
      down = (quarter ^ quarter >> 1) & 1;
      if (down == 0) {
        if (right == 1) x = side - 1 - x, y = side - 1 - y;
        std::swap(x, y);
      }
    }
    x += right * side;
    y += down * side;
  }
  return {y, x};
}

// All pairs of `count` query and `count` key tiles.
inline std::vector<TilePair> list_tiles(TileOrder order, std::int64_t count) {
  std::vector<TilePair> tiles;
  if (order == TileOrder::rows || order == TileOrder::columns) {
    for (std::int64_t outer = 0; outer < count; ++outer)
      for (std::int64_t inner = 0; inner < count; ++inner)
        tiles.push_back(order == TileOrder::rows ? TilePair{outer, inner} : TilePair{inner, outer});
    return tiles;
  }
  const int levels = std::countr_zero(std::bit_ceil(static_cast<std::uint64_t>(count)));
  for (std::int64_t n = 0; n < std::int64_t{1} << 2 * levels; ++n)
    if (const TilePair tile = curve_at(order, n, levels); tile.query < count && tile.key < count) tiles.push_back(tile);
  return tiles;
}

class TiledHead {
 public:
  // `tokens` of one head, in tiles of `tile` by `tile`.
  TiledHead(Engine& engine, std::int64_t tokens, std::int64_t tile, std::int64_t dim, DType dtype, bool causal)
      : engine_(engine), tile_(tile) {
    problem_.seqlen_q = problem_.seqlen_kv = tokens;
    problem_.head_dim = problem_.head_dim_v = dim;
    problem_.dtype = problem_.out_dtype = problem_.grad_dtype = dtype;
    problem_.softmax_scale = 1 / std::sqrt(static_cast<float>(dim));
    problem_.causal = causal;
    problem_.num_chunks = 1;
    problem_.documents = {{0, tokens, 0, tokens}};
    for (std::vector<float>* const input : {&q_, &k_, &v_, &dout_}) fill(*input, dtype);
    for (std::vector<float>* const result : {&out_, &running_, &dq_, &dk_, &dv_}) result->resize(size());
    for (std::vector<float>* const row : {&max_, &sum_, &lse_, &delta_}) row->resize(static_cast<std::size_t>(tokens));
    std::size_t scratch = 0;
    for (const Pass pass : {Pass::forward, Pass::backward})
      for (const bool only : {false, true})
        scratch = std::max(scratch, engine.scratch_bytes(problem_, pass, tokens, only));
    scratch_bytes_ = scratch_.reserve(scratch);
    run_whole(Pass::forward);
    engine.compute_delta(problem_, tensor(dout_, dtype), tensor(out_, dtype), tokens, delta_.data());
  }

  void run_whole(Pass pass) {
    if (pass == Pass::backward) clear_gradients();
    run({0, 0}, problem_.seqlen_q, pass, true, true);
  }
  void run_tiles(Pass pass, TileOrder order) {
    if (pass == Pass::backward) clear_gradients();
    if (pass == Pass::forward) {  // of out, what its dtype fills
      std::fill_n(out_.begin(), size() * static_cast<std::size_t>(size_of(problem_.dtype)) / sizeof(float), NAN);
      std::fill(lse_.begin(), lse_.end(), NAN);
    }
    std::vector<TilePair> tiles = list_tiles(order, (problem_.seqlen_q + tile_ - 1) / tile_);
    if (problem_.causal) std::erase_if(tiles, [](const TilePair& t) { return t.key > t.query; });
    std::vector<std::int64_t> left(tiles.size());  // of each query tile
    for (const TilePair& t : tiles) ++left[static_cast<std::size_t>(t.query)];
    std::vector<bool> begun(tiles.size());
    for (const TilePair& t : tiles) {
      const auto query = static_cast<std::size_t>(t.query);
      run(t, tile_, pass, !begun[query], --left[query] == 0);
      begun[query] = true;
    }
  }

  // Of the last pass.
  const std::vector<float>& out() const { return out_; }
  const std::vector<float>& lse() const { return lse_; }
  const std::vector<float>& dq() const { return dq_; }
  const std::vector<float>& dk() const { return dk_; }
  const std::vector<float>& dv() const { return dv_; }

 private:
  std::size_t size() const { return static_cast<std::size_t>(problem_.seqlen_q * problem_.head_dim); }

  // Numbers of `dtype`, in memory for as many floats.
  void fill(std::vector<float>& values, DType dtype) {
    values.resize(size());
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& x : values) {
      const auto bits = std::bit_cast<std::uint32_t>(uniform(random_));
      x = std::bit_cast<float>(dtype == DType::float32 ? bits : bits >> 16 | (bits & 0xffff0000U));  // two alike
    }
  }
  void clear_gradients() {
    for (std::vector<float>* const gradient : {&dq_, &dk_, &dv_}) std::fill(gradient->begin(), gradient->end(), 0.0F);
  }
  Tensor tensor(std::vector<float>& data, DType dtype) const {
    return packed_tensor(data.data(), dtype, problem_.seqlen_q, 1, problem_.head_dim);
  }

  void run(TilePair tile, std::int64_t rows, Pass pass, bool first, bool last) {
    const std::int64_t tokens = problem_.seqlen_q;
    const auto piece = [&](std::int64_t number) {
      const std::int64_t begin = number * rows, length = std::min(rows, tokens - begin);
      Piece p;
      p.run = {.start = begin, .block = length, .stride = length, .length = length};
      p.length = length;
      p.row = begin;
      return p;
    };
    const Piece queries = piece(tile.query), keys = piece(tile.key);
    WorkItem item;
    item.band = problem_.band(problem_.documents[0]);
    item.queries = {&queries, 1};
    item.keys = {&keys, 1};
    const DType dtype = problem_.dtype;
    if (pass == Pass::forward) {
      ForwardStep step;
      step.items = {&item, 1};
      step.q = tensor(q_, dtype);
      step.k = tensor(k_, dtype);
      step.v = tensor(v_, dtype);
      step.query_rows = step.key_rows = tokens;
      step.running = tensor(running_, DType::float32);
      step.max = max_.data();
      step.sum = sum_.data();
      step.out = tensor(out_, dtype);
      step.lse = lse_.data();
      step.first = first;
      step.last = last;
      step.scratch = scratch_bytes_;
      return engine_.forward(problem_, step);
    }
    BackwardStep step;
    step.items = {&item, 1};
    step.q = tensor(q_, dtype);
    step.k = tensor(k_, dtype);
    step.v = tensor(v_, dtype);
    step.dout = tensor(dout_, dtype);
    step.query_rows = step.key_rows = tokens;
    step.lse = lse_.data();
    step.delta = delta_.data();
    step.dq = tensor(dq_, DType::float32);
    step.dk = tensor(dk_, DType::float32);
    step.dv = tensor(dv_, DType::float32);
    step.scratch = scratch_bytes_;
    engine_.backward(problem_, step);
  }

  Engine& engine_;
  Problem problem_;
  std::int64_t tile_;
  std::mt19937 random_;
  std::vector<float> q_, k_, v_, dout_, out_, running_, max_, sum_, lse_, delta_, dq_, dk_, dv_;
  Block scratch_;
  void* scratch_bytes_ = nullptr;
};

}  // namespace ringattn::test
