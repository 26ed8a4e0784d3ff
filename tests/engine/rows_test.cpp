// Rows of tensors: packed, unpacked, loaded, stored, and their dot products.
#include <array>
#include <cstddef>
#include <iostream>
#include <numeric>
#include <utility>

#include "engine/tile_test.h"

namespace ringattn::cpu {
namespace {

class Rows : public TileTest {};
INSTANTIATE_TEST_SUITE_P(All, Rows, ::testing::ValuesIn(cpu_tiles()), name_of);
class DotsRows : public PartTest {};
INSTANTIATE_TEST_SUITE_P(All, DotsRows, ::testing::ValuesIn(engines_of_parts()), name_of);

constexpr std::uint32_t patterns = 1U << 16;
constexpr DType half_types[] = {DType::bfloat16, DType::float16};

float widened(std::uint32_t pattern, DType dtype) {
  const auto half = static_cast<std::uint16_t>(pattern);
  return static_cast<float>(decode(&half, dtype));
}
bool same_value(float a, float b) { return std::isnan(a) ? std::isnan(b) : bits(a) == bits(b); }

DType draw_dtype(Random& random) { return static_cast<DType>(draw(random, 1, 3)); }

// [rows, dim] of a tensor, `stride` elements apart, NaN between them.
struct Tensor {
  Tensor(DType dtype, std::int64_t rows, std::int64_t dim, std::int64_t stride)
      : dtype(dtype),
        rows(rows),
        dim(dim),
        stride(stride),
        data(static_cast<std::size_t>(((rows - 1) * stride + dim) * size_of(dtype)), std::byte{0xff}) {}
  // Any finite values: half of them of ordinary size, half any bits.
  static Tensor drawn(Random& random, std::int64_t rows) {
    const std::int64_t dim = draw(random, 1, most_head_dim);
    Tensor t(draw_dtype(random), rows, dim, dim + draw(random, 0, 1) * draw(random, 0, 40));
    for (std::int64_t r = 0; r < t.rows; ++r)
      for (std::int64_t d = 0; d < dim; ++d) {
        if (once_in(random, 2)) encode(ordinary(random), t.dtype, t.at(r, d));
        while (!std::isfinite(t(r, d))) {
          const std::uint64_t pattern = random();
          std::memcpy(t.at(r, d), &pattern, static_cast<std::size_t>(size_of(t.dtype)));
        }
      }
    return t;
  }

  std::byte* at(std::int64_t r, std::int64_t d) { return data.data() + (r * stride + d) * size_of(dtype); }
  float operator()(std::int64_t r, std::int64_t d) const {
    return static_cast<float>(decode(data.data() + (r * stride + d) * size_of(dtype), dtype));
  }
  // With NaN or infinity in it; the caller chooses where.
  void spoil(Random& random, std::int64_t r, std::int64_t d) {
    constexpr std::array poisons{nan, infinity, -infinity};
    encode(poisons[static_cast<std::size_t>(draw(random, 0, 2))], dtype, at(r, d));
  }

  DType dtype;
  std::int64_t rows, dim, stride;
  std::vector<std::byte> data;
};
std::ostream& operator<<(std::ostream& s, const Tensor& t) {
  return s << "dtype " << static_cast<int>(t.dtype) << ", " << t.rows << " x " << t.dim << ", stride " << t.stride;
}

// ---------------------------------------------------------------- panels

// As floats, or as an operand, whose cells have terms that are neighbours along one dimension.
enum class Packing { rows, left, right, columns };
struct Packed {
  Packed(const Tiles& tiles, Packing packing, std::int64_t rows, std::int64_t dim)
      : packing(packing),
        terms(packing == Packing::rows ? 1 : tiles.terms),
        parts(packing == Packing::rows ? 1 : tiles.summands),
        rows(packing == Packing::right     ? tiles.cells(rows)
             : packing == Packing::columns ? tiles.cells(dim)
                                           : rows),
        dim(packing == Packing::left      ? tiles.cells(dim)
            : packing == Packing::columns ? rows
                                          : dim),
        pack(packing == Packing::rows    ? tiles.pack_rows
             : packing == Packing::left  ? tiles.pack_left
             : packing == Packing::right ? tiles.pack_right
                                         : tiles.pack_columns) {}
  // Where term `term` of cell (i, j) comes from.
  std::pair<std::int64_t, std::int64_t> source(std::int64_t i, std::int64_t j, std::int64_t term) const {
    switch (packing) {
      case Packing::right:
        return {i * terms + term, j};
      case Packing::columns:
        return {j, i * terms + term};
      default:
        return {i, j * terms + term};
    }
  }
  bool takes(DType dtype) const { return terms == 1 || parts > 1 || dtype == DType::bfloat16; }
  bool takes(float x) const {
    return parts == 1 ? std::isfinite(x) : x == 0 || (std::abs(x) >= 0x1p-100F && std::abs(x) < 0x1p59F);
  }
  // Of one part.
  std::int64_t part_rows() const {
    return packing == Packing::right || packing == Packing::columns ? rows / parts : rows;
  }
  std::int64_t part_dim() const { return packing == Packing::left ? dim / parts : dim; }
  // All parts of a term.
  float term(const Matrix& m, std::int64_t i, std::int64_t j, std::int64_t t) const {
    if (parts == 1) return term_of(m(i, j), terms, t);
    float sum = 0;
    for (std::int64_t part = parts - 1; part >= 0; --part)
      sum += term_of(packing == Packing::left ? m(i, part * part_dim() + j) : m(part * part_rows() + i, j), terms, t);
    return sum;
  }

