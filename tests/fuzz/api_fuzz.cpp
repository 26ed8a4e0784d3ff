// The C API, called by a program that fills in anything and calls in any order: structs of any age and content, lists, tensors and
// workspaces that are too short, lie across each other or are NULL, contexts that are broken or missing. What a caller must promise, and
// the library cannot check, is promised: a block has as many bytes as it is said to have, and a list as many entries.
//
// Always: the status is of the enum; `error` is cleared and says the same, in a text that ends; what a call only reads stays as it was, and
// what it writes too where it was refused. AddressSanitizer sees what is read or written beyond a block, for each lies in one of its own.
// A cache has what was appended to it and no more: it is compared with a list of sequences and their lengths after each call.
// Sizes are kept small where a call computes with them or makes a plan, so that thousands of programs run in a second.
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <type_traits>

#include "fuzz/input.h"
#include "ringattn/ringattn.h"

namespace ringattn::fuzz {
namespace {

constexpr std::int64_t largest_block = 1 << 16, largest_workspace = 1 << 22;
constexpr int most_calls = 12;

// ---------------------------------------------------------------- values

std::int64_t any_number(Input& input) {
  switch (input.below(6)) {
    case 0:
      return input.number<std::int8_t>();
    case 1:
      return (std::int64_t{1} << input.below(63)) + input.below(3) - 1;
    case 2:
      return input.number<std::int64_t>();
    case 3:
      return input.number<std::int32_t>();
    default:
      return input.below(8);
  }
}

float any_real(Input& input) {
  constexpr std::array<float, 8> some{0, 0.5F, 1, -1, INFINITY, NAN, 3e38F, 1e-40F};
  return input.chance(4) ? input.number<float>() : some[static_cast<std::size_t>(input.below(8))];
}

// Sets numbers of a struct to anything. `fields` calls f(number) for each.
template <class T, class Fields>
void set_any(Input& input, T& record, Fields&& fields) {
  int count = 0;
  fields(record, [&](auto&) { ++count; });
  for (int n = std::max(0, input.below(8) - 4); n > 0; --n) {
    int chosen = input.below(count);
    fields(record, [&](auto& field) {
      using Number = std::remove_reference_t<decltype(field)>;
      if (chosen-- != 0) return;
      if constexpr (std::is_floating_point_v<Number>)
        field = any_real(input);
      else
        field = static_cast<Number>(any_number(input));
    });
  }
}

const auto numbers_of_desc = [](auto& d, auto&& f) {
  f(d.batch), f(d.seqlen_q), f(d.seqlen_kv), f(d.num_heads_q), f(d.num_heads_kv), f(d.head_dim), f(d.head_dim_v);
  f(d.dtype), f(d.out_dtype), f(d.grad_dtype), f(d.sharding), f(d.stripe), f(d.mask), f(d.mask_alignment);
  f(d.window_left), f(d.window_right), f(d.softmax_scale), f(d.softcap), f(d.num_documents), f(d.schedule);
  f(d.reserved), f(d.num_chunks), f(d.gather_bytes), f(d.num_sinks), f(d.dropout_probability), f(d.has_key_bias);
  f(d.dropout_seed), f(d.dropout_offset), f(d.num_mask_slices), f(d.num_branches), f(d.dilation_phase);
  f(d.dilation_padding), f(d.dilation_gradient);
};
const auto numbers_of_cache = [](auto& c, auto&& f) {
  f(c.page_tokens), f(c.num_pages), f(c.num_heads_kv), f(c.head_dim), f(c.head_dim_v), f(c.dtype), f(c.reserved);
};
const auto numbers_of_config = [](auto& c, auto&& f) {
  f(c.rank), f(c.world_size), f(c.backend), f(c.transport), f(c.device), f(c.num_threads), f(c.timeout_ms),
      f(c.num_sms);
  f(c.encryption);
};

// A count that the library would take and that is too large for a fuzzer.
template <class Number>
void limit(Number& count, std::int64_t here, std::int64_t legal) {
  if (count > here && count <= legal) count = static_cast<Number>(1 + count % here);
}

std::size_t size_of_dtype(std::int32_t dtype, std::size_t same) {
  return dtype == RA_DTYPE_SAME ? same : dtype == RA_DTYPE_FLOAT32 ? 4 : 2;
}

// ---------------------------------------------------------------- memory

// What one call is given. Each block is one of its own on the heap.
class Memory {
 public:
  // Of small numbers in any dtype, or, where it is to be written, of bytes that no result has.
  std::byte* block(std::int64_t size, bool is_written, std::size_t alignment = 16) {
    const auto bytes = static_cast<std::size_t>(std::clamp<std::int64_t>(size, 1, largest_workspace));
    void* memory = nullptr;
    check(posix_memalign(&memory, alignment, bytes) == 0, "no memory");
    Block& b = blocks_.emplace_back(Block{static_cast<std::byte*>(memory), {}, is_written});
    constexpr std::byte untouched{0xA5};
    static const std::vector<std::byte> numbers = [] {
      std::vector<std::byte> some(static_cast<std::size_t>(largest_workspace));
      for (std::size_t i = 0; i < some.size(); ++i) some[i] = static_cast<std::byte>(i % 4 == 3 ? 0x3e : i * 7);
      return some;
    }();
    if (is_written)
      std::memset(b.bytes, std::to_integer<int>(untouched), bytes);
    else
      std::memcpy(b.bytes, numbers.data(), bytes);
    b.before.assign(b.bytes, b.bytes + bytes);
    return b.bytes;
  }
  template <class T>
  T* list(const std::vector<T>& values) {
    auto* const data = block(static_cast<std::int64_t>(values.size() * sizeof(T)), false);
    if (!values.empty()) std::memcpy(data, values.data(), values.size() * sizeof(T));
    blocks_.back().before.assign(data, data + blocks_.back().before.size());
    return reinterpret_cast<T*>(data);
  }
  void allow_writing() {
    for (Block& b : blocks_) b.is_written = true;
  }
  // After a call. Where it was refused, nothing has been written at all.
  void look(bool was_refused) const {
    for (const Block& b : blocks_)
      check((b.is_written && !was_refused) || std::memcmp(b.before.data(), b.bytes, b.before.size()) == 0,
            b.is_written ? "a call that was refused has written" : "a call has written to what it only reads");
  }

  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (const Block& b : blocks_) std::free(b.bytes);
  }

 private:
  struct Block {
    std::byte* bytes;
    std::vector<std::byte> before;
    bool is_written;
  };
  std::list<Block> blocks_;
};

// A struct as a caller gives it, in a block of exactly its size.
template <class T>
class Given {
 public:
  using Init = void (*)(T*, std::size_t);

  // `may_be_cut`: what is behind a field may be missing, as in a program that was built with an older header.
  Given(Input& input, Memory& memory, Init init, const T& full, bool may_be_cut) {
    init(&value, sizeof value);
    std::size_t size = sizeof(T), says = size;
    const int age = input.below(32);
    if (age == 31) {
      is_refused = true;
      return;
    }
    if (age == 30 && may_be_cut) says = size = 8 * static_cast<std::size_t>(2 + input.below(sizeof(T) / 8 - 2));
    if (age == 29 || age == 28) says = size = sizeof(T) + 1 + static_cast<std::size_t>(input.below(80));
    std::memcpy(&value, &full, std::min(size, sizeof full));
    value.struct_size = says;
    std::vector<std::byte> bytes(size);
    std::memcpy(bytes.data(), &value, std::min(size, sizeof value));
    if (age == 28) {
      bytes.back() = std::byte{1};
      is_refused = true;
    }
    if (age == 27) {
      constexpr std::array<std::size_t, 6> wrong{0, 1, 8, 65537, std::size_t{1} << 40, ~std::size_t{0}};
      says = wrong[static_cast<std::size_t>(input.below(6))];
      bytes.resize(8 * static_cast<std::size_t>(1 + input.below(4)));
      is_refused = true;
    }
    std::memcpy(bytes.data(), &says, sizeof says);
    pointer = reinterpret_cast<T*>(memory.list(bytes));
    if (is_refused) return;
  }

