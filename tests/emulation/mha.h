// A rank's layer of multi-head attention (support/mha.h) with its tensors on a device, emulated or not.
#pragma once

#include <map>
#include <vector>

#include "emulation/backend.h"
#include "support/mha.h"

namespace ringattn::test {

class DeviceMha {
 public:
  DeviceMha(const ra_attention_desc& desc, const ra_mha_desc& mha, std::int32_t world_size, std::int32_t rank,
            int device, Layout layout = Layout::packed, std::uint64_t seed = 1)
      : shard(desc, mha, world_size, rank, layout, seed), device_(device) {
    for (const Tensor* t : tensors()) allocate(t->bytes.get(), t->size);
  }
  DeviceMha(const DeviceMha&) = delete;
  DeviceMha& operator=(const DeviceMha&) = delete;
  ~DeviceMha() {
    for (const auto& [host, on_device] : places_) ok(cudaFree(on_device));
  }

  // What `context` needs to keep.
  bool make_room(const ra_context* context) {
    if (!shard.make_room(context)) return false;
    allocate(shard.activations.bytes.get(), shard.activations.size);
    return true;
  }
  void make_room(const ra_mha_requirements& needed) {
    shard.make_room(needed);
    allocate(shard.activations.bytes.get(), shard.activations.size);
  }
  void upload(cudaStream_t stream) const {
    for (const Tensor* t : tensors()) copy(place_of(t->bytes.get()), t->bytes.get(), t->size, stream);
    const Tensor& kept = shard.activations;
    copy(place_of(kept.bytes.get()), kept.bytes.get(), kept.size, stream);
  }
  // Waits for the stream.
  void download(cudaStream_t stream) const {
    for (const Tensor* t : tensors()) copy(t->bytes.get(), place_of(t->bytes.get()), t->size, stream);
    ok(cudaStreamSynchronize(stream));
  }

  ra_mha_forward_args forward_args(cudaStream_t stream) const {
    ra_mha_forward_args a = shard.forward_args();
    for (ra_tensor* t :
         {&a.x, &a.w_q, &a.w_k, &a.w_v, &a.w_o, &a.b_q, &a.b_k, &a.b_v, &a.b_o, &a.norm_q, &a.norm_k, &a.out})
      t->data = place_of(t->data);
    a.activations = place_of(a.activations);
    a.stream = stream;
    return a;
  }
  ra_mha_backward_args backward_args(cudaStream_t stream) const {
    ra_mha_backward_args a = shard.backward_args();
    for (ra_tensor* t : {&a.dout, &a.x,    &a.w_q,    &a.w_k,    &a.w_v,  &a.w_o,     &a.b_q,    &a.b_k,
                         &a.b_v,  &a.b_o,  &a.norm_q, &a.norm_k, &a.dx,   &a.dw_q,    &a.dw_k,   &a.dw_v,
                         &a.dw_o, &a.db_q, &a.db_k,   &a.db_v,   &a.db_o, &a.dnorm_q, &a.dnorm_k})
      t->data = place_of(t->data);
    a.activations = place_of(a.activations);
    a.stream = stream;
    return a;
  }
  ra_status forward(ra_context* context, cudaStream_t stream, ra_error* error) const {
    const ra_mha_forward_args a = forward_args(stream);
    return ra_mha_forward(context, &shard.desc, &shard.mha, &a, error);
  }
  ra_status backward(ra_context* context, cudaStream_t stream, ra_error* error, bool reduce = false,
                     bool accumulate = false) const {
    ra_mha_backward_args a = backward_args(stream);
    a.reduce = reduce ? 1 : 0;
    a.accumulate = accumulate ? 1 : 0;
    return ra_mha_backward(context, &shard.desc, &shard.mha, &a, error);
  }

  MhaShard shard;

 private:
  std::vector<const Tensor*> tensors() const {
    std::vector<const Tensor*> all{&shard.x, &shard.dout, &shard.out, &shard.dx};
    for (std::size_t i = 0; i < MhaShard::num_weights; ++i) {
      all.push_back(&shard.weights[i]);
      all.push_back(&shard.gradients[i]);
    }
    return all;
  }
  void allocate(const void* host, std::size_t size) {
    if (size == 0) return;
    void* on_device = nullptr;
    ok(cudaSetDevice(device_));
    ok(cudaMalloc(&on_device, size));
    places_.emplace(host, on_device);
  }
  void* place_of(const void* host) const {
    const auto place = places_.find(host);
    return place == places_.end() ? nullptr : place->second;
  }
  static void copy(void* to, const void* from, std::size_t size, cudaStream_t stream) {
    if (size > 0) ok(cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream));
  }

  int device_;
  std::map<const void*, void*> places_;  // of the host's memory
};

inline ra_attention_desc small_attention(std::int32_t dtype) {
  ra_attention_desc desc = make_desc(44, 4, 8, 2);
  desc.num_heads_kv = 2;
  desc.head_dim_v = 12;
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG;
  desc.num_chunks = 2;
  desc.dtype = dtype;
  return desc;
}
inline ra_mha_desc full_mha(std::int32_t checkpoint = RA_CHECKPOINT_ATTENTION) {
  ra_mha_desc mha = make_mha(20);
  mha.rotary = RA_ROTARY_HALVES;
  mha.has_qkv_bias = mha.has_out_bias = mha.normalize_heads = 1;
  mha.checkpoint = checkpoint;
  return mha;
}

}  // namespace ringattn::test
