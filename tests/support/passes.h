// A forward and a backward pass on all ranks of a group, by lib/ring and without contexts.
#pragma once

#include <cstddef>
#include <vector>

#include "core/memory.h"
#include "ring/ring.h"
#include "support/engine.h"
#include "support/oracle_run.h"
#include "transport/local.h"

namespace ringattn::test {

// `through(transport, rank)` is the transport that the passes are given. Calls use(rank, shards, lse) on each rank afterwards.
template <class Through, class F>
void run_passes(const reference::Inputs& inputs, int world_size, int num_threads, Through&& through, F&& use) {
  const Problem& p = inputs.problem;
  const std::string id = make_local_id();
  run_threads(world_size, [&](std::int32_t rank) {
    const auto engine = make_cpu_engine(test::engine(), num_threads);
    const auto local = join_local(id, world_size, rank, 60'000, [] {});
    auto&& transport = through(*local, rank);
    const Machinery machinery{*engine, transport};
    detail::Shards shards(inputs, world_size, rank);
    const auto tensor = [&](detail::ShardBuffer& s, std::int64_t heads, std::int64_t dim) {
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
    use(rank, shards, lse);
  });
}

}  // namespace ringattn::test
