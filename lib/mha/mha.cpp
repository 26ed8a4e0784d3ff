#include "mha/mha.h"

#include <algorithm>
#include <vector>

#include "plan/shard.h"
#include "ring/all_reduce.h"

namespace ringattn {
namespace {

// Tags of what comes after attention's in a call.
constexpr std::uint64_t reduction_tags = std::uint64_t{1} << 60;

Matrix matrix_of(const Tensor& packed, std::int64_t columns) { return {packed.data, packed.dtype, columns}; }

// q, k and v as attention reads them, and q and k as they were projected, which is the same where they are not normalised.
struct Projected {
  Tensor q, k, v, raw_q, raw_k;

  static Projected take(Arena& arena, const Mha& mha, std::int64_t rows) {
    const Problem& p = mha.attention;
    const auto tensor = [&](std::int64_t heads, std::int64_t dim) {
      return packed_tensor(arena.take<std::byte>(p.batch * rows * heads * dim * size_of(p.dtype)), p.dtype, rows, heads,
                           dim);
    };
    Projected projected;
    projected.q = tensor(p.num_heads_q, p.head_dim);
    projected.k = tensor(p.num_heads_kv, p.head_dim);
    projected.v = tensor(p.num_heads_kv, p.head_dim_v);
    projected.raw_q = mha.normalizes_heads ? tensor(p.num_heads_q, p.head_dim) : projected.q;
    projected.raw_k = mha.normalizes_heads ? tensor(p.num_heads_kv, p.head_dim) : projected.k;
    return projected;
  }
};

struct Attended {
  Tensor out;
  float* lse;

  static Attended take(Arena& arena, const Mha& mha, std::int64_t rows) {
    const Problem& p = mha.attention;
    const std::int64_t all = p.batch * rows * p.num_heads_q;
    Attended attended;
    attended.out = packed_tensor(arena.take<std::byte>(all * p.head_dim_v * size_of(p.dtype)), p.dtype, rows,
                                 p.num_heads_q, p.head_dim_v);
    attended.lse = arena.take<float>(all);
    return attended;
  }
};

// Gradients of the same.
struct BetweenGradients {
  Tensor dq, dk, dv, dattended;

  static BetweenGradients take(Arena& arena, const Mha& mha, std::int64_t rows) {
    const Projected same = Projected::take(
        arena,
        [&] {
          Mha plain = mha;
          plain.normalizes_heads = false;
          return plain;
        }(),
        rows);
    return {same.q, same.k, same.v, Attended::take(arena, mha, rows).out};
  }
};

// One mha, on one rank, in one call.
class MhaPass {
 public:
  // Lays out `activations` and `workspace`; with both null it only measures.
  MhaPass(const Mha& mha, const MhaMachinery& on, Pass pass, const Tensor& x, const Weights& weights, void* activations,
          void* workspace)
      : mha_(mha), p_(mha.attention), on_(on), rows_(on.forward.query_rows()), x_(x), weights_(weights) {
    Arena kept(activations), own(workspace);
    projected_ = Projected::take(mha.keeps_projected() ? kept : own, mha, rows_);
    attended_ = Attended::take(mha.keeps_attended() ? kept : own, mha, rows_);
    positions_ = {own.take<std::int64_t>(rows_), static_cast<std::size_t>(rows_)};
    std::size_t rest = workspace_bytes(on.forward, on.attention.engine);
    if (pass == Pass::backward) {
      gradients_ = BetweenGradients::take(own, mha, rows_);
      if (mha.keeps_attended()) rest = 0;
      rest = std::max(rest, workspace_bytes(on.backward, on.attention.engine));
      std::int64_t largest = 0;
      for (const WeightSize& size : weight_sizes(mha)) largest = std::max(largest, size.rows * size.columns);
      reduction_ = own.take<float>(all_reduce_room(largest, on.world_size));
    }
    scratch_ = own.take<std::byte>(static_cast<std::int64_t>(on.projector.scratch_bytes(p_.batch * rows_)));
    rest_ = own.take<std::byte>(static_cast<std::int64_t>(rest));
    activations_bytes_ = kept.size();
    workspace_bytes_ = own.size();
  }

  std::size_t activations_bytes() const { return activations_bytes_; }
  std::size_t workspace_bytes_needed() const { return workspace_bytes_; }

  void find_positions() {
    std::vector<Piece> pieces = shard_pieces(p_, Side::query, on_.world_size, on_.rank);
    for (Piece& piece : pieces) piece.run.start += p_.documents[static_cast<std::size_t>(piece.unit)].q_begin;
    on_.projector.store_positions(pieces, positions_.data());
  }

