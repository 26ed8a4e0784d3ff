// Before a collective call computes anything, all ranks make sure that they mean the same call.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "plan/problem.h"
#include "transport/transport.h"

namespace ringattn {

enum class Operation : std::int64_t {
  forward = 1,
  backward = 2,
  self_test = 3,
  mha_forward = 4,
  mha_backward = 5,
  all_reduce = 6,
  decode = 7
};

// What a rank is about to do, in numbers that all ranks must have alike. Of lists they are digests.
class Terms {
 public:
  // `number`: of calls before it. `problem`: an empty one, where there is none. `arguments`: what else has to agree, those that agreement.cpp
  // names for the operation.
  Terms(Operation operation, std::int64_t number, const Problem& problem, std::span<const std::int64_t> arguments = {});

  // Equal for calls that differ in their number, or in the weights that they drop, alone.
  std::int64_t digest() const;
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(numbers_)); }

  static constexpr std::size_t most_arguments = 14, problem_fields = 39;

 private:
  std::array<std::int64_t, 2 + most_arguments + problem_fields> numbers_{};  // operation, number, arguments, problem
};
// fp32 numbers among the arguments.
inline std::int64_t argument_of(float x) { return std::bit_cast<std::int32_t>(x); }

// Collective. Throws the same Error MISMATCH on every rank: the first field that differs, two ranks' values, and as the culprit the
// rank that contradicts all others, who agree, or -1 if there is none. Unless it has to be `now`, ranks whose work is only enqueued go on
// meanwhile, and find out as Transport::gather says.
void agree(Transport& transport, const Terms& terms, bool now = true);

}  // namespace ringattn
