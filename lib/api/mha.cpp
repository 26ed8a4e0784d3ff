#include "mha/mha.h"

#include <array>
#include <cmath>

#include "api/barrier.h"
#include "api/context.h"
#include "api/structs.h"
#include "api/validate.h"
#include "ring/all_reduce.h"

using namespace ringattn;
using namespace ringattn::api;

namespace {

static_assert(static_cast<int>(Rotary::none) == RA_ROTARY_NONE &&
              static_cast<int>(Rotary::halves) == RA_ROTARY_HALVES &&
              static_cast<int>(Rotary::interleaved) == RA_ROTARY_INTERLEAVED);
static_assert(static_cast<int>(Checkpoint::attention) == RA_CHECKPOINT_ATTENTION &&
              static_cast<int>(Checkpoint::all) == RA_CHECKPOINT_ALL &&
              static_cast<int>(Checkpoint::input) == RA_CHECKPOINT_INPUT);

constexpr std::int64_t most_d_model = std::int64_t{1} << 20;

bool to_bool(const char *field, std::int32_t value) {
  require_range(field, value, 0, 1);
  return value == 1;
}

Rotation to_rotation(const ra_mha_desc &m, const Problem &p) {
  require_range("rotary", m.rotary, RA_ROTARY_NONE, RA_ROTARY_INTERLEAVED);
  if (m.rotary == RA_ROTARY_NONE) return {};
  require(std::isfinite(m.rotary_base) && m.rotary_base > 1, "rotary_base is ", m.rotary_base,
          "; must be finite and more than 1");
  require(0 < m.rotary_fraction && m.rotary_fraction <= 1, "rotary_fraction is ", m.rotary_fraction,
          "; must be more than 0 and at most 1");
  const auto pairs =
      static_cast<std::int64_t>(static_cast<double>(m.rotary_fraction) * static_cast<double>(p.head_dim) / 2);
  require(pairs >= 1, "rotary_fraction is ", m.rotary_fraction, " while head_dim is ", p.head_dim,
          "; must be such that at least one pair of elements is turned");
  return {2 * pairs, m.rotary == RA_ROTARY_INTERLEAVED, static_cast<double>(m.rotary_base)};
}

Mha to_mha(const ra_attention_desc &d, const ra_mha_desc &m) {
  Mha mha;
  mha.attention = to_problem(d);
  Problem &p = mha.attention;
  require(p.seqlen_kv == p.seqlen_q, "seqlen_kv is ", p.seqlen_kv, "; must be seqlen_q = ", p.seqlen_q,
          " in a mha, whose keys are its queries' tokens");
  for (const Document &document : p.documents)
    require(document.q_begin == document.kv_begin && document.q_length == document.kv_length,
            "document_offsets_kv differs from document_offsets_q; must be the same, or NULL, in a layer");
  require(!p.has_key_bias, "has_key_bias is 1; must be 0 in a layer");
  require(p.num_sinks == 0, "num_sinks is ", p.num_sinks, "; must be 0 in a layer");
  mha.out_dtype = p.out_dtype;
  mha.dx_dtype = p.grad_dtype;
  p.out_dtype = p.grad_dtype = p.dtype;

  require_range("d_model", m.d_model, 1, most_d_model);
  mha.d_model = m.d_model;
  mha.rotation = to_rotation(m, p);
  mha.has_qkv_bias = to_bool("has_qkv_bias", m.has_qkv_bias);
  mha.has_out_bias = to_bool("has_out_bias", m.has_out_bias);
  mha.normalizes_heads = to_bool("normalize_heads", m.normalize_heads);
  require(m.norm_epsilon >= 0 && std::isfinite(m.norm_epsilon), "norm_epsilon is ", m.norm_epsilon,
          "; must be >= 0 and finite");
  mha.norm_epsilon = m.norm_epsilon;
  require_range("checkpoint", m.checkpoint, RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_INPUT);
  mha.checkpoint = static_cast<Checkpoint>(m.checkpoint);
  return mha;
}

// What ranks agree on beside the attention, as agreement.cpp names it.
auto arguments_of(const Mha &mha, std::int64_t accumulate, std::int64_t reduce, std::int64_t reduced) {
  return std::array{mha.d_model,
                    static_cast<std::int64_t>(mha.out_dtype),
                    static_cast<std::int64_t>(mha.dx_dtype),
                    std::int64_t{mha.rotation.elements == 0    ? 0
                                 : mha.rotation.is_interleaved ? 2
                                                               : 1},
                    mha.rotation.elements,
                    argument_of(static_cast<float>(mha.rotation.base)),
                    std::int64_t{mha.has_qkv_bias},
                    std::int64_t{mha.has_out_bias},
                    std::int64_t{mha.normalizes_heads},
                    argument_of(mha.norm_epsilon),
                    static_cast<std::int64_t>(mha.checkpoint),
                    accumulate,
                    reduce,
                    reduced};
}

MhaMachinery machinery(ra_context &c, const Mha &mha) {
  return {{c.engine, *c.transport, c.trace.get()},
          c.engine.projector(),
          c.rank.rank,
          c.rank.world_size,
          c.plan(mha.attention, Pass::forward),
          c.plan(mha.attention, Pass::backward)};
}

// Rows that follow each other without holes, or further apart.
void require_rows(const char *name, const Tensor &tensor, const Shape &shape) {
  require(shape.rows <= 1 || tensor.seq_stride >= shape.dim, name, ".seq_stride is ", tensor.seq_stride,
          "; must be at least ", shape.dim, ", the elements of a row");
}

// Memory of a call, in the order in which its arguments have it.
class MhaRanges {
 public:
  MhaRanges(const Mha &mha, std::int64_t rows) : mha_(mha), tokens_{mha.attention.batch, rows, 1, mha.d_model} {}

