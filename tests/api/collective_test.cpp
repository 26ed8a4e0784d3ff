// What ranks say when they do not agree, do not come, leave or give up: the right status on every rank, naming the culprit,
// and soon. After every failure a new group works.

#include <gtest/gtest.h>
#include <names.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Long enough for a rank on a loaded machine to come, short enough to wait for one that does not.
constexpr std::int64_t kTimeoutMs = 500;
// Within this an event on one rank has reached all others; far below the 60 s after which a rank would time out.
constexpr milliseconds kPrompt{3000};

// What one rank got from a call.
struct Outcome {
  ra_status status = RA_STATUS_SUCCESS;
  Error error;
  milliseconds duration{};
};

Outcome outcome_of(const std::function<ra_status(ra_error*)>& call) {
  Outcome outcome;
  const Clock::time_point start = Clock::now();
  outcome.status = call(&outcome.error);
  outcome.duration = std::chrono::duration_cast<milliseconds>(Clock::now() - start);
  EXPECT_EQ(outcome.status, outcome.error.status);
  return outcome;
}

Outcome forward(ra_context* context, const ra_attention_desc& desc, std::int32_t world_size, std::int32_t rank) {
  const Shard shard(desc, world_size, rank);
  return outcome_of([&](ra_error* error) { return shard.forward(context, error); });
}

Outcome backward(ra_context* context, const ra_attention_desc& desc, std::int32_t world_size, std::int32_t rank) {
  const Shard shard(desc, world_size, rank);
  return outcome_of([&](ra_error* error) { return shard.backward(context, error); });
}

Outcome create(const ra_context_config& config) {
  return outcome_of([&](ra_error* error) {
    const Context context(ra_create_context(&config, error));
    EXPECT_EQ(context != nullptr, error->status == RA_STATUS_SUCCESS);
    return static_cast<ra_status>(error->status);
  });
}

void expect(const Outcome& outcome, ra_status status, const std::vector<std::string>& words = {}) {
  EXPECT_STREQ(ra_get_status_name(outcome.status), ra_get_status_name(status)) << outcome.error;
  for (const std::string& word : words) {
    EXPECT_NE(outcome.error.text().find(word), std::string::npos) << "lacks \"" << word << "\": " << outcome.error;
  }
}

void expect_names(const Outcome& outcome, ra_status status, std::int32_t rank) {
  expect(outcome, status, {std::to_string(rank)});
  EXPECT_EQ(outcome.error.rank, rank) << outcome.error;
}

void expect_new_group_works(std::int32_t world_size) {
  for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
    expect(forward(context, make_desc(12), world_size, rank), RA_STATUS_SUCCESS);
    expect(backward(context, make_desc(12), world_size, rank), RA_STATUS_SUCCESS);
  });
}

void expect_unusable(ra_context* context, std::int32_t world_size, std::int32_t rank) {
  expect(forward(context, make_desc(12), world_size, rank), RA_STATUS_INVALID_STATE);
  expect(backward(context, make_desc(12), world_size, rank), RA_STATUS_INVALID_STATE);
  expect(outcome_of([&](ra_error* error) { return ra_run_self_test(context, 1, 1, error); }), RA_STATUS_INVALID_STATE);
}

Outcome async_error(const ra_context* context) {
  return outcome_of([&](ra_error* error) { return ra_get_async_error(context, error); });
}

// A problem of 10^12 operations but little memory, for calls that are to be interrupted.
ra_attention_desc endless(ra_schedule schedule = RA_SCHEDULE_AUTO) {
  ra_attention_desc desc = make_desc(std::int64_t{1} << 16, 4, 16);
  desc.schedule = schedule;
  return desc;
}

// ---------------------------------------------------------------- agreement

struct Disagreement {
  std::string name;
  std::function<void(ra_attention_desc& desc)> here;   // what all ranks but one say
  std::function<void(ra_attention_desc& desc)> there;  // what that one says
  std::vector<std::string> words;
};

