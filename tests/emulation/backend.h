// Ranks with GPUs, emulated or not, and a problem's tensors in their memory.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/reference/oracle.h"
#include "support/cuda.h"
#include "support/oracle_run.h"
#include "support/random.h"
#include "support/ranks.h"

namespace ringattn::test {

// Of a rank that has a GPU, with the library's own engine.
inline ra_context_config make_cuda_config(std::int32_t world_size, std::int32_t rank, const ra_unique_id* id,
                                          std::int32_t transport, int device) {
  ra_context_config config = make_config(world_size, rank, id);
  config.engine = nullptr;
  config.num_threads = 0;
  config.backend = RA_BACKEND_CUDA;
  config.transport = transport;
  config.device = device;
  return config;
}

// Contexts of RA_BACKEND_CUDA: rank r is on device r modulo `devices`.
class CudaRanks {
 public:
  CudaRanks(std::int32_t world_size, std::int32_t transport, int devices, const ConfigTweak& tweak = {})
      : devices_(devices), id_(make_unique_id(transport)), ranks_(world_size, [&](ra_context_config& config) {
          config.backend = RA_BACKEND_CUDA;
          config.transport = transport;
          config.device = config.rank % devices;
          config.num_threads = 0;
          config.unique_id = id_.text;
          if (tweak) tweak(config);
        }) {}

  CudaRanks(const CudaRanks&) = delete;
  CudaRanks& operator=(const CudaRanks&) = delete;
  // All at once: one that leaves alone waits a little for the others.
  ~CudaRanks() {
    run_threads(ranks_.world_size(), [&](std::int32_t rank) { ranks_.destroy(rank); });
  }

  int devices() const { return devices_; }
  Ranks& operator*() { return ranks_; }
  Ranks* operator->() { return &ranks_; }

 private:
  int devices_;
  ra_unique_id id_;
  Ranks ranks_;
};

// One rank's shards of a problem, on its device.
class DeviceShards {
 public:
  DeviceShards(const reference::Oracle& oracle, int world_size, int rank, int device)
      : oracle_(oracle),
        description_(oracle.problem),
        host_(oracle, world_size, rank),
        device_(device),
        lse_(static_cast<std::size_t>(oracle.problem.batch * oracle.problem.num_heads_q * row_count(host_.q.pieces))) {
    ok(cudaSetDevice(device));
    for (detail::ShardBuffer* const buffer : all()) buffers_.push_back(allocate(buffer->bytes.size()));
    lse_buffer_ = allocate(lse_.size() * sizeof(float));
    if (oracle.problem.has_key_bias) key_bias_ = allocate(host_.key_bias.bytes.size());
    if (oracle.problem.num_sinks > 0) {
      sinks_ = allocate(host_.sinks.size() * sizeof(float));
      dsinks_ = allocate(host_.sinks.size() * sizeof(float));
    }
  }
  DeviceShards(const DeviceShards&) = delete;
  DeviceShards& operator=(const DeviceShards&) = delete;
  ~DeviceShards() {
    for (void* const buffer : buffers_) ok(cudaFree(buffer));
    for (float* const buffer : {lse_buffer_, key_bias_, sinks_, dsinks_}) ok(cudaFree(buffer));
  }

