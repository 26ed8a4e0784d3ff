// Modifiers through the steps of an engine, against fp64: what every rank of a ring would ask of it, one rank after the other.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "core/memory.h"
#include "engine/dropout.h"
#include "engine/engine.h"
#include "plan/plan.h"
#include "support/engine.h"
#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Inputs;
using reference::Oracle;
using reference::Random;

using test::expect_within;
using test::Results;

std::vector<float> single(const std::vector<double>& values) { return {values.begin(), values.end()}; }
std::size_t index(std::int64_t n) { return static_cast<std::size_t>(n); }

// [batch, tokens, width] of some tokens, in a dtype.
class Rows {
 public:
  Rows(const Problem& p, std::vector<std::int64_t> tokens, std::int64_t seqlen, std::int64_t heads, std::int64_t dim,
       DType dtype)
      : tokens_(std::move(tokens)),
        batch_(p.batch),
        seqlen_(seqlen),
        heads_(heads),
        dim_(dim),
        dtype_(dtype),
        bytes_(index(batch_ * rows() * heads * dim * size_of(dtype))) {}

  std::int64_t rows() const { return std::ssize(tokens_); }
  Tensor tensor() { return packed_tensor(bytes_.data(), dtype_, rows(), heads_, dim_); }

  Rows& take(const std::vector<double>& whole) {
    for_each([&](std::size_t at, std::byte* element) { reference::encode(whole[at], dtype_, element); });
    return *this;
  }
  template <class F>
  void for_each(F&& f) {
    std::byte* element = bytes_.data();
    for (std::int64_t b = 0; b < batch_; ++b)
      for (const std::int64_t token : tokens_)
        for (std::int64_t n = 0; n < heads_ * dim_; ++n, element += size_of(dtype_))
          f(index((b * seqlen_ + token) * heads_ * dim_ + n), element);
  }
  void give(std::vector<double>& whole) {
    for_each([&](std::size_t at, std::byte* element) { whole[at] = reference::decode(element, dtype_); });
  }
  void add_to(std::vector<double>& whole) {
    for_each([&](std::size_t at, std::byte* element) { whole[at] += reference::decode(element, dtype_); });
  }

 private:
  std::vector<std::int64_t> tokens_;
  std::int64_t batch_, seqlen_, heads_, dim_;
  DType dtype_;
  std::vector<std::byte> bytes_;
};

std::vector<std::int64_t> tokens_of(const Problem& p, Side side, int world_size, int rank) {
  const std::vector<Piece> pieces = shard_pieces(p, side, world_size, rank);
  std::vector<std::int64_t> tokens;
  for (std::int64_t row = 0; row < row_count(pieces); ++row) tokens.push_back(row_position(p, side, pieces, row));
  return tokens;
}

// A chunk of some rank's, packed.
struct Chunk {
  Chunk(const Inputs& inputs, const Plan& plan, const Moment& m) {
    const Problem& p = inputs.problem;
    const std::vector<std::int64_t> shard = tokens_of(p, Side::key_value, plan.world_size(), m.holds);
    for (const Stretch& s : plan.chunk_stretches(m.holds, m.chunk))
      tokens.insert(tokens.end(), shard.begin() + s.row, shard.begin() + s.row + s.length);
    for (std::int64_t b = 0; p.has_key_bias && b < p.batch; ++b)
      for (const std::int64_t token : tokens)
        bias.push_back(static_cast<float>(inputs.key_bias[index(b * p.seqlen_kv + token)]));
  }
  Rows rows_of(const Problem& p, std::int64_t dim, DType dtype) const {
    return {p, tokens, p.seqlen_kv, p.num_heads_kv, dim, dtype};
  }
  std::vector<std::int64_t> tokens;
  std::vector<float> bias;
};