std::vector<Disagreement> disagreements() {
  using D = ra_attention_desc;
  static constexpr std::int64_t documents[2][3] = {{0, 4, 24}, {0, 5, 24}};
  static constexpr std::int64_t other_count[] = {0, 4, 8, 24};
  static constexpr std::int64_t lengths[2][2] = {{24, 20}, {24, 19}};
  std::vector<Disagreement> table;
  const auto field = [&table](const std::string& name, auto member, auto a, auto b, const std::string& text_a,
                              const std::string& text_b) {
    table.push_back({name, [=](D& d) { d.*member = a; }, [=](D& d) { d.*member = b; }, {name, text_a, text_b}});
  };
  field("batch", &D::batch, 2, 3, "2", "3");
  field("seqlen_q", &D::seqlen_q, 24, 25, "24", "25");
  field("seqlen_kv", &D::seqlen_kv, 24, 31, "24", "31");
  field("num_heads_q", &D::num_heads_q, 4, 6, "4", "6");
  field("num_heads_kv", &D::num_heads_kv, 1, 2, "1", "2");
  field("head_dim", &D::head_dim, 8, 16, "8", "16");
  field("head_dim_v", &D::head_dim_v, 8, 24, "8", "24");
  field("dtype", &D::dtype, RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, "1", "2");
  field("out_dtype", &D::out_dtype, RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, "1", "2");
  field("grad_dtype", &D::grad_dtype, RA_DTYPE_FLOAT32, RA_DTYPE_BFLOAT16, "1", "2");
  field("sharding", &D::sharding, RA_SHARDING_CONTIGUOUS, RA_SHARDING_ZIGZAG, "0", "1");
  field("stripe", &D::stripe, 1, 2, "1", "2");
  field("mask", &D::mask, RA_MASK_FULL, RA_MASK_CAUSAL, "0", "1");
  field("mask_alignment", &D::mask_alignment, RA_MASK_ALIGNMENT_TOP_LEFT, RA_MASK_ALIGNMENT_BOTTOM_RIGHT, "0", "1");
  field("window_left", &D::window_left, -1, 5, "-1", "5");
  field("window_right", &D::window_right, 3, 4, "3", "4");
  field("softmax_scale", &D::softmax_scale, 0.25F, 0.5F, "0.25", "0.5");
  field("softcap", &D::softcap, 0.0F, 30.0F, "0", "30");
  field("num_chunks", &D::num_chunks, 1, 2, "1", "2");
  field("schedule", &D::schedule, RA_SCHEDULE_AUTO, RA_SCHEDULE_RING, "0", "1");
  field("gather_bytes", &D::gather_bytes, 0, 1000, "0", "1000");
  field("num_sinks", &D::num_sinks, 1, 2, "1", "2");
  field("dropout_probability", &D::dropout_probability, 0.25F, 0.5F, "0.25", "0.5");
  field("has_key_bias", &D::has_key_bias, 0, 1, "0", "1");
  field("dropout_seed", &D::dropout_seed, 7, -8, "7", "-8");
  field("dropout_offset", &D::dropout_offset, std::int64_t{1} << 40, 0, "1099511627776", "0");
  field("dilation_phase", &D::dilation_phase, RA_DILATION_PHASE_BLOCKS_OF_HEADS, RA_DILATION_PHASE_INTERLEAVED_HEADS,
        "0", "1");
  field("dilation_padding", &D::dilation_padding, RA_DILATION_PADDING_MASKED, RA_DILATION_PADDING_ZERO_KEYS, "0", "1");
  field("dilation_gradient", &D::dilation_gradient, RA_DILATION_GRADIENT_EXACT, RA_DILATION_GRADIENT_CONSTANT_WEIGHTS,
        "0", "1");

  const auto documents_are = [](const std::int64_t* offsets, std::int64_t count) {
    return [=](D& d) {
      d.num_documents = count;
      d.document_offsets_q = offsets;
    };
  };
  table.push_back({"num_documents",
                   documents_are(documents[0], 2),
                   documents_are(other_count, 3),
                   {"num_documents is ", "2", "3"}});
  table.push_back({"documents or none",
                   [](D&) {},
                   documents_are(documents[0], 2),
                   {"num_documents is ", " 0 or 1 on rank", " 2 on rank"}});
  table.push_back(
      {"document_offsets_q", documents_are(documents[0], 2), documents_are(documents[1], 2), {"document_offsets"}});
  table.push_back({"document_offsets_kv",
                   documents_are(documents[0], 2),
                   [=](D& d) {
                     documents_are(documents[0], 2)(d);
                     d.document_offsets_kv = documents[1];
                   },
                   {"document_offsets"}});
  const auto lengths_are = [](const std::int64_t* values) {
    return [=](D& d) {
      d.batch = 2;
      d.kv_lengths = values;
    };
  };
  table.push_back({"kv_lengths", lengths_are(lengths[0]), lengths_are(lengths[1]), {"kv_lengths"}});
  table.push_back({"kv_lengths or none",
                   lengths_are(nullptr),
                   lengths_are(lengths[0]),
                   {"kv_lengths is ", "none on rank", "a list with digest 0x"}});
  static constexpr float slopes[2][4] = {{0.5F, 0.25F, 0.125F, 0.0625F}, {0.5F, 0.25F, 0.125F, 0.25F}};
  const auto slopes_are = [](const float* values) { return [=](D& d) { d.alibi_slopes = values; }; };
  table.push_back({"alibi_slopes", slopes_are(slopes[0]), slopes_are(slopes[1]), {"alibi_slopes"}});
  table.push_back({"alibi_slopes or none",
                   slopes_are(nullptr),
                   slopes_are(slopes[0]),
                   {"alibi_slopes is ", "none on rank", "a list with digest 0x"}});
  static constexpr std::int64_t slices[2][10] = {{0, 24, 0, 12, RA_MASK_SLICE_KIND_FULL, 0, 24, 12, 24},
                                                 {0, 24, 0, 12, RA_MASK_SLICE_KIND_CAUSAL, 0, 24, 12, 24}};
  const auto slices_are = [](const std::int64_t* values, std::int64_t count) {
    return [=](D& d) {
      d.num_mask_slices = count;
      d.mask_slices = values;
    };
  };
  table.push_back(
      {"num_mask_slices", slices_are(slices[0], 2), slices_are(slices[0], 1), {"num_mask_slices", "1", "2"}});
  table.push_back({"mask_slices", slices_are(slices[0], 2), slices_are(slices[1], 2), {"mask_slices"}});
  static constexpr std::int64_t lists[3][2] = {{8, 24}, {1, 2}, {1, 3}};
  const auto branches_are = [](std::int32_t count, const std::int64_t* segment_lengths, const std::int64_t* dilations) {
    return [=](D& d) {
      d.num_branches = count;
      d.segment_lengths = segment_lengths;
      d.dilations = dilations;
    };
  };
  const auto branches = branches_are(2, lists[0], lists[1]);
  table.push_back({"num_branches", branches, branches_are(1, lists[0], lists[1]), {"num_branches", "1", "2"}});
  table.push_back({"segment_lengths", branches, branches_are(2, lists[1], lists[1]), {"segment_lengths"}});
  table.push_back({"dilations", branches, branches_are(2, lists[0], lists[2]), {"dilations"}});
  return table;
}

