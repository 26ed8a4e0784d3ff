// In the place of cuDNN where the CUDA backend is built without its headers.
#include "engine/cuda/cudnn.h"

namespace ringattn::cuda {

std::unique_ptr<Cudnn> open_cudnn(const std::string&) {
  fail(RA_STATUS_NOT_SUPPORTED, "this build is without cuDNN: its headers were not found");
}

}  // namespace ringattn::cuda
