// A forward step by cuDNN:
//
//   flag = whether K or V of the chunk have a number that is not finite
//   for each piece of the queries, and each of the keys, as far as it sees some:         a rectangle (rectangle.h), which has a plan
//     cuDNN: (O', lse') of the rectangle alone, in fp32, into scratch
//     merge: (O, max, sum) of its rows take them in; begun, or ended, where the step does that           (merge.h)
//     if flag: the portable kernels instead of merge
//
// cuDNN multiplies hidden weights, which are 0, with V, so that in a row with a hidden key NaN would come of what the row may not see:
// hence the flag. Where one rectangle is all there is in a pass, its results are the step's: cuDNN rounds them and writes them where
// they belong, and merge has nothing to do.
//
// What cuDNN computes is what our kernels with rounded weights compute (portable.h, Variant): scores and sums in fp32, weights rounded to
// dtype, O in fp32 until its end. That it takes fp32 for O, on GPUs from 8.0 to 10.0, follows from plans that it makes without a GPU
// (tests/api/cudnn_test.cpp).
//
// Not the backward pass. Of cuDNN 9.18's two ways to dQ the one adds in fp32 in whatever order its blocks come; the other, which is
// deterministic, rounds dQ of one call to 16 bits, so that no second chunk could be added to it, and keeps 2 bytes of every pair of a query
// and a key of every head on Hopper, which is not linear in the sequence. With several query heads to one of keys it rounds dK and dV of
// each before it adds them.
#include "engine/cuda/cudnn_engine.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "engine/cuda/merge.h"
#include "engine/cuda/portable.h"
#include "engine/cuda/step.h"

namespace ringattn::cuda {
namespace {

// What a plan may ask for. Those of cuDNN 9.18 ask for 256 bytes on Hopper and for none elsewhere. Only those for few rows, which share out
// the keys among blocks, ask for more: they are not wanted.
constexpr std::size_t most_workspace = 4096;
constexpr std::size_t workspace_alignment = 256;
constexpr std::size_t most_plans = 256;

// Where cuDNN is taken to be faster than the portable kernels: where it has kernels of its own for the GPU, whose matrix instructions ours
// do not use, so long as a step is not over before it has begun. As others have published; none of it has been measured here.
struct Faster {
  Capability from, to;         // of the GPU
  std::int64_t head_dim;       // and head_dim_v
  std::int64_t rows_and_keys;  // each at least
};
constexpr Faster faster[] = {{90, 99, 64, 512}, {90, 99, 128, 512}, {100, 109, 64, 512}, {100, 109, 128, 512}};

std::int64_t length_of(std::span<const Piece> pieces) {
  std::int64_t length = 0;
  for (const Piece& piece : pieces) length += piece.length;
  return length;
}

CudnnShape::Strides strides_of(const Tensor& t) { return {t.batch_stride, t.seq_stride, t.head_stride}; }

bool is_aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

struct Scratch {
  std::int32_t* flag = nullptr;
  std::byte* workspace = nullptr;
  float* out = nullptr;  // of one rectangle
  float* lse = nullptr;

