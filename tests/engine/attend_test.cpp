// A tile of attention, forward and backward, against loops in double over what each row sees.
//
// Errors are carried along: a product of `dim` terms is off by their roundings, a weight by as much as its score is, and what is
// summed over weights by all of them and its own roundings.
#include <sstream>

#include "engine/tile_test.h"

namespace ringattn::cpu {
namespace {

class Attend : public TileTest {};
INSTANTIATE_TEST_SUITE_P(All, Attend, ::testing::ValuesIn(cpu_tiles()), name_of);
class Differentiate : public TileTest {};
INSTANTIATE_TEST_SUITE_P(All, Differentiate, ::testing::ValuesIn(cpu_tiles()), name_of);

std::vector<const Tiles*> tiles_where(bool (*holds)(const Tiles&)) {
  std::vector<const Tiles*> found = cpu_tiles();
  std::erase_if(found, [&](const Tiles* tiles) { return !holds(*tiles); });
  return found;
}
bool take_any_value(const Tiles& tiles) { return !tiles.ordinary_only(); }
bool have_few_rows(const Tiles& tiles) { return tiles.few_rows > 0; }

class AttendAnyValue : public Attend {};
INSTANTIATE_TEST_SUITE_P(All, AttendAnyValue, ::testing::ValuesIn(tiles_where(take_any_value)), name_of);
class DifferentiateAnyValue : public Differentiate {};
INSTANTIATE_TEST_SUITE_P(All, DifferentiateAnyValue, ::testing::ValuesIn(tiles_where(take_any_value)), name_of);
class AttendFew : public Attend {};
INSTANTIATE_TEST_SUITE_P(All, AttendFew, ::testing::ValuesIn(tiles_where(have_few_rows)), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttendFew);

// A computed value and how far it may be from the true one.
struct Near {
  double exact = 0, error = 0;
};

// A sum of products of such values: each term is rounded as often as there are terms, which `rounded` adds once all are in.
struct NearSum : Near {
  double magnitude = 0;
  std::int64_t terms = 0;
  void add(Near a, double b) {
    exact += a.exact * b;
    error += a.error * std::abs(b);
    magnitude += std::abs(a.exact * b);
    ++terms;
  }
  Near rounded() const { return {exact, error + static_cast<double>(terms + 1) * u * (magnitude + error)}; }
};

testing::AssertionResult is_near(float ours, Near value) {
  if (std::abs(ours - value.exact) <= value.error) return testing::AssertionSuccess();
  return testing::AssertionFailure() << ours << ", should be " << value.exact << " within " << value.error;
}

// ---------------------------------------------------------------- a problem

std::int64_t draw_dim(Random& random) {
  return once_in(random, 8) ? padding * draw(random, 1, most_head_dim / padding) : draw(random, 1, 140);
}

// Any intervals, of which some are empty; or ascending, as they do in a tile of one piece.
std::vector<Visible> draw_visible(Random& random, std::int64_t rows, std::int64_t keys, bool ascending) {
  const auto key = [&] { return static_cast<std::int32_t>(draw(random, 0, keys)); };
  std::vector<std::int32_t> lo, hi;
  const bool from_first = once_in(random, 2), to_last = once_in(random, 4);
  for (std::int64_t i = 0; i < rows; ++i) {
    lo.push_back(from_first ? 0 : key());
    hi.push_back(to_last ? static_cast<std::int32_t>(keys) : key());
  }
  if (ascending) {
    std::sort(lo.begin(), lo.end());
    std::sort(hi.begin(), hi.end());
  }
  std::vector<Visible> visible;
  for (std::size_t i = 0; i < lo.size(); ++i) visible.push_back({std::min(lo[i], hi[i]), hi[i]});
  return visible;
}

// Plain rows of q, k, v and dout; k and v as they are in `dtype`.
struct Attention {
  Attention(const Tiles& tiles, Random& random, std::int64_t rows, std::int64_t keys, bool ascending,
            DType dtype = DType::float32)
      : rounds(tiles.terms == 2 && tiles.summands == 1),
        splits(tiles.summands > 1),
        rows(rows),
        keys(keys),
        dim(draw_dim(random)),
        dim_v(draw_dim(random)),
        scale(uniform(random, 0.02, 0.5) * (once_in(random, 4) ? -1.0F : 1.0F)),
        softcap(once_in(random, 2) ? 0.0F : uniform(random, 1, 30)),
        q(in_rows(rows, dim)),
        k(in_rows(keys, dim)),
        v(in_rows(keys, dim_v)),
        dout(in_rows(rows, dim_v)),
        visible(draw_visible(random, rows, keys, ascending)),
        dtype(dtype) {
    for (Matrix* m : {&q, &k, &v, &dout})
      std::generate(m->values.begin(), m->values.end(), [&] {
        const float value = ordinary(random);
        return rounds ? static_cast<float>(reference::rounded(value, DType::bfloat16)) : value;
      });
    for (Matrix* m : {&k, &v})
      for (float& x : m->values) x = static_cast<float>(reference::rounded(static_cast<double>(x), dtype));
  }
  // What multiplies a row of an operand: a weight, or the gradient of a score.
  Near as_operand(Near value) const {
    const double rounding = rounds ? 0x1p-8 : splits ? missing : 0;
    return {value.exact, value.error + rounding * (std::abs(value.exact) + value.error)};
  }
  Visible seen(std::int64_t i) const { return visible[static_cast<std::size_t>(i)]; }
  bool sees_any(std::int64_t i) const { return seen(i).lo < seen(i).hi; }
  bool sees(std::int64_t i, std::int64_t j) const { return seen(i).lo <= j && j < seen(i).hi; }
  bool is_seen(std::int64_t j) const {
    for (std::int64_t i = 0; i < rows; ++i)
      if (sees(i, j)) return true;
    return false;
  }
  std::string describe() const {
    std::ostringstream s;
    s << rows << " rows, " << keys << " keys, dim " << dim << " and " << dim_v << ", scale " << scale << ", softcap "
      << softcap << ", dtype " << static_cast<int>(dtype);
    return std::move(s).str();
  }
  std::string describe(std::int64_t i) const {
    std::ostringstream s;
    s << "row " << i << " sees " << seen(i).lo << " .. " << seen(i).hi;
    return std::move(s).str();
  }

