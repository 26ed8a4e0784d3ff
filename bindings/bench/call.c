/* What a call costs in C: the measure for other languages' calls of the same (./dev bench bindings).
 *
 *     call [--calls N]     median and mean of N calls of ra_forward: one rank and thread, one head of 64 tokens and 64 dimensions */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ringattn/ringattn.h"

enum { TOKENS = 64, DIM = 64, FIRST = 2000 }; /* the first calls warm up and are not counted */

static float q[TOKENS * DIM], k[TOKENS * DIM], v[TOKENS * DIM], out[TOKENS * DIM], lse[TOKENS];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  const int calls = argc == 3 && strcmp(argv[1], "--calls") == 0 ? atoi(argv[2]) : 30000;
  double *const times = calls > 0 ? malloc((size_t)calls * sizeof *times) : NULL;
  if (times == NULL) {
    fprintf(stderr, "call: --calls must be 1 or more, and fit into memory\n");
    return 1;
  }
  for (int i = 0; i < TOKENS * DIM; ++i) {
    q[i] = (float)(i % 7) / 7;
    k[i] = (float)(i % 5) / 5;
    v[i] = (float)(i % 3) / 3;
  }
  ra_error error;
  ra_context_config config;
  ra_init_context_config(&config, sizeof config);
  config.num_threads = 1;
  ra_context *const context = ra_create_context(&config, &error);
  ra_attention_desc desc;
  ra_init_attention_desc(&desc, sizeof desc);
  desc.seqlen_q = TOKENS;
  desc.head_dim = DIM;
  double sum = 0;
  for (int call = -FIRST; call < calls; ++call) {
    const double begin = now();
    ra_forward_args args;
    ra_init_forward_args(&args, sizeof args);
    args.q.data = q;
    args.k.data = k;
    args.v.data = v;
    args.out.data = out;
    args.q.size = args.k.size = args.v.size = args.out.size = sizeof q;
    args.lse = lse;
    args.lse_size = sizeof lse;
    if (context == NULL || ra_forward(context, &desc, &args, &error) != RA_STATUS_SUCCESS) {
      fprintf(stderr, "call: %s\n", error.message);
      return 1;
    }
    if (call >= 0) sum += times[call] = now() - begin;
  }
  qsort(times, (size_t)calls, sizeof *times, compare);
  printf("{\"language\": \"c\", \"median_ns\": %.1f, \"mean_ns\": %.1f}\n", times[calls / 2], sum / calls);
  free(times);
  ra_destroy_context(context);
  return 0;
}
