// The self-test draws the same problems on every rank. A rank checks the part of each result that it owns against the
// oracle, which every rank computes for itself, and the verdicts are exchanged, so that all ranks end at the same problem.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "api/barrier.h"
#include "api/context.h"
#include "api/validate.h"
#include "engine/reference/oracle.h"

using namespace ringattn;
using namespace ringattn::api;

namespace {

using reference::Expected;
using reference::Oracle;
using reference::Random;

// A shard of one tensor in its own dtype, cut out of the whole, on the host and where the backend computes.
class ShardTensor {
 public:
  ShardTensor(Backend &backend, const Problem &p, const Rank &rank, Side side, std::int64_t heads, std::int64_t dim,
              DType dtype)
      : backend_(backend),
        p_(p),
        side_(side),
        pieces_(shard_pieces(p, side, rank.world_size, rank.rank)),
        heads_(heads),
        dim_(dim),
        dtype_(dtype),
        bytes_(static_cast<std::size_t>(p.batch * row_count(pieces_) * heads * dim * size_of(dtype)) + 1),
        memory_(backend.allocate(bytes_.size())) {}

  void fill(const std::vector<double> &whole) {
    for_each([&](std::size_t in_whole, std::byte *element) { reference::encode(whole[in_whole], dtype_, element); });
    backend_.copy(memory_.get(), bytes_.data(), bytes_.size() - 1);
  }
  // Largest error of what has been computed against the exact values; infinity where one is NaN and should not be.
  double error(const std::vector<double> &exact) {
    backend_.copy(bytes_.data(), memory_.get(), bytes_.size() - 1);
    double worst = 0;
    for_each([&](std::size_t in_whole, std::byte *element) {
      const double ours = reference::decode(element, dtype_), truth = exact[in_whole];
      const double error = ours == truth ? 0 : std::abs(ours - truth);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    });
    return worst;
  }
  Tensor tensor() { return packed_tensor(memory_.get(), dtype_, row_count(pieces_), heads_, dim_); }

 private:
  template <class F>
  void for_each(F &&f) {
    std::byte *element = bytes_.data();
    for (std::int64_t b = 0; b < p_.batch; ++b)
      for (std::int64_t row = 0; row < row_count(pieces_); ++row) {
        const std::int64_t token = row_position(p_, side_, pieces_, row);
        for (std::int64_t n = 0; n < heads_ * dim_; ++n, element += size_of(dtype_))
          f(static_cast<std::size_t>((b * p_.seqlen(side_) + token) * heads_ * dim_ + n), element);
      }
  }