// A part of the batch and of the heads as a problem of its own, the tensors of a step being those of the whole.
struct Part {
  Part(const Problem& whole, std::int64_t entry, std::int64_t entries, std::int64_t head_kv, std::int64_t heads_kv)
      : problem(whole), origin{entry, head_kv * whole.group(), 1}, head_kv(head_kv) {
    problem.batch = entries;
    problem.num_heads_kv = heads_kv;
    problem.num_heads_q = heads_kv * whole.group();
    if (!whole.kv_lengths.empty())
      problem.kv_lengths.assign(whole.kv_lengths.begin() + entry, whole.kv_lengths.begin() + entry + entries);
  }
  Problem problem;
  Origin origin;
  std::int64_t head_kv;
};

// A problem's passes, rank by rank, and what they have added up to so far.
struct Passes {
  explicit Passes(const Inputs& inputs) : inputs(inputs), p(inputs.problem) {
    sinks = single(inputs.sinks);
    dsinks.resize(sinks.size());
    results.out.resize(inputs.dout.size());
    results.lse.resize(index(p.batch * p.num_heads_q * p.seqlen_q));
    results.dq.resize(inputs.q.size());
    results.dk.resize(inputs.k.size());
    results.dv.resize(inputs.v.size());
  }

  // `parts` have all entries and heads between them: as lse is [batch, num_heads_q, rows], either all heads or one entry each.
  void run_rank(Engine& engine, int world_size, int rank, const std::vector<Part>& parts) {
    const Plan forward(p, world_size, rank, Pass::forward), backward(p, world_size, rank, Pass::backward);
    const std::vector<std::int64_t> tokens = tokens_of(p, Side::query, world_size, rank);
    const auto rows = std::ssize(tokens);
    const auto of_queries = [&](std::int64_t dim, DType dtype) {
      return Rows(p, tokens, p.seqlen_q, p.num_heads_q, dim, dtype);
    };
    Rows q = of_queries(p.head_dim, p.dtype).take(inputs.q),
         dout = of_queries(p.head_dim_v, p.out_dtype).take(inputs.dout), out = of_queries(p.head_dim_v, p.out_dtype),
         running = of_queries(p.head_dim_v, DType::float32), dq = of_queries(p.head_dim, DType::float32),
         rounded_dq = of_queries(p.head_dim, p.grad_dtype);
    std::vector<float> max(index(p.batch * p.num_heads_q * rows)), sum(max), lse(max), delta(max);
    std::vector<float> combined(index(p.num_heads_q));

    const auto scratch_of = [&](const Plan& plan, const Problem& problem, const Moment& m) {
      std::int64_t longest = 0;
      for (const Piece& piece : plan.items(m, true).queries) longest = std::max(longest, piece.length);
      return scratch_.reserve(engine.scratch_bytes(problem, plan.pass(), longest, false));
    };
    for (const Part& part : parts) {
      const Problem& own = part.problem;
      const auto lane = (part.origin.entry * p.num_heads_q + part.origin.head) * rows;
      if (p.num_sinks > 0)
        engine.combine_sinks(own, sinks.data() + part.origin.head * p.num_sinks, combined.data() + part.origin.head);
      const auto queries_from = [&](Rows& whole) {
        return whole.tensor().from(part.origin.entry, 0, part.origin.head);
      };
      const auto keys_from = [&](Rows& whole) { return whole.tensor().from(part.origin.entry, 0, part.head_kv); };

      // As in ring/forward.cpp.
      const std::vector<Moment>& moments = forward.moments();
      const auto last = std::find_if(moments.rbegin(), moments.rend(), [](const Moment& m) { return m.computes; });
      for (const Moment& m : moments) {
        if (!m.computes && &m != &moments.front()) continue;
        const Chunk chunk(inputs, forward, m);
        Rows k = chunk.rows_of(p, p.head_dim, p.dtype).take(inputs.k),
             v = chunk.rows_of(p, p.head_dim_v, p.dtype).take(inputs.v);
        const StepItems work = forward.items(m, true);
        ForwardStep step;
        step.items = work.items;
        step.origin = part.origin;
        step.q = queries_from(q);
        step.k = keys_from(k);
        step.v = keys_from(v);
        step.query_rows = rows;
        step.key_rows = k.rows();
        step.running = queries_from(running);
        step.max = max.data() + lane;
        step.sum = sum.data() + lane;
        step.out = queries_from(out);
        step.lse = lse.data() + lane;
        step.key_bias = chunk.bias.data() + part.origin.entry * k.rows();
        step.sinks = combined.data() + part.origin.head;
        step.first = &m == &moments.front();
        step.last = last == moments.rend() ? step.first : &m == &*last;
        step.scratch = scratch_of(forward, own, m);
        engine.forward(own, step);
      }
      engine.compute_delta(own, queries_from(dout), queries_from(out), rows, delta.data() + lane);
      if (p.num_sinks > 0)
        engine.add_sink_gradients(own, sinks.data() + part.origin.head * p.num_sinks, lse.data() + lane,
                                  delta.data() + lane, rows, dsinks.data() + part.origin.head * p.num_sinks);
      for (const Moment& m : backward.moments()) {
        if (!m.computes) continue;
        const Chunk chunk(inputs, backward, m);
        Rows k = chunk.rows_of(p, p.head_dim, p.dtype).take(inputs.k),
             v = chunk.rows_of(p, p.head_dim_v, p.dtype).take(inputs.v),
             dk = chunk.rows_of(p, p.head_dim, DType::float32), dv = chunk.rows_of(p, p.head_dim_v, DType::float32);
        const StepItems work = backward.items(m, false);
        BackwardStep step;
        step.items = work.items;
        step.origin = part.origin;
        step.q = queries_from(q);
        step.k = keys_from(k);
        step.v = keys_from(v);
        step.dout = queries_from(dout);
        step.query_rows = rows;
        step.key_rows = k.rows();
        step.lse = lse.data() + lane;
        step.delta = delta.data() + lane;
        step.key_bias = chunk.bias.data() + part.origin.entry * k.rows();
        step.dq = queries_from(dq);
        step.dk = keys_from(dk);
        step.dv = keys_from(dv);
        step.scratch = scratch_of(backward, own, m);
        engine.backward(own, step);
        dk.add_to(results.dk);
        dv.add_to(results.dv);
      }
    }
    engine.round(p, dq.tensor(), rounded_dq.tensor(), {rows, p.num_heads_q, p.head_dim}, false);
    out.give(results.out);
    rounded_dq.give(results.dq);
    for (std::int64_t lane = 0; lane < p.batch * p.num_heads_q; ++lane)
      for (std::int64_t i = 0; i < rows; ++i)
        results.lse[index(lane * p.seqlen_q + tokens[index(i)])] = static_cast<double>(lse[index(lane * rows + i)]);
  }

