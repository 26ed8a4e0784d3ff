// The portable engine's kernels with modifiers, one step by itself: wherever in the whole problem its rows, keys and heads are.
#include <cmath>
#include <limits>

#include "emulation/kernels.h"
#include "engine/dropout.h"

namespace ringattn::cuda {
namespace {

std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

struct Place {
  std::int64_t block, stride, spacing, first_key;
};

// Positions, heads and entries of any size, at distances that are small. Keys side by side, which draw for one another, or not.
TEST(PortableModified, IsRightFarIntoALongSequence) {
  Random random(test::seed());
  constexpr std::int64_t queries = 70, keys = 150, dim = 16, heads = 4, group = 2, heads_kv = heads / group;
  constexpr std::int64_t far = std::int64_t{1} << 44, shift = 12'345, head = 1000, head_step = 7;
  for (const Place& place : {Place{keys, keys, 1, far}, Place{keys, keys, 1, far + 1}, Place{2, 5, 1, far},
                             Place{keys, keys, 3, far + 2}, Place{2, 5, 3, far + 1}}) {
    Problem p;
    p.num_heads_q = heads;
    p.num_heads_kv = heads_kv;
    p.head_dim = p.head_dim_v = dim;
    p.softmax_scale = 0.25F;
    p.has_key_bias = true;
    p.dropout = {0.5F, 0x1234567890abcdef, 0xfedcba0987654321};
    p.alibi_slopes.assign(head + heads * head_step, NAN);  // of the whole problem's heads
    for (std::int64_t h = 0; h < heads; ++h)
      p.alibi_slopes[index(head + h * head_step)] = std::ldexp(1.0F, -static_cast<int>(h) - 2);
    p.seqlen_q = p.seqlen_kv = std::int64_t{1} << 47;
    p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};

    WorkItem item;
    item.q_begin = std::int64_t{1} << 45;
    item.kv_begin = place.first_key;
    item.spacing = place.spacing;
    item.shift = shift;
    const Piece query{0, {far + 3, queries, queries, queries}, 0, queries, 0},
        key{0, {(far + 3 + shift - 90) / 4 * 4, place.block, place.stride, keys}, 0, keys, 0};
    item.queries = {&query, 1};
    item.keys = {&key, 1};

    Memory memory;
    const auto tensor = [&](std::int64_t rows, std::int64_t of_heads) {
      const Tensor t = memory.tensor(DType::float32, 1, rows, of_heads, dim, Layout::packed);
      for (std::int64_t n = 0; n < rows * of_heads * dim; ++n)
        t.at<float>(0, 0, 0)[n] = static_cast<float>(draw(random, -1000, 1000)) / 500;
      return t;
    };
    const auto zeros = [&](std::int64_t rows, std::int64_t of_heads) {
      const Tensor t = tensor(rows, of_heads);
      std::fill_n(t.at<float>(0, 0, 0), rows * of_heads * dim, 0.0F);
      return t;
    };
    const Tensor q = tensor(queries, heads), k = tensor(keys, heads_kv), v = tensor(keys, heads_kv),
                 dout = tensor(queries, heads), out = zeros(queries, heads), dq = zeros(queries, heads),
                 dk = zeros(keys, heads_kv), dv = zeros(keys, heads_kv);
    float *const lse = memory.values(heads * queries), *const delta = memory.values(heads * queries),
                 *const bias = memory.values(keys);
    for (std::int64_t j = 0; j < keys; ++j)
      bias[j] = draw(random, 0, 9) == 0 ? -std::numeric_limits<float>::infinity()
                                        : static_cast<float>(draw(random, -1000, 1000)) / 700;

    const test::device::Launches launches(random);
    ForwardStep step;
    step.items = {&item, 1};
    step.origin = {most_tokens - 1, head, head_step};
    step.q = q;
    step.k = k;
    step.v = v;
    step.out = out;
    step.query_rows = queries;
    step.key_rows = keys;
    step.key_bias = bias;
    step.lse = lse;
    step.scratch = memory.allocate(static_cast<std::int64_t>(modifier_bytes(p)));
    ASSERT_EQ(portable_forward(p, step, nullptr), 0);
    ASSERT_EQ(portable_delta(p, dout, out, queries, delta, nullptr), 0);
    BackwardStep back;
    back.items = step.items;
    back.origin = step.origin;
    back.q = q;
    back.k = k;
    back.v = v;
    back.dout = dout;
    back.query_rows = queries;
    back.key_rows = keys;
    back.key_bias = bias;
    back.lse = lse;
    back.delta = delta;
    back.dq = dq;
    back.dk = dk;
    back.dv = dv;
    back.scratch = step.scratch;
    ASSERT_EQ(portable_backward(p, back, nullptr), 0);
    test::device::finish();

    const auto at = [](const Tensor& t, std::int64_t row, std::int64_t h, std::int64_t d) {
      return static_cast<double>(t.at<float>(0, row, h)[d]);
    };
    const auto dot = [&](const Tensor& a, std::int64_t i, std::int64_t h, const Tensor& b, std::int64_t j,
                         std::int64_t g) {
      double sum = 0;
      for (std::int64_t d = 0; d < dim; ++d) sum += at(a, i, h, d) * at(b, j, g, d);
      return sum;
    };
    SCOPED_TRACE(::testing::Message() << "blocks of " << place.block << " in " << place.stride << ", spacing "
                                      << place.spacing << ", first key " << place.first_key);
    std::vector<double> exact_dk(index(keys * heads_kv * dim)), exact_dv(exact_dk);
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t g = h / group;
        const PhiloxKey row = dropout_row_key(p.dropout.seed, item.q_begin + query.position(i) * place.spacing,
                                              step.origin.entry, head + h * head_step);
        double sum = 0, exact_out[dim] = {}, exact_dq[dim] = {}, exact_delta = 0;
        std::vector<double> weights(index(keys)), kept(index(keys));
        for (std::int64_t j = 0; j < keys; ++j) {
          const auto distance =
              static_cast<double>(std::abs(query.position(i) + shift - key.position(j)) * place.spacing);
          const double slope = static_cast<double>(p.alibi_slopes[index(head + h * head_step)]);
          weights[index(j)] = std::exp(0.25 * dot(q, i, h, k, j, g) - slope * distance + static_cast<double>(bias[j]));
          sum += weights[index(j)];
          kept[index(j)] = dropout_keeps(row, p.dropout.offset, item.kv_begin + key.position(j) * place.spacing,
                                         dropout_threshold(p.dropout.probability))
                               ? 2
                               : 0;
        }
        for (std::int64_t j = 0; j < keys; ++j) {
          weights[index(j)] /= sum;
          for (std::int64_t d = 0; d < dim; ++d) exact_out[d] += weights[index(j)] * kept[index(j)] * at(v, j, g, d);
        }
        for (std::int64_t d = 0; d < dim; ++d) exact_delta += exact_out[d] * at(dout, i, h, d);
        for (std::int64_t j = 0; j < keys; ++j) {
          const double ds = weights[index(j)] * (kept[index(j)] * dot(dout, i, h, v, j, g) - exact_delta) * 0.25;
          for (std::int64_t d = 0; d < dim; ++d) {
            exact_dq[d] += ds * at(k, j, g, d);
            exact_dk[index((j * heads_kv + g) * dim + d)] += ds * at(q, i, h, d);
            exact_dv[index((j * heads_kv + g) * dim + d)] += weights[index(j)] * kept[index(j)] * at(dout, i, h, d);
          }
        }
        ASSERT_NEAR(static_cast<double>(lse[h * queries + i]), std::log(sum), 1e-5) << "head " << h << ", row " << i;
        for (std::int64_t d = 0; d < dim; ++d) {
          ASSERT_NEAR(at(out, i, h, d), exact_out[d], 1e-5) << "head " << h << ", row " << i;
          ASSERT_NEAR(at(dq, i, h, d), exact_dq[d], 2e-5) << "head " << h << ", row " << i;
        }
      }
    for (std::int64_t j = 0; j < keys; ++j)
      for (std::int64_t g = 0; g < heads_kv; ++g)
        for (std::int64_t d = 0; d < dim; ++d) {
          ASSERT_NEAR(at(dk, j, g, d), exact_dk[index((j * heads_kv + g) * dim + d)], 5e-5) << "key " << j;
          ASSERT_NEAR(at(dv, j, g, d), exact_dv[index((j * heads_kv + g) * dim + d)], 5e-5) << "key " << j;
        }
  }
}

