// One random problem with its inputs, its exact results, and how far from them a result may lie.
//
// Tolerance rule: the largest error of a tensor may be at most twice that of a plain computation in the same dtype, both
// against fp64 on the same rounded inputs. The plain computation is reference::forward<float> with its results rounded to
// their dtype. On a few numbers its error is a matter of luck, so it is the worst of several orders of summation, of operands in fp32
// and in the inputs' dtype, as products of such tensors have them, and of gradients behind the plain forward pass and behind one that is
// exact but for storage, where errors of scores do not cancel those of lse; and it counts as no less than the fp32 rounding errors of each term of an element's sums, below which no computation can promise
// to stay: one of the term, two of what dropout multiplies it by, those of what its score is made of besides the product, the root of
// the squares of those of the terms of the dot products that the score, and in gradients dP and delta, are; and one of storing the
// element in its dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/reference/reference.h"
#include "plan/problem.h"

namespace ringattn::reference {

using Random = std::mt19937_64;

inline std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}

struct ProblemLimits {
  std::int64_t batch = 2;
  std::int64_t seqlen = 96;
  std::int64_t num_heads_kv = 2;
  std::int64_t group = 4;
  std::int64_t head_dim = 48;
  bool modifiers = false;  // some of alibi_slopes, key_bias, sinks and dropout
  bool layers = false;     // mask slices, dilation, or both
};

// Any mask, sharding, alignment, dtype and length that ra_attention_desc can say, small enough to check.
Problem draw_problem(Random& random, const ProblemLimits& limits);

// Parts of one, for those who choose what it has: documents, one slope for each head, one or more slices and branches. They read its
// lengths and heads.
std::vector<Document> draw_documents(Random& random, const Problem& problem, std::int64_t count);
std::vector<float> draw_slopes(Random& random, const Problem& problem);
Dropout draw_dropout(Random& random);
std::vector<MaskSlice> draw_slices(Random& random, const Problem& problem);
std::vector<Branch> draw_branches(Random& random, const Problem& problem);

// In words that tell two problems apart; for messages.
std::string describe(const Problem& problem);

void encode(double x, DType dtype, void* to);
double decode(const void* from, DType dtype);

struct Expected {
  std::vector<double> exact;
  double tolerance = 0;  // of the largest error
};

// Drawn from a normal distribution and rounded to their dtypes; of key_bias and sinks, which are fp32 and which only some problems
// have, some are -infinity.
struct Inputs {
  Inputs(const Problem& problem, Random& random);

  Problem problem;
  std::vector<double> q, k, v, dout, key_bias, sinks;
};

enum class Of { all, forward };  // of a forward pass only out and lse, which costs a fifth

struct Oracle : Inputs {
  Oracle(const Problem& problem, Random& random, Of of = Of::all) : Oracle(Inputs(problem, random), random, of) {}
  // Of inputs that may have been changed since they were drawn; `random` only orders sums.
  Oracle(Inputs inputs, Random& random, Of of);

  Expected out, lse, dq, dk, dv, dsinks;
};

// Largest difference between fp64 gradients and central finite differences of sum(dout * out), over `samples` entries of
// each of q, k, v and sinks, relative to the largest gradient; NaN where a gradient is. Checks the oracle itself; about 1e-7 where it
// is right.
double finite_difference_error(const Oracle& oracle, Random& random, int samples);

}  // namespace ringattn::reference
