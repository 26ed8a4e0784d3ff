#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef EXAMPLE_CUDA
#include <cuda_runtime_api.h>
#endif

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

#ifdef EXAMPLE_CUDA

static void check(cudaError_t error, const char *function) {
  if (error != cudaSuccess) fail("%s: %s", function, cudaGetErrorString(error));
}

struct memory memory_open(int32_t backend, int32_t device) {
  struct memory memory = {backend, device, NULL};
  if (backend == RA_BACKEND_CUDA) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&memory.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  return memory;
}

void memory_close(const struct memory *memory) {
  if (memory->stream != NULL) check(cudaStreamDestroy(memory->stream), "cudaStreamDestroy");
}

void *memory_allocate(const struct memory *memory, size_t bytes) {
  void *data = NULL;
  if (memory->backend == RA_BACKEND_CUDA)
    check(cudaMalloc(&data, bytes), "cudaMalloc");
  else if ((data = malloc(bytes)) == NULL)
    fail("no %zu bytes of memory", bytes);
  return data;
}

void memory_free(const struct memory *memory, void *data) {
  if (memory->backend == RA_BACKEND_CUDA)
    check(cudaFree(data), "cudaFree");
  else
    free(data);
}

static void copy(const struct memory *memory, void *to, const void *from, size_t bytes) {
  if (memory->backend == RA_BACKEND_CUDA) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, memory->stream), "cudaMemcpyAsync");
    memory_wait(memory);
  } else {
    memcpy(to, from, bytes);
  }
}

void memory_wait(const struct memory *memory) {
  if (memory->backend == RA_BACKEND_CUDA) check(cudaStreamSynchronize(memory->stream), "cudaStreamSynchronize");
}

#else

struct memory memory_open(int32_t backend, int32_t device) {
  struct memory memory = {backend, device, NULL};
  if (backend == RA_BACKEND_CUDA) fail("this program was built without the CUDA runtime; --backend cpu");
  return memory;
}

void memory_close(const struct memory *memory) { (void)memory; }

void *memory_allocate(const struct memory *memory, size_t bytes) {
  void *data = malloc(bytes);
  (void)memory;
  if (data == NULL) fail("no %zu bytes of memory", bytes);
  return data;
}

void memory_free(const struct memory *memory, void *data) {
  (void)memory;
  free(data);
}

static void copy(const struct memory *memory, void *to, const void *from, size_t bytes) {
  (void)memory;
  memcpy(to, from, bytes);
}

void memory_wait(const struct memory *memory) { (void)memory; }

#endif

void memory_write(const struct memory *memory, void *to, const void *from, size_t bytes) {
  copy(memory, to, from, bytes);
}

void memory_read(const struct memory *memory, void *to, const void *from, size_t bytes) {
  copy(memory, to, from, bytes);
}