  // Projects and attends: where chunks of K and V travel one after the other, each is made when its tour begins.
  void attend() {
    const std::vector<std::vector<Stretch>> chunks = key_chunks();
    std::vector<bool> is_made(chunks.size());
    const auto make_chunk = [&](std::size_t n) {
      if (is_made[n]) return;
      is_made[n] = true;
      timed([&] { project_keys(chunks[n]); });
    };
    ForwardCall call;
    call.make_q = [&] { timed([&] { project_queries(); }); };
    if (chunks.size() == 1)
      make_chunk(0);
    else
      call.make_chunk = [&](std::int64_t chunk) { make_chunk(static_cast<std::size_t>(chunk)); };
    call.q = projected_.q;
    call.k = projected_.k;
    call.v = projected_.v;
    call.out = attended_.out;
    call.lse = attended_.lse;
    call.workspace = rest_;
    statistics_.add(run_forward(on_.forward, on_.attention, call));
    for (std::size_t n = 0; n < chunks.size(); ++n) make_chunk(n);  // what nobody sees
  }
  void project_out(const Tensor& out) {
    timed([&] {
      for (std::int64_t e = 0; e < entries(out); ++e)
        multiply(std::array{Term{part(attended_.out, mha_.attended_columns(), e, entries(out)), weights_.w_o,
                                 mha_.attended_columns()}},
                 tokens(out, e), rows(entries(out)), mha_.d_model, weights_.b_o);
    });
  }

  // What the backward pass has from the forward pass, where that did not keep it.
  void make_again() {
    if (!mha_.keeps_attended()) return attend();
    if (!mha_.keeps_projected())
      timed([&] {
        for (const std::vector<Stretch>& chunk : key_chunks()) project_keys(chunk);
        project_queries();
      });
  }

  void differentiate_out(const MhaBackwardCall& call) {
    timed([&] {
      const std::int64_t n = entries(call.dout), columns = mha_.attended_columns();
      for (std::int64_t e = 0; e < n; ++e)
        multiply(std::array{Term{tokens(call.dout, e), weights_.w_o.transposed(), mha_.d_model}},
                 part(gradients_.dattended, columns, e, n), rows(n), columns);
      add_weight(
          call, &Weights::w_o, columns, mha_.d_model, n,
          [&](std::int64_t e) { return part(attended_.out, columns, e, n); },
          [&](std::int64_t e) { return tokens(call.dout, e); });
      add_bias(call, &Weights::b_o, mha_.d_model, n, [&](std::int64_t e) { return tokens(call.dout, e); });
    });
  }

  void differentiate_attention() {
    BackwardCall call;
    call.dout = gradients_.dattended;
    call.q = projected_.q;
    call.k = projected_.k;
    call.v = projected_.v;
    call.out = attended_.out;
    call.lse = attended_.lse;
    call.dq = gradients_.dq;
    call.dk = gradients_.dk;
    call.dv = gradients_.dv;
    call.workspace = rest_;
    statistics_.add(run_backward(on_.backward, on_.attention, call));
  }

  void differentiate_projections(const MhaBackwardCall& call) {
    struct Branch {
      Tensor raw, gradient;
      Matrix Weights::*weight, Weights::*bias, Weights::*norm;
      std::int64_t heads, columns;
    };
    const std::array branches{
        Branch{projected_.raw_q, gradients_.dq, &Weights::w_q, &Weights::b_q, &Weights::norm_q, p_.num_heads_q,
               mha_.q_columns()},
        Branch{projected_.raw_k, gradients_.dk, &Weights::w_k, &Weights::b_k, &Weights::norm_k, p_.num_heads_kv,
               mha_.k_columns()},
        Branch{projected_.v, gradients_.dv, &Weights::w_v, &Weights::b_v, nullptr, p_.num_heads_kv, mha_.v_columns()}};
    timed([&] {
      const std::int64_t n = entries(x_);
      for (const Branch& b : branches) {
        if (b.norm != nullptr) {
          const HeadStyle style = style_of(weights_.*b.norm, b.heads);
          if (style.changes())
            on_.projector.differentiate_heads(style, matrix_of(b.raw, b.columns), matrix_of(b.gradient, b.columns),
                                              p_.batch * rows_, static_cast<float*>((call.gradients.*b.norm).data),
                                              call.accumulate, scratch_);
        }
        const auto gradient = [&](std::int64_t e) { return part(b.gradient, b.columns, e, n); };
        add_weight(
            call, b.weight, mha_.d_model, b.columns, n, [&](std::int64_t e) { return tokens(x_, e); }, gradient);
        add_bias(call, b.bias, b.columns, n, gradient);
      }
      if (call.dx.data == nullptr) return;
      const std::int64_t parts = entries(call.dx);
      for (std::int64_t e = 0; e < parts; ++e) {
        std::array<Term, 3> terms;
        for (std::size_t i = 0; i < terms.size(); ++i)
          terms[i] = {part(branches[i].gradient, branches[i].columns, e, parts),
                      (weights_.*branches[i].weight).transposed(), branches[i].columns};
        multiply(terms, tokens(call.dx, e), rows(parts), mha_.d_model);
      }
    });
  }