  static constexpr double missing = 4 * u;  // of a product of numbers in parts
  bool rounds;                              // operands to bfloat16
  bool splits;                              // operands into parts
  std::int64_t rows, keys, dim, dim_v;
  float scale, softcap;
  Matrix q, k, v, dout;
  std::vector<Visible> visible;
  DType dtype;
};

// Products, once made: of q and k, or of dout and v.
Near product_of(const std::vector<double>& a, std::int64_t i, const std::vector<double>& b, std::int64_t j,
                std::int64_t dim) {
  const Sum sum = dot(a.data() + i * dim, b.data() + j * dim, dim);
  return {sum.exact, static_cast<double>(dim + 1) * u * sum.magnitude};
}
Near score_of(const Attention& x, Near product) {
  if (x.splits) product.error *= 1 + Attention::missing / u;
  const double s = score(product.exact * x.scale, x.softcap);
  return {s, std::abs(x.scale) * product.error + 8 * u * std::abs(s)};
}
Near weight_of(Near score, double base) {
  const double weight = std::exp(score.exact - base);
  return {weight, weight_error(weight, score.exact, base, score.error)};
}

// Rows as a caller has them, with a gap of NaN between one and the next.
struct InPlace {
  InPlace(const Matrix& from, std::int64_t rows, std::int64_t dim, DType dtype)
      : stride(dim + 3),
        bytes(static_cast<std::size_t>(((rows - 1) * stride + dim) * size_of(dtype)), std::byte{0xff}) {
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t d = 0; d < dim; ++d)
        encode(static_cast<double>(from(i, d)), dtype, bytes.data() + (i * stride + d) * size_of(dtype));
  }
  std::int64_t stride;
  std::vector<std::byte> bytes;
};

// A block of keys, packed once for all rows, in every way that a tile takes them.
struct Block {
  Block(const Tiles& tiles, const Attention& x)
      : k(packed(tiles, Operand::right, x.k, x.keys, x.dim)),
        k_columns(packed(tiles, Operand::columns, x.k, x.keys, x.dim)),
        v(packed(tiles, Operand::right, x.v, x.keys, x.dim_v)),
        v_columns(packed(tiles, Operand::columns, x.v, x.keys, x.dim_v)),
        k_in_place(x.k, x.keys, x.dim, x.dtype),
        v_in_place(x.v, x.keys, x.dim_v, x.dtype) {}
  Matrix k, k_columns, v, v_columns;
  InPlace k_in_place, v_in_place;
};
Matrix packed_some(const Tiles& tiles, Operand operand, const Matrix& from, std::int64_t first, std::int64_t rows,
                   std::int64_t dim) {
  Matrix some = in_rows(rows, dim);
  std::copy_n(from.at(first, 0), rows * dim, some.at(0, 0));
  return packed(tiles, operand, some, rows, dim);
}

// Values that are not finite, of q, k, v or dout.
struct Poison {
  char of;
  std::int64_t row, column;
};
std::vector<Poison> poison(Random& random, Attention& x, const std::string& of, float value) {
  std::vector<Poison> poisons;
  for (std::int64_t n = draw(random, 1, 4); n > 0; --n) {
    const char name = of[static_cast<std::size_t>(draw(random, 1, static_cast<std::int64_t>(of.size())) - 1)];
    Matrix& m = name == 'q' ? x.q : name == 'k' ? x.k : name == 'v' ? x.v : x.dout;
    const std::int64_t rows = name == 'q' || name == 'd' ? x.rows : x.keys;
    poisons.push_back({name, draw(random, 0, rows - 1), draw(random, 0, m.row - 1)});
    m(poisons.back().row, poisons.back().column) = value;
  }
  return poisons;
}
template <class F>
bool any(const std::vector<Poison>& poisons, F&& reaches) {
  return std::any_of(poisons.begin(), poisons.end(), reaches);
}
// A result is what it would be without the poison, to the bit; or NaN, where NaN reaches it. Infinity may do anything there.
testing::AssertionResult kept_or_spoilt(float clean, float ours, bool reached, float poison) {
  if (reached ? std::isnan(ours) || !std::isnan(poison) : bits(ours) == bits(clean)) return testing::AssertionSuccess();
  return testing::AssertionFailure() << ours << ", was " << clean << ", and " << poison << " should "
                                     << (reached ? "reach it" : "not reach it");
}

// ---------------------------------------------------------------- forward

// The running state of all rows.
struct State {
  State(const Tiles& tiles, Random& random, const Attention& x)
      : out(in_panels(tiles.columns, x.rows, x.dim_v, 0, tiles.columns)),
        max(static_cast<std::size_t>(x.rows) + 1, gap),
        sum(max) {
    out.fill(x.rows, rounded_up(x.dim_v, tiles.columns), [] { return 0.0F; });
    for (std::size_t i = 0; i + 1 < max.size(); ++i) {
      const bool first = once_in(random, 2);
      max[i] = first ? -infinity : uniform(random, -10, 10);
      sum[i] = first ? 0.0F : uniform(random, 1, 100);
      for (std::int64_t d = 0; d < x.dim_v; ++d)
        out(static_cast<std::int64_t>(i), d) = first ? 0.0F : 10 * ordinary(random);
    }
  }
  // Row i of another.
  State(const Tiles& tiles, const State& from, std::int64_t i, std::int64_t dim_v)
      : out(in_panels(tiles.columns, 1, dim_v)),
        max{from.max[static_cast<std::size_t>(i)]},
        sum{from.sum[static_cast<std::size_t>(i)]} {
    for (std::int64_t d = 0; d < rounded_up(dim_v, tiles.columns); ++d) out(0, d) = from.out(i, d);
  }
  Matrix out;
  std::vector<float> max, sum;
};

// Of the two loops that a table has, the one for few rows, or that for many and whether it may take V to be finite.
enum class Way { many, many_finite, few };
Way draw_way(const Tiles& tiles, Random& random) {
  return static_cast<Way>(draw(random, 0, tiles.few_rows > 0 ? 2 : 1));
}
Attention draw_attention(const Tiles& tiles, Random& random, Way way, std::int64_t least_rows, std::int64_t most_rows) {
  const bool few = way == Way::few;
  const std::int64_t rows = draw(random, least_rows, few ? tiles.few_rows : most_rows);
  const std::int64_t keys = draw(random, 1, few ? tiles.few_keys : tiles.key_block);
  const DType dtype = few ? static_cast<DType>(draw(random, 1, 3)) : DType::float32;
  return {tiles, random, rows, keys, once_in(random, 2), dtype};
}

// Rows first .. first + rows - 1.
void attend(const Tiles& tiles, const Attention& x, const Block& block, std::int64_t first, std::int64_t rows, Way way,
            State& state) {
  const Matrix q = packed_some(tiles, Operand::left, x.q, first, rows, x.dim);
  if (way == Way::few)
    return tiles.attend_few({.rows = rows,
                             .keys = x.keys,
                             .dim = x.dim,
                             .dim_v = x.dim_v,
                             .q = q.at(0, 0),
                             .dtype = x.dtype,
                             .k = block.k_in_place.bytes.data(),
                             .v = block.v_in_place.bytes.data(),
                             .k_stride = block.k_in_place.stride,
                             .v_stride = block.v_in_place.stride,
                             .next_k = block.k_in_place.bytes.data(),
                             .next_keys = x.keys,
                             .visible = x.visible.data() + first,
                             .scale = x.scale,
                             .softcap = x.softcap,
                             .out = state.out.at(0, 0),
                             .max = state.max.data(),
                             .sum = state.sum.data()});
  tiles.attend({.rows = rows,
                .keys = x.keys,
                .dim = x.dim,
                .dim_v = x.dim_v,
                .q = q.at(0, 0),
                .k = block.k_columns.at(0, 0),
                .v = block.v.at(0, 0),
                .finite = way == Way::many_finite,
                .visible = x.visible.data() + first,
                .scale = x.scale,
                .softcap = x.softcap,
                .out = state.out.at(0, 0),
                .max = state.max.data(),
                .sum = state.sum.data()});
}

// Row i of the result, given what it was.
void check_row(const Attention& x, std::int64_t i, const std::vector<Near>& scores, const State& before,
               const State& after) {
  const auto row = static_cast<std::size_t>(i);
  if (!x.sees_any(i)) {
    ASSERT_EQ(bits(after.max[row]), bits(before.max[row]));
    ASSERT_EQ(bits(after.sum[row]), bits(before.sum[row]));
    for (std::int64_t d = 0; d < x.dim_v; ++d) ASSERT_EQ(after.out(i, d), before.out(i, d)) << "element " << d;
    return;
  }
  Near largest{before.max[row], 0};
  for (const Near& s : scores) largest = {std::max(largest.exact, s.exact), std::max(largest.error, s.error)};
  ASSERT_TRUE(is_near(after.max[row], largest)) << "max";

  const double base = after.max[row];
  const Near shrink = weight_of({before.max[row], 0}, base);
  NearSum sum;
  std::vector<NearSum> out(static_cast<std::size_t>(x.dim_v));
  sum.add(shrink, before.sum[row]);
  for (std::int64_t d = 0; d < x.dim_v; ++d) out[static_cast<std::size_t>(d)].add(shrink, before.out(i, d));
  for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j) {
    const Near weight = weight_of(scores[static_cast<std::size_t>(j - x.seen(i).lo)], base);
    sum.add(weight, 1);
    for (std::int64_t d = 0; d < x.dim_v; ++d) out[static_cast<std::size_t>(d)].add(x.as_operand(weight), x.v(j, d));
  }
  ASSERT_TRUE(is_near(after.sum[row], sum.rounded())) << "sum";
  for (std::int64_t d = 0; d < x.dim_v; ++d)
    ASSERT_TRUE(is_near(after.out(i, d), out[static_cast<std::size_t>(d)].rounded())) << "element " << d;
}