  static Scratch take(Arena& arena, const Problem& p, std::int64_t rows) {
    Scratch scratch;
    scratch.flag = arena.take<std::int32_t>(1);
    std::byte* const workspace = arena.take<std::byte>(most_workspace + workspace_alignment);
    const std::uintptr_t misaligned = reinterpret_cast<std::uintptr_t>(workspace) % workspace_alignment;
    if (workspace != nullptr) scratch.workspace = workspace + (workspace_alignment - misaligned);
    scratch.out = arena.take<float>(p.batch * rows * p.num_heads_q * p.head_dim_v);
    scratch.lse = arena.take<float>(p.batch * rows * p.num_heads_q);
    return scratch;
  }
};

CudnnShape shape_of(const Problem& p, const ForwardStep& step, const CudnnCall& call) {
  const Rectangle& r = *call.rectangle;
  CudnnShape shape;
  shape.dtype = p.dtype;
  shape.out_dtype = call.direct ? p.out_dtype : DType::float32;
  shape.batch = p.batch;
  shape.num_heads_q = p.num_heads_q;
  shape.num_heads_kv = p.num_heads_kv;
  shape.head_dim = p.head_dim;
  shape.head_dim_v = p.head_dim_v;
  shape.rows = r.rows;
  shape.keys = r.keys;
  shape.lower = r.band.lower;
  shape.upper = r.band.upper;
  shape.softmax_scale = p.softmax_scale;
  shape.q = strides_of(step.q);
  shape.k = strides_of(step.k);
  shape.v = strides_of(step.v);
  shape.out =
      strides_of(call.direct ? step.out : packed_tensor(nullptr, DType::float32, r.rows, p.num_heads_q, p.head_dim_v));
  shape.has_lse = !call.direct || step.lse != nullptr;
  shape.lse_head_stride = r.rows;
  return shape;
}

void enqueued(int error, const char* kernel) { check(static_cast<cudaError_t>(error), kernel); }

}  // namespace

std::string cudnn_refusal(const Problem& p, Pass pass) {
  constexpr std::int64_t piece = 8;  // elements of 16 bytes
  constexpr std::int64_t most_band = std::int64_t{1} << 24;
  if (pass == Pass::backward) return "its dQ is not deterministic, or rounded before it is complete";
  if (p.dtype == DType::float32) return text("dtype is float32; it takes 16 bits");
  if (!p.slices.empty()) return "mask_slices is set";
  if (!p.branches.empty()) return text("num_branches is ", p.branches.size());
  if (p.is_partial) return "it is a layer of another problem";
  if (choose_forward(p).exact_weights)
    return "it rounds weights to dtype, which is too coarse for out_dtype or grad_dtype, or for so few queries, keys "
           "or elements";
  for (const auto& [field, dim] : {std::pair{"head_dim", p.head_dim}, std::pair{"head_dim_v", p.head_dim_v}})
    if (dim % piece != 0) return text(field, " is ", dim, "; must be a multiple of ", piece);
  if (p.softcap != 0) return text("softcap is ", p.softcap);
  if (!(p.softmax_scale > 0)) return text("softmax_scale is ", p.softmax_scale, "; must be above 0");
  if (!p.alibi_slopes.empty()) return "alibi_slopes is set";
  if (p.has_key_bias) return "key_bias is set";
  if (p.num_sinks > 0) return "sinks is set";
  if (p.dropout.probability != 0) return text("dropout is ", p.dropout.probability);
  if (!p.kv_lengths.empty()) return "kv_lengths is set";
  if (p.documents.size() != 1) return text("num_documents is ", p.documents.size());
  if (p.window_left >= most_band) return text("window_left is ", p.window_left, "; must be less than ", most_band);
  return {};
}

std::string cudnn_is_slower(const Problem& p, Capability capability, std::int64_t rows, std::int64_t keys) {
  const auto on_this = [&](const Faster& f) {
    return (capability == any_capability || (f.from <= capability && capability <= f.to)) && p.head_dim == f.head_dim &&
           p.head_dim_v == f.head_dim;
  };
  const Faster* const rule = std::find_if(std::begin(faster), std::end(faster), on_this);
  if (rule == std::end(faster))
    return text("not taken to be faster on compute capability ", dotted(capability), " with head_dim ", p.head_dim,
                " and head_dim_v ", p.head_dim_v);
  if (std::min(rows, keys) >= rule->rows_and_keys) return {};
  return text("not taken to be faster for ", rows, " queries and ", keys, " keys; from ", rule->rows_and_keys, " on");
}

bool cudnn_is_ever_faster(Capability capability) {
  return std::any_of(std::begin(faster), std::end(faster),
                     [&](const Faster& f) { return f.from <= capability && capability <= f.to; });
}

namespace {

WorkItem part_of(WorkItem item, std::span<const Piece> queries, std::span<const Piece> keys) {
  item.queries = queries;
  item.keys = keys;
  return item;
}

}  // namespace

std::string divide(const ForwardStep& step, std::vector<CudnnCall>& calls) {
  calls.clear();
  bool sees = false;
  for (const WorkItem& item : step.items)
    for (std::size_t n = 0; n < item.queries.size(); ++n) {
      const std::span<const Piece> queries = item.queries.subspan(n, 1);
      const std::size_t first_call = calls.size();
      for (std::size_t m = 0; m < item.keys.size(); ++m) {
        CudnnCall call{part_of(item, queries, item.keys.subspan(m, 1)), {}, false, false, false};
        const std::string reason = find_rectangle(item.band, queries[0], item.keys[m], call.rectangle);
        if (!reason.empty()) return reason;
        if (!call.rectangle) continue;
        const Rectangle& r = *call.rectangle;
        if (r.band.lower != -Band::unbounded && r.rows > r.keys)
          return text("a window of ", r.keys, " keys hides some of them from the last of ", r.rows, " queries");
        calls.push_back(call);
        sees = true;
      }
      if (calls.size() == first_call) {
        if (!step.first && !step.last) continue;
        calls.push_back({part_of(item, queries, {}), {}, false, false, false});
      }
      calls[first_call].first = step.first;
      calls.back().last = step.last;
    }
  if (!sees) return "no query sees a key";
  if (!step.first || !step.last) return {};
  const std::optional<Rectangle>& only = calls[0].rectangle;
  if (calls.size() > 1) return "a pass of one step is not one rectangle";
  if (only->rows != calls[0].item.queries[0].length)
    return text("in a pass of one step ", calls[0].item.queries[0].length - only->rows, " queries see no key");
  calls[0].direct = true;
  return {};
}

std::string CudnnEngine::use(Queue& queue) {
  queue_ = &queue;
  capability_ = capability_of(queue.device());
  if (queue.num_sms() > 0) return text("num_sms is ", queue.num_sms(), ", and cuDNN would take them all");
  if (taken_ == Taken::where_faster && !cudnn_is_ever_faster(capability_))
    return text("not taken to be faster on compute capability ", dotted(capability_));
  const OnDevice on(queue.device());
  try {
    cudnn_ = open_cudnn();
  } catch (const Error& error) {
    if (error.status != RA_STATUS_NOT_SUPPORTED) throw;
    return error.message;
  }
  return {};
}

std::string CudnnEngine::refusal(const Problem& p, Pass pass) const {
  std::string reason = cudnn_refusal(p, pass);
  if (reason.empty() && taken_ == Taken::where_faster)
    reason = cudnn_is_slower(p, capability_, p.seqlen_q, p.seqlen_kv);
  return reason;
}

std::size_t CudnnEngine::scratch_bytes(const Problem& p, Pass pass, std::int64_t longest_piece, bool only_step) const {
  if (!cudnn_refusal(p, pass).empty()) return 0;
  if (taken_ == Taken::where_faster && !cudnn_is_slower(p, any_capability, p.seqlen_q, p.seqlen_kv).empty()) return 0;
  Arena arena;
  Scratch::take(arena, p, only_step ? 0 : longest_piece);
  return arena.size();
}

const CudnnEngine::Kept& CudnnEngine::plan_for(const CudnnShape& shape) {
  for (const std::unique_ptr<Kept>& kept : plans_)
    if (kept->shape == shape) return *kept;
  static const Kept& captured = make_immortal<Kept>(Kept{{}, nullptr, "it makes no plans while a call is captured"});
  if (queue_->captures()) return captured;
  static const Kept& too_many =
      make_immortal<Kept>(Kept{{}, nullptr, text("it has made plans of ", most_plans, " shapes, which is the most")});
  if (plans_.size() == most_plans) return too_many;
  auto kept = std::make_unique<Kept>();
  kept->shape = shape;
  try {
    const BesideCapture beside;
    kept->plan = cudnn_->make_plan(shape, most_workspace);
  } catch (const Error& error) {
    if (error.status != RA_STATUS_NOT_SUPPORTED) throw;
    kept->refusal = error.message;
  }
  plans_.push_back(std::move(kept));
  return *plans_.back();
}

std::string CudnnEngine::forward(const Problem& p, const ForwardStep& step) {
  std::vector<CudnnCall> calls;
  std::string reason = divide(step, calls);
  if (!reason.empty()) return reason;
  std::int64_t rows = 0, keys = 0, key_rows = 0;
  for (const WorkItem& item : step.items) {
    rows += length_of(item.queries);
    keys += length_of(item.keys);
    for (const Piece& piece : item.keys) key_rows = std::max(key_rows, piece.row + piece.length);
  }
  if (taken_ == Taken::where_faster) reason = cudnn_is_slower(p, capability_, rows, keys);
  if (!reason.empty()) return reason;

  const bool direct = calls[0].direct;
  for (const auto& [name, tensor] : {std::pair{"q", &step.q}, std::pair{"k", &step.k}, std::pair{"v", &step.v}})
    if (!is_aligned(*tensor)) return text(name, " has rows that are not aligned to 16 bytes");
  if (direct && !is_aligned(step.out)) return "out has rows that are not aligned to 16 bytes";
  if (direct && !is_aligned16(step.lse)) return "lse is not aligned to 16 bytes";
  std::vector<const Kept*> plans;
  for (const CudnnCall& call : calls) {
    plans.push_back(call.rectangle ? &plan_for(shape_of(p, step, call)) : nullptr);
    if (plans.back() != nullptr && plans.back()->plan == nullptr) return plans.back()->refusal;
  }

  const cudaStream_t stream = queue_->stream();
  std::int64_t longest = 0;
  for (const CudnnCall& call : calls) longest = std::max(longest, call.rectangle ? call.rectangle->rows : 0);
  Arena arena(step.scratch);
  const Scratch scratch = Scratch::take(arena, p, direct ? 0 : longest);
  check(cudaMemsetAsync(scratch.flag, 0, sizeof *scratch.flag, stream), "cudaMemsetAsync");
  enqueued(find_not_finite(p.batch, step.k, {key_rows, p.num_heads_kv, p.head_dim}, scratch.flag, stream), "search");
  enqueued(find_not_finite(p.batch, step.v, {key_rows, p.num_heads_kv, p.head_dim_v}, scratch.flag, stream), "search");
  for (std::size_t n = 0; n < calls.size(); ++n) {
    const CudnnCall& call = calls[n];
    ForwardStep part = step;
    part.items = {&call.item, 1};
    part.first = call.first;
    part.last = call.last;
    if (!call.rectangle) {
      enqueued(portable_forward(p, part, stream), "forward");
      continue;
    }
    const Rectangle& r = *call.rectangle;
    plans[n]->plan->run(stream, {.q = step.q.bytes_at(0, r.first_row, 0),
                                 .k = step.k.bytes_at(0, r.first_key, 0),
                                 .v = step.v.bytes_at(0, r.first_key, 0),
                                 .out = direct ? static_cast<void*>(step.out.bytes_at(0, r.first_row, 0)) : scratch.out,
                                 .lse = direct ? step.lse : scratch.lse,
                                 .workspace = scratch.workspace});
    const Piece& queries = call.item.queries[0];
    if (!direct)
      enqueued(
          merge(p, part, {queries.row, queries.length, r.first_row - queries.row, r.rows, scratch.out, scratch.lse},
                scratch.flag, stream),
          "merge");
    enqueued(portable_forward(p, part, stream, 0, scratch.flag), "forward");
  }
  return {};
}

}  // namespace ringattn::cuda