  const Inputs& inputs;
  const Problem& p;
  std::vector<float> sinks, dsinks;
  Results results;

 private:
  Block scratch_;
};

Results run(const Inputs& inputs, int world_size = 1, int threads = 1, bool in_parts = false) {
  const Problem& p = inputs.problem;
  const std::unique_ptr<Engine> engine = make_cpu_engine(test::engine(), threads);
  EXPECT_EQ(engine->refusal(p), "");
  std::vector<Part> parts;
  if (!in_parts) parts.emplace_back(p, 0, p.batch, 0, p.num_heads_kv);
  for (std::int64_t b = 0; in_parts && b < p.batch; ++b)
    for (std::int64_t h = 0; h < p.num_heads_kv; ++h) parts.emplace_back(p, b, 1, h, 1);
  Passes passes(inputs);
  for (int rank = 0; rank < world_size; ++rank) passes.run_rank(*engine, world_size, rank, parts);
  Results results = passes.results;
  for (std::vector<double>* const sums : {&results.dk, &results.dv})
    for (double& x : *sums) x = reference::rounded(x, p.grad_dtype);
  results.dsinks = {{passes.dsinks.begin(), passes.dsinks.end()}};  // of all ranks
  return results;
}

constexpr int all = 15;
// Those whose bit is set.
void modify(Problem& p, int modifiers) {
  for (std::int64_t h = 0; (modifiers & 1) != 0 && h < p.num_heads_q; ++h)
    p.alibi_slopes.push_back(std::ldexp(1.0F, -1 - static_cast<int>(h % 8)));
  p.has_key_bias = (modifiers & 2) != 0;
  if ((modifiers & 4) != 0) p.num_sinks = 2;
  if ((modifiers & 8) != 0) p.dropout = {0.2F, 0x123456789abcdef0, 0xfedcba9876543210};
}

