// Devices, memory, streams and events. Captures and graphs are in capture.cpp.
//
// Where NVIDIA's documentation leaves a choice:
//   * a copy from pageable memory takes its bytes when it is called, one to pageable memory returns when it is over;
//   * an event is recorded by a stream of its own device, and a kernel is launched by a thread whose device is its stream's;
//   * queries and waits count as unsafe while a capture is under way, as cudaMalloc does (cudaThreadExchangeStreamCaptureMode).
#include "cuda_runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "machine.h"

using namespace emulation;

namespace {

thread_local int device_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;

constexpr int runtime_version = CUDART_VERSION;

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorPeerAccessNotEnabled, "cudaErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};
const ErrorText* find_text(cudaError_t error) {
  const auto* const found = std::find_if(std::begin(error_texts), std::end(error_texts),
                                         [&](const ErrorText& e) { return e.error == error; });
  return found == std::end(error_texts) ? nullptr : found;
}

cudaError_t no_device(const Machine& m) {
  if (m.config.driver_version < runtime_version) return cudaErrorInsufficientDriver;
  return m.config.devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}
bool is_device(const Machine& m, int device) { return device >= 0 && device < m.config.devices; }

CUevent_st* event_of(const Machine& m, cudaEvent_t handle) { return m.live.count(handle) != 0 ? handle : nullptr; }

cudaError_t allocate(Machine& m, Memory::Kind kind, void** data, std::size_t bytes) {
  if (data == nullptr) return cudaErrorInvalidValue;
  if (const cudaError_t error = no_device(m)) return error;
  if (const cudaError_t error = m.unsafe_in_capture()) return error;
  *data = bytes == 0 ? nullptr : m.memory.allocate(kind, current_device(), bytes);
  return *data == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t free(Machine& m, Memory::Kind kind, void* data) {
  if (const cudaError_t error = m.unsafe_in_capture()) return error;
  return data == nullptr || m.memory.free(kind, data, m.host()) ? cudaSuccess : cudaErrorInvalidValue;
}

// A copy between any two places.
cudaError_t copy(Lock& lock, Machine& m, const char* name, void* to, const void* from, std::size_t bytes,
                 CUstream_st& stream) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  Work work{name, stream.device, Reach::copy, {{from, bytes, false}, {to, bytes, true}}, {}, {}};
  const bool captures = stream.tail.capture != nullptr;
  if (m.memory.find(from) == nullptr && !captures) {
    const auto* const begin = static_cast<const std::byte*>(from);
    work.function = [to, staged = std::vector<std::byte>(begin, begin + bytes)] {
      std::memcpy(to, staged.data(), staged.size());
    };
  } else {
    work.function = [to, from, bytes] { std::memmove(to, from, bytes); };
  }
  const bool waits = m.memory.find(to) == nullptr && !captures;
  if (const cudaError_t error = m.submit(lock, {&stream}, std::move(work))) return error;
  if (waits) m.wait(lock, stream.tail);
  return cudaSuccess;
}

// Whether memory of CUDA's, device or pinned, is where the kind says that it is; the device's is what cudaMemcpyDefault finds.
bool fits(const Machine& m, cudaMemcpyKind kind, const void* to, const void* from) {
  const auto on_device = [&](const void* data) {
    const Memory::Found* const found = m.memory.find(data);
    return found != nullptr && found->kind == Memory::Kind::device;
  };
  if (kind == cudaMemcpyDefault) return true;
  return on_device(to) == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
         on_device(from) == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

cudaError_t wait_or_poll(Lock& lock, Machine& m, const Tail& tail, bool waits) {
  if (!waits) return m.poll(lock, tail) ? cudaSuccess : cudaErrorNotReady;
  m.wait(lock, tail);
  return cudaSuccess;
}

cudaError_t reach_stream(Lock& lock, Machine& m, cudaStream_t handle, bool waits) {
  CUstream_st* const stream = m.stream_of(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->tail.capture != nullptr) {
    stream->tail.capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (const cudaError_t error = m.implicit_capture(*stream)) return error;
  if (const cudaError_t error = m.unsafe_in_capture()) return error;
  m.order_with_legacy(*stream);
  return wait_or_poll(lock, m, stream->tail, waits);
}

cudaError_t reach_event(Lock& lock, Machine& m, cudaEvent_t handle, bool waits) {
  CUevent_st* const event = event_of(m, handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  if (event->tail.capture != nullptr) {
    event->tail.capture->invalid = true;
    return cudaErrorCapturedEvent;
  }
  if (const cudaError_t error = m.unsafe_in_capture()) return error;
  return wait_or_poll(lock, m, event->tail, waits);
}

}  // namespace

namespace emulation {

int current_device() { return device_of_thread < machine().config.devices ? device_of_thread : 0; }

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

CUstream_st* Machine::stream_of(cudaStream_t handle) {
  if (handle == nullptr) return legacy.empty() ? nullptr : legacy[static_cast<std::size_t>(current_device())];
  return live.count(handle) != 0 ? handle : nullptr;
}

}  // namespace emulation

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* const found = find_text(error);
  return found != nullptr ? found->text : "unrecognized error code";
}
const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* const found = find_text(error);
  return found != nullptr ? found->name : "cudaErrorUnknown";
}
cudaError_t cudaGetLastError(void) { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaDriverGetVersion(int* version) {
  return call("cudaDriverGetVersion", [&](Lock&, Machine& m) {
    if (version == nullptr) return cudaErrorInvalidValue;
    *version = m.config.driver_version;
    return cudaSuccess;
  });
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  return call("cudaRuntimeGetVersion", [&](Lock&, Machine&) {
    if (version == nullptr) return cudaErrorInvalidValue;
    *version = runtime_version;
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------- devices

cudaError_t cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", [&](Lock&, Machine& m) {
    if (count == nullptr) return cudaErrorInvalidValue;
    const cudaError_t error = no_device(m);
    *count = error == cudaSuccess ? m.config.devices : 0;
    return error;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", [&](Lock&, Machine& m) {
    if (const cudaError_t error = no_device(m)) return error;
    if (!is_device(m, device)) return cudaErrorInvalidDevice;
    device_of_thread = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&](Lock&, Machine& m) {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = current_device();
    return no_device(m);
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&](Lock&, Machine& m) {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!is_device(m, device)) return cudaErrorInvalidDevice;
    switch (attribute) {
      case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        return cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = 227 << 10;
        return cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = 228 << 10;
        return cudaSuccess;
      case cudaDevAttrWarpSize:
        *value = 32;
        return cudaSuccess;
      case cudaDevAttrMultiProcessorCount:
        *value = m.config.multiprocessors;
        return cudaSuccess;
      case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        return cudaSuccess;
      case cudaDevAttrAsyncEngineCount:
        *value = 3;
        return cudaSuccess;
      case cudaDevAttrUnifiedAddressing:
        *value = 1;
        return cudaSuccess;
      case cudaDevAttrComputeCapabilityMajor:
        *value = m.config.compute_capability / 10;
        return cudaSuccess;
      case cudaDevAttrComputeCapabilityMinor:
        *value = m.config.compute_capability % 10;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return call("cudaDeviceGetPCIBusId", [&](Lock&, Machine& m) {
    if (id == nullptr || length < 13) return cudaErrorInvalidValue;
    if (!is_device(m, device)) return cudaErrorInvalidDevice;
    std::snprintf(id, static_cast<std::size_t>(length), "0000:%02X:00.0", static_cast<unsigned>(device + 1) & 0xffU);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&](Lock&, Machine&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can_access, int device, int peer) {
  return call("cudaDeviceCanAccessPeer", [&](Lock&, Machine& m) {
    if (can_access == nullptr) return cudaErrorInvalidValue;
    if (!is_device(m, device) || !is_device(m, peer)) return cudaErrorInvalidDevice;
    *can_access = m.config.peer_access && device != peer;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
  return call("cudaDeviceEnablePeerAccess", [&](Lock&, Machine& m) {
    if (flags != 0) return cudaErrorInvalidValue;
    if (!is_device(m, peer) || peer == current_device() || !m.config.peer_access) return cudaErrorInvalidDevice;
    if (const cudaError_t error = m.unsafe_in_capture()) return error;
    return m.memory.enable_peer(current_device(), peer) ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled;
  });
}

cudaError_t cudaDeviceSynchronize(void) {
  return call("cudaDeviceSynchronize", [&](Lock& lock, Machine& m) {
    if (const cudaError_t error = no_device(m)) return error;
    bool captures = false;
    for (const CapturePtr& capture : m.captures)
      for (const CUstream_st* const stream : capture->streams)
        if (stream->device == current_device()) captures = capture->invalid = true;
    if (captures) return cudaErrorStreamCaptureUnsupported;
    if (const cudaError_t error = m.unsafe_in_capture()) return error;
    Tail all;
    for (const auto& stream : m.streams)
      if (stream->device == current_device()) all.add(stream->tail);
    m.wait(lock, all);
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return call("cudaMalloc", [&](Lock&, Machine& m) { return allocate(m, Memory::Kind::device, data, bytes); });
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return call("cudaMallocHost", [&](Lock&, Machine& m) { return allocate(m, Memory::Kind::pinned, data, bytes); });
}
cudaError_t cudaFree(void* data) {
  return call("cudaFree", [&](Lock&, Machine& m) { return free(m, Memory::Kind::device, data); });
}
cudaError_t cudaFreeHost(void* data) {
  return call("cudaFreeHost", [&](Lock&, Machine& m) { return free(m, Memory::Kind::pinned, data); });
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* data) {
  return call("cudaPointerGetAttributes", [&](Lock&, Machine& m) {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    if (const cudaError_t error = no_device(m)) return error;
    *attributes = {};
    attributes->device = -2;  // as CUDA has it for what it does not know
    auto* const pointer = const_cast<void*>(data);
    const Memory::Found* const found = m.memory.find(data);
    if (found == nullptr) {
      attributes->type = cudaMemoryTypeUnregistered;
      attributes->hostPointer = pointer;
    } else if (found->kind == Memory::Kind::pinned) {
      attributes->type = cudaMemoryTypeHost;
      attributes->device = found->device;
      attributes->devicePointer = attributes->hostPointer = pointer;
    } else {
      attributes->type = cudaMemoryTypeDevice;
      attributes->device = found->device;
      attributes->devicePointer = pointer;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind) {
  return call("cudaMemcpy", [&](Lock& lock, Machine& m) {
    CUstream_st* const stream = m.stream_of(nullptr);
    if (stream == nullptr) return cudaErrorNoDevice;
    if (!fits(m, kind, to, from)) return cudaErrorInvalidMemcpyDirection;
    if (const cudaError_t error = m.implicit_capture(*stream)) return error;
    if (const cudaError_t error = m.unsafe_in_capture()) return error;
    if (const cudaError_t error = copy(lock, m, "cudaMemcpy", to, from, bytes, *stream)) return error;
    m.wait(lock, stream->tail);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t handle) {
  return call("cudaMemcpyAsync", [&](Lock& lock, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (!fits(m, kind, to, from)) return cudaErrorInvalidMemcpyDirection;
    return copy(lock, m, "cudaMemcpyAsync", to, from, bytes, *stream);
  });
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t handle) {
  return call("cudaMemsetAsync", [&](Lock& lock, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (bytes == 0) return cudaSuccess;
    return m.submit(lock, {stream},
                    {"cudaMemsetAsync",
                     stream->device,
                     Reach::kernel,
                     {{data, bytes, true}},
                     [=] { std::memset(data, value, bytes); },
                     {}});
  });
}

// ---------------------------------------------------------------- streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return call("cudaStreamCreateWithPriority", [&](Lock&, Machine& m) {
    if (stream == nullptr || (flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0) return cudaErrorInvalidValue;
    if (const cudaError_t error = no_device(m)) return error;
    *stream = m.new_stream(current_device(), (flags & cudaStreamNonBlocking) == 0);
    m.live.insert(*stream);
    return cudaSuccess;
  });
}

// Its work goes on.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call("cudaStreamDestroy", [&](Lock&, Machine& m) {
    if (handle == nullptr || m.live.erase(handle) == 0) return cudaErrorInvalidResourceHandle;
    if (handle->tail.capture != nullptr) handle->tail.capture->invalid = true;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call("cudaStreamSynchronize", [&](Lock& lock, Machine& m) { return reach_stream(lock, m, stream, true); });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call("cudaStreamQuery", [&](Lock& lock, Machine& m) { return reach_stream(lock, m, stream, false); });
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return call("cudaStreamGetDevice", [&](Lock&, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = stream->device;
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* user_data) {
  return call("cudaLaunchHostFunc", [&](Lock& lock, Machine& m) {
    CUstream_st* const stream = m.stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (function == nullptr) return cudaErrorInvalidValue;
    return m.submit(lock, {stream},
                    {"cudaLaunchHostFunc", stream->device, Reach::copy, {}, [=] { function(user_data); }, {}});
  });
}

// ---------------------------------------------------------------- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return call("cudaEventCreateWithFlags", [&](Lock&, Machine& m) {
    if (event == nullptr || flags > (cudaEventBlockingSync | cudaEventDisableTiming)) return cudaErrorInvalidValue;
    if (const cudaError_t error = no_device(m)) return error;
    m.events.push_back(std::make_unique<CUevent_st>());
    *event = m.events.back().get();
    (*event)->device = current_device();
    m.live.insert(*event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return call("cudaEventDestroy", [&](Lock&, Machine& m) {
    if (handle == nullptr || m.live.erase(handle) == 0) return cudaErrorInvalidResourceHandle;
    handle->tail = {};
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
  return call("cudaEventRecord", [&](Lock&, Machine& m) {
    CUevent_st* const event = event_of(m, handle);
    CUstream_st* const stream = m.stream_of(on);
    if (event == nullptr || stream == nullptr || event->device != stream->device) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = m.implicit_capture(*stream)) return error;
    event->recorder = stream;
    if (const CapturePtr capture = stream->tail.capture) {
      if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
      event->tail = {{}, {}, capture, stream->tail.nodes};
    } else {
      m.order_with_legacy(*stream);
      event->tail = {stream->tail.operations, stream->tail.clock, nullptr, {}};
    }
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", [&](Lock& lock, Machine& m) { return reach_event(lock, m, event, false); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize", [&](Lock& lock, Machine& m) { return reach_event(lock, m, event, true); });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t on, cudaEvent_t handle, unsigned int flags) {
  return call("cudaStreamWaitEvent", [&](Lock&, Machine& m) {
    CUevent_st* const event = event_of(m, handle);
    CUstream_st* const stream = m.stream_of(on);
    if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != cudaEventWaitDefault) return cudaErrorInvalidValue;
    if (m.leaves_out(*stream, *event)) return cudaSuccess;
    if (const cudaError_t error = m.implicit_capture(*stream)) return error;
    Tail& tail = stream->tail;
    const Tail& recorded = event->tail;
    if (tail.capture != nullptr && tail.capture->invalid) return cudaErrorStreamCaptureInvalidated;

    if (recorded.capture == nullptr || recorded.capture->over) {
      if (tail.capture != nullptr) {  // also if the event was never recorded, or its work is over
        tail.capture->invalid = true;
        return cudaErrorStreamCaptureIsolation;
      }
      if (recorded.capture != nullptr) return cudaErrorCapturedEvent;
      tail.add(recorded);
      return cudaSuccess;
    }
    if (recorded.capture->invalid) return cudaErrorInvalidValue;
    if (stream->legacy) {
      recorded.capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
    if (tail.capture == nullptr) {
      tail.capture = recorded.capture;
      tail.capture->streams.push_back(stream);
      tail.nodes.clear();
    } else if (tail.capture != recorded.capture) {
      tail.capture->invalid = recorded.capture->invalid = true;
      return cudaErrorStreamCaptureMerge;
    }
    tail.nodes.insert(tail.nodes.end(), recorded.nodes.begin(), recorded.nodes.end());
    return cudaSuccess;
  });
}

}  // extern "C"
