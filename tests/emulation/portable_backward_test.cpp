// The portable engine's backward kernels: steps of random problems on one rank or several, one after the other, against the oracle.
#include "engine/cuda/portable_backward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "core/memory.h"
#include "emulation/execution/execution.h"
#include "engine/cuda/elementwise.h"
#include "engine/reference/oracle.h"
#include "plan/plan.h"
#include "support/oracle_run.h"
#include "support/random.h"

namespace ringattn::cuda {
namespace {

using reference::draw;
using reference::Inputs;
using reference::Oracle;
using reference::Random;

// Rows of a tensor in a layout of their own. What lies between them must not matter: it is NaN.
class Strided {
 public:
  Strided(Random& random, DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t dim)
      : batch_(batch), rows_(rows), heads_(heads), dim_(dim) {
    const std::int64_t unit = draw(random, 0, 2) == 0 ? 1 : 8;
    const auto padded = [&](std::int64_t n) { return (n + unit - 1) / unit * unit + draw(random, 0, 1) * unit; };
    tensor.dtype = dtype;
    if (draw(random, 0, 1) == 0) {
      tensor.head_stride = padded(dim);
      tensor.seq_stride = padded(heads * tensor.head_stride);
      tensor.batch_stride = padded(rows * tensor.seq_stride);
    } else {
      tensor.seq_stride = padded(dim);
      tensor.head_stride = padded(rows * tensor.seq_stride);
      tensor.batch_stride = padded(heads * tensor.head_stride);
    }
    words_.resize(static_cast<std::size_t>(batch * tensor.batch_stride * size_of(dtype)) / 16 + 1);
    std::memset(words_.data(), 0xff, words_.size() * 16);
    tensor.data = words_.data();
  }
  Strided(const Strided&) = delete;
  Strided& operator=(const Strided&) = delete;

  // f(b, row, head, d, number) for every element, in place.
  template <class F>
  void for_each(F&& f) {
    for (std::int64_t b = 0; b < batch_; ++b)
      for (std::int64_t row = 0; row < rows_; ++row)
        for (std::int64_t head = 0; head < heads_; ++head)
          for (std::int64_t d = 0; d < dim_; ++d)
            f(b, row, head, d, tensor.bytes_at(b, row, head) + d * size_of(tensor.dtype));
  }
  std::int64_t heads() const { return heads_; }
  std::int64_t dim() const { return dim_; }
  bool operator==(const Strided& other) const {
    return words_.size() == other.words_.size() &&
           std::memcmp(words_.data(), other.words_.data(), words_.size() * 16) == 0;
  }

  Tensor tensor;

