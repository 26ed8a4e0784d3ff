// Computes what is expected of the results in cases.json with the fp64 reference, and writes the file again:
//
//   fill_cases CASES [--check]      --check writes nothing, and fails where anything would change
//
// Expected are 12 elements of each tensor, drawn from the case's seed. The tolerance is far wider than the library's own rule, which
// tests/ring holds it to: a binding that passes wrong numbers is wrong by much more.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <sstream>

#include "api/validate.h"
#include "engine/dropout.h"
#include "engine/reference/reference.h"
#include "layers.h"
#include "support/plain_layer.h"

namespace ringattn::conformance {
namespace {

using reference::Gradients;
using reference::Result;

std::vector<double> inputs(std::uint64_t seed, std::uint64_t t, std::int64_t count) {
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = input(seed, t, i);
  return values;
}

// A number as the file has it, in seven digits.
double shortened(double x, int digits = 7) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, x);
  return std::strtod(text, nullptr);
}

Json expected(const std::vector<double> &values, DType dtype, std::mt19937_64 &random) {
  double largest = 0;
  for (const double x : values)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  const double relative = dtype == DType::float32 ? 2e-5 : dtype == DType::float16 ? 4e-3 : 3e-2;
  Json at = Json::array(), some = Json::array();
  for (int n = 0; n < 12 && !values.empty(); ++n) {
    const std::size_t i = random() % values.size();
    at.push_back(i);
    some.push_back(std::isinf(values[i]) ? Json("-inf") : Json(shortened(values[i])));
  }
  return {{"tolerance", shortened(relative * (1 + largest), 2)}, {"at", at}, {"values", some}};
}

// 1 where dropout keeps a pair, else 0.
std::vector<double> dropout_mask(const Problem &p) {
  std::vector<double> mask;
  for (std::int64_t entry = 0; entry < p.batch; ++entry)
    for (std::int64_t head = 0; head < p.num_heads_q; ++head)
      for (std::int64_t query = 0; query < p.seqlen_q; ++query) {
        const PhiloxKey row = dropout_row_key(p.dropout.seed, query, entry, head);
        for (std::int64_t key = 0; key < p.seqlen_kv; ++key)
          mask.push_back(dropout_keeps(row, p.dropout.offset, key, dropout_threshold(p.dropout.probability)) ? 1 : 0);
      }
  return mask;
}

void fill(Json &c) {
  Kept kept;
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  set_all(desc, c, "desc", kept);
  const Problem p = api::to_problem(desc);
  const auto seed = c.at("seed").get<std::uint64_t>();
  const std::int64_t rows_q = p.batch * p.seqlen_q * p.num_heads_q, rows_kv = p.batch * p.seqlen_kv * p.num_heads_kv;
  const auto q_ = inputs(seed, q, rows_q * p.head_dim), k_ = inputs(seed, k, rows_kv * p.head_dim),
             v_ = inputs(seed, v, rows_kv * p.head_dim_v), dout_ = inputs(seed, dout, rows_q * p.head_dim_v);
  reference::Modifiers<double> modifiers;
  if (p.has_key_bias) modifiers.key_bias = inputs(seed, key_bias, p.batch * p.seqlen_kv);
  modifiers.sinks = inputs(seed, sinks, p.num_heads_q * p.num_sinks);
  const Result<double> forward = reference::forward(p, q_, k_, v_, modifiers);
  Gradients<double> backward = reference::backward(p, q_, k_, v_, forward, dout_, modifiers);
  if (c.value("accumulate", false)) {
    const auto add = [&](std::vector<double> &to, Tensor t) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] += input(seed, t, i);
    };
    add(backward.dq, dq);
    add(backward.dk, dk);
    add(backward.dv, dv);
    add(backward.dsinks, dsinks);
  }
  std::mt19937_64 random(seed);
  Json e;
  e["out"] = expected(forward.out, p.out_dtype, random);
  e["lse"] = expected(forward.lse, DType::float32, random);
  e["dq"] = expected(backward.dq, p.grad_dtype, random);
  e["dk"] = expected(backward.dk, p.grad_dtype, random);
  e["dv"] = expected(backward.dv, p.grad_dtype, random);
  if (p.num_sinks > 0) e["dsinks"] = expected(backward.dsinks, DType::float32, random);
  if (p.dropout.probability > 0) e["dropout_mask"] = expected(dropout_mask(p), DType::float32, random);
  // Where what is stored is rounded to 16 bits, so are out and lse that gradients come from.
  if (p.out_dtype != DType::float32)
    for (const char *name : {"dq", "dk", "dv"})
      e[name]["tolerance"] = std::max(e[name]["tolerance"].get<double>(), e["out"]["tolerance"].get<double>());
  c["expected"] = e;
}

