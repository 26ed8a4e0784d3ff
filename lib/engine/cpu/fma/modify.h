// What modifiers (tiles.h) do to rows of scores and weights, a vector at a time.
//
// Dropout draws the words of whole groups of keys by Philox (engine/dropout.h), as many groups in a vector as it has pairs of words. The
// four words of the state stand in vectors of their own, each in the low half of 64 bits, where a product of two is found by one
// instruction and its low half is in place already; what the high halves hold does not matter before the end. Several vectors of
// groups go side by side, since every round waits for the one before. Groups stand in an order in which exchanging halves of pairs of
// lanes at the end brings the words into that of the keys. Keys that are neighbours, as most are, take them as they lie.
#pragma once

#include "engine/cpu/fma/shape.h"
#include "engine/dropout.h"

namespace ringattn::cpu {
namespace {

// Those of the rows and keys from these on.
inline Modifiers modifiers_from(Modifiers m, std::int64_t row, std::int64_t key) {
  m.rows += row;
  if (m.offsets != nullptr) m.offsets += key;
  if (m.bias != nullptr) m.bias += key;
  if (m.words != nullptr) m.words += key;
  return m;
}

// ---- what is added to scores

inline Vector magnitude_of(Vector x) { return from_bits(bits(x) & 0x7fffffffU); }

class Added {
 public:
  Added(const Modifiers& m, std::int64_t row)
      : offsets_(m.offsets),
        bias_(m.bias),
        slope_(m.rows[row].slope),
        position_(static_cast<float>(m.rows[row].position - m.first)) {}

  bool any() const { return offsets_ != nullptr || bias_ != nullptr; }
  // score + what is added to columns from j on.
  Vector to(Vector score, std::int64_t j) const {
    Vector sum = bias_ == nullptr ? Vector{} : read(bias_ + j);
    if (offsets_ != nullptr) sum -= magnitude_of(position_ - read(offsets_ + j)) * slope_;
    return score + sum;
  }
  void to_row(float* scores, std::int64_t count) const {
    for (std::int64_t j = 0; j < count; j += width) write(scores + j, to(read(scores + j), j));
  }

 private:
  const float *offsets_, *bias_;
  float slope_, position_;
};

// ---- dropout

typedef std::uint64_t Wide __attribute__((vector_size(width * 4), aligned(8), may_alias));
constexpr int lanes = width / 2;
constexpr std::uint64_t low_bits = 0xffffffffU;

inline Wide wide(std::uint64_t x) { return Wide{} + x; }

// The products of the low halves.
inline Wide multiply_low(Wide a, Wide b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wide>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Wide>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Wide>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<Wide>(
      vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
#else
  return (a & low_bits) * (b & low_bits);
#endif
}

template <int... lane>
inline Wide in_pairs(Wide v, std::integer_sequence<int, lane...>) {  // lane n beside lane n + lanes / 2
  return __builtin_shuffle(v, Wide{(lane % 2 * (lanes / 2) + lane / 2)...});
}
// The even, or odd, lanes of both, alternating.
template <int odd, int... lane>
inline Wide alternating(Wide a, Wide b, std::integer_sequence<int, lane...>) {
  return __builtin_shuffle(a, b, Wide{(lane % 2 * lanes + lane / 2 * 2 + odd)...});
}

// What the columns of a row are multiplied by: 0, or Modifiers::kept.
class Kept {
 public:
  explicit Kept(const Modifiers& m) : m_(m) {}

  // Of columns begin .. end - 1 of a row, the first being the one at `begin`.
  const float* of_row(std::int64_t row, std::int64_t begin, std::int64_t end) {
    const std::int32_t* const words = m_.words;
    const std::int64_t first = words[begin] / 4, groups = words[end - 1] / 4 + 1 - first;
    for (int round = 0; round < philox_rounds; ++round)
      for (int n = 0; n < 2; ++n)
        keys_[round][n] = wide(m_.rows[row].dropout[n] + static_cast<std::uint32_t>(round) * philox_step[n]);
    std::int64_t group = 0;
    for (; groups - group >= together * lanes; group += together * lanes) draw<together>(first + group, at(group));
    for (; group < groups; group += lanes) draw<1>(first + group, at(group));
    if (words[end - 1] - words[begin] == end - 1 - begin) return in_groups_ + words[begin] % 4;
    for (std::int64_t j = begin; j < end; ++j) in_order_[j - begin] = in_groups_[words[j] - 4 * first];
    return in_order_;
  }

 private:
  static constexpr int together = width == 16 ? 4 : 2;

  float* at(std::int64_t group) { return in_groups_ + 4 * group; }

  template <int n>
  void draw(std::int64_t group, float* to) const {
    constexpr auto order = std::make_integer_sequence<int, lanes>();
    const Wide multipliers[2] = {wide(philox_multiplier[0]), wide(philox_multiplier[1])};
    Wide c[n][4];
    for (int i = 0; i < n; ++i) {
      const Wide groups = in_pairs(*reinterpret_cast<const Wide*>(m_.groups + group + i * lanes), order);
      c[i][0] = groups;
      c[i][1] = groups >> 32;
      c[i][2] = wide(m_.dropout_offset & low_bits);
      c[i][3] = wide(m_.dropout_offset >> 32);
    }
    for (int round = 0; round < philox_rounds; ++round) {
      const Wide key[2] = {keys_[round][0], keys_[round][1]};
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) {
        const Wide a = multiply_low(c[i][0], multipliers[0]), b = multiply_low(c[i][2], multipliers[1]);
        c[i][0] = b >> 32 ^ c[i][1] ^ key[0];
        c[i][1] = b;
        c[i][2] = a >> 32 ^ c[i][3] ^ key[1];
        c[i][3] = a;
      }
    }
    for (int i = 0; i < n; ++i, to += 4 * lanes) {
      const Wide front = (c[i][0] & low_bits) | c[i][1] << 32, back = (c[i][2] & low_bits) | c[i][3] << 32;
      write(to, factors(alternating<0>(front, back, order)));
      write(to + width, factors(alternating<1>(front, back, order)));
    }
  }
  Vector factors(Wide words) const { return reinterpret_cast<Bits&>(words) >= m_.threshold ? all(m_.kept) : Vector{}; }

  const Modifiers& m_;
  Wide keys_[philox_rounds][2];
  alignas(64) float in_groups_[4 * (key_block + padding)];
  alignas(64) float in_order_[key_block + padding];
};

inline void multiply_row(float* row, const float* factors, std::int64_t count) {
  for (std::int64_t j = 0; j < count; j += width) write(row + j, read(row + j) * read(factors + j));
}

// Columns that a row sees, as whole vectors.
inline std::int64_t first_vector(Visible seen) { return seen.lo / width * width; }
inline std::int64_t behind_vectors(Visible seen) { return (seen.hi + width - 1) / width * width; }

}  // namespace
}  // namespace ringattn::cpu
