// What must not change the result: whose workspace, which layout of the tensors, how many threads, the second call. And what
// must: accumulate.

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

constexpr std::int64_t kOffsets[] = {0, 11, 11, 40, 57};

ra_attention_desc problem(std::int32_t dtype, std::int32_t sharding) {
  ra_attention_desc desc = make_desc(57, 4, 24, 2);
  desc.num_heads_kv = 2;
  desc.head_dim_v = 20;
  desc.dtype = dtype;
  desc.sharding = sharding;
  desc.mask = RA_MASK_CAUSAL;
  desc.num_documents = 4;
  desc.document_offsets_q = kOffsets;
  desc.num_chunks = 2;
  return desc;
}

std::vector<std::byte> bits_of(const Shard& shard) {
  std::vector<std::byte> bits;
  for (const Tensor* tensor : {&shard.out, &shard.lse, &shard.dq, &shard.dk, &shard.dv}) {
    const std::vector<std::byte> packed = tensor->packed();
    bits.insert(bits.end(), packed.begin(), packed.end());
  }
  return bits;
}

// 64-byte aligned memory of exactly the size that the library asked for, so that a tool sees one byte beyond it.
class Workspace {
 public:
  explicit Workspace(std::size_t size) : size(size), data(::operator new (size, std::align_val_t{64})) {}
  ~Workspace() { ::operator delete (data, std::align_val_t{64}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  const std::size_t size;
  void* const data;
};

struct Variant {
  std::string name;
  Layout layout = Layout::packed;
  bool callers_workspace = false;
  std::int32_t num_threads = 1;
  int calls = 1;
};

// One rank's results of a forward and a backward call.
std::vector<std::byte> run(const Variant& variant, const ra_attention_desc& desc, ra_context* context,
                           std::int32_t world_size, std::int32_t rank) {
  const Shard shard(desc, world_size, rank, variant.layout);
  ra_forward_args forward = shard.forward_args();
  ra_backward_args backward = shard.backward_args();
  std::unique_ptr<Workspace> forward_workspace, backward_workspace;
  Error error;
  if (variant.callers_workspace) {
    ra_memory_requirements required;
    ra_init_memory_requirements(&required, sizeof required);
    EXPECT_EQ(ra_get_memory_requirements(context, &desc, &required, &error), RA_STATUS_SUCCESS) << error;
    forward_workspace = std::make_unique<Workspace>(required.forward_workspace);
    backward_workspace = std::make_unique<Workspace>(required.backward_workspace);
    forward.workspace = forward_workspace->data;
    forward.workspace_size = forward_workspace->size;
    backward.workspace = backward_workspace->data;
    backward.workspace_size = backward_workspace->size;
  }
  for (int call = 0; call < variant.calls; ++call) {
    EXPECT_EQ(ra_forward(context, &desc, &forward, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(ra_backward(context, &desc, &backward, &error), RA_STATUS_SUCCESS) << error;
  }
  for (const Tensor* output : {&shard.out, &shard.lse, &shard.dq, &shard.dk, &shard.dv})
    EXPECT_TRUE(output->gaps_untouched());
  return bits_of(shard);
}

TEST(Arguments, ThatDoNotChangeTheResultDoNotChangeABit) {
  const Variant baseline{"packed, own workspace, one thread"};
  const Variant variants[] = {
      {"a second context"},
      {.name = "called twice", .calls = 2},
      {.name = "caller's workspace", .callers_workspace = true},
      {.name = "tensors with gaps", .layout = Layout::padded},
      {.name = "tensors stored by heads", .layout = Layout::head_major},
      {.name = "two threads", .num_threads = 2},
      {.name = "five threads", .num_threads = 5},
      {.name = "all of it", .layout = Layout::padded, .callers_workspace = true, .num_threads = 3, .calls = 2},
  };
  int cases = 0;
  for (const std::int32_t world_size : {1, 2, 3}) {
    for (const std::int32_t dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, RA_DTYPE_FLOAT16}) {
      for (const std::int32_t sharding : {RA_SHARDING_CONTIGUOUS, RA_SHARDING_ZIGZAG, RA_SHARDING_STRIPED}) {
        const ra_attention_desc desc = problem(dtype, sharding);
        const auto results = [&](const Variant& variant) {
          std::vector<std::vector<std::byte>> bits(static_cast<std::size_t>(world_size));
          for_each_rank(
              world_size,
              [&](std::int32_t rank, ra_context* context) {
                SCOPED_TRACE(variant.name);
                bits[static_cast<std::size_t>(rank)] = run(variant, desc, context, world_size, rank);
              },
              [&](ra_context_config& config) { config.num_threads = variant.num_threads; });
          return bits;
        };
        const auto expected = results(baseline);
        for (const Variant& variant : variants) {
          if (!sampled(cases++, 3)) continue;
          EXPECT_TRUE(results(variant) == expected)
              << variant.name << ", world_size " << world_size << ", dtype " << dtype << ", sharding " << sharding;
        }
      }
    }
  }
}

// Without lse the forward result is the same.
TEST(Arguments, LseIsOptional) {
  for_each_rank(2, [](std::int32_t rank, ra_context* context) {
    const Shard with(make_desc(30), 2, rank), without(make_desc(30), 2, rank);
    Error error;
    EXPECT_EQ(with.forward(context, &error), RA_STATUS_SUCCESS) << error;
    ra_forward_args args = without.forward_args();
    args.lse = nullptr;
    EXPECT_EQ(ra_forward(context, &without.desc, &args, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_TRUE(same_bits(with.out, without.out));
    EXPECT_TRUE(without.lse.untouched());
  });
}

// Tensors without elements: more ranks than tokens, with NULL where there is nothing.
TEST(Arguments, EmptyShardsMayHaveNoData) {
  const ra_attention_desc desc = make_desc(3);
  for_each_rank(5, [&](std::int32_t rank, ra_context* context) {
    const Shard shard(desc, 5, rank);
    ra_forward_args forward = shard.forward_args();
    ra_backward_args backward = shard.backward_args();
    if (shard.q.seq == 0) {
      for (ra_tensor* tensor : {&forward.q, &forward.k, &forward.v, &forward.out, &backward.dout, &backward.q,
                                &backward.k, &backward.v, &backward.out, &backward.dq, &backward.dk, &backward.dv}) {
        tensor->data = nullptr;
      }
      forward.lse = nullptr;
      backward.lse = nullptr;
    }
    Error error;
    EXPECT_EQ(ra_forward(context, &desc, &forward, &error), RA_STATUS_SUCCESS) << rank << ": " << error;
    EXPECT_EQ(ra_backward(context, &desc, &backward, &error), RA_STATUS_SUCCESS) << rank << ": " << error;
  });
}

// RA_STRIDE_REPEAT repeats one slice: the same keys for every entry of a batch.
TEST(Arguments, InputsMayBeBroadcast) {
  ra_attention_desc desc = make_desc(20, 2, 8, 3);
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    Shard repeated(desc, 2, rank);
    const Shard broadcast(desc, 2, rank);
    for (Tensor* tensor : {&repeated.k, &repeated.v}) {
      tensor->for_each_element(
          [&](auto b, auto s, auto h, auto d) { tensor->set(b, s, h, d, tensor->get(0, s, h, d)); });
    }
    Error error;
    EXPECT_EQ(repeated.forward(context, &error), RA_STATUS_SUCCESS) << error;
    ra_forward_args args = broadcast.forward_args();
    args.k = {broadcast.k.bytes.get(), RA_STRIDE_REPEAT, broadcast.k.seq_stride, broadcast.k.head_stride,
              broadcast.k.size};
    args.v = {broadcast.v.bytes.get(), RA_STRIDE_REPEAT, broadcast.v.seq_stride, broadcast.v.head_stride,
              broadcast.v.size};
    EXPECT_EQ(ra_forward(context, &broadcast.desc, &args, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_TRUE(same_bits(broadcast.out, repeated.out));
  });
}

// Tensors of one rank interleaved in one buffer, which is poisoned before.
class Interleaved {
 public:
  explicit Interleaved(std::size_t elements, std::size_t element_size)
      : element_size_(element_size), bytes_(elements * element_size, kPoison), is_element_(bytes_.size()) {}

  // A tensor of the shape and type of `like`, from element `first` on.
  ra_tensor place(const Tensor& like, std::int64_t first, ra_tensor strides) {
    strides.data = bytes_.data() + static_cast<std::size_t>(first) * element_size_;
    like.for_each_element([&](auto b, auto s, auto h, auto d) {
      for (std::size_t i = 0; i < element_size_; ++i) {
        const auto at = static_cast<std::size_t>(address(strides, b, s, h, d) - bytes_.data()) + i;
        EXPECT_FALSE(is_element_.at(at)) << "the test's own tensors overlap";
        is_element_[at] = true;
      }
    });
    return strides;
  }
  void copy_in(const ra_tensor& to, const Tensor& from) const {
    from.for_each_element([&](auto b, auto s, auto h, auto d) {
      std::memcpy(address(to, b, s, h, d), from.at(b, s, h, d), element_size_);
    });
  }
  void expect_equal(const ra_tensor& ours, const Tensor& expected) const {
    expected.for_each_element([&](auto b, auto s, auto h, auto d) {
      ASSERT_EQ(std::memcmp(address(ours, b, s, h, d), expected.at(b, s, h, d), element_size_), 0);
    });
  }
  void expect_gaps_untouched() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if (!is_element_[i]) {
        ASSERT_EQ(bytes_[i], kPoison) << "byte " << i;
      }
    }
  }

 private:
  std::byte* address(const ra_tensor& t, std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t d) const {
    return static_cast<std::byte*>(t.data) +
           static_cast<std::size_t>(b * t.batch_stride + s * t.seq_stride + h * t.head_stride + d) * element_size_;
  }
  std::size_t element_size_;
  std::vector<std::byte> bytes_;
  std::vector<bool> is_element_;
};

// Outputs between other tensors of one buffer are accepted, and right, whatever the buffer's layout.
TEST(Arguments, OutputsMayBeInterleaved) {
  constexpr std::int64_t batch = 2, dim = 8;
  // Where the tensor that has heads first, first + 1, ... of `heads` begins, and its strides; rows: of the shard.
  struct Fused {
    std::string name;
    std::function<std::int64_t(std::int64_t first, std::int64_t heads, std::int64_t rows)> begin;
    std::function<ra_tensor(std::int64_t heads, std::int64_t rows)> strides;
  };
  const Fused layouts[] = {
      {"[batch, seq, heads, dim]", [](auto first, auto, auto) { return first * dim; },
       [](auto heads, auto rows) {
         return ra_tensor{nullptr, rows * heads * dim, heads * dim, dim, 0};
       }},
      {"[batch, heads, seq, dim]", [](auto first, auto, auto rows) { return first * rows * dim; },
       [](auto heads, auto rows) {
         return ra_tensor{nullptr, heads * rows * dim, dim, rows * dim, 0};
       }},
      {"[seq, batch, heads, dim]", [](auto first, auto, auto) { return first * dim; },
       [](auto heads, auto) {
         return ra_tensor{nullptr, heads * dim, batch * heads * dim, dim, 0};
       }},
      {"[batch, room for more tokens, heads, dim]", [](auto first, auto, auto) { return first * dim; },
       [](auto heads, auto rows) {
         return ra_tensor{nullptr, (rows + 3) * heads * dim, heads * dim, dim, 0};
       }},
      {"[heads, batch, seq, dim]", [](auto first, auto, auto rows) { return first * batch * rows * dim; },
       [](auto, auto rows) {
         return ra_tensor{nullptr, rows * dim, dim, batch * rows * dim, 0};
       }},
      // The heads of all tensors in turn: only where all have the same number, which is 4 here.
      {"[batch, seq, head, tensor, dim]", [](auto first, auto, auto) { return first / 4 * dim; },
       [](auto heads, auto rows) {
         return ra_tensor{nullptr, rows * heads * dim, heads * dim, heads / 4 * dim, 0};
       }},
  };
  for (const Fused& layout : layouts) {
    const std::int64_t heads_q = 4, heads_kv = layout.name.find("tensor") == std::string::npos ? 2 : 4;
    for (const std::int32_t world_size : {1, 3}) {
      for (const std::int32_t dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16}) {
        ra_attention_desc desc = make_desc(41, heads_q, dim, batch);
        desc.num_heads_kv = heads_kv;
        desc.dtype = dtype;
        desc.mask = RA_MASK_CAUSAL;
        desc.sharding = RA_SHARDING_ZIGZAG;
        for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
          SCOPED_TRACE(layout.name + ", dtype " + std::to_string(dtype) + ", rank " + std::to_string(rank) + " of " +
                       std::to_string(world_size));
          const Shard apart(desc, world_size, rank);
          const std::int64_t rows = apart.q.seq;
          const auto room = static_cast<std::size_t>(batch * (rows + 3) * 2 * (heads_q + heads_kv) * dim);
          const auto place = [&](Interleaved& buffer, const Tensor& tensor, std::int64_t first, std::int64_t heads) {
            return buffer.place(tensor, layout.begin(first, heads, rows), layout.strides(heads, rows));
          };
          Error error;
          EXPECT_EQ(apart.forward(context, &error), RA_STATUS_SUCCESS) << error;
          EXPECT_EQ(apart.backward(context, &error), RA_STATUS_SUCCESS) << error;

          Interleaved values(room, size_of(dtype));  // q, k, v, out
          const std::int64_t all = 2 * (heads_q + heads_kv);
          ra_forward_args forward = apart.forward_args();
          forward.q = place(values, apart.q, 0, all);
          forward.k = place(values, apart.k, heads_q, all);
          forward.v = place(values, apart.v, heads_q + heads_kv, all);
          forward.out = place(values, apart.out, heads_q + 2 * heads_kv, all);
          values.copy_in(forward.q, apart.q);
          values.copy_in(forward.k, apart.k);
          values.copy_in(forward.v, apart.v);
          EXPECT_EQ(ra_forward(context, &desc, &forward, &error), RA_STATUS_SUCCESS) << error;
          values.expect_equal(forward.out, apart.out);
          values.expect_equal(forward.q, apart.q);
          values.expect_equal(forward.k, apart.k);
          values.expect_equal(forward.v, apart.v);
          values.expect_gaps_untouched();

          Interleaved gradients(room, size_of(dtype));  // dq, dk, dv
          const std::int64_t three = heads_q + 2 * heads_kv;
          ra_backward_args backward = apart.backward_args();
          backward.dq = place(gradients, apart.dq, 0, three);
          backward.dk = place(gradients, apart.dk, heads_q, three);
          backward.dv = place(gradients, apart.dv, heads_q + heads_kv, three);
          EXPECT_EQ(ra_backward(context, &desc, &backward, &error), RA_STATUS_SUCCESS) << error;
          gradients.expect_equal(backward.dq, apart.dq);
          gradients.expect_equal(backward.dk, apart.dk);
          gradients.expect_equal(backward.dv, apart.dv);
          gradients.expect_gaps_untouched();
        });
      }
    }
  }
}

