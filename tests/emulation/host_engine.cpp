// In the place of the CUDA engines, for tests of what is around them: the portable CPU engine, whose work is enqueued on emulated devices
// with the memory that it touches. Tensors in device memory are host memory there.
#include <string>
#include <utility>
#include <vector>

#include "emulation.h"
#include "engine/cuda/engine.h"

namespace ringattn::cuda {
namespace {

class Accesses {
 public:
  explicit Accesses(const Problem& p) : p_(p) {}

  Accesses& tensor(const Tensor& t, Extent e, bool reads, bool writes) {
    if (p_.batch == 0 || e.rows == 0 || e.heads == 0 || e.dim == 0) return *this;
    const std::int64_t last = t.offset(p_.batch - 1, e.rows - 1, e.heads - 1) + e.dim;
    return bytes(t.data, last * size_of(t.dtype), reads, writes);
  }
  Accesses& bytes(const void* data, std::int64_t size, bool reads, bool writes) {
    if (data == nullptr || size == 0) return *this;
    if (reads) list_.push_back({data, static_cast<std::size_t>(size), false});
    if (writes) list_.push_back({data, static_cast<std::size_t>(size), true});
    return *this;
  }
  const std::vector<Access>& list() const { return list_; }

 private:
  const Problem& p_;
  std::vector<Access> list_;
};

// Items that live on with the operation.
struct KeptItems {
  explicit KeptItems(std::span<const WorkItem> from) : items(from.begin(), from.end()) {
    pieces.reserve(2 * items.size());
    for (WorkItem& item : items)
      for (std::span<const Piece>* side : {&item.queries, &item.keys}) {
        pieces.emplace_back(side->begin(), side->end());
        *side = pieces.back();
      }
  }
  KeptItems(const KeptItems&) = delete;
  std::vector<WorkItem> items;
  std::vector<std::vector<Piece>> pieces;

  std::int64_t key_rows() const {
    std::int64_t rows = 0;
    for (const WorkItem& item : items)
      for (const Piece& piece : item.keys) rows = std::max(rows, piece.row + piece.length);
    return rows;
  }
};

class HostEngine final : public CudaEngine {
 public:
  const char* name() const override { return "host"; }
  void use(Queue& queue) override { queue_ = &queue; }
  std::string refusal(const Problem& p) const override { return engine_->refusal(p); }
  std::size_t scratch_bytes(const Problem& p, Pass pass, std::int64_t longest_piece, bool only_step) const override {
    return engine_->scratch_bytes(p, pass, longest_piece, only_step);
  }

  void forward(const Problem& p, const ForwardStep& step) override {
    const auto kept = std::make_shared<KeptItems>(step.items);
    const std::int64_t statistics = p.batch * p.num_heads_q * step.query_rows * size_of(DType::float32);
    const Extent out{step.query_rows, p.num_heads_q, p.head_dim_v};
    const bool runs = !(step.first && step.last);
    Accesses accesses(p);
    accesses.tensor(step.q, {step.query_rows, p.num_heads_q, p.head_dim}, true, false)
        .tensor(step.k, {kept->key_rows(), p.num_heads_kv, p.head_dim}, true, false)
        .tensor(step.v, {kept->key_rows(), p.num_heads_kv, p.head_dim_v}, true, false)
        .tensor(row_tensor(step.key_bias, step.key_rows, 1), {p.has_key_bias ? kept->key_rows() : 0, 1, 1}, true, false)
        .bytes(step.sinks, step.first && p.num_sinks > 0 ? p.num_heads_q * size_of(DType::float32) : 0, true, false);
    if (runs)
      accesses.tensor(step.running, out, !step.first, true)
          .bytes(step.max, statistics, !step.first, true)
          .bytes(step.sum, statistics, !step.first, true);
    if (step.last) accesses.tensor(step.out, out, false, true).bytes(step.lse, statistics, false, true);
    accesses.bytes(step.scratch, scratch(p, Pass::forward, kept->items), false, true);
    submit("forward", accesses, [engine = engine_, p, step, kept] {
      ForwardStep with_items = step;
      with_items.items = kept->items;
      engine->forward(p, with_items);
    });
  }

  void backward(const Problem& p, const BackwardStep& step) override {
    if (step.items.empty()) return;  // the chunk need not be there
    const auto kept = std::make_shared<KeptItems>(step.items);
    const std::int64_t statistics = p.batch * p.num_heads_q * step.query_rows * size_of(DType::float32);
    const Extent q{step.query_rows, p.num_heads_q, p.head_dim}, k{step.key_rows, p.num_heads_kv, p.head_dim},
        v{step.key_rows, p.num_heads_kv, p.head_dim_v};
    Accesses accesses(p);
    accesses.tensor(step.q, q, true, false)
        .tensor(step.k, k, true, false)
        .tensor(step.v, v, true, false)
        .tensor(step.dout, {step.query_rows, p.num_heads_q, p.head_dim_v}, true, false)
        .bytes(step.lse, statistics, true, false)
        .bytes(step.delta, statistics, true, false)
        .bytes(step.key_bias, p.has_key_bias ? p.batch * step.key_rows * size_of(DType::float32) : 0, true, false)
        .tensor(step.dq, q, true, true)
        .tensor(step.dk, k, true, true)
        .tensor(step.dv, v, true, true)
        .bytes(step.scratch, scratch(p, Pass::backward, kept->items), false, true);
    submit("backward", accesses, [engine = engine_, p, step, kept] {
      BackwardStep with_items = step;
      with_items.items = kept->items;
      engine->backward(p, with_items);
    });
  }