  Tensor input(const char *name, const ra_tensor &t, DType dtype) {
    const Tensor tensor = ranges.input(name, t, dtype, tokens_);
    require_rows(name, tensor, tokens_);
    return tensor;
  }
  Tensor output(const char *name, const ra_tensor &t, DType dtype) { return ranges.output(name, t, dtype, tokens_); }

  template <class Args>
  Weights weights(const Args &a) {
    Weights weights;
    const std::array given{&a.w_q, &a.w_k, &a.w_v, &a.w_o, &a.b_q, &a.b_k, &a.b_v, &a.b_o, &a.norm_q, &a.norm_k};
    const auto sizes = weight_sizes(mha_);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (!is_there(sizes[i].name, sizes[i], given[i]->data)) continue;
      const Shape shape{1, sizes[i].rows, 1, sizes[i].columns};
      const Tensor tensor = ranges.input(sizes[i].name, *given[i], mha_.attention.dtype, shape);
      require_rows(sizes[i].name, tensor, shape);
      weights.*sizes[i].matrix = matrix(tensor, sizes[i]);
    }
    return weights;
  }
  Weights gradients(const ra_mha_backward_args &a) {
    static constexpr std::array names{"dw_q", "dw_k", "dw_v", "dw_o",    "db_q",
                                      "db_k", "db_v", "db_o", "dnorm_q", "dnorm_k"};
    Weights gradients;
    const std::array given{&a.dw_q, &a.dw_k, &a.dw_v, &a.dw_o,    &a.db_q,
                           &a.db_k, &a.db_v, &a.db_o, &a.dnorm_q, &a.dnorm_k};
    const auto sizes = weight_sizes(mha_);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (given[i]->data == nullptr || !is_there(names[i], sizes[i], given[i]->data)) continue;
      gradients.*sizes[i].matrix =
          matrix(ranges.output(names[i], *given[i], DType::float32, {1, sizes[i].rows, 1, sizes[i].columns}), sizes[i]);
    }
    return gradients;
  }

  void block(const char *name, const char *size_name, const void *data, std::size_t size, std::size_t needed,
             bool written) {
    if (needed == 0) {
      require(data == nullptr && size == 0, name, " is set, or ", size_name,
              " is not 0; must be NULL and 0 where none are needed");
      return;
    }
    require(data != nullptr, name, " is NULL; must point to ", needed, " bytes");
    require(size >= needed, size_name, " is ", size, "; must be at least ", needed, " bytes");
    const auto bytes = static_cast<std::int64_t>(needed), alignment = static_cast<std::int64_t>(memory_alignment);
    written ? ranges.output(name, data, {}, bytes, alignment, false)
            : ranges.input(name, data, {}, bytes, alignment, false);
  }
  void workspace(const void *data, std::size_t size, std::size_t needed) {
    if (data == nullptr && size == 0) return;
    require(data != nullptr, "workspace is NULL while workspace_size is ", size, "; must be 0 then");
    block("workspace", "workspace_size", data, size, needed, true);
  }

  Ranges ranges;

 private:
  static Matrix matrix(const Tensor &tensor, const WeightSize &size) {
    return {tensor.data, tensor.dtype, size.rows > 1 ? tensor.seq_stride : size.columns};
  }
  static bool is_there(const char *name, const WeightSize &size, const void *data) {
    if (size.columns > 0) return true;
    require(data == nullptr, name, " is set while the layer has none; must be NULL");
    return false;
  }

  const Mha &mha_;
  const Shape tokens_;
};

