// cuDNN itself: plans of cudnn-frontend's graph with one operation, scaled dot-product attention, composed of products and pointwise
// operations ("composite"). The operation of its own that cuDNN has beside takes no fp32 for O on Hopper.
//
// cudnn-frontend can load cuDNN by itself, but then loads the CUDA runtime too, which is part of this library, by one name or another,
// and says little about where it looked. So its calls are led to the functions that we have loaded instead.
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/cuda/cudnn.h"
#include "engine/cuda/cudnn_library.h"

#define cudnnGetVersion ::ringattn::cuda::cudnn_functions().cudnnGetVersion
#define cudnnGetErrorString ::ringattn::cuda::cudnn_functions().cudnnGetErrorString
#define cudnnGetLastErrorString ::ringattn::cuda::cudnn_functions().cudnnGetLastErrorString
#define cudnnCreate ::ringattn::cuda::cudnn_functions().cudnnCreate
#define cudnnDestroy ::ringattn::cuda::cudnn_functions().cudnnDestroy
#define cudnnSetStream ::ringattn::cuda::cudnn_functions().cudnnSetStream
#define cudnnGetStream ::ringattn::cuda::cudnn_functions().cudnnGetStream
#define cudnnBackendCreateDescriptor ::ringattn::cuda::cudnn_functions().cudnnBackendCreateDescriptor
#define cudnnBackendDestroyDescriptor ::ringattn::cuda::cudnn_functions().cudnnBackendDestroyDescriptor
#define cudnnBackendSetAttribute ::ringattn::cuda::cudnn_functions().cudnnBackendSetAttribute
#define cudnnBackendGetAttribute ::ringattn::cuda::cudnn_functions().cudnnBackendGetAttribute
#define cudnnBackendFinalize ::ringattn::cuda::cudnn_functions().cudnnBackendFinalize
#define cudnnBackendExecute ::ringattn::cuda::cudnn_functions().cudnnBackendExecute

#include <cudnn_frontend.h>

namespace ringattn::cuda {
namespace {

namespace fe = cudnn_frontend;

enum Uid : std::int64_t { uid_q = 1, uid_k, uid_v, uid_out, uid_lse };

void succeed(fe::error_t error) {
  if (error.is_bad()) fail(RA_STATUS_NOT_SUPPORTED, "cuDNN ", cudnn_version(), ": ", error.get_message());
}
// What is refused by name or by number: cuDNN's exceptions too.
template <class F>
auto refused_by_message(F&& f) {
  try {
    return f();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& exception) {
    fail(RA_STATUS_NOT_SUPPORTED, "cuDNN ", cudnn_version(), ": ", exception.what());
  }
}

fe::DataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return fe::DataType_t::BFLOAT16;
    case DType::float16:
      return fe::DataType_t::HALF;
    default:
      return fe::DataType_t::FLOAT;
  }
}

int to_bound(std::int64_t bound) {
  if (bound > std::numeric_limits<int>::max()) fail(RA_STATUS_NOT_SUPPORTED, "a bound is ", bound, "; must be an int");
  return static_cast<int>(bound);
}

// cuDNN counts [batch, heads, rows, dim].
std::vector<std::int64_t> in_its_order(std::int64_t batch, std::int64_t seq, std::int64_t head, std::int64_t dim) {
  return {batch, head, seq, dim};
}

std::unique_ptr<fe::graph::Graph> make_graph(const CudnnShape& s) {
  auto graph = std::make_unique<fe::graph::Graph>();
  graph->set_io_data_type(type_of(s.dtype))
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const auto input = [&](const char* name, Uid uid, std::int64_t rows, std::int64_t heads, std::int64_t dim,
                         const CudnnShape::Strides& strides) {
    return graph->tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim(in_its_order(s.batch, rows, heads, dim))
                             .set_stride(in_its_order(strides.batch, strides.seq, strides.head, 1)));
  };
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(s.has_lse)
                     .set_attn_scale(s.softmax_scale)
                     .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                     .set_implementation(fe::AttentionImplementation_t::COMPOSITE);
  if (s.upper != Band::unbounded) options.set_diagonal_band_right_bound(to_bound(s.upper));
  if (s.lower != -Band::unbounded)
    options.set_diagonal_band_left_bound(to_bound(1 - s.lower));  // the first key not seen
  const auto [out, lse] = graph->sdpa(input("q", uid_q, s.rows, s.num_heads_q, s.head_dim, s.q),
                                      input("k", uid_k, s.keys, s.num_heads_kv, s.head_dim, s.k),
                                      input("v", uid_v, s.keys, s.num_heads_kv, s.head_dim_v, s.v), std::move(options));
  out->set_output(true)
      .set_uid(uid_out)
      .set_data_type(type_of(s.out_dtype))
      .set_dim(in_its_order(s.batch, s.rows, s.num_heads_q, s.head_dim_v))
      .set_stride(in_its_order(s.out.batch, s.out.seq, s.out.head, 1));
  if (s.has_lse)
    lse->set_output(true)
        .set_uid(uid_lse)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({s.batch, s.num_heads_q, s.rows, 1})
        .set_stride({s.num_heads_q * s.lse_head_stride, s.lse_head_stride, 1, 1});
  return graph;
}

