// Growth of structs: a program and a library built from headers of different age understand each other.
//
// One row of the table below per struct with a struct_size, one property per TEST_P. The caller's struct always lies in a heap
// block of exactly the size that it claims, so that AddressSanitizer sees a byte read or written beyond it.
#include <gtest/gtest.h>
#include <ringattn/ringattn.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <ostream>
#include <string>
#include <vector>

namespace {

constexpr std::size_t newer = 64;  // bytes that a later header may have added
constexpr unsigned char garbage = 0xAB;

// A caller's struct, filled with garbage.
class Block {
 public:
  explicit Block(std::size_t size) : size_(size), bytes_(static_cast<unsigned char*>(std::malloc(size))) {
    if (bytes_ == nullptr) throw std::bad_alloc();
    std::memset(bytes_.get(), garbage, size);
  }
  unsigned char* bytes() const { return bytes_.get(); }
  std::size_t size() const { return size_; }
  std::size_t struct_size() const {
    std::size_t value = 0;
    std::memcpy(&value, bytes(), sizeof value);
    return value;
  }
  void set_struct_size(std::size_t value) const { std::memcpy(bytes(), &value, sizeof value); }

 private:
  struct Free {
    void operator()(unsigned char* bytes) const { std::free(bytes); }
  };
  std::size_t size_;
  std::unique_ptr<unsigned char, Free> bytes_;
};

// One rank, one head, two tokens: the smallest world in which every struct has a use.
class World {
 public:
  World() {
    ra_init_attention_desc(&desc, sizeof desc);
    desc.seqlen_q = 2;
    desc.head_dim = dim;
    ra_init_context_config(&config, sizeof config);
    config.num_threads = 1;
    context.reset(ra_create_context(&config, nullptr));
    ra_kv_cache_desc shape;
    ra_init_kv_cache_desc(&shape, sizeof shape);
    shape.num_pages = 4096;
    shape.num_heads_kv = 1;
    shape.head_dim = dim;
    cache.reset(ra_create_kv_cache(context.get(), &shape, nullptr));
    sequence = ra_create_sequence(cache.get(), nullptr);
    ra_append_args first;
    ra_init_append_args(&first, sizeof first);
    first.num_tokens = 2;
    first.sequences = &sequence;
    first.k.data = k.data();
    first.v.data = v.data();
    ra_append(context.get(), cache.get(), &first, nullptr);
    ra_init_attention_desc(&decoding, sizeof decoding);
    decoding.seqlen_q = 2;
    decoding.head_dim = dim;
  }

  static constexpr std::int64_t dim = 4;
  using Floats = std::array<float, 2 * dim>;
  Floats q{1, 2, 3, 4, 5, 6, 7, 8}, k = q, v = q, out{}, dout = q, dq{}, dk{}, dv{};
  std::array<float, 2> lse{}, lse_b{};
  ra_attention_desc desc{};
  ra_context_config config{};

  struct Destroy {
    void operator()(ra_context* c) const { ra_destroy_context(c); }
  };
  std::unique_ptr<ra_context, Destroy> context;
  struct DestroyCache {
    void operator()(ra_kv_cache* c) const { ra_destroy_kv_cache(c); }
  };
  std::unique_ptr<ra_kv_cache, DestroyCache> cache;
  std::int64_t sequence = -1;
  ra_attention_desc decoding{};
};

ra_tensor packed(World::Floats& data) { return {data.data(), 0, 0, 0, 0}; }

// How one struct is made and used.
struct Row {
  const char* name;
  std::size_t known;   // sizeof in this header
  std::size_t oldest;  // a caller that ends here can still make a valid call: all further fields have defaults
  bool filled;         // by the library, rather than read
  void (*init)(void* target, std::size_t size);
  void (*prepare)(World& world, void* target);  // sets fields below `oldest`
  ra_status (*use)(World& world, void* target, ra_error* error);