  Packing packing;
  std::int64_t terms, parts, rows, dim;
  bool (*pack)(const PackedRows&);
};

// Values, zeros up to the panel's end, nothing else touched, and whether all are finite.
void pack_any(const Tiles& tiles, Random& random, Packing packing) {
  for (int repeat = 0; repeat < test::sample(800); ++repeat) {
    Tensor from = Tensor::drawn(random, draw(random, 1, 40));
    while (!Packed(tiles, packing, 1, 1).takes(from.dtype)) from = Tensor::drawn(random, from.rows);
    const Packed packed(tiles, packing, from.rows, from.dim);
    SCOPED_TRACE(::testing::Message() << from);
    const bool spoilt = once_in(random, 2);
    if (spoilt) from.spoil(random, draw(random, 0, from.rows - 1), draw(random, 0, from.dim - 1));

    Matrix to = in_panels(tiles.columns, packed.rows, packed.dim, draw(random, 0, 2) * tiles.columns, tiles.columns);
    const Matrix before = to;
    const bool finite =
        packed.pack({from.dtype, from.data.data(), from.stride, from.rows, from.dim, to.at(0, 0), to.panel});
    bool all = true;
    for (std::int64_t r = 0; r < from.rows; ++r)
      for (std::int64_t d = 0; d < from.dim; ++d) all = all && packed.takes(from(r, d));
    ASSERT_EQ(finite, all);
    const std::int64_t end = rounded_up(packed.dim, tiles.columns);
    for (std::int64_t i = 0; i < packed.part_rows(); ++i)
      for (std::int64_t j = 0; j < packed.part_dim(); ++j)
        for (std::int64_t t = 0; t < packed.terms; ++t) {
          const auto [r, d] = packed.source(i, j, t);
          const float expected = r < from.rows && d < from.dim ? from(r, d) : 0.0F;
          if (packed.parts > 1 && !packed.takes(expected)) continue;
          const float ours = packed.term(to, i, j, t);
          ASSERT_TRUE(same_value(ours + 0.0F, expected + 0.0F))  // -0 is the sum of 0 and -0
              << "row " << i << ", column " << j << ", term " << t << " is " << ours << ", should be " << expected;
        }
    for (std::int64_t i = 0; i < packed.rows; ++i)
      for (std::int64_t j = packed.dim; j < end; ++j) ASSERT_EQ(to(i, j), 0) << "row " << i << ", column " << j;
    ASSERT_TRUE(unchanged_but(before, to, packed.rows, end));
  }
}
TEST_P(Rows, Packed) { pack_any(tiles, random, Packing::rows); }
TEST_P(Rows, PackedAsLeftOperand) { pack_any(tiles, random, Packing::left); }
TEST_P(Rows, PackedAsRightOperand) { pack_any(tiles, random, Packing::right); }
TEST_P(Rows, PackedAsColumns) { pack_any(tiles, random, Packing::columns); }

// One value that is not finite is enough, wherever it is, and whatever its bits are.
TEST_P(Rows, PackedWithOneValueThatIsNotFinite) {
  for (const Packing packing : {Packing::rows, Packing::left, Packing::right, Packing::columns}) {
    const Packed one(tiles, packing, 1, 1);
    for (const DType dtype : half_types) {
      if (!one.takes(dtype)) continue;
      for (std::uint32_t pattern = 0; pattern < patterns; ++pattern) {
        const auto half = static_cast<std::uint16_t>(pattern);
        const float expected = widened(pattern, dtype);
        Matrix to = in_panels(columns, one.rows, one.dim);
        ASSERT_EQ(one.pack({dtype, &half, 1, 1, 1, to.at(0, 0), to.panel}), one.takes(expected)) << pattern;
        if (one.parts == 1) {
          ASSERT_TRUE(same_value(one.term(to, 0, 0, 0), expected)) << pattern;
        }
      }
    }
    constexpr std::int64_t rows = 19, dim = 75;
    const Packed all(tiles, packing, rows, dim);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t d = 0; d < dim; ++d) {
        const DType dtype = draw_dtype(random);
        Tensor from(all.takes(dtype) ? dtype : DType::bfloat16, rows, dim, dim);
        std::fill(from.data.begin(), from.data.end(), std::byte{0});
        from.spoil(random, r, d);
        Matrix to = in_panels(columns, all.rows, all.dim);
        ASSERT_FALSE(all.pack({from.dtype, from.data.data(), dim, rows, dim, to.at(0, 0), to.panel}))
            << "row " << r << ", element " << d;
      }
  }
}

TEST_P(Rows, Unpacked) {
  for (int repeat = 0; repeat < test::sample(800); ++repeat) {
    const std::int64_t rows = draw(random, 1, 40), dim = draw(random, 1, most_head_dim);
    const std::int64_t stride = dim + draw(random, 0, 1) * draw(random, 0, 40);
    const bool accumulate = once_in(random, 2);
    SCOPED_TRACE(::testing::Message() << rows << " x " << dim << ", stride " << stride << ", accumulate "
                                      << accumulate);
    Matrix from = in_panels(columns, rows, dim, draw(random, 0, 2) * columns);
    from.fill(rows, dim, [&] { return ordinary(random); });
    Matrix to = in_rows(rows, stride, 3);
    if (accumulate) to.fill(rows, dim, [&] { return ordinary(random); });
    const Matrix before = to;
    tiles.unpack_rows({from.at(0, 0), from.panel, rows, dim, to.at(0, 0), stride, accumulate});
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t d = 0; d < dim; ++d)
        ASSERT_EQ(bits(to(r, d)), bits(accumulate ? before(r, d) + from(r, d) : from(r, d)))
            << "row " << r << ", element " << d;
    ASSERT_TRUE(unchanged_but(before, to, rows, dim));
  }
}

