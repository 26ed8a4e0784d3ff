// How fast tokens are decoded from a KV cache: 32 query heads, 8 heads of K and V, head_dim 128, on one rank.
//
//   keys       bytes of K and V that a call has to read, a second
//   memory     bytes that as many threads read from memory at the same time, measured beside it
//   of it      the share of that, median over alternating pairs
//   pages      lie side by side, as of a sequence that is alone, or apart, as where others have come and gone
#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmark/read_rate.h"
#include "benchmark/report.h"
#include "benchmark/tensors.h"

namespace ringattn::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t heads_q = 32, heads_kv = 8, dim = 128;

struct Case {
  std::string name;
  ra_dtype dtype;
  std::int64_t sequences, keys;  // of each
  std::int64_t page_tokens;
  bool apart = false;
  std::int64_t queries = 1;
};

struct DestroyContext {
  void operator()(ra_context* context) const { ra_destroy_context(context); }
};
struct DestroyCache {
  void operator()(ra_kv_cache* cache) const { ra_destroy_kv_cache(cache); }
};

// A cache of one rank that holds the sequences of a case.
class Decoder {
 public:
  Decoder(const Case& c, std::int32_t threads) : element_(c.dtype == RA_DTYPE_FLOAT32 ? 4 : 2) {
    ra_context_config config;
    ra_init_context_config(&config, sizeof config);
    config.num_threads = threads;
    ra_error error;
    context_.reset(ra_create_context(&config, &error));
    if (context_ == nullptr) check(static_cast<ra_status>(error.status), error);
    const std::int64_t pages = c.sequences * ((c.keys + c.page_tokens - 1) / c.page_tokens);
    ra_kv_cache_desc shape;
    ra_init_kv_cache_desc(&shape, sizeof shape);
    shape.page_tokens = c.page_tokens;
    shape.num_pages = c.apart ? 2 * pages : pages;
    shape.num_heads_kv = heads_kv;
    shape.head_dim = dim;
    shape.dtype = c.dtype;
    cache_.reset(ra_create_kv_cache(context_.get(), &shape, &error));
    if (cache_ == nullptr) check(static_cast<ra_status>(error.status), error);
    if (c.apart) take_every_other_page(shape);
    for (std::int64_t n = 0; n < c.sequences; ++n) {
      ids_.push_back(ra_create_sequence(cache_.get(), nullptr));
      append(ids_.back(), c.keys);
    }
    ra_init_attention_desc(&desc_, sizeof desc_);
    desc_.batch = c.sequences;
    desc_.seqlen_q = c.queries;
    desc_.num_heads_q = heads_q;
    desc_.num_heads_kv = heads_kv;
    desc_.head_dim = dim;
    desc_.dtype = c.dtype;
    desc_.mask = RA_MASK_CAUSAL;
    q_ = make_values(c.sequences * c.queries * heads_q * dim);
    out_.resize(q_.size());
    run();
  }

  double bytes() const { return bytes_; }

