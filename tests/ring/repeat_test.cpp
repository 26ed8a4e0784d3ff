// The same bits, whatever the threads and the timing; the same results within the rule, whatever the world size.
#include <gtest/gtest.h>
#include <oneapi/tbb/global_control.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/memory.h"
#include "core/threads.h"
#include "ring/ring.h"
#include "support/oracle_run.h"
#include "support/random.h"
#include "transport/local.h"

namespace ringattn {
namespace {

using reference::draw;
using reference::Inputs;
using reference::Oracle;
using reference::Random;

// Sleeps a little, at random, before whatever a transport does.
class DelayedTransport final : public Transport {
 public:
  DelayedTransport(Transport& transport, std::uint64_t seed) : transport_(transport), random_(seed) {}
  std::vector<std::byte> all_gather(std::span<const std::byte> record) override {
    return transport_.all_gather(record);
  }
  void send(int peer, std::uint64_t tag, std::span<const std::byte> data) override {
    sleep();
    transport_.send(peer, tag, data);
  }
  void receive(int peer, std::uint64_t tag, std::span<std::byte> data) override {
    sleep();
    transport_.receive(peer, tag, data);
  }
  void progress() override { transport_.progress(); }
  void wait() override {
    sleep();
    transport_.wait();
  }
  void abandon() noexcept override { transport_.abandon(); }
  void fail(const Failure& failure) noexcept override { transport_.fail(failure); }
  Failure failure() const noexcept override { return transport_.failure(); }