// The coarser of two types.
DType coarser(DType a, DType b) {
  if (a == DType::float32 || b == DType::float32) return a == DType::float32 ? b : a;
  return a == DType::bfloat16 ? a : b;
}

void fill_layer(Json &c) {
  Kept kept;
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  set_all(desc, c, "desc", kept);
  ra_mha_desc mha;
  ra_init_mha_desc(&mha, sizeof mha);
  set_all(mha, c, "mha", kept);
  const Problem p = api::to_problem(desc);
  const auto seed = c.at("seed").get<std::uint64_t>();
  const std::int64_t tokens = p.batch * p.seqlen_q * mha.d_model;
  const auto weights = weights_of(mha, p.num_heads_q, p.num_heads_kv, p.head_dim, p.head_dim_v);
  test::LayerWeights values;
  for (std::size_t n = 0; n < weights.size(); ++n)
    values.*test::layer_weights[n] = inputs(seed, weights[n].number, weights[n].elements);
  test::LayerResult result =
      test::PlainLayer(p, mha).run(inputs(seed, number_of_x, tokens), values, inputs(seed, number_of_dout, tokens));
  std::mt19937_64 random(seed);
  Json e;
  e["out"] = expected(result.out, coarser(p.dtype, p.out_dtype), random);
  e["dx"] = expected(result.dx, coarser(p.dtype, p.grad_dtype), random);
  for (std::size_t n = 0; n < weights.size(); ++n) {
    const LayerWeight &w = weights[n];
    std::vector<double> &gradient = result.gradients.*test::layer_weights[n];
    if (w.elements == 0) continue;
    if (c.value("accumulate", false))
      for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] += input(seed, w.number + number_of_gradients, i);
    e[w.gradient] = expected(gradient, p.dtype, random);
  }
  c["expected"] = e;
}

std::vector<std::int64_t> numbers(const Json &call, const char *name) {
  return call.value(name, std::vector<std::int64_t>());
}

// What the sequences of a cache hold: k and v of each, one token after the other.
class Sequences {
 public:
  explicit Sequences(const ra_kv_cache_desc &d)
      : row_k_(d.num_heads_kv * d.head_dim), row_v_(d.head_dim_v == 0 ? row_k_ : d.num_heads_kv * d.head_dim_v) {}

  struct Tokens {
    std::vector<double> k, v;
  };
  const Tokens &at(std::int64_t id) const { return all_.at(id); }
  std::int64_t length(std::int64_t id) const { return std::ssize(at(id).v) / row_v_; }

  // What a call does to them that is not refused.
  void change(const Json &call, std::uint64_t seed) {
    const auto name = call.at("call").get<std::string>();
    const auto id = call.value("sequence", std::int64_t{-1});
    if (name == "create_sequence") all_[next_++];
    if (name == "fork_sequence") all_[next_++] = all_.at(id);
    if (name == "free_sequence") all_.erase(id);
    if (name == "truncate_sequence") {
      const auto length = call.at("length").get<std::int64_t>();
      all_.at(id).k.resize(static_cast<std::size_t>(length * row_k_));
      all_.at(id).v.resize(static_cast<std::size_t>(length * row_v_));
    }
    if (name == "append") append(call, seed);
  }

 private:
  void append(const Json &call, std::uint64_t seed) {
    const auto num_tokens = call.at("num_tokens").get<std::int64_t>();
    const std::vector<std::int64_t> ids = numbers(call, "sequences"), lengths = numbers(call, "lengths"),
                                    positions = numbers(call, "positions");
    for (std::size_t n = 0; n < ids.size(); ++n) {
      const std::int64_t count = lengths.empty() ? num_tokens : lengths[n],
                         position = positions.empty() ? length(ids[n]) : positions[n];
      const auto put = [&](std::vector<double> &to, Tensor t, std::int64_t row) {
        const std::vector<double> from = inputs(seed, t, std::ssize(ids) * num_tokens * row);
        to.resize(std::max(to.size(), static_cast<std::size_t>((position + count) * row)));
        std::copy_n(from.begin() + static_cast<std::int64_t>(n) * num_tokens * row, count * row,
                    to.begin() + position * row);
      };
      put(all_.at(ids[n]).k, k, row_k_);
      put(all_.at(ids[n]).v, v, row_v_);
    }
  }

