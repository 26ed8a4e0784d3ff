#include "engine/cpu/onednn.h"

#include <oneapi/dnnl/dnnl.h>
#include <oneapi/dnnl/dnnl_debug.h>

#include <memory>

#include "core/dynamic_library.h"
#include "core/log.h"
#include "core/memory.h"

namespace ringattn::cpu {
namespace {

static_assert(DNNL_VERSION_MAJOR == 2, "onednn.cpp is written for oneDNN 2");

#define RINGATTN_ONEDNN_FUNCTIONS(F)  \
  F(dnnl_version)                     \
  F(dnnl_status2str)                  \
  F(dnnl_get_effective_cpu_isa)       \
  F(dnnl_engine_create)               \
  F(dnnl_stream_create)               \
  F(dnnl_stream_destroy)              \
  F(dnnl_memory_desc_init_by_strides) \
  F(dnnl_memory_create)               \
  F(dnnl_memory_destroy)              \
  F(dnnl_post_ops_create)             \
  F(dnnl_post_ops_append_sum)         \
  F(dnnl_post_ops_destroy)            \
  F(dnnl_primitive_attr_create)       \
  F(dnnl_primitive_attr_set_post_ops) \
  F(dnnl_primitive_attr_destroy)      \
  F(dnnl_matmul_desc_init)            \
  F(dnnl_primitive_desc_create)       \
  F(dnnl_primitive_desc_destroy)      \
  F(dnnl_primitive_create)            \
  F(dnnl_primitive_execute)           \
  F(dnnl_primitive_destroy)

#define RINGATTN_MEMBER(function) decltype(&::function) function;
#define RINGATTN_GET(function) library_.get<decltype(&::function)>(#function),
struct Functions {
  RINGATTN_ONEDNN_FUNCTIONS(RINGATTN_MEMBER)
};

class LoadedOneDnn final : public OneDnn {
 public:
  LoadedOneDnn() {
    check(functions_.dnnl_engine_create(&engine_, dnnl_cpu, 0));
    const int isa = functions_.dnnl_get_effective_cpu_isa();
    has_bfloat16_ = (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
  }

  bool has_bfloat16() const override { return has_bfloat16_; }

  // oneDNN keeps what it has compiled for a shape, so that finding it again takes few microseconds.
  void multiply(const Matrix& left, const Matrix& right, const Matrix& to, std::int64_t rows, std::int64_t columns,
                std::int64_t depth, bool accumulate) const override {
    const OneThread one(*this);
    const dnnl_memory_desc_t left_desc = describe(left, rows, depth), right_desc = describe(right, depth, columns),
                             to_desc = describe(to, rows, columns);
    dnnl_matmul_desc_t matmul;
    check(functions_.dnnl_matmul_desc_init(&matmul, &left_desc, &right_desc, nullptr, &to_desc));

    const auto attributes = make(functions_.dnnl_primitive_attr_create, functions_.dnnl_primitive_attr_destroy);
    if (accumulate) {
      const auto then = make(functions_.dnnl_post_ops_create, functions_.dnnl_post_ops_destroy);
      check(functions_.dnnl_post_ops_append_sum(then.get(), 1));
      check(functions_.dnnl_primitive_attr_set_post_ops(attributes.get(), then.get()));
    }
    const auto described = make(functions_.dnnl_primitive_desc_create, functions_.dnnl_primitive_desc_destroy, &matmul,
                                attributes.get(), engine_, nullptr);
    const auto primitive = make(functions_.dnnl_primitive_create, functions_.dnnl_primitive_destroy, described.get());
    const auto memory = [&](const dnnl_memory_desc_t& desc, void* data) {
      return make(functions_.dnnl_memory_create, functions_.dnnl_memory_destroy, &desc, engine_, data);
    };
    const auto left_memory = memory(left_desc, left.data), right_memory = memory(right_desc, right.data),
               to_memory = memory(to_desc, to.data);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, left_memory.get()}, {DNNL_ARG_WEIGHTS, right_memory.get()}, {DNNL_ARG_DST, to_memory.get()}};
    const auto stream =
        make(functions_.dnnl_stream_create, functions_.dnnl_stream_destroy, engine_, dnnl_stream_default_flags);
    check(functions_.dnnl_primitive_execute(primitive.get(), stream.get(), 3, arguments));
  }

