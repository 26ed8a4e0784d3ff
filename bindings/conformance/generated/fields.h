// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
#pragma once

#include <json.h>

namespace ringattn::conformance {

constexpr Constant status_constants[] = {
    {"SUCCESS", RA_STATUS_SUCCESS},
    {"INVALID_ARGUMENT", RA_STATUS_INVALID_ARGUMENT},
    {"NOT_SUPPORTED", RA_STATUS_NOT_SUPPORTED},
    {"OUT_OF_MEMORY", RA_STATUS_OUT_OF_MEMORY},
    {"INVALID_STATE", RA_STATUS_INVALID_STATE},
    {"TIMEOUT", RA_STATUS_TIMEOUT},
    {"ABORTED", RA_STATUS_ABORTED},
    {"PEER_LOST", RA_STATUS_PEER_LOST},
    {"MISMATCH", RA_STATUS_MISMATCH},
    {"CUDA_ERROR", RA_STATUS_CUDA_ERROR},
    {"NCCL_ERROR", RA_STATUS_NCCL_ERROR},
    {"INTERNAL_ERROR", RA_STATUS_INTERNAL_ERROR},
};
constexpr Constant backend_constants[] = {
    {"CPU", RA_BACKEND_CPU},
    {"CUDA", RA_BACKEND_CUDA},
};
constexpr Constant transport_constants[] = {
    {"LOCAL", RA_TRANSPORT_LOCAL},
    {"ZEROMQ", RA_TRANSPORT_ZEROMQ},
    {"NCCL", RA_TRANSPORT_NCCL},
};
constexpr Constant encryption_constants[] = {
    {"ON", RA_ENCRYPTION_ON},
    {"OFF", RA_ENCRYPTION_OFF},
};
constexpr Constant dtype_constants[] = {
    {"SAME", RA_DTYPE_SAME},
    {"FLOAT32", RA_DTYPE_FLOAT32},
    {"BFLOAT16", RA_DTYPE_BFLOAT16},
    {"FLOAT16", RA_DTYPE_FLOAT16},
};
constexpr Constant sharding_constants[] = {
    {"CONTIGUOUS", RA_SHARDING_CONTIGUOUS},
    {"ZIGZAG", RA_SHARDING_ZIGZAG},
    {"STRIPED", RA_SHARDING_STRIPED},
};
constexpr Constant mask_constants[] = {
    {"FULL", RA_MASK_FULL},
    {"CAUSAL", RA_MASK_CAUSAL},
};
constexpr Constant mask_alignment_constants[] = {
    {"TOP_LEFT", RA_MASK_ALIGNMENT_TOP_LEFT},
    {"BOTTOM_RIGHT", RA_MASK_ALIGNMENT_BOTTOM_RIGHT},
};
constexpr Constant mask_slice_kind_constants[] = {
    {"FULL", RA_MASK_SLICE_KIND_FULL},
    {"CAUSAL", RA_MASK_SLICE_KIND_CAUSAL},
    {"INVERSE_CAUSAL", RA_MASK_SLICE_KIND_INVERSE_CAUSAL},
    {"BIDIRECTIONAL_CAUSAL", RA_MASK_SLICE_KIND_BIDIRECTIONAL_CAUSAL},
};
constexpr Constant dilation_phase_constants[] = {
    {"BLOCKS_OF_HEADS", RA_DILATION_PHASE_BLOCKS_OF_HEADS},
    {"INTERLEAVED_HEADS", RA_DILATION_PHASE_INTERLEAVED_HEADS},
};
constexpr Constant dilation_padding_constants[] = {
    {"MASKED", RA_DILATION_PADDING_MASKED},
    {"ZERO_KEYS", RA_DILATION_PADDING_ZERO_KEYS},
};
constexpr Constant dilation_gradient_constants[] = {
    {"EXACT", RA_DILATION_GRADIENT_EXACT},
    {"CONSTANT_WEIGHTS", RA_DILATION_GRADIENT_CONSTANT_WEIGHTS},
};
constexpr Constant schedule_constants[] = {
    {"AUTO", RA_SCHEDULE_AUTO},
    {"RING", RA_SCHEDULE_RING},
    {"ALL_GATHER", RA_SCHEDULE_ALL_GATHER},
    {"ALL_TO_ALL", RA_SCHEDULE_ALL_TO_ALL},
    {"HYBRID", RA_SCHEDULE_HYBRID},
    {"PASS_Q", RA_SCHEDULE_PASS_Q},
};
constexpr Constant side_constants[] = {
    {"QUERY", RA_SIDE_QUERY},
    {"KEY_VALUE", RA_SIDE_KEY_VALUE},
};
constexpr Constant log_level_constants[] = {
    {"DEBUG", RA_LOG_LEVEL_DEBUG},
    {"INFO", RA_LOG_LEVEL_INFO},
    {"WARNING", RA_LOG_LEVEL_WARNING},
};
constexpr Constant stride_constants[] = {
    {"PACKED", RA_STRIDE_PACKED},
    {"REPEAT", RA_STRIDE_REPEAT},
};
constexpr Constant rotary_constants[] = {
    {"NONE", RA_ROTARY_NONE},
    {"HALVES", RA_ROTARY_HALVES},
    {"INTERLEAVED", RA_ROTARY_INTERLEAVED},
};
constexpr Constant checkpoint_constants[] = {
    {"ATTENTION", RA_CHECKPOINT_ATTENTION},
    {"ALL", RA_CHECKPOINT_ALL},
    {"INPUT", RA_CHECKPOINT_INPUT},
};

inline void set(ra_context_config &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {
  const auto is = [&](const char *name) { return field == name; };
  if (is("rank")) return void(record.rank = number<int32_t>(value));
  if (is("world_size")) return void(record.world_size = number<int32_t>(value));
  if (is("backend")) return void(record.backend = constant(backend_constants, value));
  if (is("transport")) return void(record.transport = constant(transport_constants, value));
  if (is("device")) return void(record.device = number<int32_t>(value));
  if (is("num_threads")) return void(record.num_threads = number<int32_t>(value));
  if (is("timeout_ms")) return void(record.timeout_ms = number<int64_t>(value));
  if (is("unique_id")) return void(record.unique_id = kept.text(value));
  if (is("bind_address")) return void(record.bind_address = kept.text(value));
  if (is("engine")) return void(record.engine = kept.text(value));
  if (is("num_sms")) return void(record.num_sms = number<int32_t>(value));
  if (is("encryption")) return void(record.encryption = constant(encryption_constants, value));
  if (is("trace_path")) return void(record.trace_path = kept.text(value));
  unknown("ra_context_config", field);
}

inline void set(ra_attention_desc &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {
  const auto is = [&](const char *name) { return field == name; };
  if (is("batch")) return void(record.batch = number<int64_t>(value));
  if (is("seqlen_q")) return void(record.seqlen_q = number<int64_t>(value));
  if (is("seqlen_kv")) return void(record.seqlen_kv = number<int64_t>(value));
  if (is("num_heads_q")) return void(record.num_heads_q = number<int64_t>(value));
  if (is("num_heads_kv")) return void(record.num_heads_kv = number<int64_t>(value));
  if (is("head_dim")) return void(record.head_dim = number<int64_t>(value));
  if (is("head_dim_v")) return void(record.head_dim_v = number<int64_t>(value));
  if (is("dtype")) return void(record.dtype = constant(dtype_constants, value));
  if (is("out_dtype")) return void(record.out_dtype = constant(dtype_constants, value));
  if (is("grad_dtype")) return void(record.grad_dtype = constant(dtype_constants, value));
  if (is("sharding")) return void(record.sharding = constant(sharding_constants, value));
  if (is("stripe")) return void(record.stripe = number<int64_t>(value));
  if (is("mask")) return void(record.mask = constant(mask_constants, value));
  if (is("mask_alignment")) return void(record.mask_alignment = constant(mask_alignment_constants, value));
  if (is("window_left")) return void(record.window_left = number<int64_t>(value));
  if (is("window_right")) return void(record.window_right = number<int64_t>(value));
  if (is("softmax_scale")) return void(record.softmax_scale = number<float>(value));
  if (is("softcap")) return void(record.softcap = number<float>(value));
  if (is("document_offsets_q")) return void((record.num_documents = number_of(value) - 1, record.document_offsets_q = kept.list(value)));
  if (is("document_offsets_kv")) return void(record.document_offsets_kv = kept.list(value));
  if (is("kv_lengths")) return void(record.kv_lengths = kept.list(value));
  if (is("schedule")) return void(record.schedule = constant(schedule_constants, value));
  if (is("num_chunks")) return void(record.num_chunks = number<int64_t>(value));
  if (is("gather_bytes")) return void(record.gather_bytes = number<int64_t>(value));
  if (is("alibi_slopes")) return void(record.alibi_slopes = kept.reals(value));
  if (is("num_sinks")) return void(record.num_sinks = number<int64_t>(value));
  if (is("dropout_probability")) return void(record.dropout_probability = number<float>(value));
  if (is("has_key_bias")) return void(record.has_key_bias = number<int32_t>(value));
  if (is("dropout_seed")) return void(record.dropout_seed = number<int64_t>(value));
  if (is("dropout_offset")) return void(record.dropout_offset = number<int64_t>(value));
  if (is("mask_slices")) return void((record.num_mask_slices = number_of(value) / 5, record.mask_slices = kept.list(value)));
  if (is("dilation_phase")) return void(record.dilation_phase = constant(dilation_phase_constants, value));
  if (is("segment_lengths")) return void((record.num_branches = static_cast<int32_t>(number_of(value)), record.segment_lengths = kept.list(value)));
  if (is("dilations")) return void(record.dilations = kept.list(value));
  if (is("dilation_padding")) return void(record.dilation_padding = constant(dilation_padding_constants, value));
  if (is("dilation_gradient")) return void(record.dilation_gradient = constant(dilation_gradient_constants, value));
  unknown("ra_attention_desc", field);
}

inline void set(ra_machine_rates &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {
  const auto is = [&](const char *name) { return field == name; };
  if (is("forward_flops")) return void(record.forward_flops = number<double>(value));
  if (is("backward_flops")) return void(record.backward_flops = number<double>(value));
  if (is("link_bytes")) return void(record.link_bytes = number<double>(value));
  if (is("link_seconds")) return void(record.link_seconds = number<double>(value));
  unknown("ra_machine_rates", field);
}

inline void set(ra_mha_desc &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {
  const auto is = [&](const char *name) { return field == name; };
  if (is("d_model")) return void(record.d_model = number<int64_t>(value));
  if (is("rotary")) return void(record.rotary = constant(rotary_constants, value));
  if (is("rotary_base")) return void(record.rotary_base = number<float>(value));
  if (is("rotary_fraction")) return void(record.rotary_fraction = number<float>(value));
  if (is("has_qkv_bias")) return void(record.has_qkv_bias = number<int32_t>(value));
  if (is("has_out_bias")) return void(record.has_out_bias = number<int32_t>(value));
  if (is("normalize_heads")) return void(record.normalize_heads = number<int32_t>(value));
  if (is("norm_epsilon")) return void(record.norm_epsilon = number<float>(value));
  if (is("checkpoint")) return void(record.checkpoint = constant(checkpoint_constants, value));
  unknown("ra_mha_desc", field);
}

inline void set(ra_kv_cache_desc &record, const std::string &field, const Json &value, [[maybe_unused]] Kept &kept) {
  const auto is = [&](const char *name) { return field == name; };
  if (is("page_tokens")) return void(record.page_tokens = number<int64_t>(value));
  if (is("num_pages")) return void(record.num_pages = number<int64_t>(value));
  if (is("num_heads_kv")) return void(record.num_heads_kv = number<int64_t>(value));
  if (is("head_dim")) return void(record.head_dim = number<int64_t>(value));
  if (is("head_dim_v")) return void(record.head_dim_v = number<int64_t>(value));
  if (is("dtype")) return void(record.dtype = constant(dtype_constants, value));
  unknown("ra_kv_cache_desc", field);
}

}  // namespace ringattn::conformance