// Fields that are read beside others only must differ there; everywhere else they are ignored.
ra_attention_desc problem_of(const Disagreement& row, bool is_odd_one) {
  static constexpr std::int64_t ones[] = {1};
  ra_attention_desc desc = make_desc(24, 4, 8);
  if (row.name == "stripe") desc.sharding = RA_SHARDING_STRIPED;
  if (row.name.starts_with("dropout_")) desc.dropout_probability = 0.5F;
  if (row.name.starts_with("dilation_")) {
    desc.num_branches = 1;
    desc.segment_lengths = desc.dilations = ones;
  }
  (is_odd_one ? row.there : row.here)(desc);
  return desc;
}

TEST(Mismatch, IsLookedForInEveryField) {
  std::set<std::string> names;
  for (const Disagreement& row : disagreements()) names.insert(row.name);
  for (const std::string field : attention_desc_fields) EXPECT_TRUE(names.contains(field)) << field << " has no row";
}

TEST(Mismatch, OfAnyFieldIsReportedOnEveryRankWithBothValues) {
  for (const Disagreement& row : disagreements()) {
    for (const auto& [world_size, odd_one] : {std::pair{2, 0}, std::pair{2, 1}, std::pair{3, 1}}) {
      for (const bool is_backward : {false, true}) {
        for_each_rank(world_size, [&, world_size = world_size, odd_one = odd_one](std::int32_t rank,
                                                                                  ra_context* context) {
          SCOPED_TRACE(row.name + (is_backward ? " backward" : " forward") + ", rank " + std::to_string(rank) + " of " +
                       std::to_string(world_size) + ", odd one out " + std::to_string(odd_one));
          const ra_attention_desc desc = problem_of(row, rank == odd_one);
          expect((is_backward ? backward : forward)(context, desc, world_size, rank), RA_STATUS_MISMATCH, row.words);
        });
      }
    }
  }
  expect_new_group_works(3);
}