// accumulate adds the gradient to what is there: fp32 step by step, as it is summed up, other types with one rounding.
TEST(Arguments, AccumulateAdds) {
  for (const std::int32_t world_size : {1, 3}) {
    for (const std::int32_t grad_dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16}) {
      for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
        SCOPED_TRACE(testing::Message() << "grad_dtype " << grad_dtype << ", rank " << rank << " of " << world_size);
        ra_attention_desc exact = problem(RA_DTYPE_BFLOAT16, RA_SHARDING_ZIGZAG);
        exact.grad_dtype = RA_DTYPE_FLOAT32;
        ra_attention_desc desc = exact;
        desc.grad_dtype = grad_dtype;
        const Shard alone(exact, world_size, rank);
        Shard added(desc, world_size, rank);
        Error error;
        EXPECT_EQ(alone.forward(context, &error), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(alone.backward(context, &error), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(added.forward(context, &error), RA_STATUS_SUCCESS) << error;

        const auto held = [](auto b, auto s, auto h, auto d) {
          return 0.25F * static_cast<float>((b + s + h + d) % 7);
        };
        for (Tensor* tensor : {&added.dq, &added.dk, &added.dv}) {
          tensor->for_each_element([&](auto b, auto s, auto h, auto d) { tensor->set(b, s, h, d, held(b, s, h, d)); });
        }
        ra_backward_args args = added.backward_args();
        args.accumulate = 1;
        EXPECT_EQ(ra_backward(context, &desc, &args, &error), RA_STATUS_SUCCESS) << error;

        const double roundoff = grad_dtype == RA_DTYPE_FLOAT32 ? 8 * 0x1p-24 : 0x1p-8;
        const auto expect_sum = [&](const Tensor& sum, const Tensor& gradient) {
          sum.for_each_element([&](auto b, auto s, auto h, auto d) {
            const double exact_sum = static_cast<double>(held(b, s, h, d)) + gradient.get(b, s, h, d);
            const double scale = std::fabs(held(b, s, h, d)) + std::fabs(gradient.get(b, s, h, d));
            ASSERT_NEAR(sum.get(b, s, h, d), exact_sum, roundoff * scale);
          });
        };
        expect_sum(added.dq, alone.dq);
        expect_sum(added.dk, alone.dk);
        expect_sum(added.dv, alone.dv);
      });
    }
  }
}

}  // namespace
}  // namespace ringattn::test
