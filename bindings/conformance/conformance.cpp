// Executes cases.json with the C API and writes what it got, bit for bit: what all other languages are compared with.
//
//   conformance CASES RESULTS
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "layers.h"

namespace ringattn::conformance {
namespace {

struct Destroy {
  void operator()(ra_context *context) const { ra_destroy_context(context); }
};
using Context = std::unique_ptr<ra_context, Destroy>;
struct DestroyCache {
  void operator()(ra_kv_cache *cache) const { ra_destroy_kv_cache(cache); }
};
using Cache = std::unique_ptr<ra_kv_cache, DestroyCache>;

// A call that should not have failed did.
void require(ra_status status, const ra_error &error) {
  if (status != RA_STATUS_SUCCESS)
    throw std::runtime_error(std::string(ra_get_status_name(status)) + ": " + error.message);
}

template <class Record>
Record made(void (*init)(Record *, size_t)) {
  Record record;
  init(&record, sizeof record);
  return record;
}

// A tensor [batch, rows, heads, dim] of one dtype; lse is [batch, heads, rows] with dim 1.
struct Array {
  Array() = default;
  Array(std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t dim, std::int32_t dtype)
      : batch(batch),
        rows(rows),
        heads(heads),
        dim(dim),
        dtype(dtype),
        bytes(static_cast<std::size_t>(batch * rows * heads * dim) * size_of(dtype)) {}

  void fill(std::uint64_t seed, std::uint64_t t) {
    for (std::size_t i = 0; i < count(); ++i) encode(input(seed, t, i), dtype, bytes.data() + i * size_of(dtype));
  }
  std::size_t count() const { return bytes.size() / size_of(dtype); }
  float at(std::size_t i) const { return decode(bytes.data() + i * size_of(dtype), dtype); }
  ra_tensor tensor() { return {bytes.data(), 0, 0, 0, bytes.size()}; }
  ra_tensor lse_tensor() { return {bytes.data(), heads * rows, 1, rows, bytes.size()}; }
  float *floats() { return reinterpret_cast<float *>(bytes.data()); }

  std::string hash() const {
    std::uint64_t h = 0xCBF29CE484222325U;
    for (const std::byte b : bytes) h = (h ^ static_cast<std::uint64_t>(b)) * 0x100000001B3U;
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(h));
    return text;
  }

  std::int64_t batch = 0, rows = 0, heads = 0, dim = 0;
  std::int32_t dtype = RA_DTYPE_FLOAT32;
  std::vector<std::byte> bytes;
};

// Modifiers that the header of this build may not have: it may be the released one.
template <class Desc>
bool has_key_bias(const Desc &desc) {
  if constexpr (requires { desc.has_key_bias; }) return desc.has_key_bias != 0;
  return false;
}
template <class Desc>
std::int64_t num_sinks(const Desc &desc) {
  if constexpr (requires { desc.num_sinks; }) return desc.num_sinks;
  return 0;
}

template <class Desc>
bool has_dropout(const Desc &desc) {
  if constexpr (requires { desc.dropout_probability; }) return desc.dropout_probability > 0;
  return false;
}
template <class Desc>
ra_status get_dropout_mask(const Desc &desc, std::int64_t entry, std::int64_t head, std::int64_t query,
                           std::int64_t first_key, std::int64_t count, std::uint8_t *mask, ra_error *error) {
  if constexpr (requires { ra_get_dropout_mask(&desc, entry, head, query, first_key, count, mask, error); })
    return ra_get_dropout_mask(&desc, entry, head, query, first_key, count, mask, error);
  throw std::logic_error("no ra_get_dropout_mask");
}

// The description of a case, with what it leaves to the library made explicit; of a layer, where the case has a mha.
struct Problem {
  Problem(const Json &c, Kept &kept) : is_layer(c.contains("mha")) {
    set_all(desc, c, "desc", kept);
    set_all(mha, c, "mha", kept);
    const auto or_else = [](auto value, auto none, auto other) { return value == none ? other : value; };
    seqlen_kv = or_else(desc.seqlen_kv, std::int64_t{-1}, desc.seqlen_q);
    heads_kv = or_else(desc.num_heads_kv, std::int64_t{0}, desc.num_heads_q);
    dim_v = or_else(desc.head_dim_v, std::int64_t{0}, desc.head_dim);
    out_dtype = or_else(desc.out_dtype, std::int32_t{RA_DTYPE_SAME}, desc.dtype);
    grad_dtype = or_else(desc.grad_dtype, std::int32_t{RA_DTYPE_SAME}, desc.dtype);
  }
  struct Kind {
    std::int32_t side;
    std::int64_t heads, dim;
    std::int32_t dtype;
  };
  Kind kind(const std::string &name) const {
    if (is_layer)
      return {RA_SIDE_QUERY, 1, mha.d_model, name == "x" ? desc.dtype : name == "dx" ? grad_dtype : out_dtype};
    if (name == "q") return {RA_SIDE_QUERY, desc.num_heads_q, desc.head_dim, desc.dtype};
    if (name == "dq") return {RA_SIDE_QUERY, desc.num_heads_q, desc.head_dim, grad_dtype};
    if (name == "k") return {RA_SIDE_KEY_VALUE, heads_kv, desc.head_dim, desc.dtype};
    if (name == "dk") return {RA_SIDE_KEY_VALUE, heads_kv, desc.head_dim, grad_dtype};
    if (name == "v") return {RA_SIDE_KEY_VALUE, heads_kv, dim_v, desc.dtype};
    if (name == "dv") return {RA_SIDE_KEY_VALUE, heads_kv, dim_v, grad_dtype};
    if (name == "lse") return {RA_SIDE_QUERY, desc.num_heads_q, 1, RA_DTYPE_FLOAT32};
    if (name == "key_bias") return {RA_SIDE_KEY_VALUE, 1, 1, RA_DTYPE_FLOAT32};
    return {RA_SIDE_QUERY, desc.num_heads_q, dim_v, out_dtype};  // out, dout
  }
  Array array(const std::string &name, std::int64_t rows_q, std::int64_t rows_kv) const {
    const Kind kind = this->kind(name);
    return {desc.batch, kind.side == RA_SIDE_QUERY ? rows_q : rows_kv, kind.heads, kind.dim, kind.dtype};
  }
  Array whole(const std::string &name) const { return array(name, desc.seqlen_q, seqlen_kv); }
  std::array<LayerWeight, 10> weights() const {
    return weights_of(mha, desc.num_heads_q, heads_kv, desc.head_dim, dim_v);
  }
  Array of_sinks() const { return {1, 1, desc.num_heads_q, num_sinks(desc), RA_DTYPE_FLOAT32}; }