// What their values are does not matter then.
TEST(PortableModified, RowsAllOfWhoseKeysABiasHidesEndAsZero) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Random random(test::seed());
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    Problem p;
    p.seqlen_q = 3;
    p.seqlen_kv = 5;
    p.head_dim = p.head_dim_v = 16;
    p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};
    p.dtype = p.out_dtype = p.grad_dtype = dtype;
    p.has_key_bias = true;
    reference::Inputs inputs(p, random);
    std::fill(inputs.key_bias.begin(), inputs.key_bias.end(), -infinity);
    std::fill(inputs.v.begin(), inputs.v.end(), std::numeric_limits<double>::quiet_NaN());
    const ForwardResult result = run_forward(inputs, 1, Layout::packed, random);
    for (const double x : result.out) EXPECT_EQ(x, 0);
    for (const double x : result.lse) EXPECT_EQ(x, -infinity);
  }
}

// More slopes than a kernel's parameters have room for.
TEST(PortableModified, TakesSlopesOfAnyNumberOfHeads) {
  Random random(test::seed());
  for (const std::int64_t heads : {1, 960, 961, 5000}) {
    Problem p;
    p.num_heads_q = heads;
    for (std::int64_t h = 0; h < 3 + 2 * heads; ++h) p.alibi_slopes.push_back(static_cast<float>(h));
    Memory memory;
    float* const slopes = memory.values(heads);
    const test::device::Launches launches(random);
    ASSERT_EQ(store_slopes(p, {0, 3, 2}, slopes, nullptr), 0);
    test::device::finish();
    for (std::int64_t h = 0; h < heads; ++h) ASSERT_EQ(slopes[h], static_cast<float>(3 + 2 * h));
  }
}

}  // namespace
}  // namespace ringattn::cuda
