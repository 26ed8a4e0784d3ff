#include "api/validate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>

namespace ringattn::api {
namespace {

static_assert(static_cast<int>(DType::float32) == RA_DTYPE_FLOAT32 &&
              static_cast<int>(DType::bfloat16) == RA_DTYPE_BFLOAT16 &&
              static_cast<int>(DType::float16) == RA_DTYPE_FLOAT16);
static_assert(static_cast<int>(Sharding::contiguous) == RA_SHARDING_CONTIGUOUS &&
              static_cast<int>(Sharding::zigzag) == RA_SHARDING_ZIGZAG &&
              static_cast<int>(Sharding::striped) == RA_SHARDING_STRIPED);
static_assert(static_cast<int>(Side::query) == RA_SIDE_QUERY && static_cast<int>(Side::key_value) == RA_SIDE_KEY_VALUE);
static_assert(static_cast<int>(Schedule::automatic) == RA_SCHEDULE_AUTO &&
              static_cast<int>(Schedule::ring) == RA_SCHEDULE_RING &&
              static_cast<int>(Schedule::all_gather) == RA_SCHEDULE_ALL_GATHER &&
              static_cast<int>(Schedule::pass_q) == RA_SCHEDULE_PASS_Q);
static_assert(static_cast<int>(SliceKind::full) == RA_MASK_SLICE_KIND_FULL &&
              static_cast<int>(SliceKind::causal) == RA_MASK_SLICE_KIND_CAUSAL &&
              static_cast<int>(SliceKind::inverse_causal) == RA_MASK_SLICE_KIND_INVERSE_CAUSAL &&
              static_cast<int>(SliceKind::bidirectional_causal) == RA_MASK_SLICE_KIND_BIDIRECTIONAL_CAUSAL);
static_assert(static_cast<int>(DilationPhase::blocks_of_heads) == RA_DILATION_PHASE_BLOCKS_OF_HEADS &&
              static_cast<int>(DilationPhase::interleaved_heads) == RA_DILATION_PHASE_INTERLEAVED_HEADS);
static_assert(static_cast<int>(DilationPadding::masked) == RA_DILATION_PADDING_MASKED &&
              static_cast<int>(DilationPadding::zero_keys) == RA_DILATION_PADDING_ZERO_KEYS);
static_assert(static_cast<int>(DilationGradient::exact) == RA_DILATION_GRADIENT_EXACT &&
              static_cast<int>(DilationGradient::constant_weights) == RA_DILATION_GRADIENT_CONSTANT_WEIGHTS);

// A product of non-negative counts, refused beyond most_tensor_bytes with the name of what it counts. A 0 among them hides no
// other factor: batch * heads are counted with too where there is no token.
std::int64_t checked_product(const char *what, std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  bool is_zero = false;
  for (const std::int64_t factor : factors) {
    const bool overflows = __builtin_mul_overflow(product, std::max<std::int64_t>(factor, 1), &product);  // no division
    require(!overflows && product <= most_tensor_bytes, what, " has more than 2^58 = ", most_tensor_bytes,
            " elements or bytes, a length of 0 counted as 1: a factor is ", factor);
    is_zero = is_zero || factor == 0;
  }
  return is_zero ? 0 : product;
}

void require_offsets(const char *field, const std::int64_t *offsets, std::int64_t count, const char *length_field,
                     std::int64_t length) {
  require(offsets[0] == 0, field, "[0] is ", offsets[0], "; must be 0");
  for (std::int64_t d = 1; d <= count; ++d)
    require(offsets[d] >= offsets[d - 1], field, "[", d, "] is ", offsets[d], "; must be at least ", field, "[", d - 1,
            "] = ", offsets[d - 1]);
  require(offsets[count] == length, field, "[", count, "] is ", offsets[count], "; must be ", length_field, " = ",
          length);
}

std::vector<Document> to_documents(const ra_attention_desc &d, std::int64_t seqlen_kv) {
  require_range("num_documents", d.num_documents, 0, most_documents);
  if (d.num_documents == 0) {
    require(d.document_offsets_q == nullptr, "document_offsets_q is set while num_documents is 0; must be NULL");
    require(d.document_offsets_kv == nullptr, "document_offsets_kv is set while num_documents is 0; must be NULL");
    return {{.q_begin = 0, .q_length = d.seqlen_q, .kv_begin = 0, .kv_length = seqlen_kv}};
  }
  require(d.document_offsets_q != nullptr, "document_offsets_q is NULL while num_documents is ", d.num_documents,
          "; must have ", d.num_documents + 1, " entries");
  require_offsets("document_offsets_q", d.document_offsets_q, d.num_documents, "seqlen_q", d.seqlen_q);
  const std::int64_t *const offsets_kv =
      d.document_offsets_kv != nullptr ? d.document_offsets_kv : d.document_offsets_q;
  if (d.document_offsets_kv == nullptr)
    require(seqlen_kv == d.seqlen_q, "document_offsets_kv is NULL while seqlen_kv is ", seqlen_kv,
            "; seqlen_kv must then be seqlen_q = ", d.seqlen_q);
  else
    require_offsets("document_offsets_kv", offsets_kv, d.num_documents, "seqlen_kv", seqlen_kv);
  std::vector<Document> documents;
  documents.reserve(static_cast<std::size_t>(d.num_documents));
  for (std::int64_t i = 0; i < d.num_documents; ++i)
    documents.push_back({.q_begin = d.document_offsets_q[i],
                         .q_length = d.document_offsets_q[i + 1] - d.document_offsets_q[i],
                         .kv_begin = offsets_kv[i],
                         .kv_length = offsets_kv[i + 1] - offsets_kv[i]});
  return documents;
}

// A list of the host's, of `count` times `factor` numbers where `count_field` says so, else NULL.
template <class T>
void require_list(const char *field, const T *list, const char *count_field, std::int64_t count,
                  std::int64_t factor = 1) {
  if (count == 0)
    require(list == nullptr, field, " is set while ", count_field, " is 0; must be NULL");
  else
    require(list != nullptr, field, " is NULL while ", count_field, " is ", count, "; must have ", factor * count,
            " entries");
}

// Refuses two slices with a pair in common. A sweep over the queries: `open` has, by their first key, the rectangles that have the
// query that it has come to. Those are apart from each other, so one that begins there is compared with its two neighbours only.
// O(n log n) for n slices.
void require_disjoint(const std::vector<MaskSlice> &slices) {
  std::vector<std::size_t> by_begin;
  for (std::size_t n = 0; n < slices.size(); ++n)
    if (slices[n].q_begin < slices[n].q_end && slices[n].kv_begin < slices[n].kv_end) by_begin.push_back(n);
  std::vector<std::size_t> by_end = by_begin;
  const auto before = [&](std::int64_t MaskSlice::*place) {
    return [&slices, place](std::size_t a, std::size_t b) { return slices[a].*place < slices[b].*place; };
  };
  std::stable_sort(by_begin.begin(), by_begin.end(), before(&MaskSlice::q_begin));
  std::stable_sort(by_end.begin(), by_end.end(), before(&MaskSlice::q_end));
  std::map<std::int64_t, std::size_t> open;
  auto ended = by_end.begin();
  for (const std::size_t n : by_begin) {
    const MaskSlice &slice = slices[n];
    for (; slices[*ended].q_end <= slice.q_begin; ++ended) open.erase(slices[*ended].kv_begin);
    const auto require_apart = [&](std::size_t other) {
      const MaskSlice &o = slices[other];
      require(slice.kv_end <= o.kv_begin || o.kv_end <= slice.kv_begin, "mask_slices has slice ", std::max(n, other),
              " overlap slice ", std::min(n, other), ", as both have query ", slice.q_begin, " and key ",
              std::max(slice.kv_begin, o.kv_begin), "; no two may have a pair in common");
    };
    const auto next = open.lower_bound(slice.kv_begin);
    if (next != open.end()) require_apart(next->second);
    if (next != open.begin()) require_apart(std::prev(next)->second);
    open.emplace_hint(next, slice.kv_begin, n);
  }
}

std::vector<MaskSlice> to_slices(const ra_attention_desc &d, const Problem &p) {
  require_range("num_mask_slices", d.num_mask_slices, 0, most_slices);
  constexpr std::int64_t numbers = 5;  // of a slice
  require_list("mask_slices", d.mask_slices, "num_mask_slices", d.num_mask_slices, numbers);
  std::vector<MaskSlice> slices;
  slices.reserve(static_cast<std::size_t>(d.num_mask_slices));
  for (std::int64_t n = 0; n < d.num_mask_slices; ++n) {
    const std::int64_t *const x = d.mask_slices + numbers * n;
    const auto require_number = [&](std::int64_t index, const char *name, std::int64_t low, const char *limit,
                                    std::int64_t high) {
      require(low <= x[index] && x[index] <= high, "mask_slices[", numbers * n + index, "], ", name, " of slice ", n,
              ", is ", x[index], "; must be ", low, " .. ", limit, high);
    };
    require_number(0, "q_begin", 0, "seqlen_q = ", p.seqlen_q);
    require_number(1, "q_end", x[0], "seqlen_q = ", p.seqlen_q);
    require_number(2, "kv_begin", 0, "seqlen_kv = ", p.seqlen_kv);
    require_number(3, "kv_end", x[2], "seqlen_kv = ", p.seqlen_kv);
    require_number(4, "the kind", RA_MASK_SLICE_KIND_FULL, "", RA_MASK_SLICE_KIND_BIDIRECTIONAL_CAUSAL);
    slices.push_back({x[0], x[1], x[2], x[3], static_cast<SliceKind>(x[4])});
  }
  require_disjoint(slices);
  return slices;
}

void read_modifiers(const ra_attention_desc &d, Problem &p) {
  if (d.alibi_slopes != nullptr) {
    for (std::int64_t h = 0; h < p.num_heads_q; ++h)
      require(std::isfinite(d.alibi_slopes[h]), "alibi_slopes[", h, "] is ", d.alibi_slopes[h], "; must be finite");
    p.alibi_slopes.assign(d.alibi_slopes, d.alibi_slopes + p.num_heads_q);
  }
  require_range("num_sinks", d.num_sinks, 0, most_sinks);
  p.num_sinks = d.num_sinks;
  require_range("has_key_bias", d.has_key_bias, 0, 1);
  p.has_key_bias = d.has_key_bias != 0;
  require(0 <= d.dropout_probability && d.dropout_probability < 1, "dropout_probability is ", d.dropout_probability,
          "; must be at least 0 and less than 1");
  if (d.dropout_probability > 0)
    p.dropout = {d.dropout_probability, static_cast<std::uint64_t>(d.dropout_seed),
                 static_cast<std::uint64_t>(d.dropout_offset)};
}

void read_dilation(const ra_attention_desc &d, Problem &p) {
  require_range("num_branches", d.num_branches, 0, most_branches);
  require_list("segment_lengths", d.segment_lengths, "num_branches", d.num_branches);
  require_list("dilations", d.dilations, "num_branches", d.num_branches);
  require_range("dilation_phase", d.dilation_phase, RA_DILATION_PHASE_BLOCKS_OF_HEADS,
                RA_DILATION_PHASE_INTERLEAVED_HEADS);
  require_range("dilation_padding", d.dilation_padding, RA_DILATION_PADDING_MASKED, RA_DILATION_PADDING_ZERO_KEYS);
  require_range("dilation_gradient", d.dilation_gradient, RA_DILATION_GRADIENT_EXACT,
                RA_DILATION_GRADIENT_CONSTANT_WEIGHTS);
  if (d.num_branches == 0) return;
  for (std::int64_t n = 0; n < d.num_branches; ++n) {
    require(d.segment_lengths[n] >= 1, "segment_lengths[", n, "] is ", d.segment_lengths[n], "; must be at least 1");
    // Each segment is a problem to itself, and listed.
    require(p.seqlen_kv / d.segment_lengths[n] <= most_segments, "segment_lengths[", n, "] is ", d.segment_lengths[n],
            "; must be such that seqlen_kv, ", p.seqlen_kv, ", has at most 2^20 = ", most_segments, " segments");
    require(1 <= d.dilations[n] && d.dilations[n] <= most_tokens, "dilations[", n, "] is ", d.dilations[n],
            "; must be 1 .. 2^48 = ", most_tokens);
    p.branches.push_back({std::min(d.segment_lengths[n], most_tokens), d.dilations[n]});
  }
  p.dilation_phase = static_cast<DilationPhase>(d.dilation_phase);
  p.dilation_padding = static_cast<DilationPadding>(d.dilation_padding);
  p.dilation_gradient = static_cast<DilationGradient>(d.dilation_gradient);
  if (p.dilation_padding != DilationPadding::zero_keys) return;
  constexpr const char *needs = " with RA_DILATION_PADDING_ZERO_KEYS, which has a full mask only; must be ";
  require(!p.causal, "mask is ", d.mask, needs, +RA_MASK_FULL);
  require(d.window_left == -1, "window_left is ", d.window_left, needs, -1);
  require(d.window_right == -1, "window_right is ", d.window_right, needs, -1);
  require(p.slices.empty(), "num_mask_slices is ", d.num_mask_slices, needs, 0);
}

// `field` is whatever says it: "q.size", or "lse_size" and what of the arrays that it speaks of.
template <class... Field>
void require_size(std::size_t size, std::int64_t bytes, const char *name, const Field &...field) {
  require(size == 0 || size >= static_cast<std::size_t>(bytes), field..., " is ", size, "; must be at least ", bytes,
          " bytes for ", name);
}

}  // namespace

void require_range(const char *field, std::int64_t value, std::int64_t low, std::int64_t high) {
  require(low <= value && value <= high, field, " is ", value, "; must be ", low, " .. ", high);
}

DType to_dtype(const char *field, std::int32_t dtype) {
  require_range(field, dtype, RA_DTYPE_FLOAT32, RA_DTYPE_FLOAT16);
  return static_cast<DType>(dtype);
}

DType to_dtype(const char *field, std::int32_t dtype, DType same) {
  if (dtype == RA_DTYPE_SAME) return same;
  require_range(field, dtype, RA_DTYPE_SAME, RA_DTYPE_FLOAT16);
  return static_cast<DType>(dtype);
}

Side to_side(std::int32_t side) {
  require_range("side", side, RA_SIDE_QUERY, RA_SIDE_KEY_VALUE);
  return static_cast<Side>(side);
}

Problem to_problem(const ra_attention_desc &d) {
  Problem p;
  require_range("batch", d.batch, 1, most_tokens);
  require_range("seqlen_q", d.seqlen_q, 0, most_tokens);
  require_range("seqlen_kv", d.seqlen_kv, -1, most_tokens);
  require_range("num_heads_q", d.num_heads_q, 1, most_heads);
  require_range("num_heads_kv", d.num_heads_kv, 0, most_heads);
  require_range("head_dim", d.head_dim, 1, most_head_dim);
  require_range("head_dim_v", d.head_dim_v, 0, most_head_dim);
  p.batch = d.batch;
  p.seqlen_q = d.seqlen_q;
  p.seqlen_kv = d.seqlen_kv < 0 ? d.seqlen_q : d.seqlen_kv;
  p.num_heads_q = d.num_heads_q;
  p.num_heads_kv = d.num_heads_kv == 0 ? d.num_heads_q : d.num_heads_kv;
  p.head_dim = d.head_dim;
  p.head_dim_v = d.head_dim_v == 0 ? d.head_dim : d.head_dim_v;
  require(p.num_heads_q % p.num_heads_kv == 0, "num_heads_q is ", p.num_heads_q,
          "; must be a multiple of num_heads_kv = ", p.num_heads_kv);
  const std::int64_t widest = std::max(p.head_dim, p.head_dim_v) * size_of(DType::float32);
  checked_product("batch * seqlen_q * num_heads_q * head_dim", {p.batch, p.seqlen_q, p.num_heads_q, widest});
  checked_product("batch * seqlen_kv * num_heads_kv * head_dim", {p.batch, p.seqlen_kv, p.num_heads_kv, widest});

  p.dtype = to_dtype("dtype", d.dtype);
  p.out_dtype = to_dtype("out_dtype", d.out_dtype, p.dtype);
  p.grad_dtype = to_dtype("grad_dtype", d.grad_dtype, p.dtype);

  require_range("sharding", d.sharding, RA_SHARDING_CONTIGUOUS, RA_SHARDING_STRIPED);
  p.sharding = static_cast<Sharding>(d.sharding);
  if (p.sharding == Sharding::striped) {
    require(d.stripe >= 1, "stripe is ", d.stripe, "; must be at least 1");
    p.stripe = std::min(d.stripe, most_tokens);
  }

  require_range("mask", d.mask, RA_MASK_FULL, RA_MASK_CAUSAL);
  require_range("mask_alignment", d.mask_alignment, RA_MASK_ALIGNMENT_TOP_LEFT, RA_MASK_ALIGNMENT_BOTTOM_RIGHT);
  require(d.window_left >= -1, "window_left is ", d.window_left, "; must be at least -1");
  require(d.window_right >= -1, "window_right is ", d.window_right, "; must be at least -1");
  p.causal = d.mask == RA_MASK_CAUSAL;
  p.bottom_right = d.mask_alignment == RA_MASK_ALIGNMENT_BOTTOM_RIGHT;
  p.window_left = d.window_left;
  p.window_right = d.window_right;

  require(std::isfinite(d.softmax_scale), "softmax_scale is ", d.softmax_scale, "; must be finite");
  require(std::isfinite(d.softcap) && d.softcap >= 0, "softcap is ", d.softcap, "; must be finite and at least 0");
  p.softmax_scale = d.softmax_scale != 0 ? d.softmax_scale : 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  p.softcap = d.softcap;

  p.documents = to_documents(d, p.seqlen_kv);
  if (d.kv_lengths != nullptr) {
    for (std::int64_t b = 0; b < p.batch; ++b)
      require(0 <= d.kv_lengths[b] && d.kv_lengths[b] <= p.seqlen_kv, "kv_lengths[", b, "] is ", d.kv_lengths[b],
              "; must be 0 .. seqlen_kv = ", p.seqlen_kv);
    p.kv_lengths.assign(d.kv_lengths, d.kv_lengths + p.batch);
  }

  p.slices = to_slices(d, p);
  read_modifiers(d, p);
  read_dilation(d, p);

  require_range("schedule", d.schedule, RA_SCHEDULE_AUTO, RA_SCHEDULE_PASS_Q);
  require(d.reserved == 0, "reserved is ", d.reserved, "; must be 0");
  require_range("num_chunks", d.num_chunks, 0, most_chunks);
  p.num_chunks = d.num_chunks;
  p.schedule = static_cast<Schedule>(d.schedule);  // one that is not supported is refused before it is looked at
  require_range("gather_bytes", d.gather_bytes, 0, most_tensor_bytes);
  p.gather_bytes = d.gather_bytes;
  return p;
}

void require_schedule(const ra_attention_desc &desc) {
  if (desc.schedule > RA_SCHEDULE_ALL_GATHER)
    fail(RA_STATUS_NOT_SUPPORTED, "schedule is ", desc.schedule,
         "; this build has RA_SCHEDULE_AUTO = ", +RA_SCHEDULE_AUTO, ", RA_SCHEDULE_RING = ", +RA_SCHEDULE_RING,
         " and RA_SCHEDULE_ALL_GATHER = ", +RA_SCHEDULE_ALL_GATHER);
}

void require_supported(const ra_attention_desc &desc, const Problem &problem, const Engine &engine) {
  require_schedule(desc);
  const std::string reason = engine.refusal(problem);
  if (!reason.empty()) fail(RA_STATUS_NOT_SUPPORTED, reason);
}

Tensor Ranges::input(const char *name, const ra_tensor &t, DType dtype, const Shape &shape) {
  return add(name, t, dtype, shape, false);
}
Tensor Ranges::output(const char *name, const ra_tensor &t, DType dtype, const Shape &shape) {
  return add(name, t, dtype, shape, true);
}

Tensor Ranges::add(const char *name, const ra_tensor &t, DType dtype, const Shape &shape, bool written) {
  const bool empty = checked_product(name, {shape.batch, shape.rows, shape.heads, shape.dim, size_of(dtype)}) == 0;
  Tensor tensor = packed_tensor(t.data, dtype, shape.rows, shape.heads, shape.dim);
  struct Dimension {
    const char *field;
    std::int64_t stride, extent;
  };
  std::array<Dimension, 3> axes{{{"batch_stride", t.batch_stride, shape.batch},
                                 {"seq_stride", t.seq_stride, shape.rows},
                                 {"head_stride", t.head_stride, shape.heads}}};
  const bool packed =
      t.batch_stride == RA_STRIDE_PACKED && t.seq_stride == RA_STRIDE_PACKED && t.head_stride == RA_STRIDE_PACKED;
  for (Dimension &axis : axes) {
    const bool repeats = axis.stride == RA_STRIDE_REPEAT && !written;
    require(axis.stride >= 0 || repeats, name, ".", axis.field, " is ", axis.stride, "; must be at least 0",
            written ? "" : ", or RA_STRIDE_REPEAT = -1");
    require(packed || empty || axis.stride != RA_STRIDE_PACKED || axis.extent <= 1, name, ".", axis.field,
            " is 0 beside strides that are not; all or none must be RA_STRIDE_PACKED = 0",
            written ? "" : ", and to repeat a slice RA_STRIDE_REPEAT = -1");
    if (repeats) axis.stride = 0;
  }
  if (empty) return tensor;
  require(t.data != nullptr, name, ".data is NULL; must point to ", shape.count(), " elements");
  require(reinterpret_cast<std::uintptr_t>(t.data) % static_cast<std::uintptr_t>(size_of(dtype)) == 0, name,
          ".data is ", t.data, "; must be aligned to ", size_of(dtype), " bytes");
  std::int64_t last = shape.count() - 1;  // offset of the last element
  if (!packed) {
    tensor.batch_stride = axes[0].stride;
    tensor.seq_stride = axes[1].stride;
    tensor.head_stride = axes[2].stride;
    last = shape.dim - 1;
    for (const Dimension &axis : axes) {
      constexpr std::int64_t farthest = std::int64_t{1} << 56;  // elements: beyond any address
      const std::int64_t most = farthest / std::max<std::int64_t>(axis.extent - 1, 1);
      require(axis.stride <= most, name, ".", axis.field, " is ", axis.stride, "; must be at most ", most,
              ": the tensor must end before element 2^56");
      last += axis.stride * (axis.extent - 1);
    }
    if (written) {  // from the densest axis outwards, each must step over all that is inside
      std::sort(axes.begin(), axes.end(), [](const Dimension &a, const Dimension &b) { return a.stride < b.stride; });
      std::int64_t inside = shape.dim;
      for (const Dimension &axis : axes) {
        if (axis.extent == 1) continue;
        require(axis.stride >= inside, name, ".", axis.field, " is ", axis.stride, "; must be at least ", inside,
                ", or elements of this output overlap");
        inside += (axis.extent - 1) * axis.stride;
      }
    }
  }
  const std::int64_t bytes = (last + 1) * size_of(dtype);
  require_size(t.size, bytes, name, name, ".size");
  const auto begin = reinterpret_cast<std::uintptr_t>(t.data);
  const auto axis = [&](std::int64_t stride, std::int64_t extent) {
    return Axis{extent > 1 ? stride * size_of(dtype) : 0, extent};
  };
  ranges_.push_back({name,
                     begin,
                     begin + static_cast<std::uintptr_t>(bytes),
                     written,
                     shape.dim * size_of(dtype),
                     {axis(tensor.batch_stride, shape.batch), axis(tensor.seq_stride, shape.rows),
                      axis(tensor.head_stride, shape.heads)}});
  return tensor;
}

void Ranges::input(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment,
                   bool optional) {
  add(name, data, size, bytes, alignment, optional, false);
}
void Ranges::output(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment,
                    bool optional) {
  add(name, data, size, bytes, alignment, optional, true);
}

void Ranges::add(const char *name, const void *data, Size size, std::int64_t bytes, std::int64_t alignment,
                 bool optional, bool written) {
  if (bytes == 0 || (optional && data == nullptr)) return;
  require(data != nullptr, name, " is NULL; must point to ", bytes, " bytes");
  require_size(size.bytes, bytes, name, size.field);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  require(begin % static_cast<std::uintptr_t>(alignment) == 0, name, " is ", data, "; must be aligned to ", alignment,
          " bytes");
  ranges_.push_back({name, begin, begin + static_cast<std::uintptr_t>(bytes), written, bytes, {}});
}

// Bytes from the first one on within which all others lie modulo `modulus`.
std::int64_t Ranges::Range::arc(std::int64_t modulus) const {
  std::int64_t bytes = row_bytes;
  for (const Axis &axis : axes)
    if (axis.stride % modulus != 0) bytes += axis.stride * (axis.extent - 1);
  return bytes;
}

// Whether one of the strides shows that two tensors share no byte although their ranges cross: modulo this stride, all bytes
// of one lie in an arc apart from that of the other. So do dq, dk and dv in a buffer [batch, seq, 3, head, dim], by seq_stride.
bool Ranges::are_interleaved(const Range &a, const Range &b) {
  for (const Range *range : {&a, &b})
    for (const Axis &axis : range->axes) {
      if (axis.stride <= 0) continue;
      const auto modulus = static_cast<std::uintptr_t>(axis.stride);
      const auto distance = static_cast<std::int64_t>(
          a.begin <= b.begin ? (b.begin - a.begin) % modulus : (modulus - (a.begin - b.begin) % modulus) % modulus);
      if (a.arc(axis.stride) <= distance && distance + b.arc(axis.stride) <= axis.stride) return true;
    }
  return false;
}

void Ranges::require_disjoint(bool allow_in_place) const {
  for (std::size_t i = 0; i < ranges_.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      const Range &a = ranges_[i], &b = ranges_[j];
      if (!a.written && !b.written) continue;
      if (a.end <= b.begin || b.end <= a.begin || are_interleaved(a, b)) continue;
      if (allow_in_place && a.written != b.written && a.begin == b.begin && a.end == b.end && a.axes == b.axes)
        continue;
      const Range &output = a.written ? a : b, &other = a.written ? b : a;
      fail(RA_STATUS_INVALID_ARGUMENT, output.name, " overlaps ", other.name, ": its ", output.end - output.begin,
           " bytes must be apart from the other's ", other.end - other.begin, ", or interleaved with them by a stride");
    }
}

}  // namespace ringattn::api
