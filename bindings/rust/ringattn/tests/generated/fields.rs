// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.

use ringattn::*;
use serde_json::Value;

use crate::json::{choice, list, number, text};

/// Sets a field by its name in C.
pub fn set_context_config(record: &mut ContextConfig, field: &str, value: &Value) {
    match field {
        "rank" => record.rank = number(value),
        "world_size" => record.world_size = number(value),
        "backend" => record.backend = choice(value),
        "transport" => record.transport = choice(value),
        "device" => record.device = number(value),
        "num_threads" => record.num_threads = number(value),
        "timeout_ms" => record.timeout_ms = number(value),
        "unique_id" => record.unique_id = text(value).map(UniqueId::from),
        "bind_address" => record.bind_address = text(value),
        "engine" => record.engine = text(value),
        "num_sms" => record.num_sms = number(value),
        "encryption" => record.encryption = choice(value),
        "trace_path" => record.trace_path = text(value),
        _ => panic!("ra_context_config has no field {field}"),
    }
}

/// Sets a field by its name in C.
pub fn set_attention_desc(record: &mut AttentionDesc, field: &str, value: &Value) {
    match field {
        "batch" => record.batch = number(value),
        "seqlen_q" => record.seqlen_q = number(value),
        "seqlen_kv" => record.seqlen_kv = number(value),
        "num_heads_q" => record.num_heads_q = number(value),
        "num_heads_kv" => record.num_heads_kv = number(value),
        "head_dim" => record.head_dim = number(value),
        "head_dim_v" => record.head_dim_v = number(value),
        "dtype" => record.dtype = choice(value),
        "out_dtype" => record.out_dtype = choice(value),
        "grad_dtype" => record.grad_dtype = choice(value),
        "sharding" => record.sharding = choice(value),
        "stripe" => record.stripe = number(value),
        "mask" => record.mask = choice(value),
        "mask_alignment" => record.mask_alignment = choice(value),
        "window_left" => record.window_left = number(value),
        "window_right" => record.window_right = number(value),
        "softmax_scale" => record.softmax_scale = number(value),
        "softcap" => record.softcap = number(value),
        "document_offsets_q" => record.document_offsets_q = list(value),
        "document_offsets_kv" => record.document_offsets_kv = list(value),
        "kv_lengths" => record.kv_lengths = list(value),
        "schedule" => record.schedule = choice(value),
        "num_chunks" => record.num_chunks = number(value),
        "gather_bytes" => record.gather_bytes = number(value),
        "alibi_slopes" => record.alibi_slopes = list(value),
        "num_sinks" => record.num_sinks = number(value),
        "dropout_probability" => record.dropout_probability = number(value),
        "has_key_bias" => record.has_key_bias = number(value),
        "dropout_seed" => record.dropout_seed = number(value),
        "dropout_offset" => record.dropout_offset = number(value),
        "mask_slices" => record.mask_slices = list(value),
        "dilation_phase" => record.dilation_phase = choice(value),
        "segment_lengths" => record.segment_lengths = list(value),
        "dilations" => record.dilations = list(value),
        "dilation_padding" => record.dilation_padding = choice(value),
        "dilation_gradient" => record.dilation_gradient = choice(value),
        _ => panic!("ra_attention_desc has no field {field}"),
    }
}

/// Sets a field by its name in C.
pub fn set_machine_rates(record: &mut MachineRates, field: &str, value: &Value) {
    match field {
        "forward_flops" => record.forward_flops = number(value),
        "backward_flops" => record.backward_flops = number(value),
        "link_bytes" => record.link_bytes = number(value),
        "link_seconds" => record.link_seconds = number(value),
        _ => panic!("ra_machine_rates has no field {field}"),
    }
}

/// Sets a field by its name in C.
pub fn set_mha_desc(record: &mut MhaDesc, field: &str, value: &Value) {
    match field {
        "d_model" => record.d_model = number(value),
        "rotary" => record.rotary = choice(value),
        "rotary_base" => record.rotary_base = number(value),
        "rotary_fraction" => record.rotary_fraction = number(value),
        "has_qkv_bias" => record.has_qkv_bias = number(value),
        "has_out_bias" => record.has_out_bias = number(value),
        "normalize_heads" => record.normalize_heads = number(value),
        "norm_epsilon" => record.norm_epsilon = number(value),
        "checkpoint" => record.checkpoint = choice(value),
        _ => panic!("ra_mha_desc has no field {field}"),
    }
}

/// Sets a field by its name in C.
pub fn set_kv_cache_desc(record: &mut KvCacheDesc, field: &str, value: &Value) {
    match field {
        "page_tokens" => record.page_tokens = number(value),
        "num_pages" => record.num_pages = number(value),
        "num_heads_kv" => record.num_heads_kv = number(value),
        "head_dim" => record.head_dim = number(value),
        "head_dim_v" => record.head_dim_v = number(value),
        "dtype" => record.dtype = choice(value),
        _ => panic!("ra_kv_cache_desc has no field {field}"),
    }
}