  Backend &backend_;
  const Problem &p_;
  Side side_;
  std::vector<Piece> pieces_;
  std::int64_t heads_, dim_;
  DType dtype_;
  std::vector<std::byte> bytes_;
  std::shared_ptr<void> memory_;
};

// lse [batch, heads, rows] of the shard against lse [batch, heads, tokens].
double lse_error(const Problem &p, const Rank &rank, const std::vector<float> &lse, const std::vector<double> &exact) {
  const auto pieces = shard_pieces(p, Side::query, rank.world_size, rank.rank);
  double worst = 0;
  std::size_t n = 0;
  for (std::int64_t bh = 0; bh < p.batch * p.num_heads_q; ++bh)
    for (std::int64_t row = 0; row < row_count(pieces); ++row, ++n) {
      const double truth = exact[static_cast<std::size_t>(bh * p.seqlen_q + row_position(p, Side::query, pieces, row))];
      const double ours = static_cast<double>(lse[n]);
      const double error = ours == truth ? 0 : std::abs(ours - truth);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
  return worst;
}

// fp32 numbers that every rank has all of, where the backend computes.
class Floats {
 public:
  Floats(Backend &backend, const std::vector<double> &values)
      : backend_(backend), values_(values.begin(), values.end()), memory_(backend.allocate(bytes() + 1)) {
    backend.copy(memory_.get(), values_.data(), bytes());
  }
  float *data() const { return values_.empty() ? nullptr : static_cast<float *>(memory_.get()); }
  // What has been computed.
  std::span<const std::byte> read() {
    backend_.copy(values_.data(), memory_.get(), bytes());
    return std::as_bytes(std::span(values_));
  }

 private:
  std::size_t bytes() const { return values_.size() * sizeof(float); }

  Backend &backend_;
  std::vector<float> values_;
  std::shared_ptr<void> memory_;
};

// Largest error of the sum of all ranks' shares of dsinks. Collective.
double dsinks_error(ra_context &c, Floats &dsinks, const std::vector<double> &exact) {
  const std::vector<std::byte> all = c.transport->all_gather(dsinks.read());
  double worst = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    double sum = 0;
    for (std::size_t at = i * sizeof(float); at < all.size(); at += exact.size() * sizeof(float))
      sum += reference::decode(all.data() + at, DType::float32);
    const double error = std::abs(sum - exact[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  return worst;
}

// Runs one problem on the context; returns what is wrong, or nothing.
std::string check(ra_context &c, const Oracle &oracle) {
  const Problem &p = oracle.problem;
  const auto shard = [&](Side side, std::int64_t heads, std::int64_t dim, DType dtype) {
    return ShardTensor(*c.backend, p, c.rank, side, heads, dim, dtype);
  };
  ShardTensor q = shard(Side::query, p.num_heads_q, p.head_dim, p.dtype),
              k = shard(Side::key_value, p.num_heads_kv, p.head_dim, p.dtype),
              v = shard(Side::key_value, p.num_heads_kv, p.head_dim_v, p.dtype),
              out = shard(Side::query, p.num_heads_q, p.head_dim_v, p.out_dtype),
              dout = shard(Side::query, p.num_heads_q, p.head_dim_v, p.out_dtype),
              dq = shard(Side::query, p.num_heads_q, p.head_dim, p.grad_dtype),
              dk = shard(Side::key_value, p.num_heads_kv, p.head_dim, p.grad_dtype),
              dv = shard(Side::key_value, p.num_heads_kv, p.head_dim_v, p.grad_dtype),
              key_bias = shard(Side::key_value, p.has_key_bias ? 1 : 0, 1, DType::float32);
  if (p.has_key_bias) key_bias.fill(oracle.key_bias);
  const Floats sinks(*c.backend, oracle.sinks);
  Floats dsinks(*c.backend, std::vector<double>(oracle.sinks.size()));
  q.fill(oracle.q);
  k.fill(oracle.k);
  v.fill(oracle.v);
  dout.fill(oracle.dout);
  const std::int64_t rows = row_count(shard_pieces(p, Side::query, c.rank.world_size, c.rank.rank));
  std::vector<float> lse(static_cast<std::size_t>(p.batch * p.num_heads_q * rows) + 1);
  const std::shared_ptr<void> lse_memory = c.backend->allocate(lse.size() * sizeof(float));
  const auto lse_data = static_cast<float *>(lse_memory.get());

  const ra_stream stream = nullptr;
  void *const workspace = c.workspace(p, Pass::forward, stream);
  c.on(stream, [&] {
    ForwardCall call;
    call.q = q.tensor();
    call.k = k.tensor();
    call.v = v.tensor();
    call.out = out.tensor();
    call.lse = lse_data;
    call.key_bias = key_bias.tensor();
    call.sinks = sinks.data();
    call.workspace = workspace;
    c.forward(p, call);
  });
  BackwardCall call;
  call.dout = dout.tensor();
  call.q = q.tensor();
  call.k = k.tensor();
  call.v = v.tensor();
  call.out = out.tensor();
  call.dq = dq.tensor();
  call.dk = dk.tensor();
  call.dv = dv.tensor();
  call.lse = lse_data;
  call.key_bias = key_bias.tensor();
  call.sinks = sinks.data();
  call.dsinks = dsinks.data();
  call.workspace = c.workspace(p, Pass::backward, stream);
  c.on(stream, [&] { c.backward(p, call); });
  c.backend->copy(lse.data(), lse_data, (lse.size() - 1) * sizeof(float));

  const struct {
    const char *name;
    double error, tolerance;
  } results[] = {
      {"out", out.error(oracle.out.exact), oracle.out.tolerance},
      {"lse", lse_error(p, c.rank, lse, oracle.lse.exact), oracle.lse.tolerance},
      {"dq", dq.error(oracle.dq.exact), oracle.dq.tolerance},
      {"dk", dk.error(oracle.dk.exact), oracle.dk.tolerance},
      {"dv", dv.error(oracle.dv.exact), oracle.dv.tolerance},
      {"dsinks", p.num_sinks > 0 ? dsinks_error(c, dsinks, oracle.dsinks.exact) : 0, oracle.dsinks.tolerance}};
  for (const auto &r : results)
    if (!(r.error <= r.tolerance))
      return text(r.name, " has error ", r.error, "; at most ", r.tolerance, " is allowed: ", reference::describe(p));
  return {};
}

}  // namespace

extern "C" ra_status ra_run_self_test(ra_context *context, int64_t num_problems, int64_t seed, ra_error *error) {
  return guard(error, rank_of(context), [&] {
    ra_context &c = checked(context);
    require_range("num_problems", num_problems, 1, 1'000'000);
    std::string wrong;  // on this rank
    int culprit = -1;   // on any
    c.exclusively([&] {
      c.collective([&] {
        c.agree(Operation::self_test, Problem{}, std::array{num_problems, seed});
        Random random(static_cast<std::uint64_t>(seed));
        for (std::int64_t n = 0; n < num_problems && culprit < 0; ++n) {
          const Problem p = reference::draw_problem(random, {.modifiers = true, .layers = true});
          const Oracle oracle(p, random);
          constexpr double most_difference = 1e-5;
          const bool are_exact = p.branches.empty() || p.dilation_gradient == DilationGradient::exact;
          if (const double difference = are_exact ? reference::finite_difference_error(oracle, random, 1) : 0;
              !(difference <= most_difference))
            wrong = text("the oracle differs from finite differences by ", difference, ": ", reference::describe(p));
          if (const std::string violation = check(c, oracle); wrong.empty() && !violation.empty())
            wrong = text("problem ", n, " of seed ", seed, ": ", violation);
          const std::byte verdict{wrong.empty() ? std::uint8_t{0} : std::uint8_t{1}};
          const auto verdicts = c.transport->all_gather({&verdict, 1});
          const auto first = std::find(verdicts.begin(), verdicts.end(), std::byte{1});
          if (first != verdicts.end()) culprit = static_cast<int>(first - verdicts.begin());
        }
      });
    });
    if (culprit >= 0)
      throw Error(RA_STATUS_INTERNAL_ERROR, wrong.empty() ? text("rank ", culprit, " found a wrong result") : wrong,
                  culprit);
  });
}