  bool is_layer;
  ra_attention_desc desc = made(ra_init_attention_desc);
  ra_mha_desc mha = made(ra_init_mha_desc);
  std::int64_t seqlen_kv, heads_kv, dim_v;
  std::int32_t out_dtype, grad_dtype;
};
using Arrays = std::map<std::string, Array>;

// Copies between whole tensors and the shard of a rank.
void copy(decltype(ra_split_sequence) *function, const Problem &p, std::int32_t world_size, std::int32_t rank,
          const std::string &name, Array &whole, Array &shard) {
  auto args = made(ra_init_sequence_args);
  const Problem::Kind kind = p.kind(name);
  args.side = kind.side;
  args.dtype = kind.dtype;
  args.num_heads = kind.heads;
  args.dim = kind.dim;
  args.whole = name == "lse" ? whole.lse_tensor() : whole.tensor();
  args.shard = name == "lse" ? shard.lse_tensor() : shard.tensor();
  ra_error error;
  require(function(&p.desc, world_size, rank, &args, &error), error);
}

// What both passes read, where the description asks for it.
template <class Args>
void set_modifiers(Args &args, Arrays &shard, const Array &sinks) {
  if constexpr (requires { args.key_bias; }) {
    if (shard.contains("key_bias")) args.key_bias = shard["key_bias"].floats();
    if (!sinks.bytes.empty()) args.sinks = reinterpret_cast<const float *>(sinks.bytes.data());
    args.sinks_size = sinks.bytes.size();
  }
}
template <class Args>
void set_dsinks(Args &args, Array &dsinks) {
  if constexpr (requires { args.dsinks; }) {
    if (!dsinks.bytes.empty()) args.dsinks = dsinks.floats();
    args.dsinks_size = dsinks.bytes.size();
  }
}

Context join(const Json &c, const char *id, std::int32_t world_size, std::int32_t rank) {
  Kept kept;
  ra_error error;
  auto config = made(ra_init_context_config);
  set_all(config, c, "config", kept);
  config.rank = rank;
  config.world_size = world_size;
  config.unique_id = id;
  Context context(ra_create_context(&config, &error));
  if (!context) require(static_cast<ra_status>(error.status), error);
  return context;
}

// A rank's shards of whole tensors.
Arrays split(const Problem &p, std::int32_t world_size, std::int32_t rank, Arrays &whole) {
  const std::int64_t rows_q = ra_get_shard_length(&p.desc, world_size, rank, RA_SIDE_QUERY, nullptr);
  const std::int64_t rows_kv = ra_get_shard_length(&p.desc, world_size, rank, RA_SIDE_KEY_VALUE, nullptr);
  Arrays shard;
  for (auto &[name, array] : whole) {
    shard[name] = p.array(name, rows_q, rows_kv);
    copy(ra_split_sequence, p, world_size, rank, name, array, shard[name]);
  }
  return shard;
}

// `dsinks`: of this rank, written.
void run_rank(const Json &c, const Problem &p, const char *id, std::int32_t world_size, std::int32_t rank,
              Arrays &whole, const Array &sinks, Array &dsinks) {
  ra_error error;
  const Context context = join(c, id, world_size, rank);
  Arrays shard = split(p, world_size, rank, whole);
  auto forward = made(ra_init_forward_args);
  forward.q = shard["q"].tensor();
  forward.k = shard["k"].tensor();
  forward.v = shard["v"].tensor();
  forward.out = shard["out"].tensor();
  forward.lse = shard["lse"].floats();
  forward.lse_size = shard["lse"].bytes.size();
  set_modifiers(forward, shard, sinks);
  require(ra_forward(context.get(), &p.desc, &forward, &error), error);

  auto backward = made(ra_init_backward_args);
  backward.dout = shard["dout"].tensor();
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.lse_size = forward.lse_size;
  backward.dq = shard["dq"].tensor();
  backward.dk = shard["dk"].tensor();
  backward.dv = shard["dv"].tensor();
  backward.accumulate = c.value("accumulate", false) ? 1 : 0;
  set_modifiers(backward, shard, sinks);
  set_dsinks(backward, dsinks);
  require(ra_backward(context.get(), &p.desc, &backward, &error), error);

  for (const char *name : {"out", "lse", "dq", "dk", "dv"})  // ranks write to places apart
    copy(ra_join_sequence, p, world_size, rank, name, whole[name], shard[name]);
}

// Of each pair 1 where dropout keeps it, else 0: [batch, num_heads_q, seqlen_q, seqlen_kv].
Array dropout_mask(const Problem &p) {
  Array all(p.desc.batch, p.desc.num_heads_q, p.desc.seqlen_q, p.seqlen_kv, RA_DTYPE_FLOAT32);
  float *to = all.floats();
  const std::int64_t middle = p.seqlen_kv / 3;
  std::vector<std::uint8_t> row(static_cast<std::size_t>(p.seqlen_kv));
  ra_error error;
  for (std::int64_t entry = 0; entry < p.desc.batch; ++entry)
    for (std::int64_t head = 0; head < p.desc.num_heads_q; ++head)
      for (std::int64_t query = 0; query < p.desc.seqlen_q; ++query) {
        require(get_dropout_mask(p.desc, entry, head, query, 0, middle, row.data(), &error), error);
        require(get_dropout_mask(p.desc, entry, head, query, middle, p.seqlen_kv - middle, row.data() + middle, &error),
                error);
        to = std::copy(row.begin(), row.end(), to);
      }
  return all;
}

// Runs f(rank) on a thread of its own for each rank; the first failure is thrown.
void for_each_rank(std::int32_t world_size, const std::function<void(std::int32_t)> &f) {
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(world_size));
  std::vector<std::thread> threads;
  for (std::int32_t rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        f(rank);
      } catch (...) {
        failures[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  for (std::thread &thread : threads) thread.join();
  for (const std::exception_ptr &failure : failures)
    if (failure) std::rethrow_exception(failure);
}

// Hashes of what is expected, if it is that.
Json compared(const Json &c, const Arrays &whole) {
  Json hashes;
  for (const auto &[name, expected] : c.at("expected").items()) {
    const Array &array = whole.at(name);
    hashes[name] = array.hash();
    const auto tolerance = expected.at("tolerance").get<float>();
    for (std::size_t n = 0; n < expected.at("at").size(); ++n) {
      const float got = array.at(expected.at("at")[n].get<std::size_t>());
      const Json &value = expected.at("values")[n];
      const bool is_right = value == "-inf" ? got == -INFINITY : std::abs(got - value.get<float>()) <= tolerance;
      if (!is_right)
        throw std::runtime_error(name + "[" + expected.at("at")[n].dump() + "] is " + std::to_string(got) + ", not " +
                                 value.dump());
    }
  }
  return hashes;
}

Json run_result(const Json &c) {
  Kept kept;
  const Problem p(c, kept);
  const auto world_size = c.at("world_size").get<std::int32_t>();
  const auto seed = c.at("seed").get<std::uint64_t>();
  ra_unique_id id;
  ra_error error;
  require(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), error);

  Arrays whole;
  for (const char *name : {"q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"}) whole[name] = p.whole(name);
  whole["q"].fill(seed, q);
  whole["k"].fill(seed, k);
  whole["v"].fill(seed, v);
  whole["dout"].fill(seed, dout);
  if (c.value("accumulate", false)) {
    whole["dq"].fill(seed, dq);
    whole["dk"].fill(seed, dk);
    whole["dv"].fill(seed, dv);
  }
  if (has_key_bias(p.desc)) {
    whole["key_bias"] = p.whole("key_bias");
    whole["key_bias"].fill(seed, key_bias);
  }
  Array all_sinks = p.of_sinks();
  all_sinks.fill(seed, sinks);
  std::vector<Array> of_ranks(static_cast<std::size_t>(world_size), p.of_sinks());  // dsinks
  if (c.value("accumulate", false)) of_ranks[0].fill(seed, dsinks);
  for_each_rank(world_size, [&](std::int32_t rank) {
    run_rank(c, p, id.text, world_size, rank, whole, all_sinks, of_ranks[static_cast<std::size_t>(rank)]);
  });
  Array &sum = whole["dsinks"] = of_ranks[0];
  for (std::size_t rank = 1; rank < of_ranks.size(); ++rank)
    for (std::size_t i = 0; i < sum.count(); ++i) sum.floats()[i] += of_ranks[rank].floats()[i];
  if (has_dropout(p.desc)) whole["dropout_mask"] = dropout_mask(p);
  return compared(c, whole);
}

// ---------------------------------------------------------------- layers

// Memory for what the forward pass keeps, aligned as it must be.
class Activations {
 public:
  Activations(const Context &context, const Problem &p) {
    auto needs = made(ra_init_mha_requirements);
    ra_error error;
    require(ra_get_mha_requirements(context.get(), &p.desc, &p.mha, &needs, &error), error);
    size_ = needs.activations;
    lines_.resize((size_ + sizeof(Line) - 1) / sizeof(Line));
  }
  void give_to(auto &args) {
    args.activations = lines_.empty() ? nullptr : lines_.data();
    args.activations_size = size_;
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::size_t size_ = 0;
  std::vector<Line> lines_;
};

// `weights` by their names; `gradients` by theirs, of this rank, written.
void run_layer_of_rank(const Json &c, const Problem &p, const char *id, std::int32_t world_size, std::int32_t rank,
                       Arrays &whole, Arrays &weights, Arrays &gradients) {
  ra_error error;
  const Context context = join(c, id, world_size, rank);
  Arrays shard = split(p, world_size, rank, whole);
  Activations activations(context, p);
  auto forward = made(ra_init_mha_forward_args);
  auto backward = made(ra_init_mha_backward_args);
  for (const LayerWeight &w : p.weights()) {
    if (w.elements == 0) continue;
    forward.*w.read_forward = backward.*w.read_backward = weights.at(w.name).tensor();
    backward.*w.written = gradients.at(w.gradient).tensor();
  }
  forward.x = backward.x = shard["x"].tensor();
  forward.out = shard["out"].tensor();
  activations.give_to(forward);
  require(ra_mha_forward(context.get(), &p.desc, &p.mha, &forward, &error), error);

  backward.dout = shard["dout"].tensor();
  backward.dx = shard["dx"].tensor();
  backward.accumulate = c.value("accumulate", false) ? 1 : 0;
  backward.reduce = c.value("reduce", false) ? 1 : 0;
  activations.give_to(backward);
  require(ra_mha_backward(context.get(), &p.desc, &p.mha, &backward, &error), error);
  if (backward.reduce == 0)
    for (const LayerWeight &w : p.weights()) {
      if (w.elements == 0) continue;
      auto args = made(ra_init_reduce_args);
      args.data = gradients.at(w.gradient).floats();
      args.data_size = gradients.at(w.gradient).bytes.size();
      args.count = w.elements;
      require(ra_all_reduce(context.get(), &args, &error), error);
    }
  for (const char *name : {"out", "dx"})  // ranks write to places apart
    copy(ra_join_sequence, p, world_size, rank, name, whole[name], shard[name]);
}

Json run_layer(const Json &c) {
  Kept kept;
  const Problem p(c, kept);
  const auto world_size = c.at("world_size").get<std::int32_t>();
  const auto seed = c.at("seed").get<std::uint64_t>();
  ra_unique_id id;
  ra_error error;
  require(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), error);

