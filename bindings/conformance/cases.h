// Cases of cases.json as the README of this folder says: what both programs here need to make a problem of one.
#pragma once

#include <fields.h>  // generated; the ABI tests have an older one

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace ringattn::conformance {

inline Json read_json(const std::string &path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  return Json::parse(file);
}

template <class Record>
void set_all(Record &record, const Json &object, const char *key, Kept &kept) {
  if (!object.contains(key)) return;
  for (const auto &[field, value] : object.at(key).items()) set(record, field, value, kept);
}

// Which tensor, as the numbers of its elements depend on it.
enum Tensor { q, k, v, dout, dq, dk, dv, key_bias, sinks, dsinks };

// Element i of tensor t: one of -1, -63/64 ... 63/64.
inline float input(std::uint64_t seed, std::uint64_t t, std::uint64_t i) {
  std::uint64_t z = ((seed * 16 + t) << 32) + i + 0x9E3779B97F4A7C15U;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
  z = (z ^ z >> 27) * 0x94D049BB133111EBU;
  z ^= z >> 31;
  return static_cast<float>(z >> 57) / 64 - 1;
}

// A number of input() as the dtype stores it, which is exact, and back.
inline std::size_t size_of(std::int32_t dtype) { return dtype == RA_DTYPE_FLOAT32 ? 4 : 2; }

inline void encode(float x, std::int32_t dtype, std::byte *to) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == RA_DTYPE_FLOAT32) {
    std::memcpy(to, &bits, 4);
    return;
  }
  std::uint32_t half = bits >> 16;
  if (dtype == RA_DTYPE_FLOAT16)
    half = (bits >> 16 & 0x8000U) | (x == 0 ? 0U : (bits >> 13 & 0x3FFFFU) - ((127U - 15U) << 10));
  const auto stored = static_cast<std::uint16_t>(half);
  std::memcpy(to, &stored, 2);
}

inline float decode(const std::byte *from, std::int32_t dtype) {
  if (dtype == RA_DTYPE_FLOAT32) {
    float x;
    std::memcpy(&x, from, 4);
    return x;
  }
  std::uint16_t half;
  std::memcpy(&half, from, 2);
  if (dtype == RA_DTYPE_BFLOAT16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace ringattn::conformance
