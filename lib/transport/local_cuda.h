// Ranks of one process on one GPU or several: the copy engines move what they send to each other.
#pragma once

#include <memory>

#include "engine/cuda/queue.h"
#include "transport/copier.h"

namespace ringattn {

// `queue` outlives it.
std::unique_ptr<Copier> make_cuda_copier(cuda::Queue& queue);

}  // namespace ringattn
