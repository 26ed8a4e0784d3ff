// Whole division of a number of either sign by one above 0.
#pragma once

#include <cstdint>

namespace ringattn {

constexpr std::int64_t divide_down(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return -divide_down(-a, b); }
// What divide_down leaves: 0 .. b - 1.
constexpr std::int64_t modulo(std::int64_t a, std::int64_t b) { return a - divide_down(a, b) * b; }

}  // namespace ringattn
