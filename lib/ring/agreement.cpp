#include "ring/agreement.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iterator>

#include "core/digest.h"

namespace ringattn {
namespace {

enum class Kind { number, documents, real, digest };

struct Field {
  const char* name;
  std::int64_t value;
  Kind kind = Kind::number;
};

struct Argument {
  const char* name;
  Kind kind = Kind::number;
};

std::span<const Argument> arguments_of(Operation operation) {
  static constexpr Argument self_test[] = {{"num_problems"}, {"seed"}}, all_reduce[] = {{"count"}};
  static constexpr Argument layer[] = {{"d_model"},
                                       {"layer's out_dtype"},
                                       {"layer's grad_dtype"},
                                       {"rotary"},
                                       {"rotated elements of a head"},
                                       {"rotary_base", Kind::real},
                                       {"has_qkv_bias"},
                                       {"has_out_bias"},
                                       {"normalize_heads"},
                                       {"norm_epsilon", Kind::real},
                                       {"checkpoint"},
                                       {"accumulate"},
                                       {"reduce"},
                                       {"gradients of weights that are reduced (bits, from dw_q on)"}};
  static constexpr Argument decode[] = {{"what was done with the cache before", Kind::digest},
                                        {"sequences", Kind::digest}};
  static_assert(std::size(layer) <= Terms::most_arguments);
  switch (operation) {
    case Operation::self_test:
      return self_test;
    case Operation::all_reduce:
      return all_reduce;
    case Operation::mha_forward:
    case Operation::mha_backward:
      return layer;
    case Operation::decode:
      return decode;
    default:
      return {};
  }
}

// The last dropout_fields of them may be others in the next call, with the same plan.
constexpr std::size_t dropout_fields = 3;
std::array<Field, Terms::problem_fields> fields_of(const Problem& p) {
  Digest offsets_q, offsets_kv, kv_lengths;
  for (const Document& d : p.documents) {
    offsets_q.add(d.q_begin);
    offsets_kv.add(d.kv_begin);
  }
  for (const std::int64_t length : p.kv_lengths) kv_lengths.add(length);
  const auto real = [](float x) { return std::int64_t{std::bit_cast<std::int32_t>(x)}; };
  Digest slopes, slices, segment_lengths, dilations;
  for (const float slope : p.alibi_slopes) slopes.add(real(slope));
  for (const MaskSlice& s : p.slices)
    for (const std::int64_t x : {s.q_begin, s.q_end, s.kv_begin, s.kv_end, static_cast<std::int64_t>(s.kind)})
      slices.add(x);
  for (const Branch& branch : p.branches) {
    segment_lengths.add(branch.segment_length);
    dilations.add(branch.dilation);
  }
  return {
      Field{"batch", p.batch},
      Field{"seqlen_q", p.seqlen_q},
      Field{"seqlen_kv", p.seqlen_kv},
      Field{"num_heads_q", p.num_heads_q},
      Field{"num_heads_kv", p.num_heads_kv},
      Field{"head_dim", p.head_dim},
      Field{"head_dim_v", p.head_dim_v},
      Field{"dtype", static_cast<std::int64_t>(p.dtype)},
      Field{"out_dtype", static_cast<std::int64_t>(p.out_dtype)},
      Field{"grad_dtype", static_cast<std::int64_t>(p.grad_dtype)},
      Field{"sharding", static_cast<std::int64_t>(p.sharding)},
      Field{"stripe", p.stripe},
      Field{"mask", p.causal},
      Field{"mask_alignment", p.bottom_right},
      Field{"window_left", p.window_left},
      Field{"window_right", p.window_right},
      Field{"softmax_scale", real(p.softmax_scale), Kind::real},
      Field{"softcap", real(p.softcap), Kind::real},
      Field{"num_documents", std::ssize(p.documents), Kind::documents},
      Field{"document_offsets_q", offsets_q.value(), Kind::digest},
      Field{"document_offsets_kv", offsets_kv.value(), Kind::digest},
      Field{"kv_lengths", kv_lengths.value(), Kind::digest},
      Field{"num_chunks", p.num_chunks},
      Field{"schedule", static_cast<std::int64_t>(p.schedule)},
      Field{"gather_bytes", p.gather_bytes},
      Field{"alibi_slopes", slopes.value(), Kind::digest},
      Field{"num_sinks", p.num_sinks},
      Field{"has_key_bias", p.has_key_bias},
      Field{"num_mask_slices", std::ssize(p.slices)},
      Field{"mask_slices", slices.value(), Kind::digest},
      Field{"num_branches", std::ssize(p.branches)},
      Field{"dilation_phase", static_cast<std::int64_t>(p.dilation_phase)},
      Field{"segment_lengths", segment_lengths.value(), Kind::digest},
      Field{"dilations", dilations.value(), Kind::digest},
      Field{"dilation_padding", static_cast<std::int64_t>(p.dilation_padding)},
      Field{"dilation_gradient", static_cast<std::int64_t>(p.dilation_gradient)},
      Field{"dropout_probability", real(p.dropout.probability), Kind::real},
      Field{"dropout_seed", std::bit_cast<std::int64_t>(p.dropout.seed)},
      Field{"dropout_offset", std::bit_cast<std::int64_t>(p.dropout.offset)},
  };
}

std::string show(Kind kind, std::int64_t value) {
  switch (kind) {
    case Kind::documents:
      return value <= 1 ? "0 or 1" : text(value);  // the same to a problem
    case Kind::real:
      return text(std::bit_cast<float>(static_cast<std::int32_t>(value)));
    case Kind::digest: {
      if (value == Digest().value()) return "none";
      std::ostringstream stream = text_stream();
      stream << "a list with digest 0x" << std::hex << static_cast<std::uint64_t>(value);
      return std::move(stream).str();
    }
    default:
      return text(value);
  }
}

// In a rank's terms.
constexpr std::size_t call_number = 1, first_argument = 2, first_of_problem = first_argument + Terms::most_arguments;

Argument name_of(std::size_t field, Operation operation) {
  if (field == 0)
    return {"operation (1 forward, 2 backward, 3 self-test, 4 MHA forward, 5 MHA backward, 6 all-reduce, 7 decode)"};
  if (field == call_number) return {"number of calls so far"};
  if (field < first_of_problem) return arguments_of(operation)[field - first_argument];
  const Field described = fields_of({})[field - first_of_problem];
  return {described.name, described.kind};
}

// Throws if the ranks' terms are not equal.
void compare(std::span<const std::byte> all) {
  const std::size_t world_size = all.size() / sizeof(Terms);
  const auto value = [&](std::size_t rank, std::size_t field) {
    std::int64_t x;
    std::memcpy(&x, all.data() + rank * sizeof(Terms) + field * sizeof x, sizeof x);
    return x;
  };
  for (std::size_t field = 0; field < sizeof(Terms) / sizeof(std::int64_t); ++field) {
    const auto unlike = [&](std::size_t other) {  // ranks that contradict that one
      std::size_t count = 0;
      for (std::size_t rank = 0; rank < world_size; ++rank) count += value(rank, field) != value(other, field);
      return count;
    };
    if (unlike(0) == 0) continue;
    std::size_t second = 1;
    while (value(second, field) == value(0, field)) ++second;
    const bool first_alone = unlike(second) == 1, second_alone = unlike(0) == 1;  // both, if they are the only ranks
    const int alone = first_alone == second_alone ? -1 : first_alone ? 0 : static_cast<int>(second);
    const Argument named = name_of(field, static_cast<Operation>(value(0, 0)));
    throw Error(RA_STATUS_MISMATCH,
                text(named.name, " is ", show(named.kind, value(0, field)), " on rank 0 but ",
                     show(named.kind, value(second, field)), " on rank ", second),
                alone);
  }
}

}  // namespace

Terms::Terms(Operation operation, std::int64_t number, const Problem& problem,
             std::span<const std::int64_t> arguments) {
  numbers_[0] = static_cast<std::int64_t>(operation);
  numbers_[call_number] = number;
  std::ranges::copy(arguments, numbers_.begin() + first_argument);
  std::ranges::transform(fields_of(problem), numbers_.begin() + first_of_problem, &Field::value);
}

std::int64_t Terms::digest() const {
  Digest digest;
  for (std::size_t field = 0; field < numbers_.size() - dropout_fields; ++field)
    if (field != call_number) digest.add(numbers_[field]);
  return digest.value();
}

void agree(Transport& transport, const Terms& terms, bool now) { transport.gather(terms.bytes(), compare, now); }

}  // namespace ringattn
