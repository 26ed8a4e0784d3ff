// Growth of the public structs: how a struct of a caller with an older or newer header is read, written and initialised.
// Its defaults stand here, once.
#pragma once

#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace ringattn::api {

template <class T>
struct StructTraits;  // name, and defaults over zeros

template <class T>
T defaults() {
  T value;
  std::memset(&value, 0, sizeof value);
  StructTraits<T>::fill(value);
  value.struct_size = sizeof value;
  return value;
}

template <class T>
void init(T *target, std::size_t struct_size) noexcept {
  if (target == nullptr || struct_size < sizeof target->struct_size) return;
  const T value = defaults<T>();
  std::memset(target, 0, struct_size);
  std::memcpy(target, &value, struct_size < sizeof value ? struct_size : sizeof value);
  target->struct_size = struct_size;
}

// The size that the caller gave, checked. `name` is the parameter's.
template <class T>
std::size_t checked_size(const T *source, const char *name) {
  constexpr std::size_t most = 65536;
  require(source != nullptr, name, " is NULL; must point to a ", StructTraits<T>::name);
  const std::size_t size = source->struct_size;
  require(size > sizeof size && size <= most, name, "->struct_size is ", size, "; must be sizeof(",
          StructTraits<T>::name, ") = ", sizeof(T), " (call its ra_init_ function)");
  const auto *bytes = reinterpret_cast<const unsigned char *>(source);
  for (std::size_t i = sizeof(T); i < size; ++i)
    require(bytes[i] == 0, name, "->struct_size is ", size, " and byte ", i, " is set; this library knows ", sizeof(T),
            " bytes of ", StructTraits<T>::name);
  return size;
}

template <class T>
T read(const T *source, const char *name) {
  const std::size_t size = checked_size(source, name);
  T value = defaults<T>();
  std::memcpy(&value, source, size < sizeof value ? size : sizeof value);
  return value;
}

template <class T>
void write(T *target, const char *name, T value) {
  const std::size_t size = checked_size(target, name);
  value.struct_size = size;
  std::memcpy(target, &value, size < sizeof value ? size : sizeof value);
}

template <>
struct StructTraits<ra_context_config> {
  static constexpr const char *name = "ra_context_config";
  static void fill(ra_context_config &c) { c.world_size = 1; }
};
template <>
struct StructTraits<ra_context_info> {
  static constexpr const char *name = "ra_context_info";
  static void fill(ra_context_info &) {}
};
template <>
struct StructTraits<ra_capabilities> {
  static constexpr const char *name = "ra_capabilities";
  static void fill(ra_capabilities &) {}
};
template <>
struct StructTraits<ra_attention_desc> {
  static constexpr const char *name = "ra_attention_desc";
  static void fill(ra_attention_desc &d) {
    d.batch = 1;
    d.seqlen_q = -1;  // refused: 0 is legal, and none that was forgotten
    d.seqlen_kv = -1;
    d.num_heads_q = 1;
    d.dtype = RA_DTYPE_FLOAT32;
    d.stripe = 1;
    d.mask_alignment = RA_MASK_ALIGNMENT_BOTTOM_RIGHT;
    d.window_left = -1;
    d.window_right = -1;
  }
};
template <>
struct StructTraits<ra_memory_requirements> {
  static constexpr const char *name = "ra_memory_requirements";
  static void fill(ra_memory_requirements &) {}
};
template <>
struct StructTraits<ra_machine_rates> {
  static constexpr const char *name = "ra_machine_rates";
  static void fill(ra_machine_rates &) {}
};
template <>
struct StructTraits<ra_time_estimate> {
  static constexpr const char *name = "ra_time_estimate";
  static void fill(ra_time_estimate &) {}
};
template <>
struct StructTraits<ra_call_statistics> {
  static constexpr const char *name = "ra_call_statistics";
  static void fill(ra_call_statistics &) {}
};
template <>
struct StructTraits<ra_sequence_args> {
  static constexpr const char *name = "ra_sequence_args";
  static void fill(ra_sequence_args &) {}
};
template <>
struct StructTraits<ra_forward_args> {
  static constexpr const char *name = "ra_forward_args";
  static void fill(ra_forward_args &) {}
};
template <>
struct StructTraits<ra_backward_args> {
  static constexpr const char *name = "ra_backward_args";
  static void fill(ra_backward_args &) {}
};
template <>
struct StructTraits<ra_mha_desc> {
  static constexpr const char *name = "ra_mha_desc";
  static void fill(ra_mha_desc &m) {
    m.rotary_base = 10000;
    m.rotary_fraction = 1;
    m.norm_epsilon = 1e-6F;
  }
};
template <>
struct StructTraits<ra_mha_forward_args> {
  static constexpr const char *name = "ra_mha_forward_args";
  static void fill(ra_mha_forward_args &) {}
};
template <>
struct StructTraits<ra_mha_backward_args> {
  static constexpr const char *name = "ra_mha_backward_args";
  static void fill(ra_mha_backward_args &) {}
};
template <>
struct StructTraits<ra_mha_requirements> {
  static constexpr const char *name = "ra_mha_requirements";
  static void fill(ra_mha_requirements &) {}
};
template <>
struct StructTraits<ra_reduce_args> {
  static constexpr const char *name = "ra_reduce_args";
  static void fill(ra_reduce_args &a) { a.count = -1; }  // as seqlen_q
};
template <>
struct StructTraits<ra_kv_cache_desc> {
  static constexpr const char *name = "ra_kv_cache_desc";
  static void fill(ra_kv_cache_desc &d) {
    d.page_tokens = 64;
    d.dtype = RA_DTYPE_FLOAT32;
  }
};
template <>
struct StructTraits<ra_append_args> {
  static constexpr const char *name = "ra_append_args";
  static void fill(ra_append_args &a) {
    a.num_sequences = 1;
    a.num_tokens = -1;  // as seqlen_q
  }
};
template <>
struct StructTraits<ra_decode_args> {
  static constexpr const char *name = "ra_decode_args";
  static void fill(ra_decode_args &a) { a.num_sequences = 1; }
};
template <>
struct StructTraits<ra_kv_cache_statistics> {
  static constexpr const char *name = "ra_kv_cache_statistics";
  static void fill(ra_kv_cache_statistics &) {}
};
template <>
struct StructTraits<ra_merge_args> {
  static constexpr const char *name = "ra_merge_args";
  static void fill(ra_merge_args &m) {
    m.batch = 1;
    m.seqlen = -1;  // as seqlen_q
    m.num_heads = 1;
    m.dtype = RA_DTYPE_FLOAT32;
  }
};

}  // namespace ringattn::api