  T value{};  // as the library is to understand it
  T* pointer = nullptr;
  bool is_refused = false;  // for its size, or as it is NULL
};

// A struct that the library fills.
template <class T>
class Filled {
 public:
  Filled(Input& input, Memory& memory, void (*init)(T*, std::size_t))
      : given_(input, memory, init, cleared(init), true) {}
  T* get() { return given_.pointer; }
  bool is_refused() const { return given_.is_refused; }
  std::size_t size() const { return given_.value.struct_size; }

 private:
  static T cleared(void (*init)(T*, std::size_t)) {
    T value;
    init(&value, sizeof value);
    return value;
  }
  Given<T> given_;
};

// Where a call says why it failed, or nowhere.
class Where {
 public:
  explicit Where(Input& input) : error_(input.chance(8) ? nullptr : new ra_error) {
    if (error_ != nullptr) std::memset(error_.get(), 0xEE, sizeof *error_);
  }
  ra_error* get() { return error_.get(); }
  void look(int status, bool may_speak = false) const {
    check(status >= RA_STATUS_SUCCESS && status <= RA_STATUS_INTERNAL_ERROR, "status ", status);
    if (error_ == nullptr) return;
    check(error_->status == status, "status ", status, " but error->status ", error_->status);
    check(std::memchr(error_->message, 0, sizeof error_->message) != nullptr, "a message without an end");
    check(error_->cuda_error == 0 && error_->nccl_result == 0, "an error of CUDA");
    if (status == RA_STATUS_SUCCESS)
      check(error_->rank == -1 && (may_speak || error_->message[0] == '\0'), "success says: ", error_->message);
    else
      check(error_->message[0] != '\0' && error_->rank >= -1, "a failure without a word");
    check(status != RA_STATUS_INTERNAL_ERROR, error_->message);
  }
  // Of a function that returns a value.
  int status() const { return error_ == nullptr ? -1 : error_->status; }

 private:
  std::unique_ptr<ra_error> error_;
};

bool is_refusal(ra_status status) {
  return status == RA_STATUS_INVALID_ARGUMENT || status == RA_STATUS_NOT_SUPPORTED || status == RA_STATUS_INVALID_STATE;
}

// ---------------------------------------------------------------- descriptions

struct Desc {
  // `cache`: of one that it is to fit, as a rule.
  Desc(Input& input, Memory& memory, bool is_small, const ra_kv_cache_desc* cache = nullptr)
      : desc(input, memory, ra_init_attention_desc, make(input, memory, is_small, cache), true) {
    const ra_attention_desc& d = desc.value;
    seqlen_q = d.seqlen_q;
    seqlen_kv = d.seqlen_kv < 0 ? d.seqlen_q : d.seqlen_kv;
    heads_q = d.num_heads_q;
    heads_kv = d.num_heads_kv == 0 ? d.num_heads_q : d.num_heads_kv;
    dim = d.head_dim;
    dim_v = d.head_dim_v == 0 ? d.head_dim : d.head_dim_v;
    in = size_of_dtype(d.dtype, 4);
    out = size_of_dtype(d.out_dtype, in);
    grad = size_of_dtype(d.grad_dtype, in);
  }
  const ra_attention_desc* operator&() const { return desc.pointer; }
  const ra_attention_desc* operator->() const { return &desc.value; }

  Given<ra_attention_desc> desc;
  std::int64_t seqlen_q, seqlen_kv, heads_q, heads_kv, dim, dim_v;
  std::size_t in, out, grad;

 private:
  static std::vector<std::int64_t> offsets(Input& input, std::int64_t count, std::int64_t length) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(count + 1));
    for (std::size_t i = 1; i < all.size(); ++i)
      all[i] = std::min(all[i - 1] + input.below(8), std::max<std::int64_t>(length, 0));
    all.back() = length;
    if (input.chance(8)) all[static_cast<std::size_t>(input.below(static_cast<int>(all.size())))] = any_number(input);
    return all;
  }
  // Entries of a list, from 0 .. end - 1, but for one that may be anything.
  static std::vector<std::int64_t> entries(Input& input, std::int64_t count, std::int64_t end) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
    for (std::int64_t& x : all) x = input.below(static_cast<int>(std::clamp<std::int64_t>(end, 1, 60)));
    if (!all.empty() && input.chance(8))
      all[static_cast<std::size_t>(input.below(static_cast<int>(all.size())))] = any_number(input);
    return all;
  }

  static void fit(Input& input, ra_attention_desc& d, const ra_kv_cache_desc& cache) {
    const auto set = [&](auto& field, auto value) {
      if (!input.chance(32)) field = static_cast<std::remove_reference_t<decltype(field)>>(value);
    };
    set(d.seqlen_q, 1 + input.below(4)), set(d.seqlen_kv, -1), set(d.head_dim, cache.head_dim);
    set(d.num_heads_kv, cache.num_heads_kv), set(d.num_heads_q, cache.num_heads_kv * (1 + input.below(2)));
    set(d.head_dim_v, cache.head_dim_v), set(d.dtype, cache.dtype), set(d.sharding, RA_SHARDING_CONTIGUOUS);
    set(d.mask_alignment, RA_MASK_ALIGNMENT_BOTTOM_RIGHT), set(d.schedule, input.below(2) * RA_SCHEDULE_PASS_Q);
    set(d.num_documents, 0), set(d.num_mask_slices, 0), set(d.num_branches, 0), set(d.has_key_bias, 0);
    set(d.dropout_probability, 0);
  }

  static ra_attention_desc make(Input& input, Memory& memory, bool is_small, const ra_kv_cache_desc* cache) {
    ra_attention_desc d;
    ra_init_attention_desc(&d, sizeof d);
    const int options = input.number<std::uint16_t>();
    const auto has = [&](int option) { return (options >> option & 1) != 0; };
    d.seqlen_q = input.below(20);
    if (has(0)) d.seqlen_kv = input.below(20);
    d.head_dim = 1 + input.below(12);
    if (has(1)) d.num_heads_q = 1 + input.below(4);
    if (has(2)) d.num_heads_kv = d.num_heads_q % 2 == 0 ? d.num_heads_q / 2 : 1;
    if (has(3)) d.batch = 1 + input.below(3);
    if (has(4)) d.mask = RA_MASK_CAUSAL;
    if (has(5)) d.dtype = 1 + input.below(3);
    if (has(6)) d.sharding = input.below(3);
    if (has(7)) {
      d.window_left = input.below(8) - 1;
      d.window_right = input.below(8) - 1;
      d.mask_alignment = input.below(2);
    }
    if (has(8)) d.num_documents = 1 + input.below(4);
    if (has(9)) d.num_mask_slices = 1 + input.below(3);
    if (has(10)) d.num_branches = 1 + input.below(3);
    if (has(11)) d.num_sinks = input.below(3);
    if (has(12)) d.has_key_bias = 1;
    if (has(13)) d.dropout_probability = 0.25F;
    if (has(14)) d.schedule = input.below(4);
    if (has(15)) set_any(input, d, numbers_of_desc);
    if (cache != nullptr) fit(input, d, *cache);

    constexpr std::int64_t tokens = std::int64_t{1} << 48, heads = 1 << 20;
    if (is_small) {
      limit(d.batch, 3, tokens), limit(d.seqlen_q, 24, tokens), limit(d.seqlen_kv, 24, tokens);
      limit(d.num_heads_q, 4, heads), limit(d.num_heads_kv, 4, heads);
      limit(d.head_dim, 16, 256), limit(d.head_dim_v, 16, 256), limit(d.num_chunks, 8, 65536);
    }
    limit(d.num_sinks, 4, 1024), limit(d.num_documents, 8, std::int64_t{1} << 31);
    limit(d.num_mask_slices, 4, 1 << 20), limit(d.num_branches, 4, 16);

    // Lists are as long as the description says, where the library gets as far as reading them.
    const std::int64_t seqlen_kv = d.seqlen_kv < 0 ? d.seqlen_q : d.seqlen_kv;
    const auto is_readable = [](std::int64_t count, std::int64_t most) { return count > 0 && count <= most; };
    if (is_readable(d.num_documents, 8)) {
      d.document_offsets_q = memory.list(offsets(input, d.num_documents, d.seqlen_q));
      if (has(0)) d.document_offsets_kv = memory.list(offsets(input, d.num_documents, seqlen_kv));
    }
    if (is_readable(d.batch, 64) && input.chance(cache == nullptr ? 4 : 32))
      d.kv_lengths = memory.list(entries(input, d.batch, seqlen_kv + 1));
    if (is_readable(d.num_heads_q, 64) && input.chance(4)) {
      std::vector<float> slopes(static_cast<std::size_t>(d.num_heads_q));
      for (float& slope : slopes) slope = any_real(input);
      d.alibi_slopes = memory.list(slopes);
    }
    if (is_readable(d.num_mask_slices, 4)) {
      std::vector<std::int64_t> slices;
      for (std::int64_t n = 0; n < d.num_mask_slices; ++n) {
        const std::int64_t q = input.below(20), kv = input.below(20);
        for (const std::int64_t x : {q, q + input.below(8), kv, kv + input.below(8), std::int64_t{input.below(4)}})
          slices.push_back(x);
      }
      if (input.chance(8))
        slices[static_cast<std::size_t>(input.below(static_cast<int>(slices.size())))] = any_number(input);
      d.mask_slices = memory.list(slices);
    }
    if (is_readable(d.num_branches, 4)) {
      auto segments = entries(input, d.num_branches, 30), dilations = entries(input, d.num_branches, 6);
      for (std::int64_t& x : segments) x += x == 0;
      for (std::int64_t& x : dilations) x += x == 0;
      d.segment_lengths = memory.list(segments);
      d.dilations = memory.list(dilations);
    }
    if (input.chance(16)) {  // one that is missing, or not asked for
      const std::int64_t** const lists[] = {&d.document_offsets_q, &d.document_offsets_kv, &d.mask_slices,
                                            &d.segment_lengths, &d.dilations};
      const std::int64_t** const list = lists[static_cast<std::size_t>(input.below(5))];
      *list = *list == nullptr && input.chance(2) ? memory.list(std::vector<std::int64_t>(64)) : nullptr;
    }
    return d;
  }
};

