// What the ring asks of a processor: "attend these rows to this chunk", and the few things to be done to whole buffers.
//
// An engine has the threads that it computes with. It knows runs, intervals and tensors; it knows nothing of ranks, hops or
// documents. All partial results are fp32.
// Between the steps of a forward pass the running result of a row is (output, max, sum): the output still to be divided by
// the sum, both relative to the max, as in Dao et al. 2022, "FlashAttention", Algorithm 1. In what units a max is, and what has been
// left to be multiplied in the end, is the engine's own matter: it begins rows and ends them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "engine/projector.h"
#include "plan/interval.h"
#include "plan/plan.h"
#include "plan/problem.h"

namespace ringattn {

// [batch, rows, heads, dim], strides in elements, dim dense.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t batch_stride = 0;
  std::int64_t seq_stride = 0;
  std::int64_t head_stride = 0;

  std::int64_t offset(std::int64_t b, std::int64_t row, std::int64_t head) const {
    return b * batch_stride + row * seq_stride + head * head_stride;
  }
  template <class T>
  T* at(std::int64_t b, std::int64_t row, std::int64_t head) const {
    return static_cast<T*>(data) + offset(b, row, head);
  }
  std::byte* bytes_at(std::int64_t b, std::int64_t row, std::int64_t head) const {
    return static_cast<std::byte*>(data) + offset(b, row, head) * size_of(dtype);
  }
  // The same tensor, counted from there.
  Tensor from(std::int64_t b, std::int64_t row, std::int64_t head) const {
    Tensor t = *this;
    t.data = data == nullptr ? nullptr : bytes_at(b, row, head);
    return t;
  }
  Tensor from_row(std::int64_t row) const { return from(0, row, 0); }
  // Every so manieth row or head of it. Of one alone the stride may be anything, and so large that the product wraps: nobody uses it.
  Tensor every(std::int64_t row_step, std::int64_t head_step) const {
    const auto times = [](std::int64_t stride, std::int64_t step) {
      return static_cast<std::int64_t>(static_cast<std::uint64_t>(stride) * static_cast<std::uint64_t>(step));
    };
    Tensor t = *this;
    t.seq_stride = times(seq_stride, row_step);
    t.head_stride = times(head_stride, head_step);
    return t;
  }
};

inline Tensor packed_tensor(void* data, DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t dim) {
  return {data, dtype, rows * heads * dim, heads * dim, dim};
}

// Of [batch, heads, rows] fp32 numbers, as of rows with a dim of 1.
inline Tensor row_tensor(const float* data, std::int64_t rows, std::int64_t heads) {
  return {const_cast<float*>(data), DType::float32, heads * rows, 1, rows};
}

// Rows, heads and dim that a whole-buffer function covers; the batch is the problem's.
struct Extent {
  std::int64_t rows = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;

  // Of one number for each row and head.
  Extent of_numbers() const { return {rows, heads, 1}; }
};

// Which entry and query head of the whole problem a step's are: entry + b and head + h * head_step.
struct Origin {
  std::int64_t entry = 0, head = 0, head_step = 1;
};

struct ForwardStep {
  std::span<const WorkItem> items;
  Origin origin;
  Tensor q, k, v;  // k, v: the chunk
  std::int64_t query_rows = 0;
  std::int64_t key_rows = 0;  // of the chunk
  Tensor running;             // fp32 output between steps; unused if this is the only step
  float* max = nullptr;       // [batch, num_heads_q, query_rows], as is sum; unused if this is the only step
  float* sum = nullptr;
  Tensor out;            // written by the last step
  float* lse = nullptr;  // [batch, num_heads_q, query_rows], written by the last step; may be max; may be null
  const float* key_bias = nullptr;  // [batch, key_rows], where the problem has one
  const float* sinks =
      nullptr;              // [num_heads_q], log-sum-exp of each head's; where the problem has any, of the first step
  bool first = true;        // no running result yet: the items list every row
  bool last = true;         // divide, round, and write out and lse: the items list every row
  void* scratch = nullptr;  // scratch_bytes
};

struct BackwardStep {
  std::span<const WorkItem> items;
  Origin origin;
  Tensor q, k, v, dout;  // k, v: the chunk
  std::int64_t query_rows = 0;
  std::int64_t key_rows = 0;        // of the chunk
  const float* lse = nullptr;       // [batch, num_heads_q, query_rows], as is delta
  const float* delta = nullptr;     // rowsum(dout * out)
  const float* key_bias = nullptr;  // [batch, key_rows], where the problem has one
  Tensor dq;                        // fp32, added to
  Tensor dk, dv;                    // fp32, of the chunk, added to
  void* scratch = nullptr;          // scratch_bytes
};

