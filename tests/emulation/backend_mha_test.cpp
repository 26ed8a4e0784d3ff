// Layers of multi-head attention, and sums over ranks, with RA_BACKEND_CUDA and its own kernels, both emulated or on GPUs, through the C API:
// rings over both transports against the layer in fp64; the same bits again and again, with every checkpoint, and in CUDA graphs.
#include <array>
#include <mutex>

#include "emulation/mha.h"
#include "support/machine.h"
#include "support/mha_reference.h"

namespace ringattn::test {
namespace {

struct Case {
  std::int32_t transport;
  std::int32_t world_size;
  int devices;
};
class BackendMha : public ::testing::TestWithParam<Case> {};
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.transport == RA_TRANSPORT_NCCL ? "nccl_" : "local_") +
         std::to_string(info.param.world_size) + "_on_" + std::to_string(info.param.devices);
}
INSTANTIATE_TEST_SUITE_P(All, BackendMha,
                         ::testing::Values(Case{RA_TRANSPORT_LOCAL, 1, 1}, Case{RA_TRANSPORT_LOCAL, 2, 1},
                                           Case{RA_TRANSPORT_LOCAL, 4, 2}, Case{RA_TRANSPORT_NCCL, 2, 2},
                                           Case{RA_TRANSPORT_NCCL, 4, 4}),
                         name_of);

constexpr std::array names{"out",  "dx",   "dw_q", "dw_k", "dw_v",    "dw_o",
                           "db_q", "db_k", "db_v", "db_o", "dnorm_q", "dnorm_k"};
using AllResults = std::array<std::vector<double>, names.size()>;

