// The small functions: names, version, capabilities, defaults, memory estimates, log messages.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <locale>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

TEST(StatusName, IsTheConstantWithoutItsPrefix) {
  const char* const names[] = {"SUCCESS",       "INVALID_ARGUMENT", "NOT_SUPPORTED", "OUT_OF_MEMORY",
                               "INVALID_STATE", "TIMEOUT",          "ABORTED",       "PEER_LOST",
                               "MISMATCH",      "CUDA_ERROR",       "NCCL_ERROR",    "INTERNAL_ERROR"};
  for (std::int32_t status = 0; status < 12; ++status) EXPECT_STREQ(ra_get_status_name(status), names[status]);
  for (const std::int32_t other : {-1, 12, INT32_MIN, INT32_MAX}) EXPECT_STREQ(ra_get_status_name(other), "UNKNOWN");
}

TEST(Version, IsTheHeaders) {
  EXPECT_EQ(ra_get_version(), RA_VERSION_MAJOR * 10000 + RA_VERSION_MINOR * 100 + RA_VERSION_PATCH);
}

ra_context_info info_of(const ra_context* context) {
  ra_context_info info;
  ra_init_context_info(&info, sizeof info);
  Error error;
  EXPECT_EQ(ra_get_context_info(context, &info, &error), RA_STATUS_SUCCESS) << error;
  return info;
}

TEST(ContextInfo, IsWhatTheConfigAskedFor) {
  for_each_rank(
      3,
      [](std::int32_t rank, ra_context* context) {
        const ra_context_info info = info_of(context);
        EXPECT_EQ(info.rank, rank);
        EXPECT_EQ(info.world_size, 3);
        EXPECT_EQ(info.backend, RA_BACKEND_CPU);
        EXPECT_EQ(info.transport, RA_TRANSPORT_LOCAL);
        EXPECT_EQ(info.device, 0);
        EXPECT_EQ(info.num_threads, 1);
        EXPECT_EQ(info.timeout_ms, 7'000 + rank);
      },
      [](ra_context_config& config) {
        config.num_threads = 1;
        config.timeout_ms = 7'000 + config.rank;
      });
}

TEST(ContextInfo, SaysWhatTheLibraryChose) {
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  const Context context(ra_create_context(&config, nullptr));
  ASSERT_NE(context, nullptr);
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  ASSERT_EQ(ra_get_capabilities(&capabilities, nullptr), RA_STATUS_SUCCESS);
  const ra_context_info info = info_of(context.get());
  const std::string engines = capabilities.engines;
  EXPECT_EQ(engines.substr(0, engines.find(',')), info.engine);
  EXPECT_GE(info.num_threads, 1);
  EXPECT_LE(info.num_threads, capabilities.hardware_threads);
  EXPECT_EQ(info.timeout_ms, 300'000);
}

TEST(Capabilities, AreThoseOfThisMachine) {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  Error error;
  ASSERT_EQ(ra_get_capabilities(&capabilities, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(capabilities.version, ra_get_version());
  EXPECT_GE(capabilities.hardware_threads, 1);
  EXPECT_EQ(capabilities.max_head_dim, 256);
  EXPECT_LE(capabilities.has_cuda != 0, capabilities.num_devices > 0);

  // Every engine that is named can be had, and computes.
  const std::string engines = capabilities.engines;
  ASSERT_FALSE(engines.empty());
  std::set<std::string> seen;
  for (std::size_t begin = 0; begin <= engines.size();) {
    const std::size_t end = std::min(engines.find(',', begin), engines.size());
    const std::string engine = engines.substr(begin, end - begin);
    EXPECT_TRUE(seen.insert(engine).second) << engine << " is named twice in " << engines;
    for_each_rank(
        1,
        [&](std::int32_t rank, ra_context* context) {
          Error failure;
          EXPECT_EQ(Shard(make_desc(8), 1, rank).forward(context, &failure), RA_STATUS_SUCCESS)
              << engine << ": " << failure;
          EXPECT_EQ(engine, info_of(context).engine);
        },
        [&](ra_context_config& config) { config.engine = engine.c_str(); });
    begin = end + 1;
  }
}

// A unique id is printable ASCII, ends inside its array, and no two are equal.
TEST(UniqueId, IsTextAndUnique) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    ra_unique_id id;
    std::memset(id.text, 0x7F, sizeof id.text);
    Error error;
    ASSERT_EQ(ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, &error), RA_STATUS_SUCCESS) << error;
    ASSERT_NE(std::memchr(id.text, 0, sizeof id.text), nullptr);
    const std::string text = id.text;
    EXPECT_FALSE(text.empty());
    for (const char c : text) EXPECT_TRUE(c > ' ' && c < 0x7F) << text;
    EXPECT_TRUE(seen.insert(text).second) << text;
  }
}

// What the program's locale does to numbers, the library's texts know nothing of.
TEST(Locale, OfTheProgramStaysOutOfTexts) {
  struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return ','; }
    std::string do_grouping() const override { return "\1"; }
  };
  const struct Restored {
    std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouped));
    ~Restored() { std::locale::global(before); }
  } restored;
  std::ostringstream grouped;
  grouped << 1234;
  ASSERT_EQ(grouped.str(), "1,2,3,4");

  const ra_unique_id id = make_unique_id();
  EXPECT_EQ(std::string(id.text).find(','), std::string::npos) << id.text;
  std::locale::global(std::locale::classic());  // an id outlives the locale that it was made under
  const ra_context_config config = make_config(1, 0, &id);
  Error error;
  const Context context(ra_create_context(&config, &error));
  ASSERT_NE(context, nullptr) << error;

  std::locale::global(grouped.getloc());
  ra_attention_desc desc = make_desc(8);
  desc.head_dim = 1234;
  EXPECT_EQ(ra_check_support(context.get(), &desc, &error), RA_STATUS_INVALID_ARGUMENT);
  EXPECT_NE(error.text().find("head_dim is 1234; must be 1 .. 256"), std::string::npos) << error;
}

