// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.
#pragma once

// For tests that must know every field.
constexpr const char *attention_desc_fields[] = {
    "batch",
    "seqlen_q",
    "seqlen_kv",
    "num_heads_q",
    "num_heads_kv",
    "head_dim",
    "head_dim_v",
    "dtype",
    "out_dtype",
    "grad_dtype",
    "sharding",
    "stripe",
    "mask",
    "mask_alignment",
    "window_left",
    "window_right",
    "softmax_scale",
    "softcap",
    "num_documents",
    "document_offsets_q",
    "document_offsets_kv",
    "kv_lengths",
    "schedule",
    "num_chunks",
    "gather_bytes",
};