  Arrays whole, weights, zeros;
  for (const char *name : {"x", "dout", "out", "dx"}) whole[name] = p.whole(name);
  whole["x"].fill(seed, number_of_x);
  whole["dout"].fill(seed, number_of_dout);
  for (const LayerWeight &w : p.weights()) {
    if (w.elements == 0) continue;
    weights[w.name] = Array(1, 1, 1, w.elements, p.desc.dtype);
    weights[w.name].fill(seed, w.number);
    zeros[w.gradient] = Array(1, 1, 1, w.elements, RA_DTYPE_FLOAT32);
  }
  std::vector<Arrays> gradients(static_cast<std::size_t>(world_size), zeros);
  if (c.value("accumulate", false))
    for (const LayerWeight &w : p.weights())
      if (w.elements > 0) gradients[0][w.gradient].fill(seed, w.number + number_of_gradients);
  for_each_rank(world_size, [&](std::int32_t rank) {
    run_layer_of_rank(c, p, id.text, world_size, rank, whole, weights, gradients[static_cast<std::size_t>(rank)]);
  });
  for (const auto &[name, gradient] : gradients[0]) {
    for (const Arrays &other : gradients)
      if (other.at(name).bytes != gradient.bytes) throw std::runtime_error(name + " is not the same on every rank");
    whole[name] = gradient;
  }
  return compared(c, whole);
}

// ---------------------------------------------------------------- refusals

// Calls f, which must fail with the status and the words that `c` says.
void expect_refusal(const Json &c, const std::function<void()> &f) {
  std::string failure;
  try {
    f();
  } catch (const std::logic_error &) {
    throw;
  } catch (const std::runtime_error &e) {
    failure = e.what();
  }
  if (failure.empty()) throw std::runtime_error("it succeeded");
  const auto expect = [&](const std::string &word) {
    if (failure.find(word) == std::string::npos) throw std::runtime_error("no '" + word + "' in: " + failure);
  };
  expect(c.at("status").get<std::string>() + ": ");
  for (const Json &word : c.at("words")) expect(word.get<std::string>());
}

// ---------------------------------------------------------------- caches

using Numbers = std::vector<std::int64_t>;

// What a rank has between two calls of a case.
struct CacheUser {
  const Json &c;
  ra_kv_cache_desc shape;
  std::int32_t rank;
  Context context;
  Cache cache = {};
  Arrays results = {};  // out_<n> and lse_<n> of call n
};

Numbers numbers(const Json &call, const char *name) { return call.value(name, Numbers()); }

// A tensor as the call needs it, unless the call says how long it is.
Array of_call(const Json &call, const char *name, Array whole) {
  const Json elements = call.value("elements", Json::object());
  return elements.contains(name) ? Array(1, 1, 1, elements.at(name).get<std::int64_t>(), whole.dtype) : whole;
}

void append(CacheUser &user, const Json &call, std::uint64_t seed) {
  const ra_kv_cache_desc &shape = user.shape;
  const Numbers sequences = numbers(call, "sequences"), lengths = numbers(call, "lengths"),
                positions = numbers(call, "positions");
  auto args = made(ra_init_append_args);
  args.num_sequences = std::ssize(sequences);
  args.sequences = sequences.data();
  args.num_tokens = call.at("num_tokens").get<std::int64_t>();
  if (!lengths.empty()) args.lengths = lengths.data();
  if (!positions.empty()) args.positions = positions.data();
  const auto tokens = [&](const char *name, std::int64_t dim) {
    return of_call(call, name, {args.num_sequences, args.num_tokens, shape.num_heads_kv, dim, shape.dtype});
  };
  Array all_k = tokens("k", shape.head_dim),
        all_v = tokens("v", shape.head_dim_v == 0 ? shape.head_dim : shape.head_dim_v);
  all_k.fill(seed, k);
  all_v.fill(seed, v);
  args.k = all_k.tensor();
  args.v = all_v.tensor();
  ra_error error;
  require(ra_append(user.context.get(), user.cache.get(), &args, &error), error);
}

void decode_tokens(CacheUser &user, const Json &call, std::uint64_t seed, const std::string &number) {
  Kept kept;
  Json desc = user.c.at("desc");
  desc.update(call.value("desc", Json::object()));
  const Problem p({{"desc", desc}}, kept);
  const Numbers sequences = numbers(call, "sequences");
  const auto tensor = [&](const char *name) { return of_call(call, name, p.whole(name)); };
  Array all_q = tensor("q"), all_sinks = of_call(call, "sinks", p.of_sinks());
  Array &out = user.results["out_" + number] = tensor("out"), &lse = user.results["lse_" + number] = tensor("lse");
  all_q.fill(seed, q);
  all_sinks.fill(seed, sinks);
  auto args = made(ra_init_decode_args);
  args.num_sequences = std::ssize(sequences);
  args.sequences = sequences.data();
  args.q = all_q.tensor();
  args.out = out.tensor();
  args.lse = lse.floats();
  args.lse_size = lse.bytes.size();
  args.sinks = all_sinks.bytes.empty() ? nullptr : all_sinks.floats();
  args.sinks_size = all_sinks.bytes.size();
  ra_error error;
  require(ra_decode(user.context.get(), user.cache.get(), &p.desc, &args, &error), error);
  auto statistics = made(ra_init_call_statistics);
  require(ra_get_call_statistics(user.context.get(), &statistics, &error), error);
  if (statistics.schedule != constant(schedule_constants, call.at("schedule")))
    throw std::logic_error("schedule is " + std::to_string(statistics.schedule));
}

// The numbers that a call gives, in the order of the README.
Numbers run_cache_call(CacheUser &user, const Json &call, std::uint64_t seed, const std::string &number) {
  const auto name = call.at("call").get<std::string>();
  const auto argument = [&](const char *of) { return call.at(of).get<std::int64_t>(); };
  ra_kv_cache *const cache = user.cache.get();
  ra_error error;
  const auto done = [&](ra_status status) {
    require(status, error);
    return Numbers();
  };
  const auto given = [&](std::int64_t n) {
    if (n < 0) require(static_cast<ra_status>(error.status), error);
    return Numbers{n};
  };
  if (name == "create_sequence") return given(ra_create_sequence(cache, &error));
  if (name == "fork_sequence") return given(ra_fork_sequence(cache, argument("sequence"), &error));
  if (name == "get_sequence_length") return given(ra_get_sequence_length(cache, argument("sequence"), &error));
  if (name == "get_lost_tokens")
    return given(ra_get_lost_tokens(cache, argument("sequence"), argument("from"), &error));
  if (name == "truncate_sequence")
    return done(ra_truncate_sequence(cache, argument("sequence"), argument("length"), &error));
  if (name == "free_sequence") return done(ra_free_sequence(cache, argument("sequence"), &error));
  if (name == "append") return append(user, call, seed), Numbers();
  if (name == "decode") return decode_tokens(user, call, seed, number), Numbers();
  if (name == "move_kv_cache")
    return done(ra_move_kv_cache(cache, user.context.get(),
                                 call.at("former_ranks").get<std::vector<std::int32_t>>().data(), &error));
  if (name != "get_kv_cache_statistics") throw std::logic_error("no call " + name);
  auto s = made(ra_init_kv_cache_statistics);
  require(ra_get_kv_cache_statistics(cache, &s, &error), error);
  return {s.num_sequences,
          s.num_tokens,
          s.used_pages,
          s.free_pages,
          s.least_free_pages,
          s.lost_pages,
          static_cast<std::int64_t>(s.memory)};
}

// All calls of a case on a rank. `ids`: of the first group of ranks, and of those after each move.
Arrays run_cache_of_rank(const Json &c, const std::vector<ra_unique_id> &ids, std::int32_t rank) {
  Kept kept;
  ra_error error;
  auto shape = made(ra_init_kv_cache_desc);
  set_all(shape, c, "cache", kept);
  auto group = ids.begin();
  CacheUser user{c, shape, rank, join(c, group->text, c.at("world_size").get<std::int32_t>(), rank)};
  user.cache.reset(ra_create_kv_cache(user.context.get(), &shape, &error));
  if (!user.cache) require(static_cast<ra_status>(error.status), error);
  auto seed = c.at("seed").get<std::uint64_t>();
  for (std::size_t n = 0; n < c.at("calls").size(); ++n, ++seed) {
    const Json &call = c.at("calls")[n];
    try {
      if (call.contains("former_ranks")) {
        const auto former = call.at("former_ranks").get<std::vector<std::int32_t>>();
        const auto now = std::find(former.begin(), former.end(), user.rank);
        if (now == former.end()) return user.results;  // of those that are gone
        user.rank = static_cast<std::int32_t>(now - former.begin());
        user.context.reset();
        user.context = join(c, (++group)->text, static_cast<std::int32_t>(former.size()), user.rank);
      }
      const auto run = [&] { return run_cache_call(user, call, seed, std::to_string(n)); };
      if (call.contains("status")) {
        expect_refusal(call, run);
        continue;
      }
      const Numbers given = run();
      const Json gives = call.value("gives", Json::array());
      for (std::size_t i = 0; i < gives.size(); ++i) {
        const auto rank_now = static_cast<std::size_t>(user.rank);
        if (given.at(i) != (gives[i].is_array() ? gives[i].at(rank_now) : gives[i]).get<std::int64_t>())
          throw std::runtime_error("number " + std::to_string(i) + " is " + std::to_string(given[i]));
      }
    } catch (const std::exception &e) {
      throw std::runtime_error("call " + std::to_string(n) + ", rank " + std::to_string(user.rank) + ": " + e.what());
    }
  }
  return user.results;
}

Json run_cache(const Json &c) {
  const auto world_size = c.at("world_size").get<std::int32_t>();
  std::vector<ra_unique_id> ids(1);
  for (const Json &call : c.at("calls"))
    if (call.contains("former_ranks")) ids.emplace_back();
  ra_error error;
  for (ra_unique_id &id : ids) require(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), error);
  std::vector<Arrays> of_ranks(static_cast<std::size_t>(world_size));
  for_each_rank(world_size,
                [&](std::int32_t rank) { of_ranks[static_cast<std::size_t>(rank)] = run_cache_of_rank(c, ids, rank); });
  Arrays results;
  for (const Arrays &own : of_ranks)
    for (const auto &[name, array] : own)
      if (results.emplace(name, array).first->second.bytes != array.bytes)
        throw std::runtime_error(name + " is not the same on every rank");
  return compared(c, results);
}