Problem shape(std::int64_t seqlen_q, std::int64_t seqlen_kv, std::int64_t head_dim, DType dtype) {
  Problem p;
  p.batch = 2;
  p.seqlen_q = seqlen_q;
  p.seqlen_kv = seqlen_kv;
  p.num_heads_q = 4;
  p.num_heads_kv = 2;
  p.head_dim = p.head_dim_v = head_dim;
  p.softmax_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.schedule = Schedule::ring;
  p.documents = {{0, seqlen_q, 0, seqlen_kv}};
  return p;
}

TEST(Modifiers, EachAloneAndAllTogether) {
  Random random(test::seed());
  int n = 0;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    Problem causal = shape(110, 110, 64, dtype), windows = shape(60, 130, 40, dtype),
            documents = shape(90, 90, 32, dtype), decode = shape(1, 700, 64, dtype), few = shape(5, 540, 33, dtype);
    causal.causal = true;
    windows.window_left = 30;
    windows.window_right = 9;
    windows.head_dim_v = 72;
    windows.softcap = 5;
    documents.documents = {{0, 40, 0, 30}, {40, 0, 30, 3}, {40, 50, 33, 57}};
    documents.bottom_right = false;
    decode.causal = true;
    few.kv_lengths = {540, 333};
    for (const Problem& plain : {causal, windows, documents, decode, few})
      for (const int modifiers : {1, 2, 4, 8, all}) {
        if (!test::sampled(n++, 5) || (test::brief() && n % 3 != 0)) continue;
        Problem p = plain;
        modify(p, modifiers);
        const Oracle oracle(p, random);
        expect_within(run(oracle), oracle);
      }
  }
}

TEST(Modifiers, AnyProblemOnAnyRanks) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(250); ++n) {
    Problem p = reference::draw_problem(random, {.modifiers = true});
    p.schedule = Schedule::ring;
    const int world_size = static_cast<int>(draw(random, 1, 4));
    SCOPED_TRACE(::testing::Message() << "case " << n << ", " << world_size << " ranks");
    const Oracle oracle(p, random);
    expect_within(run(oracle, world_size), oracle);
    if (HasFailure()) return;
  }
}

// Of several blocks of keys, and of the types that engines have tiles of their own for.
TEST(Modifiers, SeveralBlocksOfKeys) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(8); ++n) {
    Problem p = shape(draw(random, 150, 300), draw(random, 280, 420), draw(random, 32, 48),
                      draw(random, 0, 1) == 0 ? DType::bfloat16 : DType::float32);
    p.batch = 1;
    p.causal = draw(random, 0, 1) == 1;
    p.sharding = static_cast<Sharding>(draw(random, 0, 2));
    p.stripe = draw(random, 1, 9);
    modify(p, static_cast<int>(draw(random, 1, all)));
    const int world_size = static_cast<int>(draw(random, 1, 3));
    SCOPED_TRACE(::testing::Message() << "case " << n << ", " << world_size << " ranks");
    const Oracle oracle(p, random);
    expect_within(run(oracle, world_size), oracle);
    if (HasFailure()) return;
  }
}

