// A plan, executed: part by part its moments, one after the other, on an engine and a transport.
//
// Invariant of the forward pass, in every part: before the moment (chunk c, time t) the running (output, max, sum) of every local row
// covers what it began with, sinks or other layers, the chunks c' < c of all ranks, and chunk c of the ranks whose chunk has been
// computed with already. Cost per rank and call, where every rank needs every chunk: (P - 1) / P of the K/V bytes.
#pragma once

#include <cstddef>
#include <functional>

#include "core/trace.h"
#include "engine/engine.h"
#include "plan/pass_plan.h"
#include "transport/transport.h"

namespace ringattn {

// Tensors of one rank, over its shard. Memory of `workspace`: workspace_bytes.
struct ForwardCall {
  Tensor q, k, v;
  Tensor out;
  float* lse = nullptr;      // may be null
  RunningRows running = {};  // of a layer, instead of both: what it adds to; max and sum are [batch, num_heads_q, rows]
  Tensor key_bias = {};      // [batch, rows of the shard, 1, 1], where the problem has one
  const float* sinks = nullptr;  // [num_heads_q, num_sinks], where the problem has any
  void* workspace = nullptr;
  Origin origin = {};
  // What makes the inputs, where they are not there yet; may be empty. make_q is called once, before q is read and, unless the call is in
  // layers, while the first chunk travels. make_chunk is called where all of the problem is one part of one plan that packs chunks, for
  // each that this rank packs of its own K and V, just before.
  std::function<void()> make_q = {};
  std::function<void(std::int64_t chunk)> make_chunk = {};
};

struct BackwardCall {
  Tensor dout, q, k, v, out, dq, dk, dv;
  const float* lse = nullptr;
  const float* delta = nullptr;  // null: rowsum(dout * out)
  Tensor key_bias = {};          // as in the forward pass
  const float* sinks = nullptr;
  float* dsinks = nullptr;  // their shape; may be null
  bool accumulate = false;
  void* workspace = nullptr;
  Origin origin = {};
};

// Of [batch, rows] numbers, which may be null.
inline Tensor key_bias_tensor(const void* data, std::int64_t rows) {
  return packed_tensor(const_cast<void*>(data), DType::float32, rows, 1, 1);
}

// What a pass really did.
struct Statistics {
  Totals totals;
  double compute_seconds = 0;
  double wait_seconds = 0;
  double projection_seconds = 0;            // of a layer of multi-head attention
  Schedule schedule = Schedule::automatic;  // of decoding

  void add(const Statistics& other) {
    totals.steps += other.totals.steps;
    totals.hops += other.totals.hops;
    totals.hop_bytes += other.totals.hop_bytes;
    compute_seconds += other.compute_seconds;
    wait_seconds += other.wait_seconds;
    projection_seconds += other.projection_seconds;
  }
};

// What a pass runs on.
struct Machinery {
  Engine& engine;
  Transport& transport;
  Trace* trace = nullptr;  // of its phases, if anybody wants one
};

std::size_t workspace_bytes(const PassPlan& plan, const Engine& engine);

// Collective over the ranks whose plans have the same problem. Throws Error, as Transport does.
Statistics run_forward(const PassPlan& plan, const Machinery& on, const ForwardCall& call);
Statistics run_backward(const PassPlan& plan, const Machinery& on, const BackwardCall& call);

// The same for one plan of a pass, after so many moments of others.
std::size_t workspace_bytes(const Plan& plan, const Engine& engine);
Statistics run_forward(const Plan& plan, const Machinery& on, const ForwardCall& call, std::int64_t moments_before = 0);
Statistics run_backward(const Plan& plan, const Machinery& on, const BackwardCall& call,
                        std::int64_t moments_before = 0);

}  // namespace ringattn