void forward(ra_context &c, const ra_attention_desc *desc, const ra_mha_desc *mha, const ra_mha_forward_args *args) {
  const Phase whole_call(c.trace.get(), "MHA forward");
  Phase planning(c.trace.get(), "plan");
  const ra_attention_desc d = read(desc, "desc");
  const Mha layer = to_mha(d, read(mha, "mha"));
  const ra_mha_forward_args a = read(args, "args");
  require_supported(d, layer.attention, c.engine);
  const MhaMachinery on = machinery(c, layer);
  const MhaBytes bytes = mha_bytes(layer, on);
  MhaRanges ranges(layer, on.forward.query_rows());
  MhaForwardCall call;
  call.x = ranges.input("x", a.x, layer.attention.dtype);
  call.weights = ranges.weights(a);
  call.out = ranges.output("out", a.out, layer.out_dtype);
  ranges.block("activations", "activations_size", a.activations, a.activations_size, bytes.activations, true);
  ranges.workspace(a.workspace, a.workspace_size, bytes.forward_workspace);
  ranges.ranges.require_disjoint();
  c.backend->check(ranges.ranges, a.stream);
  call.activations = a.activations;
  call.workspace = a.workspace != nullptr ? a.workspace : c.backend->workspace(bytes.forward_workspace, a.stream);
  planning.end();
  c.together(Operation::mha_forward, layer.attention, arguments_of(layer, 0, 0, 0), a.stream, whole_call,
             [&] { return run_mha_forward(layer, on, call); });
}

void backward(ra_context &c, const ra_attention_desc *desc, const ra_mha_desc *mha, const ra_mha_backward_args *args) {
  const Phase whole_call(c.trace.get(), "MHA backward");
  Phase planning(c.trace.get(), "plan");
  const ra_attention_desc d = read(desc, "desc");
  const Mha layer = to_mha(d, read(mha, "mha"));
  const ra_mha_backward_args a = read(args, "args");
  require_supported(d, layer.attention, c.engine);
  const MhaMachinery on = machinery(c, layer);
  const MhaBytes bytes = mha_bytes(layer, on);
  MhaRanges ranges(layer, on.forward.query_rows());
  MhaBackwardCall call;
  call.dout = ranges.input("dout", a.dout, layer.out_dtype);
  call.x = ranges.input("x", a.x, layer.attention.dtype);
  call.weights = ranges.weights(a);
  if (a.dx.data != nullptr) call.dx = ranges.output("dx", a.dx, layer.dx_dtype);
  call.gradients = ranges.gradients(a);
  call.accumulate = to_bool("accumulate", a.accumulate);
  call.reduce = to_bool("reduce", a.reduce);
  ranges.block("activations", "activations_size", a.activations, a.activations_size, bytes.activations, false);
  ranges.workspace(a.workspace, a.workspace_size, bytes.backward_workspace);
  ranges.ranges.require_disjoint();
  c.backend->check(ranges.ranges, a.stream);
  call.activations = const_cast<void *>(a.activations);
  call.workspace = a.workspace != nullptr ? a.workspace : c.backend->workspace(bytes.backward_workspace, a.stream);
  std::int64_t reduced = 0;
  std::int64_t bit = 1;
  for (const WeightSize &size : weight_sizes(layer)) {
    if (call.reduce && (call.gradients.*size.matrix).data != nullptr) reduced |= bit;
    bit *= 2;
  }
  planning.end();
  c.together(Operation::mha_backward, layer.attention, arguments_of(layer, call.accumulate, call.reduce, reduced),
             a.stream, whole_call, [&] { return run_mha_backward(layer, on, call); });
}