// A part knows where it is in the whole.
TEST(Modifiers, OfPartsOfTheBatchAndTheHeads) {
  Random random(test::seed());
  for (const std::int64_t queries : {2, 60}) {
    Problem p = shape(queries, 70, 32, DType::float32);
    p.kv_lengths = {70, 55};
    modify(p, all);
    const Oracle oracle(p, random);
    expect_within(run(oracle, 2, 1, true), oracle);
  }
}

void expect_same(const Results& a, const Results& b) {
  for (const auto member : {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv})
    EXPECT_EQ(a.*member, b.*member);
  EXPECT_EQ(a.dsinks, b.dsinks);
}

TEST(Modifiers, BitsDoNotDependOnThreads) {
  Random random(test::seed());
  for (const std::int64_t queries : {1, 300}) {
    Problem p = shape(queries, 600, 32, DType::float32);
    modify(p, all);
    const Inputs inputs(p, random);
    expect_same(run(inputs), run(inputs, 1, 3));
  }
}

// The paths of modifiers that do nothing give what there is without them, to the bit.
TEST(Modifiers, ThatDoNothingChangeNoBit) {
  Random random(test::seed());
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const std::int64_t queries : {3, 200})
      for (const float softcap : {0.0F, 4.0F}) {
        Problem p = shape(queries, 330, 48, dtype);
        p.causal = true;
        p.softcap = softcap;
        Inputs inputs(p, random);
        const Results plain = run(inputs);
        inputs.problem.alibi_slopes.assign(index(p.num_heads_q), 0.0F);
        inputs.problem.has_key_bias = true;
        inputs.key_bias.assign(index(p.batch * p.seqlen_kv), 0.0);
        inputs.problem.num_sinks = 1;
        inputs.sinks.assign(index(p.num_heads_q), -std::numeric_limits<double>::infinity());
        inputs.problem.dropout = {0x1p-40F, 1, 2};  // threshold 0
        Results modified = run(inputs);
        EXPECT_EQ(modified.dsinks.at(0), std::vector<double>(index(p.num_heads_q), 0.0));
        modified.dsinks = plain.dsinks;
        expect_same(plain, modified);
      }
}

// An entry whose keys all have a bias of -infinity.
TEST(Modifiers, RowsWhoseKeysAreAllHiddenByBias) {
  Random random(test::seed());
  for (const std::int64_t queries : {1, 50})
    for (const std::int64_t num_sinks : {0, 2}) {
      Problem p = shape(queries, 300, 32, DType::float32);
      p.has_key_bias = true;
      p.num_sinks = num_sinks;
      Inputs inputs(p, random);
      std::fill_n(inputs.key_bias.begin(), p.seqlen_kv, -std::numeric_limits<double>::infinity());
      const Results results = run(inputs);
      const std::int64_t row = p.num_heads_q * p.head_dim;
      for (std::int64_t n = 0; n < queries * row; ++n) {
        ASSERT_EQ(results.out[index(n)], 0);
        ASSERT_EQ(results.dq[index(n)], 0);
      }
      for (std::int64_t n = 0; n < p.seqlen_kv * p.num_heads_kv * p.head_dim; ++n) {
        ASSERT_EQ(results.dk[index(n)], 0);
        ASSERT_EQ(results.dv[index(n)], 0);
      }
      for (std::int64_t n = 0; n < p.num_heads_q * queries; ++n) {
        const double sinks = num_sinks == 0 ? 0
                                            : std::exp(inputs.sinks[index(n / queries * 2)]) +
                                                  std::exp(inputs.sinks[index(n / queries * 2 + 1)]);
        ASSERT_EQ(results.lse[index(n)] == -INFINITY, sinks == 0);
        if (sinks != 0) {
          ASSERT_NEAR(results.lse[index(n)], std::log(sinks), 1e-6);
        }
      }
    }
}