 private:
  template <class Object>
  using Held = std::unique_ptr<Object, dnnl_status_t (*)(Object*)>;
  // What create(&object, arguments...) makes.
  template <class Object, class... Parameters, class... Arguments>
  Held<Object> make(dnnl_status_t (*create)(Object**, Parameters...), dnnl_status_t (*destroy)(Object*),
                    Arguments&&... arguments) const {
    Object* made = nullptr;
    check(create(&made, std::forward<Arguments>(arguments)...));
    return {made, destroy};
  }

  Functions load() const {
    const dnnl_version_t& version = *library_.get<decltype(&dnnl_version)>("dnnl_version")();
    const std::string name = text(version.major, '.', version.minor, '.', version.patch);
    if (version.major != DNNL_VERSION_MAJOR)
      fail(RA_STATUS_NOT_SUPPORTED, library_.path(), " is oneDNN ", name, "; must be ", DNNL_VERSION_MAJOR, ".x");
    log(RA_LOG_LEVEL_DEBUG, "oneDNN ", name, " is ", library_.path());
    return {RINGATTN_ONEDNN_FUNCTIONS(RINGATTN_GET)};
  }

  // oneDNN would compute a product with all threads of OpenMP. How many these are is a property of the calling thread, which may be the
  // caller's: it gets them back.
  class OneThread {
   public:
    explicit OneThread(const LoadedOneDnn& onednn) : onednn_(onednn), before_(onednn.get_threads_()) {
      if (before_ != 1) onednn_.set_threads_(1);
    }
    OneThread(const OneThread&) = delete;
    OneThread& operator=(const OneThread&) = delete;
    ~OneThread() {
      if (before_ != 1) onednn_.set_threads_(before_);
    }

   private:
    const LoadedOneDnn& onednn_;
    const int before_;
  };

  void check(dnnl_status_t status) const {
    if (status == dnnl_success) return;
    if (status == dnnl_out_of_memory) throw std::bad_alloc();
    fail(RA_STATUS_INTERNAL_ERROR, "oneDNN fails: ", functions_.dnnl_status2str(status));
  }

  dnnl_memory_desc_t describe(const Matrix& matrix, std::int64_t rows, std::int64_t columns) const {
    const dnnl_dims_t sizes = {rows, columns};
    dnnl_dims_t strides = {matrix.stride, 1};
    if (matrix.is_transposed) std::swap(strides[0], strides[1]);
    dnnl_memory_desc_t desc;
    check(functions_.dnnl_memory_desc_init_by_strides(&desc, 2, sizes,
                                                      matrix.dtype == DType::bfloat16 ? dnnl_bf16 : dnnl_f32, strides));
    return desc;
  }

  DynamicLibrary library_ = find_library("RINGATTN_ONEDNN_LIBRARY", "libdnnl.so.2");
  Functions functions_ = load();
  // Of the OpenMP that it is linked with, by the names that all of them have.
  int (*get_threads_)() = library_.get<int (*)()>("omp_get_max_threads");
  void (*set_threads_)(int) = library_.get<void (*)(int)>("omp_set_num_threads");
  dnnl_engine_t engine_ = nullptr;
  bool has_bfloat16_ = false;
};

}  // namespace

const OneDnn& onednn_library() {
  static const OneDnn& loaded = make_immortal<LoadedOneDnn>();
  return loaded;
}

std::string missing_onednn() {
  try {
    onednn_library();
    return {};
  } catch (const Error& error) {
    return error.message;
  }
}

}  // namespace ringattn::cpu