// Every rank names the rank that contradicts all others, who agree; between two ranks, or two and two, nobody is alone.
TEST(Mismatch, NamesTheRankThatIsAlone) {
  struct Case {
    std::vector<std::int64_t> seqlens;  // as the ranks say
    std::int32_t alone;
    std::vector<std::string> words;
  };
  for (const Case& c : std::vector<Case>{{{25, 24}, -1, {"25 on rank 0", "24 on rank 1"}},
                                         {{24, 25}, -1, {"24 on rank 0", "25 on rank 1"}},
                                         {{25, 24, 24, 24}, 0, {"25 on rank 0", "24 on rank 1"}},
                                         {{24, 25, 24, 24}, 1, {"24 on rank 0", "25 on rank 1"}},
                                         {{24, 24, 25, 24}, 2, {"24 on rank 0", "25 on rank 2"}},
                                         {{24, 24, 24, 25}, 3, {"24 on rank 0", "25 on rank 3"}},
                                         {{24, 25, 25, 24}, -1, {"24 on rank 0", "25 on rank 1"}},
                                         {{24, 24, 25, 26}, -1, {"24 on rank 0", "25 on rank 2"}},
                                         {{24, 25, 26}, -1, {"24 on rank 0", "25 on rank 1"}}}) {
    const auto world_size = static_cast<std::int32_t>(c.seqlens.size());
    for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
      SCOPED_TRACE("rank " + std::to_string(rank) + " of " + std::to_string(world_size) + ": " + c.words[0] + ", " +
                   c.words[1]);
      const ra_attention_desc desc = make_desc(c.seqlens[static_cast<std::size_t>(rank)]);
      for (const Outcome& outcome : {forward(context, desc, world_size, rank), async_error(context)}) {
        expect(outcome, RA_STATUS_MISMATCH, c.words);
        EXPECT_EQ(outcome.error.rank, c.alone) << outcome.error;
      }
      const Outcome later = forward(context, desc, world_size, rank);
      expect(later, RA_STATUS_INVALID_STATE, c.words);
      EXPECT_EQ(later.error.rank, c.alone) << later.error;
    });
  }
}

TEST(Mismatch, OfTheOrderOfCallsIsReportedOnEveryRank) {
  for (const std::int32_t odd_one : {0, 1, 2}) {
    for_each_rank(3, [&](std::int32_t rank, ra_context* context) {
      SCOPED_TRACE("rank " + std::to_string(rank) + ", odd one out " + std::to_string(odd_one));
      expect((rank == odd_one ? backward : forward)(context, make_desc(24), 3, rank), RA_STATUS_MISMATCH,
             {"forward", "backward"});
    });
  }
  expect_new_group_works(3);
}

TEST(Mismatch, OfSelfTestArgumentsIsReportedOnEveryRank) {
  const auto self_test = [](std::int64_t count, std::int64_t seed, const std::vector<std::string>& words) {
    for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
      expect(outcome_of([&](ra_error* error) {
               return ra_run_self_test(context, rank == 0 ? 3 : count, rank == 0 ? 7 : seed, error);
             }),
             RA_STATUS_MISMATCH, words);
    });
  };
  self_test(5, 7, {"num_problems", "3", "5"});
  self_test(3, 11, {"seed", "7", "11"});
  expect_new_group_works(2);
}

// ---------------------------------------------------------------- joining

TEST(Join, WithoutOneRankTimesOutNamingIt) {
  for (const std::int32_t missing : {0, 1, 2}) {
    const ra_unique_id id = make_unique_id();
    run_threads(3, [&](std::int32_t rank) {
      if (rank == missing) return;
      ra_context_config config = make_config(3, rank, &id);
      config.timeout_ms = kTimeoutMs;
      const Outcome outcome = create(config);
      expect_names(outcome, RA_STATUS_TIMEOUT, missing);
      EXPECT_LT(outcome.duration, milliseconds(kTimeoutMs) + kPrompt);
    });
  }
  expect_new_group_works(3);
}

