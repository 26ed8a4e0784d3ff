#include "checker.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace emulation {
namespace {

constexpr int poison = 0xff;  // NaN in every floating-point type
constexpr std::align_val_t alignment{256};

bool is_written(const std::map<std::size_t, std::size_t>& written, std::size_t begin, std::size_t end) {
  auto after = written.upper_bound(begin);
  return after != written.begin() && std::prev(after)->second >= end;
}

void mark_written(std::map<std::size_t, std::size_t>& written, std::size_t begin, std::size_t end) {
  auto next = written.upper_bound(begin);
  if (next != written.begin() && std::prev(next)->second >= begin) {
    --next;
    begin = next->first;
  }
  while (next != written.end() && next->first <= end) {
    end = std::max(end, next->second);
    next = written.erase(next);
  }
  written.emplace(begin, end);
}

}  // namespace

void join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size(), 0);
  for (std::size_t lane = 0; lane < other.size(); ++lane) into[lane] = std::max(into[lane], other[lane]);
}

std::string Author::label() const {
  return '"' + name + "\" (#" + std::to_string(id) + ", stream " + std::to_string(stream) + " of device " +
         std::to_string(device) + ')';
}

Memory::Memory(const Config& config, std::function<void(Rule, const std::string&)> report)
    : devices_(config.devices),
      left_(static_cast<std::size_t>(config.devices), config.device_bytes),
      peers_(static_cast<std::size_t>(config.devices * config.devices), false),
      report_(std::move(report)) {}

Memory::~Memory() {
  for (auto& [begin, block] : blocks_) ::operator delete(const_cast<std::byte*>(begin), alignment);
}

void* Memory::allocate(Kind kind, int device, std::size_t bytes) {
  if (kind == Kind::device) {
    if (left_[static_cast<std::size_t>(device)] < bytes) return nullptr;
    left_[static_cast<std::size_t>(device)] -= bytes;
  }
  auto* const data = static_cast<std::byte*>(::operator new(bytes, alignment, std::nothrow));
  if (data == nullptr) return nullptr;
  std::memset(data, poison, bytes);
  Block& block = blocks_[data];
  block.begin = data;
  block.kind = kind;
  block.device = device;
  block.bytes = bytes;
  return data;
}

// The bytes stay until reset, so that operations that still run do no harm and the address is not given out again.
bool Memory::free(Kind kind, void* data, const Clock& host) {
  Block* const block = block_of(data);
  if (block == nullptr || block->begin != data || block->kind != kind) return false;
  if (block->freed) {
    report_(Rule::freed, place(*block, 0, block->bytes) + " is freed again");
    return false;
  }
  for (const Use& use : block->uses)
    if (!use.author->before(host)) {
      report_(Rule::freed_in_use, place(*block, 0, block->bytes) + " is freed while " + use.author->label() + " may " +
                                      (use.writes ? "write it" : "read it"));
      break;
    }
  block->freed = true;
  if (kind == Kind::device) left_[static_cast<std::size_t>(block->device)] += block->bytes;
  return true;
}

Memory::Block* Memory::block_of(const void* data) {
  auto after = blocks_.upper_bound(static_cast<const std::byte*>(data));
  if (after == blocks_.begin()) return nullptr;
  Block& block = std::prev(after)->second;
  return data < block.begin + std::max<std::size_t>(block.bytes, 1) ? &block : nullptr;
}

const Memory::Found* Memory::find(const void* data) const {
  const Block* const block = const_cast<Memory*>(this)->block_of(data);
  return block == nullptr || block->freed ? nullptr : block;
}

bool Memory::enable_peer(int device, int peer) {
  const bool was = peers_[index(device, peer)];
  peers_[index(device, peer)] = true;
  return !was;
}

std::string Memory::place(const Block& block, std::size_t begin, std::size_t end) const {
  return "bytes " + std::to_string(begin) + " .. " + std::to_string(end) + " of " + std::to_string(block.bytes) +
         (block.kind == Kind::pinned ? " in pinned memory" : " on device " + std::to_string(block.device));
}

