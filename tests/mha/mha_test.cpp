// Layers of multi-head attention through the C API.
//
// That a layer is what ra_mha_desc says is shown by one in fp64 here, for problems of every kind, and by tests/oracle/mha.py. The rest is
// what has to be equal to the last bit: a layer and what it is made of; a layer and itself, on other threads, in other memory, over
// other transports and with what is computed again instead of kept.
#include "support/mha.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "core/memory.h"
#include "engine/engine.h"
#include "engine/projector.h"
#include "engine/reference/oracle.h"
#include "support/mha_reference.h"
#include "support/oracle_run.h"
#include "support/plain_layer.h"
#include "support/random.h"

namespace ringattn::test {
namespace {

using reference::draw;
using reference::Random;

enum Weight : std::size_t { w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k };

Matrix matrix_of(const Tensor& t) { return {t.bytes.get(), static_cast<DType>(t.dtype), t.seq_stride}; }

// A layer by ra_forward and ra_backward and an engine's projector. Tensors of `shard` are packed.
class ByHand {
 public:
  ByHand(MhaShard& shard, ra_context* context)
      : s_(shard),
        context_(context),
        engine_(make_cpu_engine(engine(), 1)),
        projector_(engine_->projector()),
        rows_(s_.desc.batch * s_.x.seq) {
    attention_ = s_.desc;
    attention_.out_dtype = attention_.grad_dtype = RA_DTYPE_SAME;
    attention_ = with_defaults(attention_);
    scratch_ = block_.reserve(projector_.scratch_bytes(rows_));
    const ra_attention_desc& d = attention_;
    const auto make = [&](std::int64_t heads, std::int64_t dim) {
      return Tensor(d.dtype, d.batch, s_.x.seq, heads, dim);
    };
    q = make(d.num_heads_q, d.head_dim), raw_q = make(d.num_heads_q, d.head_dim), dq = make(d.num_heads_q, d.head_dim);
    k = make(d.num_heads_kv, d.head_dim), raw_k = make(d.num_heads_kv, d.head_dim),
    dk = make(d.num_heads_kv, d.head_dim);
    v = make(d.num_heads_kv, d.head_dim_v), dv = make(d.num_heads_kv, d.head_dim_v);
    attended = make(d.num_heads_q, d.head_dim_v), dattended = make(d.num_heads_q, d.head_dim_v);
    lse = Tensor(RA_DTYPE_FLOAT32, d.batch, s_.x.seq, d.num_heads_q, 1, Layout::head_major);
    out = Tensor(s_.out.dtype, d.batch, s_.out.seq, 1, s_.mha.d_model);
    dx = Tensor(s_.dx.dtype, d.batch, s_.dx.seq, 1, s_.mha.d_model);
    for (std::size_t i = 0; i < gradients.size(); ++i)
      gradients[i] = Tensor(RA_DTYPE_FLOAT32, 1, s_.weights[i].seq, 1, s_.weights[i].dim);
  }

