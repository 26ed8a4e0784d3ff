// What a layer of multi-head attention costs.
//
//   two ranks    two ranks of one thread each against one rank with two threads: median over alternating pairs of (seconds of one
//                rank) / (seconds of two)
//   parts        the layer on one rank with two threads against what it cannot do without: ra_forward and ra_backward of its attention,
//                and its products of matrices alone, each with two threads too; the rest is what it does besides
//   memory       what a rank keeps from the forward pass to the backward pass, by ra_get_mha_requirements
//
// Both passes, as in training: forward, backward with gradients of all weights, which are summed over the ranks.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <memory>
#include <vector>

#include "benchmark/quiet.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"
#include "core/memory.h"
#include "engine/engine.h"
#include "engine/projector.h"
#include "support/mha.h"
#include "support/ranks.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::int64_t tokens = 0;   // 0: 4,096, or 1,024 with --quick
  std::int64_t d_model = 0;  // 0: 1,024, or 256 with --quick
  std::size_t pairs = 0;     // 0: 7, or 3 with --quick
};

constexpr std::int64_t head_dim = 128;

ra_attention_desc describe(std::int64_t tokens, std::int64_t d_model, ra_dtype dtype) {
  ra_attention_desc desc = make_desc(tokens, d_model / head_dim, RA_MASK_CAUSAL);
  desc.head_dim = head_dim;
  desc.dtype = dtype;
  return desc;
}
ra_mha_desc describe_layer(std::int64_t d_model) {
  ra_mha_desc mha = test::make_mha(d_model);
  mha.rotary = RA_ROTARY_HALVES;
  return mha;
}

double seconds_of(auto&& f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Ranks with their contexts and tensors.
class Layer {
 public:
  Layer(const ra_attention_desc& desc, const ra_mha_desc& mha, std::int32_t world_size, std::int32_t threads)
      : ranks_(world_size,
               [&](ra_context_config& config) {
                 config.num_threads = threads;
                 config.timeout_ms = 600'000;
               }),
        shards_(static_cast<std::size_t>(world_size)) {
    ranks_.run([&](std::int32_t rank, ra_context* context) {
      auto& shard = shards_[static_cast<std::size_t>(rank)];
      shard = std::make_unique<test::MhaShard>(desc, mha, world_size, rank);
      shard->make_room(context);
    });
    require_no_failure();
  }

  double measure() {
    Clock::time_point begin;
    std::barrier ready(ranks_.world_size(), [&]() noexcept { begin = Clock::now(); });
    std::vector<Clock::time_point> end(shards_.size());
    ranks_.run([&](std::int32_t rank, ra_context* context) {
      const auto r = static_cast<std::size_t>(rank);
      ra_error error;
      ready.arrive_and_wait();
      check(shards_[r]->forward(context, &error), error);
      check(shards_[r]->backward(context, &error, true), error);
      end[r] = Clock::now();
    });
    require_no_failure();
    return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) - begin).count();
  }
  const test::MhaShard& shard() const { return *shards_[0]; }

 private:
  test::Ranks ranks_;
  std::vector<std::unique_ptr<test::MhaShard>> shards_;
};

// The products of a layer's two passes, and nothing else: those of the forward pass, of q, k and v once more (they are not kept),
// and two for each weight in the backward pass.
class Products {
 public:
  Products(const test::MhaShard& shard, std::int32_t threads)
      : engine_(make_cpu_engine(test::engine(), threads)),
        dtype_(static_cast<DType>(shard.desc.dtype)),
        tokens_(shard.x.batch * shard.x.seq),
        d_model_(shard.mha.d_model) {
    for (std::size_t i = 0; i < 4; ++i)  // w_q, w_k, w_v, w_o
      weights_.push_back(
          {matrix(shard.weights[i]), matrix(shard.gradients[i]), shard.weights[i].seq, shard.weights[i].dim});
    const std::int64_t columns = std::max(d_model_, shard.desc.num_heads_q * head_dim);
    for (test::Tensor* t : {&in_, &out_}) {
      *t = test::Tensor(shard.desc.dtype, 1, tokens_, 1, columns);
      std::copy_n(shard.x.bytes.get(), std::min(t->size, shard.x.size), t->bytes.get());
    }
    scratch_ = block_.reserve(engine_->projector().scratch_bytes(tokens_));
  }

