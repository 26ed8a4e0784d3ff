// CURVE key pairs of ranks. All follow from the secret of the group, so every rank knows the public key of every other beforehand, and
// nobody else has one.
#pragma once

#include <array>
#include <cstddef>

#include "transport/zeromq/unique_id.h"

namespace ringattn::zeromq {

struct CurveKeys {  // as ZMQ_CURVE_PUBLICKEY and ZMQ_CURVE_SECRETKEY take them in 32 bytes
  std::array<std::byte, 32> public_key, secret_key;
};

CurveKeys curve_keys(const Secret& secret, int rank);

}  // namespace ringattn::zeromq