  void forward() {
    project(w_q, b_q, norm_q, raw_q, q);
    project(w_k, b_k, norm_k, raw_k, k);
    project(w_v, b_v, norm_k, v, v);
    ra_forward_args a;
    ra_init_forward_args(&a, sizeof a);
    a.q = q.view(), a.k = k.view(), a.v = v.view(), a.out = attended.view();
    a.lse = reinterpret_cast<float*>(lse.bytes.get());
    Error error;
    ASSERT_EQ(ra_forward(context_, &attention_, &a, &error), RA_STATUS_SUCCESS) << error;
    multiply({{flat(attended), matrix_of(s_.weights[w_o]), columns(attended)}}, flat(out), rows_, s_.mha.d_model,
             bias(b_o));
  }
  void backward() {
    const std::int64_t d_model = s_.mha.d_model;
    multiply({{flat(s_.dout), matrix_of(s_.weights[w_o]).transposed(), d_model}}, flat(dattended), rows_,
             columns(dattended));
    multiply({{flat(attended).transposed(), flat(s_.dout), rows_}}, matrix_of(gradients[w_o]), columns(attended),
             d_model);
    sum(s_.dout, b_o);
    ra_backward_args a;
    ra_init_backward_args(&a, sizeof a);
    a.dout = dattended.view(), a.q = q.view(), a.k = k.view(), a.v = v.view(), a.out = attended.view();
    a.dq = dq.view(), a.dk = dk.view(), a.dv = dv.view();
    a.lse = reinterpret_cast<float*>(lse.bytes.get());
    Error error;
    ASSERT_EQ(ra_backward(context_, &attention_, &a, &error), RA_STATUS_SUCCESS) << error;
    differentiate(norm_q, raw_q, dq);
    differentiate(norm_k, raw_k, dk);
    std::vector<Term> terms;
    for (const auto& [weight, bias_of, gradient] : {std::tuple{w_q, b_q, &dq}, {w_k, b_k, &dk}, {w_v, b_v, &dv}}) {
      multiply({{flat(s_.x).transposed(), flat(*gradient), rows_}}, matrix_of(gradients[weight]), d_model,
               columns(*gradient));
      sum(*gradient, bias_of);
      terms.push_back({flat(*gradient), matrix_of(s_.weights[weight]).transposed(), columns(*gradient)});
    }
    multiply(terms, flat(dx), rows_, d_model);
  }

  Tensor out, dx;
  std::array<Tensor, MhaShard::num_weights> gradients;

 private:
  static std::int64_t columns(const Tensor& t) { return t.heads * t.dim; }
  static Matrix flat(const Tensor& t) { return matrix_of(t); }
  Matrix bias(Weight which) const { return s_.weights[which].size > 0 ? matrix_of(s_.weights[which]) : Matrix{}; }
  void multiply(const std::vector<Term>& terms, const Matrix& to, std::int64_t rows, std::int64_t cols,
                const Matrix& add = {}) {
    projector_.multiply({terms, to, rows, cols, add}, scratch_);
  }
  HeadStyle style(Weight norm, const Tensor& t) const {
    HeadStyle style;
    style.heads = t.heads, style.dim = t.dim, style.norm = bias(norm);
    style.epsilon = static_cast<double>(s_.mha.norm_epsilon), style.positions = s_.positions;
    if (s_.mha.rotary != RA_ROTARY_NONE)
      style.rotation = {
          2 * static_cast<std::int64_t>(static_cast<double>(s_.mha.rotary_fraction) * static_cast<double>(t.dim) / 2),
          s_.mha.rotary == RA_ROTARY_INTERLEAVED, static_cast<double>(s_.mha.rotary_base)};
    return style;
  }
  void project(Weight weight, Weight bias_of, Weight norm, const Tensor& raw, const Tensor& to) {
    multiply({{flat(s_.x), matrix_of(s_.weights[weight]), s_.mha.d_model}}, flat(raw), rows_, columns(raw),
             bias(bias_of));
    if (&raw == &to) return;
    projector_.style_heads(style(norm, to), flat(raw), flat(to), rows_);
  }
  void differentiate(Weight norm, const Tensor& raw, const Tensor& gradient) {
    const HeadStyle s = style(norm, gradient);
    float* const dnorm = gradients[norm].size > 0 ? reinterpret_cast<float*>(gradients[norm].bytes.get()) : nullptr;
    if (s.changes()) projector_.differentiate_heads(s, flat(raw), flat(gradient), rows_, dnorm, false, scratch_);
  }
  void sum(const Tensor& gradient, Weight bias_of) {
    if (gradients[bias_of].size > 0)
      projector_.sum_rows(flat(gradient), rows_, columns(gradient),
                          reinterpret_cast<float*>(gradients[bias_of].bytes.get()), false, scratch_);
  }

