// A trace says what a rank did: its phases lie inside its calls and add up to them, and its messages are those that were counted.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/mha.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

using Json = nlohmann::json;

// A folder of the test's own.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "ringattn_trace.XXXXXX").string();
    path_ = mkdtemp(name.data()) == nullptr ? "" : name;
    EXPECT_NE(path_, "");
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string file(std::int32_t rank) const { return path_ + "/rank-" + std::to_string(rank) + ".json"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

Json read_trace(const std::string& path) {
  std::ifstream stream(path);
  return Json::parse(stream, nullptr, false);
}

struct Span {
  std::string name;
  double begin = 0, end = 0;  // microseconds
  double seconds() const { return (end - begin) * 1e-6; }
  bool holds(const Span& other) const { return begin <= other.begin && other.end <= end; }
};

struct Message {
  std::string name;  // "send to 1"
  double begin = 0, end = 0;
  std::int64_t bytes = 0;
};

// A call that a rank makes alone, of which no statistics are kept.
bool is_local(const std::string& name) { return name == "append"; }
bool is_call(const std::string& name) {
  return name == "forward" || name == "backward" || name == "MHA forward" || name == "MHA backward" ||
         name == "all-reduce" || name == "decode" || is_local(name);
}

struct Timeline {
  std::vector<Span> calls, phases;
  std::vector<Message> messages;

  explicit Timeline(const Json& events, std::int32_t rank) {
    std::map<std::string, Message> open;  // by an id that no other rank has
    for (const Json& event : events) {
      EXPECT_EQ(event["pid"], rank) << event;
      const std::string kind = event["ph"], name = event["name"];
      const std::string id = event.value("id", "");
      if (kind == "X") {
        const double begin = event["ts"], length = event["dur"];
        (is_call(name) ? calls : phases).push_back({name, begin, begin + length});
      } else if (kind == "b") {
        EXPECT_TRUE(id.starts_with(std::to_string(rank) + "."));
        open[id] = {name, event["ts"], 0, event["args"]["bytes"]};
      } else if (kind == "e") {
        messages.push_back(open.at(id));
        open.erase(id);
        EXPECT_EQ(messages.back().name, name);
        messages.back().end = event["ts"];
        EXPECT_LE(messages.back().begin, messages.back().end);
      } else {
        EXPECT_EQ(kind, "M");
      }
    }
    EXPECT_TRUE(open.empty());
  }

  double seconds_of(const Span& call, const std::string& name) const {
    double sum = 0;
    for (const Span& phase : phases)
      if (phase.name == name && call.holds(phase)) sum += phase.seconds();
    return sum;
  }
};

struct Call {
  ra_call_statistics statistics;
  const char* name;
};

// In order, and no two at once.
void expect_disjoint(std::vector<Span> spans) {
  constexpr double rounding = 0.3;  // of a double that holds the microseconds since 1970
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  for (std::size_t n = 1; n < spans.size(); ++n)
    EXPECT_LE(spans[n - 1].end, spans[n].begin + rounding) << spans[n - 1].name << ", " << spans[n].name;
}

// A call's own code outside of its phases is short; but whatever else runs on this machine may take the processor from it just there, so
// the best of several calls of a kind counts.
void expect_adds_up(const Timeline& timeline, const std::vector<Call>& calls) {
  constexpr double share = 0.95, rounding = 1e-4;  // seconds
  std::map<std::string, double> best_of_span, best_of_call;
  expect_disjoint(timeline.calls);
  expect_disjoint(timeline.phases);
  ASSERT_EQ(timeline.calls.size(), calls.size());
  for (std::size_t n = 0; n < calls.size(); ++n) {
    const Span& span = timeline.calls[n];
    const ra_call_statistics& statistics = calls[n].statistics;
    EXPECT_EQ(span.name, calls[n].name);
    EXPECT_NEAR(timeline.seconds_of(span, "compute"), statistics.compute_seconds, rounding);
    EXPECT_NEAR(timeline.seconds_of(span, "wait") + timeline.seconds_of(span, "agree"), statistics.wait_seconds,
                rounding);
    EXPECT_NEAR(timeline.seconds_of(span, "project"), statistics.projection_seconds, rounding);
    double sum = 0;
    for (const Span& phase : timeline.phases)
      if (span.holds(phase)) sum += phase.seconds();
    const auto note = [&](double& best, double part, double whole) {
      EXPECT_LE(part, whole + rounding);
      best = std::max(best, part / whole);
    };
    note(best_of_span[span.name], sum, span.seconds());
    if (is_local(span.name)) continue;
    note(best_of_call[span.name], statistics.total_seconds + timeline.seconds_of(span, "end"), span.seconds());
  }
  for (const auto& best : {best_of_span, best_of_call})
    for (const auto& [name, ratio] : best) EXPECT_GE(ratio, share) << name;
}

// Calls of one rank, each of which it tells with its status and its name.
using Told = std::function<void(ra_status status, const char* name)>;
using Calls = std::function<void(std::int32_t rank, ra_context* context, Error& error, const Told& told)>;

// Calls that take long enough for 5 % of them to be seen.
void expect_traces_of(std::int32_t world_size, const Calls& call) {
  const Folder folder;
  std::vector<std::string> paths;
  for (std::int32_t rank = 0; rank < world_size; ++rank) paths.push_back(folder.file(rank));
  std::vector<std::vector<Call>> calls(static_cast<std::size_t>(world_size));
  for_each_rank(
      world_size,
      [&](std::int32_t rank, ra_context* context) {
        Error error;
        const auto note = [&](ra_status status, const char* name) {
          ASSERT_EQ(status, RA_STATUS_SUCCESS) << error;
          ra_call_statistics statistics;
          ra_init_call_statistics(&statistics, sizeof statistics);
          if (!is_local(name)) ra_get_call_statistics(context, &statistics, nullptr);
          calls[static_cast<std::size_t>(rank)].push_back({statistics, name});
        };
        call(rank, context, error, note);
        // What is over is in the file, which readers of the format take without its end.
        std::ifstream stream(paths[static_cast<std::size_t>(rank)]);
        const std::string written(std::istreambuf_iterator<char>(stream), {});
        EXPECT_TRUE(Json::parse(written + "]", nullptr, false).is_array());
      },
      [&](ra_context_config& config) { config.trace_path = paths[static_cast<std::size_t>(config.rank)].c_str(); });

  std::vector<Timeline> timelines;
  for (std::int32_t rank = 0; rank < world_size; ++rank) {
    SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << world_size);
    const Json events = read_trace(folder.file(rank));
    ASSERT_TRUE(events.is_array());
    EXPECT_EQ(events.at(0)["args"]["name"], "rank " + std::to_string(rank) + " of " + std::to_string(world_size));
    timelines.emplace_back(events, rank);
    expect_adds_up(timelines.back(), calls[static_cast<std::size_t>(rank)]);
  }
  // Each message that one has sent another has received.
  std::map<std::string, std::vector<std::int64_t>> sent, received;
  for (std::int32_t rank = 0; rank < world_size; ++rank) {
    std::int64_t hops = 0, bytes = 0;
    for (const Message& m : timelines[static_cast<std::size_t>(rank)].messages) {
      const bool sends = m.name.starts_with("send to ");
      const std::string peer = m.name.substr(m.name.rfind(' ') + 1), own = std::to_string(rank);
      (sends ? sent[own + " to " + peer] : received[peer + " to " + own]).push_back(m.bytes);
      hops += sends;
      bytes += sends ? m.bytes : 0;
    }
    for (const Call& call : calls[static_cast<std::size_t>(rank)]) {
      hops -= call.statistics.hops;
      bytes -= call.statistics.hop_bytes;
    }
    EXPECT_EQ(hops, 0);
    EXPECT_EQ(bytes, 0);
  }
  for (auto* of_links : {&sent, &received})
    for (auto& [link, sizes] : *of_links) std::sort(sizes.begin(), sizes.end());
  EXPECT_EQ(sent, received);
  EXPECT_EQ(sent.empty(), world_size == 1);
}

