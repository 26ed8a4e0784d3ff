// Which tokens a rank owns, against the definition of ra_sharding token by token, and the copies between whole sequences and
// shards.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using Offsets = std::vector<std::int64_t>;

struct Case {
  std::int32_t sharding;
  std::int64_t stripe;
  std::int32_t world_size;
  Offsets q;  // documents as offsets, {0, N} where there are none
  Offsets kv;

  ra_attention_desc desc() const {
    ra_attention_desc desc = make_desc(q.back());
    desc.seqlen_kv = kv.back();
    desc.sharding = sharding;
    desc.stripe = stripe;
    if (q.size() > 2) {
      desc.num_documents = static_cast<std::int64_t>(q.size()) - 1;
      desc.document_offsets_q = q.data();
      desc.document_offsets_kv = kv.data();
    }
    return desc;
  }

  friend std::ostream& operator<<(std::ostream& stream, const Case& c) {
    stream << "sharding " << c.sharding << ", stripe " << c.stripe << ", world_size " << c.world_size << ", offsets_q";
    for (const std::int64_t offset : c.q) stream << ' ' << offset;
    stream << ", offsets_kv";
    for (const std::int64_t offset : c.kv) stream << ' ' << offset;
    return stream;
  }
};

// The part of 0 .. parts - 1 that token i of a document lies in: it has n tokens, from token `begin` of the sequence on.
std::int64_t part_of(std::int64_t i, std::int64_t begin, std::int64_t n, std::int64_t parts) {
  std::int64_t end = 0;
  for (std::int64_t part = 0;; ++part) {
    const bool longer = (part + parts - begin % parts) % parts < n % parts;
    end += n / parts + (longer ? 1 : 0);
    if (i < end) return part;
  }
}

std::int64_t owner_of(const Case& c, std::int64_t i, std::int64_t begin, std::int64_t n) {
  const std::int64_t p = c.world_size;
  if (c.sharding == RA_SHARDING_STRIPED) return ((begin + i) / c.stripe) % p;
  if (c.sharding == RA_SHARDING_CONTIGUOUS) return part_of(i, begin, n, p);
  const std::int64_t part = part_of(i, begin, n, 2 * p);
  return std::min(part, 2 * p - 1 - part);
}

std::vector<std::int64_t> positions_by_definition(const Case& c, std::int32_t rank, std::int32_t side) {
  const Offsets& offsets = side == RA_SIDE_QUERY ? c.q : c.kv;
  std::vector<std::int64_t> positions;
  for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
    const std::int64_t n = offsets[d + 1] - offsets[d];
    for (std::int64_t i = 0; i < n; ++i) {
      if (owner_of(c, i, offsets[d], n) == rank) positions.push_back(offsets[d] + i);
    }
  }
  return positions;
}

// Among them 3 tokens on 8 ranks, stripes longer than the sequence, empty documents, no tokens at all.
std::vector<Case> cases() {
  const std::vector<std::pair<Offsets, Offsets>> sequences = {
      {{0, 0}, {0, 0}},
      {{0, 1}, {0, 1}},
      {{0, 3}, {0, 3}},
      {{0, 7}, {0, 20}},
      {{0, 64}, {0, 64}},
      {{0, 61}, {0, 0}},
      {{0, 0, 5, 5, 6, 30}, {0, 0, 5, 5, 6, 30}},
      {{0, 4, 9, 9}, {0, 17, 17, 40}},
      {{0, 1, 2, 3, 4, 5, 6, 7, 8}, {0, 1, 2, 3, 4, 5, 6, 7, 8}},
      {{0, 1, 14, 30, 37, 40}, {0, 9, 11, 11, 44, 61}},
  };
  std::vector<Case> result;
  for (const auto& [q, kv] : sequences) {
    for (const std::int32_t world_size : {1, 2, 3, 5, 8}) {
      result.push_back({RA_SHARDING_CONTIGUOUS, 1, world_size, q, kv});
      result.push_back({RA_SHARDING_ZIGZAG, 1, world_size, q, kv});
      for (const std::int64_t stripe : {1, 2, 5, 100})
        result.push_back({RA_SHARDING_STRIPED, stripe, world_size, q, kv});
    }
  }
  return result;
}

