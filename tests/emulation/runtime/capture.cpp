// Captures and graphs.
//
// A capture is lost, and ends in an error, when anything is called that it could not have seen or that asks for the state of
// work which is only written down: a wait or query of a capturing stream or captured event, a dependency on uncaptured work, and
// what the capture mode of a thread calls unsafe. Not emulated: event nodes (the "external" flags), a graph launched into a
// capture, nodes made by hand.
#include <algorithm>
#include <set>
#include <utility>

#include "machine.h"

using namespace emulation;

namespace {

thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

// Whether everything that was captured comes before what `origin` would capture next.
bool is_joined(const Capture& capture) {
  std::vector<bool> reached(capture.nodes.size(), false);
  for (const std::size_t node : capture.origin->tail.nodes) reached[node] = true;
  for (std::size_t node = capture.nodes.size(); node-- > 0;)
    if (reached[node])
      for (const std::size_t before : capture.nodes[node].before) reached[before] = true;
  return std::all_of(reached.begin(), reached.end(), [](bool r) { return r; });
}

cudaError_t capture_info(Machine& m, cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id) {
  CUstream_st* const stream = m.stream_of(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (status == nullptr) return cudaErrorInvalidValue;
  if (stream->legacy)
    for (const CapturePtr& capture : m.captures)
      for (const CUstream_st* const captured : capture->streams)
        if (captured->blocking && captured->device == stream->device) return cudaErrorStreamCaptureImplicit;
  const Capture* const capture = stream->tail.capture.get();
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  if (id != nullptr && capture != nullptr) *id = capture->id;
  return cudaSuccess;
}

}  // namespace

namespace emulation {

cudaError_t Machine::unsafe_in_capture() {
  if (mode_of_thread == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  for (const CapturePtr& capture : captures) {
    const bool own = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
    const bool global = mode_of_thread == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
    if (own || global) {
      capture->invalid = true;
      error = cudaErrorStreamCaptureUnsupported;
    }
  }
  return error;
}

}  // namespace emulation

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  return call("cudaThreadExchangeStreamCaptureMode", [&](Lock&, Machine&) {
    if (mode == nullptr) return cudaErrorInvalidValue;
    std::swap(*mode, mode_of_thread);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&](Lock&, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->legacy) return cudaErrorStreamCaptureUnsupported;
    if (stream->tail.capture != nullptr) return cudaErrorIllegalState;
    auto capture = std::make_shared<Capture>();
    capture->id = ++m.last_capture;
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->streams = {stream};
    stream->tail.capture = capture;
    stream->tail.nodes.clear();
    m.captures.push_back(std::move(capture));
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&](Lock&, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    const CapturePtr capture = stream->tail.capture;
    if (capture == nullptr) return cudaErrorIllegalState;
    if (capture->origin != stream) {
      capture->invalid = true;
      return cudaErrorStreamCaptureUnmatched;
    }
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
      return cudaErrorStreamCaptureWrongThread;
    const cudaError_t error = capture->invalid       ? cudaErrorStreamCaptureInvalidated
                              : !is_joined(*capture) ? cudaErrorStreamCaptureUnjoined
                                                     : cudaSuccess;
    capture->over = true;
    for (CUstream_st* const captured : capture->streams) {
      captured->tail.capture = nullptr;
      captured->tail.nodes.clear();
    }
    std::erase(m.captures, capture);
    if (error != cudaSuccess) return error;
    m.graphs.push_back(std::make_unique<CUgraph_st>());
    *graph = m.graphs.back().get();
    (*graph)->nodes = std::move(capture->nodes);
    m.live.insert(*graph);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", [&](Lock&, Machine& m) { return capture_info(m, stream, status, nullptr); });
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* num_dependencies) {
  return call("cudaStreamGetCaptureInfo", [&](Lock&, Machine& m) {
    if (graph != nullptr || dependencies != nullptr || edges != nullptr || num_dependencies != nullptr)
      return cudaErrorNotSupported;
    return capture_info(m, stream, status, id);
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&](Lock&, Machine& m) {
    if (exec == nullptr || graph == nullptr || m.live.count(graph) == 0) return cudaErrorInvalidValue;
    m.execs.push_back(std::make_unique<CUgraphExec_st>());
    *exec = m.execs.back().get();
    (*exec)->nodes = graph->nodes;
    for (const Node& node : graph->nodes)
      if ((*exec)->lanes.count(node.stream) == 0) (*exec)->lanes[node.stream] = m.new_lane();
    m.live.insert(*exec);
    return cudaSuccess;
  });
}

// After what the stream holds and the last launch; what follows in the stream comes after all of it.
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  return call("cudaGraphLaunch", [&](Lock& lock, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (exec == nullptr || m.live.count(exec) == 0) return cudaErrorInvalidValue;
    if (const cudaError_t error = m.implicit_capture(*stream)) return error;
    if (stream->tail.capture != nullptr) {
      stream->tail.capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    m.order_with_legacy(*stream);
    Tail begin = stream->tail;
    begin.add(exec->tail);
    Tail end = begin;
    std::vector<Tail> ends(exec->nodes.size());
    for (std::size_t i = 0; i < exec->nodes.size(); ++i) {
      const Node& node = exec->nodes[i];
      Tail& tail = ends[i];
      if (node.before.empty()) tail = begin;
      for (const std::size_t before : node.before) tail.add(ends[before]);
      m.enqueue(exec->lanes.at(node.stream), node.stream, node.work, tail);
      end.add(tail);
    }
    stream->tail = exec->tail = end;
    m.pace(lock);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&](Lock&, Machine& m) {
    if (graph == nullptr || m.live.erase(graph) == 0) return cudaErrorInvalidValue;
    graph->nodes.clear();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call("cudaGraphExecDestroy", [&](Lock&, Machine& m) {
    if (exec == nullptr || m.live.erase(exec) == 0) return cudaErrorInvalidValue;
    exec->nodes.clear();
    exec->tail = {};
    return cudaSuccess;
  });
}

}  // extern "C"