 private:
  struct alignas(16) Word {
    std::byte bytes[16];
  };
  std::int64_t batch_, rows_, heads_, dim_;
  std::vector<Word> words_;
};

// [batch, seqlen, heads, dim] of the whole sequence, as the oracle has it, for rows at given positions.
std::size_t index_of(std::int64_t b, std::int64_t seqlen, std::int64_t position, std::int64_t heads, std::int64_t head,
                     std::int64_t dim, std::int64_t d) {
  return static_cast<std::size_t>(((b * seqlen + position) * heads + head) * dim + d);
}
void fill(Strided& to, const std::vector<double>& whole, std::int64_t seqlen,
          const std::vector<std::int64_t>& positions) {
  to.for_each([&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d, std::byte* at) {
    reference::encode(
        whole[index_of(b, seqlen, positions[static_cast<std::size_t>(row)], to.heads(), head, to.dim(), d)],
        to.tensor.dtype, at);
  });
}
void clear(Strided& to) {
  to.for_each([](std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::byte* at) { std::memset(at, 0, 4); });
}
void gather(Strided& from, std::vector<double>& whole, std::int64_t seqlen, const std::vector<std::int64_t>& positions,
            DType dtype) {
  from.for_each([&](std::int64_t b, std::int64_t row, std::int64_t head, std::int64_t d, std::byte* at) {
    whole[index_of(b, seqlen, positions[static_cast<std::size_t>(row)], from.heads(), head, from.dim(), d)] =
        reference::rounded(reference::decode(at, DType::float32), dtype);
  });
}

std::vector<std::int64_t> query_positions(const Plan& plan) {
  const std::vector<Piece> pieces = shard_pieces(plan.problem(), Side::query, plan.world_size(), plan.rank());
  std::vector<std::int64_t> positions;
  for (std::int64_t row = 0; row < plan.query_rows(); ++row)
    positions.push_back(row_position(plan.problem(), Side::query, pieces, row));
  return positions;
}
std::vector<std::int64_t> key_positions(const Plan& plan, int owner, std::int64_t chunk) {
  const std::vector<Piece> pieces = shard_pieces(plan.problem(), Side::key_value, plan.world_size(), owner);
  std::vector<std::int64_t> positions;
  for (const Stretch& stretch : plan.chunk_stretches(owner, chunk))
    for (std::int64_t row = stretch.row; row < stretch.row + stretch.length; ++row)
      positions.push_back(row_position(plan.problem(), Side::key_value, pieces, row));
  return positions;
}

using RunStep = std::function<void(const Problem&, const BackwardStep&)>;

// All steps of all ranks. `forward`: the global result. `layout`: how tensors lie.
test::Results run(const Inputs& inputs, const reference::Result<double>& forward, int world_size, std::uint64_t layout,
                  const RunStep& run_step) {
  const Problem& p = inputs.problem;
  Random random(layout);
  test::Results results;
  results.dq.assign(inputs.q.size(), 0);
  results.dk.assign(inputs.k.size(), 0);
  results.dv.assign(inputs.v.size(), 0);
  struct Chunk {
    Chunk(Random& random, const Problem& p, std::vector<std::int64_t> at)
        : positions(std::move(at)),
          dk(random, DType::float32, p.batch, rows(), p.num_heads_kv, p.head_dim),
          dv(random, DType::float32, p.batch, rows(), p.num_heads_kv, p.head_dim_v) {
      clear(dk);
      clear(dv);
    }
    std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
    std::vector<std::int64_t> positions;
    Strided dk, dv;
  };
  std::map<std::pair<int, std::int64_t>, std::unique_ptr<Chunk>> chunks;

  for (int rank = 0; rank < world_size; ++rank) {
    const Plan plan(p, world_size, rank, Pass::backward);
    const std::vector<std::int64_t> positions = query_positions(plan);
    const std::int64_t rows = plan.query_rows();
    Strided q(random, p.dtype, p.batch, rows, p.num_heads_q, p.head_dim),
        out(random, p.out_dtype, p.batch, rows, p.num_heads_q, p.head_dim_v),
        dout(random, p.out_dtype, p.batch, rows, p.num_heads_q, p.head_dim_v),
        dq(random, DType::float32, p.batch, rows, p.num_heads_q, p.head_dim);
    fill(q, inputs.q, p.seqlen_q, positions);
    fill(out, forward.out, p.seqlen_q, positions);
    fill(dout, inputs.dout, p.seqlen_q, positions);
    clear(dq);
    std::vector<float> lse(static_cast<std::size_t>(p.batch * p.num_heads_q * rows)), delta(lse.size());
    for (std::size_t n = 0; n < lse.size(); ++n)
      lse[n] =
          static_cast<float>(forward.lse[n / static_cast<std::size_t>(rows) * static_cast<std::size_t>(p.seqlen_q) +
                                         static_cast<std::size_t>(positions[n % static_cast<std::size_t>(rows)])]);
    EXPECT_EQ(
        compute_delta(p.batch, dout.tensor, out.tensor, {rows, p.num_heads_q, p.head_dim_v}, delta.data(), nullptr), 0);

    for (const Moment& moment : plan.moments()) {
      if (!moment.computes) continue;
      auto& chunk = chunks[{moment.holds, moment.chunk}];
      if (chunk == nullptr) chunk = std::make_unique<Chunk>(random, p, key_positions(plan, moment.holds, moment.chunk));
      Strided k(random, p.dtype, p.batch, chunk->rows(), p.num_heads_kv, p.head_dim),
          v(random, p.dtype, p.batch, chunk->rows(), p.num_heads_kv, p.head_dim_v);
      fill(k, inputs.k, p.seqlen_kv, chunk->positions);
      fill(v, inputs.v, p.seqlen_kv, chunk->positions);
      const StepItems work = plan.items(moment, false);
      BackwardStep step;
      step.items = work.items;
      step.q = q.tensor;
      step.k = k.tensor;
      step.v = v.tensor;
      step.dout = dout.tensor;
      step.query_rows = rows;
      step.key_rows = chunk->rows();
      step.lse = lse.data();
      step.delta = delta.data();
      step.dq = dq.tensor;
      step.dk = chunk->dk.tensor;
      step.dv = chunk->dv.tensor;
      run_step(p, step);
    }
    gather(dq, results.dq, p.seqlen_q, positions, p.grad_dtype);
  }
  for (const auto& [of, chunk] : chunks) {
    gather(chunk->dk, results.dk, p.seqlen_kv, chunk->positions, p.grad_dtype);
    gather(chunk->dv, results.dv, p.seqlen_kv, chunk->positions, p.grad_dtype);
  }
  return results;
}

void run_kernels(const Problem& p, const BackwardStep& step) { ASSERT_EQ(portable_backward(p, step, nullptr), 0); }

// As the forward pass leaves it.
reference::Result<double> forward_of(const Inputs& inputs) {
  reference::Result<double> result = reference::forward(inputs.problem, inputs.q, inputs.k, inputs.v);
  for (double& x : result.out) x = reference::rounded(x, inputs.problem.out_dtype);
  return result;
}

void expect_gradients(const test::Results& ours, const Oracle& oracle) {
  test::expect_within("dq", ours.dq, oracle.dq);
  test::expect_within("dk", ours.dk, oracle.dk);
  test::expect_within("dv", ours.dv, oracle.dv);
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// For each width of the kernels, as large as takes reasonable time; `rounded`: a problem whose weights may be rounded.
Problem draw_problem_of(Random& random, int width, bool rounded) {
  const reference::ProblemLimits limits = width == 64    ? reference::ProblemLimits{.head_dim = 64}
                                          : width == 128 ? reference::ProblemLimits{1, 80, 1, 2, 128}
                                                         : reference::ProblemLimits{1, 48, 1, 2, 256};
  for (;;) {
    Problem p = reference::draw_problem(random, limits);
    if (rounded) {
      if (p.dtype == DType::float32) p.dtype = DType::bfloat16;
      p.out_dtype = p.grad_dtype = p.dtype;
    }
    const BackwardVariant variant = choose_backward(p);
    if (variant.dim == width && variant.exact_weights != rounded) return p;
  }
}

void sweep(int count, const std::vector<int>& widths, bool rounded) {
  Random random(test::seed());
  std::map<int, int> dtypes;
  for (int n = 0; n < test::sample(count); ++n) {
    const Problem p = draw_problem_of(random, widths[static_cast<std::size_t>(n) % widths.size()], rounded);
    const Oracle oracle(p, random);
    const int world_size = static_cast<int>(draw(random, 1, 3));
    SCOPED_TRACE(::testing::Message() << "case " << n << " on " << world_size << " ranks: " << reference::describe(p));
    const reference::Result<double> forward = forward_of(oracle);
    const std::uint64_t layout = random();
    emulation::set_options({.seed = random(), .host_threads = 1});
    const test::Results results = run(oracle, forward, world_size, layout, run_kernels);
    expect_gradients(results, oracle);
    if (n % 8 == 0) {  // in another order
      emulation::set_options({.seed = random(), .host_threads = 2});
      const test::Results again = run(oracle, forward, world_size, layout, run_kernels);
      EXPECT_TRUE(same(results.dq, again.dq) && same(results.dk, again.dk) && same(results.dv, again.dv));
    }
    if (::testing::Test::HasFailure()) return;
    ++dtypes[static_cast<int>(choose_backward(p).dtype)];
  }
  for (const auto& [dtype, cases] : dtypes) std::cout << cases << " cases of dtype " << dtype << "\n";
}

TEST(PortableBackward, RoundedWeightsHoldTheToleranceRule) { sweep(120, {64, 64, 64, 64, 128, 256}, true); }
TEST(PortableBackward, ExactWeightsHoldTheToleranceRule) {
  sweep(200, {64, 64, 64, 64, 64, 64, 64, 64, 128, 256}, false);
}

Problem causal_window(DType dtype, std::int64_t head_dim) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 150;  // several tiles
  p.documents = {{0, 150, 0, 150}};
  p.head_dim = p.head_dim_v = head_dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.softmax_scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  p.causal = true;
  p.window_left = 60;
  p.sharding = Sharding::zigzag;
  return p;
}

// A value that is not finite in one row of one input reaches the results that depend on it, and no others.
TEST(PortableBackward, WhatIsNotFiniteReachesOnlyWhatSeesIt) {
  enum Input { q, k, v, dout };
  int combination = 0;
  for (const double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (const Input input : {q, k, v, dout})
      for (const auto& [world_size, dtype, head_dim] : {std::tuple{1, DType::float32, 24},
                                                        {3, DType::float32, 75},
                                                        {1, DType::bfloat16, 40},
                                                        {3, DType::bfloat16, 75},
                                                        {1, DType::bfloat16, 24},
                                                        {1, DType::float16, 64}}) {
        if (!test::sampled(combination++, 5)) continue;
        const Problem p = causal_window(dtype, head_dim);
        Random random(11);
        const Oracle oracle(p, random);
        Inputs inputs = oracle;
        constexpr std::int64_t token = 71;  // the second of a pair
        std::vector<double>* const tensors[] = {&inputs.q, &inputs.k, &inputs.v, &inputs.dout};
        (*tensors[input])[static_cast<std::size_t>(token * p.head_dim + 5)] = poison;
        emulation::set_options({.seed = random(), .host_threads = 1});
        const test::Results results = run(inputs, forward_of(inputs), world_size, 5, run_kernels);

        const auto sees = [&](std::int64_t i, std::int64_t j) { return reference::sees(p, 0, i, j); };
        const auto query_touched = [&](std::int64_t i) {
          return input == q || input == dout ? i == token : sees(i, token);
        };
        const auto key_touched = [&](std::int64_t j) {
          for (std::int64_t i = 0; i < p.seqlen_q; ++i)
            if (sees(i, j) && query_touched(i)) return true;
          return false;
        };
        const auto expect_clean = [&](const char* name, const std::vector<double>& ours,
                                      const reference::Expected& expected, const auto& touched, std::int64_t width) {
          for (std::int64_t i = 0; i < p.seqlen_q; ++i)
            for (std::int64_t d = 0; d < width; ++d) {
              const auto n = static_cast<std::size_t>(i * width + d);
              if (touched(i)) continue;
              ASSERT_LE(std::abs(ours[n] - expected.exact[n]), expected.tolerance)
                  << name << " row " << i << ", input " << input << ", " << reference::describe(p);
            }
        };
        expect_clean("dq", results.dq, oracle.dq, query_touched, p.head_dim);
        expect_clean("dk", results.dk, oracle.dk, key_touched, p.head_dim);
        expect_clean("dv", results.dv, oracle.dv, key_touched, p.head_dim_v);
        EXPECT_FALSE(std::isfinite(results.dq[static_cast<std::size_t>(token * p.head_dim)]));
        if (HasFailure()) return;
      }
}

// Numbers of all kinds, anywhere: what comes out is finite, infinite or not a number as it is from an engine of the CPU.
TEST(PortableBackward, WhatIsNotFiniteIsAsOnTheCpu) {
  const std::unique_ptr<Engine> cpu = make_cpu_engine("portable", 1);
  Random random(test::seed());
  std::int64_t not_finite = 0, all = 0;
  for (int n = 0; n < test::sample(60); ++n) {
    Problem p = draw_problem_of(random, 64, n % 2 == 0);
    p.num_chunks = 1;
    Inputs inputs(p, random);
    SCOPED_TRACE(::testing::Message() << "case " << n << ": " << reference::describe(p));
    const double specials[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
    for (std::vector<double>* const tensor : {&inputs.q, &inputs.k, &inputs.v, &inputs.dout})
      for (std::int64_t i = draw(random, 0, 2); i > 0 && !tensor->empty(); --i)
        (*tensor)[random() % tensor->size()] = specials[draw(random, 0, 2)];
    const reference::Result<double> forward = forward_of(inputs);
    emulation::set_options({.seed = random(), .host_threads = 1});
    const test::Results ours = run(inputs, forward, 1, 7, run_kernels);
    const test::Results theirs = run(inputs, forward, 1, 7, [&](const Problem& problem, const BackwardStep& step) {
      std::vector<std::byte> room(cpu->scratch_bytes(problem, Pass::backward, problem.seqlen_q) + memory_alignment);
      void* scratch = room.data();
      std::size_t space = room.size();
      BackwardStep with_scratch = step;
      with_scratch.scratch = std::align(memory_alignment, space - memory_alignment, scratch, space);
      cpu->backward(problem, with_scratch);
    });
    const auto expect_same_kind = [&](const char* name, const std::vector<double>& a, const std::vector<double>& b) {
      for (std::size_t i = 0; i < a.size(); ++i) {
        ++all;
        not_finite += !std::isfinite(b[i]);
        ASSERT_EQ(std::isfinite(a[i]), std::isfinite(b[i]))
            << name << "[" << i << "] is " << a[i] << ", on the CPU " << b[i];
      }
    };
    expect_same_kind("dq", ours.dq, theirs.dq);
    expect_same_kind("dk", ours.dk, theirs.dk);
    expect_same_kind("dv", ours.dv, theirs.dv);
    if (HasFailure()) return;
  }
  std::cout << not_finite << " of " << all << " not finite\n";
  EXPECT_GT(not_finite, all / 100);
  EXPECT_LT(not_finite, all / 2);
}

}  // namespace
}  // namespace ringattn::cuda
