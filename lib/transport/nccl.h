// Ranks that are processes with a GPU each. So far only whether NCCL can be used.
#pragma once

#include <string>

namespace ringattn {

// Why RA_TRANSPORT_NCCL cannot be used here: "libnccl.so.2: cannot open ...; looked in ..."; empty if it can. Loads NCCL.
std::string missing_nccl();

}  // namespace ringattn
