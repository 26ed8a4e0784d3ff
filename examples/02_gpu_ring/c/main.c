/* Causal attention over one sequence, forward and backward, on the GPUs of this machine.
 *
 *   memory.c   host memory or device memory
 *   ring.c     what a rank does: every call of the library
 *   main.c     who the ranks are: threads of this process (--transport local), or this process is one of them (--transport nccl
 *              --rank R --id FILE), as ring.sh starts them; and what came out
 *
 * First one rank computes all of it alone, then all ranks together; each compares its shard with what the one has found.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ring.h"

enum { ALL_RANKS = -1 };

struct options {
  struct problem problem;
  struct group group;
  int64_t rank;        /* of this process, or ALL_RANKS */
  const char *id_file; /* where rank 0 leaves the group's id for the others */
};

static void usage(const char *program, FILE *to) {
  fprintf(to,
          "usage: %s [--backend cuda|cpu] [--transport local|nccl] [--ranks N] [--rank R --id FILE]\n"
          "          [--tokens N] [--heads N] [--heads-kv N] [--head-dim N] [--chunks N] [--repeats N]\n",
          program);
}

/* The value of argv[*i], which is behind it, if it has that name. */
static const char *value_of(const char *name, int argc, char **argv, int *i) {
  if (strcmp(argv[*i], name) != 0) return NULL;
  if (++*i == argc) fail("%s needs a value", name);
  return argv[*i];
}

static int64_t to_number(const char *name, const char *text, int64_t least) {
  char *end = NULL;
  const long long number = strtoll(text, &end, 10);
  if (*text == '\0' || *end != '\0' || number < least || number > (1LL << 40))
    fail("%s is %s; must be a number of %lld or more", name, text, (long long)least);
  return number;
}

static int32_t to_choice(const char *name, const char *text, const char *zero, const char *first, int32_t value) {
  if (strcmp(text, zero) != 0 && strcmp(text, first) != 0) fail("%s is %s; must be %s or %s", name, text, zero, first);
  return strcmp(text, first) == 0 ? value : 0;
}

static struct options parse(int argc, char **argv) {
  struct options o = {{16384, 8, 2, 128, 0, 3}, {RA_BACKEND_CUDA, RA_TRANSPORT_LOCAL, 4, NULL}, ALL_RANKS, NULL};
  int64_t ranks = o.group.world_size, repeats = o.problem.repeats;
  const struct {
    const char *name;
    int64_t *value, least;
  } numbers[] = {{"--ranks", &ranks, 1},
                 {"--rank", &o.rank, 0},
                 {"--tokens", &o.problem.tokens, 1},
                 {"--heads", &o.problem.heads, 1},
                 {"--heads-kv", &o.problem.heads_kv, 1},
                 {"--head-dim", &o.problem.head_dim, 1},
                 {"--chunks", &o.problem.num_chunks, 0},
                 {"--repeats", &repeats, 1}};
  for (int i = 1; i < argc; ++i) {
    const char *value = NULL;
    if ((value = value_of("--backend", argc, argv, &i)) != NULL) {
      o.group.backend = to_choice("--backend", value, "cpu", "cuda", RA_BACKEND_CUDA);
    } else if ((value = value_of("--transport", argc, argv, &i)) != NULL) {
      o.group.transport = to_choice("--transport", value, "local", "nccl", RA_TRANSPORT_NCCL);
    } else if ((value = value_of("--id", argc, argv, &i)) != NULL) {
      o.id_file = value;
    } else {
      size_t n = 0;
      const size_t count = sizeof numbers / sizeof numbers[0];
      for (; n < count && (value = value_of(numbers[n].name, argc, argv, &i)) == NULL; ++n) continue;
      if (n == count) {
        const int asked = strcmp(argv[i], "--help") == 0;
        usage(argv[0], asked ? stdout : stderr);
        if (asked) exit(0);
        fail("unknown: %s", argv[i]);
      }
      *numbers[n].value = to_number(numbers[n].name, value, numbers[n].least);
    }
  }
  o.group.world_size = (int32_t)ranks;
  o.problem.repeats = (int)repeats;
  const int processes = o.group.transport == RA_TRANSPORT_NCCL;
  if (processes != (o.rank != ALL_RANKS) || processes != (o.id_file != NULL))
    fail("--transport nccl goes with --rank and --id, and no other does: ranks of one process are threads of it");
  if (o.rank >= ranks) fail("--rank is %lld of %lld; the first is 0", (long long)o.rank, (long long)ranks);
  return o;
}