  MhaShard& s_;
  ra_context* context_;
  std::unique_ptr<Engine> engine_;
  Projector& projector_;
  std::int64_t rows_;
  ra_attention_desc attention_{};
  Block block_;
  void* scratch_ = nullptr;
  Tensor q, raw_q, dq, k, raw_k, dk, v, dv, attended, dattended, lse;
};

void expect_equal(const MhaShard& shard, const ByHand& by_hand) {
  EXPECT_TRUE(same_bits(shard.out, by_hand.out)) << "out of rank " << shard.rank;
  EXPECT_TRUE(same_bits(shard.dx, by_hand.dx)) << "dx of rank " << shard.rank;
  for (std::size_t i = 0; i < MhaShard::num_weights; ++i)
    EXPECT_TRUE(same_bits(shard.gradients[i], by_hand.gradients[i])) << "gradient " << i << " of rank " << shard.rank;
}

TEST(Mha, IsWhatItIsMadeOf) {
  const std::uint64_t seed = number_of("RINGATTN_TEST_SEED", 1);
  std::cout << "seed " << seed << '\n';
  const int cases = full() ? 1000 : brief() ? 20 : 100 / slowness + 10;
  std::map<std::int32_t, std::unique_ptr<Ranks>> all_ranks;
  for (int n = 0; n < cases; ++n) {
    if (!chosen(n)) continue;
    Random random(seed * 1'000'003 + static_cast<std::uint64_t>(n));
    const Problem p = draw_attention(random, {.seqlen = 70, .modifiers = true, .layers = true});
    const ra_mha_desc mha = draw_mha(random, p);
    const auto world_size = static_cast<std::int32_t>(draw(random, 1, 4));
    std::unique_ptr<Ranks>& ranks = all_ranks[world_size];
    if (ranks == nullptr) ranks = std::make_unique<Ranks>(world_size);
    const Description description(p);
    SCOPED_TRACE(testing::Message() << "case " << n << ", " << world_size << " ranks, d_model " << mha.d_model << ": "
                                    << reference::describe(p));
    ranks->run([&](std::int32_t rank, ra_context* context) {
      MhaShard shard(description.desc, mha, world_size, rank);
      if (!shard.make_room(context)) return;
      Error error;
      ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
      ASSERT_EQ(shard.backward(context, &error), RA_STATUS_SUCCESS) << error;
      ByHand by_hand(shard, context);
      by_hand.forward();
      by_hand.backward();
      expect_equal(shard, by_hand);
    });
    if (HasFailure()) return;
  }
}

std::vector<double> numbers(const Tensor& t) {
  std::vector<double> all;
  t.for_each_element([&](auto... at) { all.push_back(static_cast<double>(t.get(at...))); });
  return all;
}

// In fp32, in which nothing that lies between is rounded more coarsely than sums are.
TEST(Mha, IsThePlainLayer) {
  const std::uint64_t seed = number_of("RINGATTN_TEST_SEED", 1);
  std::cout << "seed " << seed << '\n';
  const int cases = sample(300);
  std::map<std::int32_t, std::unique_ptr<Ranks>> all_ranks;
  double largest_error = 0;
  std::mutex lock;
  for (int n = 0; n < cases; ++n) {
    if (!chosen(n)) continue;
    Random random(seed * 1'000'003 + static_cast<std::uint64_t>(n));
    Problem p = draw_attention(random, {.seqlen = 70, .modifiers = true, .layers = true});
    p.dtype = p.out_dtype = p.grad_dtype = DType::float32;
    ra_mha_desc mha = draw_mha(random, p);
    mha.norm_epsilon = 0.1F;
    const std::int32_t world_size = std::array{1, 2, 3, 4, 8}[static_cast<std::size_t>(draw(random, 0, 4))];
    std::unique_ptr<Ranks>& ranks = all_ranks[world_size];
    if (ranks == nullptr) ranks = std::make_unique<Ranks>(world_size);
    const Description description(p);
    SCOPED_TRACE(testing::Message() << "case " << n << ", " << world_size << " ranks, d_model " << mha.d_model << ": "
                                    << reference::describe(p));
    const MhaShard whole(description.desc, mha, 1, 0);
    LayerWeights weights;
    for (std::size_t i = 0; i < layer_weights.size(); ++i) weights.*layer_weights[i] = numbers(whole.weights[i]);
    const LayerResult expected = PlainLayer(p, mha).run(numbers(whole.x), weights, numbers(whole.dout));
    ranks->run([&](std::int32_t rank, ra_context* context) {
      MhaShard shard(description.desc, mha, world_size, rank);
      if (!shard.make_room(context)) return;
      Error error;
      ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
      ASSERT_EQ(shard.backward(context, &error, true), RA_STATUS_SUCCESS) << error;
      // Element [b, s, 0, d] of what a rank has is `at(b, s, d)` of all.
      const auto expect_near = [&](const char* what, const Tensor& got, const std::vector<double>& all, auto&& at) {
        double largest = 1, error_of_all = 0;
        for (const double x : all) largest = std::max(largest, std::abs(x));
        got.for_each_element([&](auto b, auto s, auto h, auto d) {
          const double exact = all[static_cast<std::size_t>(at(b, s, d))];
          error_of_all = std::max(error_of_all, std::abs(static_cast<double>(got.get(b, s, h, d)) - exact) / largest);
        });
        EXPECT_LE(error_of_all, 1e-5) << what << " of rank " << rank;
        const std::lock_guard guard(lock);
        largest_error = std::max(largest_error, error_of_all);
      };
      const auto of_token = [&](std::int64_t b, std::int64_t s, std::int64_t d) {
        return (b * p.seqlen_q + shard.positions[static_cast<std::size_t>(s)]) * mha.d_model + d;
      };
      expect_near("out", shard.out, expected.out, of_token);
      expect_near("dx", shard.dx, expected.dx, of_token);
      for (std::size_t i = 0; i < layer_weights.size(); ++i)
        expect_near("a gradient", shard.gradients[i], expected.gradients.*layer_weights[i],
                    [&](std::int64_t, std::int64_t s, std::int64_t d) { return s * shard.gradients[i].dim + d; });
    });
    if (HasFailure()) return;
  }
  std::cout << "largest error " << largest_error << " of the largest number of a result, or of 1\n";
}

ra_attention_desc usual_desc(std::int32_t dtype = RA_DTYPE_BFLOAT16) {
  ra_attention_desc desc = make_desc(150, 4, 16, 2);
  desc.num_heads_kv = 2;
  desc.head_dim_v = 24;
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG;
  desc.dtype = dtype;
  return desc;
}
ra_mha_desc usual_mha() {
  ra_mha_desc mha = make_mha(40);
  mha.rotary = RA_ROTARY_HALVES;
  mha.has_qkv_bias = mha.has_out_bias = mha.normalize_heads = 1;
  return mha;
}

// Everything that a layer writes, of all ranks.
using Results = std::vector<std::vector<std::byte>>;
Results run(const ra_attention_desc& desc, const ra_mha_desc& mha, std::int32_t world_size,
            Layout layout = Layout::packed, const ConfigTweak& tweak = {}) {
  std::vector<Results> of_ranks(static_cast<std::size_t>(world_size));
  for_each_rank(
      world_size,
      [&](std::int32_t rank, ra_context* context) {
        MhaShard shard(desc, mha, world_size, rank, layout);
        if (!shard.make_room(context)) return;
        Error error;
        ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
        ASSERT_EQ(shard.backward(context, &error, true), RA_STATUS_SUCCESS) << error;
        Results& results = of_ranks[static_cast<std::size_t>(rank)];
        for (const Tensor* t : {&shard.out, &shard.dx}) {
          EXPECT_TRUE(t->gaps_untouched());
          results.push_back(t->packed());
        }
        for (const Tensor& t : shard.gradients) {
          EXPECT_TRUE(t.gaps_untouched());
          results.push_back(t.packed());
        }
      },
      tweak);
  Results all;
  for (const Results& results : of_ranks) all.insert(all.end(), results.begin(), results.end());
  return all;
}

TEST(Mha, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const std::int32_t world_size : {1, 3}) {
    const Results once = run(usual_desc(), usual_mha(), world_size);
    for (const std::int32_t threads : {1, 2, 4})
      EXPECT_EQ(run(usual_desc(), usual_mha(), world_size, Layout::packed,
                    [&](ra_context_config& config) { config.num_threads = threads; }),
                once)
          << threads << " threads";
  }
}

// Products of rows that lie apart may be summed in another order than those of rows that do not.
TEST(Mha, TakesAnyStrides) {
  for (const std::int64_t batch : {1, 2}) {
    ra_attention_desc desc = usual_desc(RA_DTYPE_FLOAT32);
    desc.batch = batch;
    const Results apart = run(desc, usual_mha(), 2, Layout::padded), packed = run(desc, usual_mha(), 2);
    ASSERT_EQ(apart.size(), packed.size());
    for (std::size_t n = 0; n < apart.size(); ++n) {
      ASSERT_EQ(apart[n].size(), packed[n].size());
      double largest = 0, difference = 0;
      for (std::size_t i = 0; i < apart[n].size(); i += sizeof(float)) {
        const auto a = static_cast<double>(load_element(apart[n].data() + i, RA_DTYPE_FLOAT32)),
                   b = static_cast<double>(load_element(packed[n].data() + i, RA_DTYPE_FLOAT32));
        largest = std::max(largest, std::abs(b));
        difference = std::max(difference, std::abs(a - b));
      }
      EXPECT_LE(difference, 1e-4 * largest) << "result " << n << " of a batch of " << batch;
    }
  }
}

// It has no next one.
TEST(Mha, TakesAnyStrideOfASingleRow) {
  ra_attention_desc desc = usual_desc(RA_DTYPE_FLOAT32);
  desc.seqlen_q = 1;
  desc.batch = 2;
  for_each_rank(1, [&](std::int32_t rank, ra_context* context) {
    std::vector<std::vector<std::byte>> outs, dxs;
    for (const std::int64_t stride : {usual_mha().d_model, std::int64_t{3}}) {
      MhaShard shard(desc, usual_mha(), 1, rank);
      if (!shard.make_room(context)) return;
      for (Tensor* t : {&shard.x, &shard.dout, &shard.out, &shard.dx}) t->seq_stride = stride;
      Error error;
      ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
      ASSERT_EQ(shard.backward(context, &error), RA_STATUS_SUCCESS) << error;
      outs.push_back(shard.out.packed());
      dxs.push_back(shard.dx.packed());
    }
    EXPECT_EQ(outs[0], outs[1]);
    EXPECT_EQ(dxs[0], dxs[1]);
  });
}

TEST(Mha, GivesTheSameGradientsWithEachCheckpoint) {
  ra_mha_desc mha = usual_mha();
  mha.checkpoint = RA_CHECKPOINT_ALL;
  const Results all = run(usual_desc(), mha, 3);
  for (const std::int32_t checkpoint : {RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_INPUT}) {
    mha.checkpoint = checkpoint;
    EXPECT_EQ(run(usual_desc(), mha, 3), all) << "checkpoint " << checkpoint;
  }
}

// What is kept falls with the number of ranks, and is what the names of the checkpoints say.
TEST(Mha, KeepsAShardsShare) {
  ra_attention_desc desc = usual_desc(RA_DTYPE_FLOAT32);
  desc.seqlen_q = 4096;
  ra_mha_desc mha = usual_mha();
  mha.normalize_heads = 0;
  for (const std::int32_t checkpoint : {RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_ALL, RA_CHECKPOINT_INPUT}) {
    mha.checkpoint = checkpoint;
    std::size_t of_one = 0;
    for (const std::int32_t world_size : {1, 2, 4, 8})
      for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
        MhaShard shard(desc, mha, world_size, rank);
        if (!shard.make_room(context) || rank != 0) return;
        const std::size_t kept = shard.needed.activations, tokens = 2 * 4096 / static_cast<std::size_t>(world_size);
        const std::size_t attended = tokens * 4 * (24 + 1) * 4, projected = tokens * (4 * 16 + 2 * 16 + 2 * 24) * 4;
        EXPECT_EQ(kept, checkpoint == RA_CHECKPOINT_INPUT       ? 0
                        : checkpoint == RA_CHECKPOINT_ATTENTION ? attended
                                                                : attended + projected);
        if (world_size == 1) of_one = kept;
        EXPECT_EQ(kept, of_one / static_cast<std::size_t>(world_size));
      });
  }
}