// ---------------------------------------------------------------- errors

// Tensors of a call that is to fail: as long as they must be, but for what the case says.
class Zeros {
 public:
  explicit Zeros(const Json &c) : changes_(c.value("tensors", Json::object())) {}
  ra_tensor operator()(const std::string &name, std::int64_t elements, std::int32_t dtype = RA_DTYPE_FLOAT32) {
    const Json change = changes_.value(name, Json::object());
    bytes_.emplace_back(static_cast<std::size_t>(change.value("elements", elements)) * size_of(dtype));
    std::vector<std::byte> &bytes = bytes_.back();
    return {bytes.empty() ? nullptr : bytes.data(), change.value("batch_stride", std::int64_t{0}),
            change.value("seq_stride", std::int64_t{0}), change.value("head_stride", std::int64_t{0}), bytes.size()};
  }

 private:
  Json changes_;
  std::list<std::vector<std::byte>> bytes_;
};

// Calls of a case that has a mha.
void run_layer_call(const std::string &call, const Json &arguments, const Problem &p, const Context &context,
                    Zeros &zeros) {
  ra_error error;
  auto needs = made(ra_init_mha_requirements);
  const ra_status status = ra_get_mha_requirements(context.get(), &p.desc, &p.mha, &needs, &error);
  if (call == "get_mha_requirements") return require(status, error);
  const bool is_right = status == RA_STATUS_SUCCESS;
  const auto tokens = [&](const char *name) {
    return zeros(name, is_right ? static_cast<std::int64_t>(p.whole(name).count()) : 1, p.kind(name).dtype);
  };
  auto forward = made(ra_init_mha_forward_args);
  auto backward = made(ra_init_mha_backward_args);
  forward.x = backward.x = tokens("x");
  for (const LayerWeight &w : p.weights()) {
    const std::int64_t elements = is_right ? w.elements : 1;
    forward.*w.read_forward = backward.*w.read_backward = zeros(w.name, elements, p.desc.dtype);
    backward.*w.written = zeros(w.gradient, elements);
  }
  std::optional<Activations> activations;
  if (is_right && arguments.value("activations", 1) != 0) activations.emplace(context, p);
  if (activations) activations->give_to(forward), activations->give_to(backward);
  if (call == "mha_forward") {
    forward.out = tokens("out");
    return require(ra_mha_forward(context.get(), &p.desc, &p.mha, &forward, &error), error);
  }
  if (call != "mha_backward") throw std::logic_error("no call " + call);
  backward.dout = tokens("dout");
  backward.dx = tokens("dx");
  require(ra_mha_backward(context.get(), &p.desc, &p.mha, &backward, &error), error);
}