  friend std::ostream& operator<<(std::ostream& stream, const Row& row) { return stream << row.name; }
};

template <class T, void (*function)(T*, std::size_t)>
void init(void* target, std::size_t size) {
  function(static_cast<T*>(target), size);
}

void nothing(World&, void*) {}

// Fields are set in a copy of full size, of which the caller's struct takes what it has room for.
template <class T, class Set>
void set_fields(void* target, std::size_t oldest, Set set) {
  T value;
  std::memset(&value, 0, sizeof value);
  std::memcpy(&value, target, oldest);
  set(value);
  std::memcpy(target, &value, oldest);
}

constexpr std::size_t oldest_config = offsetof(ra_context_config, engine);
constexpr std::size_t oldest_desc = offsetof(ra_attention_desc, num_documents);
constexpr std::size_t oldest_sequence = sizeof(ra_sequence_args);
constexpr std::size_t oldest_forward = offsetof(ra_forward_args, lse);
constexpr std::size_t oldest_backward = offsetof(ra_backward_args, accumulate);
constexpr std::size_t oldest_merge = sizeof(ra_merge_args);
constexpr std::size_t oldest_cache = sizeof(ra_kv_cache_desc);
constexpr std::size_t oldest_append = sizeof(ra_append_args);
constexpr std::size_t oldest_decode = offsetof(ra_decode_args, lse);
constexpr std::size_t oldest_filled = 2 * sizeof(std::size_t);

const Row rows[] = {
    {"context_config", sizeof(ra_context_config), oldest_config, false, init<ra_context_config, ra_init_context_config>,
     nothing,
     [](World&, void* target, ra_error* error) {
       ra_error own;
       ra_error* const where = error == nullptr ? &own : error;
       ra_context* const context = ra_create_context(static_cast<ra_context_config*>(target), where);
       ra_destroy_context(context);
       EXPECT_EQ(context == nullptr, where->status != RA_STATUS_SUCCESS);
       return static_cast<ra_status>(where->status);
     }},
    {"capabilities", sizeof(ra_capabilities), oldest_filled, true, init<ra_capabilities, ra_init_capabilities>, nothing,
     [](World&, void* target, ra_error* error) {
       return ra_get_capabilities(static_cast<ra_capabilities*>(target), error);
     }},
    {"context_info", sizeof(ra_context_info), oldest_filled, true, init<ra_context_info, ra_init_context_info>, nothing,
     [](World& world, void* target, ra_error* error) {
       return ra_get_context_info(world.context.get(), static_cast<ra_context_info*>(target), error);
     }},
    {"attention_desc", sizeof(ra_attention_desc), oldest_desc, false, init<ra_attention_desc, ra_init_attention_desc>,
     [](World&, void* target) {
       set_fields<ra_attention_desc>(target, oldest_desc, [](ra_attention_desc& desc) {
         desc.seqlen_q = 2;
         desc.head_dim = World::dim;
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_check_support(world.context.get(), static_cast<ra_attention_desc*>(target), error);
     }},
    {"memory_requirements", sizeof(ra_memory_requirements), oldest_filled, true,
     init<ra_memory_requirements, ra_init_memory_requirements>, nothing,
     [](World& world, void* target, ra_error* error) {
       return ra_get_memory_requirements(world.context.get(), &world.desc, static_cast<ra_memory_requirements*>(target),
                                         error);
     }},
    {"call_statistics", sizeof(ra_call_statistics), oldest_filled, true,
     init<ra_call_statistics, ra_init_call_statistics>, nothing,
     [](World& world, void* target, ra_error* error) {
       return ra_get_call_statistics(world.context.get(), static_cast<ra_call_statistics*>(target), error);
     }},
    {"sequence_args", sizeof(ra_sequence_args), oldest_sequence, false, init<ra_sequence_args, ra_init_sequence_args>,
     [](World& world, void* target) {
       set_fields<ra_sequence_args>(target, oldest_sequence, [&](ra_sequence_args& args) {
         args.num_heads = 1;
         args.dim = World::dim;
         args.whole = packed(world.q);
         args.shard = packed(world.out);
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_split_sequence(&world.desc, 1, 0, static_cast<ra_sequence_args*>(target), error);
     }},
    {"forward_args", sizeof(ra_forward_args), oldest_forward, false, init<ra_forward_args, ra_init_forward_args>,
     [](World& world, void* target) {
       set_fields<ra_forward_args>(target, oldest_forward, [&](ra_forward_args& args) {
         args.q = packed(world.q);
         args.k = packed(world.k);
         args.v = packed(world.v);
         args.out = packed(world.out);
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_forward(world.context.get(), &world.desc, static_cast<ra_forward_args*>(target), error);
     }},
    {"backward_args", sizeof(ra_backward_args), oldest_backward, false, init<ra_backward_args, ra_init_backward_args>,
     [](World& world, void* target) {
       set_fields<ra_backward_args>(target, oldest_backward, [&](ra_backward_args& args) {
         args.dout = packed(world.dout);
         args.q = packed(world.q);
         args.k = packed(world.k);
         args.v = packed(world.v);
         args.out = packed(world.out);
         args.lse = world.lse.data();
         args.dq = packed(world.dq);
         args.dk = packed(world.dk);
         args.dv = packed(world.dv);
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_backward(world.context.get(), &world.desc, static_cast<ra_backward_args*>(target), error);
     }},
    {"kv_cache_desc", sizeof(ra_kv_cache_desc), oldest_cache, false, init<ra_kv_cache_desc, ra_init_kv_cache_desc>,
     [](World&, void* target) {
       set_fields<ra_kv_cache_desc>(target, oldest_cache, [](ra_kv_cache_desc& desc) {
         desc.num_pages = 2;
         desc.num_heads_kv = 1;
         desc.head_dim = World::dim;
       });
     },
     [](World& world, void* target, ra_error* error) {
       ra_error own;
       ra_error* const where = error == nullptr ? &own : error;
       ra_destroy_kv_cache(ra_create_kv_cache(world.context.get(), static_cast<ra_kv_cache_desc*>(target), where));
       return static_cast<ra_status>(where->status);
     }},
    {"append_args", sizeof(ra_append_args), oldest_append, false, init<ra_append_args, ra_init_append_args>,
     [](World& world, void* target) {
       set_fields<ra_append_args>(target, oldest_append, [&](ra_append_args& args) {
         args.num_tokens = 2;
         args.sequences = &world.sequence;
         args.k = packed(world.k);
         args.v = packed(world.v);
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_append(world.context.get(), world.cache.get(), static_cast<ra_append_args*>(target), error);
     }},
    {"decode_args", sizeof(ra_decode_args), oldest_decode, false, init<ra_decode_args, ra_init_decode_args>,
     [](World& world, void* target) {
       set_fields<ra_decode_args>(target, oldest_decode, [&](ra_decode_args& args) {
         args.sequences = &world.sequence;
         args.q = packed(world.q);
         args.out = packed(world.out);
       });
     },
     [](World& world, void* target, ra_error* error) {
       return ra_decode(world.context.get(), world.cache.get(), &world.decoding, static_cast<ra_decode_args*>(target),
                        error);
     }},
    {"kv_cache_statistics", sizeof(ra_kv_cache_statistics), oldest_filled, true,
     init<ra_kv_cache_statistics, ra_init_kv_cache_statistics>, nothing,
     [](World& world, void* target, ra_error* error) {
       return ra_get_kv_cache_statistics(world.cache.get(), static_cast<ra_kv_cache_statistics*>(target), error);
     }},
    {"merge_args", sizeof(ra_merge_args), oldest_merge, false, init<ra_merge_args, ra_init_merge_args>,
     [](World& world, void* target) {
       set_fields<ra_merge_args>(target, oldest_merge, [&](ra_merge_args& args) {
         args.seqlen = 2;
         args.head_dim_v = World::dim;
         args.out_a = packed(world.q);
         args.out_b = packed(world.k);
         args.out = packed(world.out);
         args.lse_a = world.lse.data();
         args.lse_b = world.lse_b.data();
         args.lse = world.lse.data();
       });
     },
     [](World&, void* target, ra_error* error) {
       return ra_merge_attention(static_cast<ra_merge_args*>(target), error);
     }},
};

class StructSize : public testing::TestWithParam<Row> {
 protected:
  const Row& row() const { return GetParam(); }

  Block initialised(std::size_t size) const {
    Block block(size);
    row().init(block.bytes(), size);
    return block;
  }

  // A struct of `size` bytes, ready for its call.
  Block prepared(std::size_t size) {
    Block block = initialised(size);
    row().prepare(world_, block.bytes());
    return block;
  }

  ra_status use(const Block& block, ra_error& error) { return row().use(world_, block.bytes(), &error); }

  void expect_refused(const Block& block) {
    const std::vector<unsigned char> before(block.bytes(), block.bytes() + block.size());
    ra_error error;
    EXPECT_EQ(use(block, error), RA_STATUS_INVALID_ARGUMENT) << "struct_size " << block.struct_size();
    EXPECT_EQ(error.status, RA_STATUS_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("struct_size"), std::string::npos) << error.message;
    EXPECT_EQ(row().use(world_, block.bytes(), nullptr), RA_STATUS_INVALID_ARGUMENT);
    EXPECT_EQ(std::memcmp(before.data(), block.bytes(), block.size()), 0) << "a refused call wrote to the struct";
  }

  World world_;
};

class FilledStruct : public StructSize {};

TEST_P(StructSize, InitFillsExactlyWhatItIsGiven) {
  const Block full = initialised(row().known);
  EXPECT_EQ(full.struct_size(), row().known);
  for (std::size_t size = sizeof(std::size_t); size <= row().known + newer; ++size) {
    const Block block = initialised(size);
    ASSERT_EQ(block.struct_size(), size);
    const std::size_t shared = size < row().known ? size : row().known;
    ASSERT_EQ(std::memcmp(block.bytes() + sizeof size, full.bytes() + sizeof size, shared - sizeof size), 0)
        << "other defaults in a struct of " << size << " bytes";
    for (std::size_t i = row().known; i < size; ++i) ASSERT_EQ(block.bytes()[i], 0) << "byte " << i << " of " << size;
  }
  for (std::size_t size = 1; size < sizeof(std::size_t); ++size) initialised(size);  // AddressSanitizer looks on
  row().init(nullptr, row().known);
}

TEST_P(StructSize, CurrentCallerIsServed) {
  const Block block = prepared(row().known);
  ra_error error;
  EXPECT_EQ(use(block, error), RA_STATUS_SUCCESS) << error.message;
  EXPECT_EQ(block.struct_size(), row().known);
}

TEST_P(StructSize, OldCallerIsServed) {
  for (std::size_t size = row().oldest; size < row().known; size += sizeof(void*)) {
    const Block block = prepared(size);
    ra_error error;
    EXPECT_EQ(use(block, error), RA_STATUS_SUCCESS) << "struct_size " << size << ": " << error.message;
    EXPECT_EQ(block.struct_size(), size);
  }
}

TEST_P(StructSize, NewerCallerWithNothingNewIsServed) {
  const Block block = prepared(row().known + newer);
  ra_error error;
  EXPECT_EQ(use(block, error), RA_STATUS_SUCCESS) << error.message;
  EXPECT_EQ(block.struct_size(), row().known + newer);
  for (std::size_t i = row().known; i < block.size(); ++i) EXPECT_EQ(block.bytes()[i], 0) << "byte " << i;
}

TEST_P(StructSize, NewerCallerWithSomethingNewIsRefused) {
  for (std::size_t i = row().known; i < row().known + newer; ++i) {
    const Block block = prepared(row().known + newer);
    block.bytes()[i] = 1;
    expect_refused(block);
  }
}

TEST_P(StructSize, AbsurdSizeIsRefused) {
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, sizeof(std::size_t) - 1, std::size_t{1} << 40, SIZE_MAX}) {
    const Block block = prepared(row().known);
    block.set_struct_size(size);
    expect_refused(block);
  }
}

// What an old caller gets filled in are the same values that a current one gets.
TEST_P(FilledStruct, OldCallerGetsTheSameValues) {
  const Block full = prepared(row().known);
  ra_error error;
  ASSERT_EQ(use(full, error), RA_STATUS_SUCCESS) << error.message;
  for (std::size_t size = row().oldest; size < row().known; size += sizeof(void*)) {
    const Block block = prepared(size);
    ASSERT_EQ(use(block, error), RA_STATUS_SUCCESS) << error.message;
    EXPECT_EQ(std::memcmp(block.bytes() + sizeof size, full.bytes() + sizeof size, size - sizeof size), 0) << size;
  }
}

std::vector<Row> filled_rows() {
  std::vector<Row> filled;
  for (const Row& row : rows)
    if (row.filled) filled.push_back(row);
  return filled;
}

std::string name_of(const testing::TestParamInfo<Row>& row) { return row.param.name; }

INSTANTIATE_TEST_SUITE_P(, StructSize, testing::ValuesIn(rows), name_of);
INSTANTIATE_TEST_SUITE_P(, FilledStruct, testing::ValuesIn(filled_rows()), name_of);

}  // namespace