// Micro-batches: one call with reduce after others without, on top of each other.
TEST(Mha, AccumulatesOverMicroBatches) {
  constexpr std::int32_t world_size = 2;
  for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
    MhaShard first(usual_desc(RA_DTYPE_FLOAT32), usual_mha(), world_size, rank, Layout::packed, 1),
        second(usual_desc(RA_DTYPE_FLOAT32), usual_mha(), world_size, rank, Layout::packed, 2);
    if (!first.make_room(context) || !second.make_room(context)) return;
    Error error;
    std::array<std::vector<float>, MhaShard::num_weights> sums;
    for (MhaShard* shard : {&first, &second}) {
      ASSERT_EQ(shard->forward(context, &error), RA_STATUS_SUCCESS) << error;
      ASSERT_EQ(shard->backward(context, &error, true), RA_STATUS_SUCCESS) << error;
      for (std::size_t i = 0; i < sums.size(); ++i) {
        sums[i].resize(shard->gradients[i].size / sizeof(float));
        for (std::size_t n = 0; n < sums[i].size(); ++n)
          sums[i][n] += load_element(shard->gradients[i].bytes.get() + n * sizeof(float), RA_DTYPE_FLOAT32);
      }
    }
    ASSERT_EQ(first.backward(context, &error), RA_STATUS_SUCCESS) << error;
    std::swap(first.gradients, second.gradients);
    ASSERT_EQ(second.backward(context, &error, true, true), RA_STATUS_SUCCESS) << error;
    for (std::size_t i = 0; i < sums.size(); ++i)
      for (std::size_t n = 0; n < sums[i].size(); ++n)
        ASSERT_NEAR(load_element(second.gradients[i].bytes.get() + n * sizeof(float), RA_DTYPE_FLOAT32), sums[i][n],
                    2e-3)
            << "gradient " << i;
  });
}

