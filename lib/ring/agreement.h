// Before a collective call computes anything, all ranks make sure that they mean the same call.
#pragma once

#include <cstdint>

#include "plan/problem.h"
#include "transport/transport.h"

namespace ringattn {

enum class Operation : std::int64_t { forward = 1, backward = 2, self_test = 3 };

// Collective. Throws the same Error MISMATCH on every rank: the first field that differs, two ranks' values, and as the culprit the
// rank that contradicts all others, who agree, or -1 if there is none. `arguments` are two more numbers that have to agree:
// (number of problems, seed) of a self-test. Unless it has to be `now`, ranks whose work is only enqueued go on meanwhile, and find
// out as Transport::gather says.
void agree(Transport& transport, Operation operation, std::int64_t call_number, const Problem& problem,
           std::int64_t argument_a = 0, std::int64_t argument_b = 0, bool now = true);

}  // namespace ringattn