TEST_P(Attend, AnyRowsToAnyKeys) {
  for (int repeat = 0; repeat < test::sample(300); ++repeat) {
    const Way way = draw_way(tiles, random);
    const Attention x = draw_attention(tiles, random, way, 1, once_in(random, 20) ? 900 : 24);
    SCOPED_TRACE(x.describe());
    const State before(tiles, random, x);
    State after = before;
    attend(tiles, x, Block(tiles, x), 0, x.rows, way, after);
    const std::vector<double> q = in_double(x.q, x.rows, x.dim), k = in_double(x.k, x.keys, x.dim);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      SCOPED_TRACE(x.describe(i));
      std::vector<Near> scores;
      for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j)
        scores.push_back(score_of(x, product_of(q, i, k, j, x.dim)));
      check_row(x, i, scores, before, after);
      if (HasFatalFailure()) return;
    }
    ASSERT_TRUE(unchanged_but(before.out, after.out, x.rows, x.dim_v));
    ASSERT_TRUE(is_gap(after.max.back()) && is_gap(after.sum.back()));
  }
}

// So results do not depend on how rows are shared out.
TEST_P(Attend, ARowByItselfGivesTheSameBits) {
  for (int repeat = 0; repeat < test::sample(300); ++repeat) {
    const Way way = draw_way(tiles, random);
    const Attention x = draw_attention(tiles, random, way, 2, 60);
    SCOPED_TRACE(x.describe());
    const State before(tiles, random, x);
    State together = before;
    const Block block(tiles, x);
    attend(tiles, x, block, 0, x.rows, way, together);
    for (int n = 0; n < 8; ++n) {
      const std::int64_t i = draw(random, 0, x.rows - 1);
      SCOPED_TRACE(x.describe(i));
      State alone(tiles, before, i, x.dim_v);
      attend(tiles, x, block, i, 1, way, alone);
      ASSERT_EQ(bits(alone.max[0]), bits(together.max[static_cast<std::size_t>(i)]));
      ASSERT_EQ(bits(alone.sum[0]), bits(together.sum[static_cast<std::size_t>(i)]));
      for (std::int64_t d = 0; d < x.dim_v; ++d)
        ASSERT_EQ(bits(alone.out(0, d)), bits(together.out(i, d))) << "element " << d;
    }
  }
}