TEST(Join, AloneNamesTheFirstAbsentRank) {
  for (const std::int32_t rank : {0, 1, 2}) {
    const ra_unique_id id = make_unique_id();
    ra_context_config config = make_config(3, rank, &id);
    config.timeout_ms = kTimeoutMs;
    const Outcome outcome = create(config);
    expect_names(outcome, RA_STATUS_TIMEOUT, rank == 0 ? 1 : 0);
    EXPECT_GE(outcome.duration, milliseconds(kTimeoutMs - 50));
  }
  expect_new_group_works(3);
}

// Ranks[i] and world sizes as thread i gives them; the last thread comes when the others are waiting.
void expect_join_mismatch(const std::vector<std::int32_t>& ranks, const std::vector<std::int32_t>& world_sizes,
                          const std::vector<std::string>& words) {
  const ra_unique_id id = make_unique_id();
  const auto count = static_cast<std::int32_t>(ranks.size());
  run_threads(count, [&](std::int32_t thread) {
    if (thread == count - 1) std::this_thread::sleep_for(milliseconds(100));
    const auto i = static_cast<std::size_t>(thread);
    const ra_context_config config = make_config(world_sizes[i], ranks[i], &id);
    const Outcome outcome = create(config);
    expect(outcome, RA_STATUS_MISMATCH, words);
    EXPECT_LT(outcome.duration, kPrompt);
  });
}

TEST(Join, TwiceWithOneRankIsAMismatch) {
  // Elsewhere a first rank 0 goes on when a second finds its address taken, and others know nothing of each other without one.
  if (transport() == RA_TRANSPORT_LOCAL) {
    expect_join_mismatch({0, 0}, {2, 2}, {"rank", "0"});
    expect_join_mismatch({1, 1}, {2, 2}, {"rank", "1"});
  }
  expect_join_mismatch({0, 1, 1}, {3, 3, 3}, {"rank", "1"});
  expect_new_group_works(3);
}

TEST(Join, WithDifferentWorldSizesIsAMismatch) {
  expect_join_mismatch({0, 1}, {2, 3}, {"world_size", "2", "3"});
  expect_join_mismatch({1, 0}, {3, 2}, {"world_size", "2", "3"});
  expect_join_mismatch({0, 2, 1}, {4, 4, 3}, {"world_size", "3", "4"});
  expect_new_group_works(3);
}

// A rank whose own arguments are refused will not come, and the others need not wait to find out.
TEST(Join, WithARefusedConfigIsALostPeerToTheOthers) {
  const ra_unique_id id = make_unique_id();
  std::vector<Outcome> outcomes(3);
  run_threads(3, [&](std::int32_t rank) {
    ra_context_config config = make_config(3, rank, &id);
    if (rank == 1) config.num_threads = -1;
    outcomes[static_cast<std::size_t>(rank)] = create(config);
  });
  expect(outcomes[1], RA_STATUS_INVALID_ARGUMENT, {"num_threads", "-1"});
  for (const std::size_t rank : {0U, 2U}) {
    expect_names(outcomes[rank], RA_STATUS_PEER_LOST, 1);
    expect(outcomes[rank], RA_STATUS_PEER_LOST, {"num_threads"});
    EXPECT_LT(outcomes[rank].duration, kPrompt);
  }
  expect_new_group_works(3);
}

// It has come and gone: with a better config it must come to another group.
TEST(Join, AfterARefusedConfigNeedsANewId) {
  if (transport() != RA_TRANSPORT_LOCAL) return;  // whoever was refused before rank 0 listened has told nobody
  const ra_unique_id id = make_unique_id();
  ra_context_config config = make_config(2, 0, &id);
  config.num_threads = -1;
  expect(create(config), RA_STATUS_INVALID_ARGUMENT, {"num_threads", "-1"});
  config.num_threads = 1;
  expect(create(config), RA_STATUS_MISMATCH, {"rank is 0", "already joined or was refused", "new id"});
  expect_names(create(make_config(2, 1, &id)), RA_STATUS_PEER_LOST, 0);
  expect_new_group_works(2);
}

// Several groups form and work at the same time in one process.
TEST(Join, GroupsAreIndependent) {
  run_threads(3, [](std::int32_t) { expect_new_group_works(2); });
}

// ---------------------------------------------------------------- ranks that do not come, leave or give up

// Word of a failure takes a moment between processes.
void expect_news(const ra_context* context) {
  const auto deadline = std::chrono::steady_clock::now() + kPrompt;
  while (async_error(context).status == RA_STATUS_SUCCESS) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(milliseconds(1));
  }
}