  void reduce(const MhaBackwardCall& call) {
    std::uint64_t tag = reduction_tags;
    for (const WeightSize& size : weight_sizes(mha_)) {
      const Matrix& m = call.gradients.*size.matrix;
      if (m.data == nullptr) continue;
      // Rows that lie apart are summed one by one: what is between them is not of this matrix.
      const bool is_dense = m.stride == size.columns;
      const std::int64_t times = is_dense ? 1 : size.rows, count = is_dense ? size.rows * size.columns : size.columns;
      for (std::int64_t i = 0; i < times; ++i, tag += static_cast<std::uint64_t>(2 * on_.world_size))
        all_reduce(on_.attention, on_.rank, on_.world_size, static_cast<float*>(m.from(i, 0).data), count, reduction_,
                   tag, statistics_);
    }
  }

  // Nothing is complete where the call was aborted, which this finds.
  Statistics finish() {
    on_.attention.transport.wait();
    return statistics_;
  }

 private:
  template <class F>
  void timed(F&& f) {
    Phase phase(on_.attention.trace, "project");
    f();
    statistics_.projection_seconds += phase.end();
  }

  // Tokens of the caller's as matrices of equally many rows: one, where the batch's entries follow on each other.
  std::int64_t entries(const Tensor& t) const { return t.batch_stride == rows_ * t.seq_stride ? 1 : p_.batch; }
  std::int64_t rows(std::int64_t entries) const { return p_.batch / entries * rows_; }
  static Matrix tokens(const Tensor& t, std::int64_t entry) {
    return {t.from(entry, 0, 0).data, t.dtype, t.seq_stride};
  }
  // The rows of what is packed that belong to it.
  Matrix part(const Tensor& packed, std::int64_t columns, std::int64_t entry, std::int64_t entries) const {
    return matrix_of(packed, columns).from(entry * rows(entries), 0);
  }

  void multiply(std::span<const Term> terms, const Matrix& to, std::int64_t rows, std::int64_t columns,
                const Matrix& bias = {}, bool accumulate = false) {
    on_.projector.multiply({terms, to, rows, columns, bias, accumulate}, scratch_);
  }
  // Rows of the shard whose keys and values are made at a time, in the forward pass and where that is made again alike, so that they
  // have the same bits: those of a chunk, or all.
  std::vector<std::vector<Stretch>> key_chunks() const {
    std::vector<std::vector<Stretch>> chunks;
    const bool is_one = on_.forward.has_layers() || on_.forward.whole().num_parts() > 1 || !on_.forward.whole().packs();
    if (is_one) return {{Stretch{0, rows_}}};
    for (std::int64_t n = 0; n < on_.forward.whole().num_chunks(); ++n)
      chunks.push_back(on_.forward.whole().chunk_stretches(on_.rank, n));
    return chunks;
  }
  void project_keys(const std::vector<Stretch>& chunk) {
    for (const Stretch& stretch : chunk) {
      project(weights_.w_k, weights_.b_k, weights_.norm_k, p_.num_heads_kv, projected_.raw_k, projected_.k, stretch);
      project(weights_.w_v, weights_.b_v, {}, 0, projected_.v, projected_.v, stretch);
    }
  }
  void project_queries() {
    project(weights_.w_q, weights_.b_q, weights_.norm_q, p_.num_heads_q, projected_.raw_q, projected_.q, {0, rows_});
  }

