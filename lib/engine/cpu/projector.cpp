// A product is computed in tiles of `to`, each on one thread, and a tile by blocks of the depth, in ascending order. How it is cut
// depends on its sizes alone, and so do the results. Operands that the library cannot multiply as they are become fp32 first, block by
// block.
#include "engine/cpu/projector.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/memory.h"
#include "engine/cpu/attention.h"

namespace ringattn::cpu {
namespace {

constexpr std::int64_t most_tile_rows = 256, tile_columns = 256, block_depth = 1024;
constexpr std::int64_t rows_at_once = 128;  // of what is done row by row
constexpr std::int64_t share_rows = 256;    // whose share of a sum of rows is added up by itself

constexpr std::int64_t parts_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// Fewer where there would be too few tiles for threads to share.
std::int64_t choose_tile_rows(const Product& p) {
  constexpr std::int64_t enough = 32, least = 32;
  std::int64_t rows = most_tile_rows;
  while (rows > least && parts_of(p.rows, rows) * parts_of(p.columns, tile_columns) < enough) rows /= 2;
  return rows;
}

// What one thread needs for a product.
struct Blocks {
  float *left, *right, *tile;

  static Blocks take(Arena& arena) {
    Blocks b;
    b.left = arena.take<float>(most_tile_rows * block_depth);
    b.right = arena.take<float>(block_depth * tile_columns);
    b.tile = arena.take<float>(most_tile_rows * tile_columns);
    return b;
  }
  static std::size_t bytes() {
    Arena arena;
    take(arena);
    return arena.size();
  }
  static Blocks of_thread(void* scratch, int slot) {
    Arena arena(static_cast<std::byte*>(scratch) + bytes() * static_cast<std::size_t>(slot));
    return take(arena);
  }
};

struct Turn {
  double cosine, sine;

  static Turn by(double angle) { return {std::cos(angle), std::sin(angle)}; }
  friend Turn operator*(Turn a, Turn b) {
    return {a.cosine * b.cosine - a.sine * b.sine, a.sine * b.cosine + a.cosine * b.sine};
  }
};

// The angles of a rotation, in fp64. A position's turn is that of the last multiple of `span` before it, and then that of the rest,
// which is kept for all pairs: where positions follow on each other, products take the place of functions.
class Turns {
 public:
  static constexpr std::int64_t span = 64, most_pairs = most_head_dim / 2;

  explicit Turns(const Rotation& rotation) : rotation_(rotation), pairs_(rotation.elements / 2) {
    for (std::int64_t n = 0; n < span; ++n)
      for (std::int64_t i = 0; i < pairs_; ++i) rests_.push_back(Turn::by(static_cast<double>(n) * rotation.rate(i)));
  }

  std::int64_t pairs() const { return pairs_; }
  const Turn* rest(std::int64_t position) const { return rests_.data() + position % span * pairs_; }
  const Rotation& rotation() const { return rotation_; }

 private:
  Rotation rotation_;
  std::int64_t pairs_;
  std::vector<Turn> rests_;  // [span, pairs]
};

// One thread's way through positions.
class Turner {
 public:
  explicit Turner(const Turns& turns) : turns_(turns) {
    for (std::int64_t i = 0; i < turns.pairs(); ++i) rates_[at(i)] = turns.rotation().rate(i);
  }

