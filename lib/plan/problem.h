// One attention problem, validated and completed: what the planner, the engines and the oracle see of ra_attention_desc.
//
// Plain values, no pointers into the caller's memory. An unpacked sequence is one document, so nothing below asks whether
// a problem has documents. The mask of a document is a band around its diagonal: a query at position i of the document
// sees a key at position j of it iff  band.lower <= j - i <= band.upper  and the key is not padding.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace ringattn {

// Values equal those of the enums of the same names in ringattn.h; lib/api asserts it.
enum class DType : std::int32_t { float32 = 1, bfloat16 = 2, float16 = 3 };
enum class Sharding : std::int32_t { contiguous = 0, zigzag = 1, striped = 2 };
enum class Side : std::int32_t { query = 0, key_value = 1 };
enum class Schedule : std::int32_t { automatic = 0, ring = 1, all_gather = 2, pass_q = 5 };
enum class SliceKind : std::int32_t { full = 0, causal = 1, inverse_causal = 2, bidirectional_causal = 3 };
enum class DilationPhase : std::int32_t { blocks_of_heads = 0, interleaved_heads = 1 };
enum class DilationPadding : std::int32_t { masked = 0, zero_keys = 1 };
enum class DilationGradient : std::int32_t { exact = 0, constant_weights = 1 };

enum class Pass { forward, backward };

// The largest problems that anything here is made for. The planner's arithmetic on positions, and world_size times any
// length, stay below 2^63; so do all tensors and buffers of a call together, in bytes.
constexpr std::int64_t most_tokens = std::int64_t{1} << 48;  // of a sequence; also entries of a batch
constexpr std::int64_t most_heads = std::int64_t{1} << 20;
constexpr std::int64_t most_head_dim = 256;                        // also of head_dim_v
constexpr std::int64_t most_copied_dim = std::int64_t{1} << 20;    // of tensors that are only copied or merged
constexpr std::int64_t most_tensor_bytes = std::int64_t{1} << 58;  // of one tensor, a length of 0 counted as 1
constexpr std::int64_t most_documents = std::int64_t{1} << 31;
constexpr std::int64_t most_chunks = 65536;  // that a caller can ask for
constexpr int most_ranks = 4096;
constexpr std::int64_t most_sinks = 1024;  // of a head
constexpr std::int64_t most_slices = std::int64_t{1} << 20;
constexpr std::int64_t most_branches = 16;
constexpr std::int64_t most_segments = std::int64_t{1} << 20;  // of a branch

constexpr std::int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Tokens of the whole sequences that attend to each other.
struct Document {
  std::int64_t q_begin = 0;
  std::int64_t q_length = 0;
  std::int64_t kv_begin = 0;
  std::int64_t kv_length = 0;

  std::int64_t begin(Side side) const { return side == Side::query ? q_begin : kv_begin; }
  std::int64_t length(Side side) const { return side == Side::query ? q_length : kv_length; }
  friend bool operator==(const Document&, const Document&) = default;
};

// Keys visible from a query, as differences of positions inside the document.
struct Band {
  static constexpr std::int64_t unbounded = std::numeric_limits<std::int64_t>::max() / 4;
  std::int64_t lower = -unbounded;
  std::int64_t upper = unbounded;
};

// A rectangle of queries and keys of the whole sequence that see each other, between its diagonals (ra_mask_slice_kind).
struct MaskSlice {
  std::int64_t q_begin = 0, q_end = 0, kv_begin = 0, kv_end = 0;
  SliceKind kind = SliceKind::full;
  friend bool operator==(const MaskSlice&, const MaskSlice&) = default;
};

// Dilated attention: heads keep every dilation-th position of each segment.
struct Branch {
  std::int64_t segment_length = 0, dilation = 1;
  friend bool operator==(const Branch&, const Branch&) = default;
};

// Weights that are 0 by chance, the others made larger by 1 / (1 - probability): engine/dropout.h.
struct Dropout {
  float probability = 0;  // 0: none
  std::uint64_t seed = 0, offset = 0;
  friend bool operator==(const Dropout&, const Dropout&) = default;
};

struct Problem {
  std::int64_t batch = 1;
  std::int64_t seqlen_q = 0;
  std::int64_t seqlen_kv = 0;
  std::int64_t num_heads_q = 1;
  std::int64_t num_heads_kv = 1;
  std::int64_t head_dim = 1;
  std::int64_t head_dim_v = 1;
  DType dtype = DType::float32;
  DType out_dtype = DType::float32;
  DType grad_dtype = DType::float32;
  // A layer (layer.h): a forward pass adds to the running result of rows, a backward pass to fp32 gradients, and the whole problem's
  // documents and slices are not listed again.
  bool is_partial = false;
  Sharding sharding = Sharding::contiguous;
  std::int64_t stripe = 1;
  bool causal = false;
  bool bottom_right = true;
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  float softmax_scale = 1.0F;
  float softcap = 0.0F;
  std::vector<float>
      alibi_slopes;            // empty: none; else one per query head of the whole problem, in parts and layers too
  std::int64_t num_sinks = 0;  // of each query head
  bool has_key_bias = false;
  Dropout dropout;
  std::int64_t num_chunks = 0;  // 0: the planner chooses
  Schedule schedule = Schedule::automatic;
  std::int64_t gather_bytes = 0;         // of Schedule::all_gather (schedule.h); 0: usual_gather_bytes
  std::vector<Document> documents;       // at least one, ascending and contiguous on both sides
  std::vector<std::int64_t> kv_lengths;  // empty: no padding; else one per batch entry
  std::vector<MaskSlice> slices;         // empty: no slices; else only what a slice has is seen; they do not overlap
  std::vector<Branch> branches;          // empty: not dilated
  DilationPhase dilation_phase = DilationPhase::blocks_of_heads;
  DilationPadding dilation_padding = DilationPadding::masked;
  DilationGradient dilation_gradient = DilationGradient::exact;

  std::int64_t group() const { return num_heads_q / num_heads_kv; }
  std::int64_t seqlen(Side side) const { return side == Side::query ? seqlen_q : seqlen_kv; }

  // Keys of the whole sequence that batch entry b has before its padding, and the most that any entry has.
  std::int64_t kv_length(std::int64_t b) const {
    return kv_lengths.empty() ? seqlen_kv : kv_lengths[static_cast<std::size_t>(b)];
  }
  std::int64_t longest_kv() const;

  // What gradients are stored in.
  DType stored_grad() const { return is_partial ? DType::float32 : grad_dtype; }

  // Whether it is computed in layers (layer.h).
  bool is_layered() const { return !slices.empty() || !branches.empty(); }

  // By which the positions of a document's queries are counted on, to face its keys.
  std::int64_t shift(const Document& document) const {
    return bottom_right ? document.kv_length - document.q_length : 0;
  }
  Band band(const Document& document) const;

  friend bool operator==(const Problem&, const Problem&) = default;
};

}  // namespace ringattn
