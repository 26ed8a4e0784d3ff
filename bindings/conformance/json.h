// What cases.json says, as the C API takes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <list>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "ringattn/ringattn.h"

namespace ringattn::conformance {

using Json = nlohmann::ordered_json;

struct Constant {
  const char *name;
  std::int32_t value;
};

// An enum's constant by its short name.
template <std::size_t n>
std::int32_t constant(const Constant (&constants)[n], const Json &value) {
  for (const Constant &c : constants)
    if (value == c.name) return c.value;
  throw std::runtime_error("no constant " + value.dump());
}

template <class T>
T number(const Json &value) {
  if (value == "inf") return static_cast<T>(INFINITY);
  if (value == "nan") return static_cast<T>(NAN);
  return value.get<T>();
}

inline std::int64_t number_of(const Json &list) { return static_cast<std::int64_t>(list.size()); }

// Strings and lists that records point to.
class Kept {
 public:
  const char *text(const Json &value) {
    return value.is_null() ? nullptr : texts_.emplace_back(value.get<std::string>()).c_str();
  }
  const std::int64_t *list(const Json &value) {
    return value.is_null() ? nullptr : lists_.emplace_back(value.get<std::vector<std::int64_t>>()).data();
  }
  const float *reals(const Json &value) {
    return value.is_null() ? nullptr : reals_.emplace_back(value.get<std::vector<float>>()).data();
  }

 private:
  std::list<std::string> texts_;
  std::list<std::vector<std::int64_t>> lists_;
  std::list<std::vector<float>> reals_;
};

[[noreturn]] inline void unknown(const char *record, const std::string &field) {
  throw std::runtime_error(std::string(record) + " has no field " + field);
}

}  // namespace ringattn::conformance