bool Memory::check(const AuthorPtr& author, Reach reach, const std::vector<Access>& accesses, const Clock& clock,
                   const Clock& host) {
  bool sound = true;
  struct Checked {
    Block* block;
    Use use;
  };
  std::vector<Checked> checked;
  for (const Access& access : accesses) {
    if (access.bytes == 0) continue;
    const auto does = [&] { return author->label() + (access.writes ? " writes " : " reads "); };
    Block* const block = block_of(access.data);
    if (block == nullptr) {
      if (reach == Reach::copy) continue;
      report_(Rule::not_allocated, does() + std::to_string(access.bytes) + " bytes that CUDA did not allocate");
      sound = false;
      continue;
    }
    const auto begin = static_cast<std::size_t>(static_cast<const std::byte*>(access.data) - block->begin);
    const std::size_t end = begin + access.bytes;
    if (block->freed) {
      report_(Rule::freed, does() + place(*block, begin, end) + ", which has been freed");
      sound = false;
      continue;
    }
    if (end > block->bytes) {
      report_(Rule::out_of_bounds, does() + place(*block, begin, end));
      sound = false;
      continue;
    }
    if (reach == Reach::kernel && block->kind == Kind::device && !can_reach(author->device, block->device))
      report_(Rule::no_peer_access, does() + place(*block, begin, end) + ", which was not opened to it");
    if (!access.writes && block->kind == Kind::device && !is_written(block->written, begin, end))
      report_(Rule::uninitialised, does() + place(*block, begin, end) + ", of which not all has been written");
    checked.push_back({block, {begin, end, access.writes, author}});
  }

  for (const auto& [block, use] : checked) {
    const Use& now = use;
    const auto conflict = std::find_if(block->uses.rbegin(), block->uses.rend(), [&](const Use& earlier) {
      return earlier.begin < now.end && now.begin < earlier.end && (earlier.writes || now.writes) &&
             !earlier.author->before(clock);
    });
    if (conflict != block->uses.rend())
      report_(Rule::unordered,
              author->label() + (now.writes ? " writes " : " reads ") +
                  place(*block, std::max(now.begin, conflict->begin), std::min(now.end, conflict->end)) +
                  " and does not come after " + conflict->author->label() + ", which " +
                  (conflict->writes ? "writes" : "reads") + " it");
  }
  for (const auto& [block, use] : checked) {
    // What a later access that is ordered after this one need not be compared with any more.
    const Use& now = use;
    std::erase_if(block->uses, [&](const Use& earlier) {
      return earlier.author->before(host) ||
             (now.begin <= earlier.begin && earlier.end <= now.end && (now.writes || !earlier.writes) &&
              (now.writes || now.author->lane == earlier.author->lane) && earlier.author->before(clock) &&
              earlier.author != author);
    });
    block->uses.push_back(now);
    if (now.writes) mark_written(block->written, now.begin, now.end);
  }
  return sound;
}

void Memory::check_host(const Access& access, const Clock& host) {
  Block* const block = block_of(access.data);
  if (block == nullptr || access.bytes == 0) return;
  const auto begin = static_cast<std::size_t>(static_cast<const std::byte*>(access.data) - block->begin);
  const std::size_t end = begin + access.bytes;
  const std::string does =
      std::string("the host ") + (access.writes ? "writes " : "reads ") + place(*block, begin, end);
  if (block->freed) return report_(Rule::freed, does + ", which has been freed");
  if (end > block->bytes) return report_(Rule::out_of_bounds, does);
  for (const Use& use : block->uses)
    if (use.begin < end && begin < use.end && (use.writes || access.writes) && !use.author->before(host))
      return report_(Rule::host_too_early, does + " and has not synchronised with " + use.author->label() + ", which " +
                                               (use.writes ? "writes" : "reads") + " it");
  if (access.writes) mark_written(block->written, begin, end);
}

void Memory::describe(std::vector<std::string>& lines) const {
  for (const auto& [begin, block] : blocks_)
    if (!block.freed)
      lines.push_back(std::to_string(block.bytes) + (block.kind == Kind::pinned
                                                         ? " bytes of pinned memory"
                                                         : " bytes of device " + std::to_string(block.device)));
}

}  // namespace emulation