// Documents that begin far into a sequence whose tokens are dealt out: positions of any size, at distances that are small.
TEST(Modifiers, FarIntoALongSequence) {
  Random random(test::seed());
  for (const auto& [queries, spacing] : {std::pair<std::int64_t, std::int64_t>{2, 1}, {40, 1}, {40, 3}}) {
    constexpr std::int64_t keys = 150, stride = 5, block = 2;
    Problem p = shape(queries, keys, 16, DType::float32);
    p.batch = p.num_heads_kv = 1;
    p.num_heads_q = 2;
    p.alibi_slopes.assign(1008, 0);  // of the whole problem's heads, of which the step has two
    p.alibi_slopes[1000] = 0.25F;
    p.alibi_slopes[1007] = 0.03125F;
    p.dropout = {0.5F, 77, 88};
    Inputs inputs(p, random);
    std::vector<float> q = single(inputs.q), k = single(inputs.k), v = single(inputs.v), out(q.size()),
                       lse(index(2 * queries));
    p.seqlen_q = p.seqlen_kv = std::int64_t{1} << 47;
    p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};

    const std::int64_t first = (std::int64_t{1} << 44) + 3, shift = 12'345;
    const Piece query{0, {first, queries, queries, queries}, 0, queries, 0},
        key{0, {first + shift - 90, block, stride, keys}, 0, keys, 0};
    WorkItem item;
    item.q_begin = std::int64_t{1} << 45;
    item.kv_begin = (std::int64_t{1} << 44) + 1;
    item.spacing = spacing;
    item.shift = shift;
    item.queries = {&query, 1};
    item.keys = {&key, 1};
    const std::unique_ptr<Engine> engine = make_cpu_engine(test::engine(), 1);
    Block scratch;
    ForwardStep step;
    step.items = {&item, 1};
    step.origin = {most_tokens - 1, 1000, 7};
    step.q = packed_tensor(q.data(), DType::float32, queries, 2, 16);
    step.k = packed_tensor(k.data(), DType::float32, keys, 1, 16);
    step.v = packed_tensor(v.data(), DType::float32, keys, 1, 16);
    step.out = packed_tensor(out.data(), DType::float32, queries, 2, 16);
    step.query_rows = queries;
    step.key_rows = keys;
    step.lse = lse.data();
    step.scratch = scratch.reserve(engine->scratch_bytes(p, Pass::forward, queries, true));
    engine->forward(p, step);

    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 0; i < queries; ++i) {
        const PhiloxKey row =
            dropout_row_key(77, item.q_begin + query.position(i) * spacing, most_tokens - 1, 1000 + 7 * h);
        double sum = 0, expected[16] = {};
        for (std::int64_t j = 0; j < keys; ++j) {
          double score = 0;
          for (std::int64_t d = 0; d < 16; ++d)
            score += inputs.q[index((i * 2 + h) * 16 + d)] * inputs.k[index(j * 16 + d)];
          const std::int64_t distance = std::abs(query.position(i) + shift - key.position(j)) * spacing;
          const double weight =
              std::exp(0.25 * score - double{p.alibi_slopes[index(1000 + 7 * h)]} * static_cast<double>(distance));
          sum += weight;
          if (dropout_keeps(row, 88, item.kv_begin + key.position(j) * spacing, 0x80000000))
            for (std::int64_t d = 0; d < 16; ++d) expected[d] += 2 * weight * inputs.v[index(j * 16 + d)];
        }
        EXPECT_NEAR(lse[index(h * queries + i)], std::log(sum), 1e-5) << "head " << h << ", row " << i;
        for (std::int64_t d = 0; d < 16; ++d)
          EXPECT_NEAR(out[index((i * 2 + h) * 16 + d)], expected[d] / sum, 1e-5) << "head " << h << ", row " << i;
      }
  }
}

}  // namespace
}  // namespace ringattn
