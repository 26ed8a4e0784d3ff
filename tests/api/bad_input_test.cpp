// Every wrong argument is refused with a message that names it, and changes nothing.
//
// One table. A row starts from a valid call (struct Call), breaks one thing in it and says which functions must refuse it,
// with which status, and which words the message must contain: the field, its value, the limit. run_row() then checks
//
//   the status, with an ra_error and without one       the words of the message; every other field of ra_error cleared
//   not one byte of the caller's memory changed        the context still answers a valid call
//
// Adding a row is adding a line to one of the functions that build the table.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <iostream>
#include <limits>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ringattn/ringattn.h"
#include "support/random.h"
#include "support/ranks.h"
#include "support/shard.h"

namespace ringattn::test {
namespace {

constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kDModel = 8;
constexpr std::int64_t kBatch = 2, kSeqlen = 6, kHeadsQ = 4, kHeadsKv = 2, kDim = 8, kDimV = 8;
constexpr std::int64_t kWorkspaceLimit = 1 << 23;  // more than these small problems need

// Distances between regions of an arena, so that a shifted pointer still points into memory of the test.
constexpr std::size_t kRegion = 4096;

// The caller's memory: regions of kRegion bytes, all poisoned, and one for a workspace.
class Arena {
 public:
  static constexpr std::size_t kRegions = 40;
  Arena() : bytes_(new (std::align_val_t{64}) std::byte[kSize]) { std::fill_n(bytes_.get(), kSize, kPoison); }

  std::byte* region(std::size_t index) const { return bytes_.get() + index * kRegion; }
  std::byte* workspace() const { return region(kRegions); }
  // Whether nothing has changed since `copy` was taken of the regions; nothing but the library writes to the workspace.
  std::vector<std::byte> copy() const { return {bytes_.get(), workspace()}; }
  bool equals(const std::vector<std::byte>& copy) const {
    return std::memcmp(bytes_.get(), copy.data(), copy.size()) == 0 && workspace()[0] == kPoison &&
           std::memcmp(workspace(), workspace() + 1, kWorkspaceLimit - 1) == 0;
  }

