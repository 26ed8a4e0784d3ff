// NCCL's id of a communicator: as NCCL has it, as bytes, and as the text of ra_unique_id.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace ringattn::nccl_detail {

void draw_id(std::span<std::byte> id);  // NCCL listens for it in this process
std::vector<std::byte> parse_id(const std::string& text);

}  // namespace ringattn::nccl_detail