void expect_traces(std::int32_t world_size, const std::function<void(ra_attention_desc& desc)>& apply) {
  expect_traces_of(world_size, [&](std::int32_t rank, ra_context* context, Error& error, const Told& told) {
    ra_attention_desc desc = make_desc(2048, 2, 64);
    apply(desc);
    const Shard shard(desc, world_size, rank);
    for (int n = 0; n < 3; ++n) {
      told(shard.forward(context, &error), "forward");
      told(shard.backward(context, &error), "backward");
    }
  });
}

TEST(Trace, AddsUp) {
  for (const std::int32_t world_size : {1, 2, 3})
    expect_traces(world_size, [](ra_attention_desc& desc) {
      desc.mask = RA_MASK_CAUSAL;
      desc.sharding = RA_SHARDING_ZIGZAG;
    });
}

TEST(Trace, AddsUpInSixteenBitsAndParts) {
  expect_traces(3, [](ra_attention_desc& desc) {
    desc.dtype = RA_DTYPE_BFLOAT16;
    desc.schedule = RA_SCHEDULE_ALL_GATHER;
    desc.gather_bytes = 1;
    desc.num_chunks = 2;
  });
}

TEST(Trace, AddsUpInLayers) {
  static constexpr std::int64_t lengths[] = {256, 2048}, dilations[] = {1, 2};
  expect_traces(2, [](ra_attention_desc& desc) {
    desc.num_branches = 2;
    desc.segment_lengths = lengths;
    desc.dilations = dilations;
  });
}