 private:
  static constexpr std::size_t kSize = kRegions * kRegion + static_cast<std::size_t>(kWorkspaceLimit);
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> bytes_;
};

// The arguments of every function of the API, all valid. A row changes a value or replaces a pointer by NULL.
struct Call {
  Call(ra_context* own_context, std::int32_t world_size, std::int32_t rank)
      : context(own_context), world_size(world_size), rank(rank) {
    ra_init_context_config(&config, sizeof config);
    ra_init_context_info(&info, sizeof info);
    ra_init_capabilities(&capabilities, sizeof capabilities);
    ra_init_memory_requirements(&requirements, sizeof requirements);
    ra_init_machine_rates(&rates, sizeof rates);
    rates.forward_flops = rates.backward_flops = 1e9;
    ra_init_time_estimate(&estimate, sizeof estimate);
    ra_init_call_statistics(&statistics, sizeof statistics);
    std::memset(id.text, 'x', sizeof id.text);
    info.rank = 0x5A5A;
    capabilities.version = 0x5A5A;
    requirements.lse = 0x5A5A;
    statistics.steps = 0x5A5A;

    desc = with_defaults(make_desc(kSeqlen, kHeadsQ, kDim, kBatch));
    desc.num_heads_kv = kHeadsKv;

    const auto tensor = [&](std::size_t region, std::int64_t heads) {
      return ra_tensor{arena.region(region), kSeqlen * heads * kDim, heads * kDim, kDim, 0};
    };
    static_assert(kDim == kDimV && kBatch * kSeqlen * kHeadsQ * kDim * 4 <= static_cast<std::int64_t>(kRegion));

    ra_init_forward_args(&forward, sizeof forward);
    forward.q = tensor(0, kHeadsQ);
    forward.k = tensor(1, kHeadsKv);
    forward.v = tensor(2, kHeadsKv);
    forward.out = tensor(3, kHeadsQ);
    forward.lse = lse();

    ra_init_backward_args(&backward, sizeof backward);
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.out = forward.out;
    backward.lse = lse();
    backward.dout = tensor(5, kHeadsQ);
    backward.dq = tensor(6, kHeadsQ);
    backward.dk = tensor(7, kHeadsKv);
    backward.dv = tensor(8, kHeadsKv);

    ra_init_sequence_args(&sequence, sizeof sequence);
    sequence.num_heads = kHeadsQ;
    sequence.dim = kDim;
    sequence.whole = tensor(9, kHeadsQ);
    sequence.shard = tensor(10, kHeadsQ);

    ra_init_merge_args(&merge, sizeof merge);
    merge.batch = kBatch;
    merge.seqlen = kSeqlen;
    merge.num_heads = kHeadsQ;
    merge.head_dim_v = kDimV;
    merge.out_a = tensor(11, kHeadsQ);
    merge.out_b = tensor(12, kHeadsQ);
    merge.out = tensor(13, kHeadsQ);
    merge.lse_a = reinterpret_cast<float*>(arena.region(14));
    merge.lse_b = reinterpret_cast<float*>(arena.region(14) + kRegion / 2);
    merge.lse = reinterpret_cast<float*>(arena.region(15));

    ra_init_mha_desc(&mha, sizeof mha);
    mha.d_model = kDim;
    ra_init_mha_requirements(&mha_requirements, sizeof mha_requirements);
    mha_requirements.activations = 0x5A5A;
    static_assert(kDim == kDModel);
    const auto packed = [&](std::size_t region) { return ra_tensor{arena.region(region), 0, 0, 0, 0}; };
    ra_init_mha_forward_args(&mha_forward, sizeof mha_forward);
    mha_forward.x = packed(16);
    mha_forward.w_q = packed(17);
    mha_forward.w_k = packed(18);
    mha_forward.w_v = packed(19);
    mha_forward.w_o = packed(20);
    mha_forward.out = packed(21);
    mha_forward.activations = arena.region(22);
    mha_forward.activations_size = kRegion;
    ra_init_mha_backward_args(&mha_backward, sizeof mha_backward);
    mha_backward.x = mha_forward.x;
    mha_backward.w_q = mha_forward.w_q;
    mha_backward.w_k = mha_forward.w_k;
    mha_backward.w_v = mha_forward.w_v;
    mha_backward.w_o = mha_forward.w_o;
    mha_backward.activations = mha_forward.activations;
    mha_backward.activations_size = kRegion;
    mha_backward.dout = packed(23);
    mha_backward.dx = packed(24);
    mha_backward.dw_q = packed(25);
    mha_backward.dw_k = packed(26);
    mha_backward.dw_v = packed(27);
    mha_backward.dw_o = packed(28);
    ra_init_reduce_args(&reduce, sizeof reduce);
    reduce.data = reinterpret_cast<float*>(arena.region(29));
    reduce.count = 100;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  float* lse() const { return reinterpret_cast<float*>(arena.region(4)); }

  // Two documents in place of one sequence; the arrays are the row's to break.
  void use_documents() {
    desc.num_documents = 2;
    desc.document_offsets_q = offsets_q;
    desc.document_offsets_kv = offsets_kv;
  }
  void use_kv_lengths() { desc.kv_lengths = kv_lengths; }
  void use_slopes() { desc.alibi_slopes = slopes; }
  // Two slices side by side and an empty one in the middle of the second.
  void use_slices() {
    desc.num_mask_slices = 3;
    desc.mask_slices = slices;
  }
  void use_branches() {
    desc.num_branches = 2;
    desc.segment_lengths = segment_lengths;
    desc.dilations = dilations;
  }
  void use_workspace() {
    forward.workspace = backward.workspace = mha_forward.workspace = mha_backward.workspace = reduce.workspace =
        arena.workspace();
    forward.workspace_size = backward.workspace_size = mha_forward.workspace_size = mha_backward.workspace_size =
        reduce.workspace_size = static_cast<std::size_t>(kWorkspaceLimit);
  }

  Arena arena;
  ra_context* context;
  std::int32_t world_size;
  std::int32_t rank;
  std::int32_t side = RA_SIDE_QUERY;
  std::int32_t transport = RA_TRANSPORT_LOCAL;
  const char* bind_address = nullptr;
  std::int64_t index = 0;
  std::int64_t first = 0;
  std::int64_t count = 1;
  std::int64_t num_problems = 1;
  std::int64_t offsets_q[3] = {0, 2, kSeqlen};
  std::int64_t offsets_kv[3] = {0, 3, kSeqlen};
  std::int64_t kv_lengths[kBatch] = {kSeqlen, 4};
  float slopes[kHeadsQ] = {0.5F, 0.25F, 0.125F, 0};
  std::int64_t slices[15] = {0, 4, 0, 3, RA_MASK_SLICE_KIND_CAUSAL, 2, kSeqlen, 3, kSeqlen, RA_MASK_SLICE_KIND_FULL,
                             3, 4, 4, 4, RA_MASK_SLICE_KIND_FULL};
  std::int64_t segment_lengths[2] = {2, 4};
  std::int64_t dilations[2] = {1, 2};
  std::int64_t entry = 0, head = 0, query = 0, first_key = 0;

  ra_context_config config{};
  ra_context_info info{};
  ra_capabilities capabilities{};
  ra_attention_desc desc{};
  ra_memory_requirements requirements{};
  ra_machine_rates rates{};
  ra_time_estimate estimate{};
  ra_call_statistics statistics{};
  ra_forward_args forward{};
  ra_backward_args backward{};
  ra_sequence_args sequence{};
  ra_merge_args merge{};
  ra_mha_desc mha{};
  ra_mha_forward_args mha_forward{};
  ra_mha_backward_args mha_backward{};
  ra_mha_requirements mha_requirements{};
  ra_reduce_args reduce{};
  ra_unique_id id{};
  std::string text;  // keeps a unique id or another string of the row alive

  // What is passed; a row sets one to NULL.
  ra_unique_id* p_id = &id;
  ra_context_config* p_config = &config;
  ra_context_info* p_info = &info;
  ra_capabilities* p_capabilities = &capabilities;
  ra_attention_desc* p_desc = &desc;
  ra_memory_requirements* p_requirements = &requirements;
  ra_machine_rates* p_rates = &rates;
  ra_time_estimate* p_estimate = &estimate;
  ra_call_statistics* p_statistics = &statistics;
  ra_forward_args* p_forward = &forward;
  ra_backward_args* p_backward = &backward;
  ra_sequence_args* p_sequence = &sequence;
  ra_merge_args* p_merge = &merge;
  ra_mha_desc* p_mha = &mha;
  ra_mha_forward_args* p_mha_forward = &mha_forward;
  ra_mha_backward_args* p_mha_backward = &mha_backward;
  ra_mha_requirements* p_mha_requirements = &mha_requirements;
  ra_reduce_args* p_reduce = &reduce;
  std::int64_t* p_positions = reinterpret_cast<std::int64_t*>(arena.region(10));
  std::uint8_t* p_mask = reinterpret_cast<std::uint8_t*>(arena.region(10));
};

// ---------------------------------------------------------------- functions

struct Function {
  const char* name;
  // `expected` stands in for the status of a function that returns none, where there is no ra_error to say it either.
  ra_status (*call)(Call& c, ra_error* error, ra_status expected);
};

ra_status failed(const ra_error* error, ra_status expected) {
  return error == nullptr ? expected : static_cast<ra_status>(error->status);
}

const Function kCreateUniqueId{"ra_create_unique_id", [](Call& c, ra_error* e, ra_status) {
                                 return ra_create_unique_id(c.p_id, c.transport, c.bind_address, e);
                               }};
const Function kCreateContext{"ra_create_context", [](Call& c, ra_error* e, ra_status expected) {
                                const Context context(ra_create_context(c.p_config, e));
                                return context ? RA_STATUS_SUCCESS : failed(e, expected);
                              }};
const Function kAbortContext{"ra_abort_context",
                             [](Call& c, ra_error* e, ra_status) { return ra_abort_context(c.context, e); }};
const Function kGetAsyncError{"ra_get_async_error",
                              [](Call& c, ra_error* e, ra_status) { return ra_get_async_error(c.context, e); }};
const Function kGetContextInfo{
    "ra_get_context_info", [](Call& c, ra_error* e, ra_status) { return ra_get_context_info(c.context, c.p_info, e); }};
const Function kGetCapabilities{
    "ra_get_capabilities", [](Call& c, ra_error* e, ra_status) { return ra_get_capabilities(c.p_capabilities, e); }};
const Function kCheckSupport{"ra_check_support",
                             [](Call& c, ra_error* e, ra_status) { return ra_check_support(c.context, c.p_desc, e); }};
const Function kGetMemoryRequirements{"ra_get_memory_requirements", [](Call& c, ra_error* e, ra_status) {
                                        return ra_get_memory_requirements(c.context, c.p_desc, c.p_requirements, e);
                                      }};
const Function kEstimateMemory{"ra_estimate_memory", [](Call& c, ra_error* e, ra_status) {
                                 return ra_estimate_memory(c.p_config, c.p_desc, c.p_requirements, e);
                               }};
const Function kEstimateTime{"ra_estimate_time", [](Call& c, ra_error* e, ra_status) {
                               return ra_estimate_time(c.p_config, c.p_desc, c.p_rates, c.p_estimate, e);
                             }};
const Function kGetCallStatistics{"ra_get_call_statistics", [](Call& c, ra_error* e, ra_status) {
                                    return ra_get_call_statistics(c.context, c.p_statistics, e);
                                  }};
const Function kGetShardLength{"ra_get_shard_length", [](Call& c, ra_error* e, ra_status expected) {
                                 const std::int64_t n = ra_get_shard_length(c.p_desc, c.world_size, c.rank, c.side, e);
                                 return n == -1 ? failed(e, expected) : RA_STATUS_SUCCESS;
                               }};
const Function kGetShardPosition{"ra_get_shard_position", [](Call& c, ra_error* e, ra_status expected) {
                                   const std::int64_t n =
                                       ra_get_shard_position(c.p_desc, c.world_size, c.rank, c.side, c.index, e);
                                   return n == -1 ? failed(e, expected) : RA_STATUS_SUCCESS;
                                 }};
const Function kGetShardPositions{"ra_get_shard_positions", [](Call& c, ra_error* e, ra_status) {
                                    return ra_get_shard_positions(c.p_desc, c.world_size, c.rank, c.side, c.first,
                                                                  c.count, c.p_positions, e);
                                  }};
const Function kGetDropoutMask{"ra_get_dropout_mask", [](Call& c, ra_error* e, ra_status) {
                                 return ra_get_dropout_mask(c.p_desc, c.entry, c.head, c.query, c.first_key, c.count,
                                                            c.p_mask, e);
                               }};
const Function kSplitSequence{"ra_split_sequence", [](Call& c, ra_error* e, ra_status) {
                                return ra_split_sequence(c.p_desc, c.world_size, c.rank, c.p_sequence, e);
                              }};
const Function kJoinSequence{"ra_join_sequence", [](Call& c, ra_error* e, ra_status) {
                               return ra_join_sequence(c.p_desc, c.world_size, c.rank, c.p_sequence, e);
                             }};
const Function kForward{
    "ra_forward", [](Call& c, ra_error* e, ra_status) { return ra_forward(c.context, c.p_desc, c.p_forward, e); }};
const Function kBackward{
    "ra_backward", [](Call& c, ra_error* e, ra_status) { return ra_backward(c.context, c.p_desc, c.p_backward, e); }};
const Function kMergeAttention{"ra_merge_attention",
                               [](Call& c, ra_error* e, ra_status) { return ra_merge_attention(c.p_merge, e); }};
const Function kMhaForward{"ra_mha_forward", [](Call& c, ra_error* e, ra_status) {
                             return ra_mha_forward(c.context, c.p_desc, c.p_mha, c.p_mha_forward, e);
                           }};
const Function kMhaBackward{"ra_mha_backward", [](Call& c, ra_error* e, ra_status) {
                              return ra_mha_backward(c.context, c.p_desc, c.p_mha, c.p_mha_backward, e);
                            }};
const Function kGetMhaRequirements{"ra_get_mha_requirements", [](Call& c, ra_error* e, ra_status) {
                                     return ra_get_mha_requirements(c.context, c.p_desc, c.p_mha, c.p_mha_requirements,
                                                                    e);
                                   }};
const Function kAllReduce{"ra_all_reduce",
                          [](Call& c, ra_error* e, ra_status) { return ra_all_reduce(c.context, c.p_reduce, e); }};
const Function kRunSelfTest{"ra_run_self_test", [](Call& c, ra_error* e, ra_status) {
                              return ra_run_self_test(c.context, c.num_problems, 1, e);
                            }};

using Functions = std::vector<const Function*>;

// Who reads the problem, who reads only how its sequences are cut, and who computes.
const Functions kTakeLayer{&kMhaForward, &kMhaBackward, &kGetMhaRequirements};
const Functions kTakeProblem{
    &kCheckSupport, &kGetMemoryRequirements, &kEstimateMemory,     &kEstimateTime,  &kForward, &kBackward,
    &kMhaForward,   &kMhaBackward,           &kGetMhaRequirements, &kGetDropoutMask};
const Functions kTakeSharding{&kGetShardLength, &kGetShardPosition, &kGetShardPositions, &kSplitSequence,
                              &kJoinSequence};
const Functions kCompute{&kForward, &kBackward};
const Functions kCopy{&kSplitSequence, &kJoinSequence};

Functions operator+(Functions a, const Functions& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
const Functions kTakeDesc = kTakeProblem + kTakeSharding;

// ---------------------------------------------------------------- rows

struct Row {
  std::string name;
  Functions functions;
  std::function<void(Call& c)> breaks;
  std::vector<std::string> words;  // each must stand in the message as a word; "a|b" is either
  ra_status status = RA_STATUS_INVALID_ARGUMENT;
};
using Table = std::vector<Row>;

template <class T>
std::string digits(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(value)) return "nan|-nan|NaN";
    if (std::isinf(value)) return value > 0 ? "inf|Inf|infinity|Infinity" : "-inf|-Inf|-infinity|-Infinity";
    std::ostringstream shortest;
    shortest << value;
    return std::to_string(value) + "|" + shortest.str();
  } else {
    return std::to_string(value);
  }
}

// One row per value of a field that is out of its range.
template <class Struct, class T>
void out_of_range(Table& table, const Functions& functions, Struct Call::*owner, T Struct::*field,
                  const std::string& name, std::initializer_list<T> values, const std::vector<std::string>& limit) {
  for (const T value : values) {
    std::vector<std::string> words{name, digits(value)};
    words.insert(words.end(), limit.begin(), limit.end());
    table.push_back({name + " is " + digits(value), functions, [=](Call& c) { c.*owner.*field = value; }, words});
  }
}

template <class T>
void out_of_range(Table& table, const Functions& functions, T Call::*field, const std::string& name,
                  std::initializer_list<T> values, const std::vector<std::string>& limit) {
  for (const T value : values) {
    std::vector<std::string> words{name, digits(value)};
    words.insert(words.end(), limit.begin(), limit.end());
    table.push_back({name + " is " + digits(value), functions, [=](Call& c) { c.*field = value; }, words});
  }
}

void null_pointers(Table& t) {
  const auto context = [](Call& c) { c.context = nullptr; };
  const auto desc = [](Call& c) { c.p_desc = nullptr; };
  t.push_back({"id is NULL", {&kCreateUniqueId}, [](Call& c) { c.p_id = nullptr; }, {"id", "NULL"}});
  t.push_back({"config is NULL",
               {&kCreateContext, &kEstimateMemory, &kEstimateTime},
               [](Call& c) { c.p_config = nullptr; },
               {"config", "NULL"}});
  t.push_back({"rates is NULL", {&kEstimateTime}, [](Call& c) { c.p_rates = nullptr; }, {"rates", "NULL"}});
  t.push_back({"estimate is NULL", {&kEstimateTime}, [](Call& c) { c.p_estimate = nullptr; }, {"estimate", "NULL"}});
  t.push_back(
      {"context is NULL",
       {&kAbortContext, &kGetAsyncError, &kGetContextInfo, &kCheckSupport, &kGetMemoryRequirements, &kGetCallStatistics,
        &kForward, &kBackward, &kMhaForward, &kMhaBackward, &kGetMhaRequirements, &kAllReduce, &kRunSelfTest},
       context,
       {"context", "NULL"}});
  t.push_back({"desc is NULL", kTakeDesc, desc, {"desc", "NULL"}});
  t.push_back({"info is NULL", {&kGetContextInfo}, [](Call& c) { c.p_info = nullptr; }, {"info", "NULL"}});
  t.push_back({"capabilities is NULL",
               {&kGetCapabilities},
               [](Call& c) { c.p_capabilities = nullptr; },
               {"capabilities", "NULL"}});
  t.push_back({"requirements is NULL",
               {&kGetMemoryRequirements, &kEstimateMemory},
               [](Call& c) { c.p_requirements = nullptr; },
               {"requirements", "NULL"}});
  t.push_back(
      {"statistics is NULL", {&kGetCallStatistics}, [](Call& c) { c.p_statistics = nullptr; }, {"statistics", "NULL"}});
  t.push_back({"args is NULL", {&kForward}, [](Call& c) { c.p_forward = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", {&kBackward}, [](Call& c) { c.p_backward = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", kCopy, [](Call& c) { c.p_sequence = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", {&kMergeAttention}, [](Call& c) { c.p_merge = nullptr; }, {"args", "NULL"}});
  t.push_back({"mha is NULL", kTakeLayer, [](Call& c) { c.p_mha = nullptr; }, {"mha", "NULL"}});
  t.push_back({"args is NULL", {&kMhaForward}, [](Call& c) { c.p_mha_forward = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", {&kMhaBackward}, [](Call& c) { c.p_mha_backward = nullptr; }, {"args", "NULL"}});
  t.push_back({"args is NULL", {&kAllReduce}, [](Call& c) { c.p_reduce = nullptr; }, {"args", "NULL"}});
  t.push_back({"requirements is NULL",
               {&kGetMhaRequirements},
               [](Call& c) { c.p_mha_requirements = nullptr; },
               {"requirements", "NULL"}});
  t.push_back({"backward lse is NULL", {&kBackward}, [](Call& c) { c.backward.lse = nullptr; }, {"lse", "NULL"}});
  t.push_back({"lse_a is NULL", {&kMergeAttention}, [](Call& c) { c.merge.lse_a = nullptr; }, {"lse_a", "NULL"}});
  t.push_back({"lse_b is NULL", {&kMergeAttention}, [](Call& c) { c.merge.lse_b = nullptr; }, {"lse_b", "NULL"}});
  t.push_back({"merged lse is NULL", {&kMergeAttention}, [](Call& c) { c.merge.lse = nullptr; }, {"lse", "NULL"}});
}

void struct_sizes(Table& t) {
  const auto sizes = [&t](const Functions& functions, auto owner) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, sizeof(std::size_t) - 1, SIZE_MAX}) {
      t.push_back({"struct_size is " + digits(size),
                   functions,
                   [=](Call& c) { (c.*owner).struct_size = size; },
                   {"struct_size", digits(size)}});
    }
  };
  sizes({&kCreateContext, &kEstimateMemory, &kEstimateTime}, &Call::config);
  sizes({&kEstimateTime}, &Call::rates);
  sizes(kTakeDesc, &Call::desc);
  sizes({&kForward}, &Call::forward);
  sizes({&kBackward}, &Call::backward);
  sizes(kCopy, &Call::sequence);
  sizes({&kMergeAttention}, &Call::merge);
  sizes(kTakeLayer, &Call::mha);
  sizes({&kMhaForward}, &Call::mha_forward);
  sizes({&kMhaBackward}, &Call::mha_backward);
  sizes({&kAllReduce}, &Call::reduce);

  const auto too_small = [&t](const Functions& functions, auto owner) {
    t.push_back({"struct_size is 0", functions, [=](Call& c) { (c.*owner).struct_size = 0; }, {"struct_size", "0"}});
    t.push_back({"struct_size is 7", functions, [=](Call& c) { (c.*owner).struct_size = 7; }, {"struct_size", "7"}});
  };
  too_small({&kGetContextInfo}, &Call::info);
  too_small({&kGetCapabilities}, &Call::capabilities);
  too_small({&kGetMemoryRequirements, &kEstimateMemory}, &Call::requirements);
  too_small({&kGetCallStatistics}, &Call::statistics);
  too_small({&kEstimateTime}, &Call::estimate);
  too_small({&kGetMhaRequirements}, &Call::mha_requirements);
}

std::string id_of_another_process() {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    ra_unique_id id{};
    ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, nullptr, nullptr);
    const ssize_t written = write(ends[1], id.text, sizeof id.text);
    _exit(written == static_cast<ssize_t>(sizeof id.text) ? 0 : 1);
  }
  ra_unique_id id{};
  close(ends[1]);
  const ssize_t count = read(ends[0], id.text, sizeof id.text);
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return count == static_cast<ssize_t>(sizeof id.text) ? id.text : "";
}

// The status that asking for something gives where it may or may not be built in; those rows exist only where it is not.
bool has(std::int32_t ra_capabilities::*what) {
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  return ra_get_capabilities(&capabilities, nullptr) == RA_STATUS_SUCCESS && capabilities.*what != 0;
}

void rates(Table& t) {
  const Functions estimate{&kEstimateTime};
  using R = ra_machine_rates;
  for (const auto& [name, field] :
       {std::pair{"forward_flops", &R::forward_flops}, std::pair{"backward_flops", &R::backward_flops}})
    out_of_range(t, estimate, &Call::rates, field, name, {0.0, -1.0, double{NAN}, double{INFINITY}}, {"0"});
  for (const auto& [name, field] :
       {std::pair{"link_bytes", &R::link_bytes}, std::pair{"link_seconds", &R::link_seconds}})
    out_of_range(t, estimate, &Call::rates, field, name, {-1.0, double{NAN}, double{INFINITY}}, {"0"});
}

void contexts(Table& t) {
  const Functions create{&kCreateContext};
  const Functions either{&kCreateContext, &kEstimateMemory};
  const Functions all = either + Functions{&kEstimateTime};
  using C = ra_context_config;
  out_of_range(t, all, &Call::config, &C::rank, "rank", {-1, 1, INT32_MIN, INT32_MAX}, {"world_size|0 .. 0|less|0"});
  out_of_range(t, all, &Call::config, &C::world_size, "world_size", {0, -1, 4097, INT32_MAX}, {"4096"});
  out_of_range(t, either, &Call::config, &C::backend, "backend", {-1, 2, 99}, {});
  out_of_range(t, either, &Call::config, &C::transport, "transport", {-1, 3, 99}, {});
  out_of_range(t, either, &Call::config, &C::num_threads, "num_threads", {-1, 1025, INT32_MAX}, {"1024"});
  out_of_range(t, create, &Call::config, &C::device, "device", {1, -1}, {"0"});
  out_of_range(t, create, &Call::config, &C::num_sms, "num_sms", {1, -1}, {"0"});
  out_of_range(t, create, &Call::config, &C::encryption, "encryption", {1, -1}, {"0"});
  out_of_range(t, create, &Call::config, &C::timeout_ms, "timeout_ms",
               {std::int64_t{-1}, std::int64_t{1} << 31, kMax, kMin}, {"2147483647|2^31"});
  t.push_back({"rank is 2 of 2",
               either,
               [](Call& c) {
                 c.config.world_size = c.config.rank = 2;
                 c.text = make_unique_id().text;
                 c.config.unique_id = c.text.c_str();
               },
               {"rank", "2"}});
  t.push_back({"bind_address with the local transport",
               create,
               [](Call& c) { c.config.bind_address = "127.0.0.1"; },
               {"bind_address", "127.0.0.1"}});
  t.push_back({"nccl_comm on the CPU", create, [](Call& c) { c.config.nccl_comm = &c; }, {"nccl_comm"}});
  t.push_back({"engine is unknown",
               either,
               [](Call& c) { c.config.engine = "abacus"; },
               {"engine", "abacus"},
               RA_STATUS_NOT_SUPPORTED});
  t.push_back({"engine of another backend",
               either,
               [](Call& c) { c.config.engine = "cudnn"; },
               {"engine", "cudnn"},
               RA_STATUS_NOT_SUPPORTED});
  if (!has(&ra_capabilities::has_cuda)) {
    t.push_back({"backend is CUDA",
                 create,
                 [](Call& c) { c.config.backend = RA_BACKEND_CUDA; },
                 {"backend|CUDA|cuda"},
                 RA_STATUS_NOT_SUPPORTED});
  }
  if (!has(&ra_capabilities::has_zeromq)) {
    t.push_back({"transport is ZEROMQ",
                 create,
                 [](Call& c) { c.config.transport = RA_TRANSPORT_ZEROMQ; },
                 {"transport|ZEROMQ|zeromq|ZeroMQ"},
                 RA_STATUS_NOT_SUPPORTED});
    t.push_back({"id for ZEROMQ",
                 {&kCreateUniqueId},
                 [](Call& c) { c.transport = RA_TRANSPORT_ZEROMQ; },
                 {"transport|ZEROMQ|zeromq|ZeroMQ"},
                 RA_STATUS_NOT_SUPPORTED});
  }
  if (!has(&ra_capabilities::has_nccl)) {
    t.push_back({"transport is NCCL",
                 create,
                 [](Call& c) { c.config.transport = RA_TRANSPORT_NCCL; },
                 {"transport|NCCL|nccl"},
                 RA_STATUS_NOT_SUPPORTED});
    t.push_back({"id for NCCL",
                 {&kCreateUniqueId},
                 [](Call& c) { c.transport = RA_TRANSPORT_NCCL; },
                 {"transport|NCCL|nccl"},
                 RA_STATUS_NOT_SUPPORTED});
  }

  out_of_range(t, {&kCreateUniqueId}, &Call::transport, "transport", {-1, 3, INT32_MAX}, {});
  t.push_back({"id with bind_address",
               {&kCreateUniqueId},
               [](Call& c) { c.bind_address = "localhost:1"; },
               {"bind_address", "localhost:1"}});

  // A unique id is read where there is more than one rank, and checked where one is given.
  t.push_back({"unique_id is NULL", create, [](Call& c) { c.config.world_size = 2; }, {"unique_id", "NULL"}});
  const auto foreign_id = [&](const std::string& name, const std::string& text) {
    for (const std::int32_t world_size : {1, 2}) {
      t.push_back({"unique_id is " + name + ", world_size " + std::to_string(world_size),
                   create,
                   [=](Call& c) {
                     c.config.world_size = world_size;
                     c.config.timeout_ms = 1000;  // were it accepted
                     c.text = text;
                     c.config.unique_id = c.text.c_str();
                   },
                   {"unique_id"}});
    }
  };
  const std::string good = make_unique_id().text;
  std::string other_head = good, other_tail = good;
  other_head.front() = '?';
  other_tail.back() = '?';
  foreign_id("empty", "");
  foreign_id("a word", "hello");
  foreign_id("cut short", good.substr(0, good.size() - 1));
  foreign_id("cut in half", good.substr(0, good.size() / 2));
  foreign_id("too long", good + "0");
  foreign_id("longer than any", std::string(5000, 'a'));
  foreign_id("changed at the front", other_head);
  foreign_id("changed at the end", other_tail);
  foreign_id("another transport's", "zeromq" + good);
  foreign_id("not ASCII", "\xff\xfe" + good);
  foreign_id("followed by a space", good + " ");
  foreign_id("followed by a newline", good + "\n");
  foreign_id("another process's", id_of_another_process());
}

void problems(Table& t) {
  using D = ra_attention_desc;
  const auto desc = &Call::desc;
  out_of_range(t, kTakeProblem + kCopy, desc, &D::batch, "batch", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, kTakeDesc, desc, &D::seqlen_q, "seqlen_q", {std::int64_t{-1}, std::int64_t{-2}, kMin}, {"0"});
  t.push_back({"seqlen_q is forgotten",
               kTakeDesc,
               [](Call& c) {
                 D fresh;
                 ra_init_attention_desc(&fresh, sizeof fresh);
                 c.desc.seqlen_q = fresh.seqlen_q;
               },
               {"seqlen_q is -1", "0"}});
  out_of_range(t, kTakeDesc, desc, &D::seqlen_kv, "seqlen_kv", {std::int64_t{-2}, kMin}, {"0|-1"});
  out_of_range(t, kTakeProblem, desc, &D::num_heads_q, "num_heads_q", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, kTakeProblem, desc, &D::num_heads_q, "num_heads_q", {std::int64_t{3}, std::int64_t{5}},
               {"num_heads_kv", "2", "multiple"});
  out_of_range(t, kTakeProblem, desc, &D::num_heads_kv, "num_heads_kv", {std::int64_t{-1}, kMin, kMax}, {"1|0"});
  out_of_range(t, kTakeProblem, desc, &D::num_heads_kv, "num_heads_kv", {std::int64_t{3}, std::int64_t{8}},
               {"num_heads_q", "4", "multiple"});
  out_of_range(t, kTakeProblem, desc, &D::head_dim, "head_dim",
               {std::int64_t{0}, std::int64_t{-1}, std::int64_t{257}, kMax, kMin}, {"1", "256"});
  out_of_range(t, kTakeProblem, desc, &D::head_dim_v, "head_dim_v", {std::int64_t{-1}, std::int64_t{257}, kMax, kMin},
               {"256"});
  out_of_range(t, kTakeProblem, desc, &D::dtype, "dtype", {-1, 0, 4, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::out_dtype, "out_dtype", {-1, 4, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::grad_dtype, "grad_dtype", {-1, 4, 99}, {});
  out_of_range(t, kTakeDesc, desc, &D::sharding, "sharding", {-1, 3, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::mask, "mask", {-1, 2, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::mask_alignment, "mask_alignment", {-1, 2, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::window_left, "window_left", {std::int64_t{-2}, kMin}, {"-1"});
  out_of_range(t, kTakeProblem, desc, &D::window_right, "window_right", {std::int64_t{-2}, kMin}, {"-1"});
  out_of_range(t, kTakeProblem, desc, &D::softmax_scale, "softmax_scale", {NAN, INFINITY, -INFINITY}, {"finite"});
  out_of_range(t, kTakeProblem, desc, &D::softcap, "softcap", {-1.5F, NAN, INFINITY, -INFINITY}, {"0|finite"});
  out_of_range(t, kTakeProblem, desc, &D::schedule, "schedule", {-1, 6, 99}, {});
  out_of_range(t, kTakeProblem, desc, &D::num_chunks, "num_chunks", {std::int64_t{-1}, std::int64_t{65537}, kMax, kMin},
               {"65536"});
  out_of_range(t, kTakeProblem, desc, &D::gather_bytes, "gather_bytes",
               {std::int64_t{-1}, (std::int64_t{1} << 58) + 1, kMax, kMin}, {"0"});
  out_of_range(t, kTakeProblem, desc, &D::reserved, "reserved", {1, -1}, {"0"});
  for (const std::int64_t stripe : {std::int64_t{0}, std::int64_t{-1}, kMin}) {
    t.push_back({"stripe is " + digits(stripe),
                 kTakeDesc,
                 [=](Call& c) {
                   c.desc.sharding = RA_SHARDING_STRIPED;
                   c.desc.stripe = stripe;
                 },
                 {"stripe", digits(stripe), "1"}});
  }
  for (const auto& [name, schedule] :
       {std::pair{"ALL_TO_ALL", RA_SCHEDULE_ALL_TO_ALL}, std::pair{"HYBRID", RA_SCHEDULE_HYBRID},
        std::pair{"PASS_Q", RA_SCHEDULE_PASS_Q}}) {
    t.push_back({std::string("schedule is ") + name,
                 kTakeProblem,
                 [schedule = schedule](Call& c) { c.desc.schedule = schedule; },
                 {"schedule"},
                 RA_STATUS_NOT_SUPPORTED});
    t.back().functions.pop_back();  // a mask of dropout asks nobody who computes
  }

  // Products that do not fit: elements or bytes reach 2^63 although each factor is legal.
  const auto too_big = [&t](const std::string& name, std::function<void(D & d)> breaks) {
    t.push_back({name, kTakeProblem, [=](Call& c) { breaks(c.desc); }, {}});
  };
  constexpr std::int64_t one = 1;
  too_big("batch is 2^62", [](D& d) { d.batch = one << 62; });
  too_big("batch is 2^63 - 1", [](D& d) { d.batch = kMax; });
  too_big("seqlen_q and seqlen_kv are 2^62", [](D& d) { d.seqlen_q = d.seqlen_kv = one << 62; });
  too_big("seqlen_q and seqlen_kv are 2^63 - 1", [](D& d) { d.seqlen_q = d.seqlen_kv = kMax; });
  too_big("seqlen_kv is 2^63 - 1", [](D& d) { d.seqlen_kv = kMax; });
  too_big("num_heads_q is 2^62", [](D& d) { d.num_heads_q = one << 62; });
  too_big("both num_heads are 2^62", [](D& d) { d.num_heads_q = d.num_heads_kv = one << 62; });
  too_big("batch * seqlen is 2^64", [](D& d) { d.batch = d.seqlen_q = d.seqlen_kv = one << 32; });
  too_big("batch * seqlen * heads is 2^63",
          [](D& d) { d.batch = d.seqlen_q = d.seqlen_kv = d.num_heads_q = one << 21; });
  too_big("elements are 2^63", [](D& d) {
    d.batch = 1;
    d.num_heads_q = d.num_heads_kv = 1 << 15;
    d.seqlen_q = d.seqlen_kv = one << 40;
    d.head_dim = d.head_dim_v = 256;
  });
  too_big("bytes of each tensor are 2^62, and of all together more than 2^64", [](D& d) {
    d.batch = 1;
    d.num_heads_q = d.num_heads_kv = 1 << 15;
    d.seqlen_q = d.seqlen_kv = one << 37;
    d.head_dim = d.head_dim_v = 256;
  });
  too_big("bytes are 2^63", [](D& d) {
    d.batch = 1;
    d.num_heads_q = d.num_heads_kv = 1 << 15;
    d.seqlen_q = d.seqlen_kv = one << 38;
    d.head_dim = d.head_dim_v = 256;
  });
  // A length of 0 hides no other factor: batch * heads alone are counted with too.
  too_big("lengths are 0, batch * heads is 2^64", [](D& d) {
    d.seqlen_q = d.seqlen_kv = 0;
    d.batch = one << 44;
    d.num_heads_q = d.num_heads_kv = 1 << 20;
  });
  too_big("lengths are 0, batch * heads * head_dim_v is 2^59", [](D& d) {
    d.seqlen_q = d.seqlen_kv = 0;
    d.batch = one << 37;
    d.num_heads_q = d.num_heads_kv = 1 << 20;
    d.head_dim = 1;
    d.head_dim_v = 4;
  });
  too_big("seqlen_q is 0, batch * heads is 2^64", [](D& d) {
    d.seqlen_q = 0;
    d.batch = one << 44;
    d.num_heads_q = 1 << 20;
    d.num_heads_kv = 1;
  });
}

void documents(Table& t) {
  const auto row = [&t](const std::string& name, std::function<void(Call&)> breaks, std::vector<std::string> words,
                        const Functions& functions = kTakeDesc) {
    t.push_back({name, functions,
                 [=](Call& c) {
                   c.use_documents();
                   breaks(c);
                 },
                 std::move(words)});
  };
  row("num_documents is -1", [](Call& c) { c.desc.num_documents = -1; }, {"num_documents", "-1", "0"});
  row("num_documents is -2^63", [](Call& c) { c.desc.num_documents = kMin; }, {"num_documents", digits(kMin), "0"});
  row("num_documents is 2^63 - 1", [](Call& c) { c.desc.num_documents = kMax; }, {"num_documents", digits(kMax)});
  row("document_offsets_q is NULL", [](Call& c) { c.desc.document_offsets_q = nullptr; },
      {"document_offsets_q", "NULL"});
  row("document_offsets_kv is NULL and lengths differ",
      [](Call& c) {
        c.desc.document_offsets_kv = nullptr;
        c.desc.seqlen_kv = 7;
      },
      {"seqlen_kv|document_offsets_kv", "7|NULL"});

  const auto offsets = [&](const std::string& name, std::int64_t(Call::*array)[3]) {
    const auto entry = [&](int i, std::int64_t value, std::vector<std::string> limit) {
      std::vector<std::string> words{name, digits(value)};
      words.insert(words.end(), limit.begin(), limit.end());
      row(
          name + "[" + std::to_string(i) + "] is " + digits(value), [=](Call& c) { (c.*array)[i] = value; }, words);
    };
    entry(0, 1, {"0"});
    entry(0, -1, {"0"});
    entry(0, kMin, {"0"});
    entry(1, -1, {"0"});
    entry(1, 7, {"6"});
    entry(1, kMax, {"6"});
    entry(1, kMin, {"0"});
    entry(2, 5, {"6"});
    entry(2, 7, {"6"});
    entry(2, 0, {});
    entry(2, kMax, {"6"});
  };
  offsets("document_offsets_q", &Call::offsets_q);
  offsets("document_offsets_kv", &Call::offsets_kv);

  for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
    for (const std::int64_t value : {std::int64_t{-1}, kSeqlen + 1, kMin, kMax}) {
      t.push_back({"kv_lengths[" + std::to_string(i) + "] is " + digits(value),
                   kTakeProblem,
                   [=](Call& c) {
                     c.use_kv_lengths();
                     c.kv_lengths[i] = value;
                   },
                   {"kv_lengths", digits(value), digits(kSeqlen)}});
    }
  }
}

void modifiers(Table& t) {
  using D = ra_attention_desc;
  const auto desc = &Call::desc;
  out_of_range(t, kTakeProblem, desc, &D::num_sinks, "num_sinks", {std::int64_t{-1}, std::int64_t{1025}, kMax, kMin},
               {"1024"});
  out_of_range(t, kTakeProblem, desc, &D::dropout_probability, "dropout_probability",
               {1.0F, 1.5F, -0.5F, NAN, INFINITY, -INFINITY}, {"0", "1"});
  out_of_range(t, kTakeProblem, desc, &D::has_key_bias, "has_key_bias", {-1, 2, INT32_MIN}, {"1"});
  for (const float slope : {NAN, INFINITY, -INFINITY})
    t.push_back({"alibi_slopes[2] is " + digits(slope),
                 kTakeProblem,
                 [=](Call& c) {
                   c.use_slopes();
                   c.slopes[2] = slope;
                 },
                 {"alibi_slopes", "2", digits(slope), "finite"}});

  const auto row = [&t](const std::string& name, std::function<void(Call&)> breaks, std::vector<std::string> words) {
    t.push_back({name, kTakeProblem, std::move(breaks), std::move(words)});
  };
  const auto slices = [&](const std::string& name, std::function<void(Call&)> breaks, std::vector<std::string> words) {
    row(
        name,
        [=](Call& c) {
          c.use_slices();
          breaks(c);
        },
        std::move(words));
  };
  for (const std::int64_t count : {std::int64_t{-1}, (std::int64_t{1} << 20) + 1, kMax, kMin})
    slices("num_mask_slices is " + digits(count), [=](Call& c) { c.desc.num_mask_slices = count; },
           {"num_mask_slices", digits(count), "1048576"});
  slices("mask_slices is NULL", [](Call& c) { c.desc.mask_slices = nullptr; }, {"mask_slices", "NULL", "15"});
  slices("mask_slices without a count", [](Call& c) { c.desc.num_mask_slices = 0; },
         {"mask_slices", "num_mask_slices", "0", "NULL"});
  const auto number = [&](std::size_t index, const char* what, std::initializer_list<std::int64_t> values,
                          const std::string& limit) {
    for (const std::int64_t value : values)
      slices("mask_slices[" + std::to_string(index) + "] is " + digits(value),
             [=](Call& c) { c.slices[index] = value; },
             {"mask_slices", std::to_string(index), what, digits(value), limit});
  };
  number(5, "q_begin", {-1, 7, kMax, kMin}, "6");
  number(6, "q_end", {1, 7, kMax, kMin}, "2 .. seqlen_q");
  number(7, "kv_begin", {-1, 7, kMax, kMin}, "6");
  number(8, "kv_end", {2, 7, kMax, kMin}, "3 .. seqlen_kv");
  number(9, "kind", {-1, 4, kMax, kMin}, "3");
  slices("two slices overlap in a key", [](Call& c) { c.slices[7] = 2; }, {"slice", "1", "0", "query", "2", "key"});
  slices("two slices overlap in a query", [](Call& c) { c.slices[12] = 3; }, {"slice", "2", "1", "query", "3", "key"});
  slices("a slice twice", [](Call& c) { std::copy_n(c.slices, 5, c.slices + 10); },
         {"slice", "2", "0", "query", "key"});

  const auto branches = [&](const std::string& name, std::function<void(Call&)> breaks,
                            std::vector<std::string> words) {
    row(
        name,
        [=](Call& c) {
          c.use_branches();
          breaks(c);
        },
        std::move(words));
  };
  for (const std::int32_t count : {-1, 17, INT32_MAX, INT32_MIN})
    branches("num_branches is " + digits(count), [=](Call& c) { c.desc.num_branches = count; },
             {"num_branches", digits(count), "16"});
  branches("segment_lengths is NULL", [](Call& c) { c.desc.segment_lengths = nullptr; },
           {"segment_lengths", "NULL", "2"});
  branches("dilations is NULL", [](Call& c) { c.desc.dilations = nullptr; }, {"dilations", "NULL", "2"});
  row("segment_lengths without a count", [](Call& c) { c.desc.segment_lengths = c.segment_lengths; },
      {"segment_lengths", "num_branches", "0", "NULL"});
  row("dilations without a count", [](Call& c) { c.desc.dilations = c.dilations; },
      {"dilations", "num_branches", "0", "NULL"});
  for (const std::int64_t length : {std::int64_t{0}, std::int64_t{-1}, kMin})
    branches("segment_lengths[1] is " + digits(length), [=](Call& c) { c.segment_lengths[1] = length; },
             {"segment_lengths", "1", digits(length)});
  for (const std::int64_t dilation : {std::int64_t{0}, std::int64_t{-1}, (std::int64_t{1} << 48) + 1, kMax, kMin})
    branches("dilations[1] is " + digits(dilation), [=](Call& c) { c.dilations[1] = dilation; },
             {"dilations", "1", digits(dilation), "281474976710656"});
  branches("segment_lengths[0] makes 2^21 segments",
           [](Call& c) {
             c.desc.seqlen_q = c.desc.seqlen_kv = std::int64_t{1} << 22;
             c.segment_lengths[0] = 2;
           },
           {"segment_lengths", "0", "2", "4194304", "1048576"});
  out_of_range(t, kTakeProblem, desc, &D::dilation_phase, "dilation_phase", {-1, 2, 99}, {"1"});
  out_of_range(t, kTakeProblem, desc, &D::dilation_padding, "dilation_padding", {-1, 2, 99}, {"1"});
  out_of_range(t, kTakeProblem, desc, &D::dilation_gradient, "dilation_gradient", {-1, 2, 99}, {"1"});
  const auto zero_keys = [&](const std::string& name, std::function<void(Call&)> breaks,
                             std::vector<std::string> words) {
    words.push_back("RA_DILATION_PADDING_ZERO_KEYS");
    branches(
        "zero keys with " + name,
        [=](Call& c) {
          c.desc.dilation_padding = RA_DILATION_PADDING_ZERO_KEYS;
          breaks(c);
        },
        std::move(words));
  };
  zero_keys("a causal mask", [](Call& c) { c.desc.mask = RA_MASK_CAUSAL; }, {"mask", "1", "0"});
  zero_keys("window_left", [](Call& c) { c.desc.window_left = 3; }, {"window_left", "3", "-1"});
  zero_keys("window_right", [](Call& c) { c.desc.window_right = 0; }, {"window_right", "0", "-1"});
  zero_keys("mask slices", [](Call& c) { c.use_slices(); }, {"num_mask_slices", "3", "0"});

  // The arrays of a call that the description does not ask for.
  for (const auto& [name, forward, backward] :
       {std::tuple{"key_bias", &ra_forward_args::key_bias, &ra_backward_args::key_bias},
        std::tuple{"sinks", &ra_forward_args::sinks, &ra_backward_args::sinks}}) {
    const std::vector<std::string> words{name, std::string(name) == "sinks" ? "num_sinks" : "has_key_bias", "0",
                                         "NULL"};
    t.push_back({std::string(name) + " unasked",
                 {&kForward},
                 [forward = forward](Call& c) { c.forward.*forward = c.lse(); },
                 words});
    t.push_back({std::string(name) + " unasked",
                 {&kBackward},
                 [backward = backward](Call& c) { c.backward.*backward = c.lse(); },
                 words});
  }
  t.push_back({"dsinks unasked",
               {&kBackward},
               [](Call& c) { c.backward.dsinks = c.lse(); },
               {"dsinks", "num_sinks", "0", "NULL"}});

  // A mask of dropout.
  const auto mask = [&](const std::string& name, std::int64_t Call::*argument,
                        std::initializer_list<std::int64_t> values, const std::string& limit) {
    for (const std::int64_t value : values)
      t.push_back({name + " of a mask is " + digits(value),
                   {&kGetDropoutMask},
                   [=](Call& c) { c.*argument = value; },
                   {name, digits(value), limit}});
  };
  mask("entry", &Call::entry, {-1, kBatch, kMax, kMin}, "batch");
  mask("head", &Call::head, {-1, kHeadsQ, kMax, kMin}, "num_heads_q");
  mask("query", &Call::query, {-1, kSeqlen, kMax, kMin}, "seqlen_q");
  mask("first_key", &Call::first_key, {-1, kSeqlen + 1, kMax, kMin}, "seqlen_kv");
  mask("count", &Call::count, {-1, kSeqlen + 1, kMax, kMin}, "seqlen_kv");
  t.push_back({"mask is NULL", {&kGetDropoutMask}, [](Call& c) { c.p_mask = nullptr; }, {"mask", "NULL"}});
}

// What every tensor can have wrong, and what only an output can.
template <class Args>
void tensor(Table& t, const Functions& functions, Args Call::*args, ra_tensor Args::*member, const std::string& name,
            bool is_output) {
  const auto row = [&](const std::string& what, std::function<void(ra_tensor&)> breaks,
                       std::vector<std::string> words) {
    t.push_back({name + what, functions, [=](Call& c) { breaks(c.*args.*member); }, std::move(words)});
  };
  row(".data is NULL", [](ra_tensor& x) { x.data = nullptr; }, {name, "NULL"});
  row(".data is misaligned by 1", [](ra_tensor& x) { x.data = static_cast<std::byte*>(x.data) + 1; }, {name, "4"});
  row(".data is misaligned by 2", [](ra_tensor& x) { x.data = static_cast<std::byte*>(x.data) + 2; }, {name, "4"});

  const std::pair<const char*, std::int64_t ra_tensor::*> strides[] = {{"batch_stride", &ra_tensor::batch_stride},
                                                                       {"seq_stride", &ra_tensor::seq_stride},
                                                                       {"head_stride", &ra_tensor::head_stride}};
  for (const auto& [stride_name, stride] : strides) {
    for (const std::int64_t value : {std::int64_t{-8}, kMin, kMax, std::int64_t{1} << 61}) {
      row("." + std::string(stride_name) + " is " + digits(value),
          [stride = stride, value](ra_tensor& x) { x.*stride = value; }, {name, stride_name, digits(value)});
    }
    row("." + std::string(stride_name) + " is 0 beside others", [stride = stride](ra_tensor& x) { x.*stride = 0; },
        {name, stride_name, "RA_STRIDE_PACKED"});
    if (is_output) {
      row("." + std::string(stride_name) + " repeats: elements on top of each other",
          [stride = stride](ra_tensor& x) { x.*stride = RA_STRIDE_REPEAT; }, {name, stride_name, "-1"});
      row("." + std::string(stride_name) + " is 4: elements on top of each other",
          [stride = stride](ra_tensor& x) { x.*stride = 4; }, {name});
    }
  }
}

void tensors(Table& t) {
  const Functions forward{&kForward}, backward{&kBackward}, split{&kSplitSequence}, join{&kJoinSequence},
      merge{&kMergeAttention};
  tensor(t, forward, &Call::forward, &ra_forward_args::q, "q", false);
  tensor(t, forward, &Call::forward, &ra_forward_args::k, "k", false);
  tensor(t, forward, &Call::forward, &ra_forward_args::v, "v", false);
  tensor(t, forward, &Call::forward, &ra_forward_args::out, "out", true);
  tensor(t, backward, &Call::backward, &ra_backward_args::dout, "dout", false);
  tensor(t, backward, &Call::backward, &ra_backward_args::q, "q", false);
  tensor(t, backward, &Call::backward, &ra_backward_args::k, "k", false);
  tensor(t, backward, &Call::backward, &ra_backward_args::v, "v", false);
  tensor(t, backward, &Call::backward, &ra_backward_args::out, "out", false);
  tensor(t, backward, &Call::backward, &ra_backward_args::dq, "dq", true);
  tensor(t, backward, &Call::backward, &ra_backward_args::dk, "dk", true);
  tensor(t, backward, &Call::backward, &ra_backward_args::dv, "dv", true);
  tensor(t, split, &Call::sequence, &ra_sequence_args::whole, "whole", false);
  tensor(t, split, &Call::sequence, &ra_sequence_args::shard, "shard", true);
  tensor(t, join, &Call::sequence, &ra_sequence_args::whole, "whole", true);
  tensor(t, join, &Call::sequence, &ra_sequence_args::shard, "shard", false);
  tensor(t, merge, &Call::merge, &ra_merge_args::out_a, "out_a", false);
  tensor(t, merge, &Call::merge, &ra_merge_args::out_b, "out_b", false);
  tensor(t, merge, &Call::merge, &ra_merge_args::out, "out", true);

  const auto misalign = [&t](const Functions& functions, const std::string& name, auto args, auto member) {
    t.push_back({name + " is misaligned",
                 functions,
                 [=](Call& c) {
                   auto& pointer = c.*args.*member;
                   pointer = reinterpret_cast<float*>(reinterpret_cast<std::uintptr_t>(pointer) + 1);
                 },
                 {name, "4"}});
  };
  misalign(forward, "lse", &Call::forward, &ra_forward_args::lse);
  misalign(backward, "lse", &Call::backward, &ra_backward_args::lse);
  misalign(merge, "lse_a", &Call::merge, &ra_merge_args::lse_a);
  misalign(merge, "lse_b", &Call::merge, &ra_merge_args::lse_b);
  misalign(merge, "lse", &Call::merge, &ra_merge_args::lse);
}

// Moves `tensor` so that its first element is the last of [begin, begin + bytes).
void put_on_end(ra_tensor& tensor, const void* begin, std::int64_t bytes) {
  tensor.data = const_cast<std::byte*>(static_cast<const std::byte*>(begin)) + bytes - 4;
}

const std::string kOverlap = "overlap|overlaps";

void overlaps(Table& t) {
  using F = ra_forward_args;
  using B = ra_backward_args;
  constexpr std::int64_t row_bytes = kDim * 4;  // the last head of a tensor with at least one token
  const auto fields = [](auto... pairs) { return std::vector{pairs...}; };

  for (const auto& [name, input] : fields(std::pair{"q", &F::q}, std::pair{"k", &F::k}, std::pair{"v", &F::v})) {
    t.push_back({std::string("out is ") + name,
                 {&kForward},
                 [input = input](Call& c) { c.forward.out.data = (c.forward.*input).data; },
                 {"out", name, kOverlap}});
    t.push_back({std::string("out begins on the first row of ") + name,
                 {&kForward},
                 [input = input](Call& c) { put_on_end(c.forward.out, (c.forward.*input).data, row_bytes); },
                 {"out", name, kOverlap}});
    t.push_back({std::string("lse lies in ") + name,
                 {&kForward},
                 [input = input](Call& c) { c.forward.lse = static_cast<float*>((c.forward.*input).data) + 5; },
                 {"lse", name, kOverlap}});
  }
  t.push_back({"lse lies in out",
               {&kForward},
               [](Call& c) { c.forward.lse = static_cast<float*>(c.forward.out.data) + 3; },
               {"lse", "out", kOverlap}});
  t.push_back({"out lies in the workspace",
               {&kForward},
               [](Call& c) {
                 c.use_workspace();
                 c.forward.out.data = c.forward.workspace;
               },
               {"out", "workspace", kOverlap}});
  t.push_back({"lse lies in the workspace",
               {&kForward},
               [](Call& c) {
                 c.use_workspace();
                 c.forward.lse = static_cast<float*>(c.forward.workspace) + 1;
               },
               {"lse", "workspace", kOverlap}});

  const auto gradients = fields(std::pair{"dq", &B::dq}, std::pair{"dk", &B::dk}, std::pair{"dv", &B::dv});
  const auto inputs = fields(std::pair{"dout", &B::dout}, std::pair{"q", &B::q}, std::pair{"k", &B::k},
                             std::pair{"v", &B::v}, std::pair{"out", &B::out});
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto [name, gradient] = gradients[i];
    auto others = inputs;
    others.insert(others.end(), gradients.begin(), gradients.begin() + static_cast<std::ptrdiff_t>(i));
    for (const auto& [other_name, other] : others) {
      t.push_back(
          {std::string(name) + " is " + other_name,
           {&kBackward},
           [gradient = gradient, other = other](Call& c) { (c.backward.*gradient).data = (c.backward.*other).data; },
           {name, other_name, kOverlap}});
      t.push_back({std::string(name) + " begins on the first row of " + other_name,
                   {&kBackward},
                   [gradient = gradient, other = other](Call& c) {
                     put_on_end(c.backward.*gradient, (c.backward.*other).data, row_bytes);
                   },
                   {name, other_name, kOverlap}});
    }
    t.push_back({std::string(name) + " is lse",
                 {&kBackward},
                 [gradient = gradient](Call& c) { (c.backward.*gradient).data = c.lse(); },
                 {name, "lse", kOverlap}});
    t.push_back({std::string(name) + " lies in the workspace",
                 {&kBackward},
                 [gradient = gradient](Call& c) {
                   c.use_workspace();
                   (c.backward.*gradient).data = c.backward.workspace;
                 },
                 {name, "workspace", kOverlap}});
  }

  // dq, dk and dv in one buffer [batch, seq, 3, heads, dim], with 2 heads each; then one of them is moved into another.
  const auto fuse = [](Call& c, std::int64_t first_of_dk, std::int64_t first_of_dv, std::int64_t seq_stride_of_dv) {
    c.desc.num_heads_q = 2;
    for (ra_tensor* t : {&c.backward.q, &c.backward.out, &c.backward.dout}) *t = {t->data, 0, 0, 0, 0};
    const std::int64_t all = 3 * 2 * kDim;
    float* const buffer = reinterpret_cast<float*>(c.arena.region(6));
    c.backward.dq = {buffer, kSeqlen * all, all, kDim, 0};
    c.backward.dk = {buffer + first_of_dk, kSeqlen * all, all, kDim, 0};
    c.backward.dv = {buffer + first_of_dv, kSeqlen * seq_stride_of_dv, seq_stride_of_dv, kDim, 0};
  };
  static_assert(kBatch * kSeqlen * 3 * 2 * kDim * 4 < static_cast<std::int64_t>(2 * kRegion));
  t.push_back({"interleaved dk begins on the last element of dq's row",
               {&kBackward},
               [=](Call& c) { fuse(c, 2 * kDim - 1, 4 * kDim, 6 * kDim); },
               {"dk", "dq", kOverlap}});
  t.push_back({"interleaved dv ends on the first element of dq's next row",
               {&kBackward},
               [=](Call& c) { fuse(c, 2 * kDim, 4 * kDim + 1, 6 * kDim); },
               {"dv", "dq", kOverlap}});
  t.push_back({"interleaved dv has another seq_stride",
               {&kBackward},
               [=](Call& c) { fuse(c, 2 * kDim, 4 * kDim, 5 * kDim); },
               {"dv", "dq", kOverlap}});

  using M = ra_merge_args;
  for (const auto& [name, input] : fields(std::pair{"out_a", &M::out_a}, std::pair{"out_b", &M::out_b})) {
    t.push_back({std::string("merged out is ") + name + " moved by one element",
                 {&kMergeAttention},
                 [input = input](Call& c) { put_on_end(c.merge.out, (c.merge.*input).data, 8); },
                 {"out", name, kOverlap}});
  }
}

void arguments(Table& t) {
  using B = ra_backward_args;
  out_of_range(t, {&kBackward}, &Call::backward, &B::accumulate, "accumulate", {-1, 2, INT32_MAX}, {"1"});
  out_of_range(t, {&kBackward}, &Call::backward, &B::reserved, "reserved", {1, -1}, {"0"});
  t.push_back({"stream on the CPU",
               {&kForward},
               [](Call& c) { c.forward.stream = reinterpret_cast<ra_stream>(&c); },
               {"stream", "NULL"}});
  t.push_back({"stream on the CPU",
               {&kBackward},
               [](Call& c) { c.backward.stream = reinterpret_cast<ra_stream>(&c); },
               {"stream", "NULL"}});

  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{10}, std::size_t{64}}) {
    t.push_back({"workspace_size is " + digits(size),
                 kCompute,
                 [=](Call& c) {
                   c.use_workspace();
                   c.forward.workspace_size = c.backward.workspace_size = size;
                 },
                 {"workspace_size", digits(size)}});
  }
  struct Sized {
    Functions functions;
    const char* name;
    ra_tensor& (*tensor)(Call&);
    std::int64_t heads;
  };
  const Sized sized[] = {
      {{&kForward}, "q", [](Call& c) -> ra_tensor& { return c.forward.q; }, kHeadsQ},
      {{&kForward}, "k", [](Call& c) -> ra_tensor& { return c.forward.k; }, kHeadsKv},
      {{&kForward}, "v", [](Call& c) -> ra_tensor& { return c.forward.v; }, kHeadsKv},
      {{&kForward}, "out", [](Call& c) -> ra_tensor& { return c.forward.out; }, kHeadsQ},
      {{&kBackward}, "dout", [](Call& c) -> ra_tensor& { return c.backward.dout; }, kHeadsQ},
      {{&kBackward}, "dq", [](Call& c) -> ra_tensor& { return c.backward.dq; }, kHeadsQ},
      {{&kBackward}, "dk", [](Call& c) -> ra_tensor& { return c.backward.dk; }, kHeadsKv},
      {{&kBackward}, "dv", [](Call& c) -> ra_tensor& { return c.backward.dv; }, kHeadsKv},
      {{&kMergeAttention}, "out_a", [](Call& c) -> ra_tensor& { return c.merge.out_a; }, kHeadsQ},
  };
  for (const Sized& s : sized) {
    const auto entry = static_cast<std::size_t>(kSeqlen * s.heads * kDim) * sizeof(float);  // of kBatch
    for (const std::size_t size : {std::size_t{1}, entry})
      t.push_back({std::string(s.name) + ".size is " + digits(size),
                   s.functions,
                   [=](Call& c) { s.tensor(c).size = size; },
                   {std::string(s.name) + ".size", digits(size)}});
  }
  t.push_back({"lse_size is 1",
               {&kForward, &kBackward, &kMergeAttention},
               [](Call& c) { c.forward.lse_size = c.backward.lse_size = c.merge.lse_size = 1; },
               {"lse_size", "1"}});
  const std::size_t merged = kBatch * kSeqlen * kHeadsQ * sizeof(float);
  t.push_back({"lse_size is 1 less than needed",
               {&kMergeAttention},
               [=](Call& c) { c.merge.lse_size = merged - 1; },
               {"lse_size", "lse_a", digits(merged - 1), digits(merged)}});
  t.push_back({"workspace_size is 1 less than needed",
               kCompute,
               [](Call& c) {
                 ra_memory_requirements needed;
                 ra_init_memory_requirements(&needed, sizeof needed);
                 ASSERT_EQ(ra_get_memory_requirements(c.context, &c.desc, &needed, nullptr), RA_STATUS_SUCCESS);
                 c.use_workspace();
                 c.forward.workspace_size = needed.forward_workspace - 1;
                 c.backward.workspace_size = needed.backward_workspace - 1;
               },
               {"workspace_size"}});
  for (const std::size_t offset : {std::size_t{1}, std::size_t{4}, std::size_t{32}}) {
    t.push_back({"workspace is misaligned by " + digits(offset),
                 kCompute,
                 [=](Call& c) {
                   c.use_workspace();
                   c.forward.workspace = c.backward.workspace = c.arena.workspace() + offset;
                   c.forward.workspace_size -= 64;
                   c.backward.workspace_size -= 64;
                 },
                 {"workspace", "64"}});
  }

  out_of_range(t, {&kRunSelfTest}, &Call::num_problems, "num_problems",
               {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1'000'001}, kMax, kMin}, {"1", "1000000"});

  out_of_range(t, kTakeSharding, &Call::world_size, "world_size", {0, -1, 4097, INT32_MAX}, {"4096"});
  out_of_range(t, kTakeSharding, &Call::rank, "rank", {-1, 4096, INT32_MIN}, {"0|world_size|less"});
  out_of_range(t, {&kGetShardLength, &kGetShardPosition, &kGetShardPositions}, &Call::side, "side", {-1, 2, 99}, {});
  out_of_range(t, {&kGetShardPosition}, &Call::index, "index", {std::int64_t{-1}, kSeqlen, kMax, kMin},
               {"0|length|less"});
  out_of_range(t, {&kGetShardPositions}, &Call::first, "first", {std::int64_t{-1}, kSeqlen + 1, kMax, kMin},
               {"length"});
  out_of_range(t, {&kGetShardPositions}, &Call::count, "count", {std::int64_t{-1}, kSeqlen + 1, kMax, kMin},
               {"length"});
  t.push_back({"one position more than is left",
               {&kGetShardPositions},
               [](Call& c) {
                 c.first = 2;
                 c.count = kSeqlen - 1;
               },
               {"count", digits(kSeqlen - 1), digits(kSeqlen - 2), "2"}});
  t.push_back(
      {"positions is NULL", {&kGetShardPositions}, [](Call& c) { c.p_positions = nullptr; }, {"positions", "NULL"}});
  t.push_back({"positions is misaligned",
               {&kGetShardPositions},
               [](Call& c) { c.p_positions = reinterpret_cast<std::int64_t*>(c.arena.region(10) + 4); },
               {"positions", "8"}});

  using S = ra_sequence_args;
  out_of_range(t, kCopy, &Call::sequence, &S::side, "side", {-1, 2, 99}, {});
  out_of_range(t, kCopy, &Call::sequence, &S::dtype, "dtype", {-1, 4, 99}, {});
  out_of_range(t, kCopy, &Call::sequence, &S::num_heads, "num_heads", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, kCopy, &Call::sequence, &S::dim, "dim", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  t.push_back({"num_heads * dim is 2^64",
               kCopy,
               [](Call& c) { c.sequence.num_heads = c.sequence.dim = std::int64_t{1} << 32; },
               {}});
  t.push_back({"whole tensor has 2^79 elements",
               kCopy,
               [](Call& c) {
                 c.desc.batch = c.desc.num_heads_q = c.desc.num_heads_kv = c.desc.head_dim = c.desc.head_dim_v = 1;
                 c.desc.seqlen_q = c.desc.seqlen_kv = std::int64_t{1} << 39;
                 c.sequence.num_heads = c.sequence.dim = 1 << 20;
               },
               {"whole"}});

  using M = ra_merge_args;
  const Functions merge{&kMergeAttention};
  out_of_range(t, merge, &Call::merge, &M::batch, "batch", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, merge, &Call::merge, &M::seqlen, "seqlen", {std::int64_t{-1}, kMin}, {"0"});
  t.push_back({"merged rows are forgotten",
               merge,
               [](Call& c) {
                 M fresh;
                 ra_init_merge_args(&fresh, sizeof fresh);
                 c.merge.seqlen = fresh.seqlen;
               },
               {"seqlen is -1", "0"}});
  out_of_range(t, merge, &Call::merge, &M::num_heads, "num_heads", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, merge, &Call::merge, &M::head_dim_v, "head_dim_v", {std::int64_t{0}, std::int64_t{-1}, kMin}, {"1"});
  out_of_range(t, merge, &Call::merge, &M::dtype, "dtype", {-1, 0, 4, 99}, {});
  out_of_range(t, merge, &Call::merge, &M::reserved, "reserved", {1, -1}, {"0"});
  t.push_back({"merged elements are 2^64",
               merge,
               [](Call& c) { c.merge.num_heads = c.merge.head_dim_v = std::int64_t{1} << 32; },
               {}});
  t.push_back({"merged elements are 2^70, each factor legal",
               merge,
               [](Call& c) {
                 c.merge.seqlen = std::int64_t{1} << 48;
                 c.merge.num_heads = 1 << 20;
               },
               {"out_a"}});
  t.push_back({"merged rows are 2^68 of no tokens",
               merge,
               [](Call& c) {
                 c.merge.seqlen = 0;
                 c.merge.batch = std::int64_t{1} << 48;
                 c.merge.num_heads = 1 << 20;
               },
               {"out_a"}});
}

// What a layer has beside its attention.
void layers(Table& t) {
  using M = ra_mha_desc;
  const auto mha = &Call::mha;
  out_of_range(t, kTakeLayer, mha, &M::d_model, "d_model",
               {std::int64_t{0}, std::int64_t{-1}, (std::int64_t{1} << 20) + 1, kMin, kMax}, {"1", "1048576"});
  out_of_range(t, kTakeLayer, mha, &M::rotary, "rotary", {-1, 3, 99}, {"0", "2"});
  for (const float base : {1.0F, 0.0F, -5.0F, NAN, INFINITY})
    t.push_back({"rotary_base is " + digits(base),
                 kTakeLayer,
                 [=](Call& c) { c.mha.rotary = RA_ROTARY_HALVES, c.mha.rotary_base = base; },
                 {"rotary_base", digits(base), "finite"}});
  for (const float fraction : {0.0F, -0.5F, 1.5F, NAN, 0.1F})  // the last: of 8 elements no pair
    t.push_back({"rotary_fraction is " + digits(fraction),
                 kTakeLayer,
                 [=](Call& c) { c.mha.rotary = RA_ROTARY_HALVES, c.mha.rotary_fraction = fraction; },
                 {"rotary_fraction", digits(fraction)}});
  out_of_range(t, kTakeLayer, mha, &M::has_qkv_bias, "has_qkv_bias", {-1, 2}, {"0", "1"});
  out_of_range(t, kTakeLayer, mha, &M::has_out_bias, "has_out_bias", {-1, 2}, {"0", "1"});
  out_of_range(t, kTakeLayer, mha, &M::normalize_heads, "normalize_heads", {-1, 2}, {"0", "1"});
  out_of_range(t, kTakeLayer, mha, &M::norm_epsilon, "norm_epsilon", {-1.0F, NAN, INFINITY}, {"finite"});
  out_of_range(t, kTakeLayer, mha, &M::checkpoint, "checkpoint", {-1, 3}, {"0", "2"});
  t.push_back(
      {"lengths differ", kTakeLayer, [](Call& c) { c.desc.seqlen_kv = 7; }, {"seqlen_kv", "7", "seqlen_q", "6"}});
  t.push_back({"documents differ",
               kTakeLayer,
               [](Call& c) { c.use_documents(); },
               {"document_offsets_kv", "document_offsets_q"}});
  t.push_back({"has_key_bias", kTakeLayer, [](Call& c) { c.desc.has_key_bias = 1; }, {"has_key_bias", "1", "0"}});
  t.push_back({"num_sinks", kTakeLayer, [](Call& c) { c.desc.num_sinks = 2; }, {"num_sinks", "2", "0"}});

  // Tensors of both passes, and where they have them.
  using F = ra_mha_forward_args;
  using B = ra_mha_backward_args;
  struct Field {
    const char* name;
    ra_tensor F::*forward;
    ra_tensor B::*backward;
    std::int64_t columns;
  };
  const Functions both{&kMhaForward, &kMhaBackward};
  const Field inputs[] = {{"x", &F::x, &B::x, kDModel},
                          {"w_q", &F::w_q, &B::w_q, kHeadsQ * kDim},
                          {"w_k", &F::w_k, &B::w_k, kHeadsKv * kDim},
                          {"w_v", &F::w_v, &B::w_v, kHeadsKv * kDimV},
                          {"w_o", &F::w_o, &B::w_o, kDModel}};
  for (const Field& field : inputs) {
    const auto set = [=](auto change) {
      return [=](Call& c) { change(c.mha_forward.*field.forward), change(c.mha_backward.*field.backward); };
    };
    const std::string name = field.name;
    t.push_back({name + " is NULL", both, set([](ra_tensor& x) { x.data = nullptr; }), {name, "NULL"}});
    t.push_back({name + " is misaligned",
                 both,
                 set([](ra_tensor& x) { x.data = static_cast<std::byte*>(x.data) + 1; }),
                 {name, "aligned"}});
    t.push_back({name + " is too small", both, set([](ra_tensor& x) { x.size = 8; }), {name + ".size", "8"}});
    const std::int64_t less = field.columns - 1;
    t.push_back({name + " has rows that overlap",
                 both,
                 set([=](ra_tensor& x) { x.batch_stride = 500, x.seq_stride = less, x.head_stride = 1; }),
                 {name + ".seq_stride", digits(less), digits(field.columns)}});
    t.push_back({name + " repeats a row",
                 both,
                 set([=](ra_tensor& x) { x.batch_stride = 500, x.seq_stride = RA_STRIDE_REPEAT, x.head_stride = 1; }),
                 {name + ".seq_stride", digits(field.columns)}});
    t.push_back({"out is " + name,
                 {&kMhaForward},
                 [=](Call& c) { c.mha_forward.out.data = (c.mha_forward.*field.forward).data; },
                 {"out", name, kOverlap}});
    t.push_back({"activations are in " + name,
                 {&kMhaForward},
                 [=](Call& c) { c.mha_forward.activations = (c.mha_forward.*field.forward).data; },
                 {"activations", name, kOverlap}});
  }
  const std::pair<const char*, ra_tensor B::*> gradients[] = {
      {"dx", &B::dx}, {"dw_q", &B::dw_q}, {"dw_k", &B::dw_k}, {"dw_v", &B::dw_v}, {"dw_o", &B::dw_o}};
  for (const auto& [name, field] : gradients) {
    for (const Field& input : inputs)
      t.push_back({std::string(name) + " is " + input.name,
                   {&kMhaBackward},
                   [field = field, input = input.backward](Call& c) {
                     (c.mha_backward.*field).data = (c.mha_backward.*input).data;
                   },
                   {name, input.name, kOverlap}});
    t.push_back(
        {std::string(name) + " lies in the activations",
         {&kMhaBackward},
         [field = field](Call& c) { (c.mha_backward.*field).data = const_cast<void*>(c.mha_backward.activations); },
         {name, "activations", kOverlap}});
    t.push_back({std::string(name) + " is too small",
                 {&kMhaBackward},
                 [field = field](Call& c) { (c.mha_backward.*field).size = 12; },
                 {name, "12"}});
  }
  t.push_back({"out is NULL", {&kMhaForward}, [](Call& c) { c.mha_forward.out.data = nullptr; }, {"out", "NULL"}});
  t.push_back({"dout is NULL", {&kMhaBackward}, [](Call& c) { c.mha_backward.dout.data = nullptr; }, {"dout", "NULL"}});
  const std::pair<const char*, ra_tensor F::*> absent[] = {{"b_q", &F::b_q},       {"b_k", &F::b_k},
                                                           {"b_v", &F::b_v},       {"b_o", &F::b_o},
                                                           {"norm_q", &F::norm_q}, {"norm_k", &F::norm_k}};
  for (const auto& [name, field] : absent) {
    t.push_back({std::string(name) + " is set where the layer has none",
                 {&kMhaForward},
                 [field = field](Call& c) { (c.mha_forward.*field).data = c.arena.region(30); },
                 {name, "NULL"}});
    t.push_back({std::string(name) + " is missing",
                 {&kMhaForward},
                 [field = field](Call& c) {
                   c.mha.has_qkv_bias = c.mha.has_out_bias = c.mha.normalize_heads = 1;
                   for (const auto other : {&F::b_q, &F::b_k, &F::b_v, &F::b_o, &F::norm_q, &F::norm_k})
                     if (other != field) (c.mha_forward.*other).data = c.arena.region(30);
                 },
                 {name, "NULL"}});
  }
  t.push_back({"db_q where the layer has none",
               {&kMhaBackward},
               [](Call& c) { c.mha_backward.db_q.data = c.arena.region(30); },
               {"db_q", "NULL"}});

  const auto with = [&](const std::string& name, auto change, std::vector<std::string> words) {
    t.push_back({name, both, [=](Call& c) { change(c.mha_forward), change(c.mha_backward); }, std::move(words)});
  };
  with("activations are NULL", [](auto& a) { a.activations = nullptr; }, {"activations", "NULL"});
  with("activations_size is 16", [](auto& a) { a.activations_size = 16; }, {"activations_size", "16"});
  with("workspace is NULL, its size is not", [](auto& a) { a.workspace_size = 64; }, {"workspace", "NULL", "64"});
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4096}})
    t.push_back({"workspace_size is " + digits(size),
                 both,
                 [=](Call& c) {
                   c.use_workspace();
                   c.mha_forward.workspace_size = c.mha_backward.workspace_size = size;
                 },
                 {"workspace_size", digits(size)}});
  t.push_back({"activations where none are kept",
               both,
               [](Call& c) { c.mha.checkpoint = RA_CHECKPOINT_INPUT; },
               {"activations", "NULL"}});
  with("stream on the CPU", [](auto& a) { a.stream = reinterpret_cast<ra_stream>(&a); }, {"stream", "NULL"});
  out_of_range(t, {&kMhaBackward}, &Call::mha_backward, &B::accumulate, "accumulate", {-1, 2}, {"0", "1"});
  out_of_range(t, {&kMhaBackward}, &Call::mha_backward, &B::reduce, "reduce", {-1, 2}, {"0", "1"});

  using R = ra_reduce_args;
  out_of_range(t, {&kAllReduce}, &Call::reduce, &R::count, "count",
               {std::int64_t{-1}, kMin, kMax, (std::int64_t{1} << 48) + 1}, {"0"});
  out_of_range(t, {&kAllReduce}, &Call::reduce, &R::data_size, "data_size", {std::size_t{1}, std::size_t{399}},
               {"400"});
  t.push_back({"data is NULL", {&kAllReduce}, [](Call& c) { c.reduce.data = nullptr; }, {"data", "NULL"}});
  t.push_back(
      {"data is misaligned",
       {&kAllReduce},
       [](Call& c) { c.reduce.data = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(c.reduce.data) + 2); },
       {"data", "aligned"}});
  t.push_back({"workspace of a sum is NULL, its size is not",
               {&kAllReduce},
               [](Call& c) { c.reduce.workspace_size = 64; },
               {"workspace", "NULL", "64"}});
  t.push_back({"stream of a sum on the CPU",
               {&kAllReduce},
               [](Call& c) { c.reduce.stream = reinterpret_cast<ra_stream>(&c); },
               {"stream", "NULL"}});
}

Table make_table() {
  Table table;
  null_pointers(table);
  struct_sizes(table);
  contexts(table);
  rates(table);
  problems(table);
  documents(table);
  modifiers(table);
  tensors(table);
  overlaps(table);
  arguments(table);
  layers(table);
  return table;
}

// ---------------------------------------------------------------- checks

bool has_word(const std::string& message, const std::string& word) {
  const auto inside = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (std::size_t at = message.find(word); at != std::string::npos; at = message.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || !inside(message[at - 1]) || !inside(word.front())) &&
        (end == message.size() || !inside(message[end])))
      return true;
  }
  return false;
}