TEST_P(AttendAnyValue, WhatIsNotFiniteReachesWhatSeesItAndNothingElse) {
  for (int repeat = 0; repeat < test::sample(375); ++repeat) {
    const Way way = draw_way(tiles, random);
    const Attention clean = draw_attention(tiles, random, way, 1, 40);
    Attention spoilt = clean;
    const float value = once_in(random, 2) ? nan : once_in(random, 2) ? infinity : -infinity;
    const std::vector<Poison> poisons =
        poison(random, spoilt, way == Way::many_finite || once_in(random, 2) ? "qk" : "qkv", value);
    SCOPED_TRACE(::testing::Message() << clean.describe() << ", way " << static_cast<int>(way));
    const State before(tiles, random, clean);
    State expected = before, after = before;
    attend(tiles, clean, Block(tiles, clean), 0, clean.rows, way, expected);
    attend(tiles, spoilt, Block(tiles, spoilt), 0, clean.rows, way, after);
    for (std::int64_t i = 0; i < clean.rows; ++i) {
      SCOPED_TRACE(clean.describe(i));
      const auto row = static_cast<std::size_t>(i);
      const bool all = any(poisons, [&](const Poison& p) {
        return (p.of == 'q' && p.row == i && clean.sees_any(i)) || (p.of == 'k' && clean.sees(i, p.row));
      });
      ASSERT_TRUE(kept_or_spoilt(expected.sum[row], after.sum[row], all, value)) << "sum";
      ASSERT_TRUE(all || bits(expected.max[row]) == bits(after.max[row])) << "max";
      for (std::int64_t d = 0; d < clean.dim_v; ++d) {
        const bool one =
            any(poisons, [&](const Poison& p) { return p.of == 'v' && p.column == d && clean.sees(i, p.row); });
        ASSERT_TRUE(kept_or_spoilt(expected.out(i, d), after.out(i, d), all || one, value)) << "element " << d;
      }
    }
  }
}

