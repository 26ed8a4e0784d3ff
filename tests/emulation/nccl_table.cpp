// In the place of nccl/library.cpp: the emulated NCCL's functions.
#include "transport/nccl/library.h"

namespace ringattn {

const Nccl& nccl() {
#define RINGATTN_ADDRESS(function) ::function,
  static constexpr Nccl table{RINGATTN_NCCL_FUNCTIONS(RINGATTN_ADDRESS)};
#undef RINGATTN_ADDRESS
  return table;
}

}  // namespace ringattn