// Divided by their sums in fp32, then rounded; 0 where a row has seen nothing, whatever it holds.
TEST_P(Rows, Finished) {
  for (int repeat = 0; repeat < test::sample(800); ++repeat) {
    const std::int64_t rows = draw(random, 1, 40), dim = draw(random, 1, most_head_dim);
    Matrix running = in_panels(columns, rows, dim, draw(random, 0, 2) * columns);
    std::vector<float> sum;
    for (std::int64_t r = 0; r < rows; ++r) {
      const bool nothing = once_in(random, 8);
      sum.push_back(nothing ? 0.0F : once_in(random, 16) ? nan : uniform(random, 1, 100));
      for (std::int64_t d = 0; d < dim; ++d)
        running(r, d) = once_in(random, 50)  ? infinity
                        : nothing            ? nan
                        : once_in(random, 2) ? 100 * ordinary(random)
                                             : std::exp2(uniform(random, -30, 20));
    }
    Tensor to(draw_dtype(random), rows + 1, dim, dim + draw(random, 0, 1) * draw(random, 0, 40));
    SCOPED_TRACE(::testing::Message() << to);
    Tensor expected = to;
    tiles.finish({running.at(0, 0), running.panel, rows, dim, sum.data(), to.dtype, to.data.data(), to.stride});
    for (std::int64_t r = 0; r < rows; ++r) {
      const float s = sum[static_cast<std::size_t>(r)];
      for (std::int64_t d = 0; d < dim; ++d) {
        encode(s == 0 ? 0.0F : running(r, d) / s, to.dtype, expected.at(r, d));
        ASSERT_TRUE(same_value(to(r, d), expected(r, d))) << "row " << r << ", element " << d << " is " << to(r, d)
                                                          << ", should be " << expected(r, d) << ", sum " << s;
        std::memcpy(to.at(r, d), expected.at(r, d), static_cast<std::size_t>(size_of(to.dtype)));  // NaN has many bits
      }
    }
    ASSERT_EQ(to.data, expected.data) << "between and behind the rows";
  }
}

// ---------------------------------------------------------------- dense

