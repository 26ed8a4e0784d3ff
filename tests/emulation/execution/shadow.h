// What is known of a block's shared memory: who wrote and who read last, and what comes before what.
//
// Time is counted per warp, in intervals between its barriers of any kind. All lanes of a warp pass the same barriers, so an access is
// a thread and an interval of its warp. seen(w, u) is the last interval of warp u that comes before what warp w does now: a vector
// clock, which a barrier joins among the warps that meet there. Two accesses of different threads race, if one of them is a write and
// the earlier one was in an interval that the later one's warp has not seen.
//
// Of every two bytes the last write is kept, and for each warp two threads that read last. Older accesses come before those, or they
// would have been a race themselves. Time goes on from block to block, so that nothing has to be cleared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <source_location>
#include <vector>

namespace emulation {

class Shadow {
 public:
  static constexpr std::int64_t granule = 2;       // bytes
  static constexpr std::uint16_t nobody = 0xffff;  // neither a thread

  enum class How : std::uint8_t { stored, copying, copied };  // by cp.async, which has not been waited for, or has
  struct Write {
    std::source_location place;
    std::uint32_t interval = 0;
    std::uint16_t thread = nobody;
    How how = How::stored;

    bool like(const Write& other) const {
      return interval == other.interval && thread == other.thread && how == other.how;
    }
  };
  struct Read {  // by threads of one warp, in one interval
    std::source_location place, other_place;
    std::uint32_t interval = 0;
    std::uint16_t thread = nobody, other = nobody;

    bool like(const Read& that) const {
      return interval == that.interval && thread == that.thread && other == that.other;
    }
  };

  Shadow(std::int64_t bytes, int warps)
      : granules_((bytes + granule - 1) / granule),
        warps_(warps),
        now_(static_cast<std::size_t>(warps)),
        last_read_(now_.size()),
        seen_(now_.size() * now_.size()),
        writes_(static_cast<std::size_t>(granules_)),
        reads_(writes_.size() * now_.size()) {}

  void begin_block() {
    begun_ = *std::max_element(now_.begin(), now_.end()) + 1;
    std::fill(now_.begin(), now_.end(), begun_);
    std::fill(seen_.begin(), seen_.end(), begun_ - 1);
  }

  std::uint32_t now(int warp) const { return now_[static_cast<std::size_t>(warp)]; }
  Write* write(std::int64_t g) { return writes_.data() + g; }
  const Read* read(int warp, std::int64_t g) const { return reads_.data() + warp * granules_ + g; }
  // The same, to be written now.
  Read* begin_read(int warp, std::int64_t g) {
    last_read_[static_cast<std::size_t>(warp)] = now(warp);
    return reads_.data() + warp * granules_ + g;
  }

  bool in_this_block(std::uint32_t interval) const { return interval >= begun_; }
  // Whether an interval of warp u comes before what warp w does now.
  bool precedes(int u, std::uint32_t interval, int w) const {
    return interval <= seen_[static_cast<std::size_t>(w * warps_ + u)];
  }

  // Whether all that warp u has read comes before what warp w does now.
  bool all_reads_precede(int u, int w) const { return precedes(u, last_read_[static_cast<std::size_t>(u)], w); }

  // A barrier of these warps.
  void join(const std::vector<int>& warps) {
    std::vector<std::uint32_t> all(now_.size(), 0);
    for (const int w : warps)
      for (int u = 0; u < warps_; ++u) {
        std::uint32_t& latest = all[static_cast<std::size_t>(u)];
        latest = std::max(latest, seen_[static_cast<std::size_t>(w * warps_ + u)]);
      }
    for (const int w : warps) all[static_cast<std::size_t>(w)] = now(w);
    for (const int w : warps) {
      std::copy(all.begin(), all.end(), seen_.begin() + w * warps_);
      ++now_[static_cast<std::size_t>(w)];
    }
  }

 private:
  std::int64_t granules_;
  int warps_;
  std::uint32_t begun_ = 0;
  std::vector<std::uint32_t> now_, last_read_, seen_;
  std::vector<Write> writes_;
  std::vector<Read> reads_;
};

}  // namespace emulation