// Each gradient may be left out, and what is left is the same.
TEST(Mha, WritesWhatIsWanted) {
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    MhaShard shard(usual_desc(), usual_mha(), 2, rank);
    if (!shard.make_room(context)) return;
    Error error;
    ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
    ASSERT_EQ(shard.backward(context, &error, true), RA_STATUS_SUCCESS) << error;
    const std::vector<std::byte> dx = shard.dx.packed();
    for (std::size_t left_out = 0; left_out <= MhaShard::num_weights; ++left_out) {
      MhaShard other(usual_desc(), usual_mha(), 2, rank);
      other.needed = shard.needed;
      std::swap(other.activations, shard.activations);
      ra_mha_backward_args a = other.backward_args();
      a.reduce = 1;
      const std::array to{&a.dw_q, &a.dw_k, &a.dw_v,    &a.dw_o,    &a.db_q, &a.db_k,
                          &a.db_v, &a.db_o, &a.dnorm_q, &a.dnorm_k, &a.dx};
      *to[left_out] = {};
      ASSERT_EQ(ra_mha_backward(context, &other.desc, &other.mha, &a, &error), RA_STATUS_SUCCESS) << error;
      for (std::size_t i = 0; i < MhaShard::num_weights; ++i)
        EXPECT_TRUE(i == left_out ? other.gradients[i].untouched() : same_bits(other.gradients[i], shard.gradients[i]))
            << i;
      EXPECT_TRUE(left_out == MhaShard::num_weights ? other.dx.untouched() : other.dx.packed() == dx);
      std::swap(other.activations, shard.activations);
    }
  });
}