// ---------------------------------------------------------------- tensors

// A product that does not overflow; what is negative counts as nothing.
std::int64_t product(std::initializer_list<std::int64_t> factors) {
  std::int64_t all = 1;
  for (const std::int64_t factor : factors)
    if (factor <= 0)
      return 0;
    else if (__builtin_mul_overflow(all, factor, &all))
      return std::int64_t{1} << 62;
  return all;
}

class Tensors {
 public:
  Tensors(Input& input, Memory& memory) : input_(input), memory_(memory) {}

  ra_tensor tensor(std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t dim, std::size_t size,
                   bool is_written) {
    const auto element = static_cast<std::int64_t>(size);
    std::int64_t bytes = product({batch, rows, heads, dim, element});
    const int how = input_.below(32);
    ra_tensor t{};
    if (bytes > largest_block || how >= 24) is_plain_ = false;
    if (how == 24) return t;
    if (how == 25) bytes = std::min(bytes, largest_block) * 2 + 64;
    if (how == 26 && bytes > 0) bytes -= 1 + input_.below(8);
    bytes = std::clamp<std::int64_t>(bytes, 1, largest_block);
    if (how == 27 && last_.data != nullptr) {  // where another one is
      t = last_;
      t.size -= std::min<std::size_t>(t.size - 1, static_cast<std::size_t>(input_.below(16)));
    } else {
      const std::int64_t shift = how == 28 ? 1 + input_.below(8) : 0;
      t.data = memory_.block(bytes + shift, is_written) + shift;
      t.size = static_cast<std::size_t>(bytes);
    }
    if (how == 29 || how == 25) {
      t.batch_stride = any_number(input_);
      t.seq_stride = any_number(input_);
      t.head_stride = any_number(input_);
    } else if (how >= 30 || (how == 23 && bytes < largest_block)) {
      t.head_stride = dim;
      t.seq_stride = product({heads, dim});
      t.batch_stride = product({rows, heads, dim});
      if (how == 31) t.seq_stride = RA_STRIDE_REPEAT;
    }
    last_ = t;
    if (is_plain_ && input_.chance(2)) t.size = 0;
    return t;
  }
  // A dense array of floats; null where none is asked for.
  template <class Float>
  void floats(Float*& data, std::size_t& size, std::int64_t bytes, bool is_written) {
    const int how = input_.below(16);
    if (bytes <= 0 && how < 14) return;
    if (how == 15) return;
    if (how >= 12 || bytes > largest_block) is_plain_ = false;
    if (how == 13) bytes -= 4;
    bytes = std::clamp<std::int64_t>(bytes, 1, largest_block);
    data = reinterpret_cast<Float*>(memory_.block(bytes + (how == 12 ? 2 : 0), is_written) + (how == 12 ? 2 : 0));
    size = is_plain_ && input_.chance(2) ? 0 : static_cast<std::size_t>(bytes);
  }
  // Of as many bytes as are needed, or not quite.
  template <class F>
  void workspace(void*& data, std::size_t& size, F&& how_much) {
    switch (input_.below(16)) {
      case 13:
        size = static_cast<std::size_t>(input_.below(100));
        break;
      case 14: {
        const std::size_t needed = how_much();
        if (needed > 8 && needed <= static_cast<std::size_t>(largest_workspace))
          size = needed - static_cast<std::size_t>(input_.below(2));
        if (size > 0) data = memory_.block(static_cast<std::int64_t>(size), true, 64);
        break;
      }
      case 15:
        size = 256;
        data = memory_.block(256 + 8, true, 64) + 8;
        break;
      default:
        break;
    }
    is_plain_ = is_plain_ && data == nullptr;
  }
  // Whether a struct that says where they are may lack what says how large they are.
  bool may_be_cut() const { return is_plain_; }

 private:
  Input& input_;
  Memory& memory_;
  ra_tensor last_{};
  bool is_plain_ = true;  // all of the size that the description asks for
};

// ---------------------------------------------------------------- the program