// Backward computes them again, with the products that `attend` is made of: one key alone has a weight of 1.
TEST_P(AttendFew, ScoresAreTheSameToTheBitForFewRowsAndForMany) {
  for (int repeat = 0; repeat < test::sample(100); ++repeat) {
    const Attention x = draw_attention(tiles, random, Way::few, 1, 0);
    SCOPED_TRACE(x.describe());
    const Block block(tiles, x);
    State few(tiles, random, x);
    std::fill(few.max.begin(), few.max.end(), -infinity);
    State many = few;
    attend(tiles, x, block, 0, x.rows, Way::few, few);
    attend(tiles, x, block, 0, x.rows, Way::many, many);
    for (std::size_t i = 0; i < few.max.size(); ++i) ASSERT_EQ(bits(few.max[i]), bits(many.max[i])) << "row " << i;
  }
}

// ---------------------------------------------------------------- backward

struct Gradients {
  Gradients(const Tiles& tiles, Random& random, std::int64_t rows, std::int64_t keys, std::int64_t dim,
            std::int64_t dim_v)
      : dk(in_panels(tiles.columns, keys, dim, 0, tiles.columns)),
        dv(in_panels(tiles.columns, keys, dim_v, 0, tiles.columns)),
        dq(in_panels(tiles.columns, rows, dim, 0, tiles.columns)) {
    const auto draw_all = [&](Matrix& m, std::int64_t count, std::int64_t width) {
      m.fill(count, rounded_up(width, tiles.columns), [] { return 0.0F; });
      m.fill(count, width, [&] { return ordinary(random); });
    };
    draw_all(dk, keys, dim);
    draw_all(dv, keys, dim_v);
    draw_all(dq, rows, dim);
  }
  Gradients(const Tiles& tiles, Random& random, const Attention& x)
      : Gradients(tiles, random, x.rows, x.keys, x.dim, x.dim_v) {}
  Matrix dk, dv, dq;
};