// The workspace that is asked for is enough, and not written beyond.
TEST(Mha, StaysInItsWorkspace) {
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    for (const std::int32_t checkpoint : {RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_ALL, RA_CHECKPOINT_INPUT}) {
      ra_mha_desc mha = usual_mha();
      mha.checkpoint = checkpoint;
      MhaShard shard(usual_desc(), mha, 2, rank);
      if (!shard.make_room(context)) return;
      constexpr std::size_t behind = 4096;
      const auto with = [&](std::size_t size, auto&& call) {
        const Tensor room(RA_DTYPE_FLOAT32, 1, 1, 1, static_cast<std::int64_t>((size + behind) / sizeof(float)));
        call(room.bytes.get());
        for (std::size_t i = size; i < room.size; ++i)
          ASSERT_EQ(room.bytes[i], kPoison) << "byte " << i - size << " behind";
      };
      Error error;
      with(shard.needed.forward_workspace, [&](std::byte* workspace) {
        ra_mha_forward_args a = shard.forward_args();
        a.workspace = workspace, a.workspace_size = shard.needed.forward_workspace;
        ASSERT_EQ(ra_mha_forward(context, &shard.desc, &shard.mha, &a, &error), RA_STATUS_SUCCESS) << error;
      });
      with(shard.needed.backward_workspace, [&](std::byte* workspace) {
        ra_mha_backward_args a = shard.backward_args();
        a.reduce = 1;
        a.workspace = workspace, a.workspace_size = shard.needed.backward_workspace;
        ASSERT_EQ(ra_mha_backward(context, &shard.desc, &shard.mha, &a, &error), RA_STATUS_SUCCESS) << error;
      });
    }
  });
}