// Running results of rows in any layout: what ForwardStep has as running, max and sum. max and sum have a dim of 1.
struct RunningRows {
  Tensor out, max, sum;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const char* name() const = 0;
  // That share its work, the calling one included.
  virtual int num_threads() const = 0;

  // Empty if the engine can run the problem, else the reason why not. The only place that refuses.
  virtual std::string refusal(const Problem& problem) const = 0;

  // What runs the problem's passes on this hardware where name() does not, and why: "forward: cudnn; backward: portable (...)".
  virtual std::string choice(const Problem&) const { return name(); }

  // Bytes of temporary memory of one step, aligned like memory_alignment. `longest_piece`: rows of its longest piece of queries.
  // `only_step`: each row begins and ends in it.
  virtual std::size_t scratch_bytes(const Problem& problem, Pass pass, std::int64_t longest_piece,
                                    bool only_step) const = 0;

  // Runs f(). Where the work that f gives this engine falls into parts, each is preceded by between(), on the thread that it runs on.
  virtual void interleave(const std::function<void()>& f, const std::function<void()>& between) = 0;
  // From now on work ends early, left undone, other than copy(). From any thread.
  virtual void cancel() = 0;

  virtual void forward(const Problem& problem, const ForwardStep& step) = 0;
  virtual void backward(const Problem& problem, const BackwardStep& step) = 0;

  // delta[b, h, i] = dot(dout, out) of each of `rows` rows.
  virtual void compute_delta(const Problem& problem, const Tensor& dout, const Tensor& out, std::int64_t rows,
                             float* delta) = 0;
  // What a forward pass's first step takes of a problem with sinks, [num_heads_q, num_sinks]: combined[h] = log-sum-exp of head h's.
  virtual void combine_sinks(const Problem& problem, const float* sinks, float* combined) = 0;
  // dsinks[h, n] -= sum over b and i of exp(sinks[h, n] - lse[b, h, i]) delta[b, h, i].
  virtual void add_sink_gradients(const Problem& problem, const float* sinks, const float* lse, const float* delta,
                                  std::int64_t rows, float* dsinks) = 0;
  // to = from, of equal dtype: packs a chunk for its journey, or rows for a layer, and puts them back; stores what a cache keeps.
  virtual void copy(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent) = 0;
  // to = round(from), or to = round(to + from); `from` is fp32.
  virtual void round(const Problem& problem, const Tensor& from, const Tensor& to, Extent extent, bool accumulate) = 0;
  // to = 0 in all of the extent.
  virtual void clear(const Problem& problem, const Tensor& to, Extent extent) = 0;
  // Begins rows, with nothing, or unless `sinks` is null with a key of score sinks[head] that has no value.
  virtual void begin_rows(const Problem& problem, const RunningRows& rows, Extent extent, const float* sinks) = 0;
  // `count` more keys without a value, of score 0, for rows whose output is still 0.
  virtual void add_zero_keys(const Problem& problem, const RunningRows& rows, Extent extent, std::int64_t count) = 0;
  // Ends rows as a last step does. `out` may be the running one, else what that holds afterwards is not said; `lse`,
  // [batch, heads, rows], may be null.
  virtual void finish_rows(const Problem& problem, const RunningRows& rows, Extent extent, const Tensor& out,
                           float* lse) = 0;
  // to += from, `count` fp32 values.
  virtual void add(const float* from, float* to, std::int64_t count) = 0;

  // What a layer of multi-head attention needs beside this, made when it is first asked for; from any threads. Throws NOT_SUPPORTED with
  // what is missing.
  Projector& projector();

 private:
  virtual std::unique_ptr<Projector> make_projector();

  std::mutex projector_mutex_;
  std::unique_ptr<Projector> projector_;
};

// Attention over some keys: an output and its log-sum-exp, [batch, heads, rows].
struct Partial {
  Tensor out;
  const float* lse = nullptr;
};

// Combines two partial results over disjoint keys, on the CPU and the calling thread; `out` and `lse` may be those of a or b.
void merge_attention(Extent extent, std::int64_t batch, const Partial& a, const Partial& b, const Tensor& out,
                     float* lse);

// Names of the CPU engines that this machine can run, fastest first, comma-separated.
std::string cpu_engine_names();
// `name` null: the fastest. Null if there is no such engine here.
std::unique_ptr<Engine> make_cpu_engine(const char* name, int num_threads);

}  // namespace ringattn
