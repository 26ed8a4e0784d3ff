/* Where the tensors of a rank are: in the host's memory, or in that of a GPU. What differs between the backends is in memory.c. */
#ifndef EXAMPLE_MEMORY_H
#define EXAMPLE_MEMORY_H

#include <ringattn/ringattn.h>

/* Prints a message as printf does and ends the program: with one rank lost, the others have nothing to wait for. */
void fail(const char *format, ...);

struct memory {
  int32_t backend;  /* ra_backend */
  int32_t device;   /* CUDA device ordinal */
  ra_stream stream; /* of that device; NULL on the CPU */
};

/* For the calling thread, which uses no other device from then on. */
struct memory memory_open(int32_t backend, int32_t device);
void memory_close(const struct memory *memory);

void *memory_allocate(const struct memory *memory, size_t bytes);
void memory_free(const struct memory *memory, void *data);
/* Host to tensor and back, in the order of the stream; the host's side is done with on return. */
void memory_write(const struct memory *memory, void *to, const void *from, size_t bytes);
void memory_read(const struct memory *memory, void *to, const void *from, size_t bytes);
/* Returns when all that has been enqueued is over. On the CPU it is when a call returns. */
void memory_wait(const struct memory *memory);

#endif
