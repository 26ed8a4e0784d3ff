// What the FMA engines' tiles are made of, as data. Nothing but their own files and their tests needs it.
#pragma once

#include <cstdint>

#include "engine/cpu/tiles.h"

namespace ringattn::cpu {

// How the left operand of a product lies in memory: in panels, or as rows of scores, or as columns of scores.
enum class Left { packed, weights, transposed };

// C = A B, summed over k, which counts cells; B[k, n] lies in panels. Where A[m, k] does too, C[m, n] = scale A B are rows of scores.
// Else C lies in panels, and where accumulating C = factor C + A B, row by row, with factors of 1 if there are none.
struct Product {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t a_panel = 0;  // floats from one panel to the next, also of B and C; of A only where it is packed
  const float* b = nullptr;
  std::int64_t b_panel = 0;
  float* c = nullptr;
  std::int64_t c_panel = 0;
  std::int64_t a_part = 0, b_part = 0;  // cells of k from one part to the next
  float scale = 1;
  bool accumulate = false;
  const float* factor = nullptr;  // [m]
};

// Scores of a strip on entry, before the softcap; softmax weights on return, relative to the running max, of which dropout has taken its
// own: the sum has them all.
struct SoftmaxTile {
  std::int64_t rows, count;  // columns, whole vectors
  float* scores;             // [rows, score_stride]
  const Visible* visible;    // [rows]
  float softcap;
  float *max, *sum;  // [rows], running
  float* factor;     // [rows], written: by which earlier results of the row shrink
  const Modifiers* modifiers = nullptr;
};

// Scores before the softcap, and products of dout and v, on entry; softmax weights and the gradients of the scores on return.
struct ScoreGradients {
  std::int64_t rows, count;
  float *scores, *dscores;  // [rows, score_stride]
  const Visible* visible;
  float softcap;
  const float *lse, *delta;
  const Modifiers* modifiers = nullptr;
};

struct Parts {
  std::int64_t score_stride;  // floats from one row of scores to the next
  void (*multiply)(Left left, const Product& product);
  void (*softmax)(const SoftmaxTile& tile);
  void (*differentiate_scores)(const ScoreGradients& tile);
};

}  // namespace ringattn::cpu
