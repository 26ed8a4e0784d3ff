// Before a collective call computes anything, all ranks make sure that they mean the same call.
#pragma once

#include <bit>
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
  all_reduce = 6
};

// What a rank is about to do.
struct CollectiveCall {
  Operation operation;
  std::int64_t number;     // calls before it
  const Problem& problem;  // an empty one, where there is none
  std::span<const std::int64_t> arguments =
      {};  // what else has to agree: those that agreement.cpp names for the operation
};
// fp32 numbers among the arguments.
inline std::int64_t argument_of(float x) { return std::bit_cast<std::int32_t>(x); }

// Collective. Throws the same Error MISMATCH on every rank: the first field that differs, two ranks' values, and as the culprit the
// rank that contradicts all others, who agree, or -1 if there is none. Unless it has to be `now`, ranks whose work is only enqueued go on
// meanwhile, and find out as Transport::gather says.
void agree(Transport& transport, const CollectiveCall& call, bool now = true);

}  // namespace ringattn