void run_call(const Json &c) {
  const auto call = c.at("call").get<std::string>();
  const Json arguments = c.value("arguments", Json::object());
  const auto argument = [&](const char *name, std::int64_t other) {
    return number<std::int64_t>(arguments.value(name, Json(other)));
  };
  const auto argument32 = [&](const char *name, std::int32_t other) {
    return static_cast<std::int32_t>(argument(name, other));
  };
  Kept kept;
  ra_error error;
  const auto check = [&](ra_status status) { require(status, error); };
  const auto check_length = [&](std::int64_t length) {
    if (length < 0) check(static_cast<ra_status>(error.status));
  };

  if (call == "create_unique_id") {
    ra_unique_id id;
    return check(ra_create_unique_id(&id, constant(transport_constants, arguments.at("transport")),
                                     kept.text(arguments.value("bind_address", Json())), &error));
  }
  auto config = made(ra_init_context_config);
  set_all(config, c, "config", kept);
  const Problem p(c, kept);
  auto requirements = made(ra_init_memory_requirements);
  if (call == "estimate_memory") return check(ra_estimate_memory(&config, &p.desc, &requirements, &error));
  if (call == "estimate_time") {
    auto rates = made(ra_init_machine_rates);
    set_all(rates, c, "rates", kept);
    auto estimate = made(ra_init_time_estimate);
    return check(ra_estimate_time(&config, &p.desc, &rates, &estimate, &error));
  }

  const std::int32_t world_size = argument32("world_size", 1), rank = argument32("rank", 0);
  const std::int32_t side = arguments.contains("side") ? constant(side_constants, arguments.at("side")) : RA_SIDE_QUERY;
  if (call == "get_shard_length") return check_length(ra_get_shard_length(&p.desc, world_size, rank, side, &error));
  if (call == "get_shard_position")
    return check_length(ra_get_shard_position(&p.desc, world_size, rank, side, argument("index", 0), &error));
  if (call == "get_shard_positions") {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(argument("count", 1)));
    return check(ra_get_shard_positions(&p.desc, world_size, rank, side, argument("first", 0), argument("count", 1),
                                        positions.data(), &error));
  }
  if (call == "get_dropout_mask") {
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(argument("count", 1)));
    return check(get_dropout_mask(p.desc, argument("entry", 0), argument("head", 0), argument("query", 0),
                                  argument("first_key", 0), argument("count", 1), mask.data(), &error));
  }
  Zeros zeros(c);
  if (call == "split_sequence" || call == "join_sequence") {
    auto args = made(ra_init_sequence_args);
    args.side = side;
    args.num_heads = argument("num_heads", 1);
    args.dim = argument("dim", 1);
    const std::int64_t row = std::max<std::int64_t>(p.desc.batch * args.num_heads * args.dim, 1);
    args.whole = zeros("whole", (side == RA_SIDE_QUERY ? p.desc.seqlen_q : p.seqlen_kv) * row);
    args.shard =
        zeros("shard", std::max<std::int64_t>(ra_get_shard_length(&p.desc, world_size, rank, side, nullptr), 1) * row);
    return check(
        (call == "split_sequence" ? ra_split_sequence : ra_join_sequence)(&p.desc, world_size, rank, &args, &error));
  }
  if (call == "merge_attention") {
    auto args = made(ra_init_merge_args);
    args.batch = argument("batch", args.batch);
    args.seqlen = argument("seqlen", args.seqlen);
    args.num_heads = argument("num_heads", args.num_heads);
    args.head_dim_v = argument("head_dim_v", args.head_dim_v);
    const std::int64_t rows = std::max<std::int64_t>(args.batch * args.seqlen * args.num_heads, 1);
    const std::int64_t elements = std::max<std::int64_t>(rows * args.head_dim_v, 1);
    args.out_a = zeros("out_a", elements);
    args.out_b = zeros("out_b", elements);
    args.out = zeros("out", elements);
    const ra_tensor lse_a = zeros("lse_a", rows), lse_b = zeros("lse_b", rows), lse = zeros("lse", rows);
    args.lse_a = static_cast<float *>(lse_a.data);
    args.lse_b = static_cast<float *>(lse_b.data);
    args.lse = static_cast<float *>(lse.data);
    args.lse_size = std::min({lse_a.size, lse_b.size, lse.size});
    return check(ra_merge_attention(&args, &error));
  }

  const Context context(ra_create_context(&config, &error));
  if (!context) check(static_cast<ra_status>(error.status));
  if (call == "create_context") return;
  if (call.ends_with("_after_abort")) check(ra_abort_context(context.get(), &error));
  if (p.is_layer) return run_layer_call(call, arguments, p, context, zeros);
  if (call == "create_kv_cache") {
    auto shape = made(ra_init_kv_cache_desc);
    set_all(shape, c, "cache", kept);
    const Cache cache(ra_create_kv_cache(context.get(), &shape, &error));
    return check(cache ? RA_STATUS_SUCCESS : static_cast<ra_status>(error.status));
  }
  if (call == "all_reduce_after_abort") {
    auto args = made(ra_init_reduce_args);
    std::array<float, 4> data{};
    args.data = data.data();
    args.data_size = sizeof data;
    args.count = data.size();
    return check(ra_all_reduce(context.get(), &args, &error));
  }
  if (call == "check_support") return check(ra_check_support(context.get(), &p.desc, &error));
  if (call == "get_memory_requirements")
    return check(ra_get_memory_requirements(context.get(), &p.desc, &requirements, &error));
  if (call == "run_self_test")
    return check(ra_run_self_test(context.get(), argument("num_problems", 1), argument("seed", 1), &error));

  const bool is_right = ra_get_shard_length(&p.desc, 1, 0, RA_SIDE_QUERY, nullptr) >= 0;
  const auto tensor = [&](const char *name) {
    const Array whole = is_right ? p.whole(name) : Array(1, 1, 1, 1, p.kind(name).dtype);
    return zeros(name, static_cast<std::int64_t>(whole.count()), whole.dtype);
  };
  const ra_tensor lse = tensor("lse");
  auto forward = made(ra_init_forward_args);
  forward.q = tensor("q");
  forward.k = tensor("k");
  forward.v = tensor("v");
  forward.out = tensor("out");
  forward.lse = static_cast<float *>(lse.data);
  forward.lse_size = lse.size;
  if (call == "forward" || call == "forward_after_abort")
    return check(ra_forward(context.get(), &p.desc, &forward, &error));
  if (call != "backward") throw std::logic_error("no call " + call);
  auto backward = made(ra_init_backward_args);
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.lse_size = forward.lse_size;
  backward.dout = tensor("dout");
  backward.dq = tensor("dq");
  backward.dk = tensor("dk");
  backward.dv = tensor("dv");
  backward.accumulate = argument32("accumulate", 0);
  check(ra_backward(context.get(), &p.desc, &backward, &error));
}

