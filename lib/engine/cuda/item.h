// What a kernel knows of its work: plain integers, passed by value in its parameters, and the intervals that follow from them.
//
// An item (plan/interval.h) is dense rows of queries and dense rows of keys. Positions ascend on both sides, so
//
//   row i sees the keys            lo(i) <= j < hi(i)      keys before  position(i) + lower,  and  min(position(i) + upper + 1, limit)
//   key j is seen by the rows      lo'(j) <= i < hi'(j)    rows before  position(j) - upper,  and  position(j) - lower + 1
//
// are nondecreasing all four, and what some or all of a tile's rows see follows from its first and its last row. The same holds of a
// tile's keys and the rows that see them, which is the backward pass's walk.
//
// A launch has many items, short documents mostly: their tiles are counted on from item to item, and a block finds its item by the
// number of its tile. Parameters are copied when a kernel is enqueued, so that nothing has to stay in host memory, captured or not.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ringattn::cuda {

RA_HOST_DEVICE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
RA_HOST_DEVICE std::int64_t largest(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

struct Range {
  std::int64_t begin, end;
  RA_HOST_DEVICE bool empty() const { return begin >= end; }
};

// One side of an item: its pieces (plan/shard.h), at most two, one behind the other in position and in storage.
struct Members {
  struct Part {
    std::int64_t start, first, length;
  };
  Part part[2];
  std::int64_t block, stride;  // of the run that both are of; where each part is in one block, nothing is divided
  std::int64_t row;            // in which the first is stored

  RA_HOST_DEVICE std::int64_t count() const { return part[0].length + part[1].length; }

  RA_HOST_DEVICE std::int64_t position(std::int64_t i) const {
    return i < part[0].length ? position(part[0], i) : position(part[1], i - part[0].length);
  }
  // How many of them stand before `position`.
  RA_HOST_DEVICE std::int64_t count_below(std::int64_t position) const {
    return count_below(part[0], position) + count_below(part[1], position);
  }

 private:
  RA_HOST_DEVICE std::int64_t position(const Part& p, std::int64_t i) const {
    const std::int64_t n = p.first + i;
    return n < block ? p.start + n : p.start + n / block * stride + n % block;
  }
  RA_HOST_DEVICE std::int64_t count_below(const Part& p, std::int64_t position) const {
    const std::int64_t distance = position - p.start;
    std::int64_t members = 0;
    if (distance > 0)
      members = distance < stride ? least(distance, block)
                                  : distance / stride * block + least(distance - distance / stride * stride, block);
    return largest(0, least(members - p.first, p.length));
  }
};

struct Item {
  Members queries, keys;
  std::int64_t lower, upper;  // Band
  std::int64_t kv_begin;      // of the document, in steps of its spacing
  std::int32_t first_tile;    // of the launch's

  // Keys that row i sees. `kv_length`: Work::kv_length of the batch entry.
  RA_HOST_DEVICE Range keys_of(std::int64_t i, std::int64_t kv_length) const {
    const std::int64_t position = queries.position(i);
    const std::int64_t hi = keys.count_below(least(position + upper + 1, kv_length - kv_begin));
    return {least(keys.count_below(position + lower), hi), hi};
  }
  // Rows that see key j.
  RA_HOST_DEVICE Range rows_of(std::int64_t j, std::int64_t kv_length) const {
    const std::int64_t position = keys.position(j);
    if (position >= kv_length - kv_begin) return {0, 0};
    return {queries.count_below(position - upper), queries.count_below(position - lower + 1)};
  }
};

// Where an item's positions are in the whole problem (plan/interval.h), for what changes its scores and weights.
struct PlacedItem : Item {
  std::int64_t q_begin, first_key, spacing, shift;  // first_key: WorkItem::kv_begin

  // Of the whole sequence: the token at a position, and the key that the query at a position faces.
  RA_HOST_DEVICE std::int64_t query(std::int64_t position) const { return q_begin + position * spacing; }
  RA_HOST_DEVICE std::int64_t key(std::int64_t position) const { return first_key + position * spacing; }
  RA_HOST_DEVICE std::int64_t faced(std::int64_t position) const { return key(position + shift); }
};

// Of the other side of an item: outside `some` no row (or key) of the tile sees anything, inside `all` each of them sees everything.
struct Walk {
  Range some, all;

  // In tiles of the other side: those in which there is anything, and those that need no mask, counted from tile `origin`.
  struct Tiles {
    std::int32_t begin, end, full_begin, full_end;
    RA_HOST_DEVICE bool has(std::int32_t tile) const { return begin <= tile && tile < end; }
    RA_HOST_DEVICE bool is_full(std::int32_t tile) const { return full_begin <= tile && tile < full_end; }
  };
  RA_HOST_DEVICE Tiles in_tiles(std::int64_t size, std::int64_t origin) const {
    if (some.empty()) return {0, 0, 0, 0};
    return {static_cast<std::int32_t>(some.begin / size - origin),
            static_cast<std::int32_t>((some.end + size - 1) / size - origin),
            static_cast<std::int32_t>((all.begin + size - 1) / size - origin),
            static_cast<std::int32_t>(all.end / size - origin)};
  }

  // Whether a tile of the other side needs no mask.
  RA_HOST_DEVICE bool is_full(std::int64_t begin, std::int64_t end) const {
    return all.begin <= begin && end <= all.end;
  }
  // The first of the tiles, counted from the item's first key (or row), in which there is anything; and where they end.
  RA_HOST_DEVICE Range tiles(std::int64_t size) const {
    if (some.empty()) return {0, 0};
    return {some.begin / size, (some.end + size - 1) / size};
  }
};

// Rows first .. first + count - 1 of an item, count > 0, and the keys that they see.
RA_HOST_DEVICE Walk walk_keys(const Item& item, std::int64_t first, std::int64_t count, std::int64_t kv_length) {
  if (item.keys.count() == 0) return {{0, 0}, {0, 0}};
  const Range of_first = item.keys_of(first, kv_length), of_last = item.keys_of(first + count - 1, kv_length);
  return {{of_first.begin, of_last.end}, {of_last.begin, of_first.end}};
}
// Keys first .. first + count - 1 of an item, count > 0, and the rows that see them. Keys behind the padding's beginning are the last.
RA_HOST_DEVICE Walk walk_rows(const Item& item, std::int64_t first, std::int64_t count, std::int64_t kv_length) {
  const std::int64_t end = least(first + count, item.keys.count_below(kv_length - item.kv_begin));
  if (end <= first) return {{0, 0}, {0, 0}};
  const Range of_first = item.rows_of(first, kv_length), of_last = item.rows_of(end - 1, kv_length);
  if (end < first + count) return {{of_first.begin, of_last.end}, {0, 0}};
  return {{of_first.begin, of_last.end}, {of_last.begin, of_first.end}};
}

// The work of one launch: some items, for some entries of the batch. Kernel parameters may have 4 KB in all.
template <class AnyItem, int of_items>
struct AnyWork {
  static constexpr int most_items = of_items, most_entries = 24;

  AnyItem item[most_items];
  // Problem::kv_length of each entry, in steps as Item::kv_begin has them; if not padded, of all entries length[0].
  std::int64_t length[most_entries];
  std::int32_t num_items;
  std::int32_t num_tiles;  // of all items
  std::int32_t first_entry, num_entries;
  std::int32_t is_padded;

  // Entry n of the launch's.
  RA_HOST_DEVICE std::int64_t kv_length(int n) const { return length[is_padded ? n : 0]; }
  RA_HOST_DEVICE const AnyItem& item_of(std::int32_t tile) const {
    int begin = 0, end = num_items;  // the item is one of these
    while (end - begin > 1) {
      const int middle = (begin + end) / 2;
      if (item[middle].first_tile <= tile)
        begin = middle;
      else
        end = middle;
    }
    return item[begin];
  }
};
using Work = AnyWork<Item, 18>;
using PlacedWork = AnyWork<PlacedItem, 14>;

// [batch, rows, heads, dim], strides in elements, dim dense.
struct View {
  void* data;
  std::int64_t batch_stride, seq_stride, head_stride;

  template <class T>
  RA_HOST_DEVICE T* at(std::int64_t b, std::int64_t row, std::int64_t head) const {
    return static_cast<T*>(data) + (b * batch_stride + row * seq_stride + head * head_stride);
  }
};

}  // namespace ringattn::cuda