// What the forward pass has left of each row: its log-sum-exp over more keys than these, or over none at all.
struct Saved {
  Saved(Random& random, const Attention& x, bool some_are_hopeless) {
    const std::vector<double> q = in_double(x.q, x.rows, x.dim), k = in_double(x.k, x.keys, x.dim);
    for (std::int64_t i = 0; i < x.rows; ++i) {
      double sum = std::exp(uniform(random, -5, 5));
      for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j)
        sum += std::exp(score_of(x, product_of(q, i, k, j, x.dim)).exact);
      const bool hopeless = some_are_hopeless && once_in(random, 16);
      lse.push_back(hopeless ? -infinity : static_cast<float>(std::log(sum)));
      delta.push_back(ordinary(random));
    }
  }
  std::vector<float> lse, delta;
};

// Rows first .. first + rows - 1.
void differentiate(const Tiles& tiles, const Attention& x, const Block& block, std::int64_t first, std::int64_t rows,
                   const Saved& saved, bool finite, Gradients& to) {
  const Matrix q = packed_some(tiles, Operand::left, x.q, first, rows, x.dim),
               dout = packed_some(tiles, Operand::left, x.dout, first, rows, x.dim_v);
  const Matrix q_right = packed_some(tiles, Operand::right, x.q, first, rows, x.dim),
               dout_right = packed_some(tiles, Operand::right, x.dout, first, rows, x.dim_v);
  const std::int64_t room = tiles.score_floats;
  std::vector<float> scores(static_cast<std::size_t>(room + tiles.columns), gap);
  tiles.differentiate({.rows = rows,
                       .keys = x.keys,
                       .dim = x.dim,
                       .dim_v = x.dim_v,
                       .q = q.at(0, 0),
                       .dout = dout.at(0, 0),
                       .q_right = q_right.at(0, 0),
                       .dout_right = dout_right.at(0, 0),
                       .k = block.k.at(0, 0),
                       .k_columns = block.k_columns.at(0, 0),
                       .v_columns = block.v_columns.at(0, 0),
                       .finite = finite,
                       .visible = x.visible.data() + first,
                       .scale = x.scale,
                       .softcap = x.softcap,
                       .lse = saved.lse.data() + first,
                       .delta = saved.delta.data() + first,
                       .scores = scores.data(),
                       .dk = to.dk.at(0, 0),
                       .dv = to.dv.at(0, 0),
                       .dq = to.dq.at(0, 0)});
  ASSERT_TRUE(std::all_of(scores.begin() + room, scores.end(), is_gap)) << "behind the scores";
}