int run(const char *cases_path, const char *results_path) {
  const Json cases = read_json(cases_path);
  Json results = Json::object();
  int failed = 0;
  const auto each = [&](const Json &list, auto &&f) {
    for (const Json &c : list) {
      const auto name = c.at("name").get<std::string>();
      try {
        f(name, c);
      } catch (const std::exception &e) {
        std::printf("%s: %s\n", name.c_str(), e.what());
        ++failed;
      }
    }
  };
  each(cases.at("results"), [&](const std::string &name, const Json &c) { results[name] = run_result(c); });
  each(cases.at("layers"), [&](const std::string &name, const Json &c) { results[name] = run_layer(c); });
  each(cases.at("caches"), [&](const std::string &name, const Json &c) { results[name] = run_cache(c); });
  each(cases.at("errors"), [](const std::string &, const Json &c) { expect_refusal(c, [&] { run_call(c); }); });
  std::ofstream(results_path) << results.dump(1) << '\n';
  std::printf("%zu results, %zu layers, %zu caches and %zu errors, %d failed\n", cases.at("results").size(),
              cases.at("layers").size(), cases.at("caches").size(), cases.at("errors").size(), failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace ringattn::conformance

int main(int argc, char **argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: conformance CASES RESULTS\n");
    return EXIT_FAILURE;
  }
  try {
    return ringattn::conformance::run(argv[1], argv[2]);
  } catch (const std::exception &e) {
    std::fprintf(stderr, "conformance: %s\n", e.what());
    return EXIT_FAILURE;
  }
}