TEST(Absence, FromACallTimesOutNamingTheRank) {
  for (const std::int32_t missing : {0, 1, 2}) {
    for (const bool is_backward : {false, true}) {
      Ranks ranks(3, [](ra_context_config& config) { config.timeout_ms = kTimeoutMs; });
      ranks.run([&](std::int32_t rank, ra_context* context) {
        if (rank == missing) return;
        SCOPED_TRACE("rank " + std::to_string(rank) + ", missing " + std::to_string(missing));
        const Outcome outcome = (is_backward ? backward : forward)(context, make_desc(24), 3, rank);
        expect_names(outcome, RA_STATUS_TIMEOUT, missing);
        EXPECT_LT(outcome.duration, milliseconds(kTimeoutMs) + kPrompt);
      });
      ranks.run([&](std::int32_t rank, ra_context* context) {
        expect_news(context);
        EXPECT_NE(forward(context, make_desc(24), 3, rank).status, RA_STATUS_SUCCESS) << "rank " << rank;
      });
    }
  }
  expect_new_group_works(3);
}

TEST(Destroy, OfOneRankIsALostPeerToThoseWhoWait) {
  for (const std::int32_t leaver : {0, 1, 2}) {
    Ranks ranks(3);
    std::thread leaving([&] {
      std::this_thread::sleep_for(milliseconds(150));
      ranks.destroy(leaver);
    });
    run_threads(3, [&](std::int32_t rank) {
      if (rank == leaver) return;
      SCOPED_TRACE("rank " + std::to_string(rank) + ", leaver " + std::to_string(leaver));
      const Outcome outcome = forward(ranks[rank], make_desc(24), 3, rank);
      expect_names(outcome, RA_STATUS_PEER_LOST, leaver);
      EXPECT_LT(outcome.duration, milliseconds(150) + kPrompt);
    });
    leaving.join();
    for (const std::int32_t rank : {0, 1, 2}) {
      if (rank != leaver) expect_names(async_error(ranks[rank]), RA_STATUS_PEER_LOST, leaver);
    }
  }
  expect_new_group_works(3);
}

TEST(Destroy, BeforeACallIsALostPeerToTheNextCall) {
  Ranks ranks(3);
  ranks.run([](std::int32_t rank, ra_context* context) {
    expect(forward(context, make_desc(24), 3, rank), RA_STATUS_SUCCESS);
  });
  ranks.destroy(1);
  for (const std::int32_t rank : {0, 2})
    expect(async_error(ranks[rank]), RA_STATUS_SUCCESS);  // nobody has missed it yet
  std::atomic<int> lost{0};
  run_threads(3, [&](std::int32_t rank) {
    if (rank == 1) return;
    const Outcome outcome = forward(ranks[rank], make_desc(24), 3, rank);
    EXPECT_LT(outcome.duration, kPrompt);
    if (outcome.status == RA_STATUS_INVALID_STATE) {  // the other one was here first, and the group is broken since
      EXPECT_NE(outcome.error.text().find("PEER_LOST"), std::string::npos) << outcome.error;
    } else {
      expect_names(outcome, RA_STATUS_PEER_LOST, 1);
      ++lost;
    }
    expect_names(async_error(ranks[rank]), RA_STATUS_PEER_LOST, 1);
  });
  EXPECT_GE(lost.load(), 1);
  expect_new_group_works(3);
}

