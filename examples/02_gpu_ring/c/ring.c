/* A rank, from ra_create_context to ra_destroy_context.
 *
 *   the shard        its tokens' positions in the whole sequence; each element of an input is a hash of the position, so that every
 *                    rank makes its own part, and none ever has all of it
 *   the rotation     of q and k by those positions (rotary embeddings), before the library sees them
 *   the tensors      in the memory of its GPU, or of the host: ring.c does not ask which
 *   the calls        ra_forward, then ra_backward with its out and lse: first once, for workspace and agreement, then timed
 *   the comparison   element by element with what one rank alone has computed
 */
#include "ring.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { Q, K, V, DOUT, NUM_INPUTS };

static void check(ra_status status, const ra_error *error) {
  if (status != RA_STATUS_SUCCESS) fail("%s: %s", ra_get_status_name(error->status), error->message);
}

static uint16_t to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to nearest even */
}

static float from_bfloat16(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* A number in [-2, 2) that depends on all arguments. */
static float element(int tensor, int64_t position, int64_t index) {
  uint64_t x = (uint64_t)tensor + 4 * (uint64_t)position;
  x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u + (uint64_t)index;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return (float)((double)((x ^ x >> 31) >> 11) * 0x1p-51 - 2);
}

/* Element `d` of a head that has been turned by its token's position in the whole sequence, whatever row of which shard it has: pairs
 * (d, d + dim / 2), each with an angle of its own (Su et al. 2021, "RoFormer"). Scores then depend on how far apart tokens are. dq and
 * dk are the gradients of what has been turned; turned back, by the same angles, they are those of what has not. */
static float rotated(int tensor, int64_t position, int64_t head, int64_t d, int64_t dim) {
  const int64_t half = dim / 2;
  if (d >= 2 * half) return element(tensor, position, head * dim + d); /* the last one of an odd number */
  const int64_t pair = d % half;
  const double angle = (double)position * pow(10000, -(double)pair / (double)half);
  const double x = element(tensor, position, head * dim + pair),
               y = element(tensor, position, head * dim + pair + half);
  return (float)(d < half ? x * cos(angle) - y * sin(angle) : x * sin(angle) + y * cos(angle));
}

/* One token's row of a tensor: [heads, dim], as it is given to the library. */
static void fill_row(const struct problem *problem, int tensor, int64_t position, uint16_t *row) {
  const int64_t dim = problem->head_dim, heads = tensor == K || tensor == V ? problem->heads_kv : problem->heads;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t d = 0; d < dim; ++d)
      *row++ = to_bfloat16(tensor == Q || tensor == K ? rotated(tensor, position, head, d, dim)
                                                      : element(tensor, position, head * dim + d));
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static ra_attention_desc describe(const struct problem *problem) {
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = problem->tokens;
  desc.num_heads_q = problem->heads;
  desc.num_heads_kv = problem->heads_kv;
  desc.head_dim = problem->head_dim;
  desc.dtype = RA_DTYPE_BFLOAT16;
  desc.mask = RA_MASK_CAUSAL;
  desc.sharding = RA_SHARDING_ZIGZAG; /* equal work for all ranks under this mask */
  desc.num_chunks = problem->num_chunks;
  return desc;
}

/* Elements of a token in q, out, dout and dq, or in k, v, dk and dv. */
static size_t width(const struct problem *problem, int of_keys) {
  return (size_t)((of_keys ? problem->heads_kv : problem->heads) * problem->head_dim);
}
static size_t input_width(const struct problem *p, int tensor) { return width(p, tensor == K || tensor == V); }
static size_t result_width(const struct problem *p, int tensor) { return width(p, tensor == DK || tensor == DV); }

struct results results_allocate(const struct problem *problem) {
  struct results results;
  for (int t = 0; t < NUM_RESULTS; ++t) {
    results.of[t] = (uint16_t *)malloc((size_t)problem->tokens * result_width(problem, t) * sizeof(uint16_t));
    if (results.of[t] == NULL) fail("no memory for the results of one rank");
  }
  return results;
}

void results_free(struct results *results) {
  for (int t = 0; t < NUM_RESULTS; ++t) free(results->of[t]);
}

/* Largest difference of the rows at `positions`, as a part of the largest number of all. */
static double compare(const struct problem *problem, int tensor, const uint16_t *ours, const uint16_t *expected,
                      const int64_t *positions, int64_t count) {
  const size_t row = result_width(problem, tensor);
  double largest = 0, difference = 0;
  for (size_t i = 0; i < (size_t)problem->tokens * row; ++i) largest = fmax(largest, fabs(from_bfloat16(expected[i])));
  for (int64_t i = 0; i < count; ++i)
    for (size_t d = 0; d < row; ++d) {
      const double x = from_bfloat16(ours[(size_t)i * row + d]);
      const double apart = fabs(x - from_bfloat16(expected[(size_t)positions[i] * row + d]));
      if (!(apart <= difference)) difference = isnan(apart) ? INFINITY : apart;
    }
  return difference > 0 ? difference / largest : 0;
}

struct figures run_rank(const struct problem *problem, const struct group *group, int32_t rank, int32_t device,
                        const struct results *expected, struct results *found) {
  const ra_attention_desc desc = describe(problem);
  const struct memory memory = memory_open(group->backend, device);
  struct figures figures;
  ra_error error;

  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.rank = rank;
  config.world_size = group->world_size;
  config.backend = group->backend;
  config.transport = group->transport;
  config.device = device;
  config.unique_id = group->unique_id;
  ra_context *context = ra_create_context(&config, &error);
  if (context == NULL) fail("rank %d: %s: %s", rank, ra_get_status_name(error.status), error.message);

  const int64_t n = ra_get_shard_length(&desc, group->world_size, rank, RA_SIDE_QUERY, &error);
  if (n < 0) fail("rank %d: %s: %s", rank, ra_get_status_name(error.status), error.message);
  int64_t *const positions = (int64_t *)malloc((size_t)n * sizeof(int64_t));
  uint16_t *const host = (uint16_t *)malloc((size_t)n * width(problem, 0) * sizeof(uint16_t));
  if (positions == NULL || host == NULL) fail("no memory for %lld tokens", (long long)n);
  check(ra_get_shard_positions(&desc, group->world_size, rank, RA_SIDE_QUERY, 0, n, positions, &error), &error);

  void *inputs[NUM_INPUTS], *results[NUM_RESULTS];
  for (int t = 0; t < NUM_INPUTS; ++t) {
    const size_t row = input_width(problem, t), bytes = (size_t)n * row * sizeof(uint16_t);
    for (int64_t i = 0; i < n; ++i) fill_row(problem, t, positions[i], host + (size_t)i * row);
    inputs[t] = memory_allocate(&memory, bytes);
    memory_write(&memory, inputs[t], host, bytes);
  }
  for (int t = 0; t < NUM_RESULTS; ++t)
    results[t] = memory_allocate(&memory, (size_t)n * result_width(problem, t) * sizeof(uint16_t));
  float *const lse = (float *)memory_allocate(&memory, (size_t)(n * problem->heads) * sizeof(float));

  ra_forward_args forward;
  ra_init_forward_args(&forward, sizeof forward);
  forward.q.data = inputs[Q]; /* strides stay 0: packed */
  forward.k.data = inputs[K];
  forward.v.data = inputs[V];
  forward.out.data = results[OUT];
  forward.lse = lse;
  forward.stream = memory.stream;
  ra_backward_args backward;
  ra_init_backward_args(&backward, sizeof backward);
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.lse = lse;
  backward.dout.data = inputs[DOUT];
  backward.dq.data = results[DQ];
  backward.dk.data = results[DK];
  backward.dv.data = results[DV];
  backward.stream = memory.stream;

  double begin = 0;
  for (int call = 0; call <= problem->repeats; ++call) {
    if (call == 1) begin = now();
    check(ra_forward(context, &desc, &forward, &error), &error);
    check(ra_backward(context, &desc, &backward, &error), &error);
    if (call == 0) memory_wait(&memory);
  }
  memory_wait(&memory);
  figures.seconds = (now() - begin) / problem->repeats;
  check(ra_get_async_error(context, &error), &error); /* what went wrong after the calls returned */

  ra_memory_requirements needs;
  ra_init_memory_requirements(&needs, sizeof needs);
  check(ra_get_memory_requirements(context, &desc, &needs, &error), &error);
  const size_t of_forward = needs.forward_tensors + needs.forward_workspace;
  const size_t of_backward = needs.backward_tensors + needs.backward_workspace;
  figures.memory = of_forward > of_backward ? of_forward : of_backward;
  figures.tokens = n;
  figures.difference = expected == NULL ? NAN : 0;
  for (int t = 0; t < NUM_RESULTS; ++t) {
    const size_t bytes = (size_t)n * result_width(problem, t) * sizeof(uint16_t);
    if (expected == NULL) {
      memory_read(&memory, found->of[t], results[t], bytes); /* a group of one has all tokens, in their order */
    } else {
      memory_read(&memory, host, results[t], bytes);
      figures.difference = fmax(figures.difference, compare(problem, t, host, expected->of[t], positions, n));
    }
  }

  ra_destroy_context(context); /* waits for its device; the memory below belongs to the calls until then */
  for (int t = 0; t < NUM_INPUTS; ++t) memory_free(&memory, inputs[t]);
  for (int t = 0; t < NUM_RESULTS; ++t) memory_free(&memory, results[t]);
  memory_free(&memory, lse);
  memory_close(&memory);
  free(host);
  free(positions);
  return figures;
}