TEST(Mha, CountsItsTime) {
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    MhaShard shard(usual_desc(), usual_mha(), 2, rank);
    if (!shard.make_room(context)) return;
    Error error;
    for (const bool is_backward : {false, true}) {
      ASSERT_EQ(is_backward ? shard.backward(context, &error, true) : shard.forward(context, &error), RA_STATUS_SUCCESS)
          << error;
      ra_call_statistics s;
      ra_init_call_statistics(&s, sizeof s);
      ra_get_call_statistics(context, &s, nullptr);
      EXPECT_GT(s.projection_seconds, 0);
      EXPECT_GT(s.compute_seconds, 0);
      EXPECT_GT(s.hops, 0);
      EXPECT_LE(s.projection_seconds + s.compute_seconds + s.wait_seconds, s.total_seconds * 1.000001);
    }
  });
}

// Ranks whose layers differ in one thing alone find out what it is.
TEST(Mha, RefusesLayersThatDiffer) {
  struct Difference {
    const char* says;
    void (*make)(ra_attention_desc&, ra_mha_desc&);
  };
  const std::array<Difference, 11> differences{{
      {"d_model is 40 on rank 0 but 41 on rank 1", [](auto&, auto& m) { m.d_model = 41; }},
      {"layer's out_dtype is 2 on rank 0 but 1", [](auto& d, auto&) { d.out_dtype = RA_DTYPE_FLOAT32; }},
      {"layer's grad_dtype is 2 on rank 0 but 1", [](auto& d, auto&) { d.grad_dtype = RA_DTYPE_FLOAT32; }},
      {"rotary is 1 on rank 0 but 2", [](auto&, auto& m) { m.rotary = RA_ROTARY_INTERLEAVED; }},
      {"rotated elements of a head is 16 on rank 0 but 8", [](auto&, auto& m) { m.rotary_fraction = 0.5F; }},
      {"rotary_base is 10000 on rank 0 but 500", [](auto&, auto& m) { m.rotary_base = 500; }},
      {"has_qkv_bias is 1 on rank 0 but 0", [](auto&, auto& m) { m.has_qkv_bias = 0; }},
      {"has_out_bias is 1 on rank 0 but 0", [](auto&, auto& m) { m.has_out_bias = 0; }},
      {"normalize_heads is 1 on rank 0 but 0", [](auto&, auto& m) { m.normalize_heads = 0; }},
      {"norm_epsilon is 1e-06 on rank 0 but 0.5", [](auto&, auto& m) { m.norm_epsilon = 0.5F; }},
      {"checkpoint is 0 on rank 0 but 1", [](auto&, auto& m) { m.checkpoint = RA_CHECKPOINT_ALL; }},
  }};
  for (const Difference& difference : differences)
    for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
      ra_attention_desc desc = usual_desc();
      ra_mha_desc mha = usual_mha();
      if (rank == 1) difference.make(desc, mha);
      MhaShard shard(desc, mha, 2, rank);
      if (!shard.make_room(context)) return;
      Error error;
      EXPECT_EQ(shard.forward(context, &error), RA_STATUS_MISMATCH) << difference.says;
      EXPECT_NE(error.text().find(difference.says), std::string::npos) << error;
      EXPECT_TRUE(shard.out.untouched());
    });
}