TEST(Shards, AreTheTokensOfTheDefinition) {
  for (const Case& c : cases()) {
    const ra_attention_desc desc = c.desc();
    for (std::int32_t rank = 0; rank < c.world_size; ++rank) {
      for (const std::int32_t side : {RA_SIDE_QUERY, RA_SIDE_KEY_VALUE}) {
        Error error;
        const std::int64_t length = ra_get_shard_length(&desc, c.world_size, rank, side, &error);
        std::vector<std::int64_t> positions;
        for (std::int64_t i = 0; i < length; ++i) {
          positions.push_back(ra_get_shard_position(&desc, c.world_size, rank, side, i, &error));
        }
        ASSERT_EQ(positions, positions_by_definition(c, rank, side))
            << c << ", rank " << rank << ", side " << side << ": " << error;
        for (std::int64_t first = 0; first <= length; ++first) {
          for (std::int64_t count = 0; first + count <= length; count = 2 * count + 1) {
            std::vector<std::int64_t> some(static_cast<std::size_t>(count) + 1, -7);
            ASSERT_EQ(ra_get_shard_positions(&desc, c.world_size, rank, side, first, count, some.data(), &error),
                      RA_STATUS_SUCCESS)
                << error;
            ASSERT_EQ(some.back(), -7);
            some.pop_back();
            ASSERT_EQ(some, std::vector(positions.begin() + first, positions.begin() + first + count))
                << c << ", rank " << rank << ", side " << side << ", " << count << " from " << first;
          }
        }
      }
    }
  }
}

TEST(Shards, NoPositionsNeedNoMemory) {
  const ra_attention_desc desc = make_desc(3);
  Error error;
  for (const std::int64_t first : {0, 1})
    EXPECT_EQ(ra_get_shard_positions(&desc, 3, 2, RA_SIDE_QUERY, first, 0, nullptr, &error), RA_STATUS_SUCCESS)
        << error;
}

TEST(Shards, OfASequenceBeyondTwoToThe31) {
  constexpr std::int64_t n = (std::int64_t{1} << 40) + 5;
  ra_attention_desc desc = make_desc(n);
  const auto length = [&](std::int32_t rank) { return ra_get_shard_length(&desc, 3, rank, RA_SIDE_QUERY, nullptr); };
  const auto position = [&](std::int32_t rank, std::int64_t i) {
    return ra_get_shard_position(&desc, 3, rank, RA_SIDE_QUERY, i, nullptr);
  };

  for (const std::int32_t sharding : {RA_SHARDING_CONTIGUOUS, RA_SHARDING_ZIGZAG, RA_SHARDING_STRIPED}) {
    desc.sharding = sharding;
    desc.stripe = 1000;
    EXPECT_EQ(length(0) + length(1) + length(2), n) << "sharding " << sharding;
  }

  desc.sharding = RA_SHARDING_CONTIGUOUS;  // n = 3 * (n / 3), no remainder
  static_assert(n % 3 == 0 && n % 6 == 3);
  for (const std::int32_t rank : {0, 1, 2}) {
    EXPECT_EQ(position(rank, 0), rank * (n / 3));
    EXPECT_EQ(position(rank, length(rank) - 1), (rank + 1) * (n / 3) - 1);
  }

  desc.sharding = RA_SHARDING_ZIGZAG;  // pieces 0, 1, 2 have n / 6 + 1 tokens and pieces 3, 4, 5 have n / 6
  for (const std::int32_t rank : {0, 1, 2}) {
    const std::int64_t early = rank * (n / 6 + 1);
    const std::int64_t late = n - (rank + 1) * (n / 6);
    EXPECT_EQ(position(rank, 0), early);
    EXPECT_EQ(position(rank, n / 6), early + n / 6);
    EXPECT_EQ(position(rank, n / 6 + 1), late);
    EXPECT_EQ(position(rank, length(rank) - 1), late + n / 6 - 1);
  }

  desc.sharding = RA_SHARDING_STRIPED;
  for (const std::int32_t rank : {0, 1, 2}) {
    for (const std::int64_t i : {std::int64_t{0}, std::int64_t{999}, std::int64_t{1000}, n / 3 - 2000}) {
      EXPECT_EQ(position(rank, i), (i / 1000 * 3 + rank) * 1000 + i % 1000) << "rank " << rank << ", index " << i;
    }
  }
}