  double measure() {
    return seconds_of([&] {
      for (std::size_t i = 0; i < weights_.size(); ++i) {
        const Weight& w = weights_[i];
        const bool is_of_x = i < 3;
        for (int n = 0; n < (is_of_x ? 2 : 1); ++n) multiply(in_, w.rows, w.value, w.columns, out_);
        multiply(out_, w.columns, w.value.transposed(), w.rows, in_);
        const std::array terms{Term{matrix(in_).transposed(), matrix(out_), tokens_}};
        engine_->projector().multiply({terms, w.gradient, w.rows, w.columns}, scratch_);
      }
    });
  }

 private:
  struct Weight {
    Matrix value, gradient;
    std::int64_t rows, columns;
  };
  static Matrix matrix(const test::Tensor& t) { return {t.bytes.get(), static_cast<DType>(t.dtype), t.seq_stride}; }
  void multiply(const test::Tensor& left, std::int64_t depth, const Matrix& right, std::int64_t columns,
                const test::Tensor& to) {
    const std::array terms{Term{matrix(left), right, depth}};
    engine_->projector().multiply({terms, matrix(to), tokens_, columns}, scratch_);
  }

  std::unique_ptr<Engine> engine_;
  DType dtype_;
  std::int64_t tokens_, d_model_;
  std::vector<Weight> weights_;
  test::Tensor in_, out_;
  Block block_;
  void* scratch_;
};

const std::pair<const char*, ra_dtype> dtypes[] = {{"float32", RA_DTYPE_FLOAT32}, {"bfloat16", RA_DTYPE_BFLOAT16}};

void measure_ranks(Report& report, Progress& progress, std::int64_t tokens, std::int64_t d_model, std::size_t pairs) {
  report.begin_table("two ranks against one", {{"dtype", "dtype", "", "", 1, 9},
                                               {"one_seconds", "one rank", "s", "{:.3f}"},
                                               {"two_seconds", "two ranks", "s", "{:.3f}"},
                                               {"ratio", "ratio", "", "{:.3f}"},
                                               {"least_ratio", "least", "", "{:.3f}"},
                                               {"most_ratio", "most", "", "{:.3f}"}});
  for (const auto& [name, dtype] : dtypes) {
    progress.begin_step(fmt::format("{}, two ranks", name));
    Layer one(describe(tokens, d_model, dtype), describe_layer(d_model), 1, 2),
        two(describe(tokens, d_model, dtype), describe_layer(d_model), 2, 1);
    one.measure(), two.measure();
    std::vector<double> of_one, of_two, ratios;
    for (std::size_t n = 0; n < pairs; ++n) {
      const bool one_first = n % 2 == 0;
      const double first = (one_first ? one : two).measure(), second = (one_first ? two : one).measure();
      of_one.push_back(one_first ? first : second);
      of_two.push_back(one_first ? second : first);
      ratios.push_back(of_one.back() / of_two.back());
    }
    const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
    report.add_row({name, median(of_one), median(of_two), median(ratios), *least, *most});
    report.add_bar(fmt::format("{}, two ranks", name), median(ratios), ">=", 0.95);
  }
}