/* The group's id, as any text could travel: rank 0 writes it to a file, the others wait for that. */
static void share_id(const char *path, int64_t rank, ra_unique_id *id) {
  if (rank == 0) {
    char part[4096];
    ra_error error;
    if (ra_create_unique_id(id, RA_TRANSPORT_NCCL, NULL, &error) != RA_STATUS_SUCCESS)
      fail("%s: %s", ra_get_status_name(error.status), error.message);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *const file = fopen(part, "w");
    if (file == NULL || fputs(id->text, file) == EOF || fclose(file) != 0 || rename(part, path) != 0)
      fail("cannot write %s", path);
    return;
  }
  const struct timespec moment = {0, 10000000};
  for (int waited = 0; waited < 6000; ++waited) { /* a minute */
    FILE *const file = fopen(path, "r");
    if (file != NULL) {
      if (fgets(id->text, sizeof id->text, file) == NULL) fail("cannot read %s", path);
      fclose(file);
      return;
    }
    nanosleep(&moment, NULL);
  }
  fail("rank 0 has left no id in %s for a minute", path);
}

static void print_heading(const struct options *o) {
  const struct problem *const p = &o->problem;
  printf("%lld tokens, causal, zigzag, %lld:%lld heads of %lld, bfloat16, forward and backward; %d ranks, %s, %s\n\n",
         (long long)p->tokens, (long long)p->heads, (long long)p->heads_kv, (long long)p->head_dim, o->group.world_size,
         o->group.transport == RA_TRANSPORT_NCCL ? "a process each" : "threads of one process",
         o->group.backend == RA_BACKEND_CUDA ? "CUDA" : "CPU");
  printf("%7s %7s %9s %9s %12s %12s %12s\n", "", "", "", "", "tokens/s of", "memory", "difference");
  printf("%7s %7s %9s %9s %12s %12s %12s\n", "rank", "device", "tokens", "seconds", "all ranks", "per rank",
         "to one rank");
}

static void print_row(const struct options *o, const char *rank, int32_t device, const struct figures *f) {
  printf("%7s %7d %9lld %9.4f %12.0f %8.1f MiB", rank, device, (long long)f->tokens, f->seconds,
         (double)o->problem.tokens / f->seconds, (double)f->memory / (1 << 20));
  if (!isnan(f->difference)) printf(" %12.1e", f->difference);
  printf("\n");
  fflush(stdout);
}

/* A rank that is a thread. */
struct member {
  const struct options *options;
  const struct results *expected;
  int32_t rank, device;
  struct figures figures;
};

static void *run_member(void *argument) {
  struct member *const m = (struct member *)argument;
  m->figures = run_rank(&m->options->problem, &m->options->group, m->rank, m->device, m->expected, NULL);
  return NULL;
}

int main(int argc, char **argv) {
  struct options o = parse(argc, argv);
  const int processes = o.group.transport == RA_TRANSPORT_NCCL;
  const int32_t first = processes ? (int32_t)o.rank : 0, count = processes ? 1 : o.group.world_size;
  ra_error error;
  ra_capabilities capabilities;
  ra_init_capabilities(&capabilities, sizeof capabilities);
  if (ra_get_capabilities(&capabilities, &error) != RA_STATUS_SUCCESS) fail("%s", error.message);
  const int32_t devices =
      o.group.backend == RA_BACKEND_CUDA && capabilities.num_devices > 0 ? capabilities.num_devices : 1;

  if (first == 0) print_heading(&o);
  const struct group alone = {o.group.backend, RA_TRANSPORT_LOCAL, 1, NULL};
  struct results expected = results_allocate(&o.problem);
  const struct figures of_one = run_rank(&o.problem, &alone, 0, first % devices, NULL, &expected);
  if (first == 0) print_row(&o, "alone", first % devices, &of_one);

  ra_unique_id id;
  if (processes)
    share_id(o.id_file, o.rank, &id);
  else if (ra_create_unique_id(&id, RA_TRANSPORT_LOCAL, NULL, &error) != RA_STATUS_SUCCESS)
    fail("%s: %s", ra_get_status_name(error.status), error.message);
  o.group.unique_id = id.text;

  struct member *const members = (struct member *)calloc((size_t)count, sizeof(struct member));
  pthread_t *const threads = (pthread_t *)calloc((size_t)count, sizeof(pthread_t));
  if (members == NULL || threads == NULL) fail("no memory for %d ranks", count);
  for (int32_t i = 0; i < count; ++i) {
    members[i].options = &o;
    members[i].expected = &expected;
    members[i].rank = first + i;
    members[i].device = (first + i) % devices;
    if (pthread_create(&threads[i], NULL, run_member, &members[i]) != 0) fail("no thread for rank %d", first + i);
  }
  for (int32_t i = 0; i < count; ++i) pthread_join(threads[i], NULL);

  /* Both are rounded once to bfloat16, from sums in fp32 over rounded weights: apart by a unit of the last place or so. */
  const double most = 0x1p-7;
  int status = 0;
  for (int32_t i = 0; i < count; ++i) {
    char rank[16];
    snprintf(rank, sizeof rank, "%d", members[i].rank);
    print_row(&o, rank, members[i].device, &members[i].figures);
    if (!(members[i].figures.difference <= most)) {
      fprintf(stderr, "rank %s differs from one rank by %.1e; at most %.1e\n", rank, members[i].figures.difference,
              most);
      status = 1;
    }
  }
  free(threads);
  free(members);
  results_free(&expected);
  return status;
}