// split gives every rank its tokens and nothing else, join puts them back and touches nothing else.
TEST(Shards, SplitAndJoinAreInverse) {
  constexpr std::int64_t batch = 2, heads = 3, dim = 5;
  for (const Case& c : cases()) {
    if (c.world_size == 8 && c.q.back() > 8) continue;
    ra_attention_desc desc = c.desc();
    desc.batch = batch;
    for (const std::int32_t dtype : {RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, RA_DTYPE_FLOAT16}) {
      for (const std::int32_t side : {RA_SIDE_QUERY, RA_SIDE_KEY_VALUE}) {
        for (const Layout layout : {Layout::packed, Layout::padded, Layout::head_major}) {
          SCOPED_TRACE(testing::Message()
                       << c << ", dtype " << dtype << ", side " << side << ", layout " << static_cast<int>(layout));
          const std::int64_t n = side == RA_SIDE_QUERY ? c.q.back() : c.kv.back();
          Tensor whole(dtype, batch, n, heads, dim, layout);
          whole.for_each_element([&](auto b, auto s, auto h, auto d) {
            whole.set(b, s, h, d, static_cast<float>(hashed_uniform(7, b, s, h, d)));
          });
          const Tensor joined(dtype, batch, n, heads, dim, Layout::padded);

          for (std::int32_t rank = 0; rank < c.world_size; ++rank) {
            const std::vector<std::int64_t> positions = positions_by_definition(c, rank, side);
            const Tensor shard(dtype, batch, static_cast<std::int64_t>(positions.size()), heads, dim, layout);
            ra_sequence_args args;
            ra_init_sequence_args(&args, sizeof args);
            args.side = side;
            args.dtype = dtype;
            args.num_heads = heads;
            args.dim = dim;
            args.whole = whole.view();
            args.shard = shard.view();
            Error error;
            ASSERT_EQ(ra_split_sequence(&desc, c.world_size, rank, &args, &error), RA_STATUS_SUCCESS) << error;
            EXPECT_TRUE(shard.gaps_untouched());
            shard.for_each_element([&](auto b, auto s, auto h, auto d) {
              ASSERT_EQ(shard.get(b, s, h, d), whole.get(b, positions[static_cast<std::size_t>(s)], h, d));
            });

            args.whole = joined.view();
            ASSERT_EQ(ra_join_sequence(&desc, c.world_size, rank, &args, &error), RA_STATUS_SUCCESS) << error;
            for (std::int64_t s = 0; s < n && rank == 0; ++s) {
              const bool owned = std::find(positions.begin(), positions.end(), s) != positions.end();
              const std::byte* element = joined.at(0, s, 0, 0);
              EXPECT_EQ(std::all_of(element, element + size_of(dtype), [](std::byte x) { return x == kPoison; }),
                        !owned);
            }
          }
          EXPECT_TRUE(same_bits(joined, whole));
          EXPECT_TRUE(joined.gaps_untouched());
        }
      }
    }
  }
}

// RA_STRIDE_REPEAT repeats one slice: here one token's heads for a whole batch.
TEST(Shards, SplitReadsABroadcastSequence) {
  ra_attention_desc desc = make_desc(6);
  desc.batch = 3;
  Tensor whole(RA_DTYPE_FLOAT32, 1, 6, 2, 4);
  whole.for_each_element(
      [&](auto b, auto s, auto h, auto d) { whole.set(b, s, h, d, static_cast<float>(100 * s + 10 * h + d)); });
  const Tensor shard(RA_DTYPE_FLOAT32, 3, 3, 2, 4);
  ra_sequence_args args;
  ra_init_sequence_args(&args, sizeof args);
  args.num_heads = 2;
  args.dim = 4;
  args.whole = {whole.bytes.get(), RA_STRIDE_REPEAT, whole.seq_stride, whole.head_stride, whole.size};
  args.shard = shard.view();
  Error error;
  ASSERT_EQ(ra_split_sequence(&desc, 2, 1, &args, &error), RA_STATUS_SUCCESS) << error;
  shard.for_each_element(
      [&](auto b, auto s, auto h, auto d) { EXPECT_EQ(shard.get(b, s, h, d), whole.get(0, 3 + s, h, d)); });
}

}  // namespace
}  // namespace ringattn::test