  void upload(cudaStream_t stream) {
    for (std::size_t i = 0; i < inputs; ++i) copy(buffers_[i], all()[i]->bytes, cudaMemcpyHostToDevice, stream);
    upload_modifiers(stream);
  }
  void upload_zeros(cudaStream_t stream) {
    for (std::size_t i = 0; i < inputs; ++i)
      copy(buffers_[i], std::vector<std::byte>(all()[i]->bytes.size()), cudaMemcpyHostToDevice, stream);
    upload_modifiers(stream);
  }
  ra_forward_args forward_args(cudaStream_t stream) const {
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q.data = buffers_[0];
    args.k.data = buffers_[1];
    args.v.data = buffers_[2];
    args.out.data = buffers_[4];
    args.lse = lse_buffer_;
    args.key_bias = key_bias_;
    args.sinks = sinks_;
    args.stream = stream;
    return args;
  }
  ra_backward_args backward_args(cudaStream_t stream) const {
    ra_backward_args args;
    ra_init_backward_args(&args, sizeof args);
    args.q.data = buffers_[0];
    args.k.data = buffers_[1];
    args.v.data = buffers_[2];
    args.dout.data = buffers_[3];
    args.out.data = buffers_[4];
    args.dq.data = buffers_[5];
    args.dk.data = buffers_[6];
    args.dv.data = buffers_[7];
    args.dsinks = dsinks_;
    args.lse = lse_buffer_;
    args.key_bias = key_bias_;
    args.sinks = sinks_;
    args.stream = stream;
    return args;
  }
  ra_status forward(ra_context* context, cudaStream_t stream, ra_error* error) const {
    const ra_forward_args args = forward_args(stream);
    return ra_forward(context, &description_.desc, &args, error);
  }
  ra_status backward(ra_context* context, cudaStream_t stream, ra_error* error) const {
    const ra_backward_args args = backward_args(stream);
    return ra_backward(context, &description_.desc, &args, error);
  }
  // Into this rank's places of the results; waits for the stream.
  void download(Results& results, cudaStream_t stream) {
    for (std::size_t i = inputs; i < buffers_.size(); ++i)
      copy(all()[i]->bytes, buffers_[i], cudaMemcpyDeviceToHost, stream);
    if (!lse_.empty())
      ok(cudaMemcpyAsync(lse_.data(), lse_buffer_, lse_.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
    if (dsinks_ != nullptr)
      ok(cudaMemcpyAsync(host_.dsinks.data(), dsinks_, host_.dsinks.size() * sizeof(float), cudaMemcpyDeviceToHost,
                         stream));
    ok(cudaStreamSynchronize(stream));
    results.dsinks[static_cast<std::size_t>(host_.rank)].assign(host_.dsinks.begin(), host_.dsinks.end());
    host_.out.join(results.out);
    host_.dq.join(results.dq);
    host_.dk.join(results.dk);
    host_.dv.join(results.dv);
    const Problem& p = oracle_.problem;
    const std::int64_t rows = row_count(host_.q.pieces);
    std::size_t n = 0;
    for (std::int64_t head = 0; head < p.batch * p.num_heads_q; ++head)
      for (std::int64_t i = 0; i < rows; ++i, ++n)
        results.lse[static_cast<std::size_t>(head * p.seqlen_q + row_position(p, Side::query, host_.q.pieces, i))] =
            static_cast<double>(lse_[n]);
  }
  const ra_attention_desc& desc() const { return description_.desc; }
  int device() const { return device_; }

 private:
  static constexpr std::size_t inputs = 4;
  std::vector<detail::ShardBuffer*> all() {
    return {&host_.q, &host_.k, &host_.v, &host_.dout, &host_.out, &host_.dq, &host_.dk, &host_.dv};
  }
  void upload_modifiers(cudaStream_t stream) {
    if (key_bias_ != nullptr) copy(key_bias_, host_.key_bias.bytes, cudaMemcpyHostToDevice, stream);
    if (sinks_ != nullptr)
      ok(cudaMemcpyAsync(sinks_, host_.sinks.data(), host_.sinks.size() * sizeof(float), cudaMemcpyHostToDevice,
                         stream));
  }
  static float* allocate(std::size_t size) {
    void* data = nullptr;
    ok(cudaMalloc(&data, size));
    return static_cast<float*>(data);
  }
  static void copy(void* to, const std::vector<std::byte>& from, cudaMemcpyKind kind, cudaStream_t stream) {
    if (!from.empty()) ok(cudaMemcpyAsync(to, from.data(), from.size(), kind, stream));
  }
  static void copy(std::vector<std::byte>& to, const void* from, cudaMemcpyKind kind, cudaStream_t stream) {
    if (!to.empty()) ok(cudaMemcpyAsync(to.data(), from, to.size(), kind, stream));
  }

  const reference::Oracle& oracle_;
  const Description description_;
  detail::Shards host_;
  int device_;
  std::vector<float> lse_;
  std::vector<void*> buffers_;
  float* lse_buffer_ = nullptr;
  float *key_bias_ = nullptr, *sinks_ = nullptr, *dsinks_ = nullptr;  // of problems that have them
};

// A problem that travels all the way round, in bfloat16 with gradients rounded, small. Gathered, it has two parts of two chunks.
inline reference::Oracle travelling_oracle(int world_size, std::uint64_t seed = 1, Schedule schedule = Schedule::ring) {
  Problem p;
  p.seqlen_q = p.seqlen_kv = 6 * world_size;
  p.num_heads_q = 2;
  p.head_dim = p.head_dim_v = 8;
  p.documents = {{0, p.seqlen_q, 0, p.seqlen_kv}};
  p.num_chunks = 2;
  p.dtype = p.out_dtype = p.grad_dtype = DType::bfloat16;
  p.softmax_scale = 0.25F;
  p.schedule = schedule;
  p.gather_bytes = 1;
  reference::Random random(seed);
  return {p, random};
}

// Two streams on a rank's device.
struct Streams {
  explicit Streams(int device) : first(make_stream(device)), second(make_stream(device)) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  ~Streams() {
    ok(cudaStreamDestroy(first));
    ok(cudaStreamDestroy(second));
  }
  cudaStream_t first, second;
};

// Both passes, each in a stream of its own. `then` is called on every rank at the end.
inline void run_both_passes(CudaRanks& ranks, const reference::Oracle& oracle, Results& results,
                            const std::function<void(ra_context*)>& then = {}) {
  ranks->run([&](std::int32_t rank, ra_context* context) {
    const int device = rank % ranks.devices();
    Streams streams(device);
    DeviceShards shards(oracle, ranks->world_size(), rank, device);
    shards.upload(streams.first);
    Error error;
    EXPECT_EQ(shards.forward(context, streams.first, &error), RA_STATUS_SUCCESS) << error;
    EXPECT_EQ(shards.backward(context, streams.second, &error), RA_STATUS_SUCCESS) << error;
    shards.download(results, streams.second);
    if (then) then(context);
  });
}

// Of up to so many ranks.
constexpr std::size_t most_ranks = 8;
inline Results results_for(const reference::Oracle& oracle) {
  return {std::vector<double>(oracle.out.exact.size()),
          std::vector<double>(oracle.lse.exact.size()),
          std::vector<double>(oracle.dq.exact.size()),
          std::vector<double>(oracle.dk.exact.size()),
          std::vector<double>(oracle.dv.exact.size()),
          std::vector(most_ranks, std::vector<double>(oracle.dsinks.exact.size()))};
}

}  // namespace ringattn::test