// A handle is one thread's, as a context is. It knows the device on which it was made.
class Handle {
 public:
  Handle() {
    check(cudaGetDevice(&device_), "cudaGetDevice");
    const cudnnStatus_t status = cudnnCreate(&handle_);
    if (status != CUDNN_STATUS_SUCCESS)
      fail(RA_STATUS_NOT_SUPPORTED, "cuDNN ", cudnn_version(), ": cudnnCreate: ", cudnnGetErrorString(status));
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    int before = 0;
    if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device_) != cudaSuccess) return;
    cudnnDestroy(handle_);
    cudaSetDevice(before);
  }
  cudnnHandle_t get() const { return handle_; }

 private:
  cudnnHandle_t handle_ = nullptr;
  int device_ = 0;
};

class GraphPlan final : public CudnnPlan {
 public:
  GraphPlan(std::unique_ptr<fe::graph::Graph> graph, std::shared_ptr<Handle> handle, bool has_lse)
      : graph_(std::move(graph)), handle_(std::move(handle)), has_lse_(has_lse) {}

  void run(cudaStream_t stream, const CudnnTensors& t) override {
    std::unordered_map<std::int64_t, void*> tensors{{uid_q, const_cast<void*>(t.q)},
                                                    {uid_k, const_cast<void*>(t.k)},
                                                    {uid_v, const_cast<void*>(t.v)},
                                                    {uid_out, t.out}};
    if (has_lse_) tensors[uid_lse] = t.lse;
    const cudnnStatus_t status = cudnnSetStream(handle_->get(), stream);
    if (status != CUDNN_STATUS_SUCCESS) fail(RA_STATUS_CUDA_ERROR, "cudnnSetStream: ", cudnnGetErrorString(status));
    fe::error_t error = graph_->execute(handle_->get(), tensors, t.workspace);
    if (error.is_bad()) fail(RA_STATUS_CUDA_ERROR, "cuDNN ", cudnn_version(), ": ", error.get_message());
  }

 private:
  std::unique_ptr<fe::graph::Graph> graph_;
  std::shared_ptr<Handle> handle_;
  bool has_lse_;
};

// Plans for the device of a handle, or for one that is only described.
class GraphCudnn final : public Cudnn {
 public:
  explicit GraphCudnn(const std::string& device_properties) {
    if (device_properties.empty()) return;
    described_ = std::make_shared<fe::DeviceProperties>();
    succeed(described_->deserialize({device_properties.begin(), device_properties.end()}));
  }

  std::unique_ptr<CudnnPlan> make_plan(const CudnnShape& shape, std::size_t most_workspace) override {
    return refused_by_message([&]() -> std::unique_ptr<CudnnPlan> {
      std::unique_ptr<fe::graph::Graph> graph = make_graph(shape);
      if (described_ != nullptr)
        graph->set_device_properties(described_);
      else if (handle_ == nullptr)
        handle_ = std::make_shared<Handle>();
      succeed(graph->validate());
      succeed(described_ != nullptr ? graph->build_operation_graph() : graph->build_operation_graph(handle_->get()));
      succeed(graph->create_execution_plans({fe::HeurMode_t::A}));
      graph->deselect_workspace_greater_than(static_cast<std::int64_t>(most_workspace));
      succeed(graph->check_support());
      succeed(graph->build_plans());
      if (const std::int64_t needed = graph->get_workspace_size(); needed > static_cast<std::int64_t>(most_workspace))
        fail(RA_STATUS_NOT_SUPPORTED, "cuDNN ", cudnn_version(), ": its plan needs ", needed, " bytes; at most ",
             most_workspace, " are there");
      return std::make_unique<GraphPlan>(std::move(graph), handle_, shape.has_lse);
    });
  }

 private:
  std::shared_ptr<fe::DeviceProperties> described_;
  std::shared_ptr<Handle> handle_;
};

}  // namespace

std::unique_ptr<Cudnn> open_cudnn(const std::string& device_properties) {
  cudnn_functions();
  return refused_by_message(
      [&]() -> std::unique_ptr<Cudnn> { return std::make_unique<GraphCudnn>(device_properties); });
}

}  // namespace ringattn::cuda