TEST(Mha, RefusesGradientsThatDiffer) {
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    MhaShard shard(usual_desc(), usual_mha(), 2, rank);
    if (!shard.make_room(context)) return;
    Error error;
    ASSERT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
    ra_mha_backward_args a = shard.backward_args();
    a.reduce = 1;
    if (rank == 0) a.db_k = {};
    EXPECT_EQ(ra_mha_backward(context, &shard.desc, &shard.mha, &a, &error), RA_STATUS_MISMATCH) << error;
    EXPECT_NE(error.text().find("gradients of weights that are reduced"), std::string::npos) << error;
    EXPECT_TRUE(shard.dx.untouched());
  });
}

// Makes calls until one fails.
Error call_on(ra_context* context, std::int32_t world_size, std::int32_t rank, std::int32_t checkpoint) {
  ra_mha_desc mha = usual_mha();
  mha.checkpoint = checkpoint;
  MhaShard shard(usual_desc(), mha, world_size, rank);
  Error error;
  if (!shard.make_room(context)) return error;
  while (shard.forward(context, &error) == RA_STATUS_SUCCESS &&
         shard.backward(context, &error, true) == RA_STATUS_SUCCESS)
    continue;
  return error;
}

// It has that status, or says that the context has: a call that begins when the group has failed is refused.
bool is_of(ra_status status, const Error& error) {
  return error.status == status || (error.status == RA_STATUS_INVALID_STATE &&
                                    error.text().find(ra_get_status_name(status)) != std::string::npos);
}

// In whatever a layer does then, or between two calls.
TEST(Mha, EndsOnEveryRankWhenOneGivesUp) {
  Random random(number_of("RINGATTN_TEST_SEED", 1));
  for (int n = 0; n < 12; ++n) {
    constexpr std::int32_t world_size = 3;
    const auto aborter = static_cast<std::int32_t>(draw(random, 0, world_size - 1)),
               checkpoint = static_cast<std::int32_t>(draw(random, 0, 2));
    const std::chrono::microseconds delay(draw(random, 0, 20'000) * slowness);
    for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
      std::thread giving_up;
      if (rank == aborter)
        giving_up = std::thread([&] {
          std::this_thread::sleep_for(delay);
          EXPECT_EQ(ra_abort_context(context, nullptr), RA_STATUS_SUCCESS);
        });
      const Error error = call_on(context, world_size, rank, checkpoint);
      EXPECT_TRUE(is_of(RA_STATUS_ABORTED, error)) << error;
      EXPECT_EQ(error.rank, aborter) << error;
      if (giving_up.joinable()) giving_up.join();
    });
  }
}

TEST(Mha, NamesARankThatHasLeft) {
  constexpr std::int32_t world_size = 3;
  Ranks ranks(world_size);
  ranks.run([&](std::int32_t rank, ra_context* context) {
    if (rank == 1) {
      MhaShard shard(usual_desc(), usual_mha(), world_size, rank);
      if (!shard.make_room(context)) return;
      Error error;
      EXPECT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
      return ranks.destroy(1);
    }
    const Error error = call_on(context, world_size, rank, RA_CHECKPOINT_ATTENTION);
    EXPECT_TRUE(is_of(RA_STATUS_PEER_LOST, error)) << error;
    EXPECT_EQ(error.rank, 1) << error;
  });
}

}  // namespace
}  // namespace ringattn::test