// What runs a problem is said where the question is answered with yes.
TEST(Support, NamesTheEngine) {
  const ra_context_config config = make_config(1, 0);
  Error error;
  const Context context(ra_create_context(&config, &error));
  ASSERT_NE(context, nullptr) << error;
  ra_context_info info;
  ra_init_context_info(&info, sizeof info);
  ASSERT_EQ(ra_get_context_info(context.get(), &info, &error), RA_STATUS_SUCCESS) << error;
  const ra_attention_desc desc = make_desc(8);
  EXPECT_EQ(ra_check_support(context.get(), &desc, &error), RA_STATUS_SUCCESS);
  EXPECT_EQ(error.text(), info.engine);
  EXPECT_EQ(ra_check_support(context.get(), &desc, nullptr), RA_STATUS_SUCCESS);
}

// ---------------------------------------------------------------- defaults

TEST(Defaults, AreTheDocumentedOnes) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  EXPECT_EQ(desc.batch, 1);
  EXPECT_EQ(desc.seqlen_q, -1);
  EXPECT_EQ(desc.seqlen_kv, -1);
  EXPECT_EQ(desc.num_heads_q, 1);
  EXPECT_EQ(desc.num_heads_kv, 0);
  EXPECT_EQ(desc.head_dim_v, 0);
  EXPECT_EQ(desc.dtype, RA_DTYPE_FLOAT32);
  EXPECT_EQ(desc.out_dtype, RA_DTYPE_SAME);
  EXPECT_EQ(desc.grad_dtype, RA_DTYPE_SAME);
  EXPECT_EQ(desc.sharding, RA_SHARDING_CONTIGUOUS);
  EXPECT_EQ(desc.stripe, 1);
  EXPECT_EQ(desc.mask, RA_MASK_FULL);
  EXPECT_EQ(desc.mask_alignment, RA_MASK_ALIGNMENT_BOTTOM_RIGHT);
  EXPECT_EQ(desc.window_left, -1);
  EXPECT_EQ(desc.window_right, -1);
  EXPECT_EQ(desc.softmax_scale, 0.0F);
  EXPECT_EQ(desc.softcap, 0.0F);
  EXPECT_EQ(desc.num_documents, 0);
  EXPECT_EQ(desc.document_offsets_q, nullptr);
  EXPECT_EQ(desc.document_offsets_kv, nullptr);
  EXPECT_EQ(desc.kv_lengths, nullptr);
  EXPECT_EQ(desc.schedule, RA_SCHEDULE_AUTO);
  EXPECT_EQ(desc.reserved, 0);
  EXPECT_EQ(desc.num_chunks, 0);

  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  EXPECT_EQ(config.rank, 0);
  EXPECT_EQ(config.world_size, 1);
  EXPECT_EQ(config.backend, RA_BACKEND_CPU);
  EXPECT_EQ(config.transport, RA_TRANSPORT_LOCAL);
  EXPECT_EQ(config.device, 0);
  EXPECT_EQ(config.num_threads, 0);
  EXPECT_EQ(config.timeout_ms, 0);
  EXPECT_EQ(config.unique_id, nullptr);
  EXPECT_EQ(config.bind_address, nullptr);
  EXPECT_EQ(config.engine, nullptr);
  EXPECT_EQ(config.nccl_comm, nullptr);

  ra_sequence_args sequence;
  ra_init_sequence_args(&sequence, sizeof sequence);
  EXPECT_EQ(sequence.side, RA_SIDE_QUERY);
  EXPECT_EQ(sequence.dtype, RA_DTYPE_SAME);

  ra_merge_args merge;
  ra_init_merge_args(&merge, sizeof merge);
  EXPECT_EQ(merge.batch, 1);
  EXPECT_EQ(merge.seqlen, -1);
  EXPECT_EQ(merge.num_heads, 1);
  EXPECT_EQ(merge.dtype, RA_DTYPE_FLOAT32);
}