 private:
  void sleep() {
    if (draw(random_, 0, 3) == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw(random_, 0, 300)));
  }
  Transport& transport_;
  Random random_;
};

// All bytes that a forward and a backward pass write on all ranks.
std::vector<std::byte> run_delayed(const Inputs& inputs, int world_size, int num_threads, std::uint64_t seed) {
  const Problem& p = inputs.problem;
  std::vector<std::vector<std::byte>> written(static_cast<std::size_t>(world_size));
  const std::string id = make_local_id();
  test::run_threads(world_size, [&](std::int32_t rank) {
    const auto engine = make_cpu_engine(test::engine(), num_threads);
    const auto local = join_local(id, world_size, rank, 60'000, [] {});
    DelayedTransport transport(*local, seed + static_cast<std::uint64_t>(rank));
    const Machinery machinery{*engine, transport};
    test::detail::Shards shards(inputs, world_size, rank);
    const auto tensor = [&](test::detail::ShardBuffer& s, std::int64_t heads, std::int64_t dim) {
      return packed_tensor(s.bytes.data(), s.dtype, row_count(s.pieces), heads, dim);
    };
    std::vector<float> lse(static_cast<std::size_t>(p.batch * p.num_heads_q * row_count(shards.q.pieces)));
    const PassPlan forward_plan(p, world_size, rank, Pass::forward), backward_plan(p, world_size, rank, Pass::backward);
    Block workspace;
    ForwardCall forward;
    forward.q = tensor(shards.q, p.num_heads_q, p.head_dim);
    forward.k = tensor(shards.k, p.num_heads_kv, p.head_dim);
    forward.v = tensor(shards.v, p.num_heads_kv, p.head_dim_v);
    forward.out = tensor(shards.out, p.num_heads_q, p.head_dim_v);
    forward.lse = lse.data();
    forward.workspace = workspace.reserve(workspace_bytes(forward_plan, *engine));
    run_forward(forward_plan, machinery, forward);
    BackwardCall backward;
    backward.dout = tensor(shards.dout, p.num_heads_q, p.head_dim_v);
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.out = forward.out;
    backward.lse = lse.data();
    backward.dq = tensor(shards.dq, p.num_heads_q, p.head_dim);
    backward.dk = tensor(shards.dk, p.num_heads_kv, p.head_dim);
    backward.dv = tensor(shards.dv, p.num_heads_kv, p.head_dim_v);
    backward.workspace = workspace.reserve(workspace_bytes(backward_plan, *engine));
    run_backward(backward_plan, machinery, backward);
    auto& mine = written[static_cast<std::size_t>(rank)];
    for (const auto* buffer : {&shards.out, &shards.dq, &shards.dk, &shards.dv})
      mine.insert(mine.end(), buffer->bytes.begin(), buffer->bytes.end());
    const auto* lse_bytes = reinterpret_cast<const std::byte*>(lse.data());
    mine.insert(mine.end(), lse_bytes, lse_bytes + lse.size() * sizeof(float));
  });
  std::vector<std::byte> all;
  for (const auto& rank : written) all.insert(all.end(), rank.begin(), rank.end());
  return all;
}

Problem problem_to_repeat(std::int64_t num_heads_kv, std::int64_t head_dim, DType dtype, std::int64_t num_chunks) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 700;
  p.num_heads_kv = num_heads_kv;
  p.num_heads_q = 2 * num_heads_kv;
  p.head_dim = p.head_dim_v = head_dim;
  p.dtype = p.out_dtype = p.grad_dtype = dtype;
  p.softmax_scale = 0.25F;
  p.causal = true;
  p.window_left = 300;
  p.sharding = Sharding::zigzag;
  p.num_chunks = num_chunks;
  p.documents = {{0, 450, 0, 450}, {450, 250, 450, 250}};
  return p;
}

// A few queries, whose keys are shared out.
Problem few_queries_to_repeat(std::int64_t queries) {
  Problem p = problem_to_repeat(2, 16, DType::float32, 1);
  p.seqlen_q = queries;
  p.seqlen_kv = 2500;
  p.window_left = -1;
  p.documents = {{0, queries, 0, 2500}};
  return p;
}

// In parts of half the heads, or of all.
Problem gathered(Problem p) {
  p.schedule = Schedule::all_gather;
  const Cutting whole = choose_cutting(p, 4, Pass::forward);
  for (p.gather_bytes = 1; whole.heads_kv > 1 && choose_cutting(p, 4, Pass::forward).heads_kv < whole.heads_kv / 2;)
    p.gather_bytes *= 2;
  if (whole.heads_kv == 1) p.gather_bytes = 0;
  return p;
}

TEST(Repeat, BitsDoNotDependOnThreadsOrTiming) {
  const tbb::global_control more_threads(tbb::global_control::max_allowed_parallelism, 8);
  const std::uint64_t seed = test::seed();
  struct Case {
    Problem problem;
    double odd;  // a value of q that some tiles do not take
    int repeats;
  };
  for (const Case& c : {Case{problem_to_repeat(1, 16, DType::float32, 1), 0.5, 100},
                        Case{problem_to_repeat(8, 16, DType::bfloat16, 3), 0.5, 50},
                        Case{gathered(problem_to_repeat(8, 16, DType::bfloat16, 0)), 0.5, 50},
                        Case{problem_to_repeat(1, 64, DType::float32, 1), 1e-33, 20},
                        Case{problem_to_repeat(1, 64, DType::bfloat16, 3), 0.5, 10},
                        Case{gathered(problem_to_repeat(1, 64, DType::bfloat16, 3)), 0.5, 10},
                        Case{few_queries_to_repeat(5), 0.5, 40}, Case{gathered(few_queries_to_repeat(60)), 0.5, 20}}) {
    Random random(seed);
    Inputs inputs(c.problem, random);
    inputs.q[static_cast<std::size_t>(c.problem.seqlen_q / 2 * c.problem.num_heads_q * c.problem.head_dim)] = c.odd;
    for (const int world_size : {1, 4}) {
      const std::vector<std::byte> first = run_delayed(inputs, world_size, 1, seed);
      for (int n = 1; n < std::max(test::sample(c.repeats), test::brief() ? 2 : 4); ++n)
        ASSERT_EQ(run_delayed(inputs, world_size, 1 + n % 4, seed + static_cast<std::uint64_t>(100 * n)), first)
            << "repeat " << n << " with " << 1 + n % 4 << " threads on " << world_size << " ranks";
    }
  }
}

TEST(Repeat, OneAndFourRanksAgreeWithinTheRule) {
  Random random(test::seed());
  for (int n = 0; n < test::sample(60); ++n) {
    const Oracle oracle(reference::draw_problem(random, {.seqlen = 120}), random);
    test::expect_within(test::run_on(test::Ranks(1), oracle), oracle);
    test::expect_within(test::run_on(test::Ranks(4), oracle), oracle);
  }
}

}  // namespace
}  // namespace ringattn
