// From a variant that is chosen at run time to the template arguments of its kernels. Host code.
#pragma once

#include "engine/cuda/portable.h"
#include "engine/cuda/product.cuh"

namespace ringattn::cuda {

// f.operator()<T, dim, weights, modified>()
template <class T, Weights weights, bool modified, class F>
auto with_dim(int dim, F&& f) {
  switch (dim) {
    case 64:
      return f.template operator()<T, 64, weights, modified>();
    case 128:
      return f.template operator()<T, 128, weights, modified>();
    default:
      return f.template operator()<T, 256, weights, modified>();
  }
}
// For that variant, but for Variant::modified, instead of which the caller says `modified`.
template <bool modified, class F>
auto with_variant(const Variant& variant, F&& f) {
  const auto with_type = [&]<class T>(T) {
    return variant.exact_weights ? with_dim<T, Weights::exact, modified>(variant.dim, f)
                                 : with_dim<T, Weights::rounded, modified>(variant.dim, f);
  };
  switch (variant.dtype) {
    case DType::bfloat16:
      return with_type(BFloat16{});
    case DType::float16:
      return with_type(Float16{});
    default:
      return with_type(float{});
  }
}

}  // namespace ringattn::cuda