  // Rows of the shard in all entries of the batch, and their heads, of which there are `styled` that are to be styled, or 0.
  void project(const Matrix& weight, const Matrix& bias, const Matrix& norm, std::int64_t styled, const Tensor& raw,
               const Tensor& to, const Stretch& rows) {
    const bool is_all = rows.length == rows_ && entries(x_) == 1;
    const std::int64_t columns = raw.seq_stride, count = is_all ? p_.batch * rows_ : rows.length;
    for (std::int64_t e = 0; e < (is_all ? 1 : p_.batch); ++e) {
      const Matrix x{x_.from(e, rows.row, 0).data, x_.dtype, x_.seq_stride};
      const Matrix projected = matrix_of(raw, columns).from(e * rows_ + rows.row, 0);
      multiply(std::array{Term{x, weight, mha_.d_model}}, projected, count, columns, bias);
      if (styled == 0) continue;
      HeadStyle style = style_of(norm, styled);
      style.positions =
          style.positions.subspan(static_cast<std::size_t>(rows.row), static_cast<std::size_t>(rows.length));
      if (style.changes())
        on_.projector.style_heads(style, projected, matrix_of(to, columns).from(e * rows_ + rows.row, 0), count);
    }
  }
  HeadStyle style_of(const Matrix& norm, std::int64_t heads) const {
    return {heads, p_.head_dim, norm, static_cast<double>(mha_.norm_epsilon), mha_.rotation, positions_};
  }
  // Gradient of a weight, the product of what it multiplied, left(e) [tokens, rows], and the gradient of what came of that, right(e).
  template <class Left, class Right>
  void add_weight(const MhaBackwardCall& call, Matrix Weights::*weight, std::int64_t rows_of_weight,
                  std::int64_t columns, std::int64_t parts, Left&& left, Right&& right) {
    const Matrix& to = call.gradients.*weight;
    if (to.data == nullptr) return;
    std::vector<Term> terms;
    for (std::int64_t e = 0; e < parts; ++e) terms.push_back({left(e).transposed(), right(e), rows(parts)});
    multiply(terms, to, rows_of_weight, columns, {}, call.accumulate);
  }
  template <class Right>
  void add_bias(const MhaBackwardCall& call, Matrix Weights::*bias, std::int64_t columns, std::int64_t parts,
                Right&& right) {
    const Matrix& to = call.gradients.*bias;
    if (to.data == nullptr) return;
    for (std::int64_t e = 0; e < parts; ++e)
      on_.projector.sum_rows(right(e), rows(parts), columns, static_cast<float*>(to.data), call.accumulate || e > 0,
                             scratch_);
  }

  const Mha& mha_;
  const Problem& p_;
  const MhaMachinery& on_;
  const std::int64_t rows_;  // of the shard
  const Tensor x_;
  const Weights weights_;
  Projected projected_;
  Attended attended_;
  BetweenGradients gradients_;
  std::span<std::int64_t> positions_;
  float* reduction_ = nullptr;
  std::byte *scratch_ = nullptr, *rest_ = nullptr;
  std::size_t activations_bytes_ = 0, workspace_bytes_ = 0;
  Statistics statistics_;
};

}  // namespace

std::array<WeightSize, 10> weight_sizes(const Mha& mha) {
  const Problem& p = mha.attention;
  const auto if_there = [](bool has, std::int64_t columns) { return has ? columns : 0; };
  return {{{"w_q", &Weights::w_q, mha.d_model, mha.q_columns()},
           {"w_k", &Weights::w_k, mha.d_model, mha.k_columns()},
           {"w_v", &Weights::w_v, mha.d_model, mha.v_columns()},
           {"w_o", &Weights::w_o, mha.attended_columns(), mha.d_model},
           {"b_q", &Weights::b_q, 1, if_there(mha.has_qkv_bias, mha.q_columns())},
           {"b_k", &Weights::b_k, 1, if_there(mha.has_qkv_bias, mha.k_columns())},
           {"b_v", &Weights::b_v, 1, if_there(mha.has_qkv_bias, mha.v_columns())},
           {"b_o", &Weights::b_o, 1, if_there(mha.has_out_bias, mha.d_model)},
           {"norm_q", &Weights::norm_q, 1, if_there(mha.normalizes_heads, p.head_dim)},
           {"norm_k", &Weights::norm_k, 1, if_there(mha.normalizes_heads, p.head_dim)}}};
}

MhaBytes mha_bytes(const Mha& mha, const MhaMachinery& on) {
  const MhaPass forward(mha, on, Pass::forward, {}, {}, nullptr, nullptr),
      backward(mha, on, Pass::backward, {}, {}, nullptr, nullptr);
  return {forward.activations_bytes(), forward.workspace_bytes_needed(), backward.workspace_bytes_needed()};
}

double projection_flops(const Mha& mha, Pass pass, std::int64_t tokens) {
  const double in = static_cast<double>(mha.d_model) *
                    static_cast<double>(mha.q_columns() + mha.k_columns() + mha.v_columns()),
               out = static_cast<double>(mha.d_model) * static_cast<double>(mha.attended_columns());
  const double products = pass == Pass::forward ? in + out : 2 * (in + out) + (mha.keeps_projected() ? 0 : in);
  return 2 * products * static_cast<double>(tokens);
}

Statistics run_mha_forward(const Mha& mha, const MhaMachinery& on, const MhaForwardCall& call) {
  MhaPass pass(mha, on, Pass::forward, call.x, call.weights, call.activations, call.workspace);
  pass.find_positions();
  pass.attend();
  pass.project_out(call.out);
  return pass.finish();
}

Statistics run_mha_backward(const Mha& mha, const MhaMachinery& on, const MhaBackwardCall& call) {
  MhaPass pass(mha, on, Pass::backward, call.x, call.weights, call.activations, call.workspace);
  pass.find_positions();
  pass.make_again();
  pass.differentiate_out(call);
  pass.differentiate_attention();
  pass.differentiate_projections(call);
  if (call.reduce) pass.reduce(call);
  return pass.finish();
}

}  // namespace ringattn
