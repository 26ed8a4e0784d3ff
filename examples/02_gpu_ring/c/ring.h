/* What one rank does: all calls of the library but ra_create_unique_id are in ring.c. */
#ifndef EXAMPLE_RING_H
#define EXAMPLE_RING_H

#include "memory.h"

/* Causal self-attention, zigzag, bfloat16; equal on every rank. */
struct problem {
  int64_t tokens, heads, heads_kv, head_dim, num_chunks;
  int repeats; /* timed calls, after one that is not */
};

struct group {
  int32_t backend, transport;
  int32_t world_size;
  const char *unique_id; /* NULL for a group of one */
};

/* bfloat16, [tokens, heads, head_dim] of the whole sequence; what one rank alone found, in the host's memory. */
enum { OUT, DQ, DK, DV, NUM_RESULTS };
struct results {
  uint16_t *of[NUM_RESULTS];
};

struct figures {
  int64_t tokens;    /* of this rank */
  double seconds;    /* forward and backward, until the device is done */
  size_t memory;     /* tensors and workspace, the larger of both passes */
  double difference; /* largest to the expected results, as a part of the tensor's largest number; NaN: to nothing */
};

struct results results_allocate(const struct problem *problem);
void results_free(struct results *results);

/* Joins the group as `rank`, computes its shard, and leaves. Compares with `expected`, or where that is NULL writes to `found`, which
   takes a group of one. Collective. */
struct figures run_rank(const struct problem *problem, const struct group *group, int32_t rank, int32_t device,
                        const struct results *expected, struct results *found);

#endif
