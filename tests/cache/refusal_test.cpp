// Every wrong argument of a cache's functions is refused with a message that names it, and changes nothing: the table of
// tests/api/bad_input_test.cpp for what works on caches. A row breaks one thing of valid calls, and says who must refuse it.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/cache.h"

namespace ringattn::test {
namespace {

constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min(), kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kPages = 4, kPageTokens = 16, kHeadsKv = 2, kHeadsQ = 4, kDim = 8, kDimV = 4, kTokens = 3,
                       kLength = 20;

// Arguments of every function, all valid, for a cache that has two sequences of kLength tokens, and one that was freed.
struct Call {
  explicit Call(ra_context* own) : context(own) {
    shape = make_cache_desc(kPages, kPageTokens, kHeadsKv, kDim);
    shape.head_dim_v = kDimV;
    cache.reset(ra_create_kv_cache(own, &shape, nullptr));
    p_cache = cache.get();
    for (int n = 0; n < 3; ++n) ids.push_back(ra_create_sequence(p_cache, nullptr));
    freed = ids.back();
    ids.pop_back();
    ra_free_sequence(p_cache, freed, nullptr);
    sequence = ids[0];

    ra_init_append_args(&append, sizeof append);
    append.num_sequences = 2;
    append.num_tokens = kLength;
    append.sequences = ids.data();
    append.k = k.view();
    append.v = v.view();
    for (Tensor* t : {&k, &v, &q}) std::memset(t->bytes.get(), 0, t->size);
    filled = ra_append(own, p_cache, &append, nullptr);
    append.num_tokens = kTokens;
    append.lengths = lengths.data();

    ra_init_attention_desc(&desc, sizeof desc);
    desc.batch = 2;
    desc.seqlen_q = kTokens;
    desc.num_heads_q = kHeadsQ;
    desc.num_heads_kv = kHeadsKv;
    desc.head_dim = kDim;
    desc.head_dim_v = kDimV;
    ra_init_decode_args(&decode, sizeof decode);
    decode.num_sequences = 2;
    decode.sequences = ids.data();
    decode.q = q.view();
    decode.out = out.view();
    decode.lse = reinterpret_cast<float*>(lse.bytes.get());
    decode.lse_size = lse.size;
    ra_init_kv_cache_statistics(&statistics, sizeof statistics);
    statistics.num_tokens = 0x5A5A;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  ra_kv_cache_statistics state() const {
    ra_kv_cache_statistics s;
    ra_init_kv_cache_statistics(&s, sizeof s);
    EXPECT_EQ(ra_get_kv_cache_statistics(cache.get(), &s, nullptr), RA_STATUS_SUCCESS);
    return s;
  }

  ra_context* context;
  ra_kv_cache_desc shape{};
  Cache cache;
  std::vector<std::int64_t> ids, lengths{kTokens, 1}, positions{kLength, kLength}, offsets;
  std::int64_t freed = 0, sequence = 0, length = 2, from = 0;
  std::int32_t former[1] = {0};
  ra_attention_desc desc{};
  ra_append_args append{};
  ra_decode_args decode{};
  ra_kv_cache_statistics statistics{};
  Tensor k{RA_DTYPE_FLOAT32, 2, kLength, kHeadsKv, kDim}, v{RA_DTYPE_FLOAT32, 2, kLength, kHeadsKv, kDimV},
      q{RA_DTYPE_FLOAT32, 2, kTokens, kHeadsQ, kDim}, out{RA_DTYPE_FLOAT32, 2, kTokens, kHeadsQ, kDimV},
      lse{RA_DTYPE_FLOAT32, 2, kTokens, kHeadsQ, 1};
  std::vector<float> sinks = std::vector<float>(2 * kHeadsQ), slopes = std::vector<float>(kHeadsQ);
  ra_status filled;

  // What is passed; a row sets one to NULL.
  ra_kv_cache* p_cache;
  ra_kv_cache_desc* p_shape = &shape;
  ra_attention_desc* p_desc = &desc;
  ra_append_args* p_append = &append;
  ra_decode_args* p_decode = &decode;
  ra_kv_cache_statistics* p_statistics = &statistics;
  std::int32_t* p_former = former;
};

struct Function {
  const char* name;
  ra_status (*call)(Call& c, ra_error* error);
};
// Of a function that returns a number: without an ra_error it does not say why.
ra_status status_of(std::int64_t number, const ra_error* error) {
  if (number >= 0) return RA_STATUS_SUCCESS;
  return error == nullptr ? RA_STATUS_INVALID_ARGUMENT : static_cast<ra_status>(error->status);
}

const Function kCreate{"ra_create_kv_cache", [](Call& c, ra_error* e) {
                         const Cache made(ra_create_kv_cache(c.context, c.p_shape, e));
                         return status_of(made ? 0 : -1, e);
                       }};
const Function kCreateSequence{"ra_create_sequence",
                               [](Call& c, ra_error* e) { return status_of(ra_create_sequence(c.p_cache, e), e); }};
const Function kFork{"ra_fork_sequence",
                     [](Call& c, ra_error* e) { return status_of(ra_fork_sequence(c.p_cache, c.sequence, e), e); }};
const Function kTruncate{"ra_truncate_sequence",
                         [](Call& c, ra_error* e) { return ra_truncate_sequence(c.p_cache, c.sequence, c.length, e); }};
const Function kFree{"ra_free_sequence",
                     [](Call& c, ra_error* e) { return ra_free_sequence(c.p_cache, c.sequence, e); }};
const Function kLength_{"ra_get_sequence_length", [](Call& c, ra_error* e) {
                          return status_of(ra_get_sequence_length(c.p_cache, c.sequence, e), e);
                        }};
const Function kLost{"ra_get_lost_tokens", [](Call& c, ra_error* e) {
                       return status_of(ra_get_lost_tokens(c.p_cache, c.sequence, c.from, e), e);
                     }};
const Function kAppend{"ra_append",
                       [](Call& c, ra_error* e) { return ra_append(c.context, c.p_cache, c.p_append, e); }};
const Function kDecode{"ra_decode",
                       [](Call& c, ra_error* e) { return ra_decode(c.context, c.p_cache, c.p_desc, c.p_decode, e); }};
const Function kStatistics{"ra_get_kv_cache_statistics", [](Call& c, ra_error* e) {
                             return ra_get_kv_cache_statistics(c.p_cache, c.p_statistics, e);
                           }};
const Function kMove{"ra_move_kv_cache",
                     [](Call& c, ra_error* e) { return ra_move_kv_cache(c.p_cache, c.context, c.p_former, e); }};

using Functions = std::vector<const Function*>;
const Functions kAll{&kCreate, &kLost,           &kLength_, &kStatistics, &kDecode, &kMove,
                     &kAppend, &kCreateSequence, &kFork,    &kTruncate,   &kFree};

struct Row {
  std::string name;
  Functions functions;
  std::function<void(Call& c)> breaks;
  std::vector<std::string> words;
  ra_status status = RA_STATUS_INVALID_ARGUMENT;
};
using Table = std::vector<Row>;

template <class Struct, class T>
void out_of_range(Table& t, const Function& function, Struct Call::*owner, T Struct::*field, const std::string& name,
                  std::initializer_list<T> values, const std::vector<std::string>& limit) {
  for (const T value : values) {
    std::vector<std::string> words{name, std::to_string(value)};
    words.insert(words.end(), limit.begin(), limit.end());
    t.push_back({name + " is " + std::to_string(value), {&function}, [=](Call& c) { c.*owner.*field = value; }, words});
  }
}

// `other`: a context that the cache is not of.
Table make_table(ra_context* other) {
  Table t;
  t.push_back({"context is NULL",
               {&kCreate, &kAppend, &kDecode, &kMove},
               [](Call& c) { c.context = nullptr; },
               {"context", "NULL"}});
  t.push_back(
      {"cache is NULL",
       {&kCreateSequence, &kFork, &kTruncate, &kFree, &kLength_, &kLost, &kAppend, &kDecode, &kStatistics, &kMove},
       [](Call& c) { c.p_cache = nullptr; },
       {"cache", "NULL"}});
  t.push_back({"desc is NULL", {&kCreate}, [](Call& c) { c.p_shape = nullptr; }, {"desc", "NULL"}});
  t.push_back({"desc is NULL", {&kDecode}, [](Call& c) { c.p_desc = nullptr; }, {"desc", "NULL"}});
  t.push_back({"args is NULL", {&kAppend}, [](Call& c) { c.p_append = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", {&kDecode}, [](Call& c) { c.p_decode = nullptr; }, {"args", "NULL"}});
  t.push_back(
      {"statistics is NULL", {&kStatistics}, [](Call& c) { c.p_statistics = nullptr; }, {"statistics", "NULL"}});
  t.push_back({"former_ranks is NULL", {&kMove}, [](Call& c) { c.p_former = nullptr; }, {"former_ranks", "NULL"}});
  t.push_back(
      {"cache of another context", {&kAppend, &kDecode}, [=](Call& c) { c.context = other; }, {"cache", "context"}});

  using S = ra_kv_cache_desc;
  out_of_range(t, kCreate, &Call::shape, &S::page_tokens, "page_tokens",
               {kMin, std::int64_t{15}, std::int64_t{257}, kMax}, {"16", "256"});
  out_of_range(t, kCreate, &Call::shape, &S::num_pages, "num_pages",
               {kMin, std::int64_t{0}, (std::int64_t{1} << 24) + 1, kMax}, {"1", "16777216"});
  out_of_range(t, kCreate, &Call::shape, &S::num_heads_kv, "num_heads_kv", {std::int64_t{0}, std::int64_t{-1}, kMax},
               {"1"});
  out_of_range(t, kCreate, &Call::shape, &S::head_dim, "head_dim", {std::int64_t{0}, std::int64_t{257}, kMin},
               {"1", "256"});
  out_of_range(t, kCreate, &Call::shape, &S::head_dim_v, "head_dim_v", {std::int64_t{-1}, std::int64_t{257}},
               {"0", "256"});
  out_of_range(t, kCreate, &Call::shape, &S::dtype, "dtype", {0, 4, -1}, {"1", "3"});
  out_of_range(t, kCreate, &Call::shape, &S::reserved, "reserved", {1}, {"0"});
  out_of_range(t, kCreate, &Call::shape, &S::struct_size, "struct_size", {std::size_t{0}, std::size_t{8}},
               {"ra_kv_cache_desc"});

  const Functions by_sequence{&kFork, &kTruncate, &kFree, &kLength_, &kLost};
  t.push_back(
      {"a sequence that was freed", by_sequence, [](Call& c) { c.sequence = c.freed; }, {"sequence", "2", "freed"}});
  for (const std::int64_t id : {std::int64_t{-1}, std::int64_t{3}, kMin, kMax}) {
    const std::string name = "sequence " + std::to_string(id);
    t.push_back(
        {name, by_sequence, [=](Call& c) { c.sequence = id; }, {"sequence", std::to_string(id), "ra_create_sequence"}});
    t.push_back({name + " in a list",
                 {&kAppend, &kDecode},
                 [=](Call& c) { c.ids[1] = id; },
                 {"sequences[1]", std::to_string(id), "ra_create_sequence"}});
  }
  t.push_back({"a freed one in a list",
               {&kAppend, &kDecode},
               [](Call& c) { c.ids[1] = c.freed; },
               {"sequences[1]", "2", "freed"}});
  for (const std::int64_t length : {std::int64_t{-1}, kLength + 1, kMin, kMax})
    t.push_back({"length " + std::to_string(length),
                 {&kTruncate},
                 [=](Call& c) { c.length = length; },
                 {"length", std::to_string(length), "20"}});
  for (const std::int64_t from : {std::int64_t{-1}, kLength + 1})
    t.push_back({"from " + std::to_string(from),
                 {&kLost},
                 [=](Call& c) { c.from = from; },
                 {"from", std::to_string(from), "20"}});

  using A = ra_append_args;
  out_of_range(t, kAppend, &Call::append, &A::num_sequences, "num_sequences", {std::int64_t{0}, std::int64_t{-1}, kMax},
               {"1"});
  out_of_range(t, kAppend, &Call::append, &A::num_tokens, "num_tokens", {std::int64_t{-1}, kMin, kMax}, {"0"});
  out_of_range(t, kAppend, &Call::append, &A::struct_size, "struct_size", {std::size_t{0}, std::size_t{8}},
               {"ra_append_args"});
  t.push_back(
      {"sequences is NULL", {&kAppend}, [](Call& c) { c.append.sequences = nullptr; }, {"sequences", "NULL", "2"}});
  t.push_back(
      {"sequences is NULL", {&kDecode}, [](Call& c) { c.decode.sequences = nullptr; }, {"sequences", "NULL", "2"}});
  out_of_range(t, kDecode, &Call::decode, &ra_decode_args::num_sequences, "num_sequences",
               {std::int64_t{1}, std::int64_t{3}, kMin, kMax}, {"batch", "2"});
  t.push_back({"one sequence twice", {&kAppend}, [](Call& c) { c.ids[1] = c.ids[0]; }, {"sequences[1]", "0"}});
  for (const std::int64_t count : {std::int64_t{-1}, kTokens + 1, kMax})
    t.push_back({"length " + std::to_string(count),
                 {&kAppend},
                 [=](Call& c) { c.lengths[1] = count; },
                 {"lengths[1]", std::to_string(count), "num_tokens"}});
  for (const std::int64_t position :
       {std::int64_t{-1}, std::int64_t{0}, std::int64_t{16}, kLength - 1, kLength + 1, kMin, kMax})
    t.push_back({"position " + std::to_string(position),
                 {&kAppend},
                 [=](Call& c) { c.positions[1] = position, c.append.positions = c.positions.data(); },
                 {"positions[1]", std::to_string(position), "20"}});
  t.push_back({"past the capacity",
               {&kAppend},
               [](Call& c) { c.append.lengths = nullptr, c.append.num_tokens = kLength; },
               {"rank 0", "0", "free pages", "4", "2"},
               RA_STATUS_OUT_OF_MEMORY});
  t.push_back({"far past the capacity",
               {&kAppend},
               [](Call& c) {
                 c.append.lengths = nullptr, c.append.num_tokens = std::int64_t{1} << 40;
                 c.append.k.batch_stride = c.append.v.batch_stride = RA_STRIDE_REPEAT;
                 c.append.k.seq_stride = c.append.v.seq_stride = RA_STRIDE_REPEAT;
                 c.append.k.head_stride = c.append.v.head_stride = RA_STRIDE_REPEAT;
               },
               {"sequences[0]", "pages", "4"},
               RA_STATUS_OUT_OF_MEMORY});
  for (const auto& [name, field] : {std::pair{"k", &A::k}, {"v", &A::v}}) {
    t.push_back({std::string(name) + " is NULL",
                 {&kAppend},
                 [field = field](Call& c) { (c.append.*field).data = nullptr; },
                 {name, "NULL"}});
    t.push_back({std::string(name) + " is too small",
                 {&kAppend},
                 [field = field](Call& c) { (c.append.*field).size = 8; },
                 {std::string(name) + ".size", "8"}});
    t.push_back({std::string(name) + " has one stride",
                 {&kAppend},
                 [field = field](Call& c) { (c.append.*field).seq_stride = 500; },
                 {std::string(name) + "."}});
  }
  t.push_back(
      {"stream", {&kAppend}, [](Call& c) { c.append.stream = reinterpret_cast<ra_stream>(&c); }, {"stream", "NULL"}});

  using D = ra_attention_desc;
  const auto desc = [&](auto D::*field, const std::string& name, auto value, std::vector<std::string> words,
                        ra_status status = RA_STATUS_INVALID_ARGUMENT) {
    words.push_back(name);
    t.push_back({name, {&kDecode}, [=](Call& c) { c.desc.*field = value; }, words, status});
  };
  desc(&D::num_heads_kv, "num_heads_kv", 4, {"4", "2", "cache"});
  desc(&D::head_dim, "head_dim", 9, {"9", "8", "cache"});
  desc(&D::head_dim_v, "head_dim_v", 8, {"8", "4", "cache"});
  desc(&D::dtype, "dtype", RA_DTYPE_BFLOAT16, {"2", "1", "cache"});
  desc(&D::dtype, "dtype", 7, {"7"});
  desc(&D::seqlen_q, "seqlen_q", 0, {"0", "1"});
  t.push_back({"more queries than tokens",
               {&kDecode},
               [](Call& c) {
                 c.desc.seqlen_q = kLength + 1;
                 c.q = Tensor(RA_DTYPE_FLOAT32, 2, c.desc.seqlen_q, kHeadsQ, kDim);
                 c.out = Tensor(RA_DTYPE_FLOAT32, 2, c.desc.seqlen_q, kHeadsQ, kDimV);
                 c.decode.q = c.q.view();
                 c.decode.out = c.out.view();
                 c.decode.lse = nullptr;
               },
               {"sequences[0]", "20", "seqlen_q", "21"}});
  desc(&D::seqlen_kv, "seqlen_kv", kLength, {"20", "-1"});
  desc(&D::sharding, "sharding", RA_SHARDING_ZIGZAG, {"1", "0"});
  desc(&D::mask_alignment, "mask_alignment", RA_MASK_ALIGNMENT_TOP_LEFT, {"0", "1"});
  desc(&D::has_key_bias, "has_key_bias", 1, {});
  desc(&D::dropout_probability, "dropout_probability", 0.5F, {});
  desc(&D::gather_bytes, "gather_bytes", 1000, {});
  desc(&D::num_chunks, "num_chunks", 2, {"RA_SCHEDULE_RING"});
  desc(&D::schedule, "schedule", RA_SCHEDULE_ALL_GATHER, {"2", "5"}, RA_STATUS_NOT_SUPPORTED);
  desc(&D::schedule, "schedule", RA_SCHEDULE_HYBRID, {"4", "5"}, RA_STATUS_NOT_SUPPORTED);
  desc(&D::schedule, "schedule", 6, {"6", "5"});
  t.push_back({"kv_lengths",
               {&kDecode},
               [](Call& c) {
                 c.desc.seqlen_q = kTokens, c.desc.kv_lengths = c.lengths.data(), c.lengths = {1, 1};
               },
               {"kv_lengths"}});
  t.push_back({"documents",
               {&kDecode},
               [](Call& c) {
                 c.offsets = {0, 1, kTokens};
                 c.desc.num_documents = 2, c.desc.document_offsets_q = c.desc.document_offsets_kv = c.offsets.data();
               },
               {"num_documents"}});
  t.push_back({"mask slices",
               {&kDecode},
               [](Call& c) {
                 c.offsets = {0, 1, 0, 1, RA_MASK_SLICE_KIND_FULL};
                 c.desc.num_mask_slices = 1, c.desc.mask_slices = c.offsets.data();
               },
               {"num_mask_slices"}});
  t.push_back({"branches",
               {&kDecode},
               [](Call& c) {
                 c.offsets = {1};
                 c.desc.num_branches = 1, c.desc.segment_lengths = c.desc.dilations = c.offsets.data();
               },
               {"num_branches"}});
  t.push_back(
      {"sinks without a count", {&kDecode}, [](Call& c) { c.decode.sinks = c.sinks.data(); }, {"sinks", "num_sinks"}});
  t.push_back({"no sinks", {&kDecode}, [](Call& c) { c.desc.num_sinks = 2; }, {"sinks", "NULL"}});
  t.push_back({"few sinks",
               {&kDecode},
               [](Call& c) { c.desc.num_sinks = 2, c.decode.sinks = c.sinks.data(), c.decode.sinks_size = 12; },
               {"sinks_size", "12", "32"}});
  t.push_back({"a slope that is not finite",
               {&kDecode},
               [](Call& c) { c.slopes[2] = INFINITY, c.desc.alibi_slopes = c.slopes.data(); },
               {"alibi_slopes[2]"}});
  t.push_back({"q is NULL", {&kDecode}, [](Call& c) { c.decode.q.data = nullptr; }, {"q", "NULL"}});
  t.push_back({"out is NULL", {&kDecode}, [](Call& c) { c.decode.out.data = nullptr; }, {"out", "NULL"}});
  t.push_back({"out is q",
               {&kDecode},
               [](Call& c) { c.decode.out.data = c.decode.q.data, c.decode.out.size = 0; },
               {"out", "q", "overlap"}});
  t.push_back({"lse is out",
               {&kDecode},
               [](Call& c) { c.decode.lse = reinterpret_cast<float*>(c.out.bytes.get()), c.decode.lse_size = 0; },
               {"lse", "out", "overlap"}});
  t.push_back({"lse is too small", {&kDecode}, [](Call& c) { c.decode.lse_size = 4; }, {"lse_size", "4"}});
  t.push_back(
      {"stream", {&kDecode}, [](Call& c) { c.decode.stream = reinterpret_cast<ra_stream>(&c); }, {"stream", "NULL"}});
  for (const std::int32_t rank : {-1, 1, 99})
    t.push_back({"former rank " + std::to_string(rank),
                 {&kMove},
                 [=](Call& c) { c.former[0] = rank; },
                 {"former_ranks[0]", std::to_string(rank)}});
  return t;
}

TEST(Refusal, NamesWhatIsWrongAndChangesNothing) {
  Ranks own(1), other(1);
  ASSERT_TRUE(own.complete() && other.complete());
  int refused = 0;
  for (const Row& row : make_table(other[0]))
    for (const Function* function : row.functions) {
      SCOPED_TRACE(std::string(function->name) + ", " + row.name);
      Call call(own[0]);
      ASSERT_EQ(call.filled, RA_STATUS_SUCCESS);
      row.breaks(call);
      const ra_kv_cache_statistics before = call.state();
      Error error;
      EXPECT_EQ(function->call(call, &error), row.status) << error;
      EXPECT_EQ(error.status, row.status);
      EXPECT_EQ(error.rank, -1);
      for (const std::string& word : row.words)
        EXPECT_NE(error.text().find(word), std::string::npos)
            << "the message lacks \"" << word << "\": " << error.text();
      const ra_status again = function->call(call, nullptr);
      EXPECT_NE(again, RA_STATUS_SUCCESS);
      const ra_kv_cache_statistics after = call.state();
      EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
      EXPECT_TRUE(call.out.untouched() && call.lse.untouched());
      EXPECT_EQ(call.statistics.num_tokens, 0x5A5A);
      Call valid(own[0]);
      EXPECT_EQ(kDecode.call(valid, &error), RA_STATUS_SUCCESS) << error;
      ++refused;
    }
  std::cout << refused << " refused calls\n";
}

// The valid calls from which the rows start do succeed.
TEST(Refusal, IsMadeFromValidCalls) {
  Ranks own(1);
  ASSERT_TRUE(own.complete());
  Call call(own[0]);
  for (const Function* function : kAll) {
    Error error;
    EXPECT_EQ(function->call(call, &error), RA_STATUS_SUCCESS) << function->name << ": " << error;
    EXPECT_EQ(error.text(), "");
  }
}

// Ranks of the former group: each another one, and this rank itself among them where it now is.
TEST(Refusal, NamesFormerRanks) {
  Ranks first(2), second(2);
  ASSERT_TRUE(first.complete() && second.complete());
  const Caches caches(first, make_cache_desc(kPages, kPageTokens, kHeadsKv, kDim));
  const auto expect_refusal = [&](std::int32_t rank, std::vector<std::int32_t> former, const char* field) {
    Error error;
    EXPECT_EQ(ra_move_kv_cache(caches[rank], second[rank], former.data(), &error), RA_STATUS_INVALID_ARGUMENT);
    EXPECT_NE(error.text().find(field), std::string::npos) << error;
  };
  expect_refusal(0, {0, 0}, "former_ranks[1] is 0");
  expect_refusal(1, {1, 1}, "former_ranks[1] is 1");
  expect_refusal(0, {1, 0}, "former_ranks[0] is 1");
  expect_refusal(1, {1, 0}, "former_ranks[1] is 0");
  expect_refusal(0, {0, 2}, "former_ranks[1] is 2");
}

// A context may go before its cache, which is then of no other.
TEST(Refusal, KnowsAContextThatIsGone) {
  Ranks first(1);
  Call call(first[0]);
  first.destroy(0);
  Ranks second(1);
  Error error;
  EXPECT_EQ(ra_decode(second[0], call.p_cache, &call.desc, &call.decode, &error), RA_STATUS_INVALID_ARGUMENT) << error;
  EXPECT_EQ(ra_move_kv_cache(call.p_cache, second[0], call.former, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(ra_decode(second[0], call.p_cache, &call.desc, &call.decode, &error), RA_STATUS_SUCCESS) << error;
}

}  // namespace
}  // namespace ringattn::test