TEST(Abort, EndsALongCallOnEveryRankNamingTheRankThatGaveUp) {
  for (const std::int32_t aborter : {0, 2}) {
    for (const bool is_backward : {false, true}) {
      Ranks ranks(3);
      ASSERT_TRUE(ranks.complete());
      std::vector<Shard> shards;
      const ra_schedule schedule = aborter == 0 ? RA_SCHEDULE_RING : RA_SCHEDULE_ALL_GATHER;
      for (std::int32_t rank = 0; rank < 3; ++rank) shards.emplace_back(endless(schedule), 3, rank);
      std::atomic<Clock::time_point> aborted{Clock::time_point::max()};
      std::thread giving_up([&] {
        std::this_thread::sleep_for(milliseconds(300));
        aborted = Clock::now();
        expect(outcome_of([&](ra_error* error) { return ra_abort_context(ranks[aborter], error); }), RA_STATUS_SUCCESS);
      });
      ranks.run([&](std::int32_t rank, ra_context* context) {
        SCOPED_TRACE("rank " + std::to_string(rank) + ", aborter " + std::to_string(aborter));
        const Shard& shard = shards[static_cast<std::size_t>(rank)];
        const Outcome outcome = outcome_of([&](ra_error* error) {
          return is_backward ? shard.backward(context, error) : shard.forward(context, error);
        });
        expect(outcome, RA_STATUS_ABORTED);
        if (rank == aborter) {
          EXPECT_TRUE(outcome.error.rank == aborter || outcome.error.rank == -1) << outcome.error;
        } else {
          expect_names(outcome, RA_STATUS_ABORTED, aborter);
        }
        EXPECT_LT(Clock::now() - aborted.load(), kPrompt);
        expect(async_error(context), RA_STATUS_ABORTED);
        expect_unusable(context, 3, rank);
      });
      giving_up.join();
    }
  }
  expect_new_group_works(3);
}

TEST(Abort, BetweenCallsMakesEveryRankUnusable) {
  Ranks ranks(3);
  ASSERT_TRUE(ranks.complete());
  EXPECT_EQ(ra_abort_context(ranks[1], nullptr), RA_STATUS_SUCCESS);
  EXPECT_EQ(ra_abort_context(ranks[1], nullptr), RA_STATUS_SUCCESS) << "once more";
  for (const std::int32_t rank : {0, 1, 2}) {
    expect_news(ranks[rank]);
    expect_unusable(ranks[rank], 3, rank);
    expect(async_error(ranks[rank]), RA_STATUS_ABORTED);
  }
  expect_new_group_works(3);
}

TEST(Abort, EndsTheWaitOfOthersForTheRankThatGaveUp) {
  Ranks ranks(3);
  std::thread giving_up([&] {
    std::this_thread::sleep_for(milliseconds(150));
    EXPECT_EQ(ra_abort_context(ranks[2], nullptr), RA_STATUS_SUCCESS);
  });
  run_threads(2, [&](std::int32_t rank) {
    const Outcome outcome = forward(ranks[rank], make_desc(24), 3, rank);
    expect_names(outcome, RA_STATUS_ABORTED, 2);
    EXPECT_LT(outcome.duration, milliseconds(150) + kPrompt);
  });
  giving_up.join();
  expect_new_group_works(3);
}

TEST(Abort, OfALoneRankEndsItsCall) {
  Ranks alone(1);
  ASSERT_TRUE(alone.complete());
  const Shard shard(endless(), 1, 0);
  std::thread giving_up([&] {
    std::this_thread::sleep_for(milliseconds(300));
    EXPECT_EQ(ra_abort_context(alone[0], nullptr), RA_STATUS_SUCCESS);
  });
  const Outcome outcome = outcome_of([&](ra_error* error) { return shard.forward(alone[0], error); });
  giving_up.join();
  expect(outcome, RA_STATUS_ABORTED);
  EXPECT_LT(outcome.duration, milliseconds(300) + kPrompt);
  expect_unusable(alone[0], 1, 0);
}

// A second thread on a context that is waiting in a call is turned away, and the first one's call goes on undisturbed.
TEST(Threads, OneAtATimePerContext) {
  Ranks ranks(2);
  ASSERT_TRUE(ranks.complete());
  const ra_attention_desc desc = make_desc(24);
  std::thread first([&] { expect(forward(ranks[0], desc, 2, 0), RA_STATUS_SUCCESS); });
  std::this_thread::sleep_for(milliseconds(150));
  const Outcome second = forward(ranks[0], desc, 2, 0);
  expect(second, RA_STATUS_INVALID_STATE, {"thread"});
  EXPECT_LT(second.duration, kPrompt);
  expect(backward(ranks[0], desc, 2, 0), RA_STATUS_INVALID_STATE, {"thread"});
  EXPECT_EQ(async_error(ranks[0]).status, RA_STATUS_SUCCESS);
  expect(forward(ranks[1], desc, 2, 1), RA_STATUS_SUCCESS);
  first.join();
  ranks.run(
      [&](std::int32_t rank, ra_context* context) { expect(forward(context, desc, 2, rank), RA_STATUS_SUCCESS); });
}

}  // namespace
}  // namespace ringattn::test