template <class Real>
AllResults all_of(const MhaResults<Real>& results, DType out_dtype, DType dx_dtype) {
  AllResults all;
  const auto add = [&](std::size_t n, const std::vector<Real>& from, DType dtype) {
    for (const Real x : from) {
      const auto number = static_cast<double>(x);
      all[n].push_back(std::is_same_v<Real, float> ? reference::rounded(number, dtype) : number);
    }
  };
  add(0, results.out, out_dtype);
  add(1, results.dx, dx_dtype);
  for (std::size_t i = 0; i < results.gradients.size(); ++i) add(2 + i, results.gradients[i], DType::float32);
  return all;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// At most twice the error of a plain computation, which counts as no less than one rounding of what is stored and of what lies between, of
// the largest number.
void expect_within(const AllResults& ours, const Problem& p, const MhaShard& whole, double times) {
  const AllResults exact = all_of(MhaReference<double>(p, whole).run(), p.out_dtype, p.grad_dtype);
  std::vector<AllResults> plain;
  for (const DType operands : {DType::float32, p.dtype})
    plain.push_back(all_of(MhaReference<float>(p, whole, operands).run(), p.out_dtype, p.grad_dtype));
  for (std::size_t n = 0; n < names.size(); ++n) {
    ASSERT_EQ(ours[n].size(), exact[n].size()) << names[n];
    double size = 0, error = 0;
    for (const double x : exact[n]) size = std::max(size, std::abs(x));
    for (const AllResults& each : plain) error = std::max(error, largest_difference(each[n], exact[n]));
    const double rounding = p.dtype == DType::float32 ? 0x1p-22 : p.dtype == DType::bfloat16 ? 0x1p-9 : 0x1p-12;
    const bool is_sum = n >= 2;  // over tokens, and `times` times
    std::vector<double> scaled = exact[n];
    for (double& x : scaled) x *= is_sum ? times : 1;
    EXPECT_LE(largest_difference(ours[n], scaled), 2 * (is_sum ? times : 1) * std::max(error, rounding * size) + 1e-7)
        << names[n] << ", whose largest number is " << size << "; plain error " << error;
  }
}

TEST_P(BackendMha, IsNearFp64) {
  const auto [transport, world_size, devices] = GetParam();
  Machine machine(devices);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, world_size);
  const std::uint64_t first = seed();
  reference::Random random(first);
  const int cases = full() ? 60 : sample(12);
  for (int n = 0; n < cases; ++n) {
    const Problem p = draw_attention(random, {.batch = 2,
                                              .seqlen = 40,
                                              .num_heads_kv = 2,
                                              .group = 2,
                                              .head_dim = 36,
                                              .modifiers = n % 3 == 2,
                                              .layers = n % 4 == 3});
    const ra_mha_desc mha = draw_mha(random, p);
    const Layout layout = reference::draw(random, 0, 1) == 0 ? Layout::packed : Layout::padded;
    const bool reduces = reference::draw(random, 0, 1) == 1, accumulates = reference::draw(random, 0, 2) == 0;
    SCOPED_TRACE(testing::Message() << "seed " << first << ", case " << n << ", d_model " << mha.d_model << ", rotary "
                                    << mha.rotary << ", biases " << mha.has_qkv_bias << mha.has_out_bias << ", norms "
                                    << mha.normalize_heads << ", checkpoint " << mha.checkpoint << ": "
                                    << reference::describe(p));
    machine.reset(first + static_cast<std::uint64_t>(n));
    const Description description(p);
    const MhaShard whole(description.desc, mha, 1, 0);
    AllResults ours;
    ours[0].resize(static_cast<std::size_t>(p.batch * p.seqlen_q * mha.d_model));
    ours[1].resize(ours[0].size());
    std::mutex mutex;
    {
      CudaRanks ranks(world_size, transport, machine.devices());
      ranks->run([&](std::int32_t rank, ra_context* context) {
        const int device = rank % machine.devices();
        const Streams streams(device);
        DeviceMha layer(description.desc, mha, world_size, rank, device, layout);
        if (!layer.make_room(context)) return;
        layer.upload(streams.first);
        Error error;
        EXPECT_EQ(layer.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
        if (accumulates) {
          EXPECT_EQ(layer.backward(context, streams.second, &error), RA_STATUS_SUCCESS) << error;
        }
        EXPECT_EQ(layer.backward(context, streams.second, &error, reduces, accumulates), RA_STATUS_SUCCESS) << error;
        layer.download(streams.second);

        const MhaShard& s = layer.shard;
        const std::lock_guard lock(mutex);
        std::size_t result = 0;
        for (const Tensor* t : {&s.out, &s.dx}) {
          EXPECT_TRUE(t->gaps_untouched()) << names[result];
          t->for_each_element([&](auto b, auto row, auto, auto d) {
            const std::int64_t token = b * p.seqlen_q + s.positions[static_cast<std::size_t>(row)];
            ours[result][static_cast<std::size_t>(token * mha.d_model + d)] = static_cast<double>(t->get(b, row, 0, d));
          });
          ++result;
        }
        for (const Tensor& t : s.gradients) {
          if (t.size > 0) {
            EXPECT_TRUE(t.gaps_untouched()) << names[result];
          }
          std::vector<double>& sum = ours[result++];
          const bool is_first = sum.empty();
          std::size_t i = 0;
          if (t.size == 0) continue;
          t.for_each_element([&](auto, auto row, auto, auto column) {
            const auto x = static_cast<double>(t.get(0, row, 0, column));
            if (is_first)
              sum.push_back(x);
            else if (reduces)
              EXPECT_EQ(x, sum[i]) << "rank " << rank << " has another sum";
            else
              sum[i] += x;
            ++i;
          });
        }
      });
    }
    machine.expect_clean();
    if (!HasFailure()) expect_within(ours, p, whole, accumulates ? 2 : 1);
    if (HasFailure()) return;
  }
}

// Results of both passes.
using Bits = std::vector<std::vector<std::byte>>;
Bits bits_of(const MhaShard& shard) {
  Bits bits{shard.out.packed(), shard.dx.packed()};
  for (const Tensor& t : shard.gradients) bits.push_back(t.packed());
  return bits;
}

// Of all ranks.
Bits run(const Case& param, Machine& machine, const ra_attention_desc& desc, const ra_mha_desc& mha) {
  std::vector<Bits> of_ranks(static_cast<std::size_t>(param.world_size));
  CudaRanks ranks(param.world_size, param.transport, machine.devices());
  ranks->run([&](std::int32_t rank, ra_context* context) {
    const int device = rank % machine.devices();
    const Streams streams(device);
    DeviceMha layer(desc, mha, param.world_size, rank, device);
    if (!layer.make_room(context)) return;
    layer.upload(streams.first);
    Error error;
    EXPECT_EQ(layer.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(layer.backward(context, streams.first, &error, true), RA_STATUS_SUCCESS) << error;
    layer.download(streams.first);
    of_ranks[static_cast<std::size_t>(rank)] = bits_of(layer.shard);
  });
  Bits all;
  for (const Bits& bits : of_ranks) all.insert(all.end(), bits.begin(), bits.end());
  return all;
}

TEST_P(BackendMha, GivesTheSameBitsAgainAndWithEachCheckpoint) {
  Machine machine(GetParam().devices);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, GetParam().transport, GetParam().world_size);
  std::uint64_t order = seed();
  for (const std::int32_t dtype : {RA_DTYPE_BFLOAT16, RA_DTYPE_FLOAT32}) {
    if (dtype == RA_DTYPE_FLOAT32 && slowness > 1 && !full()) break;
    const ra_attention_desc desc = small_attention(dtype);
    Bits first;
    for (const std::int32_t checkpoint :
         {RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_ATTENTION, RA_CHECKPOINT_ALL, RA_CHECKPOINT_INPUT}) {
      machine.reset(order++);
      const Bits bits = run(GetParam(), machine, desc, full_mha(checkpoint));
      machine.expect_clean();
      if (first.empty()) first = bits;
      EXPECT_EQ(bits, first) << "checkpoint " << checkpoint << ", dtype " << dtype;
    }
    if (HasFailure()) return;
  }
}

// A graph of both passes gives what the calls give, whatever the inputs then are; and calls after the first allocate nothing.
class BackendMhaGraph : public BackendMha {};
INSTANTIATE_TEST_SUITE_P(All, BackendMhaGraph, ::testing::Values(Case{RA_TRANSPORT_LOCAL, 1, 1}), name_of);

TEST_P(BackendMhaGraph, IsRightEveryTime) {
  Machine machine(1);
  machine.reset(seed());
  const ra_attention_desc desc = small_attention(RA_DTYPE_BFLOAT16);
  {
    CudaRanks ranks(1, RA_TRANSPORT_LOCAL, 1);
    ranks->run([&](std::int32_t, ra_context* context) {
      const Streams streams(0);
      DeviceMha layer(desc, full_mha(), 1, 0, 0);
      MhaShard other(desc, full_mha(), 1, 0, Layout::packed, 2);
      if (!layer.make_room(context)) return;
      const auto swap_inputs = [&] {
        std::byte* const x = layer.shard.x.bytes.get();
        std::swap_ranges(x, x + other.x.size, other.x.bytes.get());
      };
      const auto call = [&] {
        Error error;
        EXPECT_EQ(layer.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(layer.backward(context, streams.first, &error, true), RA_STATUS_SUCCESS) << error;
      };
      std::array<Bits, 2> expected;
      for (Bits& bits : expected) {
        if (&bits == &expected[1]) machine.forbid_allocation();
        layer.upload(streams.first);
        call();
        layer.download(streams.first);
        bits = bits_of(layer.shard);
        swap_inputs();
      }
      machine.expect_no_allocation();
      EXPECT_NE(expected[0], expected[1]);
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      ok(cudaStreamBeginCapture(streams.first, cudaStreamCaptureModeGlobal));
      call();
      ok(cudaStreamEndCapture(streams.first, &graph));
      ok(cudaGraphInstantiate(&exec, graph));
      ok(cudaGraphDestroy(graph));
      for (int launch = 0; launch < 4; ++launch) {
        layer.upload(streams.first);
        ok(cudaGraphLaunch(exec, streams.first));
        layer.download(streams.first);
        EXPECT_EQ(bits_of(layer.shard), expected[static_cast<std::size_t>(launch % 2)]) << "launch " << launch;
        swap_inputs();
      }
      ok(cudaGraphExecDestroy(exec));
    });
  }
  machine.expect_clean();
}

// Number i is summed along the ring from the rank on whose part it is.
TEST_P(BackendMha, SumsOverRanksInTheOrderThatItSays) {
  const auto [transport, world_size, devices] = GetParam();
  Machine machine(devices);
  RINGATTN_SKIP_WITHOUT_DEVICES(machine, transport, world_size);
  machine.reset(seed());
  const auto number = [](std::int32_t rank, std::int64_t i) {
    return static_cast<float>(hashed_uniform(1, 'r', rank, i));
  };
  {
    CudaRanks ranks(world_size, transport, machine.devices());
    ranks->run([&](std::int32_t rank, ra_context* context) {
      const int device = rank % machine.devices();
      const Streams streams(device);
      for (const std::int64_t count : {0, 1, 5, 1000}) {
        std::vector<float> numbers;
        for (std::int64_t i = 0; i < count; ++i) numbers.push_back(number(rank, i));
        void* data = nullptr;
        const std::size_t size = numbers.size() * sizeof(float);
        ok(cudaMalloc(&data, size));
        if (count > 0) ok(cudaMemcpyAsync(data, numbers.data(), size, cudaMemcpyHostToDevice, streams.first));
        ra_reduce_args args;
        ra_init_reduce_args(&args, sizeof args);
        args.data = static_cast<float*>(data), args.count = count, args.stream = streams.first;
        Error error;
        EXPECT_EQ(ra_all_reduce(context, &args, &error), RA_STATUS_SUCCESS) << error;
        if (count > 0) ok(cudaMemcpyAsync(numbers.data(), data, size, cudaMemcpyDeviceToHost, streams.first));
        ok(cudaStreamSynchronize(streams.first));
        ok(cudaFree(data));
        const std::int64_t part = (count + world_size - 1) / world_size;
        for (std::int64_t i = 0; i < count; ++i) {
          const auto begin = static_cast<std::int32_t>(i / part);
          float sum = number(begin, i);
          for (std::int32_t n = 1; n < world_size; ++n) sum += number((begin + n) % world_size, i);
          ASSERT_EQ(numbers[static_cast<std::size_t>(i)], sum) << "number " << i << " of " << count;
        }
      }
    });
  }
  machine.expect_clean();
}

}  // namespace
}  // namespace ringattn::test