// ---------------------------------------------------------------- cost of a problem

TEST(Estimate, EqualsWhatAContextSays) {
  for (const std::int32_t world_size : {1, 3}) {
    for_each_rank(world_size, [&](std::int32_t rank, ra_context* context) {
      ra_attention_desc desc = make_desc(50, 4, 16, 2);
      desc.mask = RA_MASK_CAUSAL;
      const ra_context_config config = make_config(world_size, rank);
      ra_memory_requirements estimated, required;
      ra_init_memory_requirements(&estimated, sizeof estimated);
      ra_init_memory_requirements(&required, sizeof required);
      Error error;
      ASSERT_EQ(ra_estimate_memory(&config, &desc, &estimated, &error), RA_STATUS_SUCCESS) << error;
      ASSERT_EQ(ra_get_memory_requirements(context, &desc, &required, &error), RA_STATUS_SUCCESS) << error;
      EXPECT_EQ(estimated.forward_tensors, required.forward_tensors);
      EXPECT_EQ(estimated.backward_tensors, required.backward_tensors);
      EXPECT_EQ(estimated.forward_workspace, required.forward_workspace);
      EXPECT_EQ(estimated.backward_workspace, required.backward_workspace);
      EXPECT_EQ(estimated.lse, required.lse);
      EXPECT_EQ(estimated.forward_chunks, required.forward_chunks);
      EXPECT_EQ(estimated.backward_chunks, required.backward_chunks);
      EXPECT_EQ(estimated.forward_steps, required.forward_steps);
      EXPECT_EQ(estimated.backward_steps, required.backward_steps);
      EXPECT_EQ(estimated.forward_hops, required.forward_hops);
      EXPECT_EQ(estimated.backward_hops, required.backward_hops);
      EXPECT_EQ(estimated.forward_hop_bytes, required.forward_hop_bytes);
      EXPECT_EQ(estimated.backward_hop_bytes, required.backward_hop_bytes);
      EXPECT_EQ(estimated.visible_pairs, required.visible_pairs);
      EXPECT_EQ(estimated.forward_flops, required.forward_flops);
      EXPECT_EQ(estimated.backward_flops, required.backward_flops);

      const Shard shard(desc, world_size, rank);
      const std::size_t q = shard.q.size, k = shard.k.size, v = shard.v.size, out = shard.out.size,
                        lse = shard.lse.size;
      EXPECT_EQ(required.lse, lse);
      EXPECT_EQ(required.forward_tensors, q + k + v + out + lse);
      EXPECT_EQ(required.backward_tensors, 2 * (q + k + v + out) + lse);
      EXPECT_EQ(required.forward_flops, 2.0 * (16 + 16) * required.visible_pairs);
      EXPECT_EQ(required.backward_flops, 2.0 * (3 * 16 + 2 * 16) * required.visible_pairs);
    });
  }
}

// Entries of a batch are alike, so nothing is done for each of them.
TEST(Estimate, OfAHugeBatchIsImmediate) {
  ra_attention_desc desc = make_desc(1, 1, 1, std::int64_t{1} << 48);
  const ra_context_config config = make_config(1, 0);
  ra_memory_requirements estimated;
  ra_init_memory_requirements(&estimated, sizeof estimated);
  Error error;
  ASSERT_EQ(ra_estimate_memory(&config, &desc, &estimated, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(estimated.visible_pairs, 0x1p48);
  EXPECT_EQ(estimated.lse, std::size_t{4} << 48);
}

// ---------------------------------------------------------------- log

struct Log {
  std::mutex mutex;
  std::vector<std::pair<std::int32_t, std::string>> lines;

  static void receive(std::int32_t level, const char* message, void* user_data) {
    auto* log = static_cast<Log*>(user_data);
    const std::lock_guard lock(log->mutex);
    log->lines.emplace_back(level, message);
  }
};

std::vector<std::uint8_t> dropout_mask(const ra_attention_desc& desc, std::int64_t entry, std::int64_t head,
                                       std::int64_t query, std::int64_t first_key, std::int64_t count) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(count) + 1, 0x5A);
  Error error;
  EXPECT_EQ(ra_get_dropout_mask(&desc, entry, head, query, first_key, count, mask.data(), &error), RA_STATUS_SUCCESS)
      << error;
  EXPECT_EQ(mask.back(), 0x5A);
  mask.pop_back();
  return mask;
}