// A weight, and the gradient of the product of q and k.
struct Pair {
  Near weight, dscore;
};
Pair pair_of(const Attention& x, Near product, Near dweight, double lse, double delta) {
  const Near s = score_of(x, product);
  if (x.splits) dweight.error *= 1 + Attention::missing / u;
  if (lse == -INFINITY) return {};
  const Near weight = weight_of(s, lse);
  // Of the scaled product: d score is 1, or 1 - tanh^2, whose two terms may cancel.
  const double tangent = x.softcap == 0 ? 0 : s.exact / x.softcap;
  const Near slope{1 - tangent * tangent, x.softcap == 0 ? 0 : 2 * s.error / x.softcap + 16 * u};
  const Near through{dweight.exact - delta, dweight.error + u * (std::abs(dweight.exact - delta) + dweight.error)};
  const auto times = [](Near a, Near b) {
    const double exact = a.exact * b.exact;
    const double error = a.error * std::abs(b.exact) + std::abs(a.exact) * b.error + a.error * b.error;
    return Near{exact, error + u * (std::abs(exact) + error)};
  };
  return {x.as_operand(weight), x.as_operand(times(times(weight, through), slope))};
}

TEST_P(Differentiate, AnyTile) {
  for (int repeat = 0; repeat < test::sample(80); ++repeat) {
    const std::int64_t rows = once_in(random, 8) ? draw(random, 1, tiles.gradient_rows) : draw(random, 1, 24);
    const Attention x(tiles, random, rows, draw(random, 1, tiles.key_block), true);
    const bool finite = once_in(random, 2);
    SCOPED_TRACE(::testing::Message() << x.describe() << ", finite " << finite);
    const Saved saved(random, x, true);
    const Gradients before(tiles, random, x);
    Gradients after = before;
    differentiate(tiles, x, Block(tiles, x), 0, x.rows, saved, finite, after);

    const std::vector<double> q = in_double(x.q, x.rows, x.dim), k = in_double(x.k, x.keys, x.dim),
                              dout = in_double(x.dout, x.rows, x.dim_v), v = in_double(x.v, x.keys, x.dim_v);
    std::vector<NearSum> dq(q.size()), dk(k.size()), dv(v.size());
    for (std::int64_t j = 0; j < x.keys; ++j) {
      for (std::int64_t d = 0; d < x.dim; ++d) dk[static_cast<std::size_t>(j * x.dim + d)].add({1, 0}, before.dk(j, d));
      for (std::int64_t d = 0; d < x.dim_v; ++d)
        dv[static_cast<std::size_t>(j * x.dim_v + d)].add({1, 0}, before.dv(j, d));
    }
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t d = 0; d < x.dim; ++d) dq[static_cast<std::size_t>(i * x.dim + d)].add({1, 0}, before.dq(i, d));
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t j = x.seen(i).lo; j < x.seen(i).hi; ++j) {
        const Pair pair = pair_of(x, product_of(q, i, k, j, x.dim), product_of(dout, i, v, j, x.dim_v),
                                  saved.lse[static_cast<std::size_t>(i)], saved.delta[static_cast<std::size_t>(i)]);
        for (std::int64_t d = 0; d < x.dim; ++d) {
          const auto at_q = static_cast<std::size_t>(i * x.dim + d), at_k = static_cast<std::size_t>(j * x.dim + d);
          dq[at_q].add(pair.dscore, k[at_k]);
          dk[at_k].add(pair.dscore, q[at_q]);
        }
        for (std::int64_t d = 0; d < x.dim_v; ++d)
          dv[static_cast<std::size_t>(j * x.dim_v + d)].add(pair.weight,
                                                            dout[static_cast<std::size_t>(i * x.dim_v + d)]);
      }
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t d = 0; d < x.dim; ++d)
        ASSERT_TRUE(is_near(after.dq(i, d), dq[static_cast<std::size_t>(i * x.dim + d)].rounded()))
            << "dq, element " << d << ", " << x.describe(i);
    for (std::int64_t j = 0; j < x.keys; ++j) {
      for (std::int64_t d = 0; d < x.dim; ++d)
        ASSERT_TRUE(is_near(after.dk(j, d), dk[static_cast<std::size_t>(j * x.dim + d)].rounded()))
            << "dk, key " << j << ", element " << d;
      for (std::int64_t d = 0; d < x.dim_v; ++d)
        ASSERT_TRUE(is_near(after.dv(j, d), dv[static_cast<std::size_t>(j * x.dim_v + d)].rounded()))
            << "dv, key " << j << ", element " << d;
    }
    ASSERT_TRUE(unchanged_but(before.dq, after.dq, x.rows, x.dim));
    ASSERT_TRUE(unchanged_but(before.dk, after.dk, x.keys, x.dim));
    ASSERT_TRUE(unchanged_but(before.dv, after.dv, x.keys, x.dim_v));
  }
}