TEST(Trace, AddsUpInLayersOfMultiHeadAttention) {
  for (const std::int32_t world_size : {1, 2})
    expect_traces_of(world_size, [&](std::int32_t rank, ra_context* context, Error& error, const Told& told) {
      ra_attention_desc desc = make_desc(1024, 4, 64);
      desc.mask = RA_MASK_CAUSAL;
      desc.sharding = RA_SHARDING_ZIGZAG;
      ra_mha_desc mha = make_mha(256);
      mha.rotary = RA_ROTARY_HALVES;
      mha.normalize_heads = 1;
      MhaShard shard(desc, mha, world_size, rank);
      if (!shard.make_room(context)) return;
      ra_reduce_args reduction;
      ra_init_reduce_args(&reduction, sizeof reduction);
      std::vector<float> numbers(std::size_t{1} << 20);
      reduction.data = numbers.data();
      reduction.count = static_cast<std::int64_t>(numbers.size());
      for (int n = 0; n < 3; ++n) {
        told(shard.forward(context, &error), "MHA forward");
        told(shard.backward(context, &error, true), "MHA backward");
        if (world_size > 1) told(ra_all_reduce(context, &reduction, &error), "all-reduce");
      }
    });
}

// Of many sequences, so that phases are long beside what is between them.
TEST(Trace, AddsUpInDecoding) {
  constexpr std::int64_t kSequences = 16, kTokens = 1024, kHeads = 4, kDim = 64;
  for (const std::int32_t schedule : {RA_SCHEDULE_PASS_Q, RA_SCHEDULE_RING})
    for (const std::int32_t world_size : {1, 2, 3})
      expect_traces_of(world_size, [&](std::int32_t, ra_context* context, Error& error, const Told& told) {
        ra_kv_cache_desc shape;
        ra_init_kv_cache_desc(&shape, sizeof shape);
        shape.num_pages = kSequences * kTokens / shape.page_tokens;
        shape.num_heads_kv = kHeads;
        shape.head_dim = kDim;
        const std::unique_ptr<ra_kv_cache, decltype(&ra_destroy_kv_cache)> cache(
            ra_create_kv_cache(context, &shape, &error), ra_destroy_kv_cache);
        ASSERT_NE(cache, nullptr) << error;
        std::vector<std::int64_t> ids;
        for (std::int64_t n = 0; n < kSequences; ++n) ids.push_back(ra_create_sequence(cache.get(), nullptr));
        ra_attention_desc desc = make_desc(2, kHeads, kDim, kSequences);
        desc.schedule = schedule;
        const Tensor tokens(RA_DTYPE_FLOAT32, kSequences, kTokens / 3, kHeads, kDim),
            q(RA_DTYPE_FLOAT32, kSequences, 2, kHeads, kDim), out(RA_DTYPE_FLOAT32, kSequences, 2, kHeads, kDim);
        ra_append_args append;
        ra_init_append_args(&append, sizeof append);
        append.num_sequences = kSequences;
        append.num_tokens = tokens.seq;
        append.sequences = ids.data();
        append.k = append.v = tokens.view();
        ra_decode_args decode;
        ra_init_decode_args(&decode, sizeof decode);
        decode.num_sequences = kSequences;
        decode.sequences = ids.data();
        decode.q = q.view();
        decode.out = out.view();
        for (int n = 0; n < 3; ++n) {
          told(ra_append(context, cache.get(), &append, &error), "append");
          told(ra_decode(context, cache.get(), &desc, &decode, &error), "decode");
        }
      });
}