TEST_P(Rows, LoadEveryHalf) {
  std::vector<std::uint16_t> halves(patterns);
  std::iota(halves.begin(), halves.end(), std::uint16_t{0});
  for (const DType dtype : half_types) {
    std::vector<float> together(patterns, gap);
    tiles.load(dtype, halves.data(), patterns, together.data());
    for (const std::uint16_t half : halves) {
      const float expected = widened(half, dtype);
      float alone = gap;
      tiles.load(dtype, &half, 1, &alone);
      ASSERT_TRUE(same_value(together[half], expected) && same_value(alone, expected))
          << "dtype " << static_cast<int>(dtype) << ", pattern " << half << " is " << together[half] << ", alone "
          << alone << ", should be " << expected;
    }
  }
}

TEST_P(Rows, LoadedInAnyNumber) {
  for (int repeat = 0; repeat < test::sample(3'000); ++repeat) {
    const Tensor from = Tensor::drawn(random, draw(random, 1, 3));
    const std::int64_t r = draw(random, 0, from.rows - 1);
    std::vector<float> to(static_cast<std::size_t>(from.dim) + 3, gap);
    tiles.load(from.dtype, from.data.data() + r * from.stride * size_of(from.dtype), from.dim, to.data());
    for (std::int64_t d = 0; d < from.dim; ++d)
      ASSERT_TRUE(same_value(to[static_cast<std::size_t>(d)], from(r, d))) << from << ": row " << r << ", " << d;
    ASSERT_TRUE(std::all_of(to.begin() + from.dim, to.end(), is_gap)) << from;
  }
}

// Stores all values, in rows of every length.
std::vector<std::uint16_t> store_all(const Tiles& tiles, Random& random, DType dtype,
                                     const std::vector<float>& values) {
  std::vector<std::uint16_t> stored(values.size());
  std::size_t done = 0;
  while (done < values.size()) {
    const std::size_t dim = std::min(values.size() - done, static_cast<std::size_t>(draw(random, 1, 70)));
    std::vector<std::uint16_t> row(dim, 0xa5a5);
    tiles.store(dtype, values.data() + done, static_cast<std::int64_t>(dim), row.data(), false);
    std::copy(row.begin(), row.end(), stored.begin() + static_cast<std::ptrdiff_t>(done));
    done += dim;
  }
  return stored;
}

// Every half, what lies half way to the next one, and the floats on both sides of that.
TEST_P(Rows, StoredToTheNearestHalf) {
  for (const DType dtype : half_types) {
    const std::uint32_t infinite = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
    std::vector<float> values;
    std::vector<std::uint32_t> expected;
    for (const std::uint32_t sign : {0x0000U, 0x8000U}) {
      const float direction = sign == 0 ? infinity : -infinity;
      for (std::uint32_t pattern = sign; pattern < (infinite | sign); ++pattern) {
        const bool largest = pattern + 1 == (infinite | sign);
        const float value = widened(pattern, dtype);
        const float spacing = largest ? value - widened(pattern - 1, dtype) : widened(pattern + 1, dtype) - value;
        const float middle = value + spacing / 2;
        for (const auto& [x, nearest] : {std::pair{value, pattern},
                                         {std::nextafter(middle, -direction), pattern},
                                         {middle, pattern + pattern % 2},
                                         {std::nextafter(middle, direction), pattern + 1}}) {
          values.push_back(x);
          expected.push_back(nearest);
        }
      }
      values.insert(values.end(), {direction, std::copysign(std::numeric_limits<float>::max(), direction)});
      expected.insert(expected.end(), {infinite | sign, infinite | sign});
    }
    const std::vector<std::uint16_t> stored = store_all(tiles, random, dtype, values);
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(stored[i], expected[i]) << "dtype " << static_cast<int>(dtype) << ": " << values[i] << " is stored as "
                                        << widened(stored[i], dtype) << ", not " << widened(expected[i], dtype);

    std::vector<float> nans;
    for (std::uint32_t significand = 1; significand < 1U << 23; significand += significand < 1U << 16 ? 1 : 127)
      for (const std::uint32_t sign : {0U, 0x80000000U})
        nans.push_back(std::bit_cast<float>(0x7f800000U | sign | significand));
    for (const std::uint16_t half : store_all(tiles, random, dtype, nans))
      ASSERT_TRUE(std::isnan(widened(half, dtype))) << half;
  }
}

TEST_P(Rows, StoredAndAddedInAnyNumber) {
  for (int repeat = 0; repeat < test::sample(3'000); ++repeat) {
    const bool accumulate = once_in(random, 2);
    const std::int64_t dim = draw(random, 1, most_head_dim);
    Tensor to(draw_dtype(random), 1, dim + 3, dim + 3);
    std::vector<float> from, sum;
    for (std::int64_t d = 0; d < dim; ++d) {
      if (accumulate) encode(ordinary(random), to.dtype, to.at(0, d));
      from.push_back(once_in(random, 50) ? infinity : ordinary(random) * std::exp2(uniform(random, -12, 4)));
      sum.push_back(accumulate ? to(0, d) + from.back() : from.back());
    }
    Tensor before = to;
    tiles.store(to.dtype, from.data(), dim, to.data.data(), accumulate);
    for (std::int64_t d = 0; d < dim; ++d)
      ASSERT_EQ(to(0, d), reference::rounded(sum[static_cast<std::size_t>(d)], to.dtype))
          << "dtype " << static_cast<int>(to.dtype) << ", element " << d << " of " << dim << ", accumulate "
          << accumulate;
    ASSERT_TRUE(std::equal(to.at(0, dim), to.data.data() + to.data.size(), before.at(0, dim))) << dim << " elements";
  }
}

// ---------------------------------------------------------------- dot products

// Where P is 1, dout.v and delta are equal only if both sum in the same order.
TEST_P(DotsRows, AsMultiplySums) {
  for (int repeat = 0; repeat < test::sample(800); ++repeat) {
    const std::int64_t rows = draw(random, 1, 40), dim = draw(random, 1, most_head_dim);
    Tensor a(draw_dtype(random), rows, dim, dim + draw(random, 0, 40)),
        b(draw_dtype(random), rows, dim, dim + draw(random, 0, 40));
    SCOPED_TRACE(::testing::Message() << a << " with " << b);
    for (Tensor* tensor : {&a, &b})
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t d = 0; d < dim; ++d) encode(ordinary(random), tensor->dtype, tensor->at(r, d));
    std::vector<float> out(static_cast<std::size_t>(rows) + 3, gap);
    tiles.dot_rows({{a.dtype, a.data.data(), a.stride}, {b.dtype, b.data.data(), b.stride}, rows, dim, out.data()});
    ASSERT_TRUE(std::all_of(out.begin() + rows, out.end(), is_gap));
    for (std::int64_t r = 0; r < rows; ++r) {
      const float ours = out[static_cast<std::size_t>(r)];
      Matrix row = in_panels(columns, 1, dim), column = in_panels(columns, dim, 1), product = in_panels(columns, 1, 1);
      Sum sum;
      for (std::int64_t d = 0; d < dim; ++d) {
        row(0, d) = a(r, d);
        column(d, 0) = b(r, d);
        sum.add(a(r, d), b(r, d));
      }
      parts.multiply(Left::packed, {.m = 1,
                                    .n = 1,
                                    .k = dim,
                                    .a = row.at(0, 0),
                                    .a_panel = row.panel,
                                    .b = column.at(0, 0),
                                    .b_panel = column.panel,
                                    .c = product.at(0, 0),
                                    .c_panel = columns});
      ASSERT_LE(std::abs(ours - sum.exact), static_cast<double>(dim) * u * sum.magnitude) << "row " << r;
      ASSERT_EQ(bits(ours), bits(product(0, 0))) << "row " << r;
    }
  }
}

// A row is summed alike whichever rows it is with, and NaN in one stays there.
TEST_P(DotsRows, EachByItself) {
  for (int repeat = 0; repeat < test::sample(500); ++repeat) {
    Tensor a = Tensor::drawn(random, draw(random, 1, 40));
    Tensor b(draw_dtype(random), a.rows, a.dim, a.dim);
    for (std::int64_t r = 0; r < a.rows; ++r)
      for (std::int64_t d = 0; d < a.dim; ++d) {
        encode(ordinary(random), a.dtype, a.at(r, d));
        encode(ordinary(random), b.dtype, b.at(r, d));
      }
    const std::int64_t spoilt = draw(random, 0, a.rows - 1);
    encode(nan, a.dtype, a.at(spoilt, draw(random, 0, a.dim - 1)));
    std::vector<float> together(static_cast<std::size_t>(a.rows), gap);
    tiles.dot_rows(
        {{a.dtype, a.data.data(), a.stride}, {b.dtype, b.data.data(), b.stride}, a.rows, a.dim, together.data()});
    for (std::int64_t r = 0; r < a.rows; ++r) {
      const float ours = together[static_cast<std::size_t>(r)];
      float alone = gap;
      tiles.dot_rows({{a.dtype, a.at(r, 0), a.stride}, {b.dtype, b.at(r, 0), b.stride}, 1, a.dim, &alone});
      ASSERT_EQ(std::isnan(ours), r == spoilt) << a << ", row " << r;
      ASSERT_TRUE(same_value(ours, alone)) << a << ", row " << r;
    }
  }
}

}  // namespace
}  // namespace ringattn::cpu
