// NCCL's id of a communicator: as NCCL has it, as bytes, and as the text of ra_unique_id.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace ringattn::nccl_detail {

std::vector<std::byte> draw_id();  // NCCL listens for it in this process
std::vector<std::byte> parse_id(const std::string& text);

}  // namespace ringattn::nccl_detail