  std::int64_t row_k_, row_v_;
  std::map<std::int64_t, Tokens> all_;
  std::int64_t next_ = 0;
};

void fill_cache(Json &c) {
  Kept kept;
  ra_kv_cache_desc shape;
  ra_init_kv_cache_desc(&shape, sizeof shape);
  set_all(shape, c, "cache", kept);
  Sequences sequences(shape);
  auto seed = c.at("seed").get<std::uint64_t>();
  std::mt19937_64 random(seed);
  Json e;
  for (std::size_t n = 0; n < c.at("calls").size(); ++n, ++seed) {
    const Json &call = c.at("calls")[n];
    if (call.contains("status")) continue;
    sequences.change(call, seed);
    if (call.at("call") != "decode") continue;
    ra_attention_desc desc;
    ra_init_attention_desc(&desc, sizeof desc);
    set_all(desc, c, "desc", kept);
    set_all(desc, call, "desc", kept);
    const std::int64_t row = desc.seqlen_q * desc.num_heads_q * desc.head_dim;
    const std::vector<double> all_q = inputs(seed, q, desc.batch * row);
    reference::Modifiers<double> modifiers;
    modifiers.sinks = inputs(seed, sinks, desc.num_heads_q * desc.num_sinks);
    desc.batch = 1;
    Result<double> all;
    auto from = all_q.begin();
    for (const std::int64_t id : numbers(call, "sequences")) {
      desc.seqlen_kv = sequences.length(id);
      const Result<double> own = reference::forward(api::to_problem(desc), {from, from + row}, sequences.at(id).k,
                                                    sequences.at(id).v, modifiers);
      all.out.insert(all.out.end(), own.out.begin(), own.out.end());
      all.lse.insert(all.lse.end(), own.lse.begin(), own.lse.end());
      from += row;
    }
    const std::string number = std::to_string(n);
    e["out_" + number] = expected(all.out, api::to_problem(desc).out_dtype, random);
    e["lse_" + number] = expected(all.lse, DType::float32, random);
  }
  c["expected"] = e;
}

// One case a line, call of a cache, and expected tensor: short enough to read, long enough to search.
std::string written(const Json &cases) {
  std::ostringstream text;
  const auto lines = [&](const Json &list) {
    const char *comma = "";
    for (const Json &c : list) {
      text << comma << "\n  {";
      const char *between = "";
      for (const auto &[key, value] : c.items()) {
        if (key == "expected") {
          text << ",\n   \"expected\": {";
          const char *inner = "";
          for (const auto &[name, e] : value.items()) {
            text << inner << "\n    \"" << name << "\": " << e.dump();
            inner = ",";
          }
          text << "}";
        } else if (key == "calls") {
          text << ",\n   \"calls\": [";
          const char *inner = "";
          for (const Json &call : value) {
            text << inner << "\n    " << call.dump();
            inner = ",";
          }
          text << "]";
        } else {
          text << between << '"' << key << "\": " << value.dump();
        }
        between = ", ";
      }
      text << "}";
      comma = ",";
    }
  };
  text << "{\n \"results\": [";
  lines(cases.at("results"));
  text << "\n ],\n \"layers\": [";
  lines(cases.at("layers"));
  text << "\n ],\n \"caches\": [";
  lines(cases.at("caches"));
  text << "\n ],\n \"errors\": [";
  lines(cases.at("errors"));
  text << "\n ]\n}\n";
  return text.str();
}

int run(const std::string &path, bool check) {
  Json cases = read_json(path);
  for (Json &c : cases.at("results")) fill(c);
  for (Json &c : cases.at("layers")) fill_layer(c);
  for (Json &c : cases.at("caches")) fill_cache(c);
  const std::string text = written(cases);
  std::ostringstream old;
  old << std::ifstream(path).rdbuf();
  if (old.str() == text) return EXIT_SUCCESS;
  if (check) {
    std::fprintf(stderr, "%s is not as fill_cases writes it: run ./dev bindings\n", path.c_str());
    return EXIT_FAILURE;
  }
  std::ofstream(path) << text;
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace ringattn::conformance

int main(int argc, char **argv) {
  const bool check = argc == 3 && std::string(argv[2]) == "--check";
  if (argc != 2 && !check) {
    std::fprintf(stderr, "usage: fill_cases CASES [--check]\n");
    return EXIT_FAILURE;
  }
  try {
    return ringattn::conformance::run(argv[1], check);
  } catch (const std::exception &e) {
    std::fprintf(stderr, "fill_cases: %s\n", e.what());
    return EXIT_FAILURE;
  }
}