void all_reduce(ra_context &c, const ra_reduce_args *args) {
  const Phase whole_call(c.trace.get(), "all-reduce");
  const ra_reduce_args a = read(args, "args");
  require_range("count", a.count, 0, most_tokens);
  const std::int64_t room = all_reduce_room(a.count, c.rank.world_size) * static_cast<std::int64_t>(sizeof(float));
  Ranges ranges;
  ranges.output("data", a.data, {"data_size", a.data_size}, a.count * static_cast<std::int64_t>(sizeof(float)),
                alignof(float), false);
  if (a.workspace == nullptr) {
    require(a.workspace_size == 0, "workspace is NULL while workspace_size is ", a.workspace_size, "; must be 0 then");
  } else {
    require(a.workspace_size >= static_cast<std::size_t>(room), "workspace_size is ", a.workspace_size,
            "; must be at least ", room, " bytes");
    ranges.output("workspace", a.workspace, {}, room, static_cast<std::int64_t>(memory_alignment), false);
  }
  ranges.require_disjoint();
  c.backend->check(ranges, a.stream);
  void *const workspace =
      a.workspace != nullptr ? a.workspace : c.backend->workspace(static_cast<std::size_t>(room), a.stream);
  c.together(Operation::all_reduce, Problem{}, std::array{a.count}, a.stream, whole_call, [&] {
    Statistics statistics;
    ringattn::all_reduce({c.engine, *c.transport, c.trace.get()}, c.rank.rank, c.rank.world_size, a.data, a.count,
                         static_cast<float *>(workspace), 0, statistics);
    c.transport->wait();  // an abort during the last addition
    return statistics;
  });
}

}  // namespace

extern "C" {

void ra_init_mha_desc(ra_mha_desc *mha, size_t struct_size) { init(mha, struct_size); }
void ra_init_mha_forward_args(ra_mha_forward_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_mha_backward_args(ra_mha_backward_args *args, size_t struct_size) { init(args, struct_size); }
void ra_init_mha_requirements(ra_mha_requirements *requirements, size_t struct_size) {
  init(requirements, struct_size);
}
void ra_init_reduce_args(ra_reduce_args *args, size_t struct_size) { init(args, struct_size); }

ra_status ra_mha_forward(ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                         const ra_mha_forward_args *args, ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    c.exclusively([&] { forward(c, desc, mha, args); });
  });
}

ra_status ra_mha_backward(ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                          const ra_mha_backward_args *args, ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    c.exclusively([&] { backward(c, desc, mha, args); });
  });
}

ra_status ra_all_reduce(ra_context *context, const ra_reduce_args *args, ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    c.exclusively([&] { all_reduce(c, args); });
  });
}

ra_status ra_get_mha_requirements(const ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                                  ra_mha_requirements *requirements, ra_error *error) {
  return guard(error, [&] {
    const ra_context &c = checked(context);
    const ra_attention_desc d = read(desc, "desc");
    const Mha layer = to_mha(d, read(mha, "mha"));
    const Problem &p = layer.attention;
    require_supported(d, p, c.engine);
    const PassPlan forward(p, c.rank.world_size, c.rank.rank, Pass::forward),
        backward(p, c.rank.world_size, c.rank.rank, Pass::backward);
    const MhaBytes bytes = mha_bytes(
        layer, {{c.engine, *c.transport}, c.engine.projector(), c.rank.rank, c.rank.world_size, forward, backward});
    ra_mha_requirements r = defaults<ra_mha_requirements>();
    r.activations = bytes.activations;
    r.forward_workspace = bytes.forward_workspace;
    r.backward_workspace = bytes.backward_workspace;
    const std::int64_t tokens = p.batch * forward.query_rows();
    const double pairs = forward.visible_pairs(), dims = static_cast<double>(p.head_dim),
                 dims_v = static_cast<double>(p.head_dim_v);
    r.forward_flops = projection_flops(layer, Pass::forward, tokens) + 2 * (dims + dims_v) * pairs;
    r.backward_flops = projection_flops(layer, Pass::backward, tokens) + 2 * (3 * dims + 2 * dims_v) * pairs +
                       (layer.keeps_attended() ? 0 : 2 * (dims + dims_v) * pairs);
    write(requirements, "requirements", r);
  });
}

}  // extern "C"