// A call that is refused is one; the locale of the program leaves numbers alone.
TEST(Trace, HasRefusedCalls) {
  const Folder folder;
  const std::string path = folder.file(0);
  for_each_rank(
      1,
      [](std::int32_t, ra_context* context) {
        ra_attention_desc desc = make_desc(8);
        ra_forward_args args;
        ra_init_forward_args(&args, sizeof args);
        EXPECT_EQ(ra_forward(context, &desc, &args, nullptr), RA_STATUS_INVALID_ARGUMENT);
      },
      [&](ra_context_config& config) { config.trace_path = path.c_str(); });
  const Timeline timeline(read_trace(path), 0);
  EXPECT_EQ(timeline.calls.size(), 1U);
}

// The file that is named is emptied, and no other kind of file is touched.
TEST(Trace, RefusesWhatIsNoFile) {
  const Folder folder;
  const std::string fifo = folder.path() + "/fifo", missing = folder.path() + "/missing/trace.json";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {folder.path(), fifo, missing, std::string("/dev/full"), std::string()}) {
    const ra_unique_id id = make_unique_id();
    run_threads(2, [&](std::int32_t rank) {
      ra_context_config config = make_config(2, rank, &id);
      if (rank == 1) config.trace_path = path.c_str();
      Error error;
      const Context context(ra_create_context(&config, &error));
      EXPECT_EQ(context, nullptr);
      EXPECT_EQ(error.status, rank == 1 ? RA_STATUS_INVALID_ARGUMENT : RA_STATUS_PEER_LOST) << error;
      EXPECT_NE(error.text().find("trace_path"), std::string::npos) << error;
    });
  }
}

// A trace ends where its file cannot grow any more; what is traced goes on.
TEST(Trace, EndsWhereTheDiskIsFull) {
  const Folder folder;
  const std::string path = folder.file(0);
  std::vector<std::string> warnings;
  const auto receive = [](std::int32_t, const char* message, void* user) {
    static_cast<std::vector<std::string>*>(user)->push_back(message);
  };
  ra_set_log_callback(receive, &warnings, RA_LOG_LEVEL_WARNING);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit narrow = before;
  narrow.rlim_cur = 1000;  // bytes: a call has more
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &narrow), 0);
  for_each_rank(
      1,
      [](std::int32_t rank, ra_context* context) {
        for (int n = 0; n < 5; ++n) {
          Error error;
          EXPECT_EQ(Shard(make_desc(8), 1, rank).forward(context, &error), RA_STATUS_SUCCESS) << error;
        }
      },
      [&](ra_context_config& config) { config.trace_path = path.c_str(); });
  EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ra_set_log_callback(nullptr, nullptr, RA_LOG_LEVEL_WARNING);
  EXPECT_EQ(std::filesystem::file_size(path), 1000U);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find(path), std::string::npos) << warnings[0];
}

}  // namespace
}  // namespace ringattn::test