  // Of one call, as the mean of as many as take `least` seconds.
  double seconds(double least) {
    int calls = 0;
    double seconds = 0;
    for (const auto begin = Clock::now(); seconds < least; ++calls) {
      run();
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    return seconds / calls;
  }

 private:
  void run() {
    ra_decode_args args;
    ra_init_decode_args(&args, sizeof args);
    args.num_sequences = desc_.batch;
    args.sequences = ids_.data();
    args.q.data = q_.data();
    args.out.data = out_.data();
    ra_error error;
    check(ra_decode(context_.get(), cache_.get(), &desc_, &args, &error), error);
  }

  void append(std::int64_t id, std::int64_t tokens) {
    constexpr std::int64_t at_once = 4096;
    for (std::int64_t done = 0; done < tokens; done += at_once) {
      ra_append_args args;
      ra_init_append_args(&args, sizeof args);
      args.num_tokens = std::min(at_once, tokens - done);
      args.sequences = &id;
      std::vector<std::byte> values = make_values(args.num_tokens * heads_kv * dim);
      args.k.data = args.v.data = values.data();
      ra_error error;
      check(ra_append(context_.get(), cache_.get(), &args, &error), error);
      bytes_ += 2 * static_cast<double>(values.size());
    }
  }

  // So that the free ones have neighbours that are not.
  void take_every_other_page(const ra_kv_cache_desc& shape) {
    std::vector<std::int64_t> ids;
    for (std::int64_t page = 0; page < shape.num_pages; ++page) {
      ids.push_back(ra_create_sequence(cache_.get(), nullptr));
      append(ids.back(), 1);
    }
    for (std::size_t n = 0; n < ids.size(); n += 2) ra_free_sequence(cache_.get(), ids[n], nullptr);
    bytes_ = 0;
  }

  // Numbers in [-1, 1) without a pattern that matters.
  std::vector<std::byte> make_values(std::int64_t count) const {
    std::vector<std::byte> values(static_cast<std::size_t>(count) * element_);
    fill_numbers(values, element_);
    return values;
  }

  std::size_t element_;  // bytes
  std::unique_ptr<ra_context, DestroyContext> context_;
  std::unique_ptr<ra_kv_cache, DestroyCache> cache_;
  std::vector<std::int64_t> ids_;
  ra_attention_desc desc_{};
  std::vector<std::byte> q_, out_;
  double bytes_ = 0;
};

struct Options {
  int pairs = 0;  // 0: 7, or 3 with --quick
};

void run(Report& report, const Options& options) {
  const int pairs = options.pairs > 0 ? options.pairs : report.quick() ? 3 : 7;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, 2);
  const std::int64_t keys = report.quick() ? 16384 : 65536;
  std::vector<Case> cases;
  for (const auto& [dtype, name] : {std::pair{RA_DTYPE_FLOAT32, "float32"}, {RA_DTYPE_BFLOAT16, "bfloat16"}}) {
    for (const std::int64_t page : {16, 64, 256}) cases.push_back({name, dtype, 1, keys, page});
    cases.push_back({name, dtype, 64, keys / 64, 64});
    cases.push_back({name, dtype, 1, keys, 64, false, 4});
    for (const std::int64_t page : {16, 64}) cases.push_back({name, dtype, 1, keys / 4, page, true});
  }
  std::vector<std::byte> buffer(std::size_t{1} << 28);
  fill_numbers(buffer, sizeof(float));
  report.note(
      fmt::format("32 query heads to 8 of keys, head_dim 128, one rank; medians of {} alternating pairs", pairs));
  report.begin_table("decoding", {{"dtype", "dtype", "", "", 1, 9},
                                  {"sequences", "sequences"},
                                  {"keys", "keys"},
                                  {"queries", "queries"},
                                  {"page_tokens", "page"},
                                  {"pages", "pages", "", "", 1, 12},
                                  {"threads", "threads"},
                                  {"seconds", "time", "ms", "{:.3f}", 1e-3},
                                  {"read", "read", "GB/s", "{:.2f}", 1e9},
                                  {"bandwidth", "memory", "GB/s", "{:.2f}", 1e9},
                                  {"share", "of it", "", "{:.3f}"}});
  Progress progress(static_cast<int>(2 * cases.size()));
  for (const Case& c : cases)
    for (const std::int32_t threads : {1, 2}) {
      const char* const pages = c.apart ? "apart" : "side by side";
      progress.begin_step(fmt::format("{}, {} x {} keys, pages of {}, {} threads", c.name, c.sequences, c.keys,
                                      c.page_tokens, threads));
      Decoder decoder(c, threads);
      std::vector<double> seconds, bandwidths, shares;
      for (int pair = 0; pair < 3 * pairs; ++pair) {
        seconds.push_back(decoder.seconds(0.02));
        bandwidths.push_back(measure_read_rate({buffer}, threads));
        shares.push_back(decoder.bytes() / bandwidths.back() / seconds.back());
      }
      const double time = median(seconds);
      report.add_row({c.name, double(c.sequences), double(c.keys), double(c.queries), double(c.page_tokens), pages,
                      double(threads), time, decoder.bytes() / time, median(bandwidths), median(shares)});
      if (c.sequences == 1 && !c.apart && c.queries == 1)
        report.add_bar(fmt::format("{}, pages of {}, {} threads, of bandwidth", c.name, c.page_tokens, threads),
                       median(shares), ">=", 0.85);
    }
}

}  // namespace
}  // namespace ringattn::benchmark

int main(int argc, char** argv) {
  ringattn::benchmark::Options options;
  return ringattn::benchmark::run_benchmark(
      argc, argv, "decode", "Speed of decoding from a KV cache, and of the memory that it reads",
      {{"--pairs", &options.pairs, "a third of the pairs that count (default 7, with --quick 3)"}},
      [&](ringattn::benchmark::Report& report) { ringattn::benchmark::run(report, options); });
}