// Of dk and dv, which are sums over the rows of a tile, it cannot be so.
TEST_P(Differentiate, DqOfARowByItselfHasTheSameBits) {
  for (int repeat = 0; repeat < test::sample(80); ++repeat) {
    const Attention x(tiles, random, draw(random, 2, 40), draw(random, 1, tiles.key_block), true);
    SCOPED_TRACE(x.describe());
    const bool finite = once_in(random, 2);
    const Saved saved(random, x, true);
    const Block block(tiles, x);
    const Gradients before(tiles, random, x);
    Gradients together = before;
    differentiate(tiles, x, block, 0, x.rows, saved, finite, together);
    for (int n = 0; n < 8; ++n) {
      const std::int64_t i = draw(random, 0, x.rows - 1);
      Gradients alone(tiles, random, 1, x.keys, x.dim, x.dim_v);
      for (std::int64_t d = 0; d < x.dim; ++d) alone.dq(0, d) = before.dq(i, d);
      differentiate(tiles, x, block, i, 1, saved, finite, alone);
      for (std::int64_t d = 0; d < x.dim; ++d)
        ASSERT_EQ(bits(alone.dq(0, d)), bits(together.dq(i, d))) << x.describe(i) << ", element " << d;
    }
  }
}

TEST_P(DifferentiateAnyValue, WhatIsNotFiniteReachesWhatSeesItAndNothingElse) {
  for (int repeat = 0; repeat < test::sample(200); ++repeat) {
    const Attention clean(tiles, random, draw(random, 1, 40), draw(random, 1, tiles.key_block), true);
    Attention spoilt = clean;
    const float value = once_in(random, 2) ? nan : once_in(random, 2) ? infinity : -infinity;
    const std::vector<Poison> poisons = poison(random, spoilt, "qkvd", value);
    SCOPED_TRACE(clean.describe());
    const Saved saved(random, clean, false);
    const Gradients before(tiles, random, clean);
    Gradients expected = before, after = before;
    differentiate(tiles, clean, Block(tiles, clean), 0, clean.rows, saved, false, expected);
    differentiate(tiles, spoilt, Block(tiles, spoilt), 0, clean.rows, saved, false, after);
    for (std::int64_t i = 0; i < clean.rows; ++i) {
      const bool reached = any(poisons, [&](const Poison& p) {
        return p.of == 'q' || p.of == 'd' ? p.row == i && clean.sees_any(i) : clean.sees(i, p.row);
      });
      for (std::int64_t d = 0; d < clean.dim; ++d)
        ASSERT_TRUE(kept_or_spoilt(expected.dq(i, d), after.dq(i, d), reached, value))
            << "dq, element " << d << ", " << clean.describe(i);
    }
    for (std::int64_t j = 0; j < clean.keys; ++j) {
      const bool seen = clean.is_seen(j);
      // Scores of the key, or gradients of its weights.
      const auto reaches_score = [&](const Poison& p) {
        return (p.of == 'q' && clean.sees(p.row, j)) || (p.of == 'k' && p.row == j && seen);
      };
      const auto reaches_weight = [&](const Poison& p) {
        return (p.of == 'd' && clean.sees(p.row, j)) || (p.of == 'v' && p.row == j && seen);
      };
      const bool score = any(poisons, reaches_score), weight = any(poisons, reaches_weight);
      for (std::int64_t d = 0; d < clean.dim; ++d)
        ASSERT_TRUE(kept_or_spoilt(expected.dk(j, d), after.dk(j, d), score || weight, value))
            << "dk, key " << j << ", element " << d;
      for (std::int64_t d = 0; d < clean.dim_v; ++d) {
        const bool one =
            any(poisons, [&](const Poison& p) { return p.of == 'd' && p.column == d && clean.sees(p.row, j); });
        ASSERT_TRUE(kept_or_spoilt(expected.dv(j, d), after.dv(j, d), score || one, value))
            << "dv, key " << j << ", element " << d;
      }
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