class Program {
 public:
  explicit Program(Input& input) : input_(input) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    for (const Slot& slot : slots_) ra_destroy_context(slot.context);
    ra_destroy_kv_cache(cached_.cache);
    ra_set_log_callback(nullptr, nullptr, 0);
  }

  void run() {
    if (!input_.chance(8)) create(slots_[0], true);
    for (int n = 0; n < most_calls && !input_.is_over(); ++n) call();
  }

 private:
  struct Slot {
    ra_context* context = nullptr;
    bool is_broken = false;
    int number = 0;  // of the contexts that were made
  };
  // A cache, and what must be in it.
  struct Cached {
    ra_kv_cache* cache = nullptr;
    ra_kv_cache_desc shape{};
    int context = 0;  // the number of that whose it is
    std::map<std::int64_t, std::int64_t> lengths;
    std::int64_t next = 0;
  };

  void call() {
    Slot& slot = slots_[static_cast<std::size_t>(input_.chance(4) ? 1 : 0)];
    // The last ones are of functions that came later than what the corpus began with.
    const int which = input_.below(256);
    if (which >= 252) return reduce(slot);
    if (which < 236 && which >= 208) return use_cache(slot);
    if (which >= 236) return which % 2 == 0 ? layer_forward(slot) : layer_backward(slot);
    switch (which % 16) {
      case 0:
        ra_destroy_context(std::exchange(slot, {}).context);
        return create(slot, false);
      case 1:
        ra_destroy_context(std::exchange(slot, {}).context);
        return;
      case 2:
      case 3:
        return forward(slot);
      case 4:
      case 5:
        return backward(slot);
      case 6:
        return merge();
      case 7:
        return copy();
      case 8:
        return shards();
      case 9:
        return ask(slot);
      case 10:
        return estimate();
      case 11:
        return break_or_look(slot);
      case 12:
        return say();
      case 13:
        return drop();
      case 14:
        return init();
      default:
        return others();
    }
  }

  ra_context_config make_config() {
    ra_context_config c;
    ra_init_context_config(&c, sizeof c);
    c.num_threads = 1;
    const int options = input_.number<std::uint8_t>();
    if ((options & 1) != 0) set_any(input_, c, numbers_of_config);
    if ((options & 2) != 0) c.transport = input_.below(4);
    static constexpr std::array<const char*, 4> engines{"portable", "", "avx2", "port"};
    if ((options & 4) != 0) c.engine = engines[static_cast<std::size_t>(input_.below(4))];
    if ((options & 8) != 0) c.bind_address = "127.0.0.1";
    if ((options & 16) != 0) c.unique_id = any_id();
    if ((options & 0xe0) == 0xe0) c.nccl_comm = &slots_;
    limit(c.world_size, 16, 4096);
    if (c.num_threads > 2) c.num_threads = c.num_threads <= 1024 ? 2 : c.num_threads;
    return c;
  }

  // None that a group of several ranks could form with: nobody is to be waited for.
  const char* any_id() {
    static constexpr std::array<const char*, 6> ids{
        "", "x", "ringattn-local-1-2", "ringattn-zeromq-1-", "ringattn-zeromq-1-127.0.0.1:1-00", "ringattn-zeromq-2-"};
    return ids[static_cast<std::size_t>(input_.below(6))];
  }

  void create(Slot& slot, bool is_plain) {
    Memory memory;
    ra_context_config full;
    ra_init_context_config(&full, sizeof full);
    full.num_threads = 1;
    if (!is_plain) full = make_config();
    ra_unique_id id{};
    if (!is_plain && full.world_size == 1 && input_.chance(4)) {
      ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, nullptr);
      full.unique_id = id.text;
    }
    slot.number = ++contexts_;
    if (is_plain) {
      slot.context = ra_create_context(&full, nullptr);
      check(slot.context != nullptr, "no context");
      return;
    }
    const Given<ra_context_config> config(input_, memory, ra_init_context_config, full, true);
    Where where(input_);
    slot.context = ra_create_context(config.pointer, where.get());
    check(!config.is_refused || slot.context == nullptr, "a config that is none makes a context");
    if (where.get() != nullptr) {
      where.look(where.status());
      check((where.status() == RA_STATUS_SUCCESS) == (slot.context != nullptr), "context or error");
    }
    memory.look(true);
  }

  // After a collective call.
  void look(const Slot& slot, ra_status status, const Where& where, const Memory& memory, bool is_refused) {
    where.look(status);
    memory.look(is_refusal(status));
    check(status != RA_STATUS_INVALID_STATE || slot.is_broken, "a context breaks by itself");
    check(status == RA_STATUS_SUCCESS || is_refusal(status), "a call of one rank ends with ", status);
    check(status != RA_STATUS_SUCCESS || (slot.context != nullptr && !slot.is_broken && !is_refused),
          "a call that cannot be carried out succeeds");
  }

  std::size_t needed(const Slot& slot, const Desc& d, bool is_forward) {
    ra_memory_requirements r;
    ra_init_memory_requirements(&r, sizeof r);
    ra_get_memory_requirements(slot.context, &d, &r, nullptr);
    return is_forward ? r.forward_workspace : r.backward_workspace;
  }

  void forward(const Slot& slot) {
    Memory memory;
    const Desc d(input_, memory, true);
    ra_forward_args full;
    ra_init_forward_args(&full, sizeof full);
    Tensors make(input_, memory);
    full.q = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim, d.in, false);
    full.k = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim, d.in, false);
    full.v = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim_v, d.in, false);
    full.out = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim_v, d.out, true);
    make.floats(full.lse, full.lse_size, product({d->batch, d.seqlen_q, d.heads_q, 4}), true);
    make.floats(full.key_bias, full.key_bias_size, d->has_key_bias == 1 ? product({d->batch, d.seqlen_kv, 4}) : 0,
                false);
    make.floats(full.sinks, full.sinks_size, product({d.heads_q, d->num_sinks, 4}), false);
    make.workspace(full.workspace, full.workspace_size, [&] { return needed(slot, d, true); });
    if (input_.chance(32)) full.stream = reinterpret_cast<ra_stream>(&full);
    const Given<ra_forward_args> args(input_, memory, ra_init_forward_args, full, make.may_be_cut());
    Where where(input_);
    const ra_status status = ra_forward(slot.context, &d, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused || d.desc.is_refused);
  }

  void backward(const Slot& slot) {
    Memory memory;
    const Desc d(input_, memory, true);
    ra_backward_args full;
    ra_init_backward_args(&full, sizeof full);
    Tensors make(input_, memory);
    full.dout = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim_v, d.out, false);
    full.q = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim, d.in, false);
    full.k = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim, d.in, false);
    full.v = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim_v, d.in, false);
    full.out = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim_v, d.out, false);
    make.floats(full.lse, full.lse_size, product({d->batch, d.seqlen_q, d.heads_q, 4}), false);
    full.dq = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim, d.grad, true);
    full.dk = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim, d.grad, true);
    full.dv = make.tensor(d->batch, d.seqlen_kv, d.heads_kv, d.dim_v, d.grad, true);
    make.floats(full.key_bias, full.key_bias_size, d->has_key_bias == 1 ? product({d->batch, d.seqlen_kv, 4}) : 0,
                false);
    make.floats(full.sinks, full.sinks_size, product({d.heads_q, d->num_sinks, 4}), false);
    make.floats(full.dsinks, full.dsinks_size, product({d.heads_q, d->num_sinks, 4}), true);
    make.workspace(full.workspace, full.workspace_size, [&] { return needed(slot, d, false); });
    const auto numbers = [](auto& a, auto&& f) { f(a.accumulate), f(a.reserved); };
    if (input_.chance(4)) full.accumulate = 1;
    if (input_.chance(16)) set_any(input_, full, numbers);
    const Given<ra_backward_args> args(input_, memory, ra_init_backward_args, full, make.may_be_cut());
    Where where(input_);
    const ra_status status = ra_backward(slot.context, &d, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused || d.desc.is_refused);
  }

  static constexpr auto numbers_of_layer = [](auto& m, auto&& f) {
    f(m.d_model), f(m.rotary), f(m.rotary_base), f(m.rotary_fraction), f(m.has_qkv_bias), f(m.has_out_bias);
    f(m.normalize_heads), f(m.norm_epsilon), f(m.checkpoint);
  };
  // A layer, in most cases one that the description has.
  struct Layer {
    Layer(Input& input, Memory& memory)
        : d(input, memory, true), mha(input, memory, ra_init_mha_desc, make(input), true), m(mha.value) {}
    bool is_refused() const { return d.desc.is_refused || mha.is_refused; }

    const Desc d;
    const Given<ra_mha_desc> mha;
    const ra_mha_desc& m;

   private:
    static ra_mha_desc make(Input& input) {
      ra_mha_desc m;
      ra_init_mha_desc(&m, sizeof m);
      m.d_model = 1 + input.below(12);
      const int options = input.number<std::uint8_t>();
      if ((options & 1) != 0) m.rotary = input.below(3);
      if ((options & 2) != 0) m.has_qkv_bias = 1;
      if ((options & 4) != 0) m.has_out_bias = 1;
      if ((options & 8) != 0) m.normalize_heads = 1;
      if ((options & 16) != 0) m.checkpoint = input.below(3);
      if ((options & 0x60) == 0x60) set_any(input, m, numbers_of_layer);
      limit(m.d_model, 24, 1 << 20);
      return m;
    }
  };

  // The tensors that both passes have.
  template <class Args>
  static void set_weights(Args& full, const Layer& layer, Tensors& make) {
    const auto& [d, mha, m] = layer;
    const std::int64_t q = product({d.heads_q, d.dim}), k = product({d.heads_kv, d.dim}),
                       v = product({d.heads_kv, d.dim_v}), attended = product({d.heads_q, d.dim_v});
    const auto weight = [&](std::int64_t rows, std::int64_t columns) {
      return make.tensor(1, rows, 1, columns, d.in, false);
    };
    full.x = make.tensor(d->batch, d.seqlen_q, 1, m.d_model, d.in, false);
    full.w_q = weight(m.d_model, q);
    full.w_k = weight(m.d_model, k);
    full.w_v = weight(m.d_model, v);
    full.w_o = weight(attended, m.d_model);
    if (m.has_qkv_bias == 1) full.b_q = weight(1, q), full.b_k = weight(1, k), full.b_v = weight(1, v);
    if (m.has_out_bias == 1) full.b_o = weight(1, m.d_model);
    if (m.normalize_heads == 1) full.norm_q = weight(1, d.dim), full.norm_k = weight(1, d.dim);
  }
  ra_mha_requirements needed(const Slot& slot, const Layer& layer) {
    ra_mha_requirements r;
    ra_init_mha_requirements(&r, sizeof r);
    ra_get_mha_requirements(slot.context, &layer.d, layer.mha.pointer, &r, nullptr);
    return r;
  }
  // What is kept between the passes: as much as is needed, as a rule.
  template <class Block>
  void set_activations(Memory& memory, std::size_t bytes, bool is_written, Block*& block, std::size_t& size) {
    if (bytes == 0 || bytes > static_cast<std::size_t>(largest_workspace) || input_.chance(16)) return;
    size = bytes - (input_.chance(16) ? 1 : 0);
    block = memory.block(static_cast<std::int64_t>(size), is_written, 64);
  }

  void layer_forward(const Slot& slot) {
    Memory memory;
    const Layer layer(input_, memory);
    const Desc& d = layer.d;
    ra_mha_forward_args full;
    ra_init_mha_forward_args(&full, sizeof full);
    Tensors make(input_, memory);
    set_weights(full, layer, make);
    full.out = make.tensor(d->batch, d.seqlen_q, 1, layer.m.d_model, d.out, true);
    const ra_mha_requirements r = needed(slot, layer);
    set_activations(memory, r.activations, true, full.activations, full.activations_size);
    make.workspace(full.workspace, full.workspace_size, [&] { return r.forward_workspace; });
    const Given<ra_mha_forward_args> args(input_, memory, ra_init_mha_forward_args, full, false);
    Where where(input_);
    const ra_status status = ra_mha_forward(slot.context, &d, layer.mha.pointer, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused || layer.is_refused());
  }

  void layer_backward(const Slot& slot) {
    Memory memory;
    const Layer layer(input_, memory);
    const Desc& d = layer.d;
    ra_mha_backward_args full;
    ra_init_mha_backward_args(&full, sizeof full);
    Tensors make(input_, memory);
    set_weights(full, layer, make);
    full.dout = make.tensor(d->batch, d.seqlen_q, 1, layer.m.d_model, d.out, false);
    const int wanted = input_.number<std::uint8_t>();
    const auto wants = [&](int which) { return (wanted >> which & 1) == 0; };
    const auto gradient = [&](std::int64_t rows, std::int64_t columns) {
      return make.tensor(1, rows, 1, columns, sizeof(float), true);
    };
    if (wants(0)) full.dx = make.tensor(d->batch, d.seqlen_q, 1, layer.m.d_model, d.grad, true);
    if (wants(1)) full.dw_q = gradient(layer.m.d_model, product({d.heads_q, d.dim}));
    if (wants(2)) full.dw_v = gradient(layer.m.d_model, product({d.heads_kv, d.dim_v}));
    if (wants(3)) full.dw_o = gradient(product({d.heads_q, d.dim_v}), layer.m.d_model);
    if (wants(4) && layer.m.has_qkv_bias == 1) full.db_k = gradient(1, product({d.heads_kv, d.dim}));
    if (wants(5) && layer.m.normalize_heads == 1) full.dnorm_q = gradient(1, d.dim);
    full.accumulate = wants(6) ? 0 : 1;
    full.reduce = wants(7) ? 0 : 1;
    const auto numbers = [](auto& a, auto&& f) { f(a.accumulate), f(a.reduce); };
    if (input_.chance(16)) set_any(input_, full, numbers);
    const ra_mha_requirements r = needed(slot, layer);
    set_activations(memory, r.activations, false, full.activations, full.activations_size);
    make.workspace(full.workspace, full.workspace_size, [&] { return r.backward_workspace; });
    const Given<ra_mha_backward_args> args(input_, memory, ra_init_mha_backward_args, full, false);
    Where where(input_);
    const ra_status status = ra_mha_backward(slot.context, &d, layer.mha.pointer, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused || layer.is_refused());
  }

  void reduce(const Slot& slot) {
    Memory memory;
    ra_reduce_args full;
    ra_init_reduce_args(&full, sizeof full);
    full.count = input_.chance(8) ? any_number(input_) : input_.below(40);
    Tensors make(input_, memory);
    make.floats(full.data, full.data_size, product({full.count, 4}), true);
    make.workspace(full.workspace, full.workspace_size, [&] { return static_cast<std::size_t>(full.count) * 4; });
    const Given<ra_reduce_args> args(input_, memory, ra_init_reduce_args, full, make.may_be_cut());
    Where where(input_);
    const ra_status status = ra_all_reduce(slot.context, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused);
  }

  // ---- caches

  void use_cache(const Slot& slot) {
    const int which = input_.below(16);
    if (which == 0 || cached_.cache == nullptr) return create_cache(slot);
    ra_kv_cache* const cache = input_.chance(32) ? nullptr : cached_.cache;
    if (which <= 4)
      append(slot, cache);
    else if (which <= 8)
      decode(slot, cache);
    else if (which == 9)
      move(slot, cache);
    else
      change_sequences(which, cache);
    look_at_cache();
  }

  std::int64_t any_sequence() {
    if (cached_.lengths.empty() || input_.chance(16)) return any_number(input_);
    return std::next(cached_.lengths.begin(), input_.below(static_cast<int>(cached_.lengths.size())))->first;
  }
  std::vector<std::int64_t> any_sequences(std::int64_t count) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(std::clamp<std::int64_t>(count, 0, 64)));
    for (std::int64_t& id : all) id = any_sequence();
    return all;
  }
  // Whether all are sequences of at least so many tokens.
  bool has_all(const std::int64_t* ids, std::int64_t count, std::int64_t tokens) const {
    return std::all_of(ids, ids + count, [&](std::int64_t id) {
      const auto found = cached_.lengths.find(id);
      return found != cached_.lengths.end() && found->second >= tokens;
    });
  }

  void create_cache(const Slot& slot) {
    ra_destroy_kv_cache(std::exchange(cached_, {}).cache);
    Memory memory;
    ra_kv_cache_desc full;
    ra_init_kv_cache_desc(&full, sizeof full);
    full.page_tokens = 16 + input_.below(2);
    full.num_pages = 1 + input_.below(6);
    full.num_heads_kv = 1 + input_.below(2);
    full.head_dim = 1 + input_.below(12);
    const int options = input_.number<std::uint8_t>();
    if ((options & 1) != 0) full.dtype = 1 + input_.below(3);
    if ((options & 2) != 0) full.head_dim_v = 1 + input_.below(12);
    if ((options & 12) == 12) set_any(input_, full, numbers_of_cache);
    limit(full.num_pages, 8, 1 << 24), limit(full.num_heads_kv, 4, 1 << 20);
    limit(full.head_dim, 16, 256), limit(full.head_dim_v, 16, 256);
    const Given<ra_kv_cache_desc> shape(input_, memory, ra_init_kv_cache_desc, full, true);
    Where where(input_);
    cached_.cache = ra_create_kv_cache(slot.context, shape.pointer, where.get());
    cached_.shape = shape.value;
    cached_.context = slot.number;
    memory.look(true);
    check(cached_.cache == nullptr || (slot.context != nullptr && !shape.is_refused), "a cache of nothing");
    if (where.get() == nullptr) return;
    where.look(where.status());
    check((where.status() == RA_STATUS_SUCCESS) == (cached_.cache != nullptr), "cache or error");
  }

  void append(const Slot& slot, ra_kv_cache* cache) {
    Memory memory;
    const ra_kv_cache_desc& shape = cached_.shape;
    ra_append_args full;
    ra_init_append_args(&full, sizeof full);
    full.num_sequences = 1 + input_.below(3);
    full.num_tokens = input_.below(24);
    const auto numbers = [](auto& a, auto&& f) { f(a.num_sequences), f(a.num_tokens); };
    const int options = input_.number<std::uint8_t>();
    if ((options & 3) == 3) set_any(input_, full, numbers);
    limit(full.num_sequences, 4, std::int64_t{1} << 48);
    const std::vector<std::int64_t> ids = any_sequences(full.num_sequences);
    if ((options & 28) != 28) full.sequences = memory.list(ids);
    std::vector<std::int64_t> list(ids.size());
    if ((options & 32) != 0) {
      for (std::int64_t& length : list) length = input_.chance(8) ? any_number(input_) : input_.below(24);
      full.lengths = memory.list(list);
    }
    if ((options & 192) == 192) {
      for (std::size_t n = 0; n < ids.size(); ++n) {
        const auto found = cached_.lengths.find(ids[n]);
        list[n] = found == cached_.lengths.end() || input_.chance(8) ? any_number(input_) : found->second;
      }
      full.positions = memory.list(list);
    }
    Tensors make(input_, memory);
    const std::size_t size = size_of_dtype(shape.dtype, 4);
    full.k = make.tensor(full.num_sequences, full.num_tokens, shape.num_heads_kv, shape.head_dim, size, false);
    full.v = make.tensor(full.num_sequences, full.num_tokens, shape.num_heads_kv,
                         shape.head_dim_v == 0 ? shape.head_dim : shape.head_dim_v, size, false);
    if (input_.chance(32)) full.stream = reinterpret_cast<ra_stream>(&full);
    const Given<ra_append_args> args(input_, memory, ra_init_append_args, full, make.may_be_cut());
    Where where(input_);
    const ra_status status = ra_append(slot.context, cache, args.pointer, where.get());
    where.look(status);
    memory.look(true);
    check(status == RA_STATUS_SUCCESS || status == RA_STATUS_INVALID_ARGUMENT || status == RA_STATUS_OUT_OF_MEMORY,
          "tokens are appended with ", status);
    if (status != RA_STATUS_SUCCESS) return;
    const ra_append_args& a = args.value;
    check(!args.is_refused && cache != nullptr && cached_.context == slot.number &&
              has_all(a.sequences, a.num_sequences, 0),
          "tokens are appended to nothing");
    for (std::int64_t n = 0; n < a.num_sequences; ++n) {
      std::int64_t& length = cached_.lengths.at(a.sequences[n]);
      check(a.positions == nullptr || a.positions[n] == length, "tokens in the place of others");
      length += a.lengths == nullptr ? a.num_tokens : a.lengths[n];
    }
  }

  void decode(const Slot& slot, ra_kv_cache* cache) {
    Memory memory;
    const Desc d(input_, memory, true, &cached_.shape);
    ra_decode_args full;
    ra_init_decode_args(&full, sizeof full);
    full.num_sequences = d->batch;
    if (!input_.chance(16)) full.sequences = memory.list(any_sequences(d->batch));
    const auto numbers = [](auto& a, auto&& f) { f(a.num_sequences); };
    if (input_.chance(16)) set_any(input_, full, numbers);
    Tensors make(input_, memory);
    full.q = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim, d.in, false);
    full.out = make.tensor(d->batch, d.seqlen_q, d.heads_q, d.dim_v, d.out, true);
    make.floats(full.lse, full.lse_size, product({d->batch, d.seqlen_q, d.heads_q, 4}), true);
    make.floats(full.sinks, full.sinks_size, product({d.heads_q, d->num_sinks, 4}), false);
    if (input_.chance(32)) full.stream = reinterpret_cast<ra_stream>(&full);
    const Given<ra_decode_args> args(input_, memory, ra_init_decode_args, full, make.may_be_cut());
    Where where(input_);
    const ra_status status = ra_decode(slot.context, cache, &d, args.pointer, where.get());
    look(slot, status, where, memory, args.is_refused || d.desc.is_refused);
    check(status != RA_STATUS_SUCCESS || (cache != nullptr && cached_.context == slot.number &&
                                          has_all(args.value.sequences, args.value.num_sequences, d.seqlen_q)),
          "nothing is decoded");
  }

  void move(const Slot& slot, ra_kv_cache* cache) {
    Memory memory;
    const std::vector<std::int32_t> former(16, input_.chance(4) ? static_cast<std::int32_t>(any_number(input_)) : 0);
    const auto* const list = input_.chance(16) ? nullptr : memory.list(former);
    Where where(input_);
    const ra_status status = ra_move_kv_cache(cache, slot.context, list, where.get());
    where.look(status);
    memory.look(true);
    check(status == RA_STATUS_SUCCESS || status == RA_STATUS_INVALID_ARGUMENT, "a cache moves with ", status);
    if (status != RA_STATUS_SUCCESS) return;
    check(cache != nullptr && slot.context != nullptr && list != nullptr && former[0] == 0, "a cache moves nowhere");
    cached_.context = slot.number;
  }

  void change_sequences(int which, ra_kv_cache* cache) {
    auto& lengths = cached_.lengths;
    const std::int64_t id = any_sequence();
    const auto found = lengths.find(id);
    const bool is_there = cache != nullptr && found != lengths.end();
    Where where(input_);
    const auto look_at = [&](ra_status status, bool is_right) {
      where.look(status);
      check(status == (is_right ? RA_STATUS_SUCCESS : RA_STATUS_INVALID_ARGUMENT), "status ", status);
      return is_right;
    };
    const auto look_at_number = [&](std::int64_t number, std::int64_t expected) {
      check(number == expected, "sequence ", id, " has ", number, ", not ", expected);
      if (where.get() != nullptr) look_at(static_cast<ra_status>(where.status()), expected >= 0);
    };
    switch (which) {
      case 10: {
        look_at_number(ra_create_sequence(cache, where.get()), cache == nullptr ? -1 : cached_.next);
        if (cache != nullptr) lengths[cached_.next++] = 0;
        return;
      }
      case 11: {
        look_at_number(ra_fork_sequence(cache, id, where.get()), is_there ? cached_.next : -1);
        if (is_there) lengths[cached_.next++] = found->second;
        return;
      }
      case 12: {
        const std::int64_t length = input_.chance(4) ? any_number(input_) : input_.below(40);
        const bool is_right = is_there && 0 <= length && length <= found->second;
        if (look_at(ra_truncate_sequence(cache, id, length, where.get()), is_right)) found->second = length;
        return;
      }
      case 13:
        if (look_at(ra_free_sequence(cache, id, where.get()), is_there)) lengths.erase(found);
        return;
      case 14: {
        if (input_.chance(2))
          return look_at_number(ra_get_sequence_length(cache, id, where.get()), is_there ? found->second : -1);
        const std::int64_t from = input_.chance(4) ? any_number(input_) : input_.below(40);
        const bool is_right = is_there && 0 <= from && from <= found->second;
        return look_at_number(ra_get_lost_tokens(cache, id, from, where.get()), is_right ? found->second : -1);
      }
      default:
        return fill_or_init(cache);
    }
  }
  void fill_or_init(ra_kv_cache* cache) {
    const auto size = static_cast<std::size_t>(input_.number<std::uint16_t>() % 1024);
    switch (input_.below(8)) {
      case 1:
        return init_one(ra_init_kv_cache_desc, size);
      case 2:
        return init_one(ra_init_append_args, size);
      case 3:
        return init_one(ra_init_decode_args, size);
      case 4:
        return init_one(ra_init_kv_cache_statistics, size);
      default:
        return fill<ra_kv_cache_statistics>(ra_init_kv_cache_statistics, [&](auto* s, auto* error) {
          return ra_get_kv_cache_statistics(cache, s, error);
        });
    }
  }

  // Of one rank: no page is lost. One that is shared is used once.
  void look_at_cache() const {
    ra_kv_cache_statistics s;
    ra_init_kv_cache_statistics(&s, sizeof s);
    check(ra_get_kv_cache_statistics(cached_.cache, &s, nullptr) == RA_STATUS_SUCCESS, "no statistics");
    const std::int64_t page_tokens = cached_.shape.page_tokens;
    std::int64_t tokens = 0, pages = 0, most_pages = 0;
    for (const auto& [id, length] : cached_.lengths) {
      tokens += length;
      pages += (length + page_tokens - 1) / page_tokens;
      most_pages = std::max(most_pages, (length + page_tokens - 1) / page_tokens);
    }
    check(s.num_sequences == std::ssize(cached_.lengths) && s.num_tokens == tokens && s.lost_pages == 0, "a cache has ",
          s.num_sequences, " sequences of ", s.num_tokens, " tokens, not ", cached_.lengths.size(), " of ", tokens);
    check(most_pages <= s.used_pages && s.used_pages <= pages &&
              s.used_pages + s.free_pages == cached_.shape.num_pages && s.least_free_pages == s.free_pages,
          s.used_pages, " pages are used and ", s.free_pages, " free");
  }

  void merge() {
    Memory memory;
    ra_merge_args full;
    ra_init_merge_args(&full, sizeof full);
    full.batch = 1 + input_.below(2);
    full.seqlen = input_.below(6);
    full.num_heads = 1 + input_.below(3);
    full.head_dim_v = 1 + input_.below(8);
    full.dtype = 1 + input_.below(3);
    const auto numbers = [](auto& a, auto&& f) {
      f(a.batch), f(a.seqlen), f(a.num_heads), f(a.head_dim_v), f(a.dtype), f(a.reserved);
    };
    if (input_.chance(4)) set_any(input_, full, numbers);
    const std::size_t size = size_of_dtype(full.dtype, 4);
    Tensors make(input_, memory);
    const auto tensor = [&](bool is_written) {
      return make.tensor(full.batch, full.seqlen, full.num_heads, full.head_dim_v, size, is_written);
    };
    full.out_a = tensor(false);
    full.out_b = tensor(false);
    full.out = input_.chance(4) ? full.out_a : tensor(true);
    const std::int64_t rows = product({full.batch, full.seqlen, full.num_heads, 4});
    std::array<std::size_t, 3> sizes{};
    make.floats(full.lse_a, sizes[0], rows, false);
    make.floats(full.lse_b, sizes[1], rows, false);
    make.floats(full.lse, sizes[2], rows, true);
    // One field says it of all three; it may say nothing where all are as long as they must be.
    for (std::size_t& size_of_one : sizes)
      if (size_of_one == 0) size_of_one = static_cast<std::size_t>(std::clamp<std::int64_t>(rows, 1, largest_block));
    if (!make.may_be_cut() || input_.chance(2)) full.lse_size = std::ranges::min(sizes);
    if (full.out.data == full.out_a.data || full.out.data == full.out_b.data) memory.allow_writing();
    const Given<ra_merge_args> args(input_, memory, ra_init_merge_args, full, false);
    Where where(input_);
    const ra_status status = ra_merge_attention(args.pointer, where.get());
    where.look(status);
    memory.look(is_refusal(status));
    check(status == RA_STATUS_SUCCESS || status == RA_STATUS_INVALID_ARGUMENT, "a merge ends with ", status);
    check(status != RA_STATUS_SUCCESS || !args.is_refused, "a merge of nothing");
  }

  void copy() {
    Memory memory;
    const Desc d(input_, memory, true);
    const bool splits = input_.below(2) == 0;
    std::int64_t world_size = 1 + input_.below(5), rank = input_.below(static_cast<int>(world_size));
    if (input_.chance(16)) rank = any_number(input_);
    ra_sequence_args full;
    ra_init_sequence_args(&full, sizeof full);
    full.side = input_.below(2);
    full.num_heads = 1 + input_.below(3);
    full.dim = 1 + input_.below(8);
    const auto numbers = [](auto& a, auto&& f) { f(a.side), f(a.dtype), f(a.num_heads), f(a.dim); };
    if (input_.chance(4)) set_any(input_, full, numbers);
    const std::int64_t rows = ra_get_shard_length(&d, static_cast<std::int32_t>(world_size),
                                                  static_cast<std::int32_t>(rank), full.side, nullptr);
    Tensors make(input_, memory);
    const std::size_t size = size_of_dtype(full.dtype, d.in);
    full.whole = make.tensor(d->batch, full.side == RA_SIDE_QUERY ? d.seqlen_q : d.seqlen_kv, full.num_heads, full.dim,
                             size, !splits);
    full.shard = make.tensor(d->batch, rows, full.num_heads, full.dim, size, splits);
    const Given<ra_sequence_args> args(input_, memory, ra_init_sequence_args, full, false);
    Where where(input_);
    const ra_status status = (splits ? ra_split_sequence : ra_join_sequence)(
        &d, static_cast<std::int32_t>(world_size), static_cast<std::int32_t>(rank), args.pointer, where.get());
    where.look(status);
    memory.look(is_refusal(status));
    check(status == RA_STATUS_SUCCESS || status == RA_STATUS_INVALID_ARGUMENT, "a copy ends with ", status);
    check(status != RA_STATUS_SUCCESS || (rows >= 0 && !args.is_refused && !d.desc.is_refused), "a copy of nothing");
  }

  // Also of sequences that no memory holds.
  void shards() {
    Memory memory;
    const Desc d(input_, memory, false);
    const auto world_size = static_cast<std::int32_t>(input_.chance(4) ? any_number(input_) : 1 + input_.below(6));
    const auto rank = static_cast<std::int32_t>(input_.chance(4) ? any_number(input_) : input_.below(6));
    const std::int32_t side = input_.below(3);
    Where where(input_);
    const std::int64_t length = ra_get_shard_length(&d, world_size, rank, side, where.get());
    if (where.get() != nullptr) where.look(where.status());
    const std::int64_t whole = side == RA_SIDE_QUERY ? d.seqlen_q : d.seqlen_kv;
    check(length >= -1 && length <= std::max<std::int64_t>(whole, -1), "a shard of ", length, " tokens");
    if (length >= 0 && world_size <= 6) {
      std::int64_t sum = 0;
      for (std::int32_t r = 0; r < world_size; ++r) sum += ra_get_shard_length(&d, world_size, r, side, nullptr);
      check(sum == whole, "shards have ", sum, " of ", whole, " tokens");
    }
    const std::int64_t first = input_.chance(4) ? any_number(input_) : input_.below(10);
    std::int64_t count = input_.chance(4) ? any_number(input_) : input_.below(10);
    limit(count, 64, std::int64_t{1} << 48);
    auto* const positions =
        input_.chance(8)
            ? nullptr
            : reinterpret_cast<std::int64_t*>(memory.block(8 * std::clamp<std::int64_t>(count, 0, 64), true));
    Where second(input_);
    const ra_status status = ra_get_shard_positions(&d, world_size, rank, side, first, count, positions, second.get());
    second.look(status);
    memory.look(is_refusal(status));
    check(status != RA_STATUS_SUCCESS || (length >= 0 && first >= 0 && count >= 0 && count <= length - first),
          "positions that are none");
    for (std::int64_t i = 0; status == RA_STATUS_SUCCESS && i < count; ++i) {
      check(positions[i] >= (i == 0 ? 0 : positions[i - 1] + 1) && positions[i] < whole, "position ", positions[i],
            " of ", whole);
      Where third(input_);
      if (i == 0)
        check(ra_get_shard_position(&d, world_size, rank, side, first, third.get()) == positions[0],
              "two positions of one token");
    }
  }

  void ask(const Slot& slot) {
    Memory memory;
    const Desc d(input_, memory, input_.chance(2));
    Where where(input_);
    const ra_status status = ra_check_support(slot.context, &d, where.get());
    where.look(status, true);
    check(status == RA_STATUS_SUCCESS || is_refusal(status), "status ", status);
    Memory other;
    const Desc small(input_, other, true);
    Filled<ra_memory_requirements> filled(input_, other, ra_init_memory_requirements);
    other.allow_writing();
    Where second(input_);
    const ra_status result = ra_get_memory_requirements(slot.context, &small, filled.get(), second.get());
    second.look(result);
    other.look(is_refusal(result));
    check(result != RA_STATUS_SUCCESS || (!filled.is_refused() && slot.context != nullptr), "requirements of nothing");
  }

  void estimate() {
    Memory memory;
    const Given<ra_context_config> config(input_, memory, ra_init_context_config, make_config(), true);
    const Desc d(input_, memory, true);
    Filled<ra_memory_requirements> filled(input_, memory, ra_init_memory_requirements);
    memory.allow_writing();
    Where where(input_);
    const ra_status status = ra_estimate_memory(config.pointer, &d, filled.get(), where.get());
    where.look(status);
    memory.look(is_refusal(status));
    check(status == RA_STATUS_SUCCESS || is_refusal(status), "status ", status);
    check(status != RA_STATUS_SUCCESS || !(config.is_refused || filled.is_refused() || d.desc.is_refused),
          "an estimate of nothing");
  }

  void break_or_look(Slot& slot) {
    Where where(input_);
    if (input_.chance(4)) {
      const ra_status status = ra_abort_context(slot.context, where.get());
      where.look(status);
      check((status == RA_STATUS_SUCCESS) == (slot.context != nullptr), "status ", status);
      slot.is_broken = slot.context != nullptr;
    } else {
      const ra_status status = ra_get_async_error(slot.context, where.get());
      where.look(status);
      check(status == (slot.context == nullptr ? RA_STATUS_INVALID_ARGUMENT
                       : slot.is_broken        ? RA_STATUS_ABORTED
                                               : RA_STATUS_SUCCESS),
            "status ", status);
    }
  }

  template <class T, class F>
  void fill(void (*init)(T*, std::size_t), F&& function) {
    Memory memory;
    Filled<T> filled(input_, memory, init);
    memory.allow_writing();
    Where where(input_);
    const ra_status status = function(filled.get(), where.get());
    where.look(status);
    memory.look(is_refusal(status));
    check(status != RA_STATUS_SUCCESS || (!filled.is_refused() && filled.get()->struct_size == filled.size()),
          "fills what is none");
  }
  void fill_some(const Slot& slot) {
    switch (input_.below(3)) {
      case 0:
        return fill<ra_context_info>(ra_init_context_info, [&](auto* info, auto* error) {
          return ra_get_context_info(slot.context, info, error);
        });
      case 1:
        return fill<ra_call_statistics>(ra_init_call_statistics, [&](auto* s, auto* error) {
          return ra_get_call_statistics(slot.context, s, error);
        });
      default:
        return fill<ra_capabilities>(ra_init_capabilities,
                                     [](auto* c, auto* error) { return ra_get_capabilities(c, error); });
    }
  }
  void say() {
    if (input_.chance(4)) {
      const auto callback = [](int32_t level, const char* message, void*) {
        check(level >= RA_LOG_LEVEL_DEBUG && level <= RA_LOG_LEVEL_WARNING && std::strlen(message) < 10'000,
              "log level ", level);
      };
      return ra_set_log_callback(input_.chance(2) ? nullptr : +callback, this, input_.number<std::int8_t>());
    }
    fill_some(slots_[static_cast<std::size_t>(input_.below(2))]);
  }

  void drop() {
    Memory memory;
    const Desc d(input_, memory, false);
    const std::int64_t entry = any_number(input_), head = any_number(input_), query = any_number(input_),
                       first = any_number(input_);
    std::int64_t count = any_number(input_);
    limit(count, 64, std::int64_t{1} << 48);
    auto* const mask = input_.chance(8)
                           ? nullptr
                           : reinterpret_cast<std::uint8_t*>(memory.block(std::min<std::int64_t>(count, 64), true));
    Where where(input_);
    const ra_status status = ra_get_dropout_mask(&d, entry, head, query, first, count, mask, where.get());
    where.look(status);
    memory.look(is_refusal(status));
    for (std::int64_t i = 0; status == RA_STATUS_SUCCESS && i < count; ++i)
      check(mask[i] <= 1 && (d->dropout_probability > 0 || mask[i] == 1), "a mask of ", static_cast<int>(mask[i]));
  }

  template <class T>
  void init_one(void (*init)(T*, std::size_t), std::size_t size) {
    Memory memory;
    auto* const block = reinterpret_cast<T*>(memory.block(static_cast<std::int64_t>(size), true, alignof(T)));
    init(input_.chance(8) ? nullptr : block, size);
    std::size_t says = 0;
    if (size >= sizeof says) std::memcpy(&says, block, sizeof says);
    if (says != size) memory.look(true);
  }
  void init() {
    const auto size = static_cast<std::size_t>(input_.number<std::uint16_t>() % 1024);
    switch (input_.below(15)) {
      case 0:
        return init_one(ra_init_context_config, size);
      case 1:
        return init_one(ra_init_context_info, size);
      case 2:
        return init_one(ra_init_capabilities, size);
      case 3:
        return init_one(ra_init_attention_desc, size);
      case 4:
        return init_one(ra_init_memory_requirements, size);
      case 5:
        return init_one(ra_init_call_statistics, size);
      case 6:
        return init_one(ra_init_sequence_args, size);
      case 7:
        return init_one(ra_init_forward_args, size);
      case 8:
        return init_one(ra_init_backward_args, size);
      case 9:
        return init_one(ra_init_mha_desc, size);
      case 10:
        return init_one(ra_init_mha_forward_args, size);
      case 11:
        return init_one(ra_init_mha_backward_args, size);
      case 12:
        return init_one(ra_init_mha_requirements, size);
      case 13:
        return init_one(ra_init_reduce_args, size);
      default:
        return init_one(ra_init_merge_args, size);
    }
  }

  void others() {
    Where where(input_);
    switch (input_.below(4)) {
      case 0: {
        static constexpr std::array<const char*, 6> addresses{nullptr, "", ":1", "[::1", "a:b:c", "127.0.0.1:x"};
        const char* const address = addresses[static_cast<std::size_t>(input_.below(6))];
        ra_unique_id id;
        std::memset(&id, 0xA5, sizeof id);
        const ra_status status =
            ra_create_unique_id(input_.chance(8) ? nullptr : &id, input_.below(4) - 1, address, where.get());
        where.look(status);
        check(status != RA_STATUS_SUCCESS || std::memchr(id.text, 0, sizeof id.text) != nullptr,
              "an id without an end");
        return;
      }
      case 1: {
        const std::string name = ra_get_status_name(input_.number<std::int32_t>());
        check(!name.empty() && ra_get_version() > 0, "no name");
        return;
      }
      case 2: {  // one of two: nobody else comes
        if (std::exchange(has_waited_, true)) return;
        ra_unique_id id{};
        ra_context_config c;
        ra_init_context_config(&c, sizeof c);
        c.world_size = 2;
        c.rank = input_.below(2);
        c.timeout_ms = 1;
        ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, nullptr);
        c.unique_id = id.text;
        ra_error error;
        check(ra_create_context(&c, &error) == nullptr && error.status == RA_STATUS_TIMEOUT && error.rank == 1 - c.rank,
              "who is absent: ", error.message);
        return;
      }
      default: {
        // None that is carried out: what it does other tests see, and it takes long.
        const std::int64_t count = any_number(input_);
        if (count >= 1 && count <= 1'000'000) return;
        const ra_status status = ra_run_self_test(slots_[0].context, count, any_number(input_), where.get());
        where.look(status);
        check(is_refusal(status), "a self-test of ", count, " problems ends with ", status);
        return;
      }
    }
  }

  Input& input_;
  std::array<Slot, 2> slots_{};
  int contexts_ = 0;  // that were made
  Cached cached_;
  bool has_waited_ = false;
};

}  // namespace
}  // namespace ringattn::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ringattn::fuzz::Input input(data, size);
  ringattn::fuzz::Program(input).run();
  return 0;
}
