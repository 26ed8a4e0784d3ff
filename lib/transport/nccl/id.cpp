#include "transport/nccl/id.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <span>

#include "transport/nccl.h"
#include "transport/nccl/error.h"

namespace ringattn {
namespace {

constexpr const char* id_prefix = "ringattn-nccl-";

}  // namespace

namespace nccl_detail {

void draw_id(std::span<std::byte> id) {
  ncclUniqueId drawn;
  const ncclResult_t result = nccl().ncclGetUniqueId(&drawn);
  if (result != ncclSuccess) throw nccl_error("ncclGetUniqueId", result, nullptr);
  std::memcpy(id.data(), drawn.internal, id.size());
}

std::vector<std::byte> parse_id(const std::string& text) {
  std::vector<std::byte> bytes;
  for (std::size_t at = std::strlen(id_prefix); at < text.size(); at += 2)
    bytes.push_back(static_cast<std::byte>(std::stoi(text.substr(at, 2), nullptr, 16)));
  return bytes;
}

}  // namespace nccl_detail

std::string make_nccl_id() {
  std::array<std::byte, sizeof(ncclUniqueId)> id;
  nccl_detail::draw_id(id);
  std::string digits = id_prefix;
  for (const std::byte byte : id) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", std::to_integer<unsigned>(byte));
    digits += pair;
  }
  return digits;
}

bool is_nccl_id(const std::string& id) {
  const std::size_t prefix = std::strlen(id_prefix);
  return id.starts_with(id_prefix) && id.size() == prefix + 2 * sizeof(ncclUniqueId) &&
         id.find_first_not_of("0123456789abcdef", prefix) == std::string::npos;
}

}  // namespace ringattn