  void go_to(std::int64_t position) {
    const std::int64_t multiple = position / Turns::span * Turns::span;
    const Turn* const rest = turns_.rest(position);
    for (std::int64_t i = 0; i < turns_.pairs(); ++i) {
      if (multiple != multiple_) whole_[at(i)] = Turn::by(static_cast<double>(multiple) * rates_[at(i)]);
      const Turn turn = whole_[at(i)] * rest[i];
      cosines_[at(i)] = static_cast<float>(turn.cosine);
      sines_[at(i)] = static_cast<float>(turn.sine);
    }
    multiple_ = multiple;
  }
  // One head, forwards (1) or back (-1).
  void turn(float direction, float* head) const {
    const bool is_interleaved = turns_.rotation().is_interleaved;
    const std::int64_t step = is_interleaved ? 2 : 1, far = is_interleaved ? 1 : turns_.pairs();
    for (std::int64_t i = 0; i < turns_.pairs(); ++i) {
      float &a = head[i * step], &b = head[i * step + far];
      const float x = a, y = b, cosine = cosines_[at(i)], sine = direction * sines_[at(i)];
      a = x * cosine - y * sine;
      b = x * sine + y * cosine;
    }
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  const Turns& turns_;
  std::int64_t multiple_ = -1;
  std::array<double, Turns::most_pairs> rates_;
  std::array<Turn, Turns::most_pairs> whole_;
  std::array<float, Turns::most_pairs> cosines_, sines_;
};

using Head = std::array<float, most_head_dim>;
using HeadSum = std::array<double, most_head_dim>;

float scale_of(const Head& head, const HeadStyle& style) {
  double sum = 0;
  for (std::int64_t d = 0; d < style.dim; ++d) {
    const auto x = static_cast<double>(head[static_cast<std::size_t>(d)]);
    sum += x * x;
  }
  return static_cast<float>(1 / std::sqrt(sum / static_cast<double>(style.dim) + style.epsilon));
}

// Calls f(turner, first, end) for stretches of rows; `size` of them begin a new one.
template <class F>
void for_each_stretch(Threads& threads, std::int64_t rows, std::int64_t size, F&& f) {
  threads.for_each(parts_of(rows, size), [&](std::int64_t n, int) { f(n, n * size, std::min((n + 1) * size, rows)); });
}

}  // namespace

std::unique_ptr<Projector> CpuEngine::make_projector() {
  return std::make_unique<CpuProjector>(onednn_library(), *tiles_.any, threads_);
}

std::size_t CpuProjector::scratch_bytes(std::int64_t rows) const {
  const std::size_t shares = static_cast<std::size_t>(parts_of(rows, share_rows)) * sizeof(HeadSum);
  return std::max(Blocks::bytes() * static_cast<std::size_t>(threads_.count()), shares);
}

void CpuProjector::multiply(const Product& p, void* scratch) {
  const std::int64_t tile_rows = choose_tile_rows(p), across = parts_of(p.columns, tile_columns);
  threads_.for_each(parts_of(p.rows, tile_rows) * across, [&](std::int64_t index, int slot) {
    const Blocks blocks = Blocks::of_thread(scratch, slot);
    const std::int64_t row = index / across * tile_rows, column = index % across * tile_columns;
    const std::int64_t rows = std::min(tile_rows, p.rows - row), columns = std::min(tile_columns, p.columns - column);

    // What the library can multiply as it is, or the same in fp32; `count` rows of `size` numbers as they lie.
    const auto operand = [&](const Matrix& m, bool as_it_is, std::int64_t count, std::int64_t size, float* room) {
      if (as_it_is || m.dtype == DType::float32) return m;
      if (m.is_transposed) std::swap(count, size);
      for (std::int64_t i = 0; i < count; ++i)
        tiles_.load(m.dtype, static_cast<const std::byte*>(m.data) + i * m.stride * size_of(m.dtype), size,
                    room + i * size);
      return Matrix{room, DType::float32, size, m.is_transposed};
    };

    const bool direct = p.to.dtype == DType::float32 && p.bias.data == nullptr;
    const Matrix tile = direct ? p.to.from(row, column) : Matrix{blocks.tile, DType::float32, tile_columns};
    bool adds = direct && p.accumulate;
    for (const Term& term : p.terms) {
      const bool as_it_is =
          term.left.dtype == DType::bfloat16 && term.right.dtype == DType::bfloat16 && onednn_.has_bfloat16();
      for (std::int64_t k = 0; k < term.depth; k += block_depth) {
        const std::int64_t depth = std::min(block_depth, term.depth - k);
        onednn_.multiply(operand(term.left.from(row, k), as_it_is, rows, depth, blocks.left),
                         operand(term.right.from(k, column), as_it_is, depth, columns, blocks.right), tile, rows,
                         columns, depth, adds);
        adds = true;
      }
    }
    for (std::int64_t i = 0; i < rows && !adds; ++i)  // there were no terms
      std::fill_n(static_cast<float*>(tile.from(i, 0).data), columns, 0.0F);
    if (direct) return;
    if (p.bias.data != nullptr) load(p.bias, 0, column, columns, blocks.right);
    for (std::int64_t i = 0; i < rows; ++i) {
      float* const values = blocks.tile + i * tile_columns;
      if (p.bias.data != nullptr)
        for (std::int64_t j = 0; j < columns; ++j) values[j] += blocks.right[j];
      store(values, p.to, row + i, column, columns, p.accumulate);
    }
  });
}

void CpuProjector::sum_rows(const Matrix& from, std::int64_t rows, std::int64_t columns, float* to, bool accumulate,
                            void*) {
  constexpr std::int64_t at_once = 64;
  threads_.for_each(parts_of(columns, at_once), [&](std::int64_t n, int) {
    const std::int64_t column = n * at_once, count = std::min(at_once, columns - column);
    std::array<double, at_once> sums{};
    std::array<float, at_once> values;
    for (std::int64_t i = 0; i < rows; ++i) {
      load(from, i, column, count, values.data());
      for (std::size_t j = 0; j < static_cast<std::size_t>(count); ++j) sums[j] += static_cast<double>(values[j]);
    }
    for (std::int64_t j = 0; j < count; ++j) {
      float& sum = to[column + j];
      sum = static_cast<float>(sums[static_cast<std::size_t>(j)] + (accumulate ? static_cast<double>(sum) : 0));
    }
  });
}

void CpuProjector::store_positions(std::span<const Piece> pieces, std::int64_t* positions) {
  for (const Piece& piece : pieces)
    for (std::int64_t i = 0; i < piece.length; ++i) positions[piece.row + i] = piece.position(i);
}

void CpuProjector::style_heads(const HeadStyle& style, const Matrix& from, const Matrix& to, std::int64_t rows) {
  const Turns turns(style.rotation);
  Head norm;
  if (style.norm.data != nullptr) load(style.norm, 0, 0, style.dim, norm.data());
  for_each_stretch(threads_, rows, rows_at_once, [&](std::int64_t, std::int64_t first, std::int64_t end) {
    Turner turner(turns);
    Head head;
    for (std::int64_t row = first; row < end; ++row) {
      turner.go_to(style.positions[static_cast<std::size_t>(row) % style.positions.size()]);
      for (std::int64_t h = 0; h < style.heads; ++h) {
        load(from, row, h * style.dim, style.dim, head.data());
        if (style.norm.data != nullptr) {
          const float scale = scale_of(head, style);
          for (std::size_t d = 0; d < static_cast<std::size_t>(style.dim); ++d) head[d] *= scale * norm[d];
        }
        turner.turn(1, head.data());
        store(head.data(), to, row, h * style.dim, style.dim, false);
      }
    }
  });
}

// With s = 1 / sqrt(mean(x^2) + epsilon) and g the gradient of what was turned, turned back: dx = s (norm g - s^2 x mean(x norm g)),
// and dnorm = sum of g s x. Each share of rows has its own sum of that in `scratch`, and these are added up in their order.
void CpuProjector::differentiate_heads(const HeadStyle& style, const Matrix& from, const Matrix& gradient,
                                       std::int64_t rows, float* dnorm, bool accumulate, void* scratch) {
  const Turns turns(style.rotation);
  const auto dim = static_cast<std::size_t>(style.dim);
  Head norm;
  if (style.norm.data != nullptr) load(style.norm, 0, 0, style.dim, norm.data());
  HeadSum* const shares = static_cast<HeadSum*>(scratch);
  for_each_stretch(threads_, rows, share_rows, [&](std::int64_t n, std::int64_t first, std::int64_t end) {
    Turner turner(turns);
    Head head, g;
    HeadSum share{};
    for (std::int64_t row = first; row < end; ++row) {
      turner.go_to(style.positions[static_cast<std::size_t>(row) % style.positions.size()]);
      for (std::int64_t h = 0; h < style.heads; ++h) {
        load(gradient, row, h * style.dim, style.dim, g.data());
        turner.turn(-1, g.data());
        if (style.norm.data != nullptr) {
          load(from, row, h * style.dim, style.dim, head.data());
          const float scale = scale_of(head, style);
          float sum = 0;
          for (std::size_t d = 0; d < dim; ++d) {
            share[d] += static_cast<double>(g[d] * scale * head[d]);
            g[d] *= norm[d];
            sum += g[d] * head[d];
          }
          const float part = scale * scale * sum / static_cast<float>(style.dim);
          for (std::size_t d = 0; d < dim; ++d) g[d] = scale * (g[d] - part * head[d]);
        }
        store(g.data(), gradient, row, h * style.dim, style.dim, false);
      }
    }
    if (dnorm != nullptr) shares[n] = share;
  });
  if (dnorm == nullptr || style.norm.data == nullptr || threads_.cancelled()) return;
  for (std::size_t d = 0; d < dim; ++d) {
    double sum = accumulate ? static_cast<double>(dnorm[d]) : 0;
    for (std::int64_t n = 0; n < parts_of(rows, share_rows); ++n) sum += shares[n][d];
    dnorm[d] = static_cast<float>(sum);
  }
}

}  // namespace ringattn::cpu