void measure_parts(Report& report, Progress& progress, std::int64_t tokens, std::int64_t d_model, std::size_t pairs) {
  report.begin_table("a layer and its parts", {{"dtype", "dtype", "", "", 1, 9},
                                               {"layer_seconds", "layer", "s", "{:.3f}"},
                                               {"attention_seconds", "attention", "s", "{:.3f}"},
                                               {"product_seconds", "products", "s", "{:.3f}"},
                                               {"rest", "rest", "%", "{:.1f}", 0.01}});
  for (const auto& [name, dtype] : dtypes) {
    progress.begin_step(fmt::format("{}, parts", name));
    const ra_attention_desc desc = describe(tokens, d_model, dtype);
    Layer layer(desc, describe_layer(d_model), 1, 2);
    Products products(layer.shard(), 2);
    const test::Ranks alone(1, [](ra_context_config& config) { config.num_threads = 2; });
    Tensors tensors(desc, 1, 0, Pass::backward);
    std::vector<double> of_layer, of_attention, of_products, rests;
    for (std::size_t n = 0; n < pairs + 1; ++n) {
      const double whole = layer.measure();
      const double attention = seconds_of([&] {
        tensors.forward(alone[0], desc);
        tensors.backward(alone[0], desc);
      });
      const double product = products.measure();
      if (n == 0) continue;  // threads start, workspaces grow, products are compiled
      of_layer.push_back(whole);
      of_attention.push_back(attention);
      of_products.push_back(product);
      rests.push_back(1 - (attention + product) / whole);
    }
    report.add_row({name, median(of_layer), median(of_attention), median(of_products), median(rests)});
    report.add_bar(fmt::format("{}, rest", name), median(rests), "<=", 0.08);
  }
}

void measure_memory(Report& report, std::int64_t tokens, std::int64_t d_model) {
  report.begin_table("what a rank keeps", {{"ranks", "ranks"},
                                           {"attention", "attention", "MB", "{:.2f}", megabyte},
                                           {"all", "all", "MB", "{:.2f}", megabyte},
                                           {"input", "input", "MB", "{:.2f}", megabyte},
                                           {"scaling", "of ideal", "%", "{:.1f}", 0.01}});
  double of_one = 0;
  for (const std::int32_t world_size : {1, 2, 4, 8}) {
    std::array<double, 3> kept{};
    test::for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
      if (rank != 0) return;
      for (const ra_checkpoint checkpoint : {RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_ALL, RA_CHECKPOINT_INPUT}) {
        const ra_attention_desc desc = describe(tokens, d_model, RA_DTYPE_FLOAT32);
        ra_mha_desc mha = describe_layer(d_model);
        mha.checkpoint = checkpoint;
        ra_mha_requirements needs;
        ra_init_mha_requirements(&needs, sizeof needs);
        ra_error error;
        check(ra_get_mha_requirements(context, &desc, &mha, &needs, &error), error);
        kept[static_cast<std::size_t>(checkpoint)] = static_cast<double>(needs.activations);
      }
    });
    require_no_failure();
    if (world_size == 1) of_one = kept[RA_CHECKPOINT_ATTENTION];
    const double scaling = of_one / (world_size * kept[RA_CHECKPOINT_ATTENTION]);
    report.add_row({double(world_size), kept[RA_CHECKPOINT_ATTENTION], kept[RA_CHECKPOINT_ALL],
                    kept[RA_CHECKPOINT_INPUT], scaling});
    report.add_bar(fmt::format("kept on {} ranks, of ideal", world_size), scaling, ">=", 0.97);
  }
}

void run(Report& report, const Options& options) {
  const std::int64_t tokens = options.tokens > 0 ? options.tokens : report.quick() ? 1024 : 4096;
  const std::int64_t d_model = options.d_model > 0 ? options.d_model : report.quick() ? 256 : 1024;
  const std::size_t pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 7;
  report.note(fmt::format(
      "{} tokens, d_model {}, {} heads x {}, causal, zigzag, rotary; both passes; median of {} alternating runs",
      fmt::group_digits(tokens), d_model, d_model / head_dim, head_dim, pairs));
  Progress progress(4);
  measure_ranks(report, progress, tokens, d_model, pairs);
  measure_parts(report, progress, tokens, d_model, pairs);
  measure_memory(report, tokens, d_model);
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "mha", "What a layer of multi-head attention costs",
      {{"--tokens", &options.tokens, "length of the sequence (default 4096, with --quick 1024)"},
       {"--d_model", &options.d_model, "elements of a token, a multiple of 128 (default 1024, with --quick 256)"},
       {"--pairs", &options.pairs, "runs of a row (default 7, with --quick 3)"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
