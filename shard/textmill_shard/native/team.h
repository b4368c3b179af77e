// A team of threads that runs one function at a time; its members meet at spin-then-yield barriers.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPINS_BEFORE_YIELD 2000  // about 30 us: longer than a phase is uneven, shorter than a time slice
#define SPINS_BEFORE_SLEEP 4000  // idle members give the core away between steps

typedef struct team team;
typedef void (*team_work)(void *argument, int member);

typedef struct {
  team *owner;
  int member;
  pthread_t thread;
} team_member;

struct team {
  int size;
  team_member *members;  // 1 .. size - 1; the caller of team_run is member 0
  team_work work;
  void *argument;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int num_asleep;
  void *scratch;  // kept between runs: fresh memory would be mapped page by page each time
  size_t scratch_bytes;
  _Alignas(64) atomic_uint run;  // counts the runs; members wait for it to move
  _Alignas(64) atomic_int num_busy;
  _Alignas(64) atomic_int num_arrived;
  _Alignas(64) atomic_uint phase;
  _Alignas(64) atomic_int stops;
};

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static inline void team_barrier(team *t) {
  if (t->size == 1) return;
  const unsigned phase = atomic_load_explicit(&t->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&t->num_arrived, 1, memory_order_acq_rel) + 1 == t->size) {
    atomic_store_explicit(&t->num_arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->phase, phase + 1, memory_order_release);
    return;
  }
  int spins = 0;
  while (atomic_load_explicit(&t->phase, memory_order_acquire) == phase) {
    if (++spins < SPINS_BEFORE_YIELD)
      relax();
    else
      sched_yield();
  }
}

static void *team_member_main(void *argument) {
  team_member *self = argument;
  team *t = self->owner;
  unsigned seen = 0;
  for (;;) {
    int spins = 0;
    while (atomic_load_explicit(&t->run, memory_order_acquire) == seen && ++spins < SPINS_BEFORE_SLEEP) relax();
    if (atomic_load(&t->run) == seen) {
      pthread_mutex_lock(&t->lock);
      t->num_asleep++;
      while (atomic_load(&t->run) == seen) pthread_cond_wait(&t->wake, &t->lock);
      t->num_asleep--;
      pthread_mutex_unlock(&t->lock);
    }
    seen = atomic_load(&t->run);
    if (atomic_load(&t->stops)) return NULL;
    t->work(t->argument, self->member);
    atomic_fetch_sub_explicit(&t->num_busy, 1, memory_order_release);
  }
}

static void team_start_run(team *t) {
  pthread_mutex_lock(&t->lock);
  atomic_fetch_add(&t->run, 1);
  if (t->num_asleep) pthread_cond_broadcast(&t->wake);
  pthread_mutex_unlock(&t->lock);
}

// One caller at a time; comes back when all members are done.
static void team_run(team *t, team_work work, void *argument) {
  if (t->size > 1) {
    t->work = work;
    t->argument = argument;
    atomic_store(&t->num_busy, t->size - 1);
    team_start_run(t);
  }
  work(argument, 0);
  int spins = 0;
  while (t->size > 1 && atomic_load_explicit(&t->num_busy, memory_order_acquire)) {
    if (++spins < SPINS_BEFORE_YIELD)
      relax();
    else
      sched_yield();
  }
}

static void team_free(team *t) {
  atomic_store(&t->stops, 1);
  team_start_run(t);
  for (int i = 1; i < t->size; i++) pthread_join(t->members[i].thread, NULL);
  pthread_cond_destroy(&t->wake);
  pthread_mutex_destroy(&t->lock);
  free(t->scratch);
  free(t->members);
  free(t);
}

// NULL when memory or threads are short.
static team *team_new(int size) {
  team *t = aligned_alloc(64, (sizeof(team) + 63) / 64 * 64);
  if (!t) return NULL;
  memset(t, 0, sizeof(team));
  t->size = 1;
  t->members = calloc((size_t)size, sizeof(team_member));
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->wake, NULL);
  for (int i = 1; t->members && i < size; i++) {
    t->members[i] = (team_member){.owner = t, .member = i};
    if (pthread_create(&t->members[i].thread, NULL, team_member_main, &t->members[i])) break;
    t->size++;
  }
  if (t->size == size) return t;
  team_free(t);
  return NULL;
}

// Memory for one run, 64-byte aligned; NULL when it is short.
static void *team_scratch(team *t, int64_t num_bytes) {
  if ((size_t)num_bytes > t->scratch_bytes) {
    free(t->scratch);
    t->scratch_bytes = ((size_t)num_bytes + 63) / 64 * 64;
    t->scratch = aligned_alloc(64, t->scratch_bytes);
    if (!t->scratch) t->scratch_bytes = 0;
  }
  return t->scratch;
}

// The part of `count` things that belongs to a member.
static inline int64_t share(int64_t count, int64_t member, int64_t size) { return count * member / size; }