bool has_one_of(const std::string& message, const std::string& alternatives) {
  for (std::size_t begin = 0;;) {
    const std::size_t end = alternatives.find('|', begin);
    if (has_word(message, alternatives.substr(begin, end - begin))) return true;
    if (end == std::string::npos) return false;
    begin = end + 1;
  }
}

template <class Struct>
bool same_bytes(const Struct& a, const Struct& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

void run_row(const Row& row, const Function& function, ra_context* context, std::int32_t world_size,
             std::int32_t rank) {
  SCOPED_TRACE(std::string(function.name) + ", " + row.name + ", rank " + std::to_string(rank) + " of " +
               std::to_string(world_size));
  Call call(context, world_size, rank);
  row.breaks(call);
  const std::vector<std::byte> memory = call.arena.copy();
  const ra_memory_requirements requirements = call.requirements;
  const ra_context_info info = call.info;
  const ra_capabilities capabilities = call.capabilities;
  const ra_call_statistics statistics = call.statistics;
  const ra_unique_id id = call.id;

  Error error;
  EXPECT_STREQ(ra_get_status_name(function.call(call, &error, row.status)), ra_get_status_name(row.status)) << error;
  EXPECT_EQ(error.status, row.status);
  EXPECT_EQ(error.cuda_error, 0);
  EXPECT_EQ(error.nccl_result, 0);
  EXPECT_TRUE(error.rank == -1 || error.rank == rank) << error.rank;
  EXPECT_FALSE(error.text().empty());
  for (const std::string& word : row.words) {
    EXPECT_TRUE(has_one_of(error.text(), word)) << "the message lacks \"" << word << "\": " << error.text();
  }

  EXPECT_EQ(function.call(call, nullptr, row.status), row.status) << "where no ra_error is given";

  EXPECT_TRUE(call.arena.equals(memory));
  EXPECT_TRUE(same_bytes(requirements, call.requirements));
  EXPECT_TRUE(same_bytes(info, call.info));
  EXPECT_TRUE(same_bytes(capabilities, call.capabilities));
  EXPECT_TRUE(same_bytes(statistics, call.statistics));
  EXPECT_TRUE(same_bytes(id, call.id));
}

void expect_usable(ra_context* context, std::int32_t world_size, std::int32_t rank) {
  Error error;
  EXPECT_EQ(ra_get_async_error(context, &error), RA_STATUS_SUCCESS) << error;
  const Shard shard(make_desc(kSeqlen), world_size, rank);
  EXPECT_EQ(shard.forward(context, &error), RA_STATUS_SUCCESS) << error;
  EXPECT_EQ(error.status, RA_STATUS_SUCCESS);
  EXPECT_EQ(error.rank, -1);
  EXPECT_EQ(error.cuda_error, 0);
  EXPECT_EQ(error.nccl_result, 0);
  EXPECT_EQ(error.text(), "");
  EXPECT_FALSE(shard.out.untouched());
}

bool needs_context(const Function& function) {
  for (const Function* other :
       {&kAbortContext, &kGetAsyncError, &kCheckSupport, &kGetMemoryRequirements, &kGetCallStatistics, &kForward,
        &kBackward, &kMhaForward, &kMhaBackward, &kGetMhaRequirements, &kAllReduce, &kRunSelfTest}) {
    if (other == &function) return true;
  }
  return false;
}

TEST(BadInput, IsRefusedByNameAndChangesNothing) {
  const Table table = make_table();
  std::size_t rows = 0, calls = 0;
  Ranks alone(1);
  ASSERT_TRUE(alone.complete());
  for (const Row& row : table) {
    if (!sampled_if_alone(rows++)) continue;
    for (const Function* function : row.functions) {
      run_row(row, *function, alone[0], 1, 0);
      ++calls;
    }
    expect_usable(alone[0], 1, 0);
  }
  std::cout << table.size() << " bad inputs, " << calls << " refused calls\n";
  EXPECT_GE(table.size(), 300U);
}

// The same where other ranks exist: a refused call is not seen by them, so the group stays in step.
TEST(BadInput, LeavesTheGroupInStep) {
  const Table table = make_table();
  for_each_rank(2, [&](std::int32_t rank, ra_context* context) {
    std::size_t rows = 0;
    for (const Row& row : table) {
      if (!sampled_if_alone(rows++)) continue;
      for (const Function* function : row.functions) {
        if (needs_context(*function)) run_row(row, *function, context, 2, rank);
      }
    }
    expect_usable(context, 2, rank);
  });
}

// One rank's refused call does not disturb a peer that is waiting in a valid one.
TEST(BadInput, OfOneRankIsItsOwn) {
  for_each_rank(2, [](std::int32_t rank, ra_context* context) {
    if (rank == 1) {
      Call call(context, 2, rank);
      call.desc.head_dim = 320;
      EXPECT_EQ(kForward.call(call, nullptr, RA_STATUS_SUCCESS), RA_STATUS_INVALID_ARGUMENT);
    }
    expect_usable(context, 2, rank);
  });
}

// The valid calls from which the rows start do succeed, else the table would show nothing.
TEST(BadInput, IsMadeFromValidCalls) {
  Ranks alone(1);
  ASSERT_TRUE(alone.complete());
  for (const Function* function : {&kCreateUniqueId,     &kCreateContext,     &kGetAsyncError,
                                   &kGetCapabilities,    &kCheckSupport,      &kGetMemoryRequirements,
                                   &kEstimateMemory,     &kGetCallStatistics, &kGetShardLength,
                                   &kGetShardPosition,   &kGetShardPositions, &kGetDropoutMask,
                                   &kSplitSequence,      &kJoinSequence,      &kForward,
                                   &kBackward,           &kMhaForward,        &kMhaBackward,
                                   &kGetMhaRequirements, &kAllReduce,         &kMergeAttention,
                                   &kRunSelfTest}) {
    for (const bool with_workspace : {false, true}) {
      for (const bool with_documents : {false, true}) {
        SCOPED_TRACE(function->name);
        Call call(alone[0], 1, 0);
        if (with_workspace) call.use_workspace();
        if (with_documents) {
          call.use_documents();
          call.use_kv_lengths();
          if (std::ranges::count(kTakeLayer, function) > 0) call.desc.document_offsets_kv = nullptr;
        }
        for (std::size_t region = 0; region < Arena::kRegions; ++region)
          std::memset(call.arena.region(region), 0, kRegion);
        Error error;
        EXPECT_EQ(function->call(call, &error, RA_STATUS_INTERNAL_ERROR), RA_STATUS_SUCCESS) << error;
        EXPECT_EQ(function->call(call, nullptr, RA_STATUS_INTERNAL_ERROR), RA_STATUS_SUCCESS);
      }
    }
  }
}

}  // namespace
}  // namespace ringattn::test