TEST(DropoutMask, IsThatOfTheRowWhereverItIsCut) {
  constexpr std::int64_t n = 4000, offsets[] = {0, 1000, n};
  ra_attention_desc desc = make_desc(n, 4, 8, 2);
  for (const float probability : {0.0F, 0.1F, 0.5F, 0.9F}) {
    desc.dropout_probability = probability;
    desc.dropout_seed = -7;
    desc.dropout_offset = 3;
    const auto mask = dropout_mask(desc, 1, 2, 1500, 0, n);
    const auto kept = std::count(mask.begin(), mask.end(), 1);
    EXPECT_EQ(kept + std::count(mask.begin(), mask.end(), 0), n);
    EXPECT_NEAR(static_cast<double>(kept) / n, 1 - probability, probability == 0 ? 0 : 0.05);
    for (const std::int64_t first : {0, 1, 5, 3998, 4000}) {
      const std::int64_t count = std::min<std::int64_t>(n - first, 1234);
      EXPECT_TRUE(std::equal(mask.begin() + first, mask.begin() + first + count,
                             dropout_mask(desc, 1, 2, 1500, first, count).begin()));
    }
    ra_attention_desc packed = desc;  // positions are those of the whole sequence
    packed.num_documents = 2;
    packed.document_offsets_q = offsets;
    packed.sharding = RA_SHARDING_STRIPED;
    EXPECT_EQ(dropout_mask(packed, 1, 2, 1500, 0, n), mask);
  }
}

TEST(DropoutMask, IsAnotherForAnythingElse) {
  ra_attention_desc desc = make_desc(256, 4, 8, 2);
  desc.dropout_probability = 0.5F;
  ra_attention_desc other_seed = desc, other_offset = desc;
  other_seed.dropout_seed = std::int64_t{1} << 40;
  other_offset.dropout_offset = std::int64_t{1} << 40;
  std::set<std::vector<std::uint8_t>> masks;
  for (const ra_attention_desc& d : {desc, other_seed, other_offset})
    for (const std::int64_t entry : {0, 1})
      for (const std::int64_t head : {0, 3})
        for (const std::int64_t query : {0, 1, 255}) masks.insert(dropout_mask(d, entry, head, query, 0, 256));
  EXPECT_EQ(masks.size(), 36U);
}

// Also where oneTBB would print a warning: the log callback is the only way out.
TEST(Library, PrintsNothing) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  for_each_rank(
      2, [](std::int32_t, ra_context* context) { EXPECT_NE(context, nullptr); },
      [](ra_context_config& config) { config.num_threads = 1000; });
  {
    const Ranks alone(1, [](ra_context_config& config) { config.num_threads = 1000; });
    const ra_attention_desc desc = make_desc(500);
    Error error;
    EXPECT_EQ(Shard(desc, 1, 0).forward(alone[0], &error), RA_STATUS_SUCCESS) << error;
  }
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(Log, ReachesTheCallbackUntilItIsUnset) {
  Log log;
  ra_set_log_callback(Log::receive, &log, RA_LOG_LEVEL_DEBUG);
  for_each_rank(1, [](std::int32_t, ra_context*) {});
  ra_set_log_callback(nullptr, nullptr, RA_LOG_LEVEL_DEBUG);
  EXPECT_GE(log.lines.size(), 1U);
  for (const auto& [level, line] : log.lines) {
    EXPECT_TRUE(level >= RA_LOG_LEVEL_DEBUG && level <= RA_LOG_LEVEL_WARNING) << level;
    EXPECT_FALSE(line.empty());
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  }
  const std::size_t count = log.lines.size();
  for_each_rank(1, [](std::int32_t, ra_context*) {});
  EXPECT_EQ(log.lines.size(), count);
}

TEST(Log, OmitsLowerLevels) {
  Log log;
  ra_set_log_callback(Log::receive, &log, RA_LOG_LEVEL_WARNING);
  for_each_rank(2, [](std::int32_t, ra_context*) {});
  ra_set_log_callback(nullptr, nullptr, RA_LOG_LEVEL_DEBUG);
  for (const auto& [level, line] : log.lines) EXPECT_EQ(level, RA_LOG_LEVEL_WARNING) << line;
}

// Once ra_set_log_callback has returned, the earlier callback is not running: its data may go.
TEST(Log, CanBeReplacedWhileOthersLog) {
  std::atomic<bool> done{false};
  std::thread working([&] {
    while (!done) for_each_rank(1, [](std::int32_t, ra_context*) {});
  });
  for (int i = 0; i < 200; ++i) {
    auto log = std::make_unique<Log>();
    ra_set_log_callback(Log::receive, log.get(), RA_LOG_LEVEL_DEBUG);
    std::this_thread::yield();
    ra_set_log_callback(nullptr, nullptr, RA_LOG_LEVEL_DEBUG);
  }
  done = true;
  working.join();
}

}  // namespace
}  // namespace ringattn::test