  void compute_delta(const Problem& p, const Tensor& dout, const Tensor& out, std::int64_t rows,
                     float* delta) override {
    const Extent extent{rows, p.num_heads_q, p.head_dim_v};
    submit("compute_delta",
           Accesses(p)
               .tensor(dout, extent, true, false)
               .tensor(out, extent, true, false)
               .bytes(delta, p.batch * p.num_heads_q * rows * size_of(DType::float32), false, true),
           [engine = engine_, p, dout, out, rows, delta] { engine->compute_delta(p, dout, out, rows, delta); });
  }
  void begin_rows(const Problem& p, const RunningRows& rows, Extent extent, const float* sinks) override {
    submit("begin_rows",
           Accesses(p)
               .tensor(rows.out, extent, false, true)
               .tensor(rows.max, extent.of_numbers(), false, true)
               .tensor(rows.sum, extent.of_numbers(), false, true)
               .bytes(sinks, sinks == nullptr ? 0 : extent.heads * size_of(DType::float32), true, false),
           [engine = engine_, p, rows, extent, sinks] { engine->begin_rows(p, rows, extent, sinks); });
  }
  void add_zero_keys(const Problem& p, const RunningRows& rows, Extent extent, std::int64_t count) override {
    submit(
        "add_zero_keys",
        Accesses(p).tensor(rows.max, extent.of_numbers(), true, true).tensor(rows.sum, extent.of_numbers(), true, true),
        [engine = engine_, p, rows, extent, count] { engine->add_zero_keys(p, rows, extent, count); });
  }
  void finish_rows(const Problem& p, const RunningRows& rows, Extent extent, const Tensor& out, float* lse) override {
    const std::int64_t numbers = p.batch * extent.heads * extent.rows;
    submit("finish_rows",
           Accesses(p)
               .tensor(rows.out, extent, true, true)
               .tensor(rows.max, extent.of_numbers(), true, false)
               .tensor(rows.sum, extent.of_numbers(), true, false)
               .tensor(out, extent, false, true)
               .bytes(lse, lse == nullptr ? 0 : numbers * size_of(DType::float32), false, true),
           [engine = engine_, p, rows, extent, out, lse] { engine->finish_rows(p, rows, extent, out, lse); });
  }
  void combine_sinks(const Problem& p, const float* sinks, float* combined) override {
    submit("combine_sinks",
           Accesses(p)
               .bytes(sinks, p.num_heads_q * p.num_sinks * size_of(DType::float32), true, false)
               .bytes(combined, p.num_heads_q * size_of(DType::float32), false, true),
           [engine = engine_, p, sinks, combined] { engine->combine_sinks(p, sinks, combined); });
  }
  void add_sink_gradients(const Problem& p, const float* sinks, const float* lse, const float* delta, std::int64_t rows,
                          float* dsinks) override {
    const std::int64_t statistics = p.batch * p.num_heads_q * rows * size_of(DType::float32),
                       of_sinks = p.num_heads_q * p.num_sinks * size_of(DType::float32);
    submit("add_sink_gradients",
           Accesses(p)
               .bytes(sinks, of_sinks, true, false)
               .bytes(lse, statistics, true, false)
               .bytes(delta, statistics, true, false)
               .bytes(dsinks, of_sinks, true, true),
           [engine = engine_, p, sinks, lse, delta, rows, dsinks] {
             engine->add_sink_gradients(p, sinks, lse, delta, rows, dsinks);
           });
  }
  void copy(const Problem& p, const Tensor& from, const Tensor& to, Extent extent) override {
    submit("copy", Accesses(p).tensor(from, extent, true, false).tensor(to, extent, false, true),
           [engine = engine_, p, from, to, extent] { engine->copy(p, from, to, extent); });
  }
  void round(const Problem& p, const Tensor& from, const Tensor& to, Extent extent, bool accumulate) override {
    submit("round", Accesses(p).tensor(from, extent, true, false).tensor(to, extent, accumulate, true),
           [engine = engine_, p, from, to, extent, accumulate] { engine->round(p, from, to, extent, accumulate); });
  }
  void clear(const Problem& p, const Tensor& to, Extent extent) override {
    submit("clear", Accesses(p).tensor(to, extent, false, true),
           [engine = engine_, p, to, extent] { engine->clear(p, to, extent); });
  }
  void add(const float* from, float* to, std::int64_t count) override {
    const Problem p;
    const std::int64_t size = count * size_of(DType::float32);
    submit("add", Accesses(p).bytes(from, size, true, false).bytes(to, size, true, true),
           [engine = engine_, from, to, count] { engine->add(from, to, count); });
  }

 private:
  std::int64_t scratch(const Problem& p, Pass pass, std::span<const WorkItem> items) const {
    std::int64_t longest = 0;
    for (const WorkItem& item : items)
      for (const Piece& piece : item.queries) longest = std::max(longest, piece.length);
    return static_cast<std::int64_t>(scratch_bytes(p, pass, longest, false));
  }
  template <class F>
  void submit(const char* name, const Accesses& accesses, F&& f) {
    check(emulation::submit(queue_->stream(), name, accesses.list(), std::forward<F>(f)), name);
  }

  Queue* queue_ = nullptr;
  std::shared_ptr<Engine> engine_ = make_cpu_engine("portable", 1);
};

}  // namespace

std::unique_ptr<CudaEngine> make_cuda_engine(const char* name) {
  if (name != nullptr && *name != 0 && std::string(name) != cuda_engine_names()) return nullptr;
  return std::make_unique<HostEngine>();
}
std::string cuda_engine_names() { return "host"; }

}  // namespace ringattn::cuda
